"""Files are recognised by what is in them, whatever their name says."""

import gzip
import io

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from test_read_dicom import dicom

from radfm import read_case

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
GREY = np.arange(48, dtype=np.uint8).reshape(8, 6)


def nifti() -> bytes:
    return nibabel.Nifti1Image(VOLUME, np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "PNG")
    return file.getvalue()


def written_by_simpleitk(folder, suffix) -> bytes:
    image = sitk.GetImageFromArray(VOLUME.transpose(2, 1, 0))
    image.SetSpacing((2, 2, 5))
    sitk.WriteImage(image, folder / f"itk{suffix}")
    content = (folder / f"itk{suffix}").read_bytes()
    (folder / f"itk{suffix}").unlink()
    return content


def array(save) -> bytes:
    file = io.BytesIO()
    save(file, GREY)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.dcm", "a", "a.hdr", "a.nrrd"])
@pytest.mark.parametrize("behind", [b"", b"some bytes behind the end", bytes(4096)])
@pytest.mark.parametrize("packed", [False, True])
def test_a_nifti_file_is_read_whatever_its_name_packed_or_not_and_with_bytes_behind_its_end(
    tmp_path, name, behind, packed
):
    (tmp_path / name).write_bytes((gzip.compress(nifti()) if packed else nifti()) + behind)
    case = read_case(tmp_path)
    assert case.skipped == []
    (scan,) = case.scans
    assert (scan.source, scan.spacing_mm) == (name, (5.0, 2.0, 2.0))
    np.testing.assert_array_equal(scan.pixels, VOLUME.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_a_file_of_several_gzip_parts_is_read_as_one(tmp_path):
    whole = nifti()
    (tmp_path / "a.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in (whole[:400], b"", whole[400:])))
    assert read_case(tmp_path).scans[0].pixels.shape == (6, 5, 4)


def test_a_time_series_that_is_packed_is_read_volume_by_volume(tmp_path):
    values = np.stack([VOLUME + 1000 * i for i in range(20)], axis=-1)
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    (tmp_path / "a.nii").write_bytes(gzip.compress(content) + b"behind")
    case = read_case(tmp_path)
    assert [int(scan.pixels.min()) for scan in case.scans] == [1000 * round(i * 19 / 15) for i in range(16)]


@pytest.mark.parametrize("name", ["a.dcm", "a.png", "a.nii.gz", "a.hdr", "a"])
@pytest.mark.parametrize("kind", [".nrrd", ".mha", ".mgz", ".npy", ".npz", ".png"])
def test_other_formats_are_read_whatever_their_name(tmp_path, name, kind):
    if kind in (".nrrd", ".mha"):
        content, shape = written_by_simpleitk(tmp_path, kind), (6, 5, 4)
    elif kind == ".mgz":
        content, shape = (
            nibabel.MGHImage(VOLUME.astype(np.float32), np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes(),
            (6, 5, 4),
        )
        content = gzip.compress(content)
    else:
        content = {".npy": lambda: array(np.save), ".npz": lambda: array(np.savez), ".png": png}[kind]()
        shape = (1, 8, 6)
    (tmp_path / name).write_bytes(content)
    case = read_case(tmp_path)
    assert case.skipped == []
    assert case.scans[0].pixels.shape == shape


@pytest.mark.parametrize("name", ["a.png", "a.nii", "a.nii.gz", "a.mha", "a"])
def test_a_dicom_file_is_read_whatever_its_name_with_and_without_preamble(tmp_path, name):
    dicom(tmp_path / "d", GREY.astype(np.int16))
    whole = (tmp_path / "d").read_bytes()
    (tmp_path / "d").unlink()
    for content in (whole, whole[132:]):
        (tmp_path / name).write_bytes(content)
        case = read_case(tmp_path)
        assert case.skipped == []
        assert case.scans[0].pixels.shape == (1, 8, 6)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (png, "is a picture, packed with gzip: unpack it"),
        (lambda: dicom_bytes(), "is a DICOM image, packed with gzip: unpack it"),
        (lambda: b"NRRD0004\n" + bytes(40), "is an NRRD volume, packed with gzip: unpack it"),
        (lambda: b"%PDF-1.7 ...", "is a PDF document, packed with gzip: unpack it"),
    ],
)
def test_what_is_packed_with_gzip_is_named(tmp_path, content, found):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content()))
    assert read_case(tmp_path).skipped[0][1].startswith(found)


