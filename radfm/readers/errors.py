"""The reasons why a file was not read, each with what the user can do about it.

Decisions:
- A decoder may raise any exception on a damaged file, and its message may quote the header: a name, a birth date, a
  path. So a reason never contains the message of a library. Only the messages of `Unreadable`, which are written in
  radfm, are shown.
- Logs and warnings of pydicom, nibabel and Pillow quote headers too, and are silenced while a file is read.
"""

import errno
import gzip
import logging
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

CUT_SHORT = "is cut short or damaged: copy it again from where it came from"
NO_PICTURE = (
    "has a DICOM header but no picture, or is cut short before it: copy or export it again if it should have one"
)
TOO_MANY_PIXELS = "has a header that asks for more pixels than a picture can have: crop or scale it down"
_LIBRARIES = ("pydicom", "nibabel", "PIL", "tifffile", "pylibjpeg", "openjpeg", "libjpeg", "rle")


class Unreadable(ValueError):
    """A file that cannot be read, or that is not an image of the patient. The message is the reason; it quotes nothing
    from the file."""


def reason_for(error: BaseException, kind: str) -> str:
    """The line for `Case.skipped` that explains an exception. kind: the expected content, such as "a DICOM image"."""
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, PermissionError):
        return "may not be opened: ask for permission to read it"
    if isinstance(error, FileNotFoundError):
        return "is not there, or is a link to a file that is gone: copy it again"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "needs more memory than this machine has free: read it alone or on a larger machine"
    damaged = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, struct.error)
    message = str(error).lower()
    if "unable to decode" in message or "no pixel data decoders" in message:
        return "is damaged, or is compressed in a way that no decoder here reads: export it again, uncompressed"
    if isinstance(error, damaged) or any(hint in message for hint in _CUT_SHORT_HINTS):
        return CUT_SHORT
    return f"is damaged, or is not {kind}: open it in a viewer and export it again"


_CUT_SHORT_HINTS = (
    "truncated", "less than expected", "not enough data", "unexpected end", "end of file", "mmap length", "corrupt",
    "expected data element", "crc", "insufficient", "did we get all",
)  # fmt: skip


_SILENT = logging.CRITICAL + 1


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """A context in which no decoding library logs or warns.

    Enter it after importing the library, because pydicom sets its logging level on import. Setting a level empties the
    caches of all loggers, which takes longer than reading a small file. So enter the context once around many files;
    entering it again inside is free.
    """
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger, level in zip(loggers, levels, strict=True):
                if level != _SILENT:
                    logger.setLevel(_SILENT)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                if level != _SILENT:
                    logger.setLevel(level)
