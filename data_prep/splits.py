"""Patients -> train, validation, test: never a patient in two, each disorder in all, as far as its patients reach.

Decisions:
- An official split is kept. A patient whom it puts into two goes whole into the one nearer to the test, so that nothing
  of the test is trained on.
- The rest is drawn by iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label
  data", ECML PKDD 2011): disorders from rare to frequent, each patient to the split that lacks the disorder most. Of a
  disorder with one patient, that is the training.
- The draw depends on patients' names and the seed, not on the order in which they come.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from radfm.data_prep.plan import SPLITS


def official_of(splits: Mapping[str, set[str]]) -> tuple[dict[str, str], list[str]]:
    """Patient -> the official splits of its cases, to patient -> one, and the patients that were in several."""
    chosen = {patient: max(found, key=SPLITS.index) for patient, found in splits.items() if found}
    return chosen, sorted(patient for patient, found in splits.items() if len(found) > 1)


def assign(
    labels: Mapping[str, Sequence[str]],
    official: Mapping[str, str],
    fractions: tuple[float, float, float],
    seed: int,
) -> dict[str, str]:
    """Patient -> split.

    Args:
        labels: patient -> its disorders, over all its cases.
        official: patient -> split, for those that have one.
        fractions: of all patients, for train, validation and test; what official splits took is taken into account.
    """
    split_of = {patient: official[patient] for patient in labels if patient in official}
    free = sorted((patient for patient in labels if patient not in official), key=lambda p: _draw(p, seed))
    wanted = _wanted(labels, fractions, split_of)
    bearers = defaultdict(list)
    for patient in free:
        for label in set(labels[patient]):
            bearers[label].append(patient)
    for label in sorted(bearers, key=lambda one: (len(bearers[one]), one)):
        for patient in bearers[label]:
            if patient not in split_of:
                _give(patient, label, labels, wanted, split_of)
    for patient in free:
        if patient not in split_of:
            _give(patient, None, labels, wanted, split_of)
    return split_of


def _wanted(labels, fractions, split_of) -> dict[str, Counter]:
    """For each split how many patients of each disorder it still lacks; under None, of all."""
    totals = Counter(label for found in labels.values() for label in {*found, None})
    wanted = {
        split: Counter({label: share * n for label, n in totals.items()})
        for split, share in zip(SPLITS, fractions, strict=True)
    }
    for patient, split in split_of.items():
        wanted[split].subtract({*labels[patient], None})
    return {split: wanted[split] for split, share in zip(SPLITS, fractions, strict=True) if share > 0}


def _give(patient, label, labels, wanted, split_of) -> None:
    best = max(wanted, key=lambda split: (round(wanted[split][label], 6), round(wanted[split][None], 6)))
    split_of[patient] = best
    wanted[best].subtract({*labels[patient], None})


def _draw(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()
