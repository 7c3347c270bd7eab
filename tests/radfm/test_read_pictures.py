"""Pictures and arrays: what becomes of depths, channels, pages and shapes."""

import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from radfm import read_case

GREY = np.arange(8 * 6, dtype=np.uint8).reshape(8, 6)
COLOUR = np.stack([GREY, GREY + 1, GREY], axis=-1)


def only(path, **options):
    case = read_case(path, **options)
    assert case.skipped == []
    (scan,) = case.scans
    return scan


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".gif"])
def test_grey_in_three_channels_is_grey_and_colour_stays(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(np.stack([GREY] * 3, axis=-1)).save(tmp_path / f"g{suffix}", **options)
    scan = only(tmp_path / f"g{suffix}", modality="x ray")
    assert np.array_equal(scan.pixels, GREY[None])
    assert (scan.modality, scan.plane, scan.spacing_mm, scan.days) == ("X-ray", None, None, None)
    Image.fromarray(COLOUR).save(tmp_path / f"c{suffix}", **options)
    assert only(tmp_path / f"c{suffix}").pixels.shape == (1, 8, 6, 3)


def test_transparency_is_dropped_and_a_palette_applied(tmp_path):
    alpha = np.concatenate([COLOUR, np.full((8, 6, 1), 7, np.uint8)], axis=-1)
    Image.fromarray(alpha).save(tmp_path / "a.png")
    assert np.array_equal(only(tmp_path / "a.png").pixels[0], COLOUR)
    Image.fromarray(GREY).convert("LA").save(tmp_path / "la.png")
    assert np.array_equal(only(tmp_path / "la.png").pixels[0], GREY)
    palette = Image.fromarray(GREY, "P")
    palette.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
    palette.save(tmp_path / "p.png")
    assert np.array_equal(only(tmp_path / "p.png").pixels[0, ..., 0], GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    deep = GREY.astype(np.uint16) * 1000
    Image.fromarray(deep).save(tmp_path / f"d{suffix}")
    scan = only(tmp_path / f"d{suffix}")
    assert scan.pixels.dtype == np.uint16
    assert np.array_equal(scan.pixels[0], deep)


def test_black_and_white_becomes_0_and_255(tmp_path):
    Image.fromarray(GREY > 20).save(tmp_path / "b.png")
    assert np.array_equal(only(tmp_path / "b.png").pixels[0], (GREY > 20) * 255)


def test_a_tiff_that_stores_white_as_zero_is_inverted(tmp_path):
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "w.tif", tiffinfo={262: 0})
    assert np.array_equal(only(tmp_path / "w.tif").pixels[0], 65535 - GREY.astype(int))


def test_pages_are_slices_and_pages_of_another_size_are_listed(tmp_path):
    pages = [Image.fromarray(GREY + i) for i in range(5)]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(only(tmp_path / "p.tif").pixels, [GREY + i for i in range(5)])
    pages[0].save(tmp_path / "q.tif", save_all=True, append_images=[*pages[1:], pages[0].resize((3, 4))])
    case = read_case(tmp_path / "q.tif")
    assert len(case.scans[0].pixels) == 5
    assert case.skipped == [("q.tif", "1 of its 6 pages have another size or type and were left out: save those apart")]


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "e.png", exif=exif)
    assert np.array_equal(only(tmp_path / "e.png").pixels[0], np.rot90(GREY, -1))


def test_each_picture_of_a_folder_is_a_scan_in_natural_order(tmp_path):
    for i in range(12):
        Image.fromarray(GREY + i).save(tmp_path / f"im{i}.png")
    scans = read_case(tmp_path).scans
    assert [scan.source for scan in scans] == [f"im{i}.png" for i in range(12)]


def test_a_picture_that_is_there_twice_is_read_once_whatever_its_format(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "b.bmp")
    Image.fromarray(GREY[::-1]).save(tmp_path / "c.png")
    case = read_case(tmp_path, modality="X-ray")
    assert [scan.source for scan in case.scans] == ["a.png", "c.png"]
    assert case.skipped == [("b.bmp", "is a copy of a.png: read once")]


@pytest.mark.parametrize(
    ("shape", "slices"),
    [
        ((8, 6), (1, 8, 6)),
        ((8, 6, 3), (1, 8, 6, 3)),
        ((8, 6, 1), (1, 8, 6)),
        ((5, 8, 6), (5, 8, 6)),
        ((8, 8, 5), (5, 8, 8)),
        ((8, 8, 12), (12, 8, 8)),
        ((8, 8, 8), (8, 8, 8)),
        ((40, 32, 5), (5, 40, 32)),
        ((5, 8, 6, 3), (5, 8, 6, 3)),
        ((5, 8, 6, 1), (5, 8, 6)),
        ((1, 16, 16, 4), (4, 16, 16)),
    ],
)
def test_the_shape_of_an_array_determines_its_axes(tmp_path, shape, slices):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random(shape))
    scan = only(tmp_path / "a.npy")
    assert scan.pixels.shape == slices
    assert scan.pixels.dtype == (np.uint8 if len(slices) == 4 else np.float32)


