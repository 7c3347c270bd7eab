"""Prediction sets: for each case the disorders that cannot be excluded, with guaranteed coverage.

    >>> rule = fit(probabilities, labels, patients, coverage=0.9)  # of the validation split
    >>> rule.sets(probabilities_of_new_cases)  # (cases, disorders) bool
    >>> measure_sets(table, rule)["coverage"]

A set holds the disorders whose probability reaches one threshold. It is the highest threshold at which n patients, and
one more with the largest possible loss, have a mean loss of at most 1 - coverage (conformal risk control). The loss of
a case is

| guarantee | loss of a case | guaranteed for the next patient |
|---|---|---|
| share | the share of its disorders that are not in its set | on average, 90% of a case's disorders are in its set |
| all | 1 if any of its disorders is not in its set, else 0 | with a probability of 90%, all disorders of a case are in its set |

The second is split conformal prediction. Where each case has one disorder they are the same.

Decisions:
- The guarantee holds for the next patient with a disorder, if that patient is exchangeable with those of the fit: from
  the same hospital, sampled in the same way. It does not hold for other scanners or other diseases. It is an average
  over patients and over samples of those of the fit, and not a guarantee for each disorder, each group or each fit:
  rare disorders are covered less, so coverage is also measured by band.
- The probabilities need not be calibrated. Poor ones make sets larger, but coverage holds.
- The cases of a patient are not exchangeable with each other, so their losses are averaged and count as one.
- Normal cases, and cases whose disorders were not scored, have no disorder to cover and are left out.
- MAPIE 1.6's `MultiLabelClassificationController` has the "share" guarantee alone, no patients, and thresholds on a
  grid of probabilities. `python benchmarks/metrics.py` compares it: with its own grid of hundredths all rare disorders
  are in every set; with the scores of the positives as grid it covers cases in place of patients, with sets 1.4 times
  as large, and takes over a thousand times as long.

References:
    Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal risk control, ICLR 2024, https://arxiv.org/abs/2208.02814,
    theorem 1; Papadopoulos, Proedrou, Vovk and Gammerman, Inductive confidence machines for regression, ECML 2002, and
    Sadinle, Lei and Wasserman, Least ambiguous set-valued classifiers with bounded error levels, JASA 114:223, 2019
    (sets by one threshold)
"""  # noqa: E501

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from radfm.eval.bands import bands
from radfm.eval.bootstrap import patient_weights
from radfm.eval.comparisons import figure
from radfm.eval.metrics import checked
from radfm.eval.scores import Scores
from radfm.presentation import BAND_MINIMA

GUARANTEES = ("share", "all")

Guarantee = Literal["share", "all"]


