"""Models that read the latents of an autoencoder in the place of pixels."""

import numpy as np
import pytest
import torch

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, Scan
from radfm.configuration_radfm import RadFMVisionConfig
from radfm.latent_tower_radfm import ConditionedStage, edm_sigmas
from radfm.towers_radfm import build_tower

LATENTS = {"autoencoder": "0123456789abcdef", "channels": 4}


def tower(name: str = "test_convnext", size: int = 28, **arguments):
    vision = RadFMVisionConfig(family="latent", tower=name, image_size=size, tower_args={"in_chans": 4} | arguments)
    return build_tower(vision, 32)


def latents(count: int, size: int = 28) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(0)) / 2


def films(network: torch.nn.Module) -> list[torch.nn.Linear]:
    return [stage.film for stage in network.modules() if isinstance(stage, ConditionedStage)]


def set_films(network: torch.nn.Module) -> None:
    for film in films(network):
        torch.nn.init.normal_(film.weight, std=0.1)


def model_of_latents(tiny_config: dict, **changes) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    arguments = {"in_chans": 4, "patch_size": 1}
    vision = {"family": "latent", "tower": "test_convnext", "image_size": 16, "tower_args": arguments}
    config = RadFMConfig(**tiny_config | {"vision_config": vision | changes}, disorders=["Glioma", "Meningioma"])
    model = RadFMForDiagnosis(config)
    torch.nn.init.normal_(model.head.disorder_embeds)
    return model, RadFMProcessor(RadFMImageProcessor(size=16, latents=LATENTS))


def case_of_latents(slices: int = 3, size: int = 16) -> Case:
    return Case(scans=[Scan(latents(slices, size).half().numpy(), "CT", "axial", (4, 1, 1))])


def test_latents_go_through_the_processor_as_they_are():
    processor = RadFMProcessor(RadFMImageProcessor(size=16, latents=LATENTS, max_slices=2))
    case = case_of_latents(4)
    batch = processor(cases=case)
    assert torch.equal(batch["pixel_values"], torch.from_numpy(case.scans[0].pixels[[0, 2]]).float())
    assert batch["slices_per_scan"].tolist() == [2]
    alone = processor.image_processor(case.scans[0].pixels, "CT")
    assert torch.equal(alone["pixel_values"], batch["pixel_values"])


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (3, 4, 8, 16), (3, 16, 16), (3, 16, 16, 4)])
def test_other_shapes_than_those_of_the_latents_are_refused(shape):
    processor = RadFMProcessor(RadFMImageProcessor(size=16, latents=LATENTS))
    with pytest.raises(ValueError, match=r"latents \(slices, 4, 16, 16\) of autoencoder 0123\w+, not .*radfm prepare"):
        processor(cases=Case(scans=[Scan(np.zeros(shape, np.float16), "CT")]))


def test_latents_are_not_read_as_volumes():
    with pytest.raises(ValueError, match="latents are read slice by slice: leave out volume"):
        RadFMImageProcessor(size=16, latents=LATENTS, volume={"size": [8, 16, 16], "spacing_mm": [1, 1, 1]})


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_a_new_tower_is_the_network_without_its_conditions(name):
    own = tower(name).eval()
    plain = tower(name, noise_conditioned=False).eval()
    assert len(films(own.network)) == 4
    assert all(not film.weight.any() and not film.bias.any() for film in films(own.network))
    weights = {key.replace(".stage.", "."): value for key, value in own.state_dict().items() if ".film." not in key}
    plain.load_state_dict(weights)
    expected = plain(latents(2))
    assert expected.shape == (2, own.num_features)
    torch.testing.assert_close(own(latents(2)), expected)


@pytest.mark.parametrize(("stride", "side"), [(1, 4), (4, 1)])
def test_the_stem_of_a_convnext_can_have_a_stride_of_one(stride, side):
    own = tower(patch_size=stride, size=32).eval()
    assert own.feature_map(latents(2, 32)).shape == (2, 64, side, side)
    assert own.pool_patches(own.feature_map(latents(2, 32))).shape == (2, side, side, own.num_features)


def test_small_latents_get_a_border_of_zeros():
    own, seen = tower().eval(), []
    own.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    own(latents(1, 27))
    assert seen[0].shape == (1, 4, 32, 32)
    torch.testing.assert_close(seen[0][..., 2:-3, 2:-3], latents(1, 27) * 2, rtol=1e-4, atol=0)
    assert seen[0].count_nonzero() == 4 * 27 * 27


