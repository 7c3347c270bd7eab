"""TIFF and BigTIFF, with the stacks that ImageJ and OME store in them.

Decisions:
- tifffile finds the pictures of a file and their axes. ImageJ stores a stack behind one directory, so that other
  readers see only the first picture.
- Slices are along the axis Z, or are pages without further description. Each time and each channel is a scan of its
  own. Frames of time without slices are one clip: they are the slices of one scan, with a warning.
- Pictures of another size or type than the first are left out and listed.
- A file whose OME header its own pages do not fill (a part of an image of several files) is refused, because its pages
  may be of any channel and time.
- Numbers without compression or deflated are read by tifffile, which knows all their types. All other pixels are read
  by Pillow, which knows all compressions.
- Where zero is white, values are inverted. The orientation of the file is applied.
"""

import zlib
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from radfm.cases import Scan
from radfm.readers.errors import CUT_SHORT, TOO_MANY_PIXELS, Unreadable
from radfm.readers.limits import check_size, chosen_volumes, left_out, n_bytes
from radfm.readers.pixels import tidy

_UNCOMPRESSED, _DEFLATED = 1, (8, 32946)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ALPHA = (1, 2)  # values of the tag ExtraSamples
_TRANSPOSED, _UPSIDE_DOWN, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)  # values of the tag Orientation
_CLIP = "its frames of time were read as the slices of one scan"


