"""Scans that are read as volumes: their preparation, the towers that read them, and two towers in one model."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from transformers import pipeline

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, Scan
from radfm.embedding_radfm import RadFMModel
from radfm.eval.saliency import explain
from radfm.train.adapters import with_adapters
from radfm.volume_processing_radfm import VolumeSettings, volume_grid
from radfm.volume_tower_radfm import inflated_weights

DISORDERS = ["Pneumothorax", "Rib fracture"]
SETTINGS = {"size": [8, 32, 32], "spacing_mm": [3.0, 2.0, 2.0], "axes": "SRA"}
RESNET3D = {"family": "resnet3d", "tower": "test_resnet", "slice_depth": 0, "image_size": 32}


def affine(axes: str, spacing_mm: tuple) -> np.ndarray:
    """(slice, row, column) -> LPS, for the directions in which they grow."""
    matrix = np.diag([0.0, 0.0, 0.0, 1.0])
    for source, direction in enumerate(axes):
        patient = next(i for i, pair in enumerate(("LR", "PA", "SI")) if direction in pair)
        matrix[patient, source] = spacing_mm[source] * (1 if direction in "LPS" else -1)
    return matrix


def ct(shape=(10, 40, 36), axes="SPL", spacing_mm=(2.5, 1.5, 1.5), seed=0, **facts) -> Scan:
    pixels = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    facts = {"plane": "axial", "affine": affine(axes, spacing_mm), **facts}
    return Scan(pixels, "CT", spacing_mm=spacing_mm, days=0.0, **facts)


def radiograph(seed=0) -> Scan:
    return Scan(
        np.random.default_rng(seed).integers(0, 255, (1, 40, 50)).astype(np.uint8), "X-ray", "PA", (0.0, 1.0, 1.0)
    )


def processor(**volume) -> RadFMProcessor:
    return RadFMProcessor(RadFMImageProcessor(size=32, volume=SETTINGS | volume))


def model_of(tiny_config, **changes) -> RadFMForDiagnosis:
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config | changes | {"disorders": DISORDERS})).eval()
    model.head.disorder_embeds = torch.nn.functional.normalize(torch.randn_like(model.head.disorder_embeds), dim=-1)
    return model


@pytest.fixture
def two_towers(tiny_config) -> RadFMForDiagnosis:
    slices = {"family": "resnet", "tower": "test_resnet", "image_size": 32}
    return model_of(tiny_config, vision_config=slices, volume_config=RESNET3D)


@pytest.mark.parametrize("axes", ["SPL", "IAR", "PIL", "LIP", "RSA"])
@pytest.mark.parametrize("shape", [(10, 40, 36), (5, 17, 60), (50, 31, 9)])
def test_volumes_are_prepared_as_by_monai(axes, shape):
    transforms = pytest.importorskip("monai.transforms")
    meta_tensor = pytest.importorskip("monai.data").MetaTensor
    spacing_mm = (3.7, 1.1, 0.8)
    scan = ct(shape, axes, spacing_mm)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    image = meta_tensor(torch.from_numpy(scan.pixels[None].astype(np.float32)), affine=to_ras)
    for transform in (
        transforms.Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        transforms.Spacing((2.0, 2.0, 3.0), mode="bilinear"),
        transforms.ScaleIntensityRange(-1000, 1000, 0, 1, clip=True),
        transforms.SpatialPad((32, 32, 8)),
        transforms.CenterSpatialCrop((32, 32, 8)),
    ):
        image = transform(image)
    batch = processor()(cases=[Case([scan])])
    assert batch["slices_per_scan"].tolist() == [8]
    values = batch["pixel_values"][:, 0]
    torch.testing.assert_close(values, image[0].permute(2, 0, 1).as_tensor(), atol=5e-3, rtol=0)


def test_the_voxel_size_is_that_of_the_affine_where_a_reader_rounded_it():
    exact, shape = (2.5, 0.796875, 0.796875), (10, 200, 200)
    rounded = replace(ct(shape, spacing_mm=exact), spacing_mm=(2.5, 0.7969, 0.7969))
    expected, ours = (
        processor()(cases=[Case([scan])])["pixel_values"] for scan in (ct(shape, spacing_mm=exact), rounded)
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axes", ["SPL", "LIP", "IRA"])
def test_a_map_goes_back_to_the_voxels_that_it_came_from(axes):
    settings = VolumeSettings(size=[64, 64, 64], spacing_mm=[2.0, 2.0, 2.0])
    scan = ct((20, 30, 24), axes, (2.6, 1.7, 2.2))
    smooth = np.add.outer(np.add.outer(np.arange(20.0), 2 * np.arange(30.0)), 3 * np.arange(24.0)).astype(np.float32)
    grid = volume_grid(scan, settings)
    prepared = grid.sample(smooth).nan_to_num(0).numpy()
    back = grid.back(prepared)
    inner = (slice(2, -2),) * 3  # the last voxel repeats beyond the end
    np.testing.assert_allclose(back[inner], smooth[inner], atol=0.05)


def test_a_long_scan_has_windows_that_overlap_and_reach_both_ends():
    settings = VolumeSettings(**SETTINGS | {"overlap": 0.25})
    scan = ct((40, 20, 20), spacing_mm=(3.0, 2.0, 2.0))
    grid = volume_grid(scan, settings)
    starts = grid.positions[0].reshape(grid.windows, 8)[:, 0]
    assert (starts[0], grid.positions[0][-1]) == (0, 39)
    assert np.diff(starts).max() <= 6
    one = VolumeSettings(**SETTINGS)
    np.testing.assert_array_equal(volume_grid(scan, one).positions[0], np.arange(16, 24))
    deep = VolumeSettings(**SETTINGS | {"size": [None, 32, 32]})
    assert len(volume_grid(scan, deep).positions[0]) == 40


def test_what_is_assumed_of_a_volume_is_said():
    warnings = processor().warnings_of
    assert warnings(ct((8, 40, 36), spacing_mm=(3.0, 1.5, 1.5))) == []
    (unknown,) = warnings(replace(ct((8, 40, 36), spacing_mm=(1.0, 1.0, 1.0)), spacing_mm=None))
    assert "voxel size is not known" in unknown
    assert "directions of its axes are not stated" in " ".join(warnings(ct(affine=None)))
    assert "75% from head to foot is padding" in " ".join(warnings(ct((2, 40, 36), spacing_mm=(3.0, 1.5, 1.5))))
    assert "50% from head to foot is cropped" in " ".join(warnings(ct((16, 40, 36), spacing_mm=(3.0, 1.5, 1.5))))
    assert "10.0 mm lie between its slices" in " ".join(warnings(ct((3, 40, 36), spacing_mm=(10.0, 1.5, 1.5))))
    assert "5.0 mm lie between its rows" in " ".join(warnings(ct((8, 12, 36), spacing_mm=(3.0, 5.0, 1.5))))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="three directions"):
        VolumeSettings(**SETTINGS | {"axes": "SSA"})
    with pytest.raises(ValueError, match="share of a window"):
        VolumeSettings(**SETTINGS | {"overlap": 1.0})
    with pytest.raises(ValueError, match="those of a slice"):
        RadFMImageProcessor(size=64, volume=SETTINGS)
    with pytest.raises(ValueError, match="NaN or infinite"):
        processor()(cases=[Case([Scan(np.full((3, 4, 4), np.nan, np.float32), "MRI", spacing_mm=(1.0, 1.0, 1.0))])])


def test_colours_and_single_slices_are_volumes_where_there_is_one_tower_alone():
    colour = Scan(np.full((2, 20, 20, 3), 9, np.uint8), "ultrasound")
    batch = processor()(cases=[Case([colour, radiograph()])])
    assert batch["slices_per_scan"].tolist() == [8, 8]
    assert "volumes" not in batch


def test_2d_weights_are_inflated():
    weight, grey = torch.randn(4, 3, 3, 3), torch.zeros(4, 1, 3, 3, 3)
    result = inflated_weights({"conv.weight": weight, "bias": torch.ones(4)}, {"conv.weight": grey})
    torch.testing.assert_close(result["conv.weight"].sum((1, 2)), weight.sum(1))
    assert result["bias"].tolist() == [1, 1, 1, 1]


@torch.no_grad()
def test_volumes_of_several_sizes_are_read_in_one_batch(tiny_config):
    model = model_of(tiny_config, vision_config=RESNET3D)
    read = processor(size=[None, 32, 32])
    cases = [Case([ct((10, 40, 36)), ct((4, 30, 30), seed=1)]), Case([ct((21, 20, 20), seed=2)])]
    batch = read(cases=cases)
    assert len(set(batch["slices_per_scan"].tolist())) == 3
    together = model(**batch).logits
    alone = torch.cat([model(**read(cases=[case])).logits for case in cases])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_radiographs_and_volumes_of_a_case_go_through_a_tower_each(two_towers):
    read = processor(least_slices=2)
    case = Case([radiograph(), ct(), radiograph(1), ct((14, 30, 30), seed=1)])
    batch = read(cases=[case])
    assert batch["volumes"].tolist() == [False, True, False, True]
    assert batch["slices_per_scan"].tolist() == [1, 8, 1, 8]
    output = two_towers(**batch)
    turned = two_towers(**read(cases=[Case(case.scans[::-1])]))
    torch.testing.assert_close(output.logits, turned.logits, atol=1e-5, rtol=0)
    width = two_towers.config.vision_config.num_features
    features = output.scan_features
    assert features[0, :width].any()
    assert not features[0, width:].any()
    assert features[1, width:].any()
    assert not features[1, :width].any()
    one = two_towers.get_scan_features(**read(cases=[Case([case.scans[1]])]))
    torch.testing.assert_close(two_towers.get_scan_features(**batch)[1], one[0], atol=1e-5, rtol=0)


def test_a_clip_without_distance_between_slices_is_no_volume_for_two_towers():
    clip = Scan(np.zeros((12, 20, 20), np.uint8), "ultrasound", spacing_mm=(0.0, 1.0, 1.0))
    batch = processor(least_slices=2)(cases=[Case([clip])])
    assert batch["volumes"].tolist() == [False]
    assert batch["slices_per_scan"].tolist() == [12]


def test_both_towers_get_a_gradient_from_a_batch_without_volumes(two_towers):
    two_towers.train()
    batch = processor(least_slices=2)(cases=[Case([radiograph()]), Case([radiograph(1)])])
    before = {name: value.clone() for name, value in two_towers.radfm.volume_encoder.named_buffers()}
    two_towers(**batch, labels=torch.tensor([[1.0, 0.0], [0.0, 1.0]])).loss.backward()
    assert all(p.grad is not None for p in two_towers.radfm.volume_encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in two_towers.radfm.volume_encoder.named_buffers())


def test_processes_call_both_towers_equally_often(two_towers, monkeypatch):
    calls = []
    two_towers.radfm.volume_encoder.tower.register_forward_hook(lambda *_: calls.append(1))
    batch = processor(least_slices=2)(cases=[Case([radiograph()])])
    with torch.no_grad():
        alone = two_towers.radfm(**batch).case_embeds
        assert not calls
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        torch.testing.assert_close(two_towers.radfm(**batch).case_embeds, alone)
        assert len(calls) == 1
    assert not two_towers.radfm.volume_encoder.tower.training


def test_a_model_with_two_towers_is_the_same_after_saving(two_towers, tmp_path):
    read = processor(least_slices=2)
    two_towers.save_pretrained(tmp_path)
    read.save_pretrained(tmp_path)
    again, read_again = RadFMForDiagnosis.from_pretrained(tmp_path).eval(), RadFMProcessor.from_pretrained(tmp_path)
    assert read_again.image_processor.volume == read.image_processor.volume
    batch = read_again(cases=[Case([radiograph(), ct()])])
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, two_towers(**batch).logits, atol=1e-5, rtol=0)
    assert RadFMModel.from_pretrained(tmp_path).volume_encoder is not None


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimized_tower_of_volumes_answers_alike(two_towers, compile):
    batch = processor(least_slices=2)(cases=[Case([radiograph(), ct(), ct((14, 30, 30), seed=1)])])
    with torch.no_grad():
        expected = two_towers(**batch).logits
        fast = two_towers.optimize_for_inference(torch.float32, compile)
        torch.testing.assert_close(fast(**batch).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("tower", ["resnet3d", "vit3d", "two"])
def test_maps_of_volumes_lie_over_the_voxels_of_the_file(tiny_config, two_towers, tower):
    vit = {"family": "vit3d", "tower": "test_vit", "tower_args": {"patch_size": (2, 8, 8), "grid": (4, 4, 4)}}
    visions = {"resnet3d": RESNET3D, "vit3d": vit | {"slice_depth": 0, "image_size": 32}}
    model = two_towers if tower == "two" else model_of(tiny_config, vision_config=visions[tower])
    read = processor(least_slices=2 if tower == "two" else 1, overlap=0.5 if tower == "two" else None)
    case = Case([ct((30, 40, 36), "LIP"), radiograph()])
    explanation = explain(model, read, case, ["Pneumothorax"])[0]
    maps = [explanation.scan_map(scan) for scan in range(2)]
    assert [one.shape for one in maps] == [(30, 40, 36), (1, 40, 50)]
    assert max(one.max() for one in explanation.coarse) == 1
    assert explanation.peak(0) == tuple(np.unravel_index(maps[0].argmax(), maps[0].shape))
    assert 0 <= explanation.key_slice(0) < 30
    np.testing.assert_array_equal(explanation.scan_map(0, [3, 4]), maps[0][3:5])


def test_low_rank_changes_of_a_tower_of_volumes_can_be_merged(two_towers):
    adapters = with_adapters(two_towers, rank=2).eval()
    changed = [name for name, _ in two_towers.named_parameters() if "volume_encoder.tower" in name and "lora_B" in name]
    assert changed
    torch.manual_seed(0)
    for name, parameter in two_towers.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn_like(parameter)
    batch = processor(least_slices=2)(cases=[Case([radiograph(), ct()])])
    with torch.no_grad():
        expected = two_towers(**batch).logits
        merged = adapters.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-3, rtol=1e-3)


def test_a_tower_of_slices_needs_a_depth(tiny_config):
    with pytest.raises(ValueError, match="slice_depth has to be at least 1"):
        model_of(tiny_config, vision_config={"family": "resnet", "tower": "test_resnet", "slice_depth": 0})
    with pytest.raises(ValueError, match="take a ResNet"):
        model_of(tiny_config, vision_config=RESNET3D | {"tower": "test_efficientnet"})


def test_scans_without_radfm_are_enough_for_the_processor():
    scan = SimpleNamespace(pixels=ct().pixels, modality="CT", plane="axial", spacing_mm=None, days=None, key_slice=3)
    batch = processor()(cases=[SimpleNamespace(scans=[scan])])
    assert batch["pixel_values"].shape == (8, 3, 32, 32)
    assert batch["key_slices"].tolist() == [2]


@pytest.fixture
def ct_model(tiny_config, tmp_path) -> Path:
    """A checkpoint that reads volumes, in windows that overlap, and has a row for CT alone."""
    model = model_of(tiny_config, vision_config=RESNET3D, modalities=["CT"])
    model.save_pretrained(tmp_path / "model")
    images = RadFMImageProcessor(size=32, volume=SETTINGS | {"overlap": 0.25}, modalities=["CT"])
    RadFMProcessor(images).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def volume_file(folder: Path, shape: tuple = (36, 40, 12), spacing_mm: tuple = (1.5, 1.5, 3.0)) -> Path:
    """A NIfTI file of axial slices."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing_mm, 1.0])), folder / "volume.nii.gz")
    return folder / "volume.nii.gz"


