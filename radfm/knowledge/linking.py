"""Links names of disorders to ICD-10-CM codes, with confidence and evidence.

    >>> link = Linker().link("ACL tear")
    >>> link.verdict, link.candidates[0].code, link.candidates[0].evidence
    ('confident', 'S83.51', 'common name')

Decisions:
- There are two kinds of evidence. An exact match has the words of one of a code's names, in any order, spelling and
  number; its confidence is that of the name. Similarity (TF-IDF, and the cosine of an encoder where one is given) is
  less certain, and never confident.
- A name is matched as it is, with abbreviations expanded, without the text in brackets, and without side and encounter.
  From the matched code the search descends while the name has words of a child: "fracture of patella, left" matches
  S82.0 and descends to S82.00.
- Of two codes with equal confidence, one above the other, the higher one comes first, as the name is not more specific.
- A name with a sign or word of doubt or denial ("?PE", "no fracture") is never confident, see `doubt`.
- Without a similar name the verdict is "unlinked", without candidates. Doubtful candidates are shown, but are not used
  as codes.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from radfm.knowledge import icd10cm, wording
from radfm.knowledge.doubt import is_doubtful
from radfm.knowledge.lexicon import SIDES, SOURCES, Lexicon

if TYPE_CHECKING:
    from radfm.knowledge.ontology import Ontology, Term

Verdict = Literal["confident", "doubtful", "unlinked"]
Encoder = Callable[[list[str]], np.ndarray]

CONFIDENT, DOUBTFUL = 0.90, 0.30
_OF_DOUBT = 0.5  # the most confidence in a name with a sign of doubt or denial
ENCODER = 0.8  # weight of the encoder in a similarity, where there is one; the rest is TF-IDF
_CHAPTERS = {"O": 0.8, "P": 0.85, "R": 0.97, "V": 0.5, "W": 0.5, "X": 0.5, "Y": 0.5, "Z": 0.6}  # pregnancy, history...
LONGEST_NAME = 300  # characters; longer texts are reports, not names

_ARTICLE = re.compile(  # words that Radiopaedia and textbooks add to a disorder in the title of an article
    r"\((?:[\w -]*\b)?(?:mnemonics?|summary|overview|general|basic|differential|differential diagnosis|staging|grading|"
    r"classifications?|diagnostic criteria|historical|an approach|approach|disambiguation|manifestations?|in the exam)"
    r"\b[^)]*\)|\bin the exam$|\b(?:classification|staging|grading) of\b|\b(?:classification|staging|grading)$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,3}[a-z]?|[ivx]+[a-z]?")  # of a subtype
_ENCOUNTER = re.compile(r"\b(?:initial|subsequent) encounter\b.*$|\bsequela\b", re.IGNORECASE)
_UNSPECIFIED = re.compile(r"\b(?:unspecified|NOS|not otherwise specified|not elsewhere classified)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A code that a name may mean.

    Attributes:
        code: ICD-10-CM.
        description: of the code.
        path: descriptions from the chapter down to the code.
        confidence: 0 to 1, how often such evidence is right.
        evidence: its kind, such as "exact description", "inclusion term", "lexical", "synonym in doid".
        matched: the name of the code that the text matched.
    """

    code: str
    description: str
    path: tuple[str, ...]
    confidence: float
    evidence: str
    matched: str


@dataclass(frozen=True, slots=True)
class Link:
    """The result of linking a name.

    Attributes:
        text: the name as given.
        verdict: "confident", "doubtful" (to be reviewed before use) or "unlinked".
        candidates: best first; none where unlinked.
    """

    text: str
    verdict: Verdict
    candidates: tuple[Candidate, ...]

    @property
    def codes(self) -> list[str]:
        """The code of the first candidate where the verdict is confident, else []."""
        return [self.candidates[0].code] if self.verdict == "confident" else []

    def to_dict(self) -> dict:
        """The link as a dictionary for `json.dumps`."""
        return {**asdict(self), "codes": self.codes}


@dataclass(frozen=True, slots=True)
class Match:
    """The evidence for a code: its confidence and kind, and the name that matched."""

    confidence: float
    evidence: str
    name: str


