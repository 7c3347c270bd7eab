"""How a disorder is worded, taken out of the way: two spellings of one name come out as the same words.

    >>> words("Crohn's disease"), words("Haemorrhages of the pancreas")
    (['crohn', 'disease'], ['hemorrhage', 'pancreas'])
    >>> key("Pancreatic haemorrhage") == key("Haemorrhages of the pancreas")
    True

Decisions:
- The same rules run over names, ICD-10-CM and ontologies. A rule may therefore go too far ("pancreas" could become
  "pancrea"), as long as it goes equally far on both sides and rarely makes one word of two.
- Equivalences (hepatic and liver, neoplasm and tumour) are data: `words.csv`, longest phrase first. So are the
  abbreviations, `abbreviations.csv`: one written there in small letters is known in any case, one in capitals only so.
- Letters of other alphabets stay as they are and simply match nothing in ICD-10-CM; symbols and emoji are dropped.
- Laterality and encounter are words like others here. What they mean for a code is decided in `linking`.
"""

import csv
import re
import unicodedata
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
_PREFIXES = frozenset(
    ["extra", "hyper", "hypo", "intra", "micro", "multi", "neo", "non", "para", "peri", "poly", "post", "pre", "pseudo"]
)


def words(text: str) -> list[str]:
    """The canonical words of a name, in order, without stop words; [] where it holds no letter or digit."""
    return [word for word in _replace(_split(text)) if word not in STOP_WORDS]


def key(text: str) -> str:
    """The canonical words in alphabetical order: equal for names that differ in spelling and word order only."""
    return " ".join(sorted(set(words(text))))


def expand(text: str) -> str:
    """The text with known abbreviations written out: "ACL tear" becomes "anterior cruciate ligament tear"."""
    any_case, capitals = _abbreviations()

    def full(found: re.Match) -> str:
        short = found.group()
        return capitals.get(short) or any_case.get(short.lower()) or short

    return re.sub(r"[A-Za-z][A-Za-z0-9]*(?:[/&-][A-Za-z0-9]+)*", full, text)


def _split(text: str) -> list[str]:
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
    return [_plain(word) for word in joined]


@lru_cache(maxsize=1 << 16)
def _plain(word: str) -> str:
    """The American singular."""
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


def _replace(plain: list[str]) -> list[str]:
    phrases, longest = _equivalences()
    canonical: list[str] = []
    start = 0
    while start < len(plain):
        for length in range(min(longest, len(plain) - start), 0, -1):
            found = phrases.get(tuple(plain[start : start + length]))
            if found is not None:
                canonical.extend(found)
                start += length
                break
        else:
            canonical.append(plain[start])
            start += 1
    return canonical


@cache
def _equivalences() -> tuple[dict[tuple[str, ...], list[str]], int]:
    phrases = {}
    for row in read_table("words.csv"):
        phrases[tuple(_split(row["variant"]))] = _split(row["canonical"])
    return phrases, max(map(len, phrases))


@cache
def _abbreviations() -> tuple[dict[str, str], dict[str, str]]:
    any_case, capitals = {}, {}
    for row in read_table("abbreviations.csv"):
        (any_case if row["short"].islower() else capitals)[row["short"]] = row["expansion"]
    return any_case, capitals


def read_table(name: str, package: str = "radfm.knowledge") -> list[dict[str, str]]:
    """The rows of a CSV file that lies in a package."""
    with files(package).joinpath(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
