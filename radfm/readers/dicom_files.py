"""Opens DICOM files and reads single values of their headers. A damaged value counts as absent, the others are read."""

import io
import zlib
from functools import cache, lru_cache
from math import isfinite
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from radfm.readers.errors import CUT_SHORT, Unreadable
from radfm.readers.limits import Clamped

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_DEFLATED_BYTES = 2**30
_DECIMAL = ("DS", "IS")  # numbers in decimal digits
_TEXT = ("CS", "DA", "DT", "LO", "SH", "TM", "UI")


def open_clamped(path: Path) -> io.BufferedIOBase:
    """Open a file for reading its header. Raises: Unreadable for a deflated file of more than 1 GiB."""
    file = Clamped(path)
    start = file.peek()[:1024]
    if _DEFLATED in start:
        try:
            _check_deflated(path, start)
        except BaseException:
            file.close()
            raise
    return file


def _check_deflated(path: Path, start: bytes) -> None:
    """Measure what a deflated file inflates to, because pydicom inflates it at once, whatever its size."""
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
    """The transfer syntax; None where the file states none, and it is one of the uncompressed ones."""
    meta = getattr(header, "file_meta", None)
    syntax = _value(meta, "TransferSyntaxUID") if meta else None
    return syntax if isinstance(syntax, UID) and _is_transfer_syntax(syntax) else None


@lru_cache(maxsize=64)
def _is_transfer_syntax(uid: UID) -> bool:
    return bool(uid) and not uid.is_private and uid.is_transfer_syntax


def text(header: Dataset, keyword: str) -> str:
    """A value as text, stripped; "" where absent or damaged."""
    element = header.get_item(_tag_of(keyword), keep_deferred=True)  # reading it may raise
    if element is None:
        return ""
    if isinstance(element, RawDataElement) and element.VR in _TEXT and _is_plain(element.value):
        return element.value.decode().strip(" \0")  # the same text as pydicom's, in a tenth of the time
    value = _value(header, keyword)
    return "" if value is None else str(value).strip()


def _is_plain(value: bytes | None) -> bool:
    """Whether the bytes are one value that reads the same in every character set: ASCII without ISO 2022 escapes."""
    return value is not None and value.isascii() and b"\\" not in value and b"\x1b" not in value


def texts(header: Dataset, keyword: str) -> list[str]:
    """The values of an element as texts; none where it is absent or damaged."""
    value = _value(header, keyword)
    return [] if not value else [value] if isinstance(value, str) else [str(part) for part in value]


def number(header: Dataset, keyword: str) -> float | None:
    """The first number of an element; None where one of its numbers is damaged or not finite, or it is absent."""
    values = all_numbers(header, keyword)
    return values[0] if values else None


def numbers(header: Dataset, keyword: str, count: int) -> np.ndarray | None:
    """(count,) finite numbers of an element; None where it is absent, damaged, or has another number of values."""
    values = all_numbers(header, keyword)
    return np.array(values) if len(values) == count else None


def all_numbers(header: Dataset, keyword: str) -> list[float]:
    """All numbers of an element; none where one of them is damaged or not finite, or it is absent."""
    element = header.get_item(_tag_of(keyword), keep_deferred=True)  # reading it may raise
    if element is None:
        return []
    try:
        raw = isinstance(element, RawDataElement)
        if raw and element.VR in _DECIMAL:  # as pydicom, but faster; the next branch too
            values = [float(part.strip(b" \0")) for part in element.value.split(b"\\")]
        elif raw and element.VR == "US" and len(element.value) == 2:
            values = [float(int.from_bytes(element.value, "little" if element.is_little_endian else "big"))]
        else:
            value = _value(header, keyword)
            values = [float(part) for part in value] if isinstance(value, (MultiValue, list)) else [float(value)]
    except (AttributeError, TypeError, ValueError, OverflowError):
        return []
    return values if all(map(isfinite, values)) else []


def has(header: Dataset, keyword: str) -> bool:
    """Whether a header has an element, damaged or not."""
    return _tag_of(keyword) in header


def _value(header: Dataset, keyword: str):
    """The value as pydicom converts it; None where absent or damaged."""
    tag = _tag_of(keyword)
    try:
        return header[tag].value if tag in header else None
    except Exception:  # pydicom converts values on access, and may raise anything on damaged ones
        return None


@cache
def _tag_of(keyword: str) -> BaseTag:
    return Tag(keyword)  # cached, as the look-up of a keyword takes longer than reading the value


def items(header: Dataset, sequence: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or damaged."""
    value = _value(header, sequence)
    return list(value) if isinstance(value, pydicom.Sequence) else []


def first(header: Dataset, sequence: str) -> Dataset | None:
    """The first item of a sequence; None where there is none."""
    return next(iter(items(header, sequence)), None)
