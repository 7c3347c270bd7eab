"""A checkpoint and a data set -> a table of scores.

    >>> from radfm.eval.predict import score
    >>> score("runs/mine", "datasets/mine", split="test").save("evaluation/mine.parquet")

Decisions:
- The vocabulary is that of the data set. A name that the checkpoint knows is scored as it scores it, calibrated where
  it was; a text head is given the others, an mlp head has to know them all.
- Every case is shown as a validation shows it: whole, with at most as many slices of a scan as the checkpoint learned.
- A tower that was frozen is shared by checkpoints: its features of a slice are computed once for all.
- Nobody is measured on patients it may have learned from: a patient of several splits is refused, with the list.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from radfm.checkpoints import CONFIDENCE, find
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.data_prep.batches.slice_features import slice_features
from radfm.data_prep.data_summary import age_group
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.scores import Scores
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.outputs_radfm import RadFMDiagnosisOutput
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.recipes_radfm import MODEL_RECIPES
from radfm.reference_radfm import weights_sha256
from radfm.starting_points import embed_texts

_SLICES_PER_STEP = 256
_MOST_NAMED = 20
_MOST_FOLDERS = 30
_SCANS = {2: "1", 3: "2", 5: "3 or 4", 10**9: "5 and more"}


def score(
    model: str | Path,
    data: str | Path,
    split: str = "test",
    names: Sequence[str] | None = None,
    bf16: bool = False,
    device: str | None = None,
    one_scan: bool = False,
    history: bool = True,
    progress: Progress = no_progress,
) -> Scores:
    """Logits of all labelled cases of a split, calibrated where the checkpoint is.

    Args:
        model: folder of a checkpoint, or name of one that comes with radfm.
        data: folder that `radfm prepare` made.
        names: disorders to score, in place of the data set's; those it does not have have no positive case.
        bf16: compute in bfloat16, where that is faster.
        device: "cpu", "cuda", ...; None: a GPU where there is one.
        one_scan: show one scan of a case, drawn by case, instead of all.
        history: tell a model that reads histories those of the cases, without words that name their own disorders.
        progress: told how many cases are done, of how many.

    Raises:
        FileNotFoundError: there is no such data set or checkpoint.
        ValueError: a patient is in several splits, the split has no labelled case, an mlp head lacks a disorder, or a
            score is no number.
    """
    network, processor = load_checkpoint(model, device)
    processor.use_history = processor.use_history and history
    about = about_checkpoint(model)
    kept = about.get("frozen_tower", False)
    return score_with(network, processor, data, split, names, None, bf16, one_scan, progress, about, kept)


def score_with(
    network: RadFMForDiagnosis,
    processor: RadFMProcessor,
    data: str | Path,
    split: str = "test",
    names: Sequence[str] | None = None,
    embeds: Tensor | None = None,
    bf16: bool = False,
    one_scan: bool = False,
    progress: Progress = no_progress,
    about: dict | None = None,
    keep_features: bool = False,
) -> Scores:
    """`score` by a model that is in memory already.

    Args:
        embeds: (disorders, d) of the names, which the model is then asked with, even for a name that it knows.
        about: where the model comes from.
        keep_features: of each slice by the tower, for the next model that has the same, see
            `radfm.data_prep.batches.slice_features`.
    """
    everything, cases = load(data), labelled_cases(data, split)
    refuse_shared_patients(everything, split)
    vocabulary = cases.vocabulary
    names = vocabulary.names if names is None else [_as_in_the_data(name, cases) for name in names]
    columns, embeds = _addressed(network, processor, names) if embeds is None else (None, embeds)
    shown = CaseDataset(cases, processor, Sampling(sample_scans=1) if one_scan else None)
    if keep_features:
        dtype = torch.bfloat16 if bf16 else torch.float32
        shown.features = slice_features(cases, shown.rows, network, processor, dtype)
    scores, logits = _scores(network, shown, columns, embeds, bf16, progress)
    about = {
        **(about or {}),
        "dtype": "bfloat16" if bf16 else "float32",
        "vocabulary": "the data set's" if list(names) == vocabulary.names else "given",
        "scans": "one" if one_scan else "all",
        "histories": "read" if processor.use_history else "not read",
        **_limits(network.config, columns),
    }
    return table_of(shown, everything, scores, names, about, logits)


def labelled_cases(data: str | Path, split: str) -> StoredCases:
    """Raises: ValueError, FileNotFoundError: there is no such data set, or no labelled case in the split."""
    cases = load(data, split, labelled=True)
    if not len(cases):
        raise ValueError(f"{data} has no labelled case in its split {split!r}")
    return cases


def load_checkpoint(folder: str | Path, device: str | None = None) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """Args: device: "cpu", "cuda", ...; None: a GPU where there is one. Raises: as `radfm.checkpoints.find`."""
    folder = find(folder, local=True)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return RadFMForDiagnosis.from_pretrained(folder).eval().to(device), RadFMProcessor.from_pretrained(folder)


@torch.inference_mode()
def outputs(
    network: RadFMForDiagnosis,
    shown: CaseDataset,
    bf16: bool = False,
    progress: Progress = no_progress,
) -> Iterator[tuple[Tensor, dict[str, Tensor], RadFMDiagnosisOutput]]:
    """What the model says of all cases, step by step: their rows (cases,), the packed batch, and the output."""
    done, steps = 0, steps_in_order(shown.slice_counts, _SLICES_PER_STEP)
    for batch in step_loader(shown, steps):
        rows = batch.pop("case_rows")
        del batch["labels"], batch["key_slices"]
        with torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
            batch = {key: value.to(network.device) for key, value in batch.items()}
            seen = network(**batch)
        yield rows, batch, seen
        done += len(rows)
        progress(done, len(shown))


def table_of(
    shown: CaseDataset,
    everything: StoredCases,
    scores: np.ndarray,
    names: Sequence[str] | None = None,
    about: dict | None = None,
    logits: np.ndarray | None = None,
) -> Scores:
    """Scores of any origin, with all that the data set says of these cases.

    Args:
        shown: the cases that were scored, of one split of `everything`.
        scores: (cases, disorders).
        names: of the disorders; None: those of the data set.
        about: what is known of their origin.
        logits: (cases, disorders) the scores before they were calibrated; None where they were not.
    """
    cases = shown.cases
    vocabulary = cases.vocabulary
    names = vocabulary.names if names is None else names
    rows = [cases.rows[row] for row in shown.rows]
    row_of = {name: row for row, name in enumerate(names)}
    trained = [row for row in everything.rows if row["split"] == "train" and row["labelled"]]
    training = [sorted(row_of[name] for name in row["disorders"] if name in row_of) for row in trained]
    return Scores(
        scores=scores,
        names=list(names),
        icd10cm=[disorder.icd10cm if (disorder := vocabulary.find(name)) else [] for name in names],
        case_ids=[row["case_id"] for row in rows],
        patients=[patient_of(row) for row in rows],
        disorders=[[vocabulary[label].name for label in row["labels"]] for row in rows],
        training=[rows for rows in training if rows],
        attributes=_attributes(cases, rows),
        about={
            **(about or {}),
            "data": everything.record["fingerprint"],
            "dataset": everything.folder.name,
            "split": cases.split,
            "left_out": dict(shown.skipped),
            "radfm": version("radfm"),
        },
        logits=logits,
    )


@torch.inference_mode()
def _scores(
    network, shown: CaseDataset, columns: list[int] | None, embeds: Tensor | None, bf16: bool, progress
) -> tuple[np.ndarray, np.ndarray | None]:
    """(cases, disorders) scores, and logits where calibrating changes them: of the vocabulary, then of `embeds`.

    Args:
        columns: which of these; None: of `embeds` alone.
    """
    scores, logits = {}, {}
    calibrated = columns is not None and network.config.calibration is not None
    for rows, _, seen in outputs(network, shown, bf16, progress):
        others = [] if embeds is None else [network.head(seen.case_embeds, embeds).float()]
        known = [] if columns is None else [network.log_odds(seen.logits).float()]
        scores |= zip(rows.tolist(), torch.cat(known + others, 1).cpu(), strict=True)
        if calibrated:
            logits |= zip(rows.tolist(), torch.cat([seen.logits.float(), *others], 1).cpu(), strict=True)
    chosen = slice(None) if columns is None else columns
    found = [
        torch.stack([values[row] for row in range(len(shown))])[:, chosen].numpy() if values else None
        for values in (scores, logits)
    ]
    return found[0], found[1]


def _limits(config, columns: list[int] | None) -> dict:
    """Where the checkpoint has any, its thresholds of these disorders (None where there is none), and rule for sets."""
    if columns is None:
        return {}
    found, known = {}, config.thresholds or []
    thresholds = [known[row] if row < len(known) else None for row in columns]
    if any(threshold is not None for threshold in thresholds):
        found["thresholds"] = thresholds
    if config.prediction_sets is not None and max(columns) < len(config.disorders):
        least = np.broadcast_to(config.prediction_sets["threshold"], len(config.disorders))
        found["prediction_sets"] = config.prediction_sets | {"threshold": least[columns].tolist()}
    return found


def _addressed(network, processor, names: Sequence[str]) -> tuple[list[int], Tensor | None]:
    """Where each name's score stands, behind the checkpoint's vocabulary those of other texts; and their embeddings."""
    row_of = {name.casefold(): row for row, name in enumerate(network.config.disorders)}
    others = [name for name in names if name.casefold() not in row_of]
    if others and (network.radfm.text_encoder is None or not network.head.reads_text):
        more = f" and {len(others) - _MOST_NAMED:,} more" if len(others) > _MOST_NAMED else ""
        raise ValueError(
            f"the checkpoint cannot be addressed by name, and was not trained on {', '.join(others[:_MOST_NAMED])}"
            f"{more}: give names that it knows"
        )
    row_of |= {name.casefold(): len(network.config.disorders) + i for i, name in enumerate(others)}
    return [row_of[name.casefold()] for name in names], embed_texts(network, processor, others) if others else None


def refuse_shared_patients(cases: StoredCases, split: str) -> None:
    """Raises: ValueError with the list of the split's patients that are in another one, too."""
    splits: dict[str, set[str]] = {}
    for row in cases.rows:
        splits.setdefault(patient_of(row), set()).add(row["split"])
    shared = sorted(patient for patient, mine in splits.items() if split in mine and len(mine) > 1)
    if shared:
        more = f" and {len(shared) - _MOST_NAMED:,} more" if len(shared) > _MOST_NAMED else ""
        raise ValueError(
            f"{len(shared):,} patients of the split {split!r} are in other splits, too: "
            f"{', '.join(shared[:_MOST_NAMED])}{more}"
        )


