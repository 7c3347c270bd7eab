"""Splits patients into train, validation and test, or into folds, stratified by disorder. No patient is in two parts.

Decisions:
- An official split is kept. A patient in several official splits goes to the last of train, validation and test, so
  that no patient of the test split is in training.
- The other patients are assigned by iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification of
  multi-label data", ECML PKDD 2011): disorders from rare to frequent, each patient to the split that lacks the disorder
  most. The only patient of a disorder goes to training.
- The result depends on the patients' identifiers and the seed, not on the order of the patients.
- Folds are assigned in the same way, with equal shares and always the same seed: they follow from the data set alone,
  and nothing has to be stored.
- The library iterative-stratification is not used. It takes no account of patients with an official split, depends on
  the order of the rows, and installs a top-level package `tests`. For 5,000 patients with 200 disorders it is as close
  to the exact shares (0.25 cases on average, here 0.27), in four times the time: `benchmarks/data.py splits`.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from radfm.data_prep.plan import SPLITS

Part = TypeVar("Part", bound=Hashable)  # a split, or the number of a fold


def official_splits(splits: Mapping[str, set[str]]) -> tuple[dict[str, str], list[str]]:
    """One official split for each patient, and the patients that were in several.

    Args:
        splits: patient -> the official splits of its cases.
    """
    chosen = {patient: max(stated, key=SPLITS.index) for patient, stated in splits.items() if stated}
    return chosen, sorted(patient for patient, stated in splits.items() if len(stated) > 1)


def assign_splits(
    labels: Mapping[str, Sequence[str]],
    official: Mapping[str, str],
    fractions: tuple[float, float, float],
    seed: int,
) -> dict[str, str]:
    """Patient -> split.

    Args:
        labels: patient -> disorders of all its cases.
        official: patient -> split, for patients with an official split.
        fractions: shares of all patients for train, validation and test; patients with an official split count.
        seed: of the order in which patients are assigned.
    """
    return _stratified(labels, official, dict(zip(SPLITS, fractions, strict=True)), seed)


def assign_folds(labels: Mapping[str, Sequence[str]], count: int) -> dict[str, int]:
    """Patient -> fold, 0 to count - 1.

    Args:
        labels: patient -> all that the folds are stratified by, such as the disorders of all its cases.
    """
    return _stratified(labels, {}, dict.fromkeys(range(count), 1 / count), seed=0)


def parse_fold(fold: str) -> tuple[int, int]:
    """ "0/5" -> (0, 5), the first of five folds. Raises: ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", fold)
    number, count = map(int, match.groups()) if match else (0, 0)
    if number >= count or count < 2:
        raise ValueError(f"there is no fold {fold!r}: write 0/5 for the first of five, 4/5 for the last")
    return number, count


def _stratified(
    labels: Mapping[str, Sequence[str]], official: Mapping[str, Part], shares: Mapping[Part, float], seed: int
) -> dict[str, Part]:
    """Patient -> part, by iterative stratification."""
    split_of = {patient: official[patient] for patient in labels if patient in official}
    free = sorted((patient for patient in labels if patient not in official), key=lambda p: _order(p, seed))
    missing = _missing(labels, shares, split_of)
    patients_of = defaultdict(list)
    for patient in free:
        for label in set(labels[patient]):
            patients_of[label].append(patient)
    for label in sorted(patients_of, key=lambda label: (len(patients_of[label]), label)):
        for patient in patients_of[label]:
            if patient not in split_of:
                _assign(patient, label, labels, missing, split_of)
    for patient in free:
        if patient not in split_of:
            _assign(patient, None, labels, missing, split_of)
    return split_of


def _missing(labels, shares: Mapping[Part, float], split_of: Mapping[str, Part]) -> dict[Part, Counter]:
    """Part -> disorder -> number of patients that the part still lacks; the key None counts all patients."""
    totals = Counter(label for of_patient in labels.values() for label in {*of_patient, None})
    missing = {part: Counter({label: share * n for label, n in totals.items()}) for part, share in shares.items()}
    for patient, split in split_of.items():
        missing[split].subtract({*labels[patient], None})
    return {part: missing[part] for part, share in shares.items() if share > 0}


def _assign(patient, label, labels, missing, split_of) -> None:
    best = max(missing, key=lambda split: (round(missing[split][label], 6), round(missing[split][None], 6)))
    split_of[patient] = best
    missing[best].subtract({*labels[patient], None})


def _order(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()
