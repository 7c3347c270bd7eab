"""A few cases of each class, for learning from little: `shots: 5`.

Decisions:
- A class is a disorder, or having none: normal cases are a class where the data has some.
- Which cases follows from the seed and the data alone, so that a model that is fine-tuned and one that is trained from
  scratch see the same ones. The rarest classes choose first, and a case counts for every disorder it has.
- Two cases of one patient tell little more than one: a class takes the second when no other patient is left.
"""

import sys
from collections.abc import Sequence

import numpy as np

from radfm.data_prep.stored_cases import StoredCases, patient_of


def few_shots(cases: StoredCases, shots: int | None, seed: int = 0) -> list[int]:
    """Rows of the chosen cases, in order; says on standard error which classes have fewer. None: all of them.

    Raises:
        ValueError: less than one case of each class.
    """
    if shots is None:
        return list(range(len(cases)))
    if shots < 1:
        raise ValueError(f"shots are at least 1 case of each class, not {shots}")
    patients = [patient_of(row) for row in cases.rows]
    rows, short = draw([row["labels"] for row in cases.rows], patients, shots, seed)
    if short:
        names = [f"{'normal' if c is None else cases.vocabulary.names[c]} {n}" for c, n in list(short.items())[:5]]
        more = f" and {len(short) - 5:,} more" if len(short) > 5 else ""
        print(f"{len(short):,} classes have fewer than {shots} cases: {', '.join(names)}{more}", file=sys.stderr)
    return rows


def draw(
    labels: Sequence[Sequence[int]], patients: Sequence[str], shots: int, seed: int
) -> tuple[list[int], dict[int | None, int]]:
    """
    Args:
        labels: (cases,) lists of disorders; an empty one is the class None.
        patients: (cases,) whose case it is.
    Returns:
        The chosen cases, and how many the classes have that have fewer than `shots`, the rarest first.
    """
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    cases_of: dict[int | None, list[int]] = {}
    for case in order:
        for disorder in labels[case] or [None]:
            cases_of.setdefault(disorder, []).append(case)
    rarest_first = sorted(cases_of, key=lambda c: (len(cases_of[c]), -1 if c is None else c))
    chosen: set[int] = set()
    for disorder in rarest_first:
        mine = cases_of[disorder]
        missing = shots - sum(case in chosen for case in mine)
        seen = {patients[case] for case in mine if case in chosen}
        again = []
        for case in mine:
            if missing <= 0:
                break
            if case in chosen:
                continue
            if patients[case] in seen:
                again.append(case)
                continue
            chosen.add(case)
            seen.add(patients[case])
            missing -= 1
        chosen.update(again[: max(missing, 0)])
    return sorted(chosen), {c: len(cases_of[c]) for c in rarest_first if len(cases_of[c]) < shots}
