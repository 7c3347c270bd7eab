"""External validation within a data set: each source, site or scanner, or the newest years, is left out once.

    radfm evaluate transfer datasets/mine --by site --model radfm-phantom-mini --out transfer

For each part, the checkpoint is fine-tuned on the training cases of the other parts, and measured on the test cases of
the part, beside the checkpoint that was fine-tuned on all training cases; see `radfm.eval.transfer` for the figures.

Decisions:
- One recipe for all trainings, that of `radfm finetune`. Validation cases of a part are left out with its training
  cases, because they choose steps, weights and calibration.
- A checkpoint that was trained on cases of this data set is refused: it has seen what would be called unseen.
- By date, the one part is the newest years that have at least a fifth of the cases. Cases of an unknown part are never
  tested, and always trained on.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from radfm.checkpoints import find
from radfm.data_prep.case_groups import case_groups
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.data_prep.tables import write_text
from radfm.eval.predict import Evaluation, labelled_cases, score
from radfm.eval.score_tables import training_columns
from radfm.eval.scores import Scores
from radfm.eval.transfer import RESULTS, START, WITH, WITHOUT, Part, measurable, measure_part, write_transfer
from radfm.progress import Progress, no_progress
from radfm.recipes_radfm import load_recipe
from radfm.reference_radfm import weights_sha256
from radfm.train.finetune_config import FineTuning
from radfm.train.lineage import seen_fingerprints
from radfm.train.studies import Run, begin_study, finish_runs
from radfm.training_data_radfm import TrainingData

ATTRIBUTES = {"source": "collection", "site": "site", "scanner": "scanner", "date": "year"}
NEWEST = 0.2  # share of the cases that are of the part, by date


def transfer_study(
    data: str | Path,
    by: str,
    model: str,
    out: Path,
    config: FineTuning,
    seeds: int = 1,
    least: int = 20,
    level: str = "disorder",
    bootstraps: int = 1000,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Trains and measures all models, or continues a study that was killed; writes the page and the figures.

    Args:
        data: folder that `radfm prepare` made, with a training, a validation and a test split.
        by: "source", "site", "scanner" or "date".
        model: checkpoint that all trainings start from.
        out: folder of the study.
        config: the recipe of all trainings; data, checkpoint and seed are set here.
        seeds: number of seeds, from 0.
        least: number of labelled test cases of a part, and of a subgroup.
        level: of ICD-10-CM, see `radfm.eval.scores.Scores.at_level`.
        bootstraps: number of resamples of the test patients.
        progress: called with the number of finished trainings, and of all.
    Returns:
        JSON-able: `data` (fingerprint), `dataset` (name), `synthetic`, `by`, `attribute`, `level`, `least`, `seeds`,
        `bootstraps`, `method`, `model` (`name`, `weights`, `training_data`), `skipped` (part -> reason), and `parts`,
        see `radfm.eval.transfer.measure_part`.
    Raises:
        ValueError: the data set has no two parts, the checkpoint has seen its cases, or the folder holds another study.
        FileNotFoundError: there is no such data set or checkpoint.
    """
    if by not in ATTRIBUTES:
        raise ValueError(f"there is no --by {by}: there are {', '.join(ATTRIBUTES)}")
    cases, out, folder = load(data), Path(out), Path(find(model, local=True))
    _refuse_seen(model, cases)
    tested = labelled_cases(data, "test")
    config = replace(
        config,
        data=replace(config.data, path=str(data)),
        model=replace(config.model, checkpoint=str(folder)),
    )
    parts, skipped = _parts(cases, tested, config, by, least)
    _require_one(parts, skipped, by)
    begin_study(out, config, data=cases.fingerprint, by=by, weights=weights_sha256(folder))
    start = _start(out, folder, data)
    for name in [name for name, part in parts.items() if not measurable(part, start, ATTRIBUTES[by], level)[1].any()]:
        skipped[name] = "none of its disorders is in training cases of the others and in some of its test cases"
        del parts[name]
    _require_one(parts, skipped, by)
    runs: dict[str | None, list[Run]] = {None: [_run(out, config, None, by, seed) for seed in range(seeds)]}
    runs |= {name: [_run(out, config, part, by, seed) for seed in range(seeds)] for name, part in parts.items()}
    tables = finish_runs(out, [run for of_part in runs.values() for run in of_part], progress)
    together = [tables[run.name] for run in runs[None]]
    models = {
        name: {START: [start], WITHOUT: [tables[run.name] for run in runs[name]], WITH: together} for name in parts
    }
    result = {
        "data": cases.fingerprint,
        "dataset": cases.folder.name,
        "synthetic": cases.is_synthetic,
        "by": by,
        "attribute": ATTRIBUTES[by],
        "level": level,
        "least": least,
        "seeds": seeds,
        "bootstraps": bootstraps,
        "method": load_recipe(runs[None][0].config.output)["method"],
        "model": _about(folder, model),
        "skipped": skipped,
        "parts": [
            measure_part(part, models[name], ATTRIBUTES[by], least, level, bootstraps) for name, part in parts.items()
        ],
    }
    write_transfer(out, result)
    _write_beside_weights(result, [Path(run.config.output) for run in runs[None]])
    return result


