"""From a disorder's name to ICD-10-CM codes, with how sure, and why.

    >>> found = Linker().link("ACL tear")
    >>> found.verdict, found.candidates[0].code, found.candidates[0].evidence
    ('confident', 'S83.51', 'common name')

Decisions:
- Evidence is of two kinds. Equal words (whatever their order, spelling and number) as one of a code's names are
  believed as far as the name is; likeness (TF-IDF, and cosine of an encoder where one is given) is a doubt by nature,
  and is called confident only where next to nothing differs.
- A name is tried as it stands, with abbreviations written out, without what its brackets say, and without side and
  encounter. From the code found we then go down the tree while the name says more: "fracture of patella, left" is
  S82.0 and then S82.00, "left" alone chooses no child because S82.00 says it only through its own children.
- Of two codes that equally bear the name, one above the other, the higher wins: a name that says no more codes no more.
- Nothing near enough is "unlinked", without candidates. What is doubtful is shown, and never handed on as a code.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from radfm.knowledge import icd10cm, wording
from radfm.knowledge.lexicon import SIDES, SOURCES, Lexicon

if TYPE_CHECKING:
    from radfm.knowledge.ontology import Ontology, Term

Verdict = Literal["confident", "doubtful", "unlinked"]
Encoder = Callable[[list[str]], np.ndarray]

CONFIDENT, DOUBTFUL = 0.90, 0.30
ENCODER = 0.8  # its share of a likeness, where there is one; the rest is by words
_CHAPTERS = {"O": 0.8, "P": 0.85, "R": 0.97, "V": 0.5, "W": 0.5, "X": 0.5, "Y": 0.5, "Z": 0.6}  # pregnancy, history...
LONGEST_NAME = 300  # characters; what is longer is a report, not a name

_ARTICLE = re.compile(  # what Radiopaedia and textbooks add to a disorder to name a page about it
    r"\((?:[\w -]*\b)?(?:mnemonics?|summary|overview|general|basic|differential|differential diagnosis|staging|grading|"
    r"classifications?|diagnostic criteria|historical|an approach|approach|disambiguation|manifestations?|in the exam)"
    r"\b[^)]*\)|\bin the exam$|\b(?:classification|staging|grading) of\b|\b(?:classification|staging|grading)$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,3}[a-z]?|[ivx]+[a-z]?")  # of a subtype
_ENCOUNTER = re.compile(r"\b(?:initial|subsequent) encounter\b.*$|\bsequela\b", re.IGNORECASE)
_UNSAID = re.compile(r"\b(?:unspecified|NOS|not otherwise specified|not elsewhere classified)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A code that a name may mean.

    Attributes:
        code: ICD-10-CM.
        description: Of the code.
        path: Descriptions from the chapter down to the code.
        confidence: 0 to 1: how often such evidence is right.
        evidence: What it rests on, such as "exact description", "inclusion term", "lexical", "synonym in doid".
        matched: The name of the code that was met.
    """

    code: str
    description: str
    path: tuple[str, ...]
    confidence: float
    evidence: str
    matched: str


@dataclass(frozen=True, slots=True)
class Link:
    """What a name was linked to.

    Attributes:
        text: The name as given.
        verdict: "confident", "doubtful" (look before you use it) or "unlinked".
        candidates: Best first; none where unlinked.
    """

    text: str
    verdict: Verdict
    candidates: tuple[Candidate, ...]

    @property
    def codes(self) -> list[str]:
        """The code to use without looking: of the first candidate where confident, else []."""
        return [self.candidates[0].code] if self.verdict == "confident" else []

    def to_dict(self) -> dict:
        """For `json.dumps`."""
        return {**asdict(self), "codes": self.codes}


@dataclass(frozen=True, slots=True)
class Seen:
    """Why a code is a candidate."""

    confidence: float
    evidence: str
    name: str


