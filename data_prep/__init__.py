"""Preparation of case data sets from hospital files and public data.

>>> from radfm.data_prep import load
>>> cases = load("datasets/mine", split="train")
"""

__all__ = ["load"]


def __getattr__(name: str):
    if name == "load":
        from radfm.data_prep.stored_cases import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
