"""NPY and NPZ arrays. They have no header, so the axes are inferred from the shape.

The rules, in this order:

| shape | read as |
|---|---|
| (H, W) | one slice |
| (H, W, 3) | one slice in colour, or grey where the three channels are equal (the files of RP3D-DiagDS) |
| (H, W, 1) | one slice |
| (H, W, slices) | slices last, if H = W and differs from the last axis, or the last axis is at most a quarter of each |
| (slices, H, W) | slices first: all other arrays of three axes |
| (slices, H, W, 3) | slices in colour, or grey where the three channels are equal |
| (slices, H, W, 1) | slices |
| (1, a, b, c), (3, a, b, c) | one channel, or three equal ones (as RadDiag stores scans): the rules for (a, b, c) |

Every array of an NPZ is one scan. Pickled objects are refused, because unpickling can run code.
"""

import zipfile
from pathlib import Path

import numpy as np

from radfm.cases import Scan
from radfm.readers.errors import CUT_SHORT, Unreadable, reason_for
from radfm.readers.limits import check_size, n_bytes
from radfm.readers.pixels import tidy


def read_npy(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read an NPY file.

    Returns: a list of one scan, and an empty list, as nothing is left out. Raises: Unreadable for a damaged file, an
    array of objects and a shape that no rule covers.
    """
    with open(path, "rb") as file:
        shape, dtype = _header(file)
        check_size(n_bytes(shape, dtype.itemsize), path.stat().st_size - file.tell(), compressed=False)
    return [Scan(slices_of(np.load(path, allow_pickle=False)))], []


def read_npz(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read an NPZ file.

    Returns: one scan per array, and (part of the file, reason) of each array that cannot be read. Raises: Unreadable
    where the file holds no array.
    """
    scans, left_out = [], []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            part = "/" + member.filename.removesuffix(".npy")
            try:
                scans.append(Scan(slices_of(_member(archive, member)), source=part))
            except Exception as error:  # one damaged array does not prevent reading the others
                left_out.append((part, reason_for(error, "a NumPy array")))
    if not scans and not left_out:
        raise Unreadable("holds no array: save it again")
    return scans, left_out


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, dtype = _header(file)
    claimed = n_bytes(shape, dtype.itemsize)
    check_size(claimed, member.file_size, compressed=False)
    check_size(claimed, member.compress_size, compressed=True)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def slices_of(array: np.ndarray) -> np.ndarray:
    """An array -> the pixels of a scan, by the rules above. Raises: Unreadable where no rule fits the shape."""
    shape = array.shape
    if array.ndim == 4 and shape[-1] == 1:
        return tidy(array[..., 0])
    if array.ndim == 4 and shape[-1] == 3:
        return tidy(array)
    if array.ndim == 4 and (shape[0] == 1 or (shape[0] == 3 and _equal(array[0], array[1], array[2]))):
        return slices_of(array[0])
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] == 3):
        return tidy(array[None])
    if array.ndim == 3:
        first, second, last = shape
        slices_last = (first == second != last) or 4 * last <= min(first, second)
        return tidy(np.moveaxis(array, -1, 0) if slices_last else array)
    supported = "(H, W), (slices, H, W) or (slices, H, W, 3)"
    raise Unreadable(f"has the shape {shape}, which no rule of radfm covers: save it as {supported}")


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except ValueError:
        raise Unreadable(f"has a damaged header: it {CUT_SHORT}") from None
    if dtype.hasobject:
        raise Unreadable("holds pickled Python objects, which can run code: save it as numbers")
    return shape, dtype


def _equal(first: np.ndarray, *others: np.ndarray) -> bool:
    return all(np.array_equal(first, other, equal_nan=first.dtype.kind == "f") for other in others)