class Linker:
    """Links names to codes; made once, used for many names.

    Args:
        ontology: Further names: of each term with cross references to ICD-10-CM, see `radfm.knowledge.ontology`.
        encoder: Takes a list of texts and returns (n, d) vectors, or has such a method `encode`. Any length, any scale.
        fingerprint: Names the encoder, its weights included. Given, the vectors of the codes are kept in the cache.
    """

    def __init__(
        self,
        ontology: "Ontology | None" = None,
        encoder: Encoder | None = None,
        fingerprint: str | None = None,
    ):
        self.lexicon = Lexicon()
        self._vectors = None
        self._ontology_names: dict[str, list[tuple[str, Seen]]] = {}
        if ontology is not None:
            self._ontology_names = _names_of(ontology)
        if encoder is not None:
            from radfm.knowledge.embedding import NameVectors

            whole = ("exact description", "inclusion term", "common name")
            self._embedded = np.flatnonzero([source in whole for source in self.lexicon.sources])
            names = [self.lexicon.names[row] for row in self._embedded]
            self._vectors = NameVectors(names, encoder, fingerprint)

    def link(self, text: str, top: int = 5) -> Link:
        """The codes that a name may mean, best first.

        Raises:
            ValueError: The name is empty or longer than 300 characters, or `top` is below 1.
            TypeError: The name is not a string.
        """
        candidates = tuple(found for found in self.rank(text, top) if found.confidence >= DOUBTFUL)
        if not candidates:
            return Link(text, "unlinked", ())
        return Link(text, "confident" if candidates[0].confidence >= CONFIDENT else "doubtful", candidates)

    def rank(self, text: str, top: int = 5) -> list[Candidate]:
        """The nearest codes, best first, however far they are. Raises as `link`."""
        _check(text, top)
        found = self._exact(text)
        if top > len(found) or max(seen.confidence for seen in found.values()) < CONFIDENT:
            found = self._near(text, 3 * top + 10) | found
        said = set(wording.words(wording.expand(text)))
        lowered: dict[str, Seen] = {}
        for code, seen in found.items():
            _keep(lowered, _descend(code, said), seen)
        for code, seen in _kin(_by_confidence(lowered)).items():
            _keep(lowered, code, seen)
        ranked = _by_confidence(lowered)
        candidates = []
        for code, seen in ranked[:top]:
            entry, confidence = icd10cm.get(code), round(seen.confidence, 3)
            candidates.append(Candidate(code, entry.description, entry.path, confidence, seen.evidence, seen.name))
        return candidates

    def codes(self, texts: Sequence[str]) -> list[list[str]]:
        """For each name the code to use without looking, [] when unsure. As `link`, without what it does not need."""
        return [self.link(text, top=1).codes for text in texts]

    def _exact(self, text: str) -> dict[str, Seen]:
        """Codes of which the text is a name."""
        found: dict[str, Seen] = {}
        for words, belief in self._readings(text):
            key = " ".join(sorted(set(words)))
            for row in self.lexicon.exact(key):
                source = self.lexicon.sources[row]
                _keep(found, self.lexicon.codes[row], Seen(SOURCES[source] * belief, source, self.lexicon.names[row]))
            for code, seen in self._ontology_names.get(key, ()):
                _keep(found, code, replace(seen, confidence=seen.confidence * belief))
        return _settle(found)

    def _readings(self, text: str) -> list[tuple[list[str], float]]:
        """The words of the text in every way it can be read, each with how far that still means the text."""
        readings = []
        for form, belief in _forms(text):
            for written in dict.fromkeys((form, wording.expand(form))):
                words = wording.words(written)
                readings.append((words, belief))
                readings.append(([word for word in words if word not in SIDES], belief))
                corrected = self.lexicon.corrected(words)
                if corrected != words:
                    readings.append((corrected, belief * 0.9))  # a guess, never confident
                if len(words) > 1 and _NUMBER.fullmatch(words[-1]):
                    unnumbered = words[:-2] if words[-2] == "type" else words[:-1]
                    readings.append((unnumbered, belief * 0.88))
        return readings

    def _near(self, text: str, top: int) -> dict[str, Seen]:
        """Codes that have a name like the text."""
        words = [word for word in wording.words(wording.expand(_topic(text))) if word not in SIDES]
        words = self.lexicon.corrected(words)
        if not words:
            return {}
        by_word, by_gram = self.lexicon.cosines(words)
        rows = (0.5 * by_word + 0.5 * by_gram) * self._priors
        scores, evidence = self.lexicon.best_of_codes(rows), "lexical"
        if self._vectors is not None:
            likeness = np.zeros_like(rows)
            likeness[self._embedded] = self._vectors.cosines(wording.expand(_topic(text)))
            scores = (1 - ENCODER) * scores + ENCODER * self.lexicon.best_of_codes(likeness * self._priors)
            evidence = "lexical and embedding"
        found = {}
        for i in np.argpartition(-scores, top)[:top]:
            first, end = self.lexicon.rows_of_code(i)
            name = self.lexicon.names[first + int(np.argmax(rows[first:end]))]
            found[self.lexicon.unique_codes[i]] = Seen(_believe(float(scores[i])), evidence, name)
        return found

    @cached_property
    def _priors(self) -> np.ndarray:
        """(rows,) below 1 for names that a text means only if it says so."""
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
    return " ".join(_UNSAID.sub(" ", _ENCOUNTER.sub(" ", _ARTICLE.sub(" ", text))).split())


