"""Writes the DICOM files of tests that write thousands: Explicit VR Little Endian, from a dict of keyword to value.

A file of 40 elements takes 0.2 ms, and 3 ms with pydicom, which also checks the values.
"""

import struct
from functools import cache
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian

_LONG = (b"OB", b"OW", b"SQ", b"UT", b"UN")  # these have a length of four bytes
_BINARY = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}


def write_dicom(path: Path, elements: dict[str, Any]) -> None:
    """Write one file. elements: keyword -> a value, a list of values, a list of dicts (a sequence), bytes, or None for
    an element that the file lacks. Decimal strings may be given as texts, and are written as they are."""
    meta = {
        "MediaStorageSOPClassUID": elements["SOPClassUID"],
        "MediaStorageSOPInstanceUID": elements["SOPInstanceUID"],
        "TransferSyntaxUID": ExplicitVRLittleEndian,
    }
    group_2 = encoded(meta)
    length = encoded({"FileMetaInformationGroupLength": len(group_2)})
    path.write_bytes(bytes(128) + b"DICM" + length + group_2 + encoded(elements))


def encoded(elements: dict[str, Any]) -> bytes:
    """The elements, in the order of their tags."""
    present = sorted((*_tag_and_vr(keyword), value) for keyword, value in elements.items() if value is not None)
    return b"".join(_element(tag, vr, value) for tag, vr, value in present)


@cache
def _tag_and_vr(keyword: str) -> tuple[int, bytes]:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    vr = dictionary_VR(tag).encode()
    return tag, {b"OB or OW": b"OW", b"US or SS": b"US"}.get(vr, vr)


def _element(tag: int, vr: bytes, value) -> bytes:
    data = _data(vr, value)
    data += (b"\0" if vr in (b"UI", b"OB", b"OW") else b" ") * (len(data) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HI", 0, len(data)) if vr in _LONG else struct.pack("<H", len(data))) + data


def _data(vr: bytes, value) -> bytes:
    if isinstance(value, bytes):
        return value
    values = value if isinstance(value, list | tuple) else [value]
    if vr == b"SQ":
        items = [encoded(item) for item in values]
        return b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    if vr == b"AT":
        tags = [tag_for_keyword(keyword) for keyword in values]
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in tags)
    if vr in _BINARY:
        return struct.pack(f"<{len(values)}{_BINARY[vr]}", *values)
    return "\\".join(map(_text, values)).encode()


def _text(value) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
