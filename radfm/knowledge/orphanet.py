"""Rare diseases: ORPHA codes of Orphanet's nomenclature, by name, from `orphanet.csv`.

    >>> from radfm.knowledge import orphanet
    >>> disease = orphanet.find("Giant cell arteritis")
    >>> disease.name, disease.orpha, disease.source
    ('temporal arteritis', ('ORPHA:397',), 'DOID:13375')

Decisions:
- A disease is rare if at most 1 person in 2,000 has it, Orphanet's definition.
- The table has the terms of the Disease Ontology (CC0 1.0) that refer to Orphanet. It gives no prevalence; an ontology
  that does fills the column.
- Some terms are common, and refer to an entry of Orphanet that is not rare or is a rare form only: "prostate cancer" to
  familial prostate cancer. Those of `not_rare.csv` are left out. radfm's authors wrote that list; no physician reviewed
  it.
- A disease is found by its name or an exact synonym, never by its ICD-10-CM code, because most codes of rare diseases
  have common ones, too. A synonym of two diseases, or of fewer than five characters, finds none.
- `python -m radfm.knowledge.orphanet disease_ontology.obo` writes the table again, from one ontology or several.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from radfm.knowledge import wording

if TYPE_CHECKING:
    from radfm.knowledge.ontology import Ontology

TABLE, NOT_RARE = "orphanet.csv", "not_rare.csv"
COLUMNS = ("name", "synonyms", "orpha", "prevalence", "source")

_BETWEEN = "|"  # of synonyms and of codes in the table
_SHORTEST = 5  # characters of a synonym: shorter ones are initials with several meanings


@dataclass(frozen=True, slots=True)
class RareDisease:
    """A disease of Orphanet's nomenclature.

    Attributes:
        name, synonyms: in the ontology; the synonyms are exact ones.
        orpha: codes, such as "ORPHA:397"; several where the ontology refers to several entries.
        prevalence: in Orphanet's classes, such as "1-9 / 100 000"; "" where unknown.
        source: the identifier of the term in its ontology.
    """

    name: str
    synonyms: tuple[str, ...]
    orpha: tuple[str, ...]
    prevalence: str
    source: str


class RareDiseases:
    """Finds rare diseases by name. Of two with the same name, the first counts."""

    def __init__(self, diseases: Iterable[RareDisease]):
        self.diseases = list(diseases)
        left_out = {_key(row["name"]) for row in wording.read_table(NOT_RARE)}
        self._by_key: dict[str, RareDisease | None] = {}
        for disease in self.diseases:
            for key in {wording.key(synonym) for synonym in disease.synonyms if len(synonym) >= _SHORTEST}:
                other = self._by_key.get(key, disease)
                self._by_key[key] = disease if other is not None and other.orpha == disease.orpha else None
        self._by_key |= {wording.key(disease.name): disease for disease in reversed(self.diseases)}
        self._by_key |= dict.fromkeys(left_out)

    def find(self, name: str) -> RareDisease | None:
        """The disease of a name or exact synonym, in any spelling that `wording` knows; None where there is none."""
        return self._by_key.get(_key(name))

    def codes(self, name: str) -> list[str]:
        """The ORPHA codes of a name, [] where it is no rare disease here."""
        disease = self.find(name)
        return list(disease.orpha) if disease else []


def find(name: str) -> RareDisease | None:
    """The rare disease of a name or exact synonym in the table of radfm; None where there is none."""
    return shipped().find(name)


def codes(name: str) -> list[str]:
    """The ORPHA codes of a name, [] where it is no rare disease of the table."""
    return shipped().codes(name)


def of_ontology(ontology: "Ontology") -> Iterator[RareDisease]:
    """The terms of an ontology that have ORPHA codes and are not in `not_rare.csv`."""
    left_out = {_key(row["name"]) for row in wording.read_table(NOT_RARE)}
    for term in ontology:
        if term.orpha and _key(term.name) not in left_out:
            exact = tuple(synonym.text for synonym in term.synonyms if synonym.scope == "EXACT")
            yield RareDisease(term.name, exact, term.orpha, term.prevalence, term.id)


def write_table(ontologies: Iterable["Ontology"], file: Path) -> None:
    """Writes the rare diseases of ontologies as a table that `find` can read."""
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(COLUMNS)
        for disease in (one for ontology in ontologies for one in of_ontology(ontology)):
            synonyms = _BETWEEN.join(text for text in disease.synonyms if _BETWEEN not in text)
            orpha = _BETWEEN.join(disease.orpha)
            table.writerow([disease.name, synonyms, orpha, disease.prevalence, disease.source])


def _key(name: str) -> str:
    return wording.key(wording.expand(name))


@cache
def shipped() -> RareDiseases:
    """The table that comes with radfm."""
    return RareDiseases(
        RareDisease(
            row["name"],
            tuple(row["synonyms"].split(_BETWEEN)) if row["synonyms"] else (),
            tuple(row["orpha"].split(_BETWEEN)),
            row["prevalence"],
            row["source"],
        )
        for row in wording.read_table(TABLE)
    )


if __name__ == "__main__":
    from radfm.knowledge import ontology

    write_table([ontology.read(file) for file in sys.argv[1:]], Path(__file__).with_name(TABLE))
