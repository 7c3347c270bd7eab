"""All names that ICD-10-CM has for conditions, and a search index for the names that are most similar to a text.

Decisions:
- Each name is one row: a description, an inclusion term, an includes note, one half of "X and Y", or a name of
  `common_names.csv`. The similarity of a code is that of its most similar name.
- Seven-character codes have no rows, nor have codes that only add a side to their parent. `linking` descends to them
  where the text names a side or an encounter.
- Short names omit "unspecified", NOS, "without rupture" and the like. A name with such words has a second row without
  them, of slightly lower confidence.
- Similarity is the TF-IDF cosine over words and over character 3- and 4-grams within words. The inverted index is a few
  NumPy arrays. scikit-learn takes longer to import than all of this. bm25s took 2.3 times as long to build, as long
  to query, imports scipy, and linked fewer terms of the Disease Ontology to their codes (71.6% for 72.3%):
  `benchmarks/text.py --index` prints both in one run.
- Names and index are computed once and kept in the cache folder. The index is read when it is first needed.
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
from radfm.knowledge.cache import Columns, cached_columns

# The source of a name -> the confidence of an exact match with it.
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
    """The names of the codes of ICD-10-CM, one per row.

    Attributes:
        codes: the code of each row; the rows of a code are adjacent.
        names: the name of each row, as written.
        keys: the words of each name by `wording.key`.
        sources: the source of each name, a key of `SOURCES`.
    """

    def __init__(self):
        self._version = f"{icd10cm.edition().split()[-1]}-{_FORMAT}-{_data_fingerprint()}"
        columns = cached_columns("names", self._version, _rows)
        self.codes: list[str] = columns["codes"]
        self.names: list[str] = columns["names"]
        self.keys: list[str] = columns["keys"]
        self.sources: list[str] = [_NAMES[i] for i in columns["sources"].tolist()]
        self._by_key: dict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(self.keys):
            self._by_key[key].append(row)

    def exact(self, key: str) -> list[int]:
        """The rows whose names have exactly the words of a key (`wording.key`)."""
        return self._by_key.get(key, []) if key else []

    def cosines(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) float32 twice: the TF-IDF cosine of every name with the words, over words and over n-grams."""
        return self._words.cosines(words), self._grams.cosines(_grams(words))

    def corrected(self, words: list[str]) -> list[str]:
        """The words with misspellings corrected: a word of no name becomes a nearly equal word of a name, if any."""
        return [word if word in self._words else self._nearest_word(word) for word in words]

    def _nearest_word(self, word: str) -> str:
        if len(word) < 5 or len(word) > 40:
            return word
        similarity = self._vocabulary.cosines(_grams([word]))
        similar = [self._all_words[i] for i in np.argpartition(-similarity, 20)[:20]]
        similar = [other for other in similar if other[0] == word[0]]  # laryngocele is no misspelt pharyngocele
        return next(iter(difflib.get_close_matches(word, similar, n=1, cutoff=0.85)), word)

    def best_of_codes(self, scores: np.ndarray) -> np.ndarray:
        """(rows,) scores of names -> (codes,) the highest score among the names of each of `unique_codes`."""
        return np.maximum.reduceat(scores, self._starts[:-1])

    def rows_of_code(self, position: int) -> tuple[int, int]:
        """The first row, and the row after the last, of the code at a position in `unique_codes`."""
        return int(self._starts[position]), int(self._starts[position + 1])

    @cached_property
    def unique_codes(self) -> list[str]:
        """Each code once, in the order of the rows."""
        return [self.codes[row] for row in self._starts[:-1]]

    @cached_property
    def _starts(self) -> np.ndarray:
        """(codes + 1,) the first row of each code, and the number of rows."""
        new = [row for row, code in enumerate(self.codes) if row == 0 or code != self.codes[row - 1]]
        return np.array([*new, len(self.codes)])

    @cached_property
    def _all_words(self) -> list[str]:
        return sorted({word for key in self.keys for word in key.split()})

    @cached_property
    def _vocabulary(self) -> "_Index":
        return _Index(_inverted_index([_grams([word]) for word in self._all_words]))

    @cached_property
    def _postings(self) -> Columns:
        def build() -> Columns:
            lists = [wording.words(name) for name in self.names]
            return {
                **{f"words {k}": v for k, v in _inverted_index(lists).items()},
                **{f"grams {k}": v for k, v in _inverted_index([_grams(words) for words in lists]).items()},
            }

        return cached_columns("postings", self._version, build)

    @cached_property
    def _words(self) -> "_Index":
        return _Index({k.removeprefix("words "): v for k, v in self._postings.items() if k.startswith("words ")})

    @cached_property
    def _grams(self) -> "_Index":
        return _Index({k.removeprefix("grams "): v for k, v in self._postings.items() if k.startswith("grams ")})


