"""NIfTI, Analyze and MGH (nibabel), NRRD and MetaImage (SimpleITK): volumes in patient coordinates.

Decisions:
- `radfm.readers.orientation` puts all volumes into slices of the acquired plane.
- Each volume along a fourth axis (time, echo, diffusion direction) is one scan. Of more than 16, 16 evenly spaced ones
  are read.
- A volume without orientation (an Analyze file, a NIfTI file whose qform and sform codes are zero) is oriented as
  nibabel does: right to left, back to front, feet to head. Most programs that omit the orientation store it so.
- Values are scaled by the header's slope and intercept. Those of CT are then Hounsfield units.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from radfm.cases import Scan
from radfm.readers.errors import Unreadable
from radfm.readers.limits import check_gzip, check_size, chosen_volumes, left_out, n_bytes
from radfm.readers.orientation import acquired_axis, lay_out
from radfm.readers.pixels import rescaled, tidy

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def read_nibabel(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read NIfTI-1, NIfTI-2, Analyze or MGH.

    Returns: one scan per volume, and ("", reason) where volumes were left out. Raises: Unreadable for a file without
    pixels, one that is no image, and one with more than four axes.
    """
    import nibabel
    from nibabel.spatialimages import SpatialImage

    if path.name.lower().endswith((".hdr", ".hdr.gz")) and not any(file.is_file() for file in companions(path)):
        raise Unreadable("comes without the .img file that holds its pixels: put both side by side")
    image = nibabel.load(path, keep_file_open=True)  # else each volume of a .nii.gz is decompressed anew
    if not isinstance(image, SpatialImage):
        raise Unreadable("holds a surface or a matrix, not an image: set aside")
    stored, header = image.dataobj, image.header
    shape = tuple(stored.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if 0 in shape:
        raise Unreadable("holds no pixels, one of its dimensions is zero: export it again")
    if not 2 <= len(shape) <= 4:
        raise Unreadable(f"has {len(shape)} axes: save it as volumes (three axes) or a series of them (four)")
    data_path = Path(image.file_map["image"].filename)
    check_gzip(data_path, n_bytes(shape, header.get_data_dtype().itemsize))
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    affine = _RAS_TO_LPS @ image.affine[:3] * _MM.get(unit, 1.0)
    axes, origin = affine[:, :3], affine[:, 3]
    hint = header.get_dim_info()[2] if hasattr(header, "get_dim_info") else None
    if len(shape) < 4:
        values = stored.get_unscaled() if hasattr(stored, "get_unscaled") else np.asanyarray(stored)
        values = values.reshape(shape + (1,) * (3 - len(shape)))
        return [_scan(_scaled(values, stored), axes, origin, hint)], []
    volumes = chosen_volumes(shape[3])
    unit_axes = (0,) * (len(stored.shape) - 4)
    chosen = (np.asanyarray(stored[(..., i, *unit_axes)]) for i in volumes)
    return [_scan(values, axes, origin, hint) for values in chosen], left_out(shape[3])


def read_simpleitk(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read NRRD or MetaImage.

    Returns: one scan per volume, and ("", reason) where volumes were left out. Raises: Unreadable where the file with
    the pixels is missing or is not supported, RuntimeError (SimpleITK) for a damaged file.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    data_path, compressed = _data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    itemsize = _itemsize(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    check_size(n_bytes(size, itemsize * channels), data_path.stat().st_size, compressed=compressed)
    image = reader.Execute()
    values = sitk.GetArrayFromImage(image)  # ([t,] [z,] y, x[, channels])
    dimensions = image.GetDimension()
    if dimensions == 2:
        values = values[None]
        rows_mm, columns_mm = image.GetSpacing()[::-1]
        return [Scan(tidy(_colour_or_first(values, channels)), spacing_mm=(0.0, rows_mm, columns_mm))], []
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    axes = (direction * image.GetSpacing()[:3])[:, ::-1]  # columns: the steps along z, y, x
    origin = np.array(image.GetOrigin()[:3])
    if dimensions == 3 and (channels == 1 or (channels in (3, 4) and itemsize == 1)):
        return [_scan(_colour_or_first(values, channels), axes, origin)], []
    series = list(values) if dimensions == 4 else list(np.moveaxis(values, -1, 0))
    return [_scan(series[i], axes, origin) for i in chosen_volumes(len(series))], left_out(len(series))


def _scan(values: np.ndarray, axes: np.ndarray, origin: np.ndarray, hint: int | None = None) -> Scan:
    if values.dtype.names:  # NIfTI's RGB24 and RGBA32
        values = np.stack([values[channel] for channel in values.dtype.names[:3]], axis=-1)
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or (spacing == 0).any():
        return Scan(tidy(np.moveaxis(values, 2, 0)))  # no usable geometry: as stored
    laid_out = lay_out(values, axes, acquired_axis(values.shape, axes, hint), origin)
    return Scan(tidy(laid_out.pixels), plane=laid_out.plane, spacing_mm=laid_out.spacing_mm, affine=laid_out.affine)


def _scaled(values: np.ndarray, stored) -> np.ndarray:
    slope, intercept = getattr(stored, "slope", 1), getattr(stored, "inter", 0)
    return values if values.dtype.kind not in "bui" else rescaled(values, slope or 1, intercept)


def _colour_or_first(values: np.ndarray, channels: int) -> np.ndarray:
    return values if channels == 1 else values[..., :3] if channels >= 3 else values[..., 0]


def _itemsize(pixel_type: str) -> int:
    """Bytes per value of a SimpleITK pixel type: "vector of 32-bit float" -> 4."""
    bits = re.search(r"(\d+)-bit", pixel_type)
    return int(bits[1]) // 8 * (2 if "complex" in pixel_type else 1) if bits else 8


def _data_file(path: Path) -> tuple[Path, bool]:
    """The file that holds the pixels of an NRRD or MetaImage file, and whether they are compressed (or text)."""
    with open(path, "rb") as file:
        header = file.read(2**16).decode("latin-1")
    compressed = bool(
        re.search(r"(?mi)^(encoding:\s*(?!raw)\w|CompressedData\s*=\s*True|BinaryData\s*=\s*False)", header)
    )
    name = re.search(r"(?mi)^(?:data ?file:|ElementDataFile\s*=)\s*(.*?)\s*$", header)
    if name is None or name[1] in ("LOCAL", ""):
        return path, compressed
    if name[1].startswith("LIST") or "%" in name[1]:
        raise Unreadable("spreads its pixels over several files: save it as one .nrrd or .mha file")
    if Path(name[1]).name != name[1]:
        raise Unreadable("points to pixels in another folder: put both files side by side, or save it as one file")
    if not (path.parent / name[1]).is_file():
        raise Unreadable("comes without the file that holds its pixels: put both side by side")
    return path.parent / name[1], compressed


def companions(path: Path) -> Iterator[Path]:
    """The files that hold the pixels of a header file."""
    if path.suffix.lower() in (".mhd", ".nhdr"):
        try:
            yield _data_file(path)[0]
        except (OSError, Unreadable):
            return
    elif path.name.lower().endswith((".hdr", ".hdr.gz")):
        stem = re.sub(r"(?i)\.hdr(\.gz)?$", "", path.name)
        yield from (path.with_name(stem + ending) for ending in (".img", ".img.gz", ".IMG"))
