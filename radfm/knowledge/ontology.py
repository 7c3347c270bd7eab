"""Reads disease ontologies in OBO format: names, definitions, synonyms, is_a, codes of ICD-10-CM and Orphanet.

    >>> doid = read("disease_ontology.obo")
    >>> term = doid["DOID:1686"]
    >>> term.name, term.icd10cm
    ('glaucoma', ('H40',))

Decisions:
- `pronto` parses the file. It is given only the clauses that are used here, so that files whose relations or subsets it
  refuses can be read, and so that it never downloads an import.
- An invalid clause of a term (an is_a to a missing term, a repeated id, a code that ICD-10-CM does not have) is left
  out and listed in `skipped`. A file that is not UTF-8 or not OBO is a ValueError.
- An is_a that closes a cycle is left out, so that every path upwards ends.
- Codes of the WHO's ICD-10 are used where ICD-10-CM has the same code. Obsolete terms are left out.
- Orphanet's codes are written ORPHA:540, whatever the prefix (ORDO, Orphanet, ORPHA) is in the file. A prevalence is
  read wherever a clause of a term has one in Orphanet's classes, such as "1-9 / 100 000".
- Terms are held out of training by the SHA-256 of their id, so that the split is reproducible: see `fold`.
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
_ORPHA = re.compile(r"(?:ORPHA|Orphanet|ORDO)(?:CODE)?[:_](?:Orphanet_)?(\d+)", re.IGNORECASE)
_PREVALENCE = re.compile(r"^(?:property_value|relationship):.*?([<>]?\s?\d+(?:-\d+)? ?/ ?1[ 0]*000)\b")


@dataclass(frozen=True, slots=True)
class Synonym:
    """Another name of a term, and how it relates to it (the scope of OBO)."""

    text: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Term:
    """One disease.

    Attributes:
        id: such as "DOID:1686".
        name: the preferred name.
        definition: "" where there is none.
        synonyms: by scope, then by text.
        parent_ids: ids of the terms that it is_a subtype of.
        icd10cm: codes of its cross references as ICD-10-CM writes them; also blocks such as "I20-I25".
        orpha: Orphanet's codes, of its cross references or its own, such as "ORPHA:540".
        prevalence: such as "1-9 / 100 000"; "" where the file does not give it.
    """

    id: str
    name: str
    definition: str
    synonyms: tuple[Synonym, ...]
    parent_ids: tuple[str, ...]
    icd10cm: tuple[str, ...]
    orpha: tuple[str, ...] = ()
    prevalence: str = ""


FOLDS = 5


def fold(identifier: str) -> int:
    """The fold of a term or code, 0 to 4, by the SHA-256 of its identifier."""
    return int(hashlib.sha256(identifier.encode()).hexdigest(), 16) % FOLDS


class Ontology:
    """Terms by id, in the order of their ids; a read-only mapping that iterates over the terms.

    Attributes:
        name: of the ontology, else of the file, such as "doid".
        terms: id -> Term.
        skipped: (id or file, reason) of everything that was left out.
        notice: "version", "licence" and "remark" of the file's header, where it has them.
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
        """All terms above a term, the nearest first, each once."""
        ancestors: dict[str, Term] = {}
        level = self.parents(term)
        while level:
            new = {parent.id: parent for parent in level if parent.id not in ancestors}
            ancestors |= new
            level = [grandparent for parent in new.values() for grandparent in self.parents(parent)]
        return list(ancestors.values())


