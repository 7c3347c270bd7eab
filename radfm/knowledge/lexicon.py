"""Every name that ICD-10-CM has for a condition, and how to find the ones nearest to a text.

Decisions:
- A name is one row: the description, an inclusion term, an includes note, one half of "X and Y", or a name of ours.
  A code is as near as the nearest of its names.
- Seven-character codes are no rows, nor are codes that only add a side to their parent: `linking` goes down to them
  when the text names side or encounter.
- "Unspecified", NOS, "without rupture" and the like are what a short name leaves unsaid. They are dropped from a name
  as a second row of the same code, which counts a little less.
- Near means TF-IDF cosine over words and over character 3- and 4-grams within words. The postings are numpy arrays:
  scikit-learn would be right too, but takes longer to import than all of this.
- Parsed once, then kept in the cache folder: names in one file, postings in another that is read when needed.
"""

import contextlib
import difflib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, cached_property
from hashlib import sha256
from importlib.resources import files

import numpy as np

from radfm.knowledge import icd10cm, wording
from radfm.knowledge.cache import Columns, remember

# What a row is, and how far an exact match of it is to be believed.
SOURCES = {
    "common name": 0.99,
    "exact description": 0.98,
    "description but for what is unspecified": 0.97,
    "inclusion term": 0.955,
    "description but for what is taken as given": 0.94,
    "includes note": 0.92,
    "excludes note": 0.915,
    "part of the description": 0.86,
    "part of an inclusion term": 0.84,
    "name in brackets": 0.82,
}
SIDES = frozenset({"right", "left", "bilateral", "unilateral"})

_SIDE = re.compile(r"\b(?:right|left|bilateral|unilateral)\b")
_UNSPECIFIED = re.compile(r"\b[Uu]nspecified\b")
_FORMAT = 1  # of the cached tables
_BUCKETS = 1 << 20
_NAMES = list(SOURCES)


