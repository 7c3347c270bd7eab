"""A disease ontology in OBO: names, definitions, synonyms, is_a, and cross references to ICD-10-CM.

    >>> doid = read("disease_ontology.obo")
    >>> term = doid["DOID:1686"]
    >>> term.name, term.icd10cm
    ('glaucoma', ('H40',))

Decisions:
- `pronto` parses. It is handed the clauses that are used here and no others, so that a file whose relations or subsets
  it would refuse can still be read, and so that it never fetches an import from the network.
- What breaks one term (an is_a to nowhere, a second term of the same id, a code that ICD-10-CM does not have) costs
  that clause, and is listed in `skipped`. What makes the file something else (not UTF-8, not OBO) is a ValueError.
- An is_a that closes a cycle is skipped, so that going up always ends.
- Codes of the WHO's ICD-10 count where ICD-10-CM has the same code. Obsolete terms are left out.
- What is held out of training is decided by the SHA-256 of an id, so that anyone makes the same split: see `fold`.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from radfm.knowledge import icd10cm

Scope = Literal["EXACT", "NARROW", "BROAD", "RELATED"]

_CLAUSES = ("id", "name", "def", "synonym", "xref", "is_a", "is_obsolete")
_HEADER = ("format-version", "ontology", "data-version", "synonymtypedef", "default-namespace")
_NOTICE = {  # clauses of the header
    "version": r"^data-version:(.+)$",
    "licence": r'^property_value:\s*\S*(?:license|licence)"?\s+"?([^"\s]+)',
    "remark": r"^remark:(.+)$",
}
_ICD10 = re.compile(r"ICD-?10-?(?:CM|WHO)?(?:_[\w.-]+)?:\s*(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Synonym:
    text: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Term:
    """One disease.

    Attributes:
        id: Such as "DOID:1686".
        name: The preferred one.
        definition: "" where there is none.
        synonyms: In the order of the file.
        parent_ids: What it is a kind of.
        icd10cm: Codes its cross references name, as ICD-10-CM writes them; a block such as "I20-I25" is possible.
    """

    id: str
    name: str
    definition: str
    synonyms: tuple[Synonym, ...]
    parent_ids: tuple[str, ...]
    icd10cm: tuple[str, ...]


FOLDS = 5


def fold(identifier: str) -> int:
    """0 to 4: the fifth of all terms (or codes) that this one belongs to, by the SHA-256 of its id."""
    return int(hashlib.sha256(identifier.encode()).hexdigest(), 16) % FOLDS


class Ontology:
    """Terms by id, in the order of their ids.

    Attributes:
        name: Of the ontology, else of the file: "doid".
        terms: id -> Term.
        skipped: (id or file, reason) of everything that was left out.
        notice: What the file says of itself, where it does: "version", "licence", "remark".
    """

    def __init__(
        self, name: str, terms: list[Term], skipped: list[tuple[str, str]], notice: dict[str, str] | None = None
    ):
        self.name, self.notice = name, notice or {}
        self.terms = {term.id: term for term in terms}
        self.skipped = skipped
        self._children: dict[str, list[str]] = {}
        for term in terms:
            for parent in term.parent_ids:
                self._children.setdefault(parent, []).append(term.id)

    def __len__(self) -> int:
        return len(self.terms)

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms.values())

    def __contains__(self, term_id: str) -> bool:
        return term_id in self.terms

    def __getitem__(self, term_id: str) -> Term:
        return self.terms[term_id]

    def parents(self, term: Term) -> list[Term]:
        return [self.terms[parent] for parent in term.parent_ids]

    def children(self, term: Term) -> list[Term]:
        return [self.terms[child] for child in self._children.get(term.id, ())]

    def ancestors(self, term: Term) -> list[Term]:
        """Nearest first, each once."""
        found: dict[str, Term] = {}
        level = self.parents(term)
        while level:
            new = [above for above in dict.fromkeys(a.id for a in level) if above not in found]
            found |= {above: self.terms[above] for above in new}
            level = [up for above in new for up in self.parents(self.terms[above])]
        return list(found.values())


def read(path: str | Path) -> Ontology:
    """An OBO file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not UTF-8, not OBO, or without terms; the message names the file and, where known, the line.
    """
    import pronto

    path = Path(path)
    skipped: list[tuple[str, str]] = []
    whole = _text(path)
    text = _usable(whole, path, skipped)
    try:
        parsed = pronto.Ontology(io.BytesIO(text.encode()), import_depth=0)
    except SyntaxError as error:
        line = text.splitlines()[error.lineno - 1] if error.lineno else ""
        raise ValueError(f"{path} is not valid OBO: {error.msg}, at {line[:80]!r}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not valid OBO: {str(error).splitlines()[0]}") from error
    terms = []
    for term in sorted(parsed.terms(), key=lambda term: term.id):  # pronto's order is another in each process
        if term.obsolete:
            continue
        if not term.name:
            skipped.append((term.id, "has no name"))
            continue
        synonyms = sorted(term.synonyms, key=lambda synonym: (synonym.scope, synonym.description))
        terms.append(
            Term(
                id=term.id,
                name=str(term.name),
                definition=str(term.definition or ""),
                synonyms=tuple(Synonym(synonym.description, synonym.scope) for synonym in synonyms),
                parent_ids=tuple(sorted(p.id for p in term.superclasses(distance=1, with_self=False))),
                icd10cm=_codes(term.id, sorted(xref.id for xref in term.xrefs), skipped),
            )
        )
    if not terms:
        raise ValueError(f"{path} holds no term with a name")
    if not any(term.icd10cm for term in terms):
        skipped.append((path.name, "no term refers to ICD-10-CM: it adds names and relations, but no codes"))
    return Ontology(parsed.metadata.ontology or path.stem, _acyclic(terms, skipped), skipped, _notice(whole))


def _notice(text: str) -> dict[str, str]:
    head = re.split(r"^\[\w+\]", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = {key: re.search(pattern, head, re.MULTILINE | re.IGNORECASE) for key, pattern in _NOTICE.items()}
    return {key: match.group(1).strip() for key, match in found.items() if match}


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8, which OBO is written in; convert the file first") from error


def _usable(text: str, path: Path, skipped: list[tuple[str, str]]) -> str:
    """The header and the terms with the clauses used here, each id once, each is_a to a term that is there."""
    head, *frames = re.split(r"^\[(?=\w+\]\s*$)", text, flags=re.MULTILINE)
    terms: dict[str, list[str]] = {}
    for frame in frames:
        if not frame.startswith("Term]"):
            continue
        lines = [line.strip() for line in frame.splitlines()[1:]]
        found = [line.partition(":")[2].split("!")[0].strip() for line in lines if line.startswith("id:")]
        if not found or not found[0]:
            skipped.append((path.name, f"a term without an id: {' '.join(lines)[:60]!r}"))
        elif found[0] in terms:
            skipped.append((found[0], "a second term of this id; the first counts"))
        else:
            terms[found[0]] = [line for line in lines if line.partition(":")[0] in _CLAUSES]
    if not terms:
        raise ValueError(f"{path} holds no [Term]: is it OBO?")
    kept = [line for line in head.splitlines() if line.partition(":")[0] in _HEADER]
    if not any(line.startswith("format-version") for line in kept):
        kept.insert(0, "format-version: 1.2")
    for term_id, lines in terms.items():
        kept += ["", "[Term]"]
        for line in lines:
            if line.startswith("is_a:"):
                parent = re.split(r"[\s{!]", line.removeprefix("is_a:").strip(), maxsplit=1)[0]
                if parent not in terms or parent == term_id:
                    reason = "which is itself" if parent == term_id else "which is not in the file"
                    skipped.append((term_id, f"is_a {parent}, {reason}"))
                    continue
            kept.append(line)
    return "\n".join(kept) + "\n"


def _codes(term_id: str, xrefs: list[str], skipped: list[tuple[str, str]]) -> tuple[str, ...]:
    codes: dict[str, None] = {}
    for xref in xrefs:
        found = _ICD10.fullmatch(xref)
        if found:
            try:
                codes[icd10cm.normalise(found.group(1))] = None
            except ValueError as error:
                skipped.append((term_id, f"cross reference {xref}: {error}"))
    return tuple(codes)


def _acyclic(terms: list[Term], skipped: list[tuple[str, str]]) -> list[Term]:
    """The terms, less each is_a that leads back to where it started."""
    parents = {term.id: list(term.parent_ids) for term in terms}
    by_id = {term.id: term for term in terms}
    for term in terms:
        for parent in term.parent_ids:
            if parent not in by_id:  # it was left out: obsolete, or without a name
                parents[term.id].remove(parent)
                skipped.append((term.id, f"is_a {parent}, which was left out"))
    done: set[str] = set()
    for start in parents:
        trail = [(start, iter(list(parents[start])))]
        on_trail = {start}
        while trail:
            here, above = trail[-1]
            parent = next(above, None)
            if parent is None:
                trail.pop()
                on_trail.discard(here)
                done.add(here)
            elif parent in on_trail:
                parents[here].remove(parent)
                skipped.append((here, f"is_a {parent} closes a cycle"))
            elif parent not in done:
                trail.append((parent, iter(list(parents[parent]))))
                on_trail.add(parent)
    return [replace(term, parent_ids=tuple(parents[term.id])) for term in terms]