def read(path: str | Path) -> Ontology:
    """Read an OBO file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not OBO, or has no terms; the message names the file and, where known, the line.
    """
    import pronto

    path = Path(path)
    skipped: list[tuple[str, str]] = []
    whole = _text(path)
    prevalences: dict[str, str] = {}
    text = _usable(whole, path, skipped, prevalences)
    try:
        parsed = pronto.Ontology(io.BytesIO(text.encode()), import_depth=0)
    except SyntaxError as error:
        line = text.splitlines()[error.lineno - 1] if error.lineno else ""
        raise ValueError(f"{path} is not valid OBO: {error.msg}, at {line[:80]!r}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not valid OBO: {str(error).splitlines()[0]}") from error
    terms = []
    for term in sorted(parsed.terms(), key=lambda term: term.id):  # the order of pronto differs between processes
        if term.obsolete:
            continue
        if not term.name:
            skipped.append((term.id, "has no name"))
            continue
        xrefs = sorted(xref.id for xref in term.xrefs)
        synonyms = sorted(term.synonyms, key=lambda synonym: (synonym.scope, synonym.description))
        terms.append(
            Term(
                id=term.id,
                name=str(term.name),
                definition=str(term.definition or ""),
                synonyms=tuple(Synonym(synonym.description, synonym.scope) for synonym in synonyms),
                parent_ids=tuple(sorted(p.id for p in term.superclasses(distance=1, with_self=False))),
                icd10cm=_codes(term.id, xrefs, skipped),
                orpha=_orpha([term.id, *xrefs]),
                prevalence=prevalences.get(term.id, ""),
            )
        )
    if not terms:
        raise ValueError(f"{path} holds no term with a name")
    if not any(term.icd10cm for term in terms):
        skipped.append((path.name, "no term refers to ICD-10-CM: it adds names and relations, but no codes"))
    return Ontology(parsed.metadata.ontology or path.stem, _acyclic(terms, skipped), skipped, _notice(whole))


def _notice(text: str) -> dict[str, str]:
    head = re.split(r"^\[\w+\]", text, maxsplit=1, flags=re.MULTILINE)[0]
    matches = {key: re.search(pattern, head, re.MULTILINE | re.IGNORECASE) for key, pattern in _NOTICE.items()}
    return {key: match.group(1).strip() for key, match in matches.items() if match}


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8, which OBO is written in; convert the file first") from error


def _usable(text: str, path: Path, skipped: list[tuple[str, str]], prevalences: dict[str, str]) -> str:
    """The header and the terms with only the clauses used here, without repeated ids and is_a to missing terms.

    The prevalences of terms that have one are added to `prevalences`.
    """
    head, *frames = re.split(r"^\[(?=\w+\]\s*$)", text, flags=re.MULTILINE)
    terms: dict[str, list[str]] = {}
    for frame in frames:
        if not frame.startswith("Term]"):
            continue
        lines = [line.strip() for line in frame.splitlines()[1:]]
        ids = [line.partition(":")[2].split("!")[0].strip() for line in lines if line.startswith("id:")]
        if not ids or not ids[0]:
            skipped.append((path.name, f"a term without an id: {' '.join(lines)[:60]!r}"))
        elif ids[0] in terms:
            skipped.append((ids[0], "a second term of this id; the first counts"))
        else:
            terms[ids[0]] = [line for line in lines if line.partition(":")[0] in _CLAUSES]
            if match := next(filter(None, map(_PREVALENCE.match, lines)), None):
                prevalences[ids[0]] = match.group(1).strip()
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
        match = _ICD10.fullmatch(xref)
        if match:
            try:
                codes[icd10cm.normalise(match.group(1))] = None
            except ValueError as error:
                skipped.append((term_id, f"cross reference {xref}: {error}"))
    return tuple(codes)


def _orpha(identifiers: list[str]) -> tuple[str, ...]:
    """The codes of Orphanet among identifiers of any ontology."""
    matches = [match for identifier in identifiers if (match := _ORPHA.fullmatch(identifier))]
    return tuple(dict.fromkeys(f"ORPHA:{int(match.group(1))}" for match in matches))


def _acyclic(terms: list[Term], skipped: list[tuple[str, str]]) -> list[Term]:
    """The terms without is_a to terms that were left out and without is_a that close a cycle (depth-first search)."""
    parents = {term.id: list(term.parent_ids) for term in terms}
    by_id = {term.id: term for term in terms}
    for term in terms:
        for parent in term.parent_ids:
            if parent not in by_id:  # the parent is obsolete or has no name
                parents[term.id].remove(parent)
                skipped.append((term.id, f"is_a {parent}, which was left out"))
    done: set[str] = set()
    for start in parents:
        trail = [(start, iter(list(parents[start])))]
        on_trail = {start}
        while trail:
            term_id, remaining = trail[-1]
            ancestor = next(remaining, None)
            if ancestor is None:
                trail.pop()
                on_trail.discard(term_id)
                done.add(term_id)
            elif ancestor in on_trail:
                parents[term_id].remove(ancestor)
                skipped.append((term_id, f"is_a {ancestor} closes a cycle"))
            elif ancestor not in done:
                trail.append((ancestor, iter(list(parents[ancestor]))))
                on_trail.add(ancestor)
    return [replace(term, parent_ids=tuple(parents[term.id])) for term in terms]
