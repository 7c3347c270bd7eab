"""Opening DICOM files and asking their headers, such that no damage costs more than the value that is damaged."""

import io
import os
import zlib
from functools import cache
from math import isfinite
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from radfm.readers.errors import CUT_SHORT, Unreadable

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_DEFLATED_BYTES = 2**30


def open_clamped(path: Path) -> io.BufferedIOBase:
    """The file, such that a header that claims more bytes than there are gets what there is, and reserves no more."""
    with open(path, "rb") as file:
        start = file.read(1024)
    if _DEFLATED in start:
        _check_deflated(path, start)
    return _Clamped(open(path, "rb", buffering=0))


class _Clamped(io.BufferedReader):
    def __init__(self, raw: io.FileIO):
        super().__init__(raw, 2**16)
        self.end = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.end - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _check_deflated(path: Path, start: bytes) -> None:
    """pydicom inflates a deflated file at once, however large it becomes: see first how large."""
    group_length = start.find(b"\x02\x00\x00\x00UL\x04\x00")
    if group_length < 0:
        return
    begin = group_length + 12 + int.from_bytes(start[group_length + 8 : group_length + 12], "little")
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as file:
        file.seek(begin)
        while block := file.read(2**16):
            while block and not inflater.eof:
                size += len(inflater.decompress(block, 2**20))
                block = inflater.unconsumed_tail
                if size > _MOST_DEFLATED_BYTES:
                    raise Unreadable(f"inflates to more than 1 GiB, which no single picture does: it {CUT_SHORT}")


def transfer_syntax(header: Dataset) -> UID | None:
    """None where the file does not say, and it is one of the two uncompressed ones."""
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    return syntax if syntax and not syntax.is_private and syntax.is_transfer_syntax else None


def text(header: Dataset, keyword: str) -> str:
    """A value as text, stripped; "" where absent or damaged."""
    value = _value(header, keyword)
    return "" if value is None else str(value).strip()


def texts(header: Dataset, keyword: str) -> list[str]:
    value = _value(header, keyword)
    return [] if not value else [value] if isinstance(value, str) else [str(part) for part in value]


def number(header: Dataset, keyword: str) -> float | None:
    """The first of a value's numbers; None where one of them is absent, damaged or not finite."""
    values = _numbers(header, keyword)
    return values[0] if values else None


def numbers(header: Dataset, keyword: str, count: int) -> np.ndarray | None:
    """(count,) finite numbers; None where absent, damaged, or of another count."""
    values = _numbers(header, keyword)
    return np.array(values) if len(values) == count else None


def _numbers(header: Dataset, keyword: str) -> list[float]:
    value = _value(header, keyword)
    try:
        values = [float(part) for part in value] if isinstance(value, MultiValue) else [float(value)]
    except (TypeError, ValueError, OverflowError):
        return []
    return values if all(map(isfinite, values)) else []


def _value(header: Dataset, keyword: str):
    """None where absent or damaged."""
    tag = _tag_of(keyword)
    try:
        return header[tag].value if tag in header else None
    except Exception:  # pydicom converts a value when it is asked for, and fails on damaged ones
        return None


@cache
def _tag_of(keyword: str) -> BaseTag:
    return Tag(keyword)  # once: looking a keyword up costs more than the value


def items(header: Dataset, sequence: str) -> list[Dataset]:
    """Of a sequence; none where it is absent or damaged."""
    value = _value(header, sequence)
    return list(value) if isinstance(value, pydicom.Sequence) else []


def first(header: Dataset, sequence: str) -> Dataset | None:
    return next(iter(items(header, sequence)), None)
