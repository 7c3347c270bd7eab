"""Removes the names of a case's disorders from its history, because a model could read the answer there.

>>> without_answer("Known sarcoidosis. Dyspnoea; rule out PE.", ["Sarcoidosis", "Pulmonary embolism (PE)"])
'Known . Dyspnoea; rule out .'
"""

import re
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")
_STEM = 5  # letters; embolus and embolism share their stem


def without_answer(history: str, names: Iterable[str]) -> str:
    """The history without words that share their stem with a word of these names, and without acronyms of the names."""
    words = {word for name in names for word in _WORD.findall(name)}
    stems = {word[:_STEM].casefold() for word in words if len(word) > 3}
    acronyms = {word for word in words if 1 < len(word) <= 3 and word.isupper()}

    def replacement(match: re.Match) -> str:
        word = match.group()
        word_stems = {word[:4].casefold(), word[:_STEM].casefold()}
        return "" if word in acronyms or word_stems & stems else word

    return " ".join(_WORD.sub(replacement, history).split())
