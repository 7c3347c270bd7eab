"""Reads NumPy arrays that were published as pickles (KneeMRI) without executing code from the pickle.

Decisions:
- A pickle names functions to call. The reader provides substitutes for the five functions that an array needs, which
  only store their arguments. A file that names any other function is refused before anything is executed.
"""

import codecs
import io
import pickle
import re
from pathlib import Path

import numpy as np

from radfm.readers.errors import CUT_SHORT, Unreadable


def read_pickled(path: Path) -> np.ndarray:
    """The array of a file. Raises: Unreadable for anything but a pickled array of numbers."""
    try:
        kept = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        _, shape, dtype, columns_first, values = kept.state
        values = values.encode("latin1") if isinstance(values, str) else values
        if not re.fullmatch(r"[iu][1248]|f[248]", dtype.name) or not isinstance(values, bytes):
            raise Unreadable("holds an array of other types than numbers: save it as .npy")
        order = dtype.state[1] if dtype.state[1] in "<>" else "|"
        array = np.frombuffer(values, np.dtype(order + dtype.name))
        return array.reshape(shape, order="F" if columns_first else "C")
    except (Unreadable, OSError):
        raise
    except EOFError:
        raise Unreadable(CUT_SHORT) from None
    except Exception:  # a damaged pickle raises anything
        raise Unreadable("is not a pickled NumPy array, or is damaged: copy it again") from None


class _Kept:
    """An array, or its type, as the pickle describes it."""

    def __init__(self, name="", *_):
        self.name, self.state = name, None

    def __setstate__(self, state):
        self.state = state


def _array(*_) -> _Kept:
    return _Kept()


def _from_buffer(values, dtype: _Kept, shape, order: str) -> _Kept:
    array = _Kept()
    array.state = (1, shape, dtype, order == "F", bytes(values))
    return array


def _encoded(text: str, _: str) -> bytes:
    return codecs.encode(text, "latin1")


_SUBSTITUTES = {
    "_reconstruct": _array,
    "_frombuffer": _from_buffer,
    "ndarray": _Kept,
    "dtype": _Kept,
    "encode": _encoded,
}
_MODULES = {"numpy", "_codecs"}
_MODULES |= {f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric")}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if module not in _MODULES or name not in _SUBSTITUTES:
            raise Unreadable("contains code to execute, which an array does not: do not open it")
        return _SUBSTITUTES[name]