def test_evaluation_is_deterministic_and_training_is_not():
    own = tower()
    set_films(own.network)
    own.eval()
    assert torch.equal(own(latents(2)), own(latents(2)))
    own.train()
    assert not torch.allclose(own(latents(2)), own(latents(2)))
    off = tower(noise_conditioned=False, mask_share=0.0).train()
    assert torch.equal(off(latents(2)), off(latents(2)))


def test_the_noise_levels_are_those_of_edm():
    sigmas = edm_sigmas()
    expected = [(80 ** (1 / 7) + i / 31 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(32)]
    torch.testing.assert_close(sigmas, torch.tensor(expected))


def test_noise_is_drawn_for_each_latent_and_scaled_to_unit_variance():
    own, seen = tower(mask_share=0.0).train(), []
    own.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    own(latents(64, 32))
    torch.testing.assert_close(seen[0].std((1, 2, 3)), torch.ones(64), atol=0.1, rtol=0)
    scaled = (seen[0] * latents(64, 32)).mean((1, 2, 3)) / latents(64, 32).square().mean((1, 2, 3))
    assert scaled.min() < 0.2  # noise alone
    assert scaled.max() > 1.8  # nearly the latent, times 2


def test_a_share_of_the_positions_is_masked_in_training():
    own, seen = tower(noise_conditioned=False).train(), []
    own.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    own(latents(64, 32))
    masked = (seen[0] == 0).all(1)
    assert 0.18 < masked.float().mean() < 0.22
    assert torch.equal((seen[0] == 0).any(1), masked)


def test_the_noise_level_is_read_in_evaluation_also_after_optimization():
    own = tower().eval()
    set_films(own.network)
    noisy = latents(2) + torch.randn(2, 4, 28, 28)
    clean = own(noisy)
    own.noise_level = 1.0
    conditioned = own(noisy)
    assert not torch.allclose(clean, conditioned, atol=1e-3)
    own.optimize_for_inference(torch.float32, compile=False)
    torch.testing.assert_close(own(noisy), conditioned, atol=1e-4, rtol=1e-4)
    own.noise_level = None
    torch.testing.assert_close(own(noisy), clean, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="a noise level is above 0"):
        own.noise_level = 0.0
    with pytest.raises(ValueError, match="a noise level is above 0, and of a tower that is conditioned on it"):
        tower(noise_conditioned=False).noise_level = 1.0


def test_batch_norms_of_a_conditioned_resnet_are_folded():
    own = tower("test_resnet").eval()
    set_films(own.network)
    for module in own.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    expected = own(latents(2))
    own.optimize_for_inference(torch.float32, compile=False)
    assert not [m for m in own._fast.tower.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    torch.testing.assert_close(own(latents(2)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_weights_learn_and_the_conditions_leave_zero(tiny_config, checkpointing):
    model, processor = model_of_latents(tiny_config)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    batch, labels = processor(cases=[case_of_latents(), case_of_latents(2)]), torch.tensor([[1.0, 0], [0, 1]])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        tower_of_model = model.radfm.slice_encoder.tower
        assert all(weight.grad is not None for weight in tower_of_model.parameters())
        optimizer.step()
    assert all(film.weight.abs().max() > 0 and film.bias.abs().max() > 0 for film in films(tower_of_model))


def test_a_checkpoint_of_latents_is_saved_and_loaded(tiny_config, tmp_path):
    model, processor = model_of_latents(tiny_config)
    set_films(model)
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, processor = RadFMForDiagnosis.from_pretrained(tmp_path), RadFMProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.latents == LATENTS
    batch = processor(cases=case_of_latents())
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(loaded(**batch).logits, expected)
        assert loaded.train()(**batch).logits.isfinite().all()
        fast = loaded.optimize_for_inference()
        torch.testing.assert_close(fast(**batch).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slice_depth": 2}, "slice_depth has to be 1"),
        ({"tower": "swin_tiny_patch4_window7_224", "tower_args": {"img_size": 224}}, "needs a CNN with stages"),
    ],
)
def test_what_reads_no_latents_is_refused(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        model_of_latents(tiny_config, **changes)
