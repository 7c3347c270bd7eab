"""Tables of scores of baselines on real cases: what a user would do without radfm, on the same network.

    python benchmarks/baselines.py frozen datasets/open imagenet evaluation/baselines
    python benchmarks/baselines.py finetune datasets/open imagenet evaluation/baselines
    radfm evaluate datasets/open --split validation --within collection \\
        --model logistic=evaluation/baselines/logistic.parquet \\
        --model finetune=evaluation/baselines/finetune.parquet --model radfm=runs/open

- `frozen`: the features of a case are those of EfficientNet-Lite0, averaged over the slices of each scan and then over
  the scans. `logistic` is one logistic regression per disorder. `ridge` is a ridge regression from the features to the
  all-MiniLM-L6-v2 embedding of the diagnosis. It scores a disorder by the cosine with the embedding of its name, so it
  also scores disorders without a training case.
- `finetune`: the network with a linear layer is trained end to end, each picture under the labels of its case: binary
  cross-entropy, three epochs of batches of 32, AdamW, one cycle of the learning rate to 5e-4, no augmentation. The
  score of a case is the mean of the logits of its slices and scans.

All train on cases that a published model may learn from. With `--folds 5` there is a table for each fold, which
`radfm evaluate --folds 5` reads as "logistic=evaluation/baselines/logistic{fold}.parquet". A fine-tuning whose table
exists is not repeated.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from tqdm import tqdm

from radfm.base_tower_radfm import Tower
from radfm.cases import Case
from radfm.configuration_radfm import RadFMConfig
from radfm.data_prep.batches.case_dataset import CaseDataset, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.eval.score_tables import table_of
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import minilm_folder, processor_for
from radfm.towers_radfm import build_tower
from radfm.train.tower_weights import load_tower

SIZE = 224
SLICES = 8  # the most slices of a scan that are used
BATCH = 32
LEARNING_RATE = 5e-4
STEPS_PER_LINE = 20  # of the progress of a fine-tuning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("frozen", "finetune"))
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("weights", help="of tf_efficientnet_lite0: imagenet, a file or a checkpoint")
    parser.add_argument("out", type=Path, help="folder for the tables of scores")
    parser.add_argument("--split", default="validation", help="split that is scored (default: validation)")
    parser.add_argument("--folds", type=int, help="score each of so many folds, by models trained on the others")
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning (default: 3)")
    parser.add_argument("--pictures", type=int, help="fine-tune on so many pictures at most")
    parser.add_argument("--seed", type=int, default=0, help="of fine-tuning (default: 0)")
    arguments = parser.parse_args()
    score_frozen(arguments) if arguments.method == "frozen" else score_finetuned(arguments)


def score_frozen(arguments: argparse.Namespace) -> None:
    tower, processor = start(arguments.weights)
    every_case = CaseDataset(load(arguments.data, labelled=True), processor)
    features_by_id = dict(zip(ids_of(every_case), mean_over_cases(tower, every_case), strict=True))
    for number, train, test in parts(arguments, processor):
        features = [np.stack([features_by_id[case] for case in ids_of(data)]) for data in (train, test)]
        scaler = StandardScaler().fit(features[0])
        features = [scaler.transform(part) for part in features]
        labels, tested = train.label_matrix, test.label_matrix.any(0)
        save(arguments, f"logistic{number}", test, logistic(features[0], labels, features[1], tested))
        save(arguments, f"ridge{number}", test, ridge(features[0], labels, features[1], train.cases))


def score_finetuned(arguments: argparse.Namespace) -> None:
    for number, train, test in parts(arguments, start(arguments.weights)[1]):
        if (file := arguments.out / f"finetune{number}.parquet").exists():
            print(f"{file} exists")
            continue
        pictures = pictures_of(train)
        if arguments.pictures:
            pictures = pictures[:: -(-len(pictures) // arguments.pictures)]
        network = finetune(start(arguments.weights)[0], train, pictures, arguments.epochs, arguments.seed)
        save(arguments, f"finetune{number}", test, mean_over_cases(network, test))


def start(weights: str) -> tuple[Tower, RadFMProcessor]:
    """The network without a classifier, and what makes its inputs."""
    config = RadFMConfig(vision_config={"family": "resnet", "tower": "tf_efficientnet_lite0", "image_size": SIZE})
    tower = build_tower(config.vision_config, config.hidden_size)
    load_tower(tower, weights)
    processor = processor_for(config)
    processor.image_processor.max_slices = SLICES
    return tower.eval(), processor


def parts(arguments: argparse.Namespace, processor: RadFMProcessor) -> Iterator[tuple[str, CaseDataset, CaseDataset]]:
    """Number of the fold (empty without folds), cases to train on, and cases to score."""
    for number in range(arguments.folds or 1):
        fold = f"{number}/{arguments.folds}" if arguments.folds else None
        train = load(arguments.data, "train", labelled=True, publishable=True, fold=fold)
        test = load(arguments.data, "validation" if fold else arguments.split, labelled=True, fold=fold)
        yield str(number) if fold else "", CaseDataset(train, processor), CaseDataset(test, processor)


def save(arguments: argparse.Namespace, name: str, test: CaseDataset, scores: np.ndarray) -> None:
    everything = load(arguments.data, fold=test.cases.fold)
    about = {"model": name, "trained_on": everything.record["fingerprint"], "publishable": True}
    print(table_of(test, everything, scores.astype(np.float32), about=about).save(arguments.out / f"{name}.parquet"))


def ids_of(data: CaseDataset) -> list[str]:
    return [data.case_id(case) for case in range(len(data))]


@torch.inference_mode()
def mean_over_cases(network: nn.Module, data: CaseDataset) -> np.ndarray:
    """The outputs for the slices of each scan, averaged, and averaged over the scans of each case: (cases, outputs)."""
    device = next(network.parameters()).device
    rows: dict[int, Tensor] = {}
    for batch in tqdm(step_loader(data, steps_in_order(data.slice_counts, 64)), desc="scoring", file=sys.stderr):
        slices = network(batch["pixel_values"].to(device, memory_format=torch.channels_last)).float().cpu()
        scans = torch.stack([part.mean(0) for part in slices.split(batch["slices_per_scan"].tolist())])
        cases = [part.mean(0) for part in scans.split(batch["scans_per_case"].tolist())]
        rows |= zip(batch["case_rows"].tolist(), cases, strict=True)
    return torch.stack([rows[row] for row in range(len(data))]).numpy()


def pictures_of(data: CaseDataset) -> list[tuple[int, int]]:
    """The case and the row of each scan."""
    return [(case, scan) for case, row in enumerate(data.rows) for scan in data.cases.rows[row]["scan_rows"]]


def finetune(
    tower: Tower, data: CaseDataset, pictures: Sequence[tuple[int, int]], epochs: int, seed: int, quiet: bool = False
) -> nn.Module:
    """The network with a linear layer for the disorders, trained on pictures under the labels of their cases.

    Args:
        pictures: the case and the row of each scan to train on.
        quiet: whether to print no progress.
    """
    torch.manual_seed(seed)
    labels = torch.from_numpy(data.label_matrix)

    def packed(batch: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(slices, 3, H, W) and (slices, disorders)."""
        slices = [data.processor(cases=[Case([data.cases.scan(scan)])])["pixel_values"] for _, scan in batch]
        of_slices = [labels[case].expand(len(s), -1) for (case, _), s in zip(batch, slices, strict=True)]
        return torch.cat(slices), torch.cat(of_slices)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = nn.Sequential(tower, nn.Linear(tower.num_features, labels.shape[1])).to(device)
    network = network.to(memory_format=torch.channels_last).train()
    loader = DataLoader(pictures, min(BATCH, len(pictures)), shuffle=True, drop_last=True, collate_fn=packed)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * len(loader))
    began, done = time.perf_counter(), 0
    for _ in range(epochs):
        for values, of_pictures in loader:
            logits = network(values.to(device, memory_format=torch.channels_last))
            loss = binary_cross_entropy_with_logits(logits, of_pictures.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if not quiet and done % STEPS_PER_LINE == 0:
                speed = done * loader.batch_size / (time.perf_counter() - began)
                print(f"step {done:,} of {schedule.total_steps:,}: loss {loss:.4f}, {speed:.1f} pictures/s", flush=True)
    return network.eval()


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Logits (cases, disorders). They are 0 for disorders that no training case or, by `tested`, no test case has."""
    scores = np.zeros((len(test), labels.shape[1]))
    for disorder in tqdm(np.flatnonzero(tested & labels.any(0)), desc="logistic", file=sys.stderr):
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


if __name__ == "__main__":
    main()
