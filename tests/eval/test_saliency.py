"""Maps of what speaks for a disorder: where they lie, what moves them, and how they are measured."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
import torch.nn.functional as F
from pydicom.data import get_testdata_file

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMProcessor, Scan, read_case
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval.command import saliency as saliency_command
from radfm.eval.localisation import localise, with_random_vision
from radfm.eval.predict import Evaluation
from radfm.eval.saliency import explain, in_the_scan, overlay, saliency, to_nifti
from radfm.eval.scan_views import views
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.starting_points import processor_for
from radfm.towers_radfm import CNNTower, PatchTower
from radfm.volume_tower_radfm import VolumeTower

SPACING_MM = (3.0, 2.0, 1.0)
SQUARE = (slice(6, 14), slice(64, 80))  # off the centre of a slice of 48 x 96


class LinearTower(torch.nn.Module):
    """Brightness, in patches of 8 pixels, the same in all features."""

    def __init__(self, features: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((features, 3, 1, 1), 1 / 3))

    def forward_features(self, pictures: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.avg_pool2d(pictures, 8), self.weight)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.forward_features(pictures).mean((2, 3))


def case_with_a_square() -> Case:
    dark, bright = np.zeros((2, 48, 96), np.uint8), np.zeros((6, 48, 96), np.uint8)
    dark[0, 0, 0] = bright[0, 0, 0] = 255  # so that both are scaled alike
    bright[4][SQUARE] = 255
    return Case(scans=[Scan(dark, "MRI", spacing_mm=SPACING_MM), Scan(bright, "MRI", spacing_mm=SPACING_MM)])


@pytest.fixture
def linear_model() -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """Averages brightness over all; it speaks for "Bright", and as much against "Dark"."""
    vision = {"tower": "test_resnet", "image_size": 96, "slices_per_chunk": 2}
    mean = {"num_hidden_layers": 0}
    model = RadFMForDiagnosis(
        RadFMConfig(vision_config=vision, scan_config=mean, case_config=mean, text_config=None, hidden_size=16,
                    projection_dim=16, head="mlp", disorders=["Bright", "Dark"])
    )  # fmt: skip
    model.radfm.slice_encoder.tower = CNNTower(model.config.vision_config, 16, network=LinearTower(16))
    model.radfm.slice_encoder.projection = torch.nn.Identity()
    with torch.no_grad():
        model.head.fc1.weight.copy_(torch.eye(16))
        model.head.fc1.bias.fill_(20)  # where GELU is a straight line
        model.head.fc2.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
    images = RadFMImageProcessor(size=96, image_mean=None, intensity_percentiles=(0, 100))
    return model.eval(), RadFMProcessor(images)


class LinearVolumes(VolumeTower):
    """Brightness above 0.5, in blocks of 4 voxels, the same in all features."""

    num_features = 16

    @classmethod
    def build(cls, config) -> torch.nn.Module:
        network = torch.nn.Sequential(
            torch.nn.Threshold(0.5, 0.0), torch.nn.AvgPool3d(4), torch.nn.Conv3d(1, 16, 1, bias=False)
        )
        torch.nn.init.ones_(network[2].weight)
        return network

    def replace_activations(self, replace):
        return self.network.register_forward_hook(lambda module, args, output: replace(output)).remove

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.network(volumes).mean((2, 3, 4))


@pytest.fixture
def linear_volumes(linear_model) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """As `linear_model`, for volumes: windows of 24 slices of 96 x 96 mm, in the directions in which Merlin reads."""
    model, _ = linear_model
    model.config.vision_config.slice_depth = 0
    model.radfm.slice_encoder.tower = LinearVolumes(model.config.vision_config, 16)
    volume = {"size": [24, 48, 48], "spacing_mm": [2.0, 2.0, 2.0], "axes": "SRA", "overlap": 0.25}
    return model.eval(), RadFMProcessor(RadFMImageProcessor(size=48, volume=volume))


LESION_MM = (20.0, -24.0, 30.0)  # to the right, to the front and up from the middle of the file; RAS


def ct_with_a_lesion(axes: str) -> nibabel.Nifti1Image:
    """120 mm a side, with a bright block of 16 mm, stored along these axes of the patient."""
    voxels = np.full((60, 80, 40), -500, np.int16)
    millimetres = np.diag([2.0, 1.5, 3.0, 1.0])
    millimetres[:3, 3] = -0.5 * (np.array(voxels.shape) - 1) * millimetres.diagonal()[:3]
    coordinates = np.moveaxis(np.indices(voxels.shape), 0, -1) * millimetres.diagonal()[:3] + millimetres[:3, 3]
    voxels[(np.abs(coordinates - LESION_MM) < 8).all(-1)] = 900
    image = nibabel.Nifti1Image(voxels, millimetres)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(tuple("RAS")), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    return image.as_reoriented(turn)


@pytest.fixture
def tiny(tiny_config) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config, disorders=["Gout"]))
    model.set_disorders(["Gout"], torch.randn(1, 32))
    return model.eval(), processor_for(model.config)


class BrightOrNot(LinearTower):
    """Brightness, and beside it a feature that is the same everywhere, so that directions differ."""

    num_features = 32

    def forward_features(self, pictures: torch.Tensor) -> torch.Tensor:
        bright = super().forward_features(pictures)
        return torch.cat([bright, torch.ones_like(bright)], dim=1)

    def forward_head(self, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map.mean((2, 3))


def test_a_tower_trained_with_patch_labels_has_maps_of_its_patch_logits(tiny_config):
    vision = tiny_config["vision_config"] | {
        "family": "resnet-patch",
        "image_size": 96,
        "patch_disorders": 1,
        "patch_dim": 32,
    }
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config | {"vision_config": vision}))
    model.set_disorders(["Bright"], torch.randn(1, 32))
    tower = PatchTower(model.config.vision_config, model.config.hidden_size, network=BrightOrNot(16))
    model.radfm.slice_encoder.tower = tower
    model.radfm.slice_encoder.projection = torch.nn.Linear(33, model.config.hidden_size, bias=False)
    with torch.no_grad():
        tower.projection.weight.copy_(torch.eye(32))
        tower.embeds.copy_(F.normalize(torch.eye(2).repeat_interleave(16, 1)[:1]))
        model.radfm.patch_projection.weight.copy_(model.head.disorder_embeds.T)
    processor = processor_for(model.config)
    processor.image_processor = RadFMImageProcessor(size=96, image_mean=None, intensity_percentiles=(0, 100))
    case = case_with_a_square()
    (explanation,) = explain(model.eval(), processor, case, ["Bright"])
    index, row, column = explanation.peak(1)
    assert index == 4
    assert SQUARE[0].start <= row < SQUARE[0].stop
    assert SQUARE[1].start <= column < SQUARE[1].stop
    seen = explanation.scan_map(1)
    assert seen[4][SQUARE].mean() > 0.6 > 0.1 > seen[4, :, :40].max()
    with torch.no_grad():
        assert explanation.logit == pytest.approx(model(**processor(cases=[case])).logits.item(), abs=1e-4)
    brighter = explain(model, processor, Case(scans=case.scans[:1]), ["Bright"])[0].logit
    assert explanation.logit > brighter + 0.1  # the square speaks for it


def noise_case(slices: int = 5) -> Case:
    rng = np.random.default_rng(0)
    shapes = [(slices, 40, 60), (1, 64, 32)]
    return Case(scans=[Scan(rng.integers(0, 255, shape, dtype=np.uint8), "MRI") for shape in shapes])


def test_a_position_of_the_tower_is_mapped_to_its_position_in_the_scan():
    pixels = np.zeros((1, 48, 96), np.uint8)
    pixels[0][SQUARE] = 255
    images = RadFMImageProcessor(size=64, image_mean=None, intensity_percentiles=(0, 100))
    square = images.preprocess(pixels, "MRI", SPACING_MM)["pixel_values"][:, 0]
    back = in_the_scan(square.numpy(), images, (48, 96), SPACING_MM)
    assert back.shape == (1, 48, 96)
    assert ((back[0] > 0.5) == (pixels[0] > 0)).mean() > 0.98


def test_what_was_cropped_is_dark_in_a_map_over_the_scan():
    images = RadFMImageProcessor(size=40, shortest_edge=48, image_mean=None, rescale_bytes=True)
    square = images.preprocess(np.full((1, 48, 96), 255, np.uint8))["pixel_values"][:, 0]
    expected = np.zeros((1, 48, 96), np.float32)
    expected[:, 4:44, 28:68] = 1
    np.testing.assert_allclose(in_the_scan(square.numpy(), images, (48, 96), None), expected, atol=1e-6)


def test_only_the_region_that_the_logit_comes_from_is_bright_in_the_map(linear_model):
    explanation = explain(*linear_model, case_with_a_square(), ["bright"])[0]
    dark, bright = saliency(*linear_model, case_with_a_square(), "bright")
    assert dark.shape == (2, 48, 96)
    assert bright.dtype == np.float32
    for slice_, row, column in (explanation.peak(1), np.unravel_index(bright.argmax(), bright.shape)):
        assert slice_ == 4
        assert SQUARE[0].start <= row < SQUARE[0].stop
        assert SQUARE[1].start <= column < SQUARE[1].stop
    assert 0.8 < bright.max() <= 1
    assert bright[4, 30:].max() == 0
    assert bright[[1, 2, 3, 5]].max() == 0


def test_what_speaks_against_a_disorder_is_dark(linear_model):
    assert all(one.max() == 0 for one in saliency(*linear_model, case_with_a_square(), "Dark"))


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIL", "ASR", "LIA", "RSP"])
def test_the_map_of_a_volume_lies_over_the_lesion_in_the_file(linear_volumes, axes, tmp_path):
    nibabel.save(ct_with_a_lesion(axes), tmp_path / "ct.nii.gz")
    case = read_case(tmp_path / "ct.nii.gz", modality="CT")
    explanation = explain(*linear_volumes, case, ["Bright"])[0]
    to_nifti(case.scans[0], explanation.scan_map(0), tmp_path / "map.nii.gz")
    seen = nibabel.load(tmp_path / "map.nii.gz")
    values = seen.get_fdata()
    indices = np.argwhere(values > 0.5 * values.max())
    bright = nibabel.affines.apply_affine(seen.affine, indices)
    np.testing.assert_allclose(bright.mean(0), LESION_MM, atol=4)  # half of a block
    assert np.abs(bright - LESION_MM).max() < 8 + 8  # half of the lesion, and a block
    assert values.max() > 0.9
    far = nibabel.affines.apply_affine(np.linalg.inv(seen.affine), -np.array(LESION_MM)).round().astype(int)
    assert values[tuple(far)] == 0
    peak = nibabel.affines.apply_affine(
        np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ case.scans[0].affine, explanation.peak(0)
    )
    np.testing.assert_allclose(peak, LESION_MM, atol=8)


@pytest.mark.parametrize("axes", ["LPS", "PIL", "ASR", "RSP"])
def test_three_planes_of_a_volume_are_shown_as_radiologists_look_at_them(linear_volumes, axes, tmp_path):
    nibabel.save(ct_with_a_lesion(axes), tmp_path / "ct.nii.gz")
    case = read_case(tmp_path / "ct.nii.gz", modality="CT")
    explanation = explain(*linear_volumes, case, ["Bright"])[0]
    shown = views(explanation, 0, explanation.peak(0))
    assert shown[0].plane.axes[0] == 0  # the plane of the slices comes first
    assert {view.plane.name for view in shown} == {"axial", "coronal", "sagittal"}
    right, front, up = (offset / 120 for offset in LESION_MM)
    expected = {"axial": (0.5 - right, 0.5 - front), "coronal": (0.5 - right, 0.5 - up)}
    expected["sagittal"] = (0.5 - front, 0.5 - up)
    for view in shown:
        assert view.plain.size == (448, 448)  # 120 mm by 120 mm
        grey = np.asarray(view.plain).astype(int)
        row, column = np.argwhere(grey > 128).mean(0) / 448
        np.testing.assert_allclose((column, row), expected[view.plane.name], atol=0.02)
        change = np.abs(np.asarray(view.overlaid).astype(int) - grey[..., None]).max(2)
        row, column = np.argwhere(change > change.max() / 2).mean(0) / 448
        np.testing.assert_allclose((column, row), expected[view.plane.name], atol=0.06)
        np.testing.assert_allclose(np.array(view.point) / 448, expected[view.plane.name], atol=0.07)
        widths = {width for _, _, width, _ in view.windows}
        np.testing.assert_allclose(list(widths), 448 * 96 / 120, atol=10)  # of 120 mm, 96 were read
        assert len(view.windows) == (1 if view.plane.name == "axial" else 3)  # one behind the other from foot to head


def test_between_the_slices_that_were_shown_a_map_is_interpolated(linear_model):
    model, processor = linear_model
    processor.image_processor.max_slices = 3  # of six: 0, 2 and 4
    explanation = explain(model, processor, case_with_a_square(), ["Bright"])[0]
    seen = explanation.scan_map(1)
    assert explanation.taken[1] == [0, 2, 4]
    np.testing.assert_allclose(seen[3], seen[4] / 2, atol=1e-6)
    np.testing.assert_array_equal(seen[5], seen[4])
    np.testing.assert_array_equal(explanation.scan_map(1, [3])[0], seen[3])
    assert explanation.key_slice(1) == explanation.peak(1)[0] == 4  # all slices count alike: the map decides


@pytest.mark.parametrize(
    "vision",
    [
        {"family": "resnet", "tower": "test_resnet"},
        {"family": "resnet", "tower": "test_convnext", "slice_depth": 2},
        {"family": "resnet-vit", "tower": "test_resnet", "num_attention_heads": 4},
        {"family": "vit", "tower": "test_vit"},
        {"family": "vit", "tower": "test_vit", "slice_depth": 3},
    ],
    ids=lambda vision: " ".join(map(str, vision.values())),
)
def test_every_family_of_towers_has_maps_and_stays_as_it_was(tiny_config, vision):
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config | {"vision_config": {"image_size": 64} | vision}))
    model.set_disorders(["Gout"], torch.randn(1, 32))
    case, processor = noise_case(), processor_for(model.config)
    model.train().radfm.text_encoder.requires_grad_(False)
    learning = [parameter.requires_grad for parameter in model.parameters()]
    gout, named = explain(model, processor, case, ["Gout", "Rib fracture"])
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert "forward_features" not in vars(model.radfm.slice_encoder.tower.network)
    maps = [gout.scan_map(scan) for scan in range(2)]
    assert [one.shape for one in maps] == [(5, 40, 60), (1, 64, 32)]
    assert max(one.max() for one in gout.coarse) == 1
    assert not np.array_equal(gout.coarse[0], named.coarse[0])
    with torch.no_grad():
        output = model.eval()(**processor(cases=[case]))
    assert gout.logit == pytest.approx(float(output.logits[0, 0]), abs=1e-3)
    assert gout.key_slice(0) == int(output.slice_attentions[:5].argmax())


def test_a_random_network_keeps_the_weights_of_text_and_head_alone(tiny):
    model, _ = tiny
    other = with_random_vision(model, seed=1)
    before, after = model.state_dict(), other.state_dict()
    for name in before:
        if name.startswith(("radfm.text_encoder.", "head.")):
            assert torch.equal(after[name], before[name]), name
    random = [name for name, p in model.named_parameters() if name.startswith("radfm.slice_encoder.") and p.ndim > 1]
    assert random
    assert not any(torch.equal(after[name], before[name]) for name in random)
    assert all(
        torch.equal(one, same)
        for one, same in zip(other.parameters(), with_random_vision(model, seed=1).parameters(), strict=True)
    )


def test_impossible_requests_are_refused(linear_model):
    with pytest.raises(ValueError, match="'Gout' is not in the vocabulary"):
        saliency(*linear_model, case_with_a_square(), "Gout")
    with pytest.raises(ValueError, match="no scan"):
        saliency(*linear_model, Case(), "Bright")


def test_an_overlay_leaves_a_slice_as_it_is_where_the_map_is_dark():
    pixels, seen = np.full((8, 12), 90, np.uint8), np.zeros((8, 12), np.float32)
    seen[2, 3] = 1
    shown = overlay(pixels, seen)
    assert shown.shape == (8, 12, 3)
    assert shown.dtype == np.uint8
    assert (shown[seen == 0] == 90).all()
    assert shown[2, 3, 0] > shown[2, 3, 2]
    np.testing.assert_array_equal(overlay(np.repeat(pixels[..., None], 3, 2), seen), shown)


def test_nifti_has_the_spacing_of_the_scan(tmp_path):
    scan = Scan(np.zeros((3, 4, 5), np.uint8), spacing_mm=SPACING_MM)
    seen = np.random.default_rng(0).random((3, 4, 5), np.float32)
    to_nifti(scan, seen, tmp_path / "map.nii.gz")
    image = nibabel.load(tmp_path / "map.nii.gz")
    assert image.header.get_zooms() == SPACING_MM[::-1]
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[4, 3, 2], seen[2, 3, 4])
    with pytest.raises(ValueError, match="not over a scan"):
        to_nifti(scan, seen[:2], tmp_path / "map.nii.gz")


def test_nifti_of_a_tilted_gantry_lies_where_the_scan_does(tmp_path):
    affine = np.array([[0, 0, 0.75, -31], [1.0, 0.5, 0, 12.5], [2.9, -0.2, 0, 108], [0, 0, 0, 1]])
    scan = Scan(np.zeros((3, 4, 5), np.uint8), spacing_mm=SPACING_MM, affine=affine)
    to_nifti(scan, np.zeros((3, 4, 5), np.float32), tmp_path / "map.nii.gz")
    image = nibabel.load(tmp_path / "map.nii.gz")
    assert (image.header["qform_code"], image.header["sform_code"]) == (0, 1)  # a qform cannot be sheared
    np.testing.assert_allclose(image.affine @ [4, 3, 2, 1], [-1, -1, 1, 1] * (affine @ [2, 3, 4, 1]), atol=1e-4)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_nifti_lies_over_the_file_that_the_scan_was_read_from(order, signs, tmp_path):
    tilted = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]]) * (0.5, 0.75, 3.0)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilted[:, order] * signs, (-31.0, 12.5, 108.0)
    stored = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "scan.nii.gz")
    (scan,) = read_case(tmp_path / "scan.nii.gz").scans
    to_nifti(scan, scan.pixels.astype(np.float32), tmp_path / "map.nii.gz")
    image = nibabel.load(tmp_path / "map.nii.gz")
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    indices = np.indices(stored.shape).reshape(3, -1).T
    there = nibabel.affines.apply_affine(np.linalg.inv(image.affine) @ affine, indices)
    np.testing.assert_allclose(there, there.round(), atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata()[tuple(there.round().astype(int).T)], stored.ravel())


def test_nifti_of_dicom_lies_where_its_slices_do(tmp_path):
    """Every slice's first pixel, by the header of its own file."""
    series = Path(get_testdata_file("DICOMDIR")).parent / "98892003"
    headers = [pydicom.dcmread(file) for file in sorted(series.rglob("*")) if file.is_file()]
    case = read_case(series)
    firsts = {tuple(np.round(np.array(one.ImagePositionPatient, float), 1)) for one in headers}
    met = set()
    for scan in case.scans:
        slices, rows, columns = scan.pixels.shape[:3]
        for i in range(slices):
            corners = [(i, r, c, 1) for r in (0, rows - 1) for c in (0, columns - 1)]
            places = {tuple(np.round(scan.affine[:3] @ corner, 1)) for corner in corners}
            assert places & firsts
            met |= places & firsts
    assert met == firsts