@dataclass(frozen=True)
class SetRule:
    """
    Attributes:
        threshold: the lowest probability of a disorder in the set: one for all, or (disorders,) one for each.
        coverage: the guaranteed one, such as 0.9.
        guarantee: "share" or "all", see above.
        patients: number of patients that it was fitted to.
    """

    threshold: float | list[float]
    coverage: float
    guarantee: Guarantee
    patients: int

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """(cases, disorders) probabilities -> bool."""
        return probabilities >= np.asarray(self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as in a checkpoint's `config.prediction_sets`; `SetRule(**...)` is the inverse."""
        return asdict(self)


def fit(
    probabilities: np.ndarray,
    labels: np.ndarray,
    patients: Sequence | np.ndarray,
    coverage: float = 0.9,
    guarantee: Guarantee = "share",
) -> SetRule:
    """The rule with the smallest sets that has the guarantee.

    Args:
        probabilities, labels: (cases, disorders), of cases that neither the model nor its calibration was trained on.
            Any scores can take the place of probabilities; the threshold of the rule is one of them.
        patients: (cases,) the patient of each case.
    Raises:
        ValueError: a coverage outside (0, 1), no such guarantee, no case with a disorder, or too few patients: at 90%
            fewer than 9 have no guarantee unless all disorders are in each set.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is a share between 0 and 1, such as 0.9, not {coverage}")
    if guarantee not in GUARANTEES:
        raise ValueError(f"there is no guarantee {guarantee!r}: there are {', '.join(GUARANTEES)}")
    probabilities, labels = checked(probabilities, labels)
    case, disorder = np.nonzero(labels)
    values = probabilities[case, disorder]
    if guarantee == "all":  # the loss of a case depends on its disorder with the lowest probability
        order = np.lexsort((values, case))
        lowest = np.unique(case[order], return_index=True)[1]
        values, case = values[order][lowest], case[order][lowest]
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    per_case = np.bincount(case, minlength=len(labels))
    cases_of = np.bincount(patient_of[per_case > 0], minlength=patient_of.max() + 1)  # of each patient, with a disorder
    n = int((cases_of > 0).sum())
    losses = 1 / (per_case[case] * cases_of[patient_of[case]])
    allowed = (1 - coverage) * (n + 1) - 1
    if allowed < 0:
        least = int(np.ceil(round(1 / (1 - coverage), 9))) - 1
        raise ValueError(f"{n:,} patients with a disorder are too few for sets of {coverage:.0%} coverage: {least} are")
    order = np.argsort(values, kind="stable")
    values, losses = values[order], losses[order]
    below = np.concatenate([[0], losses.cumsum()])[np.searchsorted(values, values)]  # losses with each as threshold
    last = np.flatnonzero(below <= allowed + 1e-9)[-1]
    return SetRule(float(values[last]), coverage, guarantee, n)


def measure_sets(
    table: Scores, rule: SetRule, bootstraps: int = 1000, seed: int = 0, minima: tuple[int, int] = BAND_MINIMA
) -> dict[str, Any]:
    """The coverage and the size of a rule's sets on the cases of a table; JSON-able.

    Args:
        minima: as in `radfm.eval.bands.macro`.

    Returns:
        `rule`: as `SetRule.to_dict`; `cases` (with a disorder) and `patients`.
        `coverage`: figure {value, low, high}, of the rule's own guarantee, to be compared with `rule["coverage"]`.
        `share`, `all`: figures, of either guarantee.
        `size`: figure, disorders in a set on average, over all cases; `median_size`; `of`: disorders in all.
        `empty`: share of cases whose set is empty; `sizes`: (of + 1,) cases by the size of their set.
        `bands`: "head", "body", "tail" -> {`pairs`, `covered`: figure} of pairs of a case and a disorder that it has;
        `covered` is None where there is none.
    Raises:
        ValueError: scores that are nan, or no case with a disorder.
    """
    scores, labels = checked(table.scores, table.labels)
    sets = rule.sets(expit(scores.astype(np.float64)))
    weights = patient_weights(table.patients, bootstraps, seed).astype(np.float64)
    ill = np.asarray(labels.any(1))
    shares = {
        "share": (sets & labels).sum(1) / np.maximum(labels.sum(1), 1),
        "all": (sets | ~labels).all(1).astype(float),
    }
    sizes = sets.sum(1)
    coverages = {name: _ratio(values * ill, ill, weights) for name, values in shares.items()}
    return {
        "rule": rule.to_dict(),
        "cases": int(ill.sum()),
        "patients": len({patient for patient, has in zip(table.patients, ill, strict=True) if has}),
        "coverage": coverages[rule.guarantee],
        **coverages,
        "size": _ratio(sizes, np.ones(len(sizes)), weights, np.inf),
        "median_size": float(np.median(sizes)),
        "of": sets.shape[1],
        "empty": float((sizes == 0).mean()),
        "sizes": np.bincount(sizes, minlength=sets.shape[1] + 1).tolist(),
        "bands": {
            band: {
                "pairs": int(labels[:, rows].sum()),
                "covered": _ratio((sets & labels)[:, rows].sum(1), labels[:, rows].sum(1), weights),
            }
            for band, rows in bands(table.training_counts, minima).items()
            if band != "all"
        },
    }


def cross_fitted(
    table: Scores,
    coverage: float = 0.9,
    guarantee: Guarantee = "share",
    halvings: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """The coverage of sets that are fitted to half of a table's patients and used on the others; JSON-able.

    One fit and one measurement both vary: with 300 patients each, coverage has a standard deviation of 2 points. Many
    random halves of the same patients show whether the guarantee holds on average.

    Returns:
        guaranteed `coverage`, `guarantee`, `halvings`; `covered`: mean over the halvings; `deviation`: its standard
        deviation; `size`: disorders in a set on average; `of`: in all.
    Raises:
        ValueError: as `fit`.
    """
    scores, labels = checked(table.scores, table.labels)
    probabilities = expit(scores.astype(np.float64))
    names, patient_of = np.unique(np.asarray(table.patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    covered, sizes = [], []
    for _ in range(halvings):
        sampled = np.zeros(len(names), bool)
        sampled[rng.permutation(len(names))[: len(names) // 2]] = True
        half = sampled[patient_of]
        rule = fit(probabilities[half], labels[half], patient_of[half], coverage, guarantee)
        others = ~half & labels.any(1)
        if others.any():
            sets, truth = rule.sets(probabilities[others]), labels[others]
            hit = (sets | ~truth).all(1) if guarantee == "all" else (sets & truth).sum(1) / truth.sum(1)
            covered.append(hit.mean())
        sizes.append(rule.sets(probabilities[~half]).sum(1).mean())
    return {
        "coverage": coverage,
        "guarantee": guarantee,
        "halvings": halvings,
        "covered": float(np.mean(covered)),
        "deviation": float(np.std(covered)),
        "size": float(np.mean(sizes)),
        "of": labels.shape[1],
    }


def _ratio(above: np.ndarray, below: np.ndarray, weights: np.ndarray, most: float = 1) -> dict[str, float] | None:
    """Sum over sum as a figure; None where the second is 0. Args: (cases,), (cases,), (cases, resamples)."""
    if not below.sum():
        return None
    with np.errstate(invalid="ignore"):
        resamples = (above @ weights) / (below @ weights)
    return figure(float(above.sum() / below.sum()), resamples, (0, most))
