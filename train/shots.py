"""A few training cases of each class: `data.shots=5`.

Decisions:
- A class is a disorder; normal cases are a class too where the data has some.
- The choice depends on the seed and the data alone, so that fine-tuning and training from scratch use the same cases.
  Cases are chosen for the rarest classes first, and a case counts for each of its disorders.
- There are no synthetic cases beside them: their generator has learned from all training cases.
- A second case of a patient adds little information: it is chosen only when no other patient is left.
"""

import sys
from collections.abc import Sequence

import numpy as np

from radfm.data_prep.stored_cases import StoredCases, patient_of


def few_shots(cases: StoredCases, shots: int | None, seed: int = 0) -> list[int]:
    """The rows of the chosen cases, in order; classes with fewer cases are listed on standard error.

    Raises:
        ValueError: less than one case of each class.
    """
    if shots is None:
        return list(range(len(cases)))
    if shots < 1:
        raise ValueError(f"shots are at least 1 case of each class, not {shots}")
    patients = [patient_of(row) for row in cases.rows]
    rows, short = choose([row["labels"] for row in cases.rows], patients, shots, seed)
    if short:
        names = [f"{'normal' if c is None else cases.vocabulary.names[c]} {n}" for c, n in list(short.items())[:5]]
        more = f" and {len(short) - 5:,} more" if len(short) > 5 else ""
        print(f"{len(short):,} classes have fewer than {shots} cases: {', '.join(names)}{more}", file=sys.stderr)
    return rows


def choose(
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
        candidates = cases_of[disorder]
        missing = shots - sum(case in chosen for case in candidates)
        used = {patients[case] for case in candidates if case in chosen}
        second_cases = []
        for case in candidates:
            if missing <= 0:
                break
            if case in chosen:
                continue
            if patients[case] in used:
                second_cases.append(case)
                continue
            chosen.add(case)
            used.add(patients[case])
            missing -= 1
        chosen.update(second_cases[: max(missing, 0)])
    return sorted(chosen), {c: len(cases_of[c]) for c in rarest_first if len(cases_of[c]) < shots}