def _as_in_the_data(name: str, cases: StoredCases) -> str:
    found = cases.vocabulary.find(name)
    return name if found is None else found.name


def _attributes(cases: StoredCases, rows: list[dict]) -> dict[str, list[list[str]]]:
    scans = [[cases.scan_header(scan) for scan in row["scan_rows"]] for row in rows]
    return {
        "modality": [sorted({scan["modality"] for scan in mine if scan["modality"]}) for mine in scans],
        "body part": [sorted({scan["body_part"] for scan in mine if scan["body_part"]}) for mine in scans],
        "scans": [[_range(len(mine), _SCANS)] for mine in scans],
        "folder": _folders(scans),
        "age": [[] if row["age"] is None else [age_group(row["age"])] for row in rows],
        "sex": [[row["sex"]] if row["sex"] else [] for row in rows],
    }


def _folders(scans: list[list[dict]]) -> list[list[str]]:
    """The first folder of a case's files, where a few hold all: the parts that a set was put together from."""
    folders = [sorted({scan["source"].split("/")[0] for scan in mine if "/" in scan["source"]}) for mine in scans]
    return folders if len({f for mine in folders for f in mine}) <= _MOST_FOLDERS else [[] for _ in scans]


def _range(value: float, ranges: dict[float, str]) -> str:
    return next(name for below, name in ranges.items() if value < below)


