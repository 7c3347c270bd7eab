"""The disorders a model can name: names, synonyms, descriptions, and ICD-10-CM codes with their confidence and source.

    >>> from radfm.knowledge import disorders
    >>> disorders.codes("Pneumothorax")
    ['J93.9']
    >>> print(disorders.link("ACL tear").candidates[0].description)
    Sprain of anterior cruciate ligament of knee
    >>> vocabulary = disorders.Vocabulary.from_names(["Pneumothorax", "Segond fracture"])
    >>> vocabulary.save("checkpoint/")

Decisions:
- A vocabulary is an ordered list: the position of a disorder is its row in a model's logits.
- What cannot be used (a name that is empty or comes twice, a code that is not in ICD-10-CM) is listed in `skipped`
  and does not stop the rest.
- Codes found by linking are stored with their confidence, doubtful ones too. `Disorder.icd10cm` gives the sure ones.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from radfm.knowledge import icd10cm, wording
from radfm.knowledge.linking import CONFIDENT, LONGEST_NAME, Candidate, Link, Linker, default_linker

if TYPE_CHECKING:
    from radfm.knowledge.ontology import Ontology, Term

__all__ = ["Candidate", "Coding", "Disorder", "Link", "Linker", "Vocabulary", "codes", "link"]

FILE = "disorders.json"
Style = Literal["name", "description", "synonyms", "path"]

_FORMAT = 1


def link(text: str, top: int = 5) -> Link:
    """The ICD-10-CM codes that a name may mean, best first, and whether to believe it: see `Linker.link`."""
    return default_linker().link(text, top)


@overload
def codes(names: str) -> list[str]: ...
@overload
def codes(names: Sequence[str]) -> list[list[str]]: ...
def codes(names):
    """The ICD-10-CM codes to show beside a disorder's name, [] when unsure; for a list of names a list of such lists.

    Raises:
        ValueError: A name is empty or longer than 300 characters.
    """
    return default_linker().codes([names])[0] if isinstance(names, str) else default_linker().codes(names)


@dataclass(frozen=True, slots=True)
class Coding:
    """A code of a disorder, how sure it is (0 to 1), and where it came from."""

    code: str
    confidence: float
    source: str


@dataclass(frozen=True, slots=True)
class Disorder:
    """One diagnosis.

    Attributes:
        name: As the user or the data set has it.
        synonyms: Other names of the same.
        description: A sentence on what it is; "" where there is none.
        codings: ICD-10-CM codes, the surest first.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    description: str = ""
    codings: tuple[Coding, ...] = ()

    @property
    def icd10cm(self) -> list[str]:
        """The codes to use without looking."""
        return [coding.code for coding in self.codings if coding.confidence >= CONFIDENT]

    def prompts(self, style: Style) -> list[str]:
        """Texts that stand for the disorder; where there are several, their embeddings are to be averaged.

        Args:
            style: "name"; "description", the name alone and with its description; "synonyms", the name and each of
                them; "path", the name with the descriptions above its surest code. What a disorder lacks is left out.
        """
        if style == "name":
            return [self.name]
        if style == "description":
            return [self.name, f"{self.name}: {self.description}"] if self.description else [self.name]
        if style == "synonyms":
            return [self.name, *self.synonyms]
        if style == "path":
            above = icd10cm.get(self.icd10cm[0]).path[:-1] if self.icd10cm else ()
            return [" > ".join([*above, self.name])]
        raise ValueError(f"no such style of prompt: {style!r}; there are name, description, synonyms, path")


