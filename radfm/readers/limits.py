"""Headers are believed only as far as the file can bear: nothing is allocated for a picture that cannot be there.

Decisions:
- A scan is refused above 4 GiB of pixels; no clinical series is larger.
- Uncompressed pixels cannot be more than the file holds.
- Compressed ones above 64 MiB may be 1,032 times as large as the file, which is the most that deflate reaches.
"""

import math
from pathlib import Path

from radfm.readers.errors import CUT_SHORT, Unreadable

MOST_BYTES = 4 * 2**30
MOST_VOLUMES = 16
_HARMLESS_BYTES = 64 * 2**20
_MOST_DEFLATED = 1032


def check_size(pixel_bytes: int, file_bytes: int, *, compressed: bool) -> None:
    """Raises: Unreadable where pixels of so many bytes are too many, or cannot be in so large a file."""
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
    """Of a series of volumes at least the first and at most `MOST_VOLUMES`, evenly spaced."""
    if volumes <= MOST_VOLUMES:
        return list(range(volumes))
    return [round(i * (volumes - 1) / (MOST_VOLUMES - 1)) for i in range(MOST_VOLUMES)]


def left_out(volumes: int) -> list[tuple[str, str]]:
    """What `Case.skipped` says of the volumes that `chosen_volumes` did not choose."""
    if volumes <= MOST_VOLUMES:
        return []
    of = f"{volumes - MOST_VOLUMES} of {volumes} volumes were left out: {MOST_VOLUMES}, evenly spaced, were read"
    return [("", f"{of}; save others as a file of their own to read them")]


def n_bytes(shape, itemsize: int) -> int:
    return math.prod(int(n) for n in shape) * itemsize


def check_gzip(path: Path, pixel_bytes: int) -> None:
    """The same for a file that may be gzipped, by its first bytes."""
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    check_size(pixel_bytes, path.stat().st_size, compressed=gzipped)
