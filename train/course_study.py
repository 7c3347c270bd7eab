"""Whether a model sees that a disorder changed: its change between dates, each date alone, and a recurrent model.

    radfm evaluate course datasets/follow_up --model radfm-phantom-mini --out studies/course

| method | score of a step from a date to the next |
|---|---|
| change | log odds of the later date less those of the earlier, as `radfm diagnose --course` gives them |
| later date alone | log odds of the later date |
| earlier date alone | minus the log odds of the earlier date |
| recurrent | of a GRU over the embeddings of all dates up to the later one, trained on the training split |

Decisions:
- Every date is scored once as a case of its own, without history. Scores and embeddings are kept in the folder, and a
  killed study continues with them.
- The change is compared with the better of the two dates alone, by the AUC of the direction.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.dated_cases import DatedCases
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.data_prep.tables import replacing
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.course import Steps, measure_steps, steps_of, words_of
from radfm.eval.course_page import write_course
from radfm.eval.predict import labelled_cases, outputs, require_unshared_patients, score_columns
from radfm.eval.score_tables import about_checkpoint
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress, part_of
from radfm.train.recurrent_course import recurrent_scores

CHANGE, LATER, EARLIER, RECURRENT = "change", "later date alone", "earlier date alone", "recurrent"


@dataclass(frozen=True)
class ScoredDates:
    """The dates of a split, scored one by one.

    Attributes:
        cases: the dates.
        steps: between them.
        log_odds: (dates, disorders).
        embeds: (dates, d), case embeddings.
    """

    cases: DatedCases
    steps: Steps
    log_odds: np.ndarray
    embeds: np.ndarray

    def of_steps(self, dates: np.ndarray) -> np.ndarray:
        """(steps,) log odds of each step's disorder on a date of the step."""
        return self.log_odds[dates, self.steps.disorders]


def course_study(
    data: str | Path,
    model: str | Path,
    out: Path,
    seeds: int = 3,
    bootstraps: int = 1000,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measures the changes of a model on the test split; writes course.json, course.html and a figure.

    Args:
        data: folder that `radfm prepare` made, with cases of several dates and a table of sizes.
        model: folder of a checkpoint, or name of one that comes with radfm.
        out: folder of the study.
        seeds: of the recurrent model.
        bootstraps: number of resamples of the test patients.
        progress: called with the number of scored dates, and of all.
    Returns:
        JSON-able: `data` (fingerprint), `dataset`, `model`, `checkpoint`, `synthetic`, `seeds`, `bootstraps`,
        `training_steps`, what `radfm.eval.course.measure_steps` returns, and `words` (of `words_of`).
    Raises:
        ValueError: the data set has no table of sizes, no case with several dates or nothing to compare, or `out` holds
            the scores of another model or data set.
        FileNotFoundError: there is no such data set or checkpoint.
    """
    everything, out = load(data), Path(out)
    require_unshared_patients(everything, "test")
    about = about_checkpoint(model)
    network, processor = load_checkpoint(model, device)
    processor.use_history = False
    splits = {split: DatedCases(labelled_cases(data, split)) for split in ("train", "test")}
    steps = {split: steps_of(cases) for split, cases in splits.items()}
    scored = {}
    for number, (split, cases) in enumerate(splits.items()):
        key = {"data": everything.fingerprint, "checkpoint": about["checkpoint"], "split": split}
        part = part_of(progress, number, len(splits))
        log_odds, embeds = _scores(out / "scores" / f"{split}.npz", key, network, processor, cases, part)
        scored[split] = ScoredDates(cases, steps[split], log_odds, embeds)
    test, training = scored["test"], scored["train"]
    before, after = test.of_steps(test.steps.before), test.of_steps(test.steps.after)
    scores = {CHANGE: after - before, LATER: after, EARLIER: -before}
    learn, unseen = ((one.embeds, one.cases.rows, one.steps) for one in (training, test))
    scores[RECURRENT] = recurrent_scores(learn, unseen, _addresses(network, processor, everything), seeds)
    result = {
        "data": everything.fingerprint,
        "dataset": everything.folder.name,
        "synthetic": everything.is_synthetic,
        "model": about["model"],
        "checkpoint": about["checkpoint"],
        "seeds": seeds,
        "bootstraps": bootstraps,
        "training_steps": len(training.steps),
        **measure_steps(test.steps, scores, (LATER, EARLIER), bootstraps),
        "words": words_of(test.steps, scores[CHANGE]),
    }
    write_course(out, result, test.cases, test.steps, test.log_odds)
    return result


@torch.inference_mode()
def _scores(
    file: Path,
    key: Mapping[str, Any],
    network: RadFMForDiagnosis,
    processor: RadFMProcessor,
    cases: DatedCases,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Log odds (dates, disorders) and case embeddings (dates, d), computed once."""
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            if json.loads(str(stored["key"])) != key:
                raise ValueError(f"{file} holds scores of another model or data set: choose another --out")
            return stored["log_odds"], stored["embeds"]
    dataset = CaseDataset(cases, processor)
    if dataset.skipped:
        raise ValueError(f"case {dataset.skipped[0][0]} of {cases.folder} cannot be read: {dataset.skipped[0][1]}")
    columns, texts = score_columns(network, processor, cases.vocabulary.names)
    log_odds = np.zeros((len(dataset), len(columns)), np.float32)
    embeds = np.zeros((len(dataset), network.config.projection_dim), np.float32)
    for rows, _, output in outputs(network, dataset, progress=progress):
        tokens = output.tokens_per_case.tolist()
        parts = [network.log_odds(output.logits).float()]
        if texts is not None:
            parts.append(network.pool(network.head(output.token_embeds, texts), tokens).float())
        odds = np.concatenate([part.cpu().numpy() for part in parts], 1)
        log_odds[rows], embeds[rows] = odds[:, columns], output.case_embeds.float().cpu().numpy()
    with replacing(file) as draft, draft.open("wb") as stream:
        np.savez(stream, key=json.dumps(key), log_odds=log_odds, embeds=embeds)
    return log_odds, embeds


@torch.inference_mode()
def _addresses(network: RadFMForDiagnosis, processor: RadFMProcessor, cases: StoredCases) -> np.ndarray:
    """(disorders, d) float32: their text embeddings; one-hot vectors for a head that reads no text."""
    names: Sequence[str] = cases.vocabulary.names
    columns, texts = score_columns(network, processor, names)
    if not network.head.reads_text:
        return np.eye(len(names), dtype=np.float32)
    known = network.head.disorder_embeds
    embeds = known if texts is None else torch.cat([known, texts])
    return embeds[columns].float().cpu().numpy()
