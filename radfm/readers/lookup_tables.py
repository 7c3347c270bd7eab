"""The lookup tables of DICOM headers: modality and VOI LUTs (PS3.3 C.11.1, C.11.2) and palettes (C.7.6.3, C.7.9).

Decisions:
- Whether an entry takes a word or half a word is decided by the length of the data. Headers of both kinds state 8 bits.
- The first mapped value is signed where the values that are looked up are, whatever VR it was written with.
- Colours are reduced to 8 bits. A palette of 16 bits whose entries are all below 256 has entries of 8 bits.
- The alpha channel of a palette is ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from radfm.readers.errors import Unreadable

_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2  # segments of a palette, PS3.3 C.7.9.2
_CHANNELS = ("Red", "Green", "Blue")


@dataclass
class LookupTable:
    """A table from integers to unsigned integers.

    Attributes:
        first: the value that the first entry is for. Smaller values get the first entry, too large ones the last.
        entries: (n,) uint16.
        bits: of an entry, as the header states.
    """

    first: int
    entries: np.ndarray
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f":
            values = np.rint(values)
        last = self.first + len(self.entries) - 1
        return self.entries[np.clip(values.astype(np.int64), self.first, last) - self.first]

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest value that the entries can have."""
        return 0, max(2**self.bits - 1, int(self.entries.max()))


def lookup_table(item: Dataset, *, signed: bool, little_endian: bool) -> LookupTable:
    """The table of an item of ModalityLUTSequence or VOILUTSequence.

    Args:
        signed: whether the values that are looked up may be negative.
        little_endian: the byte order of the file.
    Raises: ValueError for a damaged table.
    """
    count, first, bits = _descriptor(item["LUTDescriptor"].value, signed, little_endian)
    return LookupTable(first, _entries(_words(item["LUTData"].value, little_endian), count), bits)


def apply_palette(values: np.ndarray, header: Dataset, *, signed: bool, little_endian: bool) -> np.ndarray:
    """Indices (H, W) -> colours (H, W, 3) uint8. Raises: Unreadable for a damaged or missing palette."""
    try:
        tables = [_channel(header, channel, signed, little_endian) for channel in _CHANNELS]
    except (KeyError, ValueError, TypeError, IndexError):
        raise Unreadable("has a palette that is damaged or missing: export it again in colour or grey") from None
    highest = max(int(table.entries.max()) for table in tables)
    bits = next(bits for bits in (8, max(table.bits for table in tables), 16) if highest < 2**bits)
    return np.stack([table(values) >> bits - 8 for table in tables], axis=-1).astype(np.uint8)


def _channel(header: Dataset, channel: str, signed: bool, little_endian: bool) -> LookupTable:
    descriptor = header[f"{channel}PaletteColorLookupTableDescriptor"].value
    count, first, bits = _descriptor(descriptor, signed, little_endian)
    name = f"{channel}PaletteColorLookupTableData"
    if name in header:
        return LookupTable(first, _entries(_words(header[name].value, little_endian), count), bits)
    words = _words(header[f"Segmented{name}"].value, little_endian)
    data = words.astype("<u2").view(np.uint8) if bits <= 8 else words
    return LookupTable(first, np.array(_expanded(data.tolist(), bits)[:count], np.uint16), bits)


def _descriptor(value: bytes | Sequence[int], signed: bool, little_endian: bool) -> tuple[int, int, int]:
    """(number of entries, first mapped value, bits of an entry)."""
    count, first, bits = _words(value, little_endian).tolist()[:3]
    return count or 2**16, first - 2**16 if signed and first >= 2**15 else first, bits if 0 < bits <= 16 else 16


def _words(value: bytes | Sequence[int] | int, little_endian: bool) -> np.ndarray:
    """(n,) uint16. Two entries of 8 bits lie in one word, the first in the low byte."""
    if isinstance(value, bytes):
        return np.frombuffer(value + bytes(len(value) % 2), "<u2" if little_endian else ">u2").astype(np.uint16)
    return (np.atleast_1d(np.array(value, np.int64)) & 0xFFFF).astype(np.uint16)


def _entries(words: np.ndarray, count: int) -> np.ndarray:
    if not words.size:
        raise ValueError("a lookup table has no entries")
    if words.size == (count + 1) // 2 and count > 1:
        words = words.astype("<u2").view(np.uint8).astype(np.uint16)
    return words[:count]


def _expanded(data: list[int], bits: int) -> list[int]:
    """The entries of a segmented palette. An indirect segment repeats earlier ones; they are not nested."""
    entries: list[int] = []
    offset_length = 2 if bits > 8 else 4  # an offset has 32 bits, in parts of 16 or 8 bits
    at = segments = 0
    while at + 2 < len(data):
        if data[at] != _INDIRECT:
            at, repeated, earlier = _expand_segment(data, at, entries), 0, 0
        else:
            parts = data[at + 2 : at + 2 + offset_length]
            offset = sum(part << (32 // offset_length) * i for i, part in enumerate(parts))
            earlier = offset // (2 if bits > 8 else 1)  # the offset counts bytes
            repeated = data[at + 1]
            at += 2 + offset_length
        segments += 1 + repeated
        if segments > 2**16 or len(entries) > 2**16:
            raise ValueError("a palette has more segments than entries")
        for _ in range(repeated):
            earlier = _expand_segment(data, earlier, entries)
    return entries


def _expand_segment(data: list[int], at: int, entries: list[int]) -> int:
    """Append the entries of a discrete or linear segment. Returns: where the next segment begins."""
    kind, length = data[at], data[at + 1]
    if kind == _DISCRETE:
        entries += data[at + 2 : at + 2 + length]
        return at + 2 + length
    if kind != _LINEAR or not entries or len(entries) > 2**16:
        raise ValueError("a palette has an unknown segment, or more entries than values")
    start, end = entries[-1], data[at + 2]
    entries += [round(start + (end - start) * step / length) for step in range(1, length + 1)]
    return at + 3
