"""What a text encoder is taught: pairs of texts out of ICD-10-CM, ontologies and the tables of `radfm.knowledge`.

Decisions:
- Kinds of knowledge are columns that can be left out, so that each can be measured by its absence:
  "synonyms" (a name and another name of the same term), "definitions" (a name and what it means), "parents" (a term
  and what it is a kind of), "inclusion terms" (every name that ICD-10-CM has for a code, and its description),
  "cross references" (a term of an ontology and the description of its code), "common names" (radfm's own tables of
  names, words and abbreviations), "hierarchy" (two codes, and how near they are in the tree).
- A term of the held-out fold gives nothing: neither its name nor synonyms nor definition, and where another term of
  the ontology bears the same name, not that either. ICD-10-CM's own words are nobody's to hold out. Of the hierarchy,
  categories are held out, by the same rule.
- Pairs of unlike length are apart ("names", "definitions"), since a batch costs what its longest text costs.
- Negatives are what is easily mistaken: a sibling in the tree of codes or of terms, and failing that another code of
  the same block. In the batch all others are negatives too.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from datasets import Dataset

from radfm.knowledge import icd10cm, wording
from radfm.knowledge.lexicon import Lexicon
from radfm.knowledge.ontology import Ontology, Term, fold

Kind = Literal["synonyms", "definitions", "parents", "inclusion terms", "cross references", "common names", "hierarchy"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LONGEST_CODE = 6  # characters with the dot: below, the tree of injuries repeats itself by side and encounter
_EXTERNAL_CAUSES = "VWXY"  # chapter 20: how it happened, never what is seen
_FARTHEST = 12  # steps between two codes of different chapters, at most, down to that length


def text_pairs(
    ontologies: Sequence[Ontology] = (),
    kinds: Iterable[Kind] = KINDS,
    held_out: int | None = None,
    hierarchy_pairs: int = 20_000,
    seed: int = 0,
) -> dict[str, Dataset]:
    """Data sets for sentence-transformers' losses, those that are not empty of:

    - "names", "definitions": columns anchor, positive, negative, for a ranking loss;
    - "hierarchy": columns first, second, score (0 in another chapter to 1 for the same code), for CoSENT.

    Args:
        held_out: the fold (0 to 4, see `radfm.knowledge.ontology.fold`) of terms and categories that give nothing.
        hierarchy_pairs: how many pairs of codes to draw.

    Raises:
        ValueError: there is no such kind of knowledge, or nothing is left.
    """
    kinds = set(kinds)
    if unknown := kinds.difference(KINDS):
        raise ValueError(f"no such kind of knowledge: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    rng = random.Random(seed)
    names: dict[tuple[str, str], str] = {}  # (anchor, positive) -> negative
    definitions: dict[tuple[str, str], str] = {}
    for ontology in ontologies:
        told = _told(ontology, held_out)
        _add(names, _of_ontology(ontology, told, kinds, rng))
        if "definitions" in kinds:
            _add(definitions, _definitions(ontology, told, rng))
    if kinds & {"inclusion terms", "common names"}:
        _add(names, _of_codes(kinds, rng))
    if "common names" in kinds:
        _add(names, _of_tables(rng))
    found = {
        "names": _triplets(names),
        "definitions": _triplets(definitions),
        "hierarchy": Dataset.from_list(
            list(_hierarchy(hierarchy_pairs, held_out, rng)) if "hierarchy" in kinds else []
        ),
    }
    found = {name: rows for name, rows in found.items() if len(rows)}
    if not found:
        raise ValueError("nothing to learn from: no kind of knowledge is left")
    return found


def _told(ontology: Ontology, held_out: int | None) -> dict[str, list[str]]:
    """Id -> the name and exact synonyms that may be learned, the name first; no entry for a term held out."""
    secret = {
        wording.key(text)
        for term in ontology
        if fold(term.id) == held_out
        for text in (term.name, *(synonym.text for synonym in term.synonyms))
    }
    told = {}
    for term in ontology:
        if fold(term.id) == held_out or wording.key(term.name) in secret:
            continue
        others = [s.text for s in term.synonyms if s.scope == "EXACT" and wording.key(s.text) not in secret]
        told[term.id] = list(dict.fromkeys([term.name, *others]))
    return told


def _of_ontology(
    ontology: Ontology, told: dict[str, list[str]], kinds: set[str], rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    for term_id, (name, *synonyms) in told.items():
        term = ontology[term_id]
        negative = _sibling_term(ontology, told, term, rng)
        if "synonyms" in kinds:
            for synonym in synonyms:
                yield synonym, name, negative
        if "parents" in kinds:
            for parent in ontology.parents(term):
                if parent.id in told:
                    yield name, parent.name, _stranger(told, rng)
        if "cross references" in kinds:
            for code in _short(term.icd10cm):
                for known in (name, *synonyms) if "synonyms" in kinds else (name,):
                    yield known, icd10cm.get(code).description, _sibling_code(code, rng)


def _definitions(ontology: Ontology, told: dict[str, list[str]], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    for term_id, known in told.items():
        term = ontology[term_id]
        other = _sibling_term(ontology, told, term, rng)
        if term.definition:
            yield known[0], _readable(term.definition), other


def _of_codes(kinds: set[str], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Every name that ICD-10-CM has for a code beside its description."""
    lexicon = Lexicon()
    for code, name, source in zip(lexicon.codes, lexicon.names, lexicon.sources, strict=True):
        kind = "common names" if source == "common name" else "inclusion terms"
        description = icd10cm.get(code).description
        if kind in kinds and len(code) <= _LONGEST_CODE and code[0] not in _EXTERNAL_CAUSES and name != description:
            yield name, description, _sibling_code(code, rng)


