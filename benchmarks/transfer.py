"""Few-shot learning from a checkpoint's slice encoder, compared with the start from ImageNet weights.

    python -m benchmarks.transfer datasets/cases --collection head_ct --collection mammography \\
        --model ImageNet=imagenet --model open=radfm-open-mini

From each collection some cases of each class (a disorder, or none) are chosen by a seed, and all cases of other
patients are scored. Both starts learn from the same cases in the same way, and only the weights of the network differ:

- `--method probe`: one logistic regression per disorder on the frozen features.
- `--method finetune`: the network with a linear layer is trained end to end, as in `benchmarks/baselines.py`.

For each number of cases of a class the table has the macro AUC over the disorders, averaged over the seeds, and the
difference to the first model. The 95% intervals are from bootstrap resamples of the patients and the seeds, which are
the same for all models. Cases are chosen from two thirds of the patients, so that some are left to be scored: a class
with fewer cases there gives all of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.baselines import finetune, mean_over_cases, pictures_of, start
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.stored_cases import load, patient_of
from radfm.eval.bands import macro
from radfm.eval.bootstrap import measure_with_resamples, patient_weights, seed_weights
from radfm.eval.comparisons import figure
from radfm.presentation import interval_cell
from radfm.train.shots import choose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=WEIGHTS", help="several times")
    parser.add_argument("--collection", action="append", required=True, help="several times")
    parser.add_argument("--method", choices=("probe", "finetune"), default="probe")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 50], help="cases of each class")
    parser.add_argument("--seeds", type=int, default=10, help="number of choices of cases (default: 10)")
    parser.add_argument("--epochs", type=int, default=20, help="of fine-tuning (default: 20)")
    parser.add_argument("--bootstraps", type=int, default=1000)
    arguments = parser.parse_args()
    models = dict(model.split("=", 1) for model in arguments.model)
    for collection in arguments.collection:
        compare_starts(arguments, collection, models)


def compare_starts(arguments: argparse.Namespace, collection: str, models: dict[str, str]) -> None:
    stored = load(arguments.data, labelled=True)
    rows = [number for number, row in enumerate(stored.rows) if row["collection"] == collection]
    data = CaseDataset(stored, start(next(iter(models.values())))[1], rows=rows)
    patients = [patient_of(stored.rows[row]) for row in data.rows]
    weights = patient_weights(patients, arguments.bootstraps)
    learners = {name: Learner(arguments, data, path) for name, path in models.items()}
    print(f"{collection}: {len(data)} cases of {len(set(patients))} patients, {arguments.method}")
    for shots in arguments.shots:
        choices = [chosen_cases(data.labels, patients, shots, seed) for seed in range(arguments.seeds)]
        areas = {name: macro_aucs(learner, choices, patients, weights) for name, learner in learners.items()}
        first = next(iter(areas.values()))
        for name, (value, resamples) in areas.items():
            line = f"  {shots:3} of each class  {name:20} {one_line(figure(value, resamples))}"
            if name != next(iter(areas)):
                difference = figure(value - first[0], resamples - first[1], (-1, 1))
                line += f"  difference {one_line(difference)}"
            print(line, flush=True)


class Learner:
    """Learns from some cases and scores all of them, from one start."""

    def __init__(self, arguments: argparse.Namespace, data: CaseDataset, weights: str):
        self.data, self.weights, self.epochs = data, weights, arguments.epochs
        self.labels = data.label_matrix
        self.features = mean_over_cases(start(weights)[0], data) if arguments.method == "probe" else None

    def scores(self, chosen: Sequence[int], seed: int) -> np.ndarray:
        """(cases, disorders); 0 for disorders that all or none of the chosen cases have."""
        if self.features is None:
            pictures = [picture for picture in pictures_of(self.data) if picture[0] in set(chosen)]
            network = finetune(start(self.weights)[0], self.data, pictures, self.epochs, seed, quiet=True)
            return mean_over_cases(network, self.data)
        centre = self.features[chosen].mean(0)
        inputs = (self.features - centre) / (self.features[chosen] - centre).std()
        scores, labels = np.zeros(self.labels.shape), self.labels[chosen]
        for disorder in np.flatnonzero(labels.any(0) & ~labels.all(0)):
            fit = LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)
            scores[:, disorder] = fit.fit(inputs[chosen], labels[:, disorder]).decision_function(inputs)
        return scores


def chosen_cases(labels: Sequence[Sequence[int]], patients: Sequence[str], shots: int, seed: int) -> list[int]:
    """Cases to learn from: `shots` of each class, of two thirds of the patients."""
    known = sorted(set(patients))
    held_out = set(np.random.default_rng([seed, 1]).permutation(known)[: len(known) // 3].tolist())
    pool = [case for case, patient in enumerate(patients) if patient not in held_out]
    chosen, _ = choose([labels[case] for case in pool], [patients[case] for case in pool], shots, seed)
    return [pool[case] for case in chosen]


def macro_aucs(
    learner: Learner, choices: Sequence[Sequence[int]], patients: Sequence[str], weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """The mean over the seeds, and over seeds sampled with replacement in each resample (resamples,).

    A seed counts where some disorder can be measured: it has cases to learn from, and cases among those that are left.
    """
    areas, of_resamples = [], []
    for seed, chosen in enumerate(choices):
        learned = {patients[case] for case in chosen}
        tested = np.array([patient not in learned for patient in patients])
        possible = learner.labels[chosen].any(0)
        counted = np.broadcast_to(tested[:, None], learner.labels.shape)[:, possible]
        scores, labels = learner.scores(chosen, seed)[:, possible], learner.labels[:, possible] > 0
        values, resamples = measure_with_resamples([scores], labels, weights, ["auc"], counted=counted)["auc"]
        areas.append(macro(values, np.zeros(len(values)))["all"])
        of_resamples.append(macro(resamples, np.zeros(len(values)))["all"])
    shares = seed_weights(len(choices), weights.shape[1]) * ~np.isnan(of_resamples)
    with np.errstate(invalid="ignore"):  # nan in a resample without a seed that counts
        return float(np.nanmean(areas)), (shares * np.nan_to_num(of_resamples)).sum(0) / shares.sum(0)


def one_line(figures: dict[str, float]) -> str:
    return interval_cell(figures, between=" to ").replace("\n", " (") + ")"


if __name__ == "__main__":
    main()
