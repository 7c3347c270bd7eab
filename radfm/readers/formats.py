"""Recognises the format of a file and calls the reader for it."""

import os
import re
import stat
from importlib import import_module
from pathlib import Path

from radfm.cases import Scan
from radfm.readers.errors import Unreadable, quiet_libraries

KINDS = {  # format -> how messages call a file of it
    "DICOM": "a DICOM image",
    "picture": "a picture",
    "NPY": "a NumPy array",
    "NPZ": "an archive of NumPy arrays",
    "nibabel": "a NIfTI, Analyze or MGH volume",
    "SimpleITK": "an NRRD or MetaImage volume",
}
_READERS = {  # format -> (module, function); a module is imported when its first file is read
    "picture": ("pictures", "read_picture"),
    "NPY": ("arrays", "read_npy"),
    "NPZ": ("arrays", "read_npz"),
    "nibabel": ("volumes", "read_nibabel"),
    "SimpleITK": ("volumes", "read_simpleitk"),
}
_BY_SUFFIX = {
    "nibabel": ".nii .nii.gz .hdr .hdr.gz .img .img.gz .mgh .mgz",
    "SimpleITK": ".nrrd .nhdr .mha .mhd",
    "NPZ": ".npz",
    "NPY": ".npy",
    "picture": ".png .jpg .jpeg .jpe .jfif .tif .tiff .bmp .gif .webp .jp2 .j2k",
    "DICOM": ".dcm .dicom .dic .ima .acr",
}
_SUFFIXES = {suffix: format for format, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}
_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8", b"BM", b"\0\0\0\x0cjP  ")
_GZIPPED = b"\x1f\x8b"
_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", b"BZh")


def format_of(path: Path) -> str:
    """The format of a file, a key of `KINDS`, by its first bytes and then its name.

    Raises: Unreadable for a format that radfm does not read, OSError for a file that cannot be opened.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is not a file but a device or pipe: copy its contents to a file")
    if status.st_size == 0:
        raise Unreadable("is empty, zero bytes: copy it again from where it came from")
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return "DICOM"
    name = path.name.lower()
    by_suffix = next((_SUFFIXES[end] for end in _SUFFIXES if name.endswith(end)), None)
    if by_suffix in ("nibabel", "SimpleITK", "NPZ"):
        return by_suffix
    if start.startswith(b"\x93NUMPY"):
        return "NPY"
    if start.startswith(_PICTURE_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return "picture"
    if _starts_like_dicom(start, status.st_size):
        return "DICOM"
    if start.startswith(_GZIPPED):
        raise Unreadable("is gzipped: unpack it (gunzip) and read what comes out")
    if start.startswith(_ARCHIVES):
        raise Unreadable("is a packed archive: unpack it and read the folder")
    if by_suffix is None:
        raise Unreadable("is not an image format radfm reads: convert it to DICOM or NIfTI if it holds images")
    raise Unreadable(f"is damaged, or is not {KINDS[by_suffix]} although its name says so: export it again")


def _starts_like_dicom(start: bytes, size: int) -> bool:
    """Whether the bytes are a DICOM data set without preamble: its first element is of group 2 or 8."""
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[i : i + 2], order) for i in (0, 2))
        if group in (0x0002, 0x0008) and element <= 0x1200:
            explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6])
            return bool(explicit) or int.from_bytes(start[4:8], order) < size
    return False


def read_scans(path: Path, format: str) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read a file that holds whole scans: any format but DICOM.

    Returns: the scans, whose `source` names the part of the file ("" for the whole file), and (part, reason) of each
    part that was left out. Raises: Unreadable, and whatever a library raises on a damaged file.
    """
    module, name = _READERS[format]
    reader = getattr(import_module(f"radfm.readers.{module}"), name)
    with quiet_libraries():
        return reader(path)


def pixel_files(path: Path) -> set[Path]:
    """The files that hold the pixels of a header file (.hdr, .mhd, .nhdr); they are read together with it."""
    if not path.name.lower().endswith((".hdr", ".hdr.gz", ".mhd", ".nhdr")) or not os.path.isfile(path):
        return set()
    from radfm.readers.volumes import companions

    return set(companions(path))
