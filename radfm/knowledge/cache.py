"""Tables that take seconds to derive, kept between runs in the user's cache folder.

Decisions:
- npz without pickle: numpy arrays as they are, lists of strings as one UTF-8 array joined by line feeds.
- The file name carries a key, which the caller makes from everything the table depends on. A table is never updated;
  the four newest of a name are kept.
- Written beside its place and moved there, so that a reader never sees half a file and two writers do no harm.
- A cache that cannot be read or written costs time, never the result: the table is then built anew.
"""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Columns = dict[str, np.ndarray | list[str]]

_TEXT = "text "  # marks, in the file, an array that holds strings


def remember(name: str, key: str, build: Callable[[], Columns]) -> Columns:
    """The columns that `build` returns, from the cache where they are there.

    Strings hold no line feed. Raises only what `build` raises.
    """
    folder = cache_folder()
    if folder is None:
        return build()
    file = folder / f"{name}-{key}.npz"
    try:
        return _read(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there yet, or damaged
        columns = build()
    with contextlib.suppress(OSError):  # read-only or full: the next process builds it again
        _write(file, columns)
        by_age = sorted(folder.glob(f"{name}-*.npz"), key=lambda kept: kept.stat().st_mtime, reverse=True)
        for old in by_age[4:]:
            old.unlink(missing_ok=True)
    return columns


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/radfm`, or `~/.cache/radfm`; None where there is no home."""
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
    arrays = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            arrays[name] = column
        else:
            arrays[_TEXT + name] = np.frombuffer("\n".join(column).encode(), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as half:
        try:
            np.savez(half, **arrays)
            half.close()
            os.replace(half.name, file)
        except BaseException:
            half.close()
            os.unlink(half.name)
            raise
