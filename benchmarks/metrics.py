"""The cost of measuring every metric of every disorder in every bootstrap resample; and prediction sets beside MAPIE's.

    python benchmarks/metrics.py [--disorders 5569] [--cases 4000] [--draws 1000]

Targets, on two cores: under 5 minutes and 4 GiB at the size of RP3D-DiagDS. The baseline is a loop over scikit-learn's
own functions, measured on some disorders and resamples, and extrapolated to all of them. Scores and labels are random,
with as long a tail as `--tail` makes it; every disorder has a positive case.

Prediction sets are fitted to 200 patients with 1 to 9 cases each and 200 disorders, and measured on 400 others; the
cases of patients with many cases are harder. The guarantee is 90% of patients; each case has one disorder.
"""

import argparse
import resource
import time
from functools import partial

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, matthews_corrcoef, precision_recall_curve, roc_auc_score, roc_curve

from radfm.eval.bands import macro
from radfm.eval.bootstrap import interval, measure_with_resamples, patient_weights
from radfm.eval.conformal import fit

DISORDERS, DRAWS = 20, 3  # of the baseline
REPETITIONS = 5  # of the comparison with MAPIE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disorders", type=int, default=5569)
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--tail", type=float, default=1.0, help="the n-th disorder is n^-TAIL as frequent as the first")
    arguments = parser.parse_args()
    scores, labels = sample(arguments.cases, arguments.disorders, arguments.tail)
    print(f"torch {torch.__version__}, {arguments.cases:,} cases, {labels.sum():,} labels, {arguments.draws:,} draws")

    before = peak()
    started = time.perf_counter()
    weights = patient_weights(range(arguments.cases), arguments.draws)
    measured = measure_with_resamples([scores], labels, weights)
    for values, resamples in measured.values():
        interval(resamples, values, (0, 1))
        macro(resamples, labels.sum(0))
    seconds = time.perf_counter() - started
    print(f"{arguments.disorders:,} disorders: {seconds:.1f} s (target 300)")
    print(f"peak memory: {peak():.2f} GiB (target 4), {before:.2f} GiB of it libraries, scores and labels")

    rows = np.random.default_rng(1).choice(arguments.disorders, min(DISORDERS, arguments.disorders), replace=False)
    started = time.perf_counter()
    for draw in range(DRAWS):
        cases = np.repeat(np.arange(arguments.cases), weights[:, draw].astype(int))
        for disorder in rows:
            by_scikit_learn(scores[cases, disorder], labels[cases, disorder])
    each = (time.perf_counter() - started) / (DRAWS * len(rows))
    loop = each * arguments.disorders * arguments.draws
    print(f"scikit-learn's loop: {1000 * each:.2f} ms a disorder and draw, measured on {DRAWS * len(rows)} of them;")
    print(f"extrapolated to all: {loop / 3600:.1f} h, {loop / seconds:.0f} times as long")
    compare_with_mapie()


def sample(cases: int, disorders: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    frequency = np.arange(1, disorders + 1) ** -tail
    labels = rng.random((cases, disorders)) < np.minimum(0.2 * frequency, 0.5)
    labels[rng.integers(cases, size=disorders), np.arange(disorders)] = True
    scores = rng.normal(size=labels.shape).astype(np.float32)
    scores += labels
    return scores, labels


def by_scikit_learn(scores: np.ndarray, labels: np.ndarray) -> None:
    if labels.any() and not labels.all():
        roc_auc_score(labels, scores)
        average_precision_score(labels, scores)
        precision, recall, thresholds = precision_recall_curve(labels, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        matthews_corrcoef(labels, scores >= thresholds[min(int(f1.argmax()), len(thresholds) - 1)])
        fpr, tpr, _ = roc_curve(labels, scores)
        [tpr[fpr <= rate].max() for rate in (0.01, 0.05, 0.1)]


def compare_with_mapie() -> None:
    """Prints coverage, size and fitting time of prediction sets by radfm and by MAPIE."""
    try:
        from mapie.risk_control import MultiLabelClassificationController
    except ModuleNotFoundError:
        print("prediction sets: pip install mapie, to compare with it")
        return

    def by_mapie(grid, probabilities, labels, patients):
        options = {} if grid is None else {"predict_params": grid(probabilities, labels)}
        rule = MultiLabelClassificationController(lambda x: x, risk="recall", target_level=0.9, **options)
        rule.calibrate(probabilities, labels)
        return lambda new: rule.predict(new)[:, :, 0]

    ways = {
        "radfm": lambda *fitted_to: fit(*fitted_to).sets,
        "MAPIE, its grid of hundredths": partial(by_mapie, None),
        "MAPIE, grid of positives' scores": partial(by_mapie, lambda scores, labels: np.unique(scores[labels])[::5]),
    }
    for name, way in ways.items():
        rng, rows, seconds = np.random.default_rng(0), [], 0.0
        for _ in range(REPETITIONS):
            fitted_to, (scores, labels, patients) = sample_patients(rng, 200), sample_patients(rng, 400)
            started = time.perf_counter()
            sets = way(*fitted_to)
            seconds += time.perf_counter() - started
            predicted = sets(scores)
            covered = (predicted & labels).sum(1)
            of_patients = np.bincount(patients, covered) / np.bincount(patients)
            rows.append([of_patients.mean(), covered.mean(), predicted.sum(1).mean()])
        patients, cases, size = np.mean(rows, axis=0)
        print(
            f"prediction sets, {name:33}: cover {patients:.1%} of patients, {cases:.1%} of cases; {size:5.1f} of 200 "
            f"disorders in a set; {1000 * seconds / REPETITIONS:,.0f} ms to fit"
        )


def sample_patients(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cases, 200) probabilities and labels, and the patient of each case."""
    counts = rng.integers(1, 10, patients)
    patient_of = np.repeat(np.arange(patients), counts)
    cases = np.arange(len(patient_of))
    labels = np.zeros((len(cases), 200), bool)
    labels[cases, rng.integers(200, size=len(cases))] = True
    logits = rng.normal(-6, 1.5, labels.shape) + np.where(labels, 5 - 2.4 * np.sign(counts - 5.5)[patient_of, None], 0)
    return expit(logits), labels, patient_of


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
