"""What measuring costs: every metric of every disorder, in every draw of the bootstrap.

    python benchmarks/metrics.py [--disorders 5569] [--cases 4000] [--draws 1000]

Targets, on two cores: under 5 minutes and 4 GiB at the size of RP3D-DiagDS. The baseline is a loop over scikit-learn's
own functions, measured on some disorders and draws, and extrapolated to all of them. Scores and labels are random, with
as long a tail as `--tail` makes it; every disorder has a positive case.
"""

import argparse
import resource
import time

import numpy as np
import torch
from sklearn.metrics import average_precision_score, matthews_corrcoef, precision_recall_curve, roc_auc_score, roc_curve

from radfm.eval.bands import macro
from radfm.eval.bootstrap import interval, measure_with_resamples, patient_weights

DISORDERS, DRAWS = 20, 3  # of the baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disorders", type=int, default=5569)
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--tail", type=float, default=1.0, help="the n-th disorder is n^-TAIL as frequent as the first")
    arguments = parser.parse_args()
    scores, labels = drawn(arguments.cases, arguments.disorders, arguments.tail)
    print(f"torch {torch.__version__}, {arguments.cases:,} cases, {labels.sum():,} labels, {arguments.draws:,} draws")

    before = peak()
    started = time.perf_counter()
    weights = patient_weights(range(arguments.cases), arguments.draws)
    again = measure_with_resamples([scores], labels, weights)
    for values, draws in again.values():
        interval(draws, values, (0, 1))
        macro(draws, labels.sum(0))
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


def drawn(cases: int, disorders: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
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


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