class Lexicon:
    """The names of ICD-10-CM's codes.

    Attributes:
        codes: Code of each row.
        names: Name of each row, as it is written.
        sources: What each row is: a position in `SOURCES`.
    """

    def __init__(self):
        self._version = f"{icd10cm.edition().split()[-1]}-{_FORMAT}-{_data_fingerprint()}"
        columns = remember("names", self._version, _rows)
        self.codes: list[str] = columns["codes"]
        self.names: list[str] = columns["names"]
        self.keys: list[str] = columns["keys"]
        self.sources: list[str] = [_NAMES[i] for i in columns["sources"].tolist()]
        self._by_key: dict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(self.keys):
            self._by_key[key].append(row)

    def exact(self, key: str) -> list[int]:
        """Rows whose words are these, whatever their order."""
        return self._by_key.get(key, []) if key else []

    def cosines(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cosine of every row with the words: by whole words, and by parts of words; both (rows,) float32."""
        return self._words.cosines(words), self._grams.cosines(_grams(words))

    def corrected(self, words: list[str]) -> list[str]:
        """The words, those that no name holds replaced by the likest that one does, where it is nearly the same."""
        return [word if self._words.holds(word) else self._nearest_word(word) for word in words]

    def _nearest_word(self, word: str) -> str:
        if len(word) < 5 or len(word) > 40:
            return word
        likeness = self._vocabulary.cosines(_grams([word]))
        near = [self._all_words[i] for i in np.argpartition(-likeness, 20)[:20]]
        near = [other for other in near if other[0] == word[0]]  # laryngocele is no misspelt pharyngocele
        return next(iter(difflib.get_close_matches(word, near, n=1, cutoff=0.85)), word)

    def best_of_codes(self, scores: np.ndarray) -> np.ndarray:
        """(rows,) -> (codes,): of each of `unique_codes` the score of its best name."""
        return np.maximum.reduceat(scores, self._starts[:-1])

    def rows_of_code(self, position: int) -> tuple[int, int]:
        """First row, and end, of the code at a position of `unique_codes`."""
        return int(self._starts[position]), int(self._starts[position + 1])

    @cached_property
    def unique_codes(self) -> list[str]:
        return [self.codes[row] for row in self._starts[:-1]]

    @cached_property
    def _starts(self) -> np.ndarray:
        """(codes + 1,) where the rows of each code start: a code's rows lie together."""
        new = [row for row, code in enumerate(self.codes) if row == 0 or code != self.codes[row - 1]]
        return np.array([*new, len(self.codes)])

    @cached_property
    def _all_words(self) -> list[str]:
        return sorted({word for key in self.keys for word in key.split()})

    @cached_property
    def _vocabulary(self) -> "_Index":
        return _Index(_post([_grams([word]) for word in self._all_words]))

    @cached_property
    def _postings(self) -> Columns:
        def build() -> Columns:
            lists = [wording.words(name) for name in self.names]
            return {
                **{f"words {k}": v for k, v in _post(lists).items()},
                **{f"grams {k}": v for k, v in _post([_grams(words) for words in lists]).items()},
            }

        return remember("postings", self._version, build)

    @cached_property
    def _words(self) -> "_Index":
        return _Index({k.removeprefix("words "): v for k, v in self._postings.items() if k.startswith("words ")})

    @cached_property
    def _grams(self) -> "_Index":
        return _Index({k.removeprefix("grams "): v for k, v in self._postings.items() if k.startswith("grams ")})


class _Index:
    """TF-IDF rows of unit length, by feature: feature f is in rows[starts[f]:starts[f + 1]]."""

    def __init__(self, columns: Columns):
        self.starts, self.rows, self.weights = columns["starts"], columns["rows"], columns["weights"]
        self.idf, self.size = columns["idf"], int(columns["size"])

    def holds(self, feature: str) -> bool:
        bucket = _bucket(feature)
        return bool(self.starts[bucket] < self.starts[bucket + 1])

    def cosines(self, features: list[str]) -> np.ndarray:
        buckets, weights = _weigh(features, self.idf)
        spans = [slice(self.starts[b], self.starts[b + 1]) for b in buckets]
        if not spans:
            return np.zeros(self.size, np.float32)
        rows = np.concatenate([self.rows[span] for span in spans])
        found = np.concatenate([self.weights[span] * w for span, w in zip(spans, weights, strict=True)])
        return np.bincount(rows, found, minlength=self.size).astype(np.float32)


def _post(lists: list[list[str]]) -> Columns:
    bucket = cache(_bucket)
    buckets = [sorted({bucket(feature) for feature in features}) for features in lists]
    lengths = np.array([len(found) for found in buckets])
    rows = np.repeat(np.arange(len(lists), dtype=np.int32), lengths)
    columns = np.concatenate([np.array(found, np.int32) for found in buckets])
    frequency = np.bincount(columns, minlength=_BUCKETS)
    idf = (np.log((1 + len(lists)) / (1 + frequency)) + 1).astype(np.float32)
    squares = np.bincount(rows, idf[columns] ** 2, minlength=len(lists))
    weights = (idf[columns] / np.sqrt(squares)[rows]).astype(np.float32)
    order = np.argsort(columns, kind="stable")
    starts = np.concatenate([[0], np.cumsum(frequency)])
    return {
        "starts": starts.astype(np.int32),
        "rows": rows[order],
        "weights": weights[order],
        "idf": idf,
        "size": np.array(len(lists)),
    }


def _weigh(features: list[str], idf: np.ndarray) -> tuple[list[int], np.ndarray]:
    buckets = sorted({_bucket(feature) for feature in features})
    weights = idf[buckets]
    return buckets, weights / max(float(np.linalg.norm(weights)), 1e-9)


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode()) % _BUCKETS


def _grams(words: list[str]) -> list[str]:
    padded = [f" {word} " for word in words]
    return [word[i : i + n] for word in padded for n in (3, 4) for i in range(max(len(word) - n + 1, 0))]


def _rows() -> Columns:
    codes, names, keys, sources = zip(*_named(), strict=True)
    return {
        "codes": list(codes),
        "names": list(names),
        "keys": list(keys),
        "sources": np.array([_NAMES.index(source) for source in sources], np.int8),
    }


def _named() -> Iterator[tuple[str, str, str, str]]:
    """(code, name, key, source) of every row, each key of a code once, with its best source."""
    common = defaultdict(list)
    for row in wording.read_table("common_names.csv"):
        common[icd10cm.normalise(row["code"])].append((row["name"], "common name"))
    for code, name in _pointed_at():
        common[code] += _variants([(name, "excludes note")])
    for entry in icd10cm.entries("category", "subcategory"):
        named = common[entry.code]
        if not _adds_side(entry):
            named += _names_of(entry)
        known = {""}
        for name, source in sorted(set(named), key=lambda found: (-SOURCES[found[1]], found[0])):
            key = wording.key(name)
            if key not in known:
                known.add(key)
                yield entry.code, " ".join(name.split()), key, source