class _Index:
    """An inverted index of TF-IDF vectors of unit length: feature f is in rows[starts[f]:starts[f + 1]]."""

    def __init__(self, columns: Columns):
        self.starts, self.rows, self.weights = columns["starts"], columns["rows"], columns["weights"]
        self.idf, self.size = columns["idf"], int(columns["size"])

    def __contains__(self, feature: str) -> bool:
        """Whether any row has the feature."""
        bucket = _bucket(feature)
        return bool(self.starts[bucket] < self.starts[bucket + 1])

    def cosines(self, features: list[str]) -> np.ndarray:
        """(rows,) float32, the cosine of each row with the features."""
        buckets, weights = _weighted(features, self.idf)
        spans = [slice(self.starts[b], self.starts[b + 1]) for b in buckets]
        if not spans:
            return np.zeros(self.size, np.float32)
        rows = np.concatenate([self.rows[span] for span in spans])
        products = np.concatenate([self.weights[span] * w for span, w in zip(spans, weights, strict=True)])
        return np.bincount(rows, products, minlength=self.size).astype(np.float32)


def _inverted_index(lists: list[list[str]]) -> Columns:
    """The columns of an `_Index` over lists of features; a feature counts once per list, at its hash."""
    bucket = cache(_bucket)
    buckets = [sorted({bucket(feature) for feature in features}) for features in lists]
    lengths = np.array([len(features) for features in buckets])
    rows = np.repeat(np.arange(len(lists), dtype=np.int32), lengths)
    columns = np.concatenate([np.array(features, np.int32) for features in buckets])
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


