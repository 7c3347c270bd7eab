"""How many labels each strategy needs: annotation simulated on a data set whose labels are known.

    radfm evaluate selection datasets/mine --model runs/mine --out selection

The training split is the pool. A strategy chooses patients, their labels are uncovered, the classifiers are fitted to
all labels so far, and the macro AUC on the test split is measured; then it chooses more.

Decisions:
- Embeddings are computed once, by the model as it is. What is fitted is the linear probe of `radfm.train.probe`, which
  starts from the model's own classifiers, so that there is a result without labels, too.
- The strength of the probe's penalty is given, and the same everywhere: few labels are too few to choose it by.
- Each seed leaves out a random part of the pool, the same for all strategies, and differs in what a strategy does at
  random. So strategies are compared in pairs of the same seed. Intervals are Student's t over seeds; the sampling of
  the test cases is not in them.
- A model that was trained on these cases has seen the labels that are uncovered here, and is refused.
- A finished run is kept in OUT/runs, and the same command continues with the others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.stats import t

from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.stored_cases import StoredCases, is_synthetic, load, patient_of
from radfm.data_prep.tables import replacing, write_text
from radfm.eval.metrics import measure
from radfm.eval.predict import labelled_cases, require_unshared_patients
from radfm.eval.score_tables import about_checkpoint, table_of
from radfm.eval.selection import STRATEGIES, candidates_of, choose, duplicate_patients
from radfm.eval.selection_report import RANDOM, write_page
from radfm.losses_radfm import loss_function
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.progress import Progress, no_progress
from radfm.train import probe
from radfm.train.checkpoint_vocabulary import zero_shot_model
from radfm.train.feature_extraction import extract_features
from radfm.train.finetune_config import StartSection
from radfm.train.lineage import seen_fingerprints
from radfm.train.studies import prepare_once

RESULTS = "selection.json"
LABELS = (25, 50, 100, 200, 400)
STRENGTH = 10.0  # of the probe's penalty
_POOL_SHARE = 0.8  # of the patients, for each seed
_SLICES_PER_STEP = 256


@dataclass(frozen=True)
class _Cases:
    """The cases of a split: their features for the probe, patients and labels."""

    features: probe.TokenFeatures
    patients: list[str]
    labels: np.ndarray  # (cases, disorders) bool

    def __getitem__(self, rows: Sequence[int]) -> "_Cases":
        parts = self.features.rows.split(self.features.counts.tolist())
        features = probe.TokenFeatures(torch.cat([parts[row] for row in rows]), self.features.counts[list(rows)])
        return _Cases(features, [self.patients[row] for row in rows], self.labels[rows])

    def logits(self, linear: probe.LinearMap, pool: probe.Pool) -> np.ndarray:
        """(cases, disorders)."""
        return pool(linear(self.features.rows), self.features.counts.tolist()).numpy()


def selection_study(
    data: str | Path,
    model: str | Path,
    out: Path,
    strategies: Sequence[str] = tuple(STRATEGIES),
    labels: Sequence[int] = LABELS,
    seeds: int = 5,
    split: str = "test",
    within: str | None = None,
    strength: float = STRENGTH,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Simulates all strategies, or continues a study that was killed; writes selection.json and .html.

    Args:
        data: folder that `radfm prepare` made; its training split is the pool.
        model: folder of a checkpoint, or name of one that comes with radfm, that was not trained on the data.
        labels: numbers of labelled cases after which the test cases are scored, rising.
        seeds: number of seeds, from 0; at least 2.
        split: of the test cases.
        within: a disorder is compared only with cases of the same group, such as "body part"; None: with all.
        strength: of the penalty of the linear probe.
        limit: at most so many cases of the pool, evenly spaced; None: all.
        progress: called with the number of finished runs, and of all.
    Returns:
        JSON-able: `data` (fingerprint), `dataset`, `synthetic`, `model`, `pool`, `test` (cases), `disorders`
        (measured), `split`, `seeds`, `within`, `strength`, `limit`, `labels`, `without_labels` (macro AUC), `best` (by
        number of labels), and `strategies`: name -> `meaning`, and lists by number of labels of figures: `auc`,
        `less_random` (at as many labels), and `less_random_doubled` (at twice as many; None where not measured).
    Raises:
        ValueError: the pool is smaller than the largest number of labels, an unknown strategy, the model was trained on
            the data, a patient is in several splits, or the folder holds another study.
        FileNotFoundError: there is no such data set or checkpoint.
    """
    everything, pool_cases, test_cases = load(data), labelled_cases(data, "train"), labelled_cases(data, split)
    require_unshared_patients(everything, split)
    about = about_checkpoint(model)
    _check(model, everything, split, seeds)
    labels, names = sorted(set(labels)), _with_random(strategies)
    _, start, processor = zero_shot_model(StartSection(checkpoint=str(model)), pool_cases.vocabulary)
    record = {
        "data": everything.record["fingerprint"],
        "dataset": everything.folder.name,
        "synthetic": is_synthetic(everything.record),
        "model": Path(model).name,
        "checkpoint": about["checkpoint"],
        "split": split,
        "within": within,
        "strength": strength,
        "limit": limit,
        "labels": labels,
    }
    out = Path(out)
    _begin(out, record)
    count = min(limit or len(pool_cases), len(pool_cases))
    rows = [position * len(pool_cases) // count for position in range(count)]
    pool = _with_features(out, "train", CaseDataset(pool_cases, processor, rows=rows), start)
    test = _with_features(out, split, CaseDataset(test_cases, processor), start)
    table = table_of(CaseDataset(test_cases, processor), everything, test.labels.astype(np.float32))
    counted = None if within is None else table.within(within)
    simulation = _Simulation(start, pool, test, counted, duplicate_patients(everything.folder), labels, strength)
    runs = simulation.finish(out / "runs", names, seeds, progress)
    per_disorder = simulation.per_disorder(probe.LinearMap(*start.head.linear()))
    means = np.array([np.mean(runs[name], 0) for name in names])  # (strategies, numbers of labels)
    result = record | {
        "pool": len(pool.patients),
        "test": len(test.patients),
        "disorders": int((~np.isnan(per_disorder)).sum()),
        "seeds": seeds,
        "without_labels": float(np.nanmean(per_disorder)),
        "best": {
            str(count): max(zip(names, means[:, i], strict=True), key=itemgetter(1))[0]
            for i, count in enumerate(labels)
        },
        "strategies": {name: _figures(name, runs, labels) for name in names},
    }
    write_text(out / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_page(out, result)
    return result


def _check(model: str | Path, data: StoredCases, split: str, seeds: int) -> None:
    """Raises: ValueError: the model has seen the labels, the pool would be measured, or there is no interval."""
    if data.fingerprint in seen_fingerprints(model):
        raise ValueError(f"{model} was trained on {data.folder}, and has seen its labels: give a model that was not")
    if split not in ("test", "validation"):
        raise ValueError(f"the pool is the training split, and is not measured: give --split test, not {split}")
    if seeds < 2:
        raise ValueError(f"there is no interval over {seeds} seed: give at least 2")


@dataclass
class _Simulation:
    start: RadFMForDiagnosis
    pool: _Cases
    test: _Cases
    counted: np.ndarray | None
    duplicates: list[set[str]]
    labels: list[int]
    strength: float

    def finish(self, folder: Path, names: list[str], seeds: int, progress: Progress) -> dict[str, list[list[float]]]:
        """Strategy -> (seeds, numbers of labels) macro AUCs. What another process simulates is waited for."""
        runs: dict[str, list[list[float]]] = {name: [] for name in names}
        for done, (seed, name) in enumerate(product(range(seeds), names), 1):
            keep = partial(self.kept, strategy=name, seed=seed)
            runs[name].append(prepare_once(folder / f"{name}-{seed}.json", keep)["auc"])
            progress(done, seeds * len(names))
        return runs

    def kept(self, file: Path, strategy: str, seed: int) -> dict[str, Any]:
        """The run from its file, or simulated and written into it."""
        if not file.exists():
            write_text(file, json.dumps(self.run(strategy, seed)) + "\n")
        return json.loads(file.read_text(encoding="utf-8"))

    @torch.no_grad()
    def run(self, strategy: str, seed: int) -> dict[str, Any]:
        """The macro AUC after each number of labels: `auc`; and how many cases were labelled: `labelled`."""
        pool = self._part(seed)
        initial = linear = probe.LinearMap(*self.start.head.linear())
        embeddings = F.normalize(pool.features.means, dim=-1).numpy()
        known = np.zeros(len(pool.patients), bool)
        aucs, counts = [], []
        for round_, wanted in enumerate(self.labels):
            log_odds = pool.logits(linear, self.start.pool)
            candidates, patients = candidates_of(
                pool.patients, embeddings, log_odds, known, pool.labels, self.duplicates
            )
            rows = choose(candidates, strategy, wanted - int(known.sum()), seed * len(self.labels) + round_)
            chosen = {patients[row] for row in rows}
            known |= np.array([patient in chosen for patient in pool.patients])
            linear = self._fitted(pool[np.flatnonzero(known).tolist()], initial)
            aucs.append(float(np.nanmean(self.per_disorder(linear))))
            counts.append(int(known.sum()))
        return {"strategy": strategy, "seed": seed, "auc": aucs, "labelled": counts}

    def per_disorder(self, linear: probe.LinearMap) -> np.ndarray:
        """(disorders,) the AUC on the test cases, nan where it cannot be measured."""
        with torch.no_grad():
            scores = self.test.logits(linear, self.start.pool)
        return measure(scores, self.test.labels, metrics=["auc"], counted=self.counted)["auc"]

    def _part(self, seed: int) -> _Cases:
        patients = list(dict.fromkeys(self.pool.patients))
        kept = max(1, round(_POOL_SHARE * len(patients)))
        chosen = set(np.random.default_rng(seed).choice(patients, kept, replace=False).tolist())
        return self.pool[[row for row, patient in enumerate(self.pool.patients) if patient in chosen]]

    @torch.enable_grad()
    def _fitted(self, cases: _Cases, initial: probe.LinearMap) -> probe.LinearMap:
        loss = loss_function({"name": self.start.head.default_loss})
        labels = torch.from_numpy(cases.labels).float()
        return probe.fit(cases.features, labels, initial, loss, lambda _: 0.0, self.start.pool, (self.strength,))[0]


def _with_random(strategies: Sequence[str]) -> list[str]:
    """Raises: ValueError: there is no such strategy."""
    for name in strategies:
        if name not in STRATEGIES:
            raise ValueError(f"there is no strategy {name!r}: there are {', '.join(STRATEGIES)}")
    return list(dict.fromkeys([RANDOM, *strategies]))


def _begin(out: Path, record: dict[str, Any]) -> None:
    """Raises: ValueError: the folder holds a study with other settings."""
    file, content = out / "study.json", json.loads(json.dumps(record))
    if not file.exists():
        write_text(file, json.dumps(content, indent=1) + "\n")
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    if differs := [key for key in content if stored.get(key) != content[key]]:
        raise ValueError(f"{out} holds a study with another {differs[0]}: choose another --out, or delete it")


def _with_features(out: Path, split: str, cases: CaseDataset, model: RadFMForDiagnosis) -> _Cases:
    """The cases of a split; their features are computed once, and kept in a file."""

    def features(file: Path) -> dict[str, torch.Tensor]:
        if not file.exists():
            computed = extract_features(model, cases, _SLICES_PER_STEP)._asdict()
            with replacing(file) as draft:
                save_file({name: tensor.contiguous() for name, tensor in computed.items()}, draft)
        return load_file(file)

    of_split = probe.TokenFeatures(**prepare_once(out / "features" / f"{split}.safetensors", features))
    patients = [patient_of(cases.cases.rows[row]) for row in cases.rows]
    return _Cases(of_split, patients, cases.label_matrix.astype(bool))


def _figures(name: str, runs: dict[str, list[list[float]]], labels: list[int]) -> dict[str, Any]:
    aucs, randoms = np.array(runs[name]), np.array(runs[RANDOM])  # (seeds, numbers of labels)
    doubled = [labels.index(2 * count) if 2 * count in labels else None for count in labels]
    return {
        "meaning": STRATEGIES[name].meaning,
        "auc": [_figure(aucs[:, i]) for i in range(len(labels))],
        "less_random": [_figure(aucs[:, i] - randoms[:, i]) for i in range(len(labels))],
        "less_random_doubled": [
            None if j is None else _figure(aucs[:, i] - randoms[:, j]) for i, j in enumerate(doubled)
        ],
    }


def _figure(of_seeds: np.ndarray) -> dict[str, float]:
    """The mean over seeds with its 95% interval by Student's t."""
    mean, count = float(of_seeds.mean()), len(of_seeds)
    half = float(t.ppf(0.975, count - 1) * of_seeds.std(ddof=1) / count**0.5)
    return {"value": mean, "low": mean - half, "high": mean + half}
