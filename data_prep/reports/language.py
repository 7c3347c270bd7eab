"""Recognises reports that are not in English, by the stop words that spaCy lists for each language.

    >>> other_language("Kein Nachweis eines Pleuraergusses oder eines Pneumothorax.")
    'German'

Decisions:
- Reports are short, and half of their words are Latin in any language. py3langid takes "No acute cardiopulmonary
  abnormality." for Romanian. Stop words tell languages apart where there are some, and claim nothing elsewhere.
- Letters of another alphabet are another language.
"""

import re
from functools import cache
from importlib import import_module

_NAMES = {
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
    "sv": "Swedish", "da": "Danish", "nb": "Norwegian", "pl": "Polish", "cs": "Czech", "ro": "Romanian",
    "tr": "Turkish", "fi": "Finnish", "hu": "Hungarian",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")
_LEAST = 2  # stop words


def other_language(text: str) -> str | None:
    """The name of the language of a text, if it is not English; None where it is, or where nothing tells."""
    words = [word.casefold() for word in _WORD.findall(text)]
    if sum(not word[0].isascii() and ord(word[0]) > 0x24F for word in words) > len(words) / 2:
        return "another alphabet"
    english, others = _stop_words()
    in_english = sum(word in english for word in words)
    counts = {name: sum(word in stops for word in words) for name, stops in others.items()}
    name = max(counts, key=lambda one: counts[one])
    return name if counts[name] >= _LEAST and counts[name] > in_english else None


@cache
def _stop_words() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """The stop words of English, and those of other languages that are none in English, without single letters."""
    english = import_module("spacy.lang.en.stop_words").STOP_WORDS
    lists = {name: import_module(f"spacy.lang.{code}.stop_words").STOP_WORDS for code, name in _NAMES.items()}
    return frozenset(english), {
        name: frozenset(word for word in words - english if len(word) > 1) for name, words in lists.items()
    }
