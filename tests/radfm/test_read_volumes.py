"""NIfTI, Analyze, MGH, NRRD, MetaImage: the same volume is the same scan, however it is stored."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from test_read_dicom import AXIAL, CORONAL, SAGITTAL, series

from radfm import read_case

NIBABEL = Path(nibabel.__file__).parent
SPACING = (0.75, 0.5, 4.0)  # L, P, S


def volume(dtype=np.int16):
    """(x, y, z), from right to left, front to back, feet to head."""
    return np.arange(6 * 8 * 5, dtype=dtype).reshape(6, 8, 5)


def nifti(path, values, axes_lps, **options):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, :3] = np.diag([-1, -1, 1]) @ axes_lps
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    for name, value in options.items():
        getattr(image.header, name)(*value)
    nibabel.save(image, path)
    return path


def as_stored(order, signs, spacing=SPACING):
    """The volume with its axes in another order and direction, and the (3, 3) steps along them in L, P, S."""
    axes = np.diag(spacing)[:, order] * signs
    return volume().transpose(order)[tuple(slice(None, None, sign) for sign in signs)], axes


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def test_all_48_orientations_of_a_volume_give_the_same_scan(tmp_path):
    assert len(ORIENTATIONS) == 48
    for order, signs in ORIENTATIONS:
        (scan,) = read_case(nifti(tmp_path / "v.nii.gz", *as_stored(order, signs))).scans
        assert np.array_equal(scan.pixels, volume().transpose(2, 1, 0)), (order, signs)
        assert (scan.plane, scan.spacing_mm) == ("axial", (4.0, 0.5, 0.75)), (order, signs)
        assert scan.pixels.dtype == np.int16


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii"])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_written_by_simpleitk_give_the_same_scan(tmp_path, suffix, compressed):
    image = sitk.GetImageFromArray(volume().transpose(2, 1, 0)[:, ::-1])  # stored from back to front
    image.SetSpacing(SPACING)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, tmp_path / f"v{suffix}", useCompression=compressed)
    case = read_case(tmp_path)
    assert case.skipped == []
    (scan,) = case.scans
    assert np.array_equal(scan.pixels, volume().transpose(2, 1, 0))
    assert (scan.plane, scan.spacing_mm) == ("axial", (4.0, 0.5, 0.75))


@pytest.mark.parametrize(("plane", "orientation"), [("axial", AXIAL), ("coronal", CORONAL), ("sagittal", SAGITTAL)])
def test_dicom_and_nifti_of_the_same_volume_give_the_same_scan(tmp_path, plane, orientation):
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    spacing = np.array([0.75, 0.5, 0.6])
    spacing[across] = 3.0
    values, axes = as_stored((0, 1, 2), (1, 1, 1), spacing)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    pictures = np.moveaxis(values, across, 0).transpose(0, 2, 1)  # (slices, rows, columns)
    if plane != "axial":
        pictures = pictures[:, ::-1]  # from head to feet
    step = np.zeros(3)
    step[across] = 3.0
    pixel_mm = [float(abs(column) @ spacing), float(abs(row) @ spacing)]
    series(tmp_path / "dicom", pictures, orientation, step, PixelSpacing=pixel_mm)
    (from_dicom,) = read_case(tmp_path / "dicom").scans
    (from_nifti,) = read_case(nifti(tmp_path / "v.nii", values, axes)).scans
    assert from_dicom.plane == from_nifti.plane == plane
    assert from_dicom.spacing_mm == pytest.approx(from_nifti.spacing_mm, abs=1e-4)
    assert np.array_equal(from_dicom.pixels, from_nifti.pixels)


def test_an_isotropic_volume_is_axial_unless_its_header_states_the_slice_axis(tmp_path):
    values, axes = as_stored((0, 1, 2), (1, 1, 1), (1, 1, 1))
    (scan,) = read_case(nifti(tmp_path / "v.nii", values, axes)).scans
    assert (scan.plane, scan.pixels.shape) == ("axial", (5, 8, 6))
    (scan,) = read_case(nifti(tmp_path / "v.nii", values, axes, set_dim_info=(1, 2, 0))).scans
    assert (scan.plane, scan.pixels.shape) == ("sagittal", (6, 5, 8))


def test_a_tilted_volume_keeps_its_plane_until_37_degrees(tmp_path):
    for degrees, plane in [(20, "axial"), (44, "oblique")]:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        values, axes = as_stored((0, 1, 2), (1, 1, 1))
        (scan,) = read_case(nifti(tmp_path / "v.nii", values, [[1, 0, 0], [0, c, -s], [0, s, c]] @ axes)).scans
        assert scan.plane == plane
        assert np.array_equal(scan.pixels, volume().transpose(2, 1, 0))


def test_each_volume_of_a_series_is_a_scan_and_of_many_sixteen_are(tmp_path):
    for volumes, read in [(1, 1), (3, 3), (40, 16)]:
        values = np.stack([volume() + i for i in range(volumes)], axis=-1)
        case = read_case(nifti(tmp_path / "v.nii.gz", values, np.diag(SPACING)))
        assert len(case.scans) == read
        assert len(case.skipped) == (volumes > 16)
        assert [int(scan.pixels.min()) for scan in case.scans][-1] == volumes - 1


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, -1024, np.int16), (2, 0, np.int16), (0.5, 0, np.float32)]
)
def test_scaled_values_are_integers_where_they_can_be(tmp_path, slope, intercept, dtype):
    path = nifti(tmp_path / "v.nii.gz", volume(), np.diag(SPACING), set_slope_inter=(slope, intercept))
    (scan,) = read_case(path, modality="CT").scans
    assert (scan.modality, scan.pixels.dtype) == ("CT", dtype)
    assert np.array_equal(scan.pixels, volume().transpose(2, 1, 0) * slope + intercept)


def test_nan_and_infinities_become_the_smallest_finite_value(tmp_path):
    values = volume(np.float32) + 5
    values[0, 0, 0], values[1, 1, 1] = np.nan, -np.inf
    (scan,) = read_case(nifti(tmp_path / "v.nii", values, np.diag(SPACING))).scans
    assert np.isfinite(scan.pixels).all()
    assert scan.pixels[0, 0, 0] == scan.pixels[1, 1, 1] == 6
    case = read_case(nifti(tmp_path / "n.nii", np.full((4, 4, 4), np.nan, np.float32), np.diag(SPACING)))
    assert case.scans == []
    assert "NaN" in case.skipped[0][1]


def test_spacing_in_metres_becomes_millimetres(tmp_path):
    path = nifti(tmp_path / "v.nii", volume(), np.diag(SPACING) / 1000, set_xyzt_units=("meter",))
    assert read_case(path).scans[0].spacing_mm == (4.0, 0.5, 0.75)


def test_analyze_and_mgh_are_read_and_a_pair_of_files_once(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(volume(), np.diag([1, 2, 3, 1])), tmp_path / "pair.img")
    nibabel.save(nibabel.MGHImage(volume(np.float32), np.diag([1, 2, 3, 1])), tmp_path / "v.mgz")
    case = read_case(tmp_path)
    assert case.skipped == []
    assert [scan.pixels.shape for scan in case.scans] == [(5, 8, 6)] * 2
    assert [scan.source for scan in case.scans] == ["pair.hdr", "v.mgz"]
    (tmp_path / "pair.img").unlink()
    assert read_case(tmp_path / "pair.hdr").skipped[0][1].startswith("comes without the .img file")


def test_colour_volumes_stay_in_colour(tmp_path):
    colour = np.zeros((6, 8, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = volume()
    (scan,) = read_case(nifti(tmp_path / "v.nii", colour, np.diag(SPACING))).scans
    assert scan.pixels.shape == (5, 8, 6, 3)
    assert np.array_equal(scan.pixels[..., 1], volume().transpose(2, 1, 0))


def test_a_header_that_points_outside_its_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(b"\0" * 64)
    header = "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 8 8\nencoding: raw\ndata file: ../secret.raw\n\n"
    (tmp_path / "in" / "v.nhdr").write_text(header)
    case = read_case(tmp_path / "in")
    assert case.scans == []
    assert "another folder" in case.skipped[0][1]


def test_every_file_that_nibabel_ships_is_read_or_skipped_with_a_reason():
    folders = [NIBABEL / "tests" / "data", NIBABEL / "nicom" / "tests" / "data", NIBABEL / "gifti" / "tests" / "data"]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    assert len(files) > 80
    read = []
    for path in files:
        case = read_case(path)
        assert case.scans or case.skipped, path
        assert all("\n" not in reason and len(reason) < 200 for _, reason in case.skipped)
        read += [path.name] * bool(case.scans)
    assert {"anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii", "test.mgz"} < set(read)
