"""The disorders a model can name: names, synonyms, descriptions, and ICD-10-CM codes with their confidence and source.

>>> from radfm.knowledge import disorders
>>> disorders.codes("Pneumothorax")
['J93.9']
>>> print(disorders.link("ACL tear").candidates[0].description)
Sprain of anterior cruciate ligament of knee
"""

from collections.abc import Sequence
from typing import overload

from radfm.knowledge.linking import Candidate, Link, Linker, default_linker

__all__ = ["Candidate", "Link", "Linker", "codes", "link"]


def link(text: str, top: int = 5) -> Link:
    """The ICD-10-CM codes that a name may mean, best first, and whether to believe it: see `Linker.link`."""
    return default_linker().link(text, top)


@overload
def codes(names: str) -> list[str]: ...
@overload
def codes(names: Sequence[str]) -> list[list[str]]: ...
def codes(names):
    """The ICD-10-CM codes to show beside a disorder's name, [] when unsure; for a list of names a list of such lists.

    Raises:
        ValueError: A name is empty or longer than 300 characters.
    """
    return default_linker().codes([names])[0] if isinstance(names, str) else default_linker().codes(names)
