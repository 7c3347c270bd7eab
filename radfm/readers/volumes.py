"""NIfTI, Analyze and MGH (nibabel): volumes in patient coordinates.

Decisions:
- The kind of a file, and whether it is packed with gzip, is read from its bytes. nibabel goes by the name.
- `radfm.readers.orientation` puts all volumes into slices of the acquired plane.
- Each volume along a fourth axis (time, echo, diffusion direction) and a fifth one (the components of a vector) is one
  scan. Of more than 16, 16 evenly spaced ones are read.
- A volume without orientation (an Analyze file, a NIfTI file whose qform and sform codes are zero) is oriented as
  nibabel does: right to left, back to front, feet to head. Most programs that omit the orientation store it so.
- Values are scaled by the header's slope and intercept. Those of CT are then Hounsfield units.
"""

import re
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from radfm.cases import Scan
from radfm.readers.errors import Unreadable
from radfm.readers.gzipped import open_unpacked
from radfm.readers.limits import check_gzip, chosen_volumes, left_out, n_bytes
from radfm.readers.orientation import acquired_axis, lay_out
from radfm.readers.pixels import rescaled, tidy
from radfm.readers.signatures import START

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_NOT_IMAGES = {  # NIfTI's intent_code -> what the file holds
    1006: "displacements",
    1008: "points",
    1009: "triangles",
    **dict.fromkeys(range(3000, 3100), "a surface or a matrix"),  # CIFTI
}


_COLOURS = (2003, 2004)  # values of intent_code: RGB and RGBA along the fifth axis


def read_nibabel(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read NIfTI-1, NIfTI-2, Analyze or MGH.

    Returns: one scan per volume, and ("", reason) where volumes were left out. Raises: Unreadable for a file without
    pixels, one that is no image, and one with more than five axes.
    """
    with ExitStack() as opened:
        image, data_path = _open(path, opened)
        stored, header = image.dataobj, image.header
        shape = tuple(stored.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if 0 in shape:
            raise Unreadable("holds no pixels, one of its dimensions is zero: export it again")
        if not 2 <= len(shape) <= 5:
            raise Unreadable(f"has {len(shape)} axes: save it as volumes (three axes) or a series of them (four)")
        check_gzip(data_path, n_bytes(shape, header.get_data_dtype().itemsize))
        unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
        affine = _RAS_TO_LPS @ image.affine[:3] * _MM.get(unit, 1.0)
        axes, origin = affine[:, :3], affine[:, 3]
        hint = header.get_dim_info()[2] if hasattr(header, "get_dim_info") else None
        if len(shape) < 4:
            values = stored.get_unscaled() if hasattr(stored, "get_unscaled") else np.asanyarray(stored)
            values = values.reshape(shape + (1,) * (3 - len(shape)))
            return _warned([scan_of(_scaled(values, stored), axes, origin, hint)], header), []
        if len(shape) == 5 and shape[3] == 1 and _intent(image) in _COLOURS:
            return _warned([scan_of(np.asanyarray(stored[:, :, :, 0, :3]), axes, origin, hint)], header), []
        count = prod(shape[3:])
        unit_axes = (0,) * (len(stored.shape) - len(shape))
        chosen = (np.unravel_index(i, shape[3:], order="F") for i in chosen_volumes(count))  # in the order of the file
        volumes = (np.asanyarray(stored[(..., *map(int, index), *unit_axes)]) for index in chosen)
        return _warned([scan_of(values, axes, origin, hint) for values in volumes], header), left_out(count)


def _warned(scans: list[Scan], header) -> list[Scan]:
    """The scans, with a warning where the header does not state how their slices lie in the patient."""
    codes = [int(header[key]) for key in ("sform_code", "qform_code", "goodRASFlag") if key in header]
    for scan in scans:
        if not any(codes) and len(scan.pixels) > 1:
            scan.warnings.append(_NO_ORIENTATION)
    return scans


_NO_ORIENTATION = (
    "the file does not state how its volume lies in the patient, so left and right may be swapped: convert it anew"
)


def _open(path: Path, opened: ExitStack):
    """The image of nibabel, and the path of the file with its pixels. `opened` closes the files."""
    from nibabel.fileholders import FileHolder

    path = header_of(path) or path
    stream = opened.enter_context(open_unpacked(path))
    kind, is_pair = _class_of(stream.read(START))
    stream.seek(0)
    data_path = path
    files = {"image": FileHolder(fileobj=stream)}
    if is_pair:
        partner = _other(path, "img")
        if partner is None:
            raise Unreadable("comes without the .img file that holds its pixels: put both side by side")
        data_path = partner
        matrix = _other(path, "mat") or path.with_suffix(".mat")  # of SPM; nibabel does without
        pixels = opened.enter_context(open_unpacked(data_path))
        files = {"header": FileHolder(fileobj=stream), "image": FileHolder(fileobj=pixels)}
        files["mat"] = FileHolder(filename=str(matrix))
    image = kind.from_file_map(files)
    if _intent(image) in _NOT_IMAGES:
        raise Unreadable(f"holds {_NOT_IMAGES[_intent(image)]}, not an image: set aside")
    return image, data_path


def _intent(image) -> int:
    """NIfTI's intent_code; 0 of other formats."""
    return int(image.header["intent_code"]) if "intent_code" in image.header else 0


def _class_of(start: bytes) -> tuple[Any, bool]:
    """nibabel's class for a file that begins so, and whether its pixels are in another file."""
    import nibabel

    if start[344:348] in (b"n+1\0", b"ni1\0"):
        return (nibabel.Nifti1Image, False) if start[345:346] == b"+" else (nibabel.Nifti1Pair, True)
    if start[4:8] in (b"n+2\0", b"ni2\0"):
        return (nibabel.Nifti2Image, False) if start[5:6] == b"+" else (nibabel.Nifti2Pair, True)
    if start[:4] == b"\0\0\0\1":
        return nibabel.MGHImage, False
    return nibabel.Spm2AnalyzeImage, True


def scan_of(values: np.ndarray, axes: np.ndarray, origin: np.ndarray, hint: int | None = None) -> Scan:
    """The scan of a volume in patient coordinates.

    Args:
        values: three spatial axes in any order; a fourth one of colours may follow.
        axes, origin: (3, 3), (3,); see `radfm.readers.orientation.lay_out`.
        hint: the axis of slices that the header states.
    """
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


def pixel_files(path: Path) -> list[Path]:
    """The file with the pixels of an Analyze or NIfTI header (.hdr); none where there is no such file."""
    file = _other(path, "img") if re.search(r"(?i)\.hdr(\.gz)?$", path.name) else None
    return [] if file is None else [file]


def header_of(path: Path) -> Path | None:
    """The header (.hdr) beside the pixels of an Analyze or NIfTI volume (.img); None where there is none."""
    return _other(path, "hdr") if re.search(r"(?i)\.img(\.gz)?$", path.name) else None


def _other(path: Path, kind: str) -> Path | None:
    """The file beside a header or its pixels with another suffix, hdr, img or mat; None where there is none."""
    stem = re.sub(r"(?i)\.(hdr|img)(\.gz)?$", "", path.name)
    endings = (f".{kind}", f".{kind}.gz", f".{kind.upper()}", f".{kind.upper()}.GZ", f".{kind.capitalize()}")
    return next((file for ending in endings if (file := path.with_name(stem + ending)).is_file()), None)
