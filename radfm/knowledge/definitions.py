"""What a disorder is, in a sentence: `definitions.csv`.

    >>> from radfm.knowledge import definitions
    >>> definitions.define("hepatic abscess").text
    'A collection of pus in the liver.'
    >>> found = definitions.define("collapsed lung", ["J93.9"])
    >>> found.name, found.text
    ('Pneumothorax', 'Air in the pleural space, between the lung and the chest wall, which lets the lung collapse.')

Decisions:
- A name that is not in the table is defined by what its first ICD-10-CM code is of; `name` then says what is defined.
- Most rows are the Disease Ontology's (CC0 1.0), their first sentence: terms that ICD-10-CM names, too, in chapters
  that images show something of, and no subtypes by gene. Those that it lacks of the phantoms' disorders were written
  for radfm, without a doctor's review; their source is "radfm", and they go first.
- The ontology's rows are written anew by `python -m radfm.knowledge.definitions disease_ontology.obo`.
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

_CHAPTERS = "CDGIJKMNQRST"  # letters of codes: tumours, nerves, heart, lungs, bowel, bones, kidneys, malformations, ...
_BY_GENE = re.compile(r"\b(mutation|chromosome|gene)\b")


@dataclass(frozen=True, slots=True)
class Definition:
    """
    Attributes:
        name: Of what is defined.
        text: A sentence.
        source: "radfm", or a term of the Disease Ontology, such as "DOID:1686".
    """

    name: str
    text: str
    source: str


def define(name: str, codes: Sequence[str] = ()) -> Definition | None:
    """What a disorder is, by its name, else by its first ICD-10-CM code; None where neither is known."""
    found = _table().get(wording.key(wording.expand(name)))
    if found is None and codes:
        found = _of_code(codes[0])
    return found


def of_ontology(file: Path) -> Iterator[Definition]:
    """What the table takes of an ontology, OBO."""
    from radfm.knowledge import disorders, ontology

    for term in sorted(ontology.read(file), key=lambda term: term.id):
        codes = disorders.codes(term.name) if term.definition else []
        if codes and codes[0][0] in _CHAPTERS:
            text = re.split(r"(?<=[a-z)]\.)\s+(?=[A-Z])", term.definition.replace("_", " "))[0]
            if not _BY_GENE.search(text):
                yield Definition(term.name, text, term.id)


def _of_code(code: str) -> Definition | None:
    try:
        description = icd10cm.get(code).description
    except ValueError:  # of another edition
        return None
    return _table().get(wording.key(re.sub(r"\bunspecified\b", "", description, flags=re.IGNORECASE)))


@cache
def _table() -> dict[str, Definition]:
    """Definitions by the key of their names; of two with the same key the first."""
    rows = [Definition(**row) for row in wording.read_table(TABLE)]
    return {wording.key(row.name): row for row in reversed(rows)}


if __name__ == "__main__":
    file = Path(__file__).with_name(TABLE)
    own = [row for row in wording.read_table(TABLE) if row["source"] == OWN]
    rows = own + [asdict(one) for one in of_ontology(Path(sys.argv[1]))]
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, ["name", "text", "source"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
