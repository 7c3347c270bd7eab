"""The cost of all metrics with bootstrap resamples, and prediction sets compared with MAPIE.

    python benchmarks/metrics.py [--disorders 5569] [--cases 4000] [--draws 1000]

- Metrics: every metric of every disorder is computed in every bootstrap resample. The first lines are time and peak
  memory, with targets of 5 minutes and 4 GiB on two cores at the size of RP3D-DiagDS. The baseline is a loop over the
  functions of scikit-learn. It runs for some disorders and resamples and is extrapolated to all. Scores and labels are
  random. `--tail` sets the long tail of the labels, and every disorder has a positive case.
- Prediction sets: they are fitted to 200 patients with 1 to 9 cases each and 200 disorders, and evaluated on 400 other
  patients. Each case has one disorder, and cases of patients with many cases are harder. The target is to cover 90% of
  patients. Coverage, size of the sets and fitting time are printed, for radfm and for MAPIE if it is installed.
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

DISORDERS, DRAWS = 20, 3  # measured with the baseline
REPETITIONS = 5  # data sets in the comparison with MAPIE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disorders", type=int, default=5569, help="default: 5569, as in RP3D-DiagDS")
    parser.add_argument("--cases", type=int, default=4000, help="default: 4000")
    parser.add_argument("--draws", type=int, default=1000, help="number of bootstrap resamples (default: 1000)")
    parser.add_argument("--tail", type=float, default=1.0, help="the n-th disorder is n^-TAIL as frequent as the first")
    arguments = parser.parse_args()
    scores, labels = random_scores(arguments.cases, arguments.disorders, arguments.tail)
    print(
        f"torch {torch.__version__}, {arguments.cases:,} cases, {labels.sum():,} labels, {arguments.draws:,} resamples"
    )

    before = peak_memory()
    started = time.perf_counter()
    weights = patient_weights(range(arguments.cases), arguments.draws)
    measured = measure_with_resamples([scores], labels, weights)
    for values, resamples in measured.values():
        interval(resamples, values, (0, 1))
        macro(resamples, labels.sum(0))
    seconds = time.perf_counter() - started
    print(f"{arguments.disorders:,} disorders: {seconds:.1f} s (target 300)")
    print(
        f"peak memory: {peak_memory():.2f} GiB (target 4), including {before:.2f} GiB of libraries, scores and labels"
    )

    rows = np.random.default_rng(1).choice(arguments.disorders, min(DISORDERS, arguments.disorders), replace=False)
    started = time.perf_counter()
    for draw in range(DRAWS):
        cases = np.repeat(np.arange(arguments.cases), weights[:, draw].astype(int))
        for disorder in rows:
            by_scikit_learn(scores[cases, disorder], labels[cases, disorder])
    each = (time.perf_counter() - started) / (DRAWS * len(rows))
    loop = each * arguments.disorders * arguments.draws
    print(f"loop over scikit-learn: {1000 * each:.2f} ms per disorder and resample, mean of {DRAWS * len(rows)};")
    print(f"extrapolated to all: {loop / 3600:.1f} h, {loop / seconds:.0f} times as long as radfm")
    compare_with_mapie()


def random_scores(cases: int, disorders: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels (cases, disorders), where positive cases have higher scores on average."""
    rng = np.random.default_rng(0)
    frequency = np.arange(1, disorders + 1) ** -tail
    labels = rng.random((cases, disorders)) < np.minimum(0.2 * frequency, 0.5)
    labels[rng.integers(cases, size=disorders), np.arange(disorders)] = True
    scores = rng.normal(size=labels.shape).astype(np.float32)
    scores += labels
    return scores, labels


def by_scikit_learn(scores: np.ndarray, labels: np.ndarray) -> None:
    """All metrics of one disorder in one resample."""
    if labels.any() and not labels.all():
        roc_auc_score(labels, scores)
        average_precision_score(labels, scores)
        precision, recall, thresholds = precision_recall_curve(labels, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        matthews_corrcoef(labels, scores >= thresholds[min(int(f1.argmax()), len(thresholds) - 1)])
        fpr, tpr, _ = roc_curve(labels, scores)
        [tpr[fpr <= rate].max() for rate in (0.01, 0.05, 0.1)]


def compare_with_mapie() -> None:
    """Prints coverage, size and fitting time of the prediction sets of radfm and of MAPIE."""
    try:
        from mapie.risk_control import MultiLabelClassificationController
    except ModuleNotFoundError:
        print("prediction sets: not compared, because MAPIE is not installed (pip install mapie)")
        return

    def by_mapie(grid, probabilities, labels, patients):
        options = {} if grid is None else {"predict_params": grid(probabilities, labels)}
        rule = MultiLabelClassificationController(lambda x: x, risk="recall", target_level=0.9, **options)
        rule.calibrate(probabilities, labels)
        return lambda new: rule.predict(new)[:, :, 0]

    methods = {
        "radfm": lambda *calibration: fit(*calibration).sets,
        "MAPIE, grid: hundredths (default)": partial(by_mapie, None),
        "MAPIE, grid: scores of positives": partial(by_mapie, lambda scores, labels: np.unique(scores[labels])[::5]),
    }
    for name, method in methods.items():
        rng, rows, seconds = np.random.default_rng(0), [], 0.0
        for _ in range(REPETITIONS):
            calibration, (scores, labels, patients) = sample_patients(rng, 200), sample_patients(rng, 400)
            started = time.perf_counter()
            sets = method(*calibration)
            seconds += time.perf_counter() - started
            predicted = sets(scores)
            covered = (predicted & labels).sum(1)
            covered_of_patient = np.bincount(patients, covered) / np.bincount(patients)
            rows.append([covered_of_patient.mean(), covered.mean(), predicted.sum(1).mean()])
        patients, cases, size = np.mean(rows, axis=0)
        print(
            f"prediction sets, {name:33}: cover {patients:.1%} of patients, {cases:.1%} of cases; mean size "
            f"{size:5.1f} of 200 disorders; {1000 * seconds / REPETITIONS:,.0f} ms to fit"
        )


def sample_patients(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities and labels (cases, 200), and the patient of each case."""
    counts = rng.integers(1, 10, patients)
    patient_of = np.repeat(np.arange(patients), counts)
    cases = np.arange(len(patient_of))
    labels = np.zeros((len(cases), 200), bool)
    labels[cases, rng.integers(200, size=len(cases))] = True
    logits = rng.normal(-6, 1.5, labels.shape) + np.where(labels, 5 - 2.4 * np.sign(counts - 5.5)[patient_of, None], 0)
    return expit(logits), labels, patient_of


def peak_memory() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
