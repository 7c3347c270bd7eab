"""Pictures and arrays: what becomes of depths, channels, pages and shapes."""

import numpy as np
import pytest
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
    assert case.skipped == [("q.tif", "1 of its 6 pages have another size and were left out")]


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
    np.savez(
        tmp_path / "a.npz", ct=GREY, pet=GREY.astype(np.float32), odd=np.zeros((2, 2, 2, 2, 2)), text=np.array("x")
    )
    case = read_case(tmp_path / "a.npz")
    assert [scan.source for scan in case.scans] == ["a.npz/ct", "a.npz/pet"]
    assert {name for name, _ in case.skipped} == {"a.npz/odd", "a.npz/text"}


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"run": "this"}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=np.array([{"run": "this"}], dtype=object))
    case = read_case(tmp_path)
    assert case.scans == []
    assert all("pickled" in reason for _, reason in case.skipped)
    assert len(case.skipped) == 2