def about_checkpoint(model: str | Path) -> dict:
    """What a table of scores says of whose they are: name, fingerprint of the weights, `recipe_of`, and the fingerprint
    of the data that it was calibrated on, if it was.
    """
    folder = Path(find(model, local=True))
    about = {"model": Path(model).name, "checkpoint": weights_sha256(folder), **recipe_of(folder)}
    fit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("calibration")
    if fit is not None and "nearest" not in fit:  # `radfm calibrate --hubness` reads no label and no validation case
        apart = folder / CONFIDENCE  # `radfm finetune` calibrates by what it learns from
        record = json.loads(apart.read_text(encoding="utf-8")) if apart.is_file() else {}
        about["calibrated_on"] = record.get("data", about.get("trained_on"))
    return about


def recipe_of(folder: Path) -> dict:
    """Of a checkpoint that radfm trained: the data it learned from last, and the disorders that were withheld."""
    for name in MODEL_RECIPES:
        if (folder / name).is_file():
            recipe = json.loads((folder / name).read_text(encoding="utf-8"))
            run = recipe.get("key", recipe)
            data = run["data"] if isinstance(run["data"], str) else run["data"]["fingerprint"]
            sections = {name: run["config"].get(name) or {} for name in ("data", "model")}
            frozen = sections["model"].get("frozen") == "tower"
            return {"trained_on": data, "withheld": sections["data"].get("withheld", []), "frozen_tower": frozen}
    return {}