def test_three_equal_channels_are_one_wherever_they_are(tmp_path):
    volume = np.random.default_rng(0).random((16, 16, 4), np.float32)
    np.save(tmp_path / "first.npy", np.stack([volume] * 3))
    np.save(tmp_path / "last.npy", np.stack([volume[..., 0]] * 3, axis=-1))
    first, last = read_case(tmp_path).scans
    assert np.array_equal(first.pixels, np.moveaxis(volume, -1, 0))
    assert np.array_equal(last.pixels[0], volume[..., 0])


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(bool, np.uint8), (np.int8, np.int16), (np.int64, np.uint8), (np.float16, np.float32), (">u2", np.uint16)],
)
def test_numbers_are_kept_in_the_smallest_exact_type(tmp_path, dtype, kept):
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    if dtype is np.int8:
        values -= 1
    np.save(tmp_path / "a.npy", values)
    scan = only(tmp_path / "a.npy")
    assert scan.pixels.dtype == kept
    assert np.array_equal(scan.pixels[0], values)


def test_each_array_of_an_archive_is_a_scan_and_a_damaged_one_is_listed(tmp_path):
    np.savez(tmp_path / "a.npz", ct=GREY, pet=GREY / 2, odd=np.zeros((2, 2, 2, 2, 2)), text=np.array("x"), copy=GREY)
    case = read_case(tmp_path / "a.npz")
    assert [scan.source for scan in case.scans] == ["a.npz/ct", "a.npz/pet"]
    reasons = dict(case.skipped)
    assert reasons.pop("a.npz/copy") == "is a copy of a.npz/ct: read once"
    assert set(reasons) == {"a.npz/odd", "a.npz/text"}


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"run": "this"}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=np.array([{"run": "this"}], dtype=object))
    case = read_case(tmp_path)
    assert case.scans == []
    assert all("pickled" in reason for _, reason in case.skipped)
    assert len(case.skipped) == 2


STACK = np.arange(2 * 3 * 4 * 8 * 6, dtype=np.uint16).reshape(2, 3, 4, 8, 6)  # times, slices, channels, rows, columns


def behind_one_directory(path, pixels, description):
    """A TIFF as ImageJ writes it: one directory, and all pictures one after another."""
    tifffile.imwrite(path, pixels[0], description=description, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        (offset,) = tiff.pages[0].dataoffsets
    with open(path, "r+b") as file:
        end = file.seek(0, 2)
        file.seek(offset)
        assert end == offset + pixels[0].nbytes  # the pixels are the last in the file
        file.write(pixels.tobytes())


def test_all_pictures_of_an_imagej_stack_are_read_though_it_has_one_directory(tmp_path):
    pixels = STACK[0, :, 0]
    behind_one_directory(tmp_path / "a.tif", pixels, "ImageJ=1.54f\nimages=3\nslices=3\nloop=false\n")
    assert np.array_equal(only(tmp_path / "a.tif").pixels, pixels)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole + b"bytes behind the end")
    assert np.array_equal(only(tmp_path / "a.tif").pixels, pixels)
    (tmp_path / "a.tif").write_bytes(whole[:-50])
    case = read_case(tmp_path / "a.tif")
    assert [len(scan.pixels) for scan in case.scans] == [1]
    assert case.skipped[0][1].startswith("2 of the 3 pictures of its stack are missing")


@pytest.mark.parametrize("form", ["imagej", "ome", "one directory"])
def test_each_time_and_channel_of_a_hyperstack_is_a_scan(tmp_path, form):
    if form == "one directory":
        description = "ImageJ=1.54f\nimages=24\nchannels=4\nslices=3\nframes=2\nhyperstack=true\n"
        behind_one_directory(tmp_path / "a.tif", STACK.reshape(24, 8, 6), description)
    else:
        tifffile.imwrite(tmp_path / "a.tif", STACK, metadata={"axes": "TZCYX"}, **{form: True})
    case = read_case(tmp_path / "a.tif", modality="microscopy")
    assert case.skipped == []
    volumes = [STACK[time, :, channel] for time in range(2) for channel in range(4)]
    assert [scan.pixels.tolist() for scan in case.scans] == [volume.tolist() for volume in volumes]
    assert all(scan.warnings == [] for scan in case.scans)


def test_frames_of_time_without_slices_are_a_clip_and_said_to_be_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[:, 0, 0], imagej=True, metadata={"axes": "TYX"})
    scan = only(tmp_path / "a.tif", modality="microscopy")
    assert np.array_equal(scan.pixels, STACK[:, 0, 0])
    assert scan.warnings == ["its frames of time were read as the slices of one scan"]


