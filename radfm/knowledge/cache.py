"""Caches tables that take seconds to compute, in the user's cache folder.

Decisions:
- The format is npz without pickle: NumPy arrays as they are, lists of strings as one UTF-8 array joined by line feeds.
- The file name contains a key that the caller computes from everything the table depends on. A table is never updated;
  the four newest files of a name are kept.
- A file is written under a temporary name and then renamed, so that other processes never read an incomplete file.
- Where the cache cannot be read or written, the table is computed again.
"""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Columns = dict[str, Any]  # name -> np.ndarray, or list[str] of texts

_TEXT = "text "  # prefix of the names of arrays that hold strings
_FILES_PER_NAME = 4


def cached_columns(name: str, key: str, build: Callable[[], Columns]) -> Columns:
    """The columns that `build` returns, from the cache where they are in it.

    Strings must not contain line feeds. Raises only what `build` raises.
    """
    folder = cache_folder()
    if folder is None:
        return build()
    file = folder / f"{name}-{key}.npz"
    try:
        return _read(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # missing or damaged
        columns = build()
    with contextlib.suppress(OSError):  # read-only or full: the next process computes the table again
        _write(file, columns)
        by_age = sorted(folder.glob(f"{name}-*.npz"), key=lambda table: table.stat().st_mtime, reverse=True)
        for old in by_age[_FILES_PER_NAME:]:
            old.unlink(missing_ok=True)
    return columns


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/radfm`, or `~/.cache/radfm`; None where there is no home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(root) / "radfm" if root else Path.home() / ".cache" / "radfm"
    except RuntimeError:
        return None


def _read(file: Path) -> Columns:
    columns: Columns = {}
    with np.load(file, allow_pickle=False) as arrays:
        for name in arrays.files:
            if name.startswith(_TEXT):
                columns[name.removeprefix(_TEXT)] = arrays[name].tobytes().decode().split("\n")
            else:
                columns[name] = arrays[name]
    return columns


def _write(file: Path, columns: Columns) -> None:
    arrays: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            arrays[name] = column
        else:
            arrays[_TEXT + name] = np.frombuffer("\n".join(column).encode(), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as temporary:
        try:
            np.savez(temporary, **arrays)
            temporary.close()
            os.replace(temporary.name, file)
        except BaseException:
            temporary.close()
            os.unlink(temporary.name)
            raise
