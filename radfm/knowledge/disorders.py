"""Disorders and vocabularies: names, synonyms, descriptions, and ICD-10-CM codes with their confidence and source.

    >>> from radfm.knowledge import disorders
    >>> disorders.codes("Pneumothorax")
    ['J93.9']
    >>> print(disorders.link("ACL tear").candidates[0].description)
    Sprain of anterior cruciate ligament of knee
    >>> vocabulary = disorders.Vocabulary.from_names(["Pneumothorax", "Segond fracture"])
    >>> vocabulary.save("checkpoint/")

Decisions:
- A vocabulary is an ordered list: the position of a disorder is its column in a model's logits.
- Names that cannot be used (empty, too long, repeated) are listed in `skipped`; the other disorders are kept.
- Codes from linking are stored with their confidence, also doubtful ones. `Disorder.icd10cm` has the confident ones.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, overload

from radfm.knowledge import icd10cm, orphanet
from radfm.knowledge.linking import CONFIDENT, LONGEST_NAME, Candidate, Link, Linker, default_linker

__all__ = ["Candidate", "Coding", "Disorder", "Link", "Linker", "Vocabulary", "codes", "link"]

FILE = "disorders.json"
Style = Literal["name", "description", "synonyms", "path"]

_FORMAT = 1


def link(text: str, top: int = 5) -> Link:
    """The ICD-10-CM codes that a name may mean, best first, and whether the best is confident: see `Linker.link`."""
    return default_linker().link(text, top)


@overload
def codes(names: str) -> list[str]: ...  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
@overload
def codes(names: Sequence[str]) -> list[list[str]]: ...
def codes(names):
    """The confident ICD-10-CM codes of a disorder's name, [] where there are none; for a list of names a list of lists.

    Raises:
        ValueError: a name is empty or longer than 300 characters.
    """
    return default_linker().codes([names])[0] if isinstance(names, str) else default_linker().codes(names)


@dataclass(frozen=True, slots=True)
class Coding:
    """A code of a disorder, its confidence (0 to 1), and its source, such as "exact description" or "given"."""

    code: str
    confidence: float
    source: str


@dataclass(frozen=True, slots=True)
class Disorder:
    """One diagnosis.

    Attributes:
        name: as in the data set or as given by the user.
        synonyms: other names of the same disorder.
        description: one sentence; "" where there is none.
        codings: ICD-10-CM codes, by decreasing confidence.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    description: str = ""
    codings: tuple[Coding, ...] = ()

    @property
    def icd10cm(self) -> list[str]:
        """The codes whose confidence is at least 0.9, which need no review."""
        return [coding.code for coding in self.codings if coding.confidence >= CONFIDENT]

    @property
    def orpha(self) -> list[str]:
        """The ORPHA codes of a rare disease by its name, such as ["ORPHA:30391"], else []: see `orphanet`."""
        return orphanet.codes(self.name)

    def prompts(self, style: Style) -> list[str]:
        """Texts to embed for the disorder; the embeddings of several texts are averaged.

        Args:
            style: "name"; "description": the name, and the name with the description; "synonyms": the name and each
                synonym; "path": the name after the descriptions of the entries above its most confident code. Parts
                that a disorder lacks are left out.
        Raises:
            ValueError: an unknown style.
        """
        if style == "name":
            return [self.name]
        if style == "description":
            return [self.name, f"{self.name}: {self.description}"] if self.description else [self.name]
        if style == "synonyms":
            return [self.name, *self.synonyms]
        if style == "path":
            parents = icd10cm.get(self.icd10cm[0]).path[:-1] if self.icd10cm else ()
            return [" > ".join([*parents, self.name])]
        raise ValueError(f"no such style of prompt: {style!r}; there are name, description, synonyms, path")


class Vocabulary(Sequence[Disorder]):
    """Disorders in the order of a model's logits.

    Attributes:
        skipped: (name, reason) of every disorder that was left out.
    """

    def __init__(self, disorders: Iterable[Disorder], skipped: Iterable[tuple[str, str]] = ()):
        self.skipped = list(skipped)
        self._disorders: list[Disorder] = []
        self._rows: dict[str, int] = {}
        for disorder in disorders:
            reason = self._problem(disorder.name)
            if reason:
                self.skipped.append((disorder.name[:80], reason))
                continue
            self._rows[_normalised(disorder.name)] = len(self._disorders)
            self._disorders.append(disorder)

    def __len__(self) -> int:
        return len(self._disorders)

    def __getitem__(self, row):
        return self._disorders[row]

    def __iter__(self) -> Iterator[Disorder]:
        return iter(self._disorders)

    @property
    def names(self) -> list[str]:
        """In the order of the logits."""
        return [disorder.name for disorder in self._disorders]

    def find(self, name: str) -> Disorder | None:
        """The disorder of a name, ignoring case and repeated spaces; None where there is none."""
        row = self._rows.get(_normalised(name))
        return None if row is None else self._disorders[row]

    @classmethod
    def from_names(cls, names: Iterable[str], linker: Linker | None = None) -> "Vocabulary":
        """Disorders by name alone, linked to ICD-10-CM by `linker`, or by the default one."""
        linker = linker or default_linker()
        return cls(Disorder(name, codings=_linked(name, linker)) for name in names)

    def save(self, folder: str | Path) -> Path:
        """Write `disorders.json` into a folder, which is created if missing. Returns the file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "icd10cm": icd10cm.edition(), "disorders": [asdict(d) for d in self]}
        file = folder / FILE
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, folder: str | Path) -> "Vocabulary":
        """Read the vocabulary that `save` wrote into a folder.

        Raises:
            FileNotFoundError: the folder has no `disorders.json`.
            ValueError: the file is damaged or of another format.
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

    def _problem(self, name: str) -> str | None:
        """Why a name cannot be added; None where it can."""
        if not name.strip():
            return "the name is empty"
        if len(name) > LONGEST_NAME:
            return f"{len(name):,} characters are no name: at most {LONGEST_NAME}"
        return "the name came before" if _normalised(name) in self._rows else None


def _normalised(name: str) -> str:
    return " ".join(name.casefold().split())


def _linked(name: str, linker: Linker) -> tuple[Coding, ...]:
    """The confident code of a name, else up to three doubtful ones; none for a name that cannot be linked."""
    if not name.strip() or len(name) > LONGEST_NAME:
        return ()
    result = linker.link(name, top=3)
    kept = result.candidates[:1] if result.verdict == "confident" else result.candidates
    return tuple(Coding(candidate.code, candidate.confidence, candidate.evidence) for candidate in kept)
