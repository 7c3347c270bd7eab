"""Whether synthetic cases help: the same model trained with and without them.

    radfm evaluate augmentation datasets/mine --synthetic datasets/synthetic --filtered datasets/filtered --out study

| arm | trained on |
|---|---|
| real | the real cases as they are |
| augmented | the real cases, with the augmentation and the resampling of the recipe |
| synthetic | as augmented, and synthetic cases |
| filtered | as augmented, and synthetic cases that a classifier accepted |

Decisions:
- All arms have the recipe's steps, so that none sees more.
- Synthetic cases are compared with the better of the two arms without them, by the macro AUC of the tail: with the best
  that real cases alone give.
- Bands are by real training cases. All arms are measured on the same test cases, which are real.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from radfm.cli.console import NO_PATIENTS
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.joined_cases import is_synthetic
from radfm.data_prep.stored_cases import load
from radfm.data_prep.tables import write_text
from radfm.eval.paired_macros import PairedMacros
from radfm.presentation import BANDS, plural, with_interval
from radfm.progress import Progress, no_progress
from radfm.train.diagnosis_config import DiagnosisTraining
from radfm.train.studies import Run, begin_study, finish_runs

REAL, AUGMENTED, SYNTHETIC, FILTERED = "real", "augmented", "synthetic", "filtered"
RESULTS, TABLE = "augmentation.json", "augmentation.md"
NO_AUGMENTATION = Augmentation(**{field.name: 0.0 for field in fields(Augmentation)})


def augmentation_study(
    data: str | Path,
    synthetic: Mapping[str, Sequence[str | Path]],
    out: Path,
    config: DiagnosisTraining,
    seeds: int = 3,
    bootstraps: int = 1000,
    within: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Trains and measures all arms, or continues a study that was killed; writes augmentation.json and .md.

    Args:
        data: folder that `radfm prepare` made, with a training and a test split.
        synthetic: name of an arm -> folders of synthetic data sets.
        out: folder of the study.
        config: the recipe of all arms; data and seed are set here.
        seeds: number of seeds, from 0.
        bootstraps: number of resamples of the test patients.
        within: a disorder is compared only with cases of the same group, such as "body part"; None: with all.
        progress: called with the number of finished trainings, and of all.
    Returns:
        JSON-able: `data` (fingerprint), `dataset` (name), `synthetic` (whether no case of the data is a patient),
        `cases`, `patients`, `bands`, `seeds`, `bootstraps`, `within`, `best_without` (an arm), and `arms`: name ->
        `synthetic_cases`, and band -> figure of `auc`, `less_best_without` and `less_real`.
    Raises:
        ValueError: there are no synthetic cases, the recipe names some itself, or the folder holds another study.
        FileNotFoundError: there is no such data set.
    """
    if not any(synthetic.values()):
        raise ValueError("there is nothing to compare with the real cases: give --synthetic or --filtered")
    if config.data.synthetic:
        raise ValueError("data.synthetic would be in all arms: leave it out, and give --synthetic or --filtered")
    cases, out = load(data), Path(out)
    parts = {arm: [load(folder) for folder in folders] for arm, folders in synthetic.items() if folders}
    fingerprints = {arm: [part.fingerprint for part in of_arm] for arm, of_arm in parts.items()}
    begin_study(out, config, data=cases.fingerprint, synthetic=fingerprints)

    config = replace(config, data=replace(config.data, path=str(data)))
    plain = replace(config, augmentation=NO_AUGMENTATION, sampling=replace(config.sampling, by_disorder=0.0))
    recipes = {REAL: plain, AUGMENTED: config} | {
        arm: replace(config, data=replace(config.data, synthetic=[str(part.folder) for part in of_arm]))
        for arm, of_arm in parts.items()
    }
    runs = [_run(out, arm, recipe, seed) for seed in range(seeds) for arm, recipe in recipes.items()]
    tables = finish_runs(out, runs, progress)
    of_arm = {arm: [tables[_name(arm, seed)] for seed in range(seeds)] for arm in recipes}
    result = {
        "data": cases.fingerprint,
        "dataset": cases.folder.name,
        "synthetic": is_synthetic(cases.record),
        "seeds": seeds,
        "bootstraps": bootstraps,
        "within": within,
        **arms_compared(PairedMacros(of_arm, bootstraps, within=within), list(recipes)),
    }
    for arm, recipe in recipes.items():
        result["arms"][arm]["synthetic_cases"] = len(recipe.data.load("train")) - len(plain.data.load("train"))
    write_text(out / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / TABLE, as_markdown(result))
    return result


def arms_compared(macros: PairedMacros, arms: Sequence[str]) -> dict[str, Any]:
    """`cases`, `patients`, `bands`, `best_without` and `arms` of `augmentation_study`."""
    band = "tail" if macros.bands["tail"]["measured"] else "all"
    gain = macros.difference(AUGMENTED, REAL)[band]
    best = AUGMENTED if gain is not None and gain["value"] > 0 else REAL
    return {
        "cases": macros.cases,
        "patients": macros.patients,
        "bands": macros.bands,
        "best_without": best,
        "arms": {
            arm: {
                "auc": macros.auc(arm),
                "less_best_without": None if arm == best else macros.difference(arm, best),
                "less_real": None if arm == REAL else macros.difference(arm, REAL),
            }
            for arm in arms
        },
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """Two tables: the macro AUC of each arm, and what synthetic cases add to the best arm without them."""
    bands = [band for band in ("tail", "all", *BANDS[:-1]) if result["bands"][band]["measured"]]
    heads = [f"{band}, {plural(result['bands'][band]['measured'], 'disorder')}" for band in bands]
    best = result["best_without"]
    lines = [f"# Do synthetic cases help? {result['dataset']}", ""]
    if result["synthetic"]:
        lines += [f"**{NO_PATIENTS}**", ""]
    lines += [
        f"Macro AUC on {plural(result['cases'], 'test case')}, {plural(result['seeds'], 'seed')}, with 95% intervals "
        f"from {result['bootstraps']:,} bootstrap resamples of the patients and seeds."
        + (f" A disorder is compared with cases of the same {result['within']} only." if result["within"] else ""),
        "",
        *_table(["arm", "synthetic cases", *heads]),
    ]
    for arm, one in result["arms"].items():
        figures = [with_interval(one["auc"][band]) for band in bands]
        lines.append(f"| {arm} | {one['synthetic_cases']:,} | {' | '.join(figures)} |")
    lines += ["", f"Difference to the arm {best}, the best without synthetic cases by its tail:", ""]
    lines += _table(["arm", *heads])
    for arm, one in result["arms"].items():
        if one["less_best_without"]:
            figures = [with_interval(one["less_best_without"][band], signed=True) for band in bands]
            lines.append(f"| {arm} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", "Research use only, not a medical device.", ""])


def _table(columns: list[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]


def _run(out: Path, arm: str, recipe: DiagnosisTraining, seed: int) -> Run:
    name = _name(arm, seed)
    return Run(name, replace(recipe, output=str(out / "runs" / name), seed=seed), Path(recipe.data.path))


def _name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"