def dicom_bytes() -> bytes:
    return bytes(128) + b"DICM" + b"\2\0\0\0UL\4\0\0\0\0\0"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<!DOCTYPE html><html>Log in</html>", "is a web page, not a NIfTI, Analyze or MGH volume as its name says"),
        (b"%PDF-1.4\n", "is a PDF document, not a NIfTI"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (b"a,b\n1,2\n", "is text, not a NIfTI"),
        (b"PK\x03\x04" + bytes(100), "is a packed archive"),
        (bytes(400), "is nothing but zeros at its beginning, not a NIfTI"),
        (bytes(range(256)) * 4, "is damaged, or is not a NIfTI"),
        (gzip.compress(bytes(range(256)) * 40, mtime=0)[:30], "is packed with gzip, and is cut short"),
    ],
)
def test_a_file_named_nii_that_is_something_else_is_called_what_it_is(tmp_path, content, found):
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "b.nii.gz").write_bytes(content)
    reasons = dict(read_case(tmp_path).skipped)
    assert set(reasons) == {"a.nii", "b.nii.gz"}
    assert all(reason.startswith(found) for reason in reasons.values()), reasons


def test_the_pixels_of_an_analyze_pair_are_found_whatever_the_case_and_packing_of_their_name(tmp_path):
    image = nibabel.AnalyzeImage(VOLUME, np.diag([2.0, 2.0, 5.0, 1.0]))
    nibabel.save(image, tmp_path / "a.img")
    header, pixels = ((tmp_path / name).read_bytes() for name in ("a.hdr", "a.img"))
    for i, (suffixes, packed) in enumerate(
        [((".hdr", ".img"), False), ((".HDR", ".IMG"), False), ((".hdr", ".img"), True), ((".hdr.gz", ".img.gz"), True)]
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / f"a{suffixes[0]}").write_bytes(gzip.compress(header) if packed else header)
        (folder / f"a{suffixes[1]}").write_bytes(gzip.compress(pixels) if packed else pixels)
        case = read_case(folder)
        assert case.skipped == []
        assert [(scan.source, scan.pixels.shape) for scan in case.scans] == [(f"a{suffixes[0]}", (6, 5, 4))]
        assert read_case(folder / f"a{suffixes[1]}").scans[0].pixels.shape == (6, 5, 4)


def test_pixels_without_their_header_are_listed(tmp_path):
    (tmp_path / "a.img").write_bytes(VOLUME.tobytes())
    case = read_case(tmp_path)
    assert case.scans == []
    assert [name for name, _ in case.skipped] == ["a.img"]