def read_tiff(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read a TIFF file.

    Returns: one scan per time and channel, and ("", reason) of what was left out. Raises: Unreadable for a size that
    is not plausible and for pixels that no decoder here reads, and whatever a library raises on a damaged file.
    """
    from tifffile import TiffFile

    # Other files that the header names are not opened.
    with TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False) as tiff:
        series = tiff.series[0] if tiff.series else None
        if series is None or 0 in series.shape:
            raise Unreadable("holds no pixels: export it again")
        if tiff.is_ome and (series.kind != "ome" or None in series.pages):
            raise Unreadable(
                "has an OME header that its own pages do not fill, as that of an image of several files: save each "
                "channel and time as a file of its own"
            )
        page = series.keyframe
        compressed = page.compression != _UNCOMPRESSED
        check_size(n_bytes(series.shape, series.dtype.itemsize), path.stat().st_size, compressed=compressed)
        axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
        if _is_numbers(page):
            _check_strips(path, series)
            values = _black_is_zero(series.asarray(squeeze=False), page)
            values = _upright(values.reshape(shape), axes, page)
        else:
            values, axes = _by_pillow(path, series, axes, shape)
        is_colour = page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
        volumes, warnings = _volumes(_without_alpha(values, axes, page), axes, is_colour)
        scans = [Scan(tidy(volumes[i]), warnings=list(warnings)) for i in chosen_volumes(len(volumes))]
        return scans, [*_missing(tiff, series), *left_out(len(volumes))]


def _is_numbers(page) -> bool:
    """Whether tifffile reads the pixels by itself: grey or RGB, in whole bytes, uncompressed or deflated."""
    plain = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and page.bitspersample % 8 == 0
    predicted_floats = page.predictor == 3
    return plain and page.compression in (_UNCOMPRESSED, *_DEFLATED) and not predicted_floats


def _check_strips(path: Path, series) -> None:
    """Raises: Unreadable where the strips (or tiles) of a page hold fewer pixels than the page, because tifffile fills
    the rest with zeros; and where a strip inflates to more than its pixels, because tifffile inflates it at once."""
    page, file_size = series.keyframe, path.stat().st_size
    deflated, most = page.compression in _DEFLATED, prod(page.chunks) * page.dtype.itemsize
    with open(path, "rb") as file:
        for frame in series.pages:
            stored = 0
            for offset, size in zip(frame.dataoffsets, frame.databytecounts, strict=True):
                if deflated:
                    file.seek(offset)
                    inflater = zlib.decompressobj()
                    stored += len(inflater.decompress(file.read(min(size, file_size)), most))
                    if inflater.unconsumed_tail:
                        raise Unreadable(f"inflates to more pixels than its header says: it {CUT_SHORT}")
                else:
                    stored += max(0, min(size, file_size - offset))
            if stored < page.nbytes:
                raise Unreadable(f"holds fewer pixels than its header says, so it {CUT_SHORT}")


def _by_pillow(path: Path, series, axes: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """The pixels of a series, upright, and their axes. `axes` and `shape` are those of the header."""
    page, indices = series.keyframe, {frame.index for frame in series.pages}
    swapped = page.parent.byteorder == ">" and page.bitspersample > 16  # Pillow takes their bytes in the wrong order
    try:
        if swapped:
            raise Image.UnidentifiedImageError
        with Image.open(path) as image:
            pages = [_values(frame, page) for i, frame in enumerate(ImageSequence.Iterator(image)) if i in indices]
    except Image.DecompressionBombError:
        raise Unreadable(TOO_MANY_PIXELS) from None
    except (Image.UnidentifiedImageError, SyntaxError):
        raise Unreadable(
            "is damaged, or has a compression and a type of numbers that no decoder here reads: save it uncompressed"
        ) from None
    values = np.stack(pages)
    outer = [i for i, axis in enumerate(axes) if axis not in "YXS"]
    if prod(shape[i] for i in outer) == len(values):
        axes, shape = "".join(axes[i] for i in outer), tuple(shape[i] for i in outer)
    else:
        axes, shape = "I", (len(values),)
    return values.reshape(shape + values.shape[1:]), axes + "YXS"[: values.ndim - 1]


def _values(image: Image.Image, page) -> np.ndarray:
    """(H, W) or (H, W, 3)."""
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="))
    if image.mode in ("L", "I") and page.dtype.kind in "iu" and page.dtype.itemsize == values.itemsize:
        values = values.view(page.dtype.newbyteorder("="))  # Pillow has no other signs
    return values if image.mode in ("L", "RGB") else _black_is_zero(values, page)  # Pillow has inverted 8 bits


def _black_is_zero(values: np.ndarray, page) -> np.ndarray:
    """The values, inverted where zero is white."""
    if page.photometric != _WHITE_IS_ZERO:
        return values
    if values.dtype.kind == "f":
        return values.max() + values.min() - values
    return (values.dtype.type(2**page.bitspersample - 1) - values) if page.bitspersample in (10, 12, 14) else ~values


def _upright(values: np.ndarray, axes: str, page) -> np.ndarray:
    """The values with the orientation of the file applied, as that of a photograph."""
    tag = page.tags.get("Orientation")
    y, x = axes.index("Y"), axes.index("X")
    if tag is None:
        return values
    values = np.swapaxes(values, y, x) if tag.value in _TRANSPOSED else values
    values = np.flip(values, y) if tag.value in _UPSIDE_DOWN else values
    return np.flip(values, x) if tag.value in _MIRRORED else values


def _without_alpha(values: np.ndarray, axes: str, page) -> np.ndarray:
    """The values without the samples that are transparency."""
    alphas = sum(extra in _ALPHA for extra in page.extrasamples)
    if (
        not 0 < alphas < page.samplesperpixel
        or "S" not in axes
        or values.shape[axes.index("S")] != page.samplesperpixel
    ):
        return values
    return np.take(values, range(page.samplesperpixel - alphas), axes.index("S"))


def _volumes(values: np.ndarray, axes: str, is_colour: bool) -> tuple[list[np.ndarray], list[str]]:
    """The volumes, each (slices, H, W) or (slices, H, W, 3), and warnings.

    Args:
        values: an axis for each letter of `axes`, as tifffile calls them: T time, C channel, Z slice, S sample of a
            pixel, I and Q pages.
    """
    sample = axes.index("S") if "S" in axes and is_colour and values.shape[axes.index("S")] >= 3 else None
    flat = [axes.index("Y"), axes.index("X"), *([] if sample is None else [sample])]
    pages = [i for i in range(values.ndim) if i not in flat]
    several = [i for i in pages if values.shape[i] > 1]
    stacked = next((i for letter in "ZIQT" for i in reversed(several) if axes[i] == letter), None)
    split = [i for i in pages if i != stacked]
    values = values.transpose([*split, *([] if stacked is None else [stacked]), *flat])
    shape = values.shape[len(split) :] if stacked is not None else (1, *values.shape[len(split) :])
    volumes = list(values.reshape(-1, *shape))
    warnings = [_CLIP] if stacked is not None and axes[stacked] == "T" else []
    return [volume[..., :3] if sample is not None else volume for volume in volumes], warnings


def _missing(tiff, series) -> list[tuple[str, str]]:
    """("", reason) of the pictures of an ImageJ stack that are not there, and of those of another size or type."""
    missing = []
    read = prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS")
    images = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    if series.kind != "imagej" and isinstance(images, int) and images > read:
        missing.append(f"{images - read:,} of the {images:,} pictures of its stack are missing: it {CUT_SHORT}")
    others = sum(len(other.pages) for other in tiff.series[1:])
    if others:
        left_out = f"{others:,} of its {others + len(series.pages):,} pages have another size or type and were left out"
        missing.append(f"{left_out}: save those apart")
    return [("", reason) for reason in missing]