class Linker:
    """Links names to codes. Create it once and use it for many names, as loading the lexicon takes time.

    Args:
        ontology: adds the names of its terms that have cross references to ICD-10-CM, see `radfm.knowledge.ontology`.
        encoder: takes a list of n texts and returns (n, d) vectors of any scale, or has a method `encode` that does.
        fingerprint: identifies the encoder and its weights. With it, the vectors of all names are cached on disk.
    """

    def __init__(
        self,
        ontology: "Ontology | None" = None,
        encoder: Encoder | None = None,
        fingerprint: str | None = None,
    ):
        self.lexicon = Lexicon()
        self._vectors = None
        self._ontology_names: dict[str, list[tuple[str, Match]]] = {}
        if ontology is not None:
            self._ontology_names = _names_of(ontology)
        if encoder is not None:
            from radfm.knowledge.embedding import NameVectors

            embedded = ("exact description", "inclusion term", "common name")
            self._embedded = np.flatnonzero([source in embedded for source in self.lexicon.sources])
            names = [self.lexicon.names[row] for row in self._embedded]
            self._vectors = NameVectors(names, encoder, fingerprint)

    def link(self, text: str, top: int = 5) -> Link:
        """The codes that a name may mean, best first, those of a confidence of at least 0.3.

        Args:
            text: the name of a disorder, in English.
            top: number of candidates, at most.
        Raises:
            ValueError: the name is empty or longer than 300 characters, or `top` is below 1.
            TypeError: the name is not a string.
        """
        candidates = tuple(candidate for candidate in self.rank(text, top) if candidate.confidence >= DOUBTFUL)
        if not candidates:
            return Link(text, "unlinked", ())
        return Link(text, "confident" if candidates[0].confidence >= CONFIDENT else "doubtful", candidates)

    def rank(self, text: str, top: int = 5) -> list[Candidate]:
        """The most similar codes, best first, of any confidence. Raises as `link`."""
        _check(text, top)
        matches = self._exact(text)
        if top > len(matches) or max(match.confidence for match in matches.values()) < CONFIDENT:
            matches = self._similar(text, 3 * top + 10) | matches
        words = set(wording.words(wording.expand(text)))
        specific: dict[str, Match] = {}
        for code, match in matches.items():
            _keep_best(specific, _descend(code, words), match)
        for code, match in _related(_by_confidence(specific)).items():
            _keep_best(specific, code, match)
        candidates = []
        for code, match in _by_confidence(specific)[:top]:
            entry, confidence = icd10cm.get(code), round(match.confidence, 3)
            candidates.append(Candidate(code, entry.description, entry.path, confidence, match.evidence, match.name))
        if candidates and candidates[0].confidence >= CONFIDENT:
            return _unsure_where_doubtful(text, candidates)
        return candidates

    def codes(self, texts: Sequence[str]) -> list[list[str]]:
        """The confident code of each name as a list, [] where there is none. Raises as `link`."""
        return [self.link(text, top=1).codes for text in texts]

    def _exact(self, text: str) -> dict[str, Match]:
        """The codes that have the text as a name."""
        matches: dict[str, Match] = {}
        for words, factor in self._readings(text):
            key = " ".join(sorted(set(words)))
            for row in self.lexicon.exact(key):
                source = self.lexicon.sources[row]
                match = Match(SOURCES[source] * factor, source, self.lexicon.names[row])
                _keep_best(matches, self.lexicon.codes[row], match)
            for code, match in self._ontology_names.get(key, ()):
                _keep_best(matches, code, replace(match, confidence=match.confidence * factor))
        return _lower_ambiguous(matches)

    def _readings(self, text: str) -> list[tuple[list[str], float]]:
        """The words of the text in every way it can be read, each with a factor for the confidence of a match."""
        readings = []
        for form, factor in _forms(text):
            for written in dict.fromkeys((form, wording.expand(form))):
                words = wording.words(written)
                readings.append((words, factor))
                readings.append(([word for word in words if word not in SIDES], factor))
                corrected = self.lexicon.corrected(words)
                if corrected != words:
                    readings.append((corrected, factor * 0.9))  # never confident
                if len(words) > 1 and _NUMBER.fullmatch(words[-1]):
                    unnumbered = words[:-2] if words[-2] == "type" else words[:-1]
                    readings.append((unnumbered, factor * 0.88))
        return readings

    def _similar(self, text: str, top: int) -> dict[str, Match]:
        """The `top` codes with the most similar names."""
        words = [word for word in wording.words(wording.expand(_topic(text))) if word not in SIDES]
        words = self.lexicon.corrected(words)
        if not words:
            return {}
        by_word, by_gram = self.lexicon.cosines(words)
        rows = (0.5 * by_word + 0.5 * by_gram) * self._priors
        scores, evidence = self.lexicon.best_of_codes(rows), "lexical"
        if self._vectors is not None:
            cosines = np.zeros_like(rows)
            cosines[self._embedded] = self._vectors.cosines(wording.expand(_topic(text)))
            scores = (1 - ENCODER) * scores + ENCODER * self.lexicon.best_of_codes(cosines * self._priors)
            evidence = "lexical and embedding"
        matches = {}
        for i in np.argpartition(-scores, top)[:top]:
            first, end = self.lexicon.rows_of_code(i)
            name = self.lexicon.names[first + int(np.argmax(rows[first:end]))]
            matches[self.lexicon.unique_codes[i]] = Match(_confidence(float(scores[i])), evidence, name)
        return matches

    @cached_property
    def _priors(self) -> np.ndarray:
        """(rows,) factors of the similarity: below 1 for chapters, sources and "other" names that are rarely meant."""
        by_chapter = np.array([_CHAPTERS.get(code[0], 1.0) for code in self.lexicon.codes], np.float32)
        by_source = np.array([SOURCES[source] for source in self.lexicon.sources], np.float32)
        residual = np.array([0.95 if "other" in key.split() else 1.0 for key in self.lexicon.keys], np.float32)
        return by_chapter * by_source * residual