def _of_tables(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    abbreviations = wording.read_table("abbreviations.csv")
    for row in abbreviations:
        short = row["short"].upper() if row["short"].islower() else row["short"]
        yield short, row["expansion"], rng.choice(abbreviations)["expansion"]
    words = wording.read_table("words.csv")
    for row in words:
        yield row["variant"], row["canonical"], rng.choice(words)["canonical"]


def _hierarchy(count: int, held_out: int | None, rng: random.Random) -> Iterator[dict]:
    """Pairs of codes at every distance: siblings, cousins, of one block, of one chapter, strangers; as many of each."""
    codes = [e.code for e in icd10cm.entries("category", "subcategory") if len(e.code) <= _LONGEST_CODE]
    codes = [code for code in codes if fold(code[:3]) != held_out]
    family = {code: (code, *(above.code for above in icd10cm.get(code).ancestors)) for code in codes}
    below: dict[str, list[str]] = {}
    for code, lineage in family.items():
        for above in lineage[1:]:
            below.setdefault(above, []).append(code)
    for _ in range(count):
        first = rng.choice(codes)
        above = rng.choice([*family[first][1:], None])
        second = rng.choice(below[above] if above else codes)
        score = 1 - icd10cm.distance(first, second) / _FARTHEST
        texts = icd10cm.get(first).description, icd10cm.get(second).description
        yield {"first": texts[0], "second": texts[1], "score": max(score, 0.0)}


def _sibling_term(ontology: Ontology, told: dict[str, list[str]], term: Term, rng: random.Random) -> str:
    siblings = [
        told[child.id][0]
        for parent in ontology.parents(term)
        for child in ontology.children(parent)
        if child.id != term.id and child.id in told
    ]
    return rng.choice(siblings) if siblings else _stranger(told, rng)


def _stranger(told: dict[str, list[str]], rng: random.Random) -> str:
    return told[rng.choice(list(told))][0]


def _sibling_code(code: str, rng: random.Random) -> str:
    """The description of a code that has the same parent, or failing that the same block."""
    entry = icd10cm.get(code)
    for above in entry.ancestors:
        others = [child for child in above.children if child.code not in (code, *(a.code for a in entry.ancestors))]
        if others:
            return rng.choice(others).description
    return above.description


def _short(codes: Iterable[str]) -> list[str]:
    return [code for code in codes if "-" not in code and len(code) <= _LONGEST_CODE]


def _readable(definition: str) -> str:
    """Relations of the Disease Ontology are written "has_material_basis_in"."""
    return re.sub(r"(?<=[a-z])_(?=[a-z])", " ", definition)


def _add(pairs: dict[tuple[str, str], str], more: Iterable[tuple[str, str, str]]) -> None:
    for anchor, positive, negative in more:
        if anchor != positive and negative not in (anchor, positive):
            pairs.setdefault((anchor, positive), negative)


def _triplets(pairs: dict[tuple[str, str], str]) -> Dataset:
    rows = [{"anchor": a, "positive": p, "negative": n} for (a, p), n in pairs.items()]
    return Dataset.from_list(rows)