def test_components_of_a_vector_are_volumes_and_displacements_are_set_aside(tmp_path):
    values = np.stack([np.stack([VOLUME + 100 * (t + 2 * v) for t in range(2)], axis=-1) for v in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    assert [int(scan.pixels.min()) for scan in read_case(tmp_path).scans] == [0, 100, 200, 300, 400, 500]
    displacements = nibabel.Nifti1Image(values[:, :, :, :1].astype(np.float32), np.eye(4))
    displacements.header.set_intent("displacement vector")
    nibabel.save(displacements, tmp_path / "a.nii")
    assert read_case(tmp_path).skipped == [("a.nii", "holds displacements, not an image: set aside")]


def nrrd(path, sizes, kinds=None, directions=None, dtype=np.uint8, pixels="", behind=b""):
    """An NRRD file of which each voxel has its own value, counted in the order of the file."""
    values = np.arange(np.prod(sizes)).astype(dtype)
    kind = {1: "uint8", 2: "int16"}[values.itemsize]
    lines = ["NRRD0005", f"type: {kind}", f"dimension: {len(sizes)}", f"sizes: {' '.join(map(str, sizes))}"]
    if directions:
        lines += ["space: left-posterior-superior", f"space directions: {directions}", "space origin: (1,2,3)"]
    lines += [f"kinds: {kinds}"] if kinds else []
    lines += ["# a comment", "encoding: raw", "endian: little"]
    lines += [f"data file: {pixels}"] if pixels else []
    header = "\n".join(lines).encode() + b"\n\n"
    path.write_bytes(header if pixels else header + values.tobytes() + behind)
    if pixels:
        (path.parent / pixels).parent.mkdir(exist_ok=True)
        (path.parent / pixels).write_bytes(values.tobytes())
    return values.reshape(sizes, order="F")


SPACE = ["(1,0,0)", "(0,2,0)", "(0,0,3)"]


@pytest.mark.parametrize("kind", ["list", "time", "vector", "3-vector", "???", None])
@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("pixels", ["", "a.raw", "below/a.raw"])
def test_the_series_of_an_nrrd_file_is_read_wherever_its_axis_is(tmp_path, kind, axis, pixels):
    sizes, kinds, directions = [4, 5, 6], ["domain"] * 3, list(SPACE)
    sizes.insert(axis, 3)
    kinds.insert(axis, kind)
    directions.insert(axis, "none")
    values = nrrd(tmp_path / "a.nrrd", sizes, kind and " ".join(kinds), " ".join(directions), np.int16, pixels)
    (tmp_path / "a.nrrd").rename(tmp_path / "a.nhdr")
    case = read_case(tmp_path, modality="MRI")
    assert case.skipped == []
    assert len(case.scans) == 3
    for scan, volume in zip(case.scans, np.moveaxis(values, axis, 0), strict=True):
        np.testing.assert_array_equal(scan.pixels, volume.transpose(2, 1, 0))
        assert scan.spacing_mm == (3.0, 2.0, 1.0)
        np.testing.assert_allclose(scan.affine[:3, 3], [1, 2, 3])
        assert scan.warnings == []


@pytest.mark.parametrize(
    ("kind", "shapes", "unsure"),
    [
        ("RGB-color", [(6, 5, 4, 3)], False),
        ("3-color", [(6, 5, 4, 3)], False),
        ("list", [(6, 5, 4)] * 3, False),
        ("vector", [(6, 5, 4)] * 3, False),
        ("time", [(6, 5, 4)] * 3, False),
    ],
)
def test_three_bytes_of_a_voxel_are_a_colour_where_nrrd_says_so_and_else_three_volumes(tmp_path, kind, shapes, unsure):
    nrrd(tmp_path / "a.nrrd", (3, 4, 5, 6), f"{kind} domain domain domain", " ".join(["none", *SPACE]))
    case = read_case(tmp_path, modality="MRI")
    assert [scan.pixels.shape for scan in case.scans] == shapes
    assert [bool(scan.warnings) for scan in case.scans] == [unsure] * len(shapes)


def test_flat_pictures_of_an_nrrd_list_are_scans_of_their_own(tmp_path):
    nrrd(tmp_path / "a.nrrd", (3, 8, 6), "list domain domain")
    assert [scan.pixels.shape for scan in read_case(tmp_path).scans] == [(1, 6, 8)] * 3
    nrrd(tmp_path / "a.nrrd", (3, 8, 6), "RGB-color domain domain")
    assert [scan.pixels.shape for scan in read_case(tmp_path).scans] == [(1, 6, 8, 3)]


def test_three_channels_of_metaimage_are_a_colour_only_in_bytes_and_said_to_be_unsure(tmp_path):
    for dtype, shapes, unsure in [(np.uint8, [(6, 5, 4, 3)], True), (np.int16, [(6, 5, 4)] * 3, False)]:
        values = np.arange(360).astype(dtype).reshape(6, 5, 4, 3)
        sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), tmp_path / "a.mha")
        case = read_case(tmp_path, modality="MRI")
        assert [scan.pixels.shape for scan in case.scans] == shapes
        assert [bool(scan.warnings) for scan in case.scans] == [unsure] * len(shapes)


