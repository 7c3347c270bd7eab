"""The patients of a data set that a model proposes to label next, and the table of their cases.

    radfm select datasets/mine --model runs/mine --budget 50 --out next.csv

Decisions:
- Cases without labels are the pool, those with labels are known. The table that was filled in before counts as labels,
  too, before the data set is prepared with it.
- By default the pool is the training split. The test cases of a model have to be a random sample: with
  `--split test --strategy random` one labels those.
- Embeddings and scores are computed on the spot, one case at a time. Histories are left out, as in `radfm embed`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from radfm.data_prep.sources.labelled import Label, read_labels
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.predict import score_columns
from radfm.eval.score_tables import ALL
from radfm.eval.selection import STRATEGIES, candidates_of, choose, duplicate_patients
from radfm.progress import Progress, no_progress

SUGGESTIONS = 3  # of a case
COLD_START = "cover"  # the default without labels; with labels, WITH_LABELS
WITH_LABELS = "badge"


@dataclass(frozen=True)
class Selection:
    """What to label next.

    Attributes:
        cases: the pool.
        rows: of the chosen cases in the pool, in the order in which they are to be read.
        suggestions: of each chosen case, the most probable disorders with their probability.
        names: the disorders that were scored.
        strategy: its name.
        facts: JSON-able, for table and page: `pool`, `known`, `copies`, `patients` and more.
    """

    cases: StoredCases
    rows: list[int]
    suggestions: list[list[tuple[str, float]]]
    names: list[str]
    strategy: str
    facts: dict[str, Any]


def select(
    data: str | Path,
    model: str | Path,
    budget: int,
    strategy: str | None = None,
    split: str = "train",
    labelled: Sequence[Path] = (),
    names: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = no_progress,
) -> Selection:
    """
    Args:
        data: folder that `radfm prepare` made; some of its cases, or all, have no label.
        model: folder of a checkpoint, or name of one that comes with radfm.
        budget: number of cases to label.
        strategy: a key of `radfm.eval.selection.STRATEGIES`; None: "rare" if names are given, else the
            default with or without labels.
        split: of the pool: "train", "validation", "test" or "all".
        labelled: tables that were filled in, see `radfm.data_prep.sources.labelled`.
        names: disorders that `rare` asks for, also such as the data set does not have; None: those of the data set, or
            of the model where the data set has none.
        seed: of what is random.
    Raises:
        FileNotFoundError: there is no such data set, checkpoint or table.
        ValueError: every case has a label, the budget is larger than the pool, or an unknown strategy or name.
    """
    cases = load(data, None if split == ALL else split)
    filled = _filled(labelled)
    known = np.array([row["labelled"] or row["case_id"] in filled for row in cases.rows], bool)
    if known.all():
        raise ValueError(f"all {len(known):,} cases of {data} ({split}) have labels: there is none to choose")
    strategy = strategy or ("rare" if names else WITH_LABELS if known.any() else COLD_START)
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}: there are {', '.join(STRATEGIES)}")
    network, processor = load_checkpoint(model, device)
    scored = list(names or cases.vocabulary.names or network.config.disorders)
    embeddings, log_odds = _scored(network, processor, cases, scored, progress)
    patients = [patient_of(row) for row in cases.rows]
    of_case = [filled[row["case_id"]].disorders if row["case_id"] in filled else row["disorders"] for row in cases.rows]
    present = [{name.casefold() for name in names} for names in of_case]
    labels = np.array([[name.casefold() in case for name in scored] for case in present], bool)
    candidates, of_patient = candidates_of(
        patients, embeddings, log_odds, known, labels, duplicate_patients(cases.folder)
    )
    chosen = [of_patient[row] for row in choose(candidates, strategy, budget, seed)]
    rows_of: dict[str, list[int]] = {patient: [] for patient in chosen}
    for row, patient in enumerate(patients):
        if patient in rows_of:
            rows_of[patient].append(row)
    rows = [row for of_one in rows_of.values() for row in of_one]
    facts = {
        "data": cases.record["fingerprint"],
        "dataset": cases.folder.name,
        "model": Path(model).name,
        "split": split,
        "cases": len(rows),
        "patients": len(chosen),
        "pool": int((~known).sum()),
        "known": int(known.sum()),
        "copies": len(set(patients)) - len(of_patient),
        "strategy": strategy,
        "meaning": STRATEGIES[strategy].meaning,
        "seed": seed,
    }
    return Selection(cases, rows, [_suggestions(log_odds[row], scored) for row in rows], scored, strategy, facts)


def _filled(tables: Iterable[Path]) -> dict[str, Label]:
    """case_id -> its label in tables that were filled in. Raises: ValueError: a row cannot be used."""
    labels: dict[str, Label] = {}
    for table in tables:
        of_table, rejected = read_labels(table)
        if rejected:
            raise ValueError(f"{table}, {rejected[0].name} {rejected[0].reason}")
        labels |= of_table
    return labels


@torch.inference_mode()
def _scored(network, processor, cases: StoredCases, names: list[str], progress: Progress):
    """(cases, d) embeddings of unit length, and (cases, disorders) calibrated log-odds."""
    processor.use_history = False
    columns, embeds = score_columns(network, processor, names)
    embeddings, scores = [], []
    for position in range(len(cases)):
        batch = {key: value.to(network.device) for key, value in processor(cases=[cases[position]]).items()}
        output = network(**batch)
        tokens = output.tokens_per_case.tolist()
        others = [] if embeds is None else [network.pool(network.head(output.token_embeds, embeds), tokens)]
        of_case = torch.cat([network.log_odds(output.logits), *others], 1)[:, columns]
        scores.append(of_case.float().cpu().numpy()[0])
        embeddings.append(F.normalize(output.case_embeds.float(), dim=-1).cpu().numpy()[0])
        progress(position + 1, len(cases))
    return np.stack(embeddings), np.stack(scores)


def _suggestions(log_odds: np.ndarray, names: Sequence[str]) -> list[tuple[str, float]]:
    best = np.argsort(-log_odds)[:SUGGESTIONS]
    return [(names[one], float(1 / (1 + np.exp(-log_odds[one])))) for one in best]
