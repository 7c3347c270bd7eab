"""The logits of a teacher for the training cases, which a model learns beside the labels (distillation).

Decisions:
- The teacher sees other pixels of the same cases: a teacher of images sees the reconstructions of the latents that the
  model reads, so it knows no more of a case than they contain.
- Its logits are computed once, for whole cases as in an evaluation, and kept in the cache folder of the user: a resumed
  run, and one with another seed, reads them. The name of the file is a hash of all that they depend on.
- They are the logits before any calibration, which would flatten them.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from radfm.checkpoints import find
from radfm.data_prep.stored_cases import StoredCases
from radfm.data_prep.tables import replacing
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.predict import Evaluation, labelled_cases, score_with
from radfm.knowledge.cache import cache_folder
from radfm.reference_radfm import weights_sha256


def teacher_logits(teacher: str, reconstructions: str | Path, cases: StoredCases) -> Tensor:
    """(cases, disorders) float32, in the order of `cases` and of their vocabulary.

    Args:
        teacher: folder of a checkpoint, or name of one that comes with radfm.
        reconstructions: folder of a data set with the same cases.
        cases: of the training split.
    Raises:
        ValueError: the teacher has no such disorder and reads no names, the data set lacks a case, or it does not show
            what the latents of the cases contain.
        FileNotFoundError: there is no such checkpoint or data set.
    """
    names, case_ids = cases.vocabulary.names, [row["case_id"] for row in cases.rows]
    shown = labelled_cases(reconstructions, "train", fold=cases.fold)
    if missing := sorted(set(case_ids) - {row["case_id"] for row in shown.rows}):
        raise ValueError(
            f"data.reconstructions: {reconstructions} lacks {len(missing):,} training cases, such as {missing[0]}: "
            f"run radfm prepare reconstructions on the data set that {cases.folder} was made of"
        )
    _check_reconstructions(shown, cases)
    folder = Path(find(teacher, local=True))
    depends_on = [weights_sha256(folder), shown.record["fingerprint"], cases.fold, names, case_ids]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:24]
    file = (cache_folder() or Path(tempfile.gettempdir()) / "radfm") / "teachers" / f"{key}.npy"
    if not file.exists():
        logits = _scored(teacher, Evaluation(reconstructions, "train", names, fold=cases.fold), case_ids)
        with replacing(file) as draft, open(draft, "wb") as written:
            np.save(written, logits, allow_pickle=False)
    return torch.from_numpy(np.load(file, allow_pickle=False))


def _check_reconstructions(shown: StoredCases, cases: StoredCases) -> None:
    """Raises: ValueError: the cases are latents, and these are not the reconstructions of them."""
    latents, made = cases.record.get("latents"), shown.record.get("reconstructions")
    if latents is None:
        return
    by_same = made is not None and made["autoencoder"] == latents["autoencoder"]
    if not by_same or shown.record["derived_from"] != cases.record["derived_from"]:
        raise ValueError(
            f"data.reconstructions: {shown.folder} does not hold the reconstructions of the latents in {cases.folder}: "
            f"run radfm prepare reconstructions on the same data set with autoencoder {latents['autoencoder']}"
        )


def _scored(teacher: str, evaluation: Evaluation, case_ids: list[str]) -> np.ndarray:
    model, processor = load_checkpoint(teacher)
    unknown = [name for name in evaluation.names or () if name not in model.config.vocabulary]
    if unknown and not (model.head.reads_text and model.radfm.text_encoder is not None):
        raise ValueError(
            f"model.teacher: {teacher} has a fixed list of disorders without {unknown[0]!r}: take a teacher with a "
            "text head, or one that was trained on the disorders of the data"
        )
    print(f"The teacher scores {len(case_ids):,} training cases", file=sys.stderr)
    scores = score_with(model, processor, evaluation)
    logits = scores.scores if scores.logits is None else scores.logits
    row_of = {case_id: row for row, case_id in enumerate(scores.case_ids)}
    if unread := [case_id for case_id in case_ids if case_id not in row_of]:
        raise ValueError(f"data.reconstructions: case {unread[0]} cannot be read: {scores.about['left_out']}")
    return logits[[row_of[case_id] for case_id in case_ids]].astype(np.float32)