def _check(text: str, top: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a disorder's name is a string, not {type(text).__name__}")
    if not text.strip():
        raise ValueError("the name of a disorder is empty")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"a name of {len(text):,} characters is no disorder's name: at most {LONGEST_NAME}")
    if top < 1:
        raise ValueError(f"top is {top}: ask for at least one code")


def _topic(text: str) -> str:
    """The text without words of an article's title, encounter and "unspecified"."""
    return " ".join(_UNSPECIFIED.sub(" ", _ENCOUNTER.sub(" ", _ARTICLE.sub(" ", text))).split())


def _forms(text: str) -> list[tuple[str, float]]:
    """The text, without words of an article's title, and without brackets; each with a factor, see `_readings`."""
    topic = _topic(text)
    forms = {text: 1.0, topic: 1.0}
    outer = re.sub(r"\s*\([^)]*\)", " ", topic).strip()
    inner = re.findall(r"\(([^)]+)\)", topic)
    if inner and re.search(r"\bsign$", outer):
        forms |= dict.fromkeys(inner, 0.8)
    elif inner:
        short = all(re.fullmatch(r"[A-Z0-9][A-Za-z0-9/ -]{0,9}", i) and not i.islower() for i in inner)
        forms[outer] = 1.0 if short else 0.88
    return list(forms.items())


