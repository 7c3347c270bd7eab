"""Recognises the format of a file by its content and calls the reader for it.

Decisions:
- The first bytes decide, whatever the name says (`radfm.readers.signatures`). The name is used for the pixels of an
  Analyze header (.img), which have no signature, and in the reason why a file is not read.
- A file that is packed with gzip is recognised by what is in it. Volumes of nibabel are read so. All other formats are
  named, and have to be unpacked.
"""

import os
import stat
import zlib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from radfm.cases import Scan
from radfm.readers.errors import CUT_SHORT, Unreadable, quiet_libraries
from radfm.readers.gzipped import GZIP, open_unpacked
from radfm.readers.signatures import START, image_format, is_archive, other_content

KINDS = {  # format -> how messages call a file of it
    "DICOM": "a DICOM image",
    "picture": "a picture",
    "NPY": "a NumPy array",
    "NPZ": "an archive of NumPy arrays",
    "nibabel": "a NIfTI, Analyze or MGH volume",
    "NRRD": "an NRRD volume",
    "MetaImage": "a MetaImage volume",
}
_READERS = {  # format -> (module, function); a module is imported when its first file is read
    "picture": ("pictures", "read_picture"),
    "NPY": ("arrays", "read_npy"),
    "NPZ": ("arrays", "read_npz"),
    "nibabel": ("volumes", "read_nibabel"),
    "NRRD": ("nrrd", "read_nrrd"),
    "MetaImage": ("nrrd", "read_nrrd"),
}
_BY_SUFFIX = {
    "nibabel": ".nii .nii.gz .hdr .hdr.gz .img .img.gz .mgh .mgz",
    "NRRD": ".nrrd .nhdr",
    "MetaImage": ".mha .mhd",
    "NPZ": ".npz",
    "NPY": ".npy",
    "picture": ".png .jpg .jpeg .jpe .jfif .tif .tiff .bmp .gif .webp .jp2 .j2k",
    "DICOM": ".dcm .dicom .dic .ima .acr",
}
_SUFFIXES = {suffix: format for format, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}


def format_of(path: Path) -> str:
    """The format of a file, a key of `KINDS`, by its content.

    Raises: Unreadable for a format that radfm does not read, OSError for a file that cannot be opened.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is not a file but a device or pipe: copy its contents to a file")
    if status.st_size == 0:
        raise Unreadable("is empty, zero bytes: copy it again from where it came from")
    with open(path, "rb") as file:
        start = file.read(START)
    name = path.name.lower()
    by_suffix = next((_SUFFIXES[end] for end in _SUFFIXES if name.endswith(end)), None)
    gzipped = start.startswith(GZIP)
    if gzipped:
        start = _unpacked_start(path)
    format = image_format(start, status.st_size)
    if format is None and by_suffix == "NPZ" and start.startswith(b"PK"):
        format = "NPZ"
    if format is None and by_suffix == "nibabel" and _has_header(path):
        format = "nibabel"
    if gzipped and format != "nibabel":
        content = KINDS[format] if format else "an archive" if is_archive(start) else other_content(start) or "a file"
        raise Unreadable(f"is {content}, packed with gzip: unpack it (gunzip) and read what comes out")
    if format is None:
        raise Unreadable(_why_not_read(start, by_suffix))
    return format


def _unpacked_start(path: Path) -> bytes:
    try:
        with open_unpacked(path) as file:
            return file.read(START)
    except (zlib.error, EOFError):
        raise Unreadable(f"is packed with gzip, and {CUT_SHORT}") from None


def _has_header(path: Path) -> bool:
    from radfm.readers.volumes import header_of

    return header_of(path) is not None


def _why_not_read(start: bytes, by_suffix: str | None) -> str:
    if is_archive(start):
        return "is a packed archive: unpack it and read the folder"
    content = other_content(start)
    if by_suffix is None:
        content = "" if content in (None, "text") else f"{content}, "
        return f"is {content}not an image format radfm reads: convert it to DICOM or NIfTI if it holds images"
    if content is not None and content.endswith("picture"):
        return f"is {content}, which radfm does not read: save it as PNG"
    if content is not None:
        return f"is {content}, not {KINDS[by_suffix]} as its name says: export it again"
    return f"is damaged, or is not {KINDS[by_suffix]} although its name says so: export it again"


def read_scans(path: Path, format: str, within: Iterable[Path] = ()) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read a file that holds whole scans: any format but DICOM.

    Args:
        within: folders that are read; the pixels of a header may be in a file below them.
    Returns: the scans, whose `source` names the part of the file ("" for the whole file), and (part, reason) of each
    part that was left out. Raises: Unreadable, and whatever a library raises on a damaged file.
    """
    module, name = _READERS[format]
    reader = getattr(import_module(f"radfm.readers.{module}"), name)
    with quiet_libraries():
        return reader(path, within) if module == "nrrd" else reader(path)


def pixel_files(path: Path) -> set[Path]:
    """The files that hold the pixels of a header file (.hdr, .mhd, .nhdr); they are read together with it."""
    if not path.name.lower().endswith((".hdr", ".hdr.gz", ".mhd", ".nhdr")) or not os.path.isfile(path):
        return set()
    module = "volumes" if path.name.lower().endswith((".hdr", ".hdr.gz")) else "nrrd"
    return set(import_module(f"radfm.readers.{module}").pixel_files(path))
