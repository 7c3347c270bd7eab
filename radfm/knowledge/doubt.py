"""Signs and words of doubt or denial in a name: "?PE", "Pneumothorax (-)", "r/o sepsis", "no fracture".

Decisions:
- Signs are dropped when names are compared, so they are looked at here. A sign that is not known to change nothing
  (punctuation, bullets, units, a tick) counts as doubt: there are many signs for "no" and none in names of disorders.
- A sign or word that is in the matched name too does not count: "Diabetes mellitus without complications" is a
  disorder, "without pneumonia" is none. NegEx (Chapman et al., 2001) lists most of these words.
- "negative" in front of a disorder says of which kind it is ("Gram-negative sepsis"). It is a denial at the beginning,
  at the end and before "for".
"""

import re
import unicodedata

from radfm.knowledge import wording

_HARMLESS = frozenset(",.;:!()[]{}'\"’‘“”`´/\\-+&%•·●▪◦‣*#°<>≤≥=_®™†‡§µ…|⁄@^✓✔☑")
_DASHES = re.compile(r"[‐‑‒–—―−]")
_DENIED = re.compile(  # signs whose place matters
    r"^\s*[-!]|-\s*$|:\s*-|-\s?ve\b|\+\s*/?\s*-|-\s*/\s*\+"  # dashes: a minus, not a hyphen
    r"|[(\[{](?:[\s\-0]*|n)[)\]}]"  # an empty box, a minus, a zero or an n in brackets
    r"|^\s*0+\s+(?=[a-z])|[:=]\s*0+\s*$|(?<!stage)(?<!grade)(?<!type)(?<!class)(?<!category)(?<!score)\s0\s*$",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(
    r"^\W*neg(?:ative)?\b(?!-)|\bneg(?:ative)? for\b|(?<!-)\bneg(?:ative)?\W*$|^\W*[\w/]+-neg(?:ative)?\W*$",
    re.IGNORECASE,
)
_PHRASES = re.compile(
    r"\b(?:rul(?:e|ed|es|ing) out|may (?:be|have|represent)|free of|lack of|rather than|instead of|concern for)\b",
    re.IGNORECASE,
)
_UNSPECIFIED = re.compile(r"\bnot (?:otherwise specified|elsewhere classified)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:[/'’][^\W_]+)*")
_DENIAL = """
absence absent d/c deny denied denies denying exclude excluded excludes excluding n/a neither never nil no none nor not
resolved w/o without ø
"""
_DOUBT = """
can't cannot could d/d ddx differential doubtful equivocal evaluate likely maybe might perhaps poss possible possibly
presumably presumed presumptive prob probable probably queried query question questionable r/o susp suspect suspected
suspicion suspicious uncertain unclear undetermined unlikely unsure versus vs
"""
_OF_OTHERS = "family fh fhx h/o history hx pmh"  # of another person, or another time
_WORDS = frozenset((_DENIAL + _DOUBT + _OF_OTHERS).split())


def is_doubtful(text: str, matched: str) -> bool:
    """Whether a text has a sign or word of doubt or denial that is not part of the name that it was matched with."""
    plain, name = (_UNSPECIFIED.sub(" ", _DASHES.sub("-", unicodedata.normalize("NFKC", t))) for t in (text, matched))
    if any(unicodedata.category(sign)[0] in "PS" and sign not in _HARMLESS and sign not in name for sign in plain):
        return True
    if any(pattern.search(plain) and not pattern.search(name) for pattern in (_DENIED, _NEGATIVE, _PHRASES)):
        return True
    words = {word for word in _WORD.findall(plain.casefold()) if word in _WORDS}
    missing = words.difference(_WORD.findall(name.casefold()))
    return not set(wording.words(" ".join(missing))) <= set(wording.words(name))
