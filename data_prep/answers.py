"""Histories that say what was found: a model that learns from them, or is measured on them, reads the answer.

>>> without_answer("Known sarcoidosis. Dyspnoea; rule out PE.", ["Sarcoidosis", "Pulmonary embolism (PE)"])
'Known . Dyspnoea; rule out .'
"""

import re
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")
_STEM = 5  # letters: embolus and embolism are one word


def without_answer(history: str, names: Iterable[str]) -> str:
    """The history without any word that begins as a word of these names does, and without their acronyms."""
    words = {word for name in names for word in _WORD.findall(name)}
    stems = {word[:_STEM].casefold() for word in words if len(word) > 3}
    acronyms = {word for word in words if 1 < len(word) <= 3 and word.isupper()}

    def kept(found: re.Match) -> str:
        word = found.group()
        begins = {word[:4].casefold(), word[:_STEM].casefold()}
        return "" if word in acronyms or begins & stems else word

    return " ".join(_WORD.sub(kept, history).split())
