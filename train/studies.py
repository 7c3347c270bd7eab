"""Studies: several trainings or fine-tunings that are compared on the same test cases.

Decisions:
- A training has a folder of its own, `OUT/runs/NAME`, and is finished when the table of its scores on the test split,
  `OUT/scores/NAME.parquet`, is written. The same command continues a killed study: finished trainings are skipped, and
  one that was killed resumes from its last checkpoint.
- Several processes can share a study, such as one for each GPU: each takes the next training that no other has.
- `OUT/study.json` states what determines the results. More seeds can be added to a study; a folder with another
  configuration or other data is refused.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from radfm.data_prep.tables import write_text
from radfm.eval.predict import Evaluation, score
from radfm.eval.scores import Scores
from radfm.progress import Progress, no_progress
from radfm.train.config import without_folders
from radfm.train.diagnosis import train
from radfm.train.diagnosis_config import DiagnosisTraining
from radfm.train.finetune import WORK, finetune
from radfm.train.finetune_config import FineTuning

_STUDY = "study.json"
Config = DiagnosisTraining | FineTuning

_OF_A_RUN = ("output", "seed")  # keys of a configuration that differ between the trainings of a study


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        name: of its folder and of its table of scores.
        config: its `output` is `OUT/runs/name`.
        data: data set whose test split is scored.
        needs: a training that has to be finished before.
    """

    name: str
    config: Config
    data: Path
    needs: "Run | None" = None


def begin_study(out: Path, config: Config, **facts: Any) -> None:
    """Writes what determines the results of a study, or compares it with a study that is continued.

    Args:
        facts: JSON-able, beside the configuration, such as the fingerprint of the data.
    Raises:
        ValueError: the folder holds a study with other settings.
    """
    settings = without_folders(asdict(config))
    for key in _OF_A_RUN:
        del settings[key]
    settings["data"].pop("path")
    record = json.loads(json.dumps({"config": settings} | facts))
    file = out / _STUDY
    if not file.exists():
        write_text(file, json.dumps(record, indent=1) + "\n")
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored != record:
        key = next(iter(_differing_keys(stored, record)))
        raise ValueError(f"{out} holds a study with another {key}: choose another --out, or delete it")


def finish_runs(out: Path, runs: Sequence[Run], progress: Progress = no_progress) -> dict[str, Scores]:
    """Trains what is not trained yet, and returns the table of scores of each run by its name.

    Raises:
        ValueError, FileNotFoundError, OSError: as `radfm.train.diagnosis.train` and `radfm.eval.predict.score`.
    """
    waiting = list(runs)
    while waiting:
        taken = None
        for run in waiting:
            if _finish(out, run, wait=False):
                taken = run
                break
        if taken is None:  # other processes train all that is left
            taken = waiting[0]
            _finish(out, taken, wait=True)
        waiting.remove(taken)
        progress(len(runs) - len(waiting), len(runs))
    return {run.name: Scores.load(_table(out, run)) for run in runs}


def prepare_once(out: Path, prepare) -> dict[str, Any]:
    """Calls `prepare(out)`, which writes a data set and returns its record, in one process at a time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        return prepare(out)


def _finish(out: Path, run: Run, wait: bool) -> bool:
    """Whether the run is finished; False where another process has it, unless `wait`."""
    table, folder = _table(out, run), Path(run.config.output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{run.name}.lock"), timeout=-1 if wait else 0):
            if not table.exists():
                if run.needs is not None:
                    _finish(out, run.needs, wait=True)
                with redirect_stdout(sys.stderr):  # the trainer prints its losses
                    if isinstance(run.config, FineTuning):
                        finetune(run.config)
                    else:
                        train(run.config)
                score(folder, Evaluation(run.data, "test")).save(table)
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            shutil.rmtree(folder / WORK, ignore_errors=True)
    except Timeout:
        return False
    return True


def _table(out: Path, run: Run) -> Path:
    return out / "scores" / f"{run.name}.parquet"


def _differing_keys(stored: Mapping[str, Any], given: Mapping[str, Any], before: str = ""):
    """Names of the values that differ, such as "config.training.max_steps"."""
    for key in sorted(stored.keys() | given.keys()):
        one, other = stored.get(key), given.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing_keys(one, other, f"{before}{key}.")
        elif one != other:
            yield f"{before}{key}"
