"""The training data of a text encoder: pairs of texts from ICD-10-CM, ontologies and the tables of `radfm.knowledge`.

Decisions:
- Each kind of knowledge can be left out, so that its contribution can be measured:
  "synonyms" (a name, and another name of the same term), "initials" (what a name's initials spell, as in AHDS for
  Allan-Herndon-Dudley syndrome, where those of no other term are the same), "definitions" (a name and its definition),
  "parents" (two terms, and how near they are in the ontology), "inclusion terms" (every name that ICD-10-CM has for a
  code, and its description), "cross references" (a term of an ontology and the description of its code), "common
  names" (radfm's own tables of names, words and abbreviations), "hierarchy" (two codes, and how near they are).
- A child and its parent are similar, not the same: as a positive of the ranking loss, a parent would rank above the
  term itself. So the similarity in the hierarchy is graded, in the ontology as in ICD-10-CM.
- No text of a held-out term is used: neither its name nor synonyms nor definition. Nor is any of a term that shares a
  name or synonym with it, in any ontology: two ontologies have many diseases in common. The words of ICD-10-CM itself
  are not held out. Of the hierarchy, categories are held out by the same rule.
- Pairs of different lengths are separate ("names", "definitions"), since the cost of a batch is that of its longest
  text.
- Negatives are similar terms: rows are in the order of the trees, with siblings next to each other, and batches consist
  of such neighbours (`batches`), so that they are hard negatives of each other at no cost.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from datasets import Dataset

from radfm.knowledge import icd10cm, wording
from radfm.knowledge.lexicon import Lexicon
from radfm.knowledge.ontology import Ontology, Term, fold
from radfm.knowledge.wording import STOP_WORDS

Kind = Literal[
    "synonyms",
    "initials",
    "definitions",
    "parents",
    "inclusion terms",
    "cross references",
    "common names",
    "hierarchy",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LONGEST_CODE = 6  # characters with the dot: below, the tree of injuries repeats itself by side and encounter
_EXTERNAL_CAUSES = "VWXY"  # chapter 20: how it happened, never a finding
_MAX_DISTANCE = 12  # steps between two codes of different chapters, at most, down to that length
_INFORMATIVE = {  # sources of `Lexicon` whose names differ from the description
    "common name",
    "inclusion term",
    "includes note",
    "excludes note",
    "name in brackets",
    "description but for what is unspecified",
}


def text_pairs(
    ontologies: Sequence[Ontology] = (),
    kinds: Iterable[str] = KINDS,
    held_out: int | None = None,
    hierarchy_pairs: int = 20_000,
    seed: int = 0,
) -> dict[str, Dataset]:
    """Data sets for sentence-transformers' losses, those that are not empty of:

    - "names", "definitions": columns anchor, positive, in the order of the trees, for a ranking loss;
    - "hierarchy": columns first, second, score (0 for unrelated to 1 for the same), for CoSENT.

    Args:
        held_out: the fold (0 to 4, see `radfm.knowledge.ontology.fold`) of terms and categories that are left out.
        hierarchy_pairs: number of sampled pairs of codes, and of terms of each ontology.

    Raises:
        ValueError: there is no such kind of knowledge, or nothing is left.
    """
    kinds = set(kinds)
    if unknown := kinds.difference(KINDS):
        raise ValueError(f"no such kind of knowledge: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    rng = random.Random(seed)
    names: list[tuple[str, str]] = []
    definitions: list[tuple[str, str]] = []
    graded: list[dict] = []
    excluded = _held_out_names(ontologies, held_out)
    for ontology in ontologies:
        usable = _usable_names(ontology, held_out, excluded)
        names += _of_ontology(ontology, usable, kinds)
        if "initials" in kinds:
            names += _of_initials(usable)
        if "definitions" in kinds:
            definitions += [(known[0], _readable(ontology[term].definition)) for term, known in usable.items()]
        if "parents" in kinds:
            graded += _graded_terms(ontology, usable, hierarchy_pairs, rng)
    if kinds & {"inclusion terms", "common names"}:
        names += _of_codes(kinds)
    if "common names" in kinds:
        names += _of_tables()
    if "hierarchy" in kinds:
        graded += _hierarchy(hierarchy_pairs, held_out, rng)
    tables = {"names": _pairs(names), "definitions": _pairs(definitions), "hierarchy": Dataset.from_list(graded)}
    tables = {name: rows for name, rows in tables.items() if len(rows)}
    if not tables:
        raise ValueError("no pairs: no kind of knowledge is left")
    return tables


def _held_out_names(ontologies: Sequence[Ontology], held_out: int | None) -> set[str]:
    """Keys of every name that a term of the held-out fold has, in any of the ontologies."""
    return {
        wording.key(text)
        for ontology in ontologies
        for term in ontology
        if fold(term.id) == held_out
        for text in _known(term)
    }


def _usable_names(ontology: Ontology, held_out: int | None, excluded: set[str]) -> dict[str, list[str]]:
    """Id -> the name and exact synonyms that are not held out, the name first, in the order of the tree."""
    usable = {}
    for term in ontology:
        if fold(term.id) == held_out or any(wording.key(text) in excluded for text in _known(term)):
            continue
        exact = [synonym.text for synonym in term.synonyms if synonym.scope == "EXACT"]
        usable[term.id] = list(dict.fromkeys([term.name, *exact]))
    return {term_id: usable[term_id] for term_id in _in_tree_order(ontology) if term_id in usable}


def _known(term: Term) -> list[str]:
    return [term.name, *(synonym.text for synonym in term.synonyms)]


def _in_tree_order(ontology: Ontology) -> list[str]:
    """Ids, depth first and siblings by name, so that neighbours in the list are related."""
    stack = sorted((term for term in ontology if not term.parent_ids), key=lambda term: term.name, reverse=True)
    order: dict[str, None] = {}
    while stack:
        term = stack.pop()
        if term.id not in order:
            order[term.id] = None
            stack += sorted(ontology.children(term), key=lambda child: child.name, reverse=True)
    return list(order)


def _of_ontology(ontology: Ontology, usable: dict[str, list[str]], kinds: set[str]) -> Iterator[tuple[str, str]]:
    for term_id, (name, *synonyms) in usable.items():
        synonyms = synonyms if "synonyms" in kinds else []
        yield from ((synonym, name) for synonym in synonyms)
        if "cross references" in kinds:
            for code in _short(ontology[term_id].icd10cm):
                yield from ((known, icd10cm.get(code).description) for known in (name, *synonyms))


def _of_initials(usable: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Initials and the name they stand for, of names of three to six words that no other term's initials spell.

    And names as short as initials, in capitals: ASTHMA stands for itself.
    """
    spelled: dict[str, dict[str, str]] = {}  # initials -> term -> the first of its names that has them
    for term_id, known in usable.items():
        for name in known:
            if 3 <= sum(map(str.isalpha, short := _initials(name))) <= 6:
                spelled.setdefault(short, {}).setdefault(term_id, name)
    for short, terms in spelled.items():
        if len(terms) == 1:
            yield short, next(iter(terms.values()))
    yield from (
        (name.upper(), name) for known in usable.values() for name in known if name.isalpha() and len(name) <= 6
    )