class Vocabulary(Sequence[Disorder]):
    """Disorders in the order of a model's logits.

    Attributes:
        skipped: (name or line, reason) of everything that was left out.
    """

    def __init__(self, disorders: Iterable[Disorder], skipped: Iterable[tuple[str, str]] = ()):
        self.skipped = list(skipped)
        self._disorders: list[Disorder] = []
        self._rows: dict[str, int] = {}
        for disorder in disorders:
            reason = self._refuse(disorder.name)
            if reason:
                self.skipped.append((disorder.name[:80], reason))
                continue
            self._rows[_plain(disorder.name)] = len(self._disorders)
            self._disorders.append(disorder)

    def __len__(self) -> int:
        return len(self._disorders)

    def __getitem__(self, row):
        return self._disorders[row]

    def __iter__(self) -> Iterator[Disorder]:
        return iter(self._disorders)

    @property
    def names(self) -> list[str]:
        return [disorder.name for disorder in self._disorders]

    def find(self, name: str) -> Disorder | None:
        """The disorder of this name, whatever its capitals and spaces."""
        row = self._rows.get(_plain(name))
        return None if row is None else self._disorders[row]

    @classmethod
    def from_names(
        cls, names: Iterable[str], linker: Linker | None = None, ontology: "Ontology | None" = None
    ) -> "Vocabulary":
        """Disorders by name alone, linked to ICD-10-CM; with an ontology also its synonyms and definitions."""
        linker = linker or default_linker()
        terms = _terms_by_key(ontology) if ontology else {}
        disorders = []
        for name in names:
            term = terms.get(wording.key(name))
            synonyms = tuple(s.text for s in term.synonyms if s.scope == "EXACT") if term else ()
            description = term.definition if term else ""
            disorders.append(Disorder(name, synonyms, description, _linked(name, linker)))
        return cls(disorders)

    @classmethod
    def from_csv(cls, path: str | Path, linker: Linker | None = None) -> "Vocabulary":
        """A table with a column `name` and, where wanted, `synonyms` and `codes` (split by ";") and `description`.

        A disorder without codes is linked.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not UTF-8, or has no column `name`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: save it as UTF-8 first") from error
        rows = csv.DictReader(text.splitlines())
        if "name" not in (rows.fieldnames or ()):
            raise ValueError(f"{path} has no column 'name', but {', '.join(rows.fieldnames or ['nothing'])}")
        linker = linker or default_linker()
        disorders, skipped = [], []
        for row in rows:
            name = (row["name"] or "").strip()
            codings = []
            for code in _split(row.get("codes")):
                try:
                    codings.append(Coding(icd10cm.normalise(code), 1.0, "given"))
                except ValueError as error:
                    skipped.append((f"line {rows.line_num}: {name}"[:80], str(error)))
            codings = tuple(codings) or _linked(name, linker)
            description = (row.get("description") or "").strip()
            disorders.append(Disorder(name, tuple(_split(row.get("synonyms"))), description, codings))
        return cls(disorders, skipped)

    @classmethod
    def from_ontology(cls, ontology: "Ontology", linker: Linker | None = None) -> "Vocabulary":
        """Every term of an ontology; those without cross references to ICD-10-CM are linked."""
        linker = linker or default_linker()
        disorders = []
        for term in ontology:
            source = f"cross reference in {term.id.split(':')[0]}"
            codings = tuple(Coding(code, 0.95, source) for code in term.icd10cm) or _linked(term.name, linker)
            disorders.append(Disorder(term.name, tuple(s.text for s in term.synonyms), term.definition, codings))
        return cls(disorders, ontology.skipped)

    def save(self, folder: str | Path) -> Path:
        """Writes `disorders.json` into a checkpoint's folder, which is made where needed; returns the file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "icd10cm": icd10cm.edition(), "disorders": [asdict(d) for d in self]}
        file = folder / FILE
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, folder: str | Path) -> "Vocabulary":
        """What `save` wrote.

        Raises:
            FileNotFoundError: The folder holds no `disorders.json`.
            ValueError: It is not one that `save` wrote.
        """
        file = Path(folder) / FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r}")
            disorders = [
                Disorder(d["name"], tuple(d["synonyms"]), d["description"], tuple(Coding(**c) for c in d["codings"]))
                for d in content["disorders"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no vocabulary of format {_FORMAT}: {error}") from error
        return cls(disorders)

    def _refuse(self, name: str) -> str | None:
        if not name.strip():
            return "the name is empty"
        if len(name) > LONGEST_NAME:
            return f"{len(name):,} characters are no name: at most {LONGEST_NAME}"
        return "the name came before" if _plain(name) in self._rows else None


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _split(cell: str | None) -> list[str]:
    return [part.strip() for part in (cell or "").split(";") if part.strip()]


def _linked(name: str, linker: Linker) -> tuple[Coding, ...]:
    if not name.strip() or len(name) > LONGEST_NAME:
        return ()
    found = linker.link(name, top=3)
    kept = found.candidates[:1] if found.verdict == "confident" else found.candidates
    return tuple(Coding(c.code, c.confidence, c.evidence) for c in kept)


def _terms_by_key(ontology: "Ontology") -> "dict[str, Term]":
    """A name outranks a synonym, the first of either the later."""
    terms: dict[str, Term] = {}
    for term in ontology:
        terms.setdefault(wording.key(term.name), term)
    for term in ontology:
        for synonym in term.synonyms:
            if synonym.scope == "EXACT":
                terms.setdefault(wording.key(synonym.text), term)
    return terms