def _forms(text: str) -> list[tuple[str, float]]:
    """What the text is a name of, and how surely: without the words about the page, then without its brackets."""
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


def _keep(found: dict[str, Seen], code: str, seen: Seen) -> None:
    if code not in found or seen.confidence > found[code].confidence:
        found[code] = seen


def _settle(found: dict[str, Seen]) -> dict[str, Seen]:
    """Doubts a name that codes which do not contain one another bear equally well."""
    strongest = max((seen.confidence for seen in found.values()), default=0.0)
    rivals = [code for code, seen in found.items() if seen.confidence >= strongest - 0.012]
    settled = {}
    for code, seen in found.items():
        apart = [o for o in rivals if not o.startswith(code) and not code.startswith(o)]
        doubt = 1.0 if not apart else 0.91 if all(o[:3] == code[:3] for o in apart) else 0.88
        settled[code] = replace(seen, confidence=seen.confidence * doubt)
    return settled


def _by_confidence(found: dict[str, Seen]) -> list[tuple[str, Seen]]:
    return sorted(found.items(), key=lambda item: (-item[1].confidence, len(item[0]), item[0]))


def _kin(ranked: list[tuple[str, Seen]]) -> dict[str, Seen]:
    """Other answers to the same: of the best code all that is above it, the nearest first, and below it the child for
    what is unspecified; and what the first three have in common, where none of them is surely meant."""
    kin: dict[str, Seen] = {}
    for code, seen in ranked[:1]:
        entry = icd10cm.get(code)
        for steps, above in enumerate(entry.ancestors):
            if above.kind in ("category", "subcategory"):
                share = 0.7 * 0.85**steps
                kin[above.code] = replace(seen, confidence=share * seen.confidence, evidence=f"above {code}")
        below = [child for child in entry.children if child.kind != "extension" and _UNSAID.search(child.description)]
        if below:
            kin[below[-1].code] = replace(seen, confidence=0.7 * seen.confidence, evidence=f"below {code}")
    if len(ranked) >= 3:
        first, second, third = (code for code, _ in ranked[:3])
        pair = icd10cm.common_ancestor(first, second)
        shared = pair and icd10cm.common_ancestor(pair.code, third)
        if shared and shared.kind in ("category", "subcategory"):
            _keep(kin, shared.code, replace(ranked[2][1], evidence=f"above {first}, {second}, {third}"))
    return kin


def _descend(code: str, said: set[str]) -> str:
    """The code below that says more of what the text says, and nothing else."""
    entry = icd10cm.get(code)
    here = set(wording.words(entry.description))
    while True:
        closer = []
        for child in entry.children:
            added = set(wording.words(child.description)) - here
            if added and added <= said - here:
                closer.append((len(added), child))
        if not closer:
            return entry.code
        entry = max(closer, key=lambda found: found[0])[1]
        here |= set(wording.words(entry.description))


def _believe(score: float) -> float:
    """Confidence of a likeness: measured on names whose code is known, by `radfm evaluate text`."""
    return 0.84 / (1 + math.exp(-9.0 * (score - 0.62)))


def _names_of(ontology: "Ontology") -> dict[str, list[tuple[str, Seen]]]:
    """Key of a name -> codes the ontology has for it; for a term without codes, those of the nearest above it."""
    names: dict[str, list[tuple[str, Seen]]] = {}
    for term in ontology:
        source = term.id.split(":")[0]
        bearers = [term, *ontology.ancestors(term)]
        bearer = next((above for above in bearers if _codes_of(above)), None)
        if bearer is None:
            continue
        named = [(term.name, f"name in {source}", 0.96)]
        for synonym in term.synonyms:
            named.append((synonym.text, f"synonym in {source}", 0.94 if synonym.scope == "EXACT" else 0.6))
        for name, evidence, belief in named:
            if bearer is not term:
                evidence, belief = f"a kind of {bearer.name} in {source}", 0.5
            for code in _codes_of(bearer):
                names.setdefault(wording.key(name), []).append((code, Seen(belief, evidence, name)))
    return names


def _codes_of(term: "Term") -> list[str]:
    return [code for code in term.icd10cm if "-" not in code]


@cache
def default_linker() -> Linker:
    """Without ontology and encoder: what the command line and the pipeline use."""
    return Linker()
