"""Normalises the wording of disorder names, so that spellings of the same name become the same words.

    >>> words("Crohn's disease"), words("Haemorrhages of the pancreas")
    (['crohn', 'disease'], ['hemorrhage', 'pancreas'])
    >>> key("Pancreatic haemorrhage") == key("Haemorrhages of the pancreas")
    True

Decisions:
- The same rules are applied to names, ICD-10-CM and ontologies. A rule may therefore be too strong ("pancreas" could
  become "pancrea"), as long as it rarely makes two different words equal.
- Equivalences (hepatic and liver, neoplasm and tumour) are in the table `words.csv`; the longest phrase is replaced
  first. Abbreviations are in `abbreviations.csv`: one in small letters is expanded in any case, one in capitals only in
  capitals.
- Letters of other alphabets are kept, and match nothing in ICD-10-CM. Symbols and emoji are dropped.
- Laterality and encounter are ordinary words here; `linking` interprets them.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files

STOP_WORDS = frozenset(
    ["a", "an", "and", "as", "at", "by", "due", "for", "from", "in", "into", "of", "on", "or", "the", "to", "with"]
)

_SPELLINGS = (  # British to American, and words with two current spellings
    (re.compile("ae|oe"), "e"),
    (re.compile(r"(?<=[a-z]{3})our\b"), "or"),
    (re.compile(r"(?<=[a-z]{3})is(ation|ed|ing|e)\b"), r"iz\1"),
    (re.compile("sulph"), "sulf"),
    (re.compile(r"leuco"), "leuko"),
    (re.compile(r"disk"), "disc"),
    (re.compile(r"(?<=t|b)re\b"), "er"),  # centre, fibre
    (re.compile(r"grey\b"), "gray"),
    (re.compile(r"mould"), "mold"),
)
_WORD = re.compile(r"[^\W_]+(?:['’`]s?\b)?")
_PREFIXES = frozenset(
    ["extra", "hyper", "hypo", "intra", "micro", "multi", "neo", "non", "para", "peri", "poly", "post", "pre", "pseudo"]
)


def words(text: str) -> list[str]:
    """The canonical words of a name, in order, without stop words; [] where it has no letter or digit."""
    return [word for _, _, canonical in _replace(_split(text)) for word in canonical if word not in STOP_WORDS]


def locate(text: str) -> list[tuple[str, int, int]]:
    """The canonical words of a text, abbreviations expanded, each with the first and last character it stands for.

    >>> locate("No DVT.")
    [('no', 0, 2), ('deep', 3, 6), ('vein', 3, 6), ('thrombosis', 3, 6)]
    """
    any_case, capitals = _abbreviations()
    plain: list[tuple[str, int, int]] = []
    for match in _WORD.finditer(text):
        short, (start, end) = match.group(), match.span()
        for word in _split(capitals.get(short) or any_case.get(short.lower()) or short):
            if plain and plain[-1][0] in _PREFIXES and plain[-1][2] < start:
                joined, start, _ = plain.pop()
                word = _american_singular(joined + word)
            plain.append((word, start, end))
    located = []
    for first, last, canonical in _replace([word for word, _, _ in plain]):
        located += [(word, plain[first][1], plain[last - 1][2]) for word in canonical if word not in STOP_WORDS]
    return located


def key(text: str) -> str:
    """The canonical words in alphabetical order: equal for names that differ in spelling and word order only."""
    return " ".join(sorted(set(words(text))))


def expand(text: str) -> str:
    """The text with known abbreviations expanded: "ACL tear" becomes "anterior cruciate ligament tear"."""
    any_case, capitals = _abbreviations()

    def expansion(match: re.Match) -> str:
        short = match.group()
        return capitals.get(short) or any_case.get(short.lower()) or short

    return re.sub(r"[A-Za-z][A-Za-z0-9]*(?:[/&-][A-Za-z0-9]+)*", expansion, text)


def _split(text: str) -> list[str]:
    """The words of a text in lower case, without accents and possessives, each by `_american_singular`."""
    text = text.casefold()
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
        text = text.replace("æ", "e").replace("œ", "e").replace("ø", "o").replace("ł", "l")
    text = re.sub(r"(?<=\w)['’`]s?\b", "", text)
    joined: list[str] = []
    for word in re.findall(r"[^\W_]+", text):  # "non-traumatic" and "nontraumatic" are one
        if joined and joined[-1] in _PREFIXES:
            joined[-1] += word
        else:
            joined.append(word)
    return [_american_singular(word) for word in joined]


@lru_cache(maxsize=1 << 16)
def _american_singular(word: str) -> str:
    """The American spelling, in the singular."""
    for pattern, american in _SPELLINGS:
        word = pattern.sub(american, word)
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("itides"):
        return word[:-3] + "s"
    if word.endswith(("oses", "stases", "yses", "theses")):
        return word[:-2] + "is"
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "uses")):
        return word[:-2]
    return word[:-1]


def _replace(plain: list[str]) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, canonical words) of the words, phrases of `words.csv` by their canonical form, the longest first."""
    phrases, longest = _equivalences()
    start = 0
    while start < len(plain):
        for end in range(min(start + longest, len(plain)), start, -1):
            replacement = phrases.get(tuple(plain[start:end]))
            if replacement is not None:
                break
        else:
            end, replacement = start + 1, [plain[start]]
        yield start, end, replacement
        start = end


@cache
def _equivalences() -> tuple[dict[tuple[str, ...], list[str]], int]:
    """Phrase -> its canonical words, and the number of words of the longest phrase."""
    phrases = {}
    for row in read_table("words.csv"):
        phrases[tuple(_split(row["variant"]))] = _split(row["canonical"])
    return phrases, max(map(len, phrases))


@cache
def _abbreviations() -> tuple[dict[str, str], dict[str, str]]:
    """The expansions of abbreviations in any case, and of those in capitals only."""
    any_case, capitals = {}, {}
    for row in read_table("abbreviations.csv"):
        (any_case if row["short"].islower() else capitals)[row["short"]] = row["expansion"]
    return any_case, capitals


def read_table(name: str, package: str = "radfm.knowledge") -> list[dict[str, str]]:
    """The rows of a CSV file in a package, as dictionaries by column."""
    with files(package).joinpath(name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
