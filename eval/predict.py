"""A checkpoint and a data set -> a table of scores.

    >>> from radfm.eval.predict import Evaluation, score
    >>> score("runs/mine", Evaluation("datasets/mine", split="test")).save("evaluation/mine.parquet")

Decisions:
- The vocabulary is that of the data set. A name in the vocabulary of the checkpoint has the score that the checkpoint
  gives it, calibrated if the checkpoint is. Other names are given to a head that reads text; an mlp head has to have
  all of them.
- Every case is shown as in validation: all of it, with at most as many slices of a scan as in training.
- Checkpoints with the same frozen tower share the features of slices, which are computed once.
- A model is not evaluated on patients that it may have been trained on: if a patient is in several splits, the
  evaluation ends with the list of such patients; and if the recipe of the checkpoint names another fold of the data,
  or the data with split "all", it ends before the first case.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.data_prep.batches.slice_features import slice_features
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.score_tables import ALL, about_checkpoint, table_of
from radfm.eval.scores import Scores
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.outputs_radfm import RadFMDiagnosisOutput
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.starting_points import embed_texts

_SLICES_PER_STEP = 256
_MOST_NAMED = 20


@dataclass(frozen=True)
class Evaluation:
    """What models are evaluated on, and how they are run.

    Attributes:
        data: folder that `radfm prepare` made.
        split: "train", "validation", "test" or "all".
        names: disorders to score; None: those of the data set. Names that the data set does not have have no positives.
        one_scan: show the model one scan of each case, sampled by case, instead of all.
        history: give histories to models that read them, without words that name the disorders of the case.
        bf16: compute in bfloat16, where that is faster.
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        fold: such as "0/5", see `radfm.data_prep.load`; None: the splits of the data set.
        progress: called with the number of cases done, and of all cases.
    """

    data: str | Path
    split: str = "test"
    names: Sequence[str] | None = None
    one_scan: bool = False
    history: bool = True
    bf16: bool = False
    device: str | None = None
    fold: str | None = None
    progress: Progress = no_progress


def score(model: str | Path, evaluation: Evaluation) -> Scores:
    """Logits of all labelled cases of a split, calibrated if the checkpoint is.

    Args:
        model: folder of a checkpoint, or name of one that comes with radfm.
    Raises:
        FileNotFoundError: there is no such data set or checkpoint.
        ValueError: a patient is in several splits, the checkpoint was trained on these cases, the split has no labelled
            case, an mlp head does not have a disorder, or a score is nan.
    """
    network, processor = load_checkpoint(model, evaluation.device)
    return score_with(network, processor, evaluation, about=about_checkpoint(model))


def score_with(
    network: RadFMForDiagnosis,
    processor: RadFMProcessor,
    evaluation: Evaluation,
    embeds: Tensor | None = None,
    about: dict | None = None,
) -> Scores:
    """`score` for a model in memory.

    Args:
        embeds: (disorders, d) of the names, to be used for all of them, also for those in the model's vocabulary.
        about: where the model comes from. With `frozen_tower` in it, the features of slices are kept for the next model
            that has the same tower, see `radfm.data_prep.batches.slice_features`.
    """
    about = about or {}
    processor.use_history = processor.use_history and evaluation.history
    everything = load(evaluation.data, fold=evaluation.fold)
    cases = labelled_cases(evaluation.data, evaluation.split, fold=evaluation.fold)
    require_unshared_patients(everything, evaluation.split)
    _require_unseen_cases(about, evaluation, everything)
    vocabulary = cases.vocabulary
    given = evaluation.names
    names = vocabulary.names if given is None else [_spelled_as_in(cases, name) for name in given]
    columns, embeds = score_columns(network, processor, names) if embeds is None else (None, embeds)
    dataset = CaseDataset(cases, processor, Sampling(sample_scans=1) if evaluation.one_scan else None)
    if about.get("frozen_tower", False):
        dtype = torch.bfloat16 if evaluation.bf16 else torch.float32
        dataset.features = slice_features(cases, dataset.rows, network, processor, dtype)
    scores, logits = _scores(network, dataset, columns, embeds, evaluation)
    about = {
        **about,
        "dtype": "bfloat16" if evaluation.bf16 else "float32",
        "vocabulary": "the data set's" if list(names) == vocabulary.names else "given",
        "scans": "one" if evaluation.one_scan else "all",
        "histories": "read" if processor.use_history else "not read",
        **_thresholds_and_sets(network.config, columns),
    }
    return table_of(dataset, everything, scores, names, about, logits)


def labelled_cases(data: str | Path, split: str, publishable: bool = False, fold: str | None = None) -> StoredCases:
    """The labelled cases of a split, see `load`, or "all".

    Raises:
        ValueError, FileNotFoundError: there is no such data set, or no such case in the split.
    """
    cases = load(data, None if split == ALL else split, labelled=True, publishable=publishable, fold=fold)
    if not len(cases):
        raise ValueError(f"{data} has no labelled case in its split {split!r}")
    return cases


@torch.inference_mode()
def outputs(
    network: RadFMForDiagnosis, dataset: CaseDataset, bf16: bool = False, progress: Progress = no_progress
) -> Iterator[tuple[Tensor, dict[str, Tensor], RadFMDiagnosisOutput]]:
    """The model's output for all cases, step by step: their rows (cases,), the packed batch, and the output."""
    done, steps = 0, steps_in_order(dataset.slice_counts, _SLICES_PER_STEP)
    for batch in step_loader(dataset, steps):
        rows = batch.pop("case_rows")
        del batch["labels"], batch["key_slices"]
        with torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
            batch = {key: value.to(network.device) for key, value in batch.items()}
            output = network(**batch)
        yield rows, batch, output
        done += len(rows)
        progress(done, len(dataset))


