"""How well `radfm.knowledge.disorders.link` finds the codes that the curators of an ontology refer to.

Decisions:
- What the linker misses is listed, because curators refer to codes of other levels, or to a similar code where none
  fits. For some misses, a developer of radfm has judged by the tabular list whether a coder would accept the answer
  (`judged.csv`); no certified coder has.
"""

import numpy as np

from radfm.eval.text_encoders import LONGEST_CODE
from radfm.eval.text_tasks import LINKING, Questions, curated_codes, linking_hits
from radfm.knowledge import icd10cm
from radfm.knowledge.linking import Linker
from radfm.knowledge.wording import read_table


def measure_linker(linker: Linker, tested: Questions) -> dict:
    """Task A of `radfm.eval.text_tasks`, how often the confident answers are right, and the misses.

    Returns:
        Figure -> value, and "misses", a list of {"name", "curators": their codes, "answer": the first code, its
        "description", "accepted": whether a coder would accept it, None where this has not been judged}.
    """
    hits, confident, confident_right, count, misses = np.zeros(3), 0, 0, 0, []
    judged = {(row["name"], row["code"]): row["accepted"] == "yes" for row in read_table("judged.csv", "radfm.eval")}
    for term in tested.terms:
        if not (curated := curated_codes(term)):
            continue
        candidates = linker.rank(term.name, top=10)
        ranked = list(dict.fromkeys(candidate.code[:LONGEST_CODE] for candidate in candidates))[:5]
        hits += linking_hits(ranked, curated)
        count += 1
        codes = linker.link(term.name, top=1).codes
        confident += bool(codes)
        confident_right += bool(codes) and codes[0][:3] in {code[:3] for code in curated}
        if not curated & set(ranked[:1]):
            answer = {"answer": ranked[0], "description": icd10cm.get(ranked[0]).description} if ranked else {}
            accepted = judged.get((term.name, answer.get("answer", "")))
            misses.append({"name": term.name, "curators": sorted(curated), **answer, "accepted": accepted})
    figures = dict(zip(LINKING, (hits / count).tolist(), strict=True))
    return figures | {
        "confident": confident / count,
        "category of the confident": confident_right / max(confident, 1),
        "misses": misses,
    }