def _unsure_where_doubtful(text: str, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates, of which none is confident if the text doubts or denies the first."""
    if not is_doubtful(_ARTICLE.sub(" ", text), candidates[0].matched):
        return candidates
    return [
        replace(
            candidate,
            confidence=min(candidate.confidence, _OF_DOUBT),
            evidence=f"{candidate.evidence}, with a sign of doubt or denial",
        )
        for candidate in candidates
    ]


def _keep_best(matches: dict[str, Match], code: str, match: Match) -> None:
    if code not in matches or match.confidence > matches[code].confidence:
        matches[code] = match


def _lower_ambiguous(matches: dict[str, Match]) -> dict[str, Match]:
    """The matches, with less confidence where codes that do not contain one another match equally well."""
    highest = max((match.confidence for match in matches.values()), default=0.0)
    best = [code for code, match in matches.items() if match.confidence >= highest - 0.012]
    lowered = {}
    for code, match in matches.items():
        rivals = [other for other in best if not other.startswith(code) and not code.startswith(other)]
        factor = 1.0 if not rivals else 0.91 if all(other[:3] == code[:3] for other in rivals) else 0.88
        lowered[code] = replace(match, confidence=match.confidence * factor)
    return lowered


def _by_confidence(matches: dict[str, Match]) -> list[tuple[str, Match]]:
    """By decreasing confidence, then the shorter code first."""
    return sorted(matches.items(), key=lambda item: (-item[1].confidence, len(item[0]), item[0]))


def _related(ranked: list[tuple[str, Match]]) -> dict[str, Match]:
    """Codes near the best ones in the tree, which are further possible answers.

    Of the best code: the entries above it, with less confidence at each step, and its child for unspecified cases. Of
    the first three codes: the entry that contains all of them.
    """
    related: dict[str, Match] = {}
    for code, match in ranked[:1]:
        entry = icd10cm.get(code)
        for steps, ancestor in enumerate(entry.ancestors):
            if ancestor.kind in ("category", "subcategory"):
                confidence = 0.7 * 0.85**steps * match.confidence
                related[ancestor.code] = replace(match, confidence=confidence, evidence=f"above {code}")
        children = [child for child in entry.children if child.kind != "extension"]
        unspecified = [child for child in children if _UNSPECIFIED.search(child.description)]
        if unspecified:
            confidence = 0.7 * match.confidence
            related[unspecified[-1].code] = replace(match, confidence=confidence, evidence=f"below {code}")
    if len(ranked) >= 3:
        first, second, third = (code for code, _ in ranked[:3])
        pair = icd10cm.common_ancestor(first, second)
        shared = pair and icd10cm.common_ancestor(pair.code, third)
        if shared and shared.kind in ("category", "subcategory"):
            _keep_best(related, shared.code, replace(ranked[2][1], evidence=f"above {first}, {second}, {third}"))
    return related


def _descend(code: str, words: set[str]) -> str:
    """The most specific code below that adds only words of the text; the code itself where there is none."""
    entry = icd10cm.get(code)
    covered = set(wording.words(entry.description))
    while True:
        closer = []
        for child in entry.children:
            added = set(wording.words(child.description)) - covered
            if added and added <= words - covered:
                closer.append((len(added), child))
        if not closer:
            return entry.code
        entry = max(closer, key=lambda pair: pair[0])[1]
        covered |= set(wording.words(entry.description))


def _confidence(similarity: float) -> float:
    """The confidence of a similarity, fitted on names whose code is known (`radfm evaluate text`)."""
    return 0.84 / (1 + math.exp(-9.0 * (similarity - 0.62)))


def _names_of(ontology: "Ontology") -> dict[str, list[tuple[str, Match]]]:
    """Key of a name -> (code, match) of its terms; a term without codes has those of its nearest ancestor."""
    names: dict[str, list[tuple[str, Match]]] = {}
    for term in ontology:
        source = term.id.split(":")[0]
        lineage = [term, *ontology.ancestors(term)]
        coded = next((candidate for candidate in lineage if _codes_of(candidate)), None)
        if coded is None:
            continue
        named = [(term.name, f"name in {source}", 0.96)]
        for synonym in term.synonyms:
            named.append((synonym.text, f"synonym in {source}", 0.94 if synonym.scope == "EXACT" else 0.6))
        for name, evidence, confidence in named:
            if coded is not term:
                evidence, confidence = f"a kind of {coded.name} in {source}", 0.5
            for code in _codes_of(coded):
                names.setdefault(wording.key(name), []).append((code, Match(confidence, evidence, name)))
    return names


def _codes_of(term: "Term") -> list[str]:
    return [code for code in term.icd10cm if "-" not in code]


@cache
def default_linker() -> Linker:
    """The linker without ontology and encoder, which the command line and the pipeline use."""
    return Linker()
