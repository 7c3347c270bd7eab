"""Limits on the size that a header may state, checked before memory is allocated.

Decisions:
- A scan of more than 4 GiB of pixels is refused; no clinical series is larger.
- Uncompressed pixels cannot take more bytes than the file has.
- A file is read by `Clamped` where a library would allocate what the header states.
- Compressed pixels of more than 64 MiB may take 1,032 times the bytes of the file, the highest ratio of deflate.
"""

import io
import math
import os
from pathlib import Path

from radfm.readers.errors import CUT_SHORT, Unreadable

MOST_BYTES = 4 * 2**30
MOST_VOLUMES = 16
_HARMLESS_BYTES = 64 * 2**20
_MOST_DEFLATED = 1032


def check_size(pixel_bytes: int, file_bytes: int, *, compressed: bool) -> None:
    """Raises: Unreadable where the pixels take too many bytes, or more than a file of this size can hold."""
    if pixel_bytes > MOST_BYTES:
        raise Unreadable(
            f"has a header that asks for {pixel_bytes / 2**30:,.0f} GiB of pixels, and radfm reads at most "
            f"{MOST_BYTES // 2**30} GiB as one scan: crop or split it, or copy it again if it should be small"
        )
    if not compressed and pixel_bytes > file_bytes:
        raise Unreadable(f"holds fewer pixels than its header says, so it {CUT_SHORT}")
    if compressed and pixel_bytes > max(_HARMLESS_BYTES, _MOST_DEFLATED * file_bytes):
        raise Unreadable(
            f"has a header that asks for {pixel_bytes / 2**20:,.0f} MiB of pixels, far more than so small a file can "
            f"hold: it {CUT_SHORT}"
        )


def chosen_volumes(volumes: int) -> list[int]:
    """The indices of the volumes that are read of a series: all, or `MOST_VOLUMES` evenly spaced ones."""
    if volumes <= MOST_VOLUMES:
        return list(range(volumes))
    return [round(i * (volumes - 1) / (MOST_VOLUMES - 1)) for i in range(MOST_VOLUMES)]


def left_out(volumes: int) -> list[tuple[str, str]]:
    """The entries of `Case.skipped` for the volumes that `chosen_volumes` leaves out: at most one (part, reason)."""
    if volumes <= MOST_VOLUMES:
        return []
    of = f"{volumes - MOST_VOLUMES} of {volumes} volumes were left out: {MOST_VOLUMES}, evenly spaced, were read"
    return [("", f"{of}; save others as a file of their own to read them")]


class Clamped(io.BufferedReader):
    """A file that allocates no more than its size, also where a header states a longer value."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path), 2**15)
        self.end = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.end - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def n_bytes(shape, itemsize: int) -> int:
    """Bytes of an array. Python integers, so that no header makes the product overflow."""
    return math.prod(int(n) for n in shape) * itemsize


def check_gzip(path: Path, pixel_bytes: int) -> None:
    """`check_size` for a file that may be gzipped; its first bytes show whether it is."""
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    check_size(pixel_bytes, path.stat().st_size, compressed=gzipped)
