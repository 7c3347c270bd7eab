"""Definitions of disorders, one sentence each, from `definitions.csv`.

    >>> from radfm.knowledge import definitions
    >>> definitions.define("hepatic abscess").text
    'A collection of pus in the liver.'
    >>> definition = definitions.define("collapsed lung", ["J93.9"])
    >>> definition.name, definition.text
    ('Pneumothorax', 'Air in the pleural space, between the lung and the chest wall, which lets the lung collapse.')

Decisions:
- A name that is not in the table has the definition of its first ICD-10-CM code; `Definition.name` is then the name of
  that code.
- Most rows are the first sentences of definitions in the Disease Ontology (CC0 1.0), of terms that ICD-10-CM has too,
  in chapters that are relevant for imaging, without subtypes by gene. Definitions of the phantoms' disorders that the
  ontology lacks were written for radfm and not reviewed by a physician. Their source is "radfm", and they go first.
- `python -m radfm.knowledge.definitions disease_ontology.obo` writes the ontology's rows again.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from radfm.knowledge import icd10cm, wording

TABLE = "definitions.csv"
OWN = "radfm"

_CHAPTERS = "CDGIJKMNQRST"  # first letters of codes: neoplasms, nervous system, circulatory system, ..., injuries
_BY_GENE = re.compile(r"\b(mutation|chromosome|gene)\b")


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition and its source.

    Attributes:
        name: of the defined disorder.
        text: one sentence.
        source: "radfm", or the identifier of a term of the Disease Ontology, such as "DOID:1686".
    """

    name: str
    text: str
    source: str


def define(name: str, codes: Sequence[str] = ()) -> Definition | None:
    """The definition of a disorder by name, else by its first ICD-10-CM code; None where neither is in the table."""
    definition = _table().get(wording.key(wording.expand(name)))
    if definition is None and codes:
        return _definition_of_code(codes[0])
    return definition


def ontology_definitions(file: Path) -> Iterator[Definition]:
    """The definitions of an ontology in OBO format that go into the table."""
    from radfm.knowledge import disorders, ontology

    for term in sorted(ontology.read(file), key=lambda term: term.id):
        codes = disorders.codes(term.name) if term.definition else []
        if codes and codes[0][0] in _CHAPTERS:
            text = re.split(r"(?<=[a-z)]\.)\s+(?=[A-Z])", term.definition.replace("_", " "))[0]
            if not _BY_GENE.search(text):
                yield Definition(term.name, text, term.id)


def _definition_of_code(code: str) -> Definition | None:
    try:
        description = icd10cm.get(code).description
    except ValueError:  # a code of another edition
        return None
    return _table().get(wording.key(re.sub(r"\bunspecified\b", "", description, flags=re.IGNORECASE)))


@cache
def _table() -> dict[str, Definition]:
    """Definitions by the key of their names; the first of several with the same key."""
    rows = [Definition(**row) for row in wording.read_table(TABLE)]
    return {wording.key(row.name): row for row in reversed(rows)}


if __name__ == "__main__":
    file = Path(__file__).with_name(TABLE)
    own = [row for row in wording.read_table(TABLE) if row["source"] == OWN]
    rows = own + [asdict(one) for one in ontology_definitions(Path(sys.argv[1]))]
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, ["name", "text", "source"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
