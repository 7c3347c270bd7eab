"""Finds disorders of a vocabulary in the sentences of reports.

    >>> finder = MentionFinder(Vocabulary.from_names(["Rib fracture"]), read_rules())
    >>> [m.confidence for m in finder.find("Healed fractures of the left sixth and seventh ribs.", frozenset())]
    [0.89]

Decisions:
- A disorder is found by its name and synonyms, by the names that ICD-10-CM and `common_names.csv` have for its code, if
  no other disorder of the vocabulary has the code, and by the phrases of the rules. Words are compared as
  `radfm.knowledge.wording` writes them, in any order. Inclusion terms of a code are often other disorders.
- Other words may stand between, a few, and none across the end of a clause: "fracture of the left sixth rib". Each
  lowers the confidence, except measures. A word of a phrase that changes the status separates, too: "echogenic liver,
  suggestive of steatosis". With a word of denial between ("spleen is not enlarged") the mention is denied.
- Of two mentions, one whose words are part of the other's is dropped, as the longer one is more specific.
- Names of residual codes ("Other specified diseases of liver") are different disorders, so they are not used.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from radfm.data_prep.reports.rules import Rule
from radfm.knowledge import wording
from radfm.knowledge.disorders import Vocabulary
from radfm.knowledge.linking import Linker, default_linker

NAME, PHRASE, CODE = 0.98, 0.95, 0.9  # confidence of a match: name or synonym, phrase of a rule, name of the code
_MOST_BETWEEN, _EACH_BETWEEN = 4, 0.03
_SOURCES = ("common name", "exact description", "description but for what is unspecified")
_END = re.compile(r"[.;()]\s")
_DENIAL = frozenset(["no", "not", "without", "nor", "neither", "normal"])
_BARRIERS = frozenset(["but", "however", "although", "which", "except", "consistent", "compatible", "keeping"])
_SEPARATING = ("uncertain", "historical", "family")
_MEASURE = re.compile(r"\d+|mm|cm|is|are|was|were")
_OF_ANOTHER = frozenset(["other", "specified", "unspecified", "nos"])


@dataclass(frozen=True)
class Mention:
    """A disorder in a sentence.

    Attributes:
        disorder: row of the vocabulary.
        start, end: its characters.
        words: positions of its words in the sentence.
        confidence: 0 to 1, that the disorder is meant.
        denied: whether its own words deny it, such as "heart size is normal".
    """

    disorder: int
    start: int
    end: int
    words: frozenset[int]
    confidence: float
    denied: bool = False


@dataclass(frozen=True)
class _Name:
    words: frozenset[str]
    disorder: int  # -1: no disorder
    confidence: float
    unless: frozenset[str]
    needs: frozenset[str]
    denies: bool


class MentionFinder:
    """See the module. Create it once, as linking the phrases takes a second."""

    def __init__(self, vocabulary: Vocabulary, rules: Iterable[Rule], linker: Linker | None = None):
        rules = list(rules)
        phrases = (rule.phrase for rule in rules if rule.rule in _SEPARATING and rule.value == "before")
        self._barriers = _BARRIERS.union(*map(_words, phrases)) - _DENIAL
        names: dict[tuple[frozenset[str], int], _Name] = {}
        for name in _names(vocabulary, rules, linker or default_linker()):
            if name.words:
                names.setdefault((name.words, name.disorder), name)
        frequency = Counter(word for name in names.values() for word in name.words)
        self._by_word: dict[str, list[_Name]] = defaultdict(list)
        for name in names.values():
            self._by_word[min(name.words, key=lambda word: (frequency[word], word))].append(name)

    def find(self, sentence: str, report_words: frozenset[str]) -> list[Mention]:
        """The mentions in a sentence, in order.

        Args:
            report_words: the words of the whole report in small letters, for rules with `unless` or `needs`.
        """
        located = wording.locate(sentence)
        positions: dict[str, list[int]] = defaultdict(list)
        for i, (word, _, _) in enumerate(located):
            positions[word].append(i)
        found = [
            mention
            for word in positions
            for name in self._by_word.get(word, ())
            if name.words <= positions.keys() and name.unless.isdisjoint(report_words)
            if not name.needs or not name.needs.isdisjoint(report_words)
            for mention in self._windows(name, word, positions, located, sentence)
        ]
        kept = [one for one in found if not any(_replaces(other, one) for other in found)]
        return sorted((one for one in kept if one.disorder >= 0), key=lambda one: (one.start, one.end, one.disorder))

    def _windows(
        self, name: _Name, word: str, positions: dict[str, list[int]], located: list, sentence: str
    ) -> Iterator[Mention]:
        """The mentions of a name: around each occurrence of its rarest word, the nearest of its other words."""
        for centre in positions[word]:
            words = frozenset(min(positions[other], key=lambda i: abs(i - centre)) for other in name.words)
            span = range(min(words), max(words) + 1)
            between = [located[i][0] for i in span if i not in words and not _MEASURE.fullmatch(located[i][0])]
            start, end = min(located[i][1] for i in words), max(located[i][2] for i in words)
            apart = len(between) > _MOST_BETWEEN or not self._barriers.isdisjoint(between)
            if not apart and not _END.search(sentence[start:end]):
                confidence = round(name.confidence - _EACH_BETWEEN * len(between), 3)
                denied = name.denies or bool(_DENIAL.intersection(between))
                yield Mention(name.disorder, start, end, words, confidence, denied)


def _replaces(other: Mention, one: Mention) -> bool:
    """Whether another mention takes the place of one, with more of the words, or the same ones with more reason."""
    if one.words < other.words:
        return True
    if one.words != other.words or one is other:
        return False
    if one.disorder == other.disorder:
        return (other.denied, other.confidence, id(other)) > (one.denied, one.confidence, id(one))
    return other.disorder < 0 or other.confidence > one.confidence


def _names(vocabulary: Vocabulary, rules: list[Rule], linker: Linker) -> Iterator[_Name]:
    """Every name of every disorder, those with more confidence first."""
    row_of_key = {wording.key(disorder.name): row for row, disorder in enumerate(vocabulary)}
    shared = Counter(code for disorder in vocabulary for code in set(disorder.icd10cm))
    row_of_code = {
        code: row for row, disorder in enumerate(vocabulary) for code in disorder.icd10cm if shared[code] == 1
    }
    plain = _Name(frozenset(), -1, NAME, frozenset(), frozenset(), False)
    for i, disorder in enumerate(vocabulary):
        for text in (disorder.name, *disorder.synonyms):
            yield replace(plain, words=_words(text), disorder=i)

    @cache
    def row_of(disorder: str) -> int | None:
        row = row_of_key.get(wording.key(disorder))
        return (
            next((row_of_code.get(code) for code in linker.link(disorder, top=1).codes), None) if row is None else row
        )

    for rule in rules:
        row = -1 if rule.rule == "ignore" else row_of(rule.value) if rule.rule in ("mention", "denial") else None
        if row is not None:
            unless, needs = frozenset(rule.unless), frozenset(rule.needs)
            yield _Name(_words(rule.phrase), row, PHRASE, unless, needs, rule.rule == "denial")
    lexicon = linker.lexicon
    for code, text, source in zip(lexicon.codes, lexicon.names, lexicon.sources, strict=True):
        if code in row_of_code and source in _SOURCES:
            words = _words(text)
            if not words & (_OF_ANOTHER | _DENIAL):
                yield replace(plain, words=words, disorder=row_of_code[code], confidence=CODE)


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word, _, _ in wording.locate(text))