def test_the_command_states_no_key_slice_of_a_volume(radfm, ct_model, tmp_path):
    arguments = ("diagnose", volume_file(tmp_path), "--model", ct_model, "--modality", "CT")
    status, out, _ = radfm(*arguments)
    assert status == 0
    assert "Most weight: scan 1 (100%).\n" in out
    assert "Check the scans" not in out
    (scan,) = json.loads(radfm(*arguments, "--json")[1])["scans"]
    assert (scan["key_slice"], scan["key_slice_weight"]) == (None, None)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "warning"),
    [
        (
            (36, 40, 2),
            (1.5, 1.5, 3.0),
            "smaller than the volume that the model reads: 75% from head to foot is padding",
        ),
        (
            (10, 40, 8),
            (1.5, 1.5, 3.0),
            "smaller than the volume that the model reads: 75% from side to side is padding",
        ),
        (
            (36, 90, 8),
            (2.0, 2.0, 3.0),
            "larger than the volume that the model reads: 64% from front to back is cropped",
        ),
        ((36, 40, 6), (1.5, 1.5, 8.0), "8.0 mm lie between its slices, 3 mm between the model's: interpolated"),
    ],
)
def test_the_command_says_what_is_unusual_about_a_volume(radfm, ct_model, tmp_path, shape, spacing_mm, warning):
    file = volume_file(tmp_path, shape, spacing_mm)
    status, out, _ = radfm("diagnose", file, "--model", ct_model, "--modality", "CT")
    assert status == 0
    assert "Check the scans: the answer may mean nothing." in out
    assert warning in " ".join(out.split())


