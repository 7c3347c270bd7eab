"""What the model promises, whatever its family: independence, equality after saving, no limit on scans and slices."""

import pytest
import timm
import torch
import torch.nn.functional as F

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMModel
from radfm.base_tower_radfm import FastTower

FAMILIES = {
    "resnet": {"family": "resnet", "tower": "test_resnet"},
    "vit": {"family": "vit", "tower": "test_vit"},
    "vit with 3D patches": {"family": "vit", "tower": "test_vit", "slice_depth": 3},
    "resnet-vit": {
        "family": "resnet-vit",
        "tower": "test_resnet",
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "resnet3d": {"family": "resnet3d", "tower": "test_resnet", "slice_depth": 0},
    "vit3d": {
        "family": "vit3d",
        "tower": "test_vit",
        "tower_args": {"patch_size": (4, 16, 16), "grid": (2, 4, 4)},
        "slice_depth": 0,
    },
    "windows of a network of MONAI": {
        "family": "monai",
        "tower": "ViT",
        "tower_args": {
            "in_channels": 1,
            "img_size": [8, 64, 64],
            "patch_size": [4, 16, 16],
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_layers": 1,
            "num_heads": 2,
        },
        "slice_depth": 8,
    },
}
DISORDERS = ["Pneumothorax", "Rib fracture", "Meningioma"]


@pytest.fixture(params=FAMILIES)
def model(request, tiny_config) -> RadFMForDiagnosis:
    vision = {"image_size": 64, "slices_per_chunk": 4, **FAMILIES[request.param]}
    return build(RadFMConfig(**tiny_config | {"vision_config": vision, "disorders": DISORDERS}))


@pytest.fixture
def resnet(tiny_config) -> RadFMForDiagnosis:
    return build(RadFMConfig(**tiny_config, disorders=DISORDERS))


def build(config: RadFMConfig) -> RadFMForDiagnosis:
    torch.manual_seed(0)
    model = RadFMForDiagnosis(config).eval()
    for parameter in model.parameters():  # positions, norms and class tokens must count for something
        parameter.data += 0.05 * torch.randn_like(parameter)
    if config.head == "text":
        model.head.disorder_embeds = F.normalize(torch.randn_like(model.head.disorder_embeds), dim=-1)
    return model


def batch(*cases: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """A packed batch; each case is the list of its scans' numbers of slices, and looks the same wherever it stands."""
    parts = []
    for case in cases:
        rng = torch.Generator().manual_seed(seed + sum(case) + 100 * len(case))
        parts.append(
            {
                "pixel_values": torch.randn(sum(case), 3, 64, 64, generator=rng),
                "slices_per_scan": torch.tensor(case, dtype=torch.int64),
                "scans_per_case": torch.tensor([len(case)]),
                "modality_ids": torch.arange(len(case)) % 10,
                "plane_ids": torch.arange(len(case)) % 4,
                "days": torch.arange(len(case)) * 30.0,
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def test_a_case_gives_the_same_alone_or_beside_others(model):
    cases = [[5, 1, 12], [1], [2, 2, 5, 1, 1]]
    together = model(**batch(*cases))
    for i, case in enumerate(cases):
        alone = model(**batch(case))
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.case_embeds[0], together.case_embeds[i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_order_of_scans_changes_nothing(model):
    inputs = batch([5, 1, 12])
    scans = inputs["pixel_values"].split([5, 1, 12])
    order = [2, 0, 1]
    turned = {name: x[order] for name, x in inputs.items() if name not in ("pixel_values", "scans_per_case")}
    turned |= {"pixel_values": torch.cat([scans[i] for i in order]), "scans_per_case": inputs["scans_per_case"]}
    before, after = model(**inputs), model(**turned)
    torch.testing.assert_close(before.logits, after.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(before.scan_attentions[order], after.scan_attentions, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_logits_of_a_case_are_the_log_sum_exp_over_its_class_token_and_its_scans(model):
    inputs = batch([3, 1], [], [5])
    model.sharpness.fill_(1.7)
    output = model(**inputs)
    assert output.tokens_per_case.tolist() == [3, 1, 2]  # each with the class token
    token_logits = model.head(output.token_embeds)
    parts = zip(token_logits.split([3, 1, 2]), output.logits, strict=True)
    for of_tokens, of_case in parts:
        expected = ((1.7 * of_tokens).exp().mean(0)).log() / 1.7
        torch.testing.assert_close(of_case, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.per_scan_logits, token_logits[[1, 2, 5]])


@torch.no_grad()
@pytest.mark.parametrize(("sharpness", "pooled"), [(1e-3, lambda x: x.mean(0)), (1e3, lambda x: x.amax(0))])
def test_pooling_lies_between_the_mean_and_the_maximum_of_the_tokens(resnet, sharpness, pooled):
    resnet.sharpness.fill_(sharpness)
    logits = torch.tensor([[-30.0, 2.0], [10.0, 3.0], [20.0, -5.0]])
    expected = torch.stack([pooled(logits[:2]), pooled(logits[2:])])
    torch.testing.assert_close(resnet.pool(logits, [2, 1]), expected, atol=0.25, rtol=0)


@torch.no_grad()
def test_a_scan_is_scored_in_the_context_of_its_case(model):
    together, alone = model(**batch([3, 2])), model(**batch([3], [2]))
    assert not torch.allclose(together.per_scan_logits, alone.per_scan_logits, atol=1e-4)


@torch.no_grad()
def test_the_stages_called_one_by_one_give_the_logits_of_forward(model):
    inputs = batch([3, 1], [], [5])
    context = {name: inputs[name] for name in ("modality_ids", "plane_ids", "days")}
    slices = model.radfm.encode_slices(inputs["pixel_values"], inputs["slices_per_scan"])
    scans = model.radfm.encode_scans(slices)
    cases = model.radfm.encode_cases(scans, inputs["scans_per_case"], **context)
    outputs = model(**inputs)
    logits = model.pool(model.head(cases.token_embeds), cases.tokens_per_case)
    torch.testing.assert_close(logits, outputs.logits, atol=0, rtol=0)
    torch.testing.assert_close(scans.slice_attentions, outputs.slice_attentions, atol=0, rtol=0)
    torch.testing.assert_close(cases.scan_attentions, outputs.scan_attentions, atol=0, rtol=0)


def test_the_order_of_slices_changes_the_answer(model):
    inputs = batch([6])
    turned = inputs | {"pixel_values": inputs["pixel_values"].flip(0)}
    assert not torch.allclose(model(**inputs).logits, model(**turned).logits, atol=1e-4)


@torch.no_grad()
def test_attentions_sum_to_one_over_each_scan_and_case(model):
    output = model(**batch([5, 1, 12], [2]))
    for attention in output.slice_attentions.split([5, 1, 12, 2]):
        assert attention.sum().item() == pytest.approx(1, abs=1e-5)
    for attention in output.scan_attentions.split([3, 1]):
        assert attention.sum().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_a_case_without_scans_and_a_scan_without_slices_have_finite_answers(model):
    empty = batch([3], [1])
    empty["scans_per_case"] = torch.tensor([2, 0])
    empty["slices_per_scan"] = torch.tensor([4, 0])
    output = model(**empty)
    assert output.logits.shape == (2, 3)
    assert output.logits.isfinite().all()
    nothing = {name: x[:0] for name, x in empty.items()} | {"scans_per_case": torch.tensor([0])}
    assert model(**nothing).logits.isfinite().all()


@torch.no_grad()
def test_a_scan_of_a_thousand_slices_and_a_case_of_forty_scans(resnet):
    long = resnet(**batch([1000]))
    assert long.logits.isfinite().all()
    assert long.slice_attentions.shape == (1000,)
    assert resnet(**batch([2] * 40)).scan_attentions.shape == (40,)


@torch.no_grad()
def test_chunks_change_nothing(resnet):
    inputs = batch([7, 6])
    answers = []
    for chunk in (1, 5, 64):
        resnet.radfm.slice_encoder.slices_per_chunk = chunk
        answers.append(resnet(**inputs).logits)
    torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(answers[0], answers[2], atol=1e-5, rtol=0)


def test_saving_and_loading_changes_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = RadFMForDiagnosis.from_pretrained(tmp_path).eval()
    inputs = batch([5, 1], [2])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, again(**inputs).logits, atol=1e-5, rtol=0)
    assert list(again.config.disorders) == DISORDERS
    expected, weights = model.state_dict(), again.state_dict()
    assert sorted(expected) == sorted(weights)
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


def test_the_embedding_model_loads_from_a_diagnosis_checkpoint(resnet, tmp_path):
    resnet.save_pretrained(tmp_path)
    base = RadFMModel.from_pretrained(tmp_path).eval()
    inputs = batch([4, 2])
    with torch.no_grad():
        torch.testing.assert_close(base(**inputs).case_embeds, resnet(**inputs).case_embeds, atol=1e-6, rtol=0)
        assert base.get_case_features(**inputs).norm().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_the_features_of_a_scan_and_of_a_slab_are_those_of_a_case_of_its_own(model):
    counts, depth = [5, 1, 2], model.config.vision_config.slice_depth
    inputs = batch(counts[:2], counts[2:])
    pixels = inputs["pixel_values"].split(counts)

    def alone(scan: int, slices: slice) -> torch.Tensor:
        context = {name: inputs[name][scan : scan + 1] for name in ("modality_ids", "plane_ids", "days")}
        values = pixels[scan][slices]
        return model.get_case_features(**batch([len(values)]) | context | {"pixel_values": values})

    scans = torch.cat([alone(scan, slice(None)) for scan in range(3)])
    torch.testing.assert_close(model.get_scan_features(**inputs), scans, atol=1e-5, rtol=0)
    starts = [(scan, start) for scan, count in enumerate(counts) for start in range(0, count, depth or count)]
    slabs = torch.cat([alone(scan, slice(start, start + (depth or counts[scan]))) for scan, start in starts])
    torch.testing.assert_close(model.get_slice_features(**inputs), slabs, atol=1e-5, rtol=0)


def test_a_pickle_in_place_of_safetensors_is_not_opened(resnet, tmp_path):
    resnet.save_pretrained(tmp_path)
    torch.save(resnet.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        RadFMForDiagnosis.from_pretrained(tmp_path)


@torch.no_grad()
def test_without_labels_and_key_slices_there_is_no_loss(resnet):
    assert resnet(**batch([3, 1])).loss is None
    assert resnet(**batch([3, 1]), key_slices=torch.tensor([-1, -1])).loss is None
    assert resnet(**batch([3, 1]), key_slices=torch.tensor([2, -1])).loss > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_about_the_same(model, dtype, tmp_path):
    inputs = batch([5, 1], [2])
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    half = RadFMForDiagnosis.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {p.dtype for p in half.parameters()} == {dtype}
    with torch.no_grad():
        torch.testing.assert_close(half(**inputs).logits.float(), expected, atol=0.5, rtol=0.05)


def test_every_parameter_gets_a_gradient(model):
    model.train()
    inputs = batch([5, 1], [2], [3, 3])
    tokens = torch.randint(1, 1000, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    keys = torch.tensor([2, 0, -1, 1, 1])
    output = model(**inputs, input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels, key_slices=keys)
    assert output.loss.item() == pytest.approx(sum(loss.item() for loss in output.losses.values()))
    assert set(output.losses) == {"diagnosis", "key_slice"}
    output.loss.backward()
    # The key's bias shifts all scores of a softmax alike; and no token has a type but the first.
    exempt = ("k_proj.bias", "key.bias", "token_type_embeddings.weight")
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.endswith(exempt)]
    silent = [n for n, p in trained if p.grad is None or not p.grad.any()]
    assert silent == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_config):
    config = RadFMConfig(
        **tiny_config | {"vision_config": {"image_size": 64, **FAMILIES["vit"]}, "disorders": DISORDERS}
    )
    inputs = batch([5, 1], [2]) | {"labels": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
    gradients = []
    for checkpointing in (False, True):
        model = build(config).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.radfm.slice_encoder.gradient_checkpointing
            assert all(layer.gradient_checkpointing for layer in model.radfm.scan_encoder.layers)
        model(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_tower_that_cannot_be_traced_is_fast_without_folding():
    tower = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    pictures = torch.randn(2, 3, 33, 33)
    torch.testing.assert_close(FastTower(tower, torch.float32)(pictures), tower(pictures), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_optimized_for_inference_answers_the_same(resnet):
    inputs = batch([5, 1, 12], [2])
    expected = resnet(**inputs)
    torch.testing.assert_close(resnet.optimize_for_inference()(**inputs).logits, expected.logits, atol=1e-4, rtol=0)
    compiled = resnet.optimize_for_inference(compile=True)(**inputs)
    torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(compiled.slice_attentions, expected.slice_attentions, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_compiled_tower_that_gives_other_values_is_not_used(resnet, monkeypatch):
    inputs = batch([5, 1], [2])
    expected = resnet(**inputs).logits
    monkeypatch.setattr(torch, "compile", lambda network, **options: lambda slices: network(slices) * torch.nan)
    resnet.optimize_for_inference(compile=True)
    with pytest.warns(UserWarning, match="gives other values on this processor, .* used uncompiled"):
        torch.testing.assert_close(resnet(**inputs).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2", reason="inductor of torch 2.14 returns NaN with AVX2"
)
@torch.no_grad()
def test_torch_compile_answers_the_same(resnet):
    inputs = batch([5, 1], [2])
    expected = resnet(**inputs).logits
    torch.testing.assert_close(torch.compile(resnet)(**inputs).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_return_dict_false_gives_a_tuple_and_texts_give_their_embeddings(resnet):
    inputs = batch([2]) | {"input_ids": torch.tensor([[101, 2000, 102], [101, 2001, 102]])}
    output = resnet(**inputs)
    assert output.logits.shape == (1, 2)
    torch.testing.assert_close(output.text_embeds.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(resnet(**batch([2]), text_embeds=output.text_embeds).logits, output.logits)
    torch.testing.assert_close(resnet(**inputs, return_dict=False)[0], output.logits)


def test_set_disorders_swaps_the_vocabulary_and_is_saved(resnet, tmp_path):
    embeds = torch.randn(2, 32)
    resnet.set_disorders(["Gallstones", "Cirrhosis"], embeds, icd10cm=[["K80.20"], []])
    resnet.save_pretrained(tmp_path)
    again = RadFMForDiagnosis.from_pretrained(tmp_path)
    assert list(again.config.disorders) == ["Gallstones", "Cirrhosis"]
    assert list(again.config.icd10cm) == [["K80.20"], []]
    torch.testing.assert_close(again.head.disorder_embeds, F.normalize(embeds, dim=-1))
    with pytest.raises(ValueError, match=r"shape \(1, 32\), got none"):
        resnet.set_disorders(["Gallstones"])
    with pytest.raises(ValueError, match="twice"):
        resnet.set_disorders(["Gallstones", "Gallstones"], embeds)


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_fixed_list_keeps_the_rows_of_names_that_stay(tiny_config, head):
    model = build(RadFMConfig(**tiny_config | {"text_config": None, "head": head, "disorders": DISORDERS}))
    inputs = batch([3, 2])
    before = model(**inputs).logits
    model.set_disorders(["Meningioma", "Cirrhosis", "Pneumothorax"])
    after = model(**inputs).logits
    torch.testing.assert_close(after[:, [2, 0]], before[:, [0, 2]])
    with pytest.raises(ValueError, match="no text encoder"):
        model.get_text_features(torch.tensor([[1]]))
    with pytest.raises(ValueError, match="its own list of disorders only"):
        model(**inputs, text_embeds=torch.zeros(1, 48))


@torch.no_grad()
def test_a_linear_head_is_one_map_of_the_case_embeddings(tiny_config):
    model = build(RadFMConfig(**tiny_config | {"text_config": None, "head": "linear", "disorders": DISORDERS}))
    output = model(**batch([3, 2]))
    weight, bias = (part.clone() for part in model.head.linear())
    logits = model.pool(output.token_embeds @ weight.T + bias, output.tokens_per_case.tolist())
    torch.testing.assert_close(output.logits, logits)
    assert not model.head.set_linear(weight * 2, bias * 2).any()
    torch.testing.assert_close(model.head(output.token_embeds), 2 * (output.token_embeds @ weight.T + bias))


@torch.no_grad()
@pytest.mark.parametrize("hidden_size", [48, 64])
def test_a_projection_with_a_bias_is_never_left_out(tiny_config, hidden_size):
    tower = tiny_config["vision_config"] | {"projection": "affine"}
    model = build(RadFMConfig(**tiny_config | {"vision_config": tower, "hidden_size": hidden_size}))
    encoder, inputs = model.radfm.slice_encoder, batch([3])
    encoder.projection.bias.normal_()
    slices = encoder(inputs["pixel_values"], [3])
    expected = slices.features @ encoder.projection.weight.T + encoder.projection.bias
    torch.testing.assert_close(slices.embeds, expected)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "max", "catavgmax"])
def test_patch_logits_are_those_of_each_patch_as_a_case_of_its_own(tiny_config, pool):
    tower = {"tower": "test_resnet", "tower_args": {"global_pool": pool}, "image_size": 32}
    model = build(RadFMConfig(**tiny_config | {"vision_config": tower, "disorders": DISORDERS}))
    inputs = batch([2, 1], [1])
    inputs["pixel_values"] = inputs["pixel_values"][..., :32, :32]
    slices = model.radfm.encode_slices(inputs["pixel_values"], inputs["slices_per_scan"], with_patches=True)
    context = {name: inputs[name] for name in ("modality_ids", "plane_ids", "days")}
    patch_logits = model.patch_logits(slices, **context)
    assert patch_logits.shape == (4, 1, 1, len(DISORDERS))  # the feature map of 32 pixels has one patch
    alone = {"slices_per_scan": torch.ones(4, dtype=torch.int64), "scans_per_case": torch.ones(4, dtype=torch.int64)}
    of_scans = ("modality_ids", "plane_ids", "days")
    of_slice = {name: inputs[name].repeat_interleave(inputs["slices_per_scan"]) for name in of_scans}
    expected = model(pixel_values=inputs["pixel_values"], **alone, **of_slice).logits
    torch.testing.assert_close(patch_logits[:, 0, 0], expected, atol=1e-5, rtol=0)
    plain = model.radfm.encode_slices(inputs["pixel_values"], inputs["slices_per_scan"])
    torch.testing.assert_close(slices.embeds, plain.embeds, atol=1e-5, rtol=0)
    assert plain.patches is None


def test_a_tower_without_patch_features_is_refused(tiny_config):
    vision = {"image_size": 64, **FAMILIES["vit"]}
    model = build(RadFMConfig(**tiny_config | {"vision_config": vision, "disorders": DISORDERS}))
    inputs = batch([2])
    with pytest.raises(ValueError, match="patches can be encoded from pixels, by a CNN"):
        model.radfm.encode_slices(inputs["pixel_values"], inputs["slices_per_scan"], with_patches=True)


@torch.no_grad()
def test_encoders_without_layers_average(tiny_config):
    none = {"num_hidden_layers": 0}
    model = build(RadFMConfig(**tiny_config | {"scan_config": none, "case_config": none, "disorders": DISORDERS}))
    inputs = batch([3, 2])
    output = model(**inputs)
    slices = model.radfm.slice_encoder(inputs["pixel_values"], [3, 2])[0]
    torch.testing.assert_close(output.scan_embeds, torch.stack([slices[:3].mean(0), slices[3:].mean(0)]))
    torch.testing.assert_close(output.slice_attentions, torch.tensor([1 / 3] * 3 + [1 / 2] * 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices_per_scan": torch.tensor([3, 3])}, "slices_per_scan sums to 6, pixel_values holds 5"),
        ({"scans_per_case": torch.tensor([3])}, "scans_per_case sums to 3"),
        ({"modality_ids": torch.tensor([1])}, "1 modality_ids for 2 scans"),
    ],
)
def test_counts_that_do_not_add_up_are_refused(resnet, change, message):
    with pytest.raises(ValueError, match=message):
        resnet(**batch([3, 2]) | change)