def test_maps_are_measured_against_masks_beside_the_centre_and_random_weights(tiny, tmp_path, monkeypatch, capsys):
    model, processor = tiny
    processor.image_processor.max_slices = 4
    random = with_random_vision(model, seed=0)
    for parameter in model.radfm.slice_encoder.parameters():
        parameter.data.zero_()  # so that no logit depends on a pixel, and all maps are dark
    for name, network in {"dark": model, "random": random}.items():
        network.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    prepare(Phantoms(6, size=32), tmp_path / "data", Settings(size=32, fractions=(0.0, 0.0, 1.0)))
    evaluation = Evaluation(tmp_path / "data")
    result = localise(tmp_path / "dark", evaluation, limit=3)
    assert result["cases"] == 3
    assert result["tries"] >= result["key_slice_tries"] > 0
    for row in result["rows"].values():
        for figure in row.values():
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert result["rows"]["model"]["point"]["value"] == result["rows"]["model"]["inside"]["value"] == 0
    same = localise(tmp_path / "random", evaluation, limit=3)["rows"]["model"]
    assert result["rows"]["random"]["inside"]["value"] == pytest.approx(same["inside"]["value"], rel=1e-2)
    of_bands = [band for band in result["bands"].values() if band["tries"]]
    assert sum(band["tries"] for band in of_bands) == result["tries"]
    total = sum(band["tries"] * band["rows"]["centre"]["inside"]["value"] for band in of_bands)
    assert total / result["tries"] == pytest.approx(result["rows"]["centre"]["inside"]["value"])
    monkeypatch.setenv("COLUMNS", "80")
    saliency_command(tmp_path / "data", tmp_path / "dark", limit=3)
    shown = capsys.readouterr().out
    assert shown.count("–") == 5 * (3 + 2 * len(of_bands))  # no interval is cut off
    assert "weights" in shown
