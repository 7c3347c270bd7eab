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
    stems = "|".join(sorted({re.escape(word[:_STEM]) for word in words if len(word) > 3}))
    acronyms = "|".join(sorted(re.escape(word) for word in words if 1 < len(word) <= 3 and word.isupper()))
    if stems:
        history = re.sub(rf"\b(?:{stems})\w*", "", history, flags=re.IGNORECASE)
    if acronyms:
        history = re.sub(rf"\b(?:{acronyms})\b", "", history)
    return " ".join(history.split())
