"""Scores of two baselines on real cases: classifiers on frozen ImageNet features.

    python benchmarks/real_cases.py datasets/real efficientnet-lite0-57934424.pth evaluation/baselines
    radfm evaluate datasets/real --split validation --within folder \\
        --model logistic=evaluation/baselines/logistic.parquet \\
        --model ridge=evaluation/baselines/ridge.parquet --model radfm=runs/real_cases

A trained model should be better than both. The features of a case are those of EfficientNet-Lite0, averaged over the
slices of each scan and then over the scans. `logistic` is one logistic regression per disorder. `ridge` is a ridge
regression from the features to the all-MiniLM-L6-v2 embedding of the diagnosis. It scores a disorder by the cosine with
the embedding of its name, so it also scores disorders without a training case. The paths of the two tables of scores
are printed.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from radfm.configuration_radfm import RadFMConfig
from radfm.data_prep.batches.case_dataset import CaseDataset, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.eval.score_tables import table_of
from radfm.starting_points import minilm_folder, processor_for
from radfm.towers_radfm import build_tower
from radfm.train.tower_weights import load_tower

SIZE = 224
SLICES = 8  # the most slices of a scan that are used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("weights", type=Path, help="weights of tf_efficientnet_lite0 (.pth)")
    parser.add_argument("out", type=Path, help="folder for the two tables of scores")
    parser.add_argument("--split", default="validation", help="split that is scored (default: validation)")
    arguments = parser.parse_args()
    config = RadFMConfig(vision_config={"family": "resnet", "tower": "tf_efficientnet_lite0", "image_size": SIZE})
    tower = build_tower(config.vision_config, config.hidden_size)
    load_tower(tower, arguments.weights)
    processor = processor_for(config)
    processor.image_processor.max_slices = SLICES

    parts = [load(arguments.data, split, labelled=True) for split in ("train", arguments.split)]
    datasets = [CaseDataset(part, processor) for part in parts]
    features = [features_of(tower.eval(), data) for data in datasets]
    scaler = StandardScaler().fit(features[0])
    train, test = (scaler.transform(part) for part in features)
    labels = labels_of(datasets[0])
    table = table_of(datasets[1], load(arguments.data), np.zeros((len(test), labels.shape[1]), np.float32))
    for name, scores in {
        "logistic": logistic(train, labels, test, labels_of(datasets[1])),
        "ridge": ridge(train, labels, test, parts[0]),
    }.items():
        about = table.about | {"model": f"ImageNet features, {name}"}
        replace(table, scores=scores.astype(np.float32), about=about).save(arguments.out / f"{name}.parquet")
        print(arguments.out / f"{name}.parquet")


@torch.inference_mode()
def features_of(tower: torch.nn.Module, data: CaseDataset) -> np.ndarray:
    """Mean features of each case, (cases, features) float32."""
    features = torch.empty(len(data), tower.num_features)
    steps = steps_in_order(data.slice_counts, 64)
    for batch in tqdm(step_loader(data, steps), desc="features", file=sys.stderr):
        slices = tower(batch["pixel_values"].contiguous(memory_format=torch.channels_last))
        scans = torch.stack([part.mean(0) for part in slices.split(batch["slices_per_scan"].tolist())])
        cases = [part.mean(0) for part in scans.split(batch["scans_per_case"].tolist())]
        features[batch["case_rows"]] = torch.stack(cases)
    return features.numpy()


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """Logits (cases, disorders). They are 0 for disorders that no training case or no test case has."""
    scores = np.zeros((len(test), labels.shape[1]))
    for disorder in tqdm(np.flatnonzero(test_labels.any(0) & labels.any(0)), desc="logistic", file=sys.stderr):
        fit = LogisticRegression(C=0.01, class_weight="balanced", max_iter=200).fit(train, labels[:, disorder])
        scores[:, disorder] = fit.decision_function(test)
    return scores


def ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray, cases: StoredCases) -> np.ndarray:
    """Cosine similarities (cases, disorders) of the predicted embeddings with the embeddings of the names."""
    names = SentenceTransformer(str(minilm_folder()), device="cpu").encode(
        cases.vocabulary.names, normalize_embeddings=True
    )
    diagnosed = labels.any(1)
    targets = labels[diagnosed] @ names / labels[diagnosed].sum(1, keepdims=True)
    predicted = Ridge(alpha=1000.0).fit(train[diagnosed], targets).predict(test)
    return predicted / np.linalg.norm(predicted, axis=1, keepdims=True) @ names.T


def labels_of(data: CaseDataset) -> np.ndarray:
    """Labels (cases, disorders), 0 or 1."""
    return np.stack([data.cases.labels(row) for row in data.rows])


if __name__ == "__main__":
    main()