def _weighted(features: list[str], idf: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The hashes of the features, and their weights as a vector of unit length."""
    buckets = sorted({_bucket(feature) for feature in features})
    weights = idf[buckets]
    return buckets, weights / max(float(np.linalg.norm(weights)), 1e-9)


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode()) % _BUCKETS


def _grams(words: list[str]) -> list[str]:
    """Character 3- and 4-grams of each word, with a space at both ends."""
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
    """(code, name, key, source) of every row. Each key of a code comes once, with its most confident source."""
    common = defaultdict(list)
    for row in wording.read_table("common_names.csv"):
        common[icd10cm.normalise(row["code"])].append((row["name"], "common name"))
    for code, name in _excludes_references():
        common[code] += _variants([(name, "excludes note")])
    for entry in icd10cm.entries("category", "subcategory"):
        named = common[entry.code]
        if not _adds_side(entry):
            named += _names_of(entry)
        keys = {""}
        for name, source in sorted(set(named), key=lambda pair: (-SOURCES[pair[1]], pair[0])):
            key = wording.key(name)
            if key not in keys:
                keys.add(key)
                yield entry.code, " ".join(name.split()), key, source


def _excludes_references() -> Iterator[tuple[str, str]]:
    """(code, name) of each excludes note that refers to the code of a name: "Excludes1: snapping hip (R29.4)"."""
    for entry in icd10cm.entries("chapter", "block", "category", "subcategory"):
        for note in (*entry.excludes1, *entry.excludes2):
            match = re.fullmatch(r"(.{4,80}?)\s*\(([A-Z]\d[0-9A-Z][0-9A-Z.]*-?)\)", " ".join(note.split()))
            if match:
                with contextlib.suppress(ValueError):  # the note refers to a retired code
                    yield icd10cm.normalise(match.group(2)), match.group(1)


def _names_of(entry: icd10cm.Entry) -> list[tuple[str, str]]:
    named = [(entry.description, "exact description")]
    named += [(term, "inclusion term") for term in entry.inclusion_terms]
    if entry.kind == "category":
        named += [(term, "includes note") for term in entry.includes if len(term) < 80]
    return list(_variants(named))


def _adds_side(entry: icd10cm.Entry) -> bool:
    """Whether the code differs from its parent only by a side, or by an unspecified side."""
    parent = entry.parent
    if entry.kind != "subcategory" or parent is None or parent.kind not in ("category", "subcategory"):
        return False
    allowed = set(wording.words(parent.description)) | SIDES | {"side"}
    if _UNSPECIFIED.search(entry.description):
        siblings = [c.description for c in parent.children if _SIDE.search(c.description)]
        sided = any(set(wording.words(text)) <= allowed for text in siblings)
        return sided and set(wording.words(entry.description)) - {"unspecified"} <= allowed
    return bool(_SIDE.search(entry.description)) and set(wording.words(entry.description)) <= allowed


def _variants(named: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(name, source) of each name without its brackets, unspecified words and so on, and of each half of "X and Y"."""
    for text, source in named:
        of_description = source == "exact description"
        outer = re.sub(r"\s*\[[^\]]*\]", "", text)
        yield outer, source
        for inner in re.findall(r"\[([^\]]{5,})\]", text):
            yield inner, "name in brackets"
        bare = re.sub(r"\s*\((?!of\b|in\b|due\b|from\b)[^)]*\)", " ", outer)
        specified = _without_unspecified(bare)
        yield bare, source
        yield specified, "description but for what is unspecified" if of_description else source
        short = _without_default(specified)
        if of_description:
            yield short, "description but for what is taken as given"
        part = "part of the description" if of_description else "part of an inclusion term"
        for half in _halves(short):
            if of_description or " " in half:
                yield half, part


def _without_unspecified(text: str) -> str:
    """The name without unspecified parts: "Pneumonia, unspecified organism" becomes "Pneumonia"."""
    text = re.sub(r",? (NOS|NEC|not elsewhere classified)\b", "", text)
    first, *rest = re.split(r", (?=[^,]*\bunspecified\b)", text)
    kept = [re.sub(r"^[^,]*\bunspecified\b[^,]*", "", segment) for segment in rest]
    text = first + "".join(kept)
    text = re.sub(rf"\b(?:of|by|from) unspecified (?:{_ANYWHERE})\b(?! (?:with|due|in)\b)", "", text)
    return re.sub(r"\b[Uu]nspecified\b", " ", text).strip(" ,")


_ANYWHERE = (
    "(?:body )?(?:sites?|parts?|organs?|organisms?|origin|limbs?|type|cause|degree|severity|nature|bones?|joints?)"
)
_DEFAULT = re.compile(
    r",? \b(?:without (?!mention)(?:(?! of\b)[^,])+|current injury|uncomplicated|acquired|any site|one|site)$"
    r"|\b(?:[Nn]on-?traumatic|[Aa]cquired|of one|one|[Ee]ssential \(primary\)) (?=\w)"
)


def _without_default(text: str) -> str:
    """The name without the parts that short names omit: "Abdominal aortic aneurysm, without rupture"."""
    previous = None
    while previous != text:
        previous, text = text, _DEFAULT.sub(" " if not text.endswith("one") else "", text).strip(" ,")
    return text


def _halves(text: str) -> Iterator[str]:
    """The names in a joint name: "Malignant neoplasm of bronchus and lung" has one of bronchus and one of lung."""
    if not re.search(r"\b(and|or)\b", text) or len(text) > 120:
        return
    match = re.fullmatch(r"(.*\b(?:of|in|with|due to|by) )?(.+?)", text)
    assert match is not None  # a text of one line with a letter always matches
    head, tail = match.group(1) or "", match.group(2)
    parts = re.split(r", and |, or |, | and | or ", tail)
    if 2 <= len(parts) <= 6 and not re.search(r"\b(and|or)\b", head):
        for part in parts:
            if len(part) > 2 and part not in ("other", "unspecified"):
                yield head + part


def _data_fingerprint() -> str:
    """A hash of all files that the names depend on, for the cache."""
    digest = sha256()
    for name in ("words.csv", "common_names.csv", "wording.py", "lexicon.py"):
        digest.update(files(__package__).joinpath(name).read_bytes())
    return digest.hexdigest()[:12]
