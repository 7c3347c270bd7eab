"""Sorting names as people count: img2 before img10."""

import re
from functools import lru_cache


@lru_cache(maxsize=1 << 14)  # a file's name is asked for at every sorting
def natural(name: str) -> tuple:
    """Sorting key by which img2 comes before img10."""
    parts = (part for part in re.split(r"(\d+)", name) if part)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
