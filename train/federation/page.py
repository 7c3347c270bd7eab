"""What `radfm federate simulate` writes: a page."""

from pathlib import Path
from typing import Any


def write_page(out: Path, found: dict[str, Any]) -> None:
    """Writes federation.html."""
