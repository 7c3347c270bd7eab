"""Natural sorting of file names: img2 before img10."""

import re
from functools import lru_cache


@lru_cache(maxsize=1 << 14)  # the same names are sorted several times
def natural(name: str) -> tuple:
    """A sorting key that compares runs of digits as numbers."""
    parts = (part for part in re.split(r"(\d+)", name) if part)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
