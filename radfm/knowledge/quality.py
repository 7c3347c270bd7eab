"""How well names are linked to ICD-10-CM, measured.

    python -m radfm.knowledge.quality disease_ontology.obo --part look
    python -m radfm.knowledge.quality --names disorder_label_dict.json

Decisions:
- The test is what an ontology's curators wrote: a term's name in, its cross references to ICD-10-CM as the answer,
  among all codes of up to five characters. The linker is not given the ontology.
- Parts by SHA-256 of the term's id, modulo 5, so that anyone makes the same: 1 to 3 to "tune" on, 4 to "look" at,
  0 is "kept" for final figures.
- The curators' level of detail is often a matter of taste (E11 or E11.9): the category is therefore counted too.
"""

import argparse
import json
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

from radfm.knowledge import icd10cm, ontology
from radfm.knowledge.linking import Linker

PARTS = {"tune": (1, 2, 3), "look": (4,), "kept": (0,)}


def part_of(term_id: str) -> str:
    fold = int(sha256(term_id.encode()).hexdigest(), 16) % 5
    return next(part for part, folds in PARTS.items() if fold in folds)


def shorten(code: str) -> str:
    """The code, or what is above it with five characters."""
    return code if len(code) <= 6 else icd10cm.normalise(code[:6])


def measure(linker: Linker, terms: list[ontology.Term]) -> dict:
    """Accuracy of the first code, of the first five, of the first category; and of what is called confident."""
    hits = Counter()
    for term in terms:
        wanted = {code for code in term.icd10cm if "-" not in code and len(code) <= 6}
        if not wanted:
            continue
        hits["terms"] += 1
        ranked = linker.rank(term.name, top=10)
        codes = list(dict.fromkeys(shorten(found.code) for found in ranked))[:5]
        first = codes[0] if codes else ""
        category = first[:3] in {code[:3] for code in wanted}
        hits["accuracy@1"] += first in wanted
        hits["accuracy@5"] += bool(wanted & set(codes))
        hits["category@1"] += category
        if linker.link(term.name).verdict == "confident":
            hits["confident"] += 1
            hits["confident, category right"] += category
    total = hits.pop("terms")
    sure = hits.pop("confident, category right") / max(hits["confident"], 1)
    figures = {name: round(count / total, 3) for name, count in hits.items()}
    return {"terms": total, **figures, "category@1 of the confident": round(sure, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("obo", type=Path, nargs="?", help="an ontology with cross references to ICD-10-CM")
    parser.add_argument("--part", choices=PARTS, default="look", help="of its terms, by SHA-256 of the id")
    parser.add_argument("--names", type=Path, help="a JSON list or dictionary of names: how many can be linked")
    parser.add_argument("--encoder", help="a folder or name for sentence-transformers, as further evidence")
    arguments = parser.parse_args()
    linker = Linker(**_encoder(arguments.encoder))
    if arguments.obo:
        terms = [term for term in ontology.read(arguments.obo) if part_of(term.id) == arguments.part]
        started = time.perf_counter()
        figures = measure(linker, terms)
        seconds = time.perf_counter() - started
        print(json.dumps({"part": arguments.part, **figures, "seconds": round(seconds, 1)}))
    if arguments.names:
        names = list(json.loads(arguments.names.read_text(encoding="utf-8")))
        started = time.perf_counter()
        verdicts = Counter(linker.link(name, top=1).verdict for name in names)
        seconds = time.perf_counter() - started
        print(json.dumps({"names": len(names), **verdicts, "seconds": round(seconds, 1)}))


def _encoder(name: str | None) -> dict:
    if name is None:
        return {}
    from sentence_transformers import SentenceTransformer

    return {"encoder": SentenceTransformer(name), "fingerprint": name}


if __name__ == "__main__":
    main()