def test_the_command_says_what_is_assumed_of_a_volume_without_a_voxel_size(radfm, ct_model, tmp_path):
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).integers(-1000, 1000, (8, 36, 40)).astype(np.int16))
    status, out, _ = radfm("diagnose", tmp_path / "volume.npy", "--model", ct_model, "--modality", "CT")
    assert status == 0
    out = " ".join(out.split())
    assert "its voxel size is not known in full: the model's (3 x 2 x 2 mm) is taken in its place" in out
    assert "the directions of its axes are not stated: they are taken as in axial slices from feet to head" in out


def test_a_model_for_ct_warns_of_another_modality_and_refuses_it_on_demand(radfm, ct_model, tmp_path):
    file = volume_file(tmp_path)
    status, out, _ = radfm("diagnose", file, "--model", ct_model, "--modality", "MRI")
    assert status == 0
    assert 'the model was not made for MRI, and takes the scan for "CT"' in " ".join(out.split())
    status, out, err = radfm("diagnose", file, "--model", ct_model, "--modality", "MRI", "--refuse-unlike")
    assert (status, out) == (1, "")
    assert "the model was not made for MRI, and the case is refused" in err
    status, out, err = radfm("diagnose", file, "--model", ct_model, "--modality", "CT", "--refuse-unlike")
    assert status == 0
    assert "only modalities that it was not made for are refused" in err
    assert "Most weight" in out


def test_a_modality_that_the_recipe_does_not_list_is_refused_without_a_reference(ct_model):
    diagnose = pipeline("zero-shot-diagnosis", model=str(ct_model))
    recipe = {"config": {}, "data": {"source": "rp3d", "modalities": {"MRI": 5}}}
    (ct_model / "radfm_diagnosis.json").write_text(json.dumps(recipe))
    assert diagnose(Case([replace(ct(), modality="MRI")]), if_ood="refuse")  # though it has no row of its own
    with pytest.raises(ValueError, match=r"no training scan was of CT\): it is refused"):
        diagnose(Case([ct()]), if_ood="refuse")
    assert diagnose(Case([ct()]), if_ood="ignore")