def _initials(name: str) -> str:
    """ "Charcot-Marie-Tooth disease type 2A" -> "CMTD2A"."""
    words = re.findall(r"\d+[a-z]?|[^\W\d_]+", re.sub(r"['’]s\b", "", name.casefold()))
    informative = (word for word in words if word not in STOP_WORDS and word != "type")
    return "".join(word if word[0].isdigit() else word[0] for word in informative).upper()


def _graded_terms(ontology: Ontology, usable: dict[str, list[str]], count: int, rng: random.Random) -> Iterator[dict]:
    """Pairs of terms: parent, sibling, cousin (by the nearest common ancestor) or unrelated, as many of each."""
    terms = list(usable)
    for _ in range(count):
        first = ontology[rng.choice(terms)]
        up, above = rng.randrange(4), first
        for _ in range(min(up, 2)):
            above = rng.choice(ontology.parents(above) or [above])
        if up == 0:
            second, steps = (ontology.parents(first) or [first])[0], 1
        elif up < 3:
            second, steps = above, up
            for _ in range(up):
                second = rng.choice(ontology.children(second) or [second])
                steps += 1
        else:
            second, steps = ontology[rng.choice(terms)], _MAX_DISTANCE
        if second.id in usable and second.id != first.id:
            yield {"first": usable[first.id][0], "second": usable[second.id][0], "score": 1 - steps / _MAX_DISTANCE}


def _of_codes(kinds: set[str]) -> Iterator[tuple[str, str]]:
    """The names that ICD-10-CM has for a code, beside its description."""
    lexicon = Lexicon()
    for code, name, source in zip(lexicon.codes, lexicon.names, lexicon.sources, strict=True):
        kind = "common names" if source == "common name" else "inclusion terms"
        description = icd10cm.get(code).description
        if kind in kinds and source in _INFORMATIVE and len(code) <= _LONGEST_CODE and code[0] not in _EXTERNAL_CAUSES:
            yield name, description


def _of_tables() -> Iterator[tuple[str, str]]:
    for row in wording.read_table("abbreviations.csv"):
        yield row["short"].upper() if row["short"].islower() else row["short"], row["expansion"]
    for row in wording.read_table("words.csv"):
        yield row["variant"], row["canonical"]


def _hierarchy(count: int, held_out: int | None, rng: random.Random) -> Iterator[dict]:
    """Pairs of codes at every distance: siblings, cousins, of one block, of one chapter, unrelated; as many of each."""
    codes = [e.code for e in icd10cm.entries("category", "subcategory") if len(e.code) <= _LONGEST_CODE]
    codes = [code for code in codes if fold(code[:3]) != held_out]
    family = {code: (code, *(above.code for above in icd10cm.get(code).ancestors)) for code in codes}
    below: dict[str, list[str]] = {}
    for code, lineage in family.items():
        for above in lineage[1:]:
            below.setdefault(above, []).append(code)
    for _ in range(count):
        first = rng.choice(codes)
        ancestor = rng.choice([*family[first][1:], None])
        second = rng.choice(below[ancestor] if ancestor else codes)
        score = 1 - icd10cm.distance(first, second) / _MAX_DISTANCE
        texts = icd10cm.get(first).description, icd10cm.get(second).description
        yield {"first": texts[0], "second": texts[1], "score": max(score, 0.0)}


def _short(codes: Iterable[str]) -> list[str]:
    return [code for code in codes if "-" not in code and len(code) <= _LONGEST_CODE]


def _readable(definition: str) -> str:
    """Relations of the Disease Ontology are written "has_material_basis_in"."""
    return re.sub(r"(?<=[a-z])_(?=[a-z])", " ", definition)


def _pairs(pairs: Iterable[tuple[str, str]]) -> Dataset:
    """Each pair once, none of a text with itself or with nothing."""
    return Dataset.from_list([{"anchor": a, "positive": p} for a, p in dict.fromkeys(pairs) if a != p and a and p])