def test_a_metaimage_of_four_axes_is_a_series_along_the_last(tmp_path):
    values = np.arange(360).astype(np.int16).reshape(3, 6, 5, 4)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), tmp_path / "a.mha")
    for scan, volume in zip(read_case(tmp_path).scans, values, strict=True):
        np.testing.assert_array_equal(scan.pixels, volume)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_pixels_in_a_folder_below_are_read_and_those_outside_of_what_is_read_are_not(tmp_path, suffix):
    (tmp_path / "case" / "headers").mkdir(parents=True)
    (tmp_path / "case" / "pixels").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), tmp_path / "case" / "headers" / f"v{suffix}", useCompression=False)
    header = tmp_path / "case" / "headers" / f"v{suffix}"
    (tmp_path / "case" / "headers" / "v.raw").rename(tmp_path / "case" / "pixels" / "v.raw")
    header.write_bytes(header.read_bytes().replace(b" v.raw", b" ../pixels/v.raw"))
    case = read_case(tmp_path / "case")
    assert case.skipped == []
    np.testing.assert_array_equal(case.scans[0].pixels, VOLUME)
    (reason,) = [reason for _, reason in read_case(header).skipped]
    assert "outside of what is read ('v.raw')" in reason
    (tmp_path / "case" / "pixels" / "v.raw").unlink()
    (reason,) = [reason for _, reason in read_case(tmp_path / "case").skipped]
    assert "comes without the file that holds its pixels ('v.raw')" in reason


def test_pixels_in_a_list_of_files_are_read(tmp_path):
    slices = VOLUME.transpose(2, 1, 0)
    for i, pixels in enumerate(slices):
        (tmp_path / f"s{i}.raw").write_bytes(pixels.tobytes())
    listed = "\n".join(f"s{i}.raw" for i in range(6))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementSpacing = 2 2 5\n"
    (tmp_path / "a.mhd").write_text(f"{header}ElementDataFile = LIST\n{listed}\n")
    header = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 5 6\nspacings: 2 2 5\nencoding: raw\nendian: little\n"
    (tmp_path / "b.nhdr").write_text(f"{header}data file: LIST\n{listed}\n")
    for header in ("a.mhd", "b.nhdr"):
        case = read_case([tmp_path / header])
        assert case.skipped == []
        (scan,) = case.scans
        np.testing.assert_array_equal(scan.pixels, slices)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_damaged_or_missing_compressed_pixels_are_never_read_as_others(tmp_path, suffix):
    values = np.random.default_rng(0).integers(0, 1000, (6, 20, 20)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), tmp_path / f"a{suffix}", useCompression=True)
    (pixels,) = [file for file in tmp_path.iterdir() if suffix in (".mha", ".nrrd") or file.suffix != suffix]
    whole = pixels.read_bytes()
    flipped = bytearray(whole)
    flipped[-200] ^= 255
    for content in (bytes(flipped), whole[:-10], whole[:-1000]):
        pixels.write_bytes(content)
        case = read_case(tmp_path)
        assert (case.scans, len(case.skipped)) == ([], 1)
    pixels.write_bytes(whole + b"bytes behind the end")
    np.testing.assert_array_equal(read_case(tmp_path).scans[0].pixels, values)


@pytest.mark.parametrize(("sizes", "axis"), [((3, 7, 5, 6), 0), ((4, 5, 6, 3), 3), ((7, 8, 9, 30), 3)])
def test_a_series_along_an_axis_without_a_kind_is_read_and_said_to_be_unsure(tmp_path, sizes, axis):
    values = nrrd(tmp_path / "a.nrrd", sizes, dtype=np.int16)
    case = read_case(tmp_path)
    expected = np.moveaxis(values, axis, 0).transpose(0, 3, 2, 1)
    assert len(case.scans) == min(sizes[axis], 16)
    np.testing.assert_array_equal(case.scans[-1].pixels, expected[-1])
    assert all("may be another one" in scan.warnings[0] for scan in case.scans)


def test_colours_along_the_fifth_axis_of_nifti_are_colours(tmp_path):
    colours = np.stack([VOLUME.astype(np.uint8) + i for i in range(3)], axis=-1)
    image = nibabel.Nifti1Image(colours[:, :, :, None], np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header.set_intent(2003)
    nibabel.save(image, tmp_path / "a.nii")
    (scan,) = read_case(tmp_path).scans
    np.testing.assert_array_equal(scan.pixels, colours.transpose(2, 1, 0, 3))


def test_an_archive_packed_with_gzip_and_an_heic_picture_are_named(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(257) + b"ustar" + bytes(250)))
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    reasons = dict(read_case(tmp_path).skipped)
    assert reasons["a.tar.gz"].startswith("is an archive, packed with gzip: unpack it")
    assert reasons["b.jpg"] == "is an HEIC or AVIF picture, which radfm does not read: save it as PNG"