def _pointed_at() -> Iterator[tuple[str, str]]:
    """(code, name) of each note that says where else a name is coded: "Excludes1: snapping hip (R29.4)"."""
    for entry in icd10cm.entries("chapter", "block", "category", "subcategory"):
        for note in (*entry.excludes1, *entry.excludes2):
            found = re.fullmatch(r"(.{4,80}?)\s*\(([A-Z]\d[0-9A-Z][0-9A-Z.]*-?)\)", " ".join(note.split()))
            if found:
                with contextlib.suppress(ValueError):  # a note that points at a retired code
                    yield icd10cm.normalise(found.group(2)), found.group(1)


def _names_of(entry: icd10cm.Entry) -> list[tuple[str, str]]:
    named = [(entry.description, "exact description")]
    named += [(term, "inclusion term") for term in entry.inclusion_terms]
    if entry.kind == "category":
        named += [(term, "includes note") for term in entry.includes if len(term) < 80]
    return list(_variants(named))


def _adds_side(entry: icd10cm.Entry) -> bool:
    """Whether the code says nothing that its parent does not say, but for a side, or that the side is unspecified."""
    parent = entry.parent
    if entry.kind != "subcategory" or parent.kind not in ("category", "subcategory"):
        return False
    above = set(wording.words(parent.description)) | SIDES | {"side"}
    if _UNSPECIFIED.search(entry.description):
        siblings = [c.description for c in parent.children if _SIDE.search(c.description)]
        sided = any(set(wording.words(text)) <= above for text in siblings)
        return sided and set(wording.words(entry.description)) - {"unspecified"} <= above
    return bool(_SIDE.search(entry.description)) and set(wording.words(entry.description)) <= above


def _variants(named: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for text, source in named:
        of_description = source == "exact description"
        outer = re.sub(r"\s*\[[^\]]*\]", "", text)
        yield outer, source
        for inner in re.findall(r"\[([^\]]{5,})\]", text):
            yield inner, "name in brackets"
        bare = re.sub(r"\s*\((?!of\b|in\b|due\b|from\b)[^)]*\)", " ", outer)
        said = _without_unspecified(bare)
        yield bare, source
        yield said, "description but for what is unspecified" if of_description else source
        given = _without_given(said)
        if of_description:
            yield given, "description but for what is taken as given"
        part = "part of the description" if of_description else "part of an inclusion term"
        for half in _halves(given):
            if of_description or " " in half:
                yield half, part


def _without_unspecified(text: str) -> str:
    """The name without what it calls unspecified: "Pneumonia, unspecified organism" is "Pneumonia"."""
    text = re.sub(r",? (NOS|NEC|not elsewhere classified)\b", "", text)
    first, *rest = re.split(r", (?=[^,]*\bunspecified\b)", text)
    kept = [re.sub(r"^[^,]*\bunspecified\b[^,]*", "", segment) for segment in rest]
    text = first + "".join(kept)
    text = re.sub(rf"\b(?:of|by|from) unspecified (?:{_ANYWHERE})\b(?! (?:with|due|in)\b)", "", text)
    return re.sub(r"\b[Uu]nspecified\b", " ", text).strip(" ,")


_ANYWHERE = (
    "(?:body )?(?:sites?|parts?|organs?|organisms?|origin|limbs?|type|cause|degree|severity|nature|bones?|joints?)"
)
_GIVEN = re.compile(
    r",? \b(?:without (?!mention)(?:(?! of\b)[^,])+|current injury|uncomplicated|acquired|any site|one|site)$"
    r"|\b(?:[Nn]on-?traumatic|[Aa]cquired|of one|one|[Ee]ssential \(primary\)) (?=\w)"
)


def _without_given(text: str) -> str:
    """The name without what goes without saying: "Abdominal aortic aneurysm, without rupture"."""
    previous = None
    while previous != text:
        previous, text = text, _GIVEN.sub(" " if not text.endswith("one") else "", text).strip(" ,")
    return text


def _halves(text: str) -> Iterator[str]:
    """ "Malignant neoplasm of bronchus and lung" names two: that of bronchus, that of lung."""
    if not re.search(r"\b(and|or)\b", text) or len(text) > 120:
        return
    found = re.fullmatch(r"(.*\b(?:of|in|with|due to|by) )?(.+?)", text)
    head, tail = found.group(1) or "", found.group(2)
    parts = re.split(r", and |, or |, | and | or ", tail)
    if 2 <= len(parts) <= 6 and not re.search(r"\b(and|or)\b", head):
        for part in parts:
            if len(part) > 2 and part not in ("other", "unspecified"):
                yield head + part


def _data_fingerprint() -> str:
    """Changes with every table that the names depend on."""
    digest = sha256()
    for name in ("words.csv", "common_names.csv", "wording.py", "lexicon.py"):
        digest.update(files(__package__).joinpath(name).read_bytes())
    return digest.hexdigest()[:12]