def _write_beside_weights(result: dict[str, Any], folders: Sequence[Path]) -> None:
    """Writes the study into the folders of the models of all parts, which one may publish: their card shows it."""
    for folder in folders:
        record = {"weights": weights_sha256(folder)} | result
        write_text(folder / RESULTS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _about(folder: Path, model: str) -> dict[str, str]:
    training_data = TrainingData.of_model(str(folder)).summary
    return {"name": Path(model).name, "weights": weights_sha256(folder), "training_data": training_data}


def _parts(
    cases: StoredCases, tested: StoredCases, config: FineTuning, by: str, least: int
) -> tuple[dict[str, Part], dict[str, str]]:
    """The parts that can be left out, most test cases first, and why others cannot."""
    attribute = ATTRIBUTES[by]
    count = Counter(group for groups in case_groups(tested.rows, tested.scan_header)[attribute] for group in groups)
    trained = config.data.load("train")
    trained_groups = case_groups(trained.rows, trained.scan_header)[attribute]
    known = sorted(count.keys() | {group for groups in trained_groups for group in groups})
    if len(known) < 2:
        raise ValueError(
            f"{cases.folder} states {len(known) or 'no'} {attribute}: state it for the cases when you prepare them, "
            f"see radfm prepare manifest --template"
        )
    groups_of_part = _newest(known, count) if by == "date" else {group: [group] for group in known}
    parts, skipped = {}, {}
    for name, groups in sorted(groups_of_part.items(), key=lambda part: (-sum(count[g] for g in part[1]), part[0])):
        if (tests := sum(count[group] for group in groups)) < least:
            skipped[name] = f"{tests} of {least} labelled test cases"
            continue
        others = _without(config, attribute, groups)
        if one := _uniform(others):
            skipped[name] = f"the {one} cases of the others all have the same disorders"
            continue
        own = sum(not set(groups).isdisjoint(of_case) for of_case in trained_groups)
        elsewhere = training_columns(others.data.load("train"), cases.vocabulary.names)
        parts[name] = Part(name, frozenset(groups), elsewhere, own)
    return parts, skipped


def _newest(years: Sequence[str], count: Counter) -> dict[str, list[str]]:
    """The newest years that have `NEWEST` of the test cases, as one part. Raises: ValueError: none has a year."""
    if not count.total():
        raise ValueError("no labelled test case has a year: state it in the manifest, or take another --by")
    newest = [year for year in years if sum(count[later] for later in years if later > year) < NEWEST * count.total()]
    if len(newest) == len(years):
        newest = newest[1:]
    return {f"{newest[0]} and later" if len(newest) > 1 else newest[0]: newest}


def _without(config: FineTuning, attribute: str, groups: Sequence[str]) -> FineTuning:
    where = [*config.data.where, *(f"{attribute}!={group}" for group in groups)]
    return replace(config, data=replace(config.data, where=where))


def _uniform(config: FineTuning) -> str | None:
    """The split of which all cases have the same labels, if any, so that there is nothing to learn or to choose by."""
    for split in ("train", "validation"):
        cases = config.data.load(split)
        if len({tuple(sorted(row["labels"])) for row in cases.rows}) < 2:
            return {"train": "training"}.get(split, split)
    return None


def _run(out: Path, config: FineTuning, part: Part | None, by: str, seed: int) -> Run:
    if part is not None:
        config = _without(config, ATTRIBUTES[by], sorted(part.groups))
    slug = "all" if part is None else f"without-{quote(part.name, safe='')}"
    name = f"{slug}-{seed}"
    return Run(name, replace(config, output=str(out / "runs" / name), seed=seed), Path(config.data.path))


def _start(out: Path, folder: Path, data: str | Path) -> Scores:
    """Scores of the checkpoint that all trainings start from."""
    table = out / "scores" / f"{START}.parquet"
    if not table.exists():
        score(folder, Evaluation(data, "test")).save(table)
    return Scores.load(table)


def _refuse_seen(model: str, cases: StoredCases) -> None:
    if cases.fingerprint in seen_fingerprints(model):
        raise ValueError(
            f"{model} was trained on {cases.folder}, whose parts would be called unseen: start from another "
            "checkpoint, such as radfm-phantom-mini"
        )


def _require_one(parts: dict[str, Part], skipped: dict[str, str], by: str) -> None:
    if not parts:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(f"no part can be left out by {by}: {reasons}")