def test_a_part_of_an_ome_image_of_several_files_is_refused(tmp_path):
    planes = "".join(
        f'<TiffData IFD="0" FirstC="{i}"><UUID FileName="{i}.tif">urn:uuid:{i}</UUID></TiffData>' for i in range(2)
    )
    sizes = 'DimensionOrder="XYCZT" Type="uint16" SizeX="6" SizeY="8" SizeC="2" SizeZ="2" SizeT="1"'
    ome = 'OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"'
    description = (
        f'<?xml version="1.0"?><{ome}><Image ID="I:0"><Pixels ID="P:0" {sizes}>{planes}</Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "0.tif", STACK[0, 0, :2], description=description, metadata=None)
    tifffile.imwrite(tmp_path / "1.tif", STACK[0, 0, 2:], metadata=None)
    case = read_case(tmp_path / "0.tif")
    assert case.scans == []
    assert case.skipped[0][1].startswith("has an OME header that its own pages do not fill")


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_all_types_of_numbers_of_a_tiff_keep_their_values(tmp_path, dtype, order, compression, white_is_zero):
    values = np.array([[0, 1, 2], [100, 101, 120]]).astype(dtype)
    values = values * (2**31 // 60) if dtype == "u4" else values
    photometric = "miniswhite" if white_is_zero else "minisblack"
    options = {"byteorder": order, "compression": compression, "photometric": photometric}
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, **options)
    expected = values.astype(float)
    if white_is_zero:
        limits = np.iinfo(values.dtype) if values.dtype.kind in "iu" else None
        expected = (float(limits.max + limits.min) if limits else values.max() + values.min()) - expected
    np.testing.assert_allclose(only(tmp_path / "a.tif").pixels[0], expected, rtol=1e-6)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colour_in_planes_is_colour(tmp_path, planar, compression):
    stored = COLOUR if planar == "contig" else np.moveaxis(COLOUR, -1, 0).copy()
    options = {"photometric": "rgb", "planarconfig": planar, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", stored, metadata=None, **options)
    assert np.array_equal(only(tmp_path / "a.tif").pixels[0], COLOUR)


def test_pages_of_another_type_are_listed_and_channels_are_scans(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in (GREY, GREY.astype(np.uint16), GREY + 1):
            file.write(page, metadata=None)
    case = read_case(tmp_path / "a.tif")
    assert [scan.pixels.tolist() for scan in case.scans] == [[GREY.tolist(), (GREY + 1).tolist()]]
    assert case.skipped == [("a.tif", "1 of its 3 pages have another size or type and were left out: save those apart")]
    channels = np.stack([GREY + i for i in range(5)], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", channels, photometric="minisblack", planarconfig="contig", metadata=None)
    assert [scan.pixels[0, 0, 0] for scan in read_case(tmp_path / "a.tif").scans] == [0, 1, 2, 3, 4]
    tifffile.imwrite(tmp_path / "a.tif", channels[..., :2], photometric="minisblack", extrasamples=[2], metadata=None)
    assert np.array_equal(only(tmp_path / "a.tif").pixels[0], GREY)


def test_bigtiff_and_compressions_of_pillow_are_read_and_turned_upright(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, :, 0], bigtiff=True, photometric="minisblack", metadata=None)
    assert np.array_equal(only(tmp_path / "a.tif").pixels, STACK[0, :, 0])
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"):
        for orientation, expected in [(1, GREY), (3, GREY[::-1, ::-1]), (6, np.rot90(GREY, -1)), (8, np.rot90(GREY))]:
            Image.fromarray(GREY).save(tmp_path / "a.tif", compression=compression, tiffinfo={274: orientation})
            assert np.array_equal(only(tmp_path / "a.tif").pixels[0], expected), (compression, orientation)


def test_a_strip_that_inflates_to_more_than_its_pixels_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 6), np.float64), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        offset, count = page.tags["StripOffsets"].valueoffset, page.tags["StripByteCounts"].valueoffset
    whole, bomb = bytearray((tmp_path / "a.tif").read_bytes()), zlib.compress(bytes(2**24))
    whole[offset : offset + 4] = len(whole).to_bytes(4, "little")
    size = 2 if int.from_bytes(whole[count - 6 : count - 4], "little") == 3 else 4
    whole[count : count + size] = len(bomb).to_bytes(size, "little")
    (tmp_path / "a.tif").write_bytes(bytes(whole) + bomb)
    assert "inflates to more pixels" in read_case(tmp_path / "a.tif").skipped[0][1]


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_of_which_strips_are_missing_is_never_filled_up(tmp_path, compression):
    values = np.random.default_rng(0).integers(0, 999, (64, 48)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, rowsperstrip=8, compression=compression, metadata=None)
    whole = (tmp_path / "a.tif").read_bytes()
    assert np.array_equal(only(tmp_path / "a.tif").pixels[0], values)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tags = tiff.pages[0].tags
        height, rows = tags["ImageLength"].valueoffset, tags["RowsPerStrip"].valueoffset
    taller = bytearray(whole)
    taller[height : height + 2] = (512).to_bytes(2, "little")
    wider = bytearray(whole)
    wider[rows : rows + 2] = (16).to_bytes(2, "little")
    for damaged in (bytes(taller), bytes(wider), whole[:-1000]):
        (tmp_path / "a.tif").write_bytes(damaged)
        case = read_case(tmp_path / "a.tif")
        assert (case.scans, len(case.skipped)) == ([], 1)
