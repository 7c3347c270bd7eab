"""What the first bytes of a file say it is.

Decisions:
- Signatures of one or two bytes (BMP, Analyze, MGH) are not specific, so the sizes that follow them are checked too.
- Files that are not images are named in words, so that the reason says what was really found.
"""

import re
import struct

START = 1024  # bytes of a file that are looked at

_PICTURES = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF and BigTIFF
)
_NIFTI_1, _NIFTI_2 = (b"n+1\0", b"ni1\0"), (b"n+2\0", b"ni2\0")
_METAIMAGE = re.compile(rb"\s*[A-Za-z_]{2,40}\s*=")
_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as MINC 2 and MATLAB write them"),
    (b"CDF\x01", "a NetCDF file, as MINC 1 writes them"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself (git lfs pull fetches that)"),
    (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"ID3", "a sound"),
)
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")
_HTML = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)


def image_format(start: bytes, size: int) -> str | None:
    """The format, a key of `radfm.readers.formats.KINDS`; None where the bytes are none of them.

    Args:
        start: the first `START` bytes.
        size: bytes of the whole file.
    """
    if start[128:132] == b"DICM":
        return "DICOM"
    if start.startswith(_PICTURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP") or _is_bmp(start):
        return "picture"
    if start.startswith(b"\x93NUMPY"):
        return "NPY"
    if start.startswith(b"PK\x03\x04") and start[30 : 30 + int.from_bytes(start[26:28], "little")].endswith(b".npy"):
        return "NPZ"
    if start[344:348] in _NIFTI_1 or start[4:8] in _NIFTI_2 or _is_analyze(start) or _is_mgh(start, size):
        return "nibabel"
    if start.startswith(b"NRRD000"):
        return "NRRD"
    if _METAIMAGE.match(start) and re.search(rb"(?m)^\s*NDims\s*=", start):
        return "MetaImage"
    return "DICOM" if _is_bare_dicom(start, size) else None


def is_archive(start: bytes) -> bool:
    """Whether the bytes begin an archive, such as a zip file."""
    return start.startswith(_ARCHIVES) or start[257:262] == b"ustar"


def other_content(start: bytes) -> str | None:
    """What a file is that is no image, with its article: "a PDF document". None where the bytes do not show it."""
    for signature, name in _OTHERS:
        if start.startswith(signature):
            return name
    if start[4:8] == b"ftyp":
        is_picture = start[8:12] in (b"heic", b"heix", b"heim", b"mif1", b"msf1", b"avif")
        return "an HEIC or AVIF picture" if is_picture else "a video"
    if start[:4] == b"RIFF" or start.startswith((b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\x1aE\xdf\xa3")):
        return "a video or a sound"
    if _HTML.match(start):
        return "a web page"
    if start.lstrip().startswith(b"<?xml"):
        return "an XML document"
    if not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", start):
        return "text"
    return None if start.strip(b"\0") else "nothing but zeros at its beginning"


def _is_bmp(start: bytes) -> bool:
    return start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)


def _is_analyze(start: bytes) -> bool:
    """A header of 348 bytes whose first dimension, the number of axes, is plausible."""
    for order in "<", ">":
        if len(start) >= 348 and struct.unpack_from(f"{order}i", start)[0] == 348:
            return 1 <= struct.unpack_from(f"{order}h", start, 40)[0] <= 7
    return False


def _is_mgh(start: bytes, size: int) -> bool:
    """Version 1, four dimensions and a type, whose pixels fit into the file (which may be packed: then 1,032 times)."""
    if len(start) < 284 or start[:4] != b"\0\0\0\1":
        return False
    *dimensions, kind = struct.unpack_from(">5i", start, 4)
    return min(dimensions) > 0 and kind in (0, 1, 3, 4) and max(dimensions) <= 1032 * size


def _is_bare_dicom(start: bytes, size: int) -> bool:
    """A DICOM data set without preamble: its first element is of group 2 or 8."""
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[i : i + 2], order) for i in (0, 2))
        if group in (0x0002, 0x0008) and element <= 0x1200:
            explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6])
            return bool(explicit) or int.from_bytes(start[4:8], order) < size
    return False