def require_unshared_patients(cases: StoredCases, split: str) -> None:
    """Raises: ValueError with the list of the patients of the split that are also in another split."""
    splits: dict[str, set[str]] = {}
    for row in cases.rows:
        splits.setdefault(patient_of(row), set()).add(row["split"])
    shared = sorted(patient for patient, of_patient in splits.items() if split in of_patient and len(of_patient) > 1)
    if shared:
        raise ValueError(f"{len(shared):,} patients of the split {split!r} are in other splits, too: {_listed(shared)}")


def _require_unseen_cases(about: Mapping[str, Any], evaluation: Evaluation, everything: StoredCases) -> None:
    """Raises: ValueError if the model's recipe says that it was trained on cases of this split."""
    if everything.fingerprint not in (about.get("trained_on") or "").split("; "):  # several of a federation
        return
    fold, measured = about.get("trained_on_fold"), evaluation.fold
    if evaluation.split == ALL:
        raise ValueError(f"{about['model']} was trained on a part of {evaluation.data}: measure another split than all")
    if evaluation.split == "validation" and fold != measured:
        trained, measured = (f"fold {one}" if one else "the data set's splits" for one in (fold, measured))
        raise ValueError(f"{about['model']} was trained with {trained}, so it has seen validation cases of {measured}")


@torch.inference_mode()
def _scores(
    network: RadFMForDiagnosis,
    dataset: CaseDataset,
    columns: list[int] | None,
    embeds: Tensor | None,
    evaluation: Evaluation,
) -> tuple[np.ndarray, np.ndarray | None]:
    """(cases, disorders) scores, and logits if calibration changes them: of the vocabulary, then of `embeds`.

    Args:
        columns: which of these; None: of `embeds` alone.
    """
    scores, logits = {}, {}
    calibrated = columns is not None and network.config.calibration is not None
    for rows, _, output in outputs(network, dataset, evaluation.bf16, evaluation.progress):
        tokens = output.tokens_per_case.tolist()
        others = [] if embeds is None else [network.pool(network.head(output.token_embeds, embeds), tokens).float()]
        known = [] if columns is None else [network.log_odds(output.logits).float()]
        scores |= zip(rows.tolist(), torch.cat(known + others, 1).cpu(), strict=True)
        if calibrated:
            logits |= zip(rows.tolist(), torch.cat([output.logits.float(), *others], 1).cpu(), strict=True)
    chosen = slice(None) if columns is None else columns

    def table(values: dict[int, Tensor]) -> np.ndarray:
        return torch.stack([values[row] for row in range(len(dataset))])[:, chosen].numpy()

    return table(scores), table(logits) if logits else None


def _thresholds_and_sets(config, columns: list[int] | None) -> dict:
    """The checkpoint's thresholds of these disorders (None where it has none), and its rule for prediction sets."""
    if columns is None:
        return {}
    about, known = {}, config.thresholds or []
    thresholds = [known[row] if row < len(known) else None for row in columns]
    if any(threshold is not None for threshold in thresholds):
        about["thresholds"] = thresholds
    if config.prediction_sets is not None and max(columns) < len(config.disorders):
        of_disorders = np.broadcast_to(config.prediction_sets["threshold"], len(config.disorders))
        about["prediction_sets"] = config.prediction_sets | {"threshold": of_disorders[columns].tolist()}
    return about


def score_columns(network: RadFMForDiagnosis, processor, names: Sequence[str]) -> tuple[list[int], Tensor | None]:
    """The column of each name, among those of the vocabulary and, after them, other texts; and the texts' embeddings.

    Raises:
        ValueError: a name is not in the vocabulary, and the checkpoint cannot embed it.
    """
    vocabulary = network.config.vocabulary
    others = [name for name in names if name not in vocabulary]
    if others and (network.radfm.text_encoder is None or not network.head.reads_text):
        raise ValueError(
            f"the checkpoint does not embed names, and was not trained on {_listed(others)}: give names of its "
            "vocabulary"
        )
    new = {name: len(vocabulary) + i for i, name in enumerate(others)}
    columns = [new[name] if name in new else vocabulary.row(name) for name in names]
    return columns, embed_texts(network, processor, others) if others else None


def _spelled_as_in(cases: StoredCases, name: str) -> str:
    disorder = cases.vocabulary.find(name)
    return name if disorder is None else disorder.name


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
