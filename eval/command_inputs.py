"""What the commands of `radfm evaluate` take: options in common, checkpoints by name, and lists of disorders.

Decisions:
- A model is given as a checkpoint, or as the table of scores that it gave before. Such a table has to be of the same
  data and split.
- Nothing heavy is imported before a command needs it.
"""

from dataclasses import replace
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import A_CHECKPOINT, step

if TYPE_CHECKING:
    from radfm.eval.predict import Evaluation
    from radfm.eval.scores import Scores

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; unset, a GPU where there is one.")]
Bfloat16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, where that is faster.")]
Bootstraps = Annotated[int, typer.Option(min=1, help="Number of bootstrap resamples of the patients.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many cases, evenly spaced.")]
Names = Annotated[
    Path | None, typer.Option(help="File of disorder names to score, one per line, in place of the data set's.")
]
NAMED_MODEL = f"{A_CHECKPOINT}, or a table of scores"


def named_models(models: list[str]) -> list[tuple[str, Path]]:
    """The name and the path of each NAME=PATH. A path alone is named after its folder, or in full if that is taken."""
    pairs: list[tuple[str, Path]] = []
    path_of_name: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if equals and name and not Path(text).exists():
            pairs.append((name, Path(path)))
            continue
        name = Path(text).stem if Path(text).is_file() else Path(text).name or text
        if path_of_name.setdefault(name, Path(text)) != Path(text):
            name = text
        pairs.append((name, Path(text)))
    return pairs


def load_or_compute_scores(path: Path, evaluation: "Evaluation") -> "Scores":
    """The saved table of scores if `path` is a file, and otherwise the scores of the checkpoint at `path`.

    Raises:
        ValueError: the saved table is of another data set or split; or as `radfm.eval.predict.score`.
    """
    from radfm.data_prep.stored_cases import load
    from radfm.eval.predict import score
    from radfm.eval.scores import Scores

    if not path.is_file():
        with step(f"Scoring with {path}") as progress:
            return score(path, replace(evaluation, progress=progress))
    scores = Scores.load(path)
    expected = {"data": load(evaluation.data).record["fingerprint"], "split": evaluation.split}
    for key, value in expected.items():
        if scores.about.get(key) != value:
            raise ValueError(f"{path} holds scores of other data: its {key} is {scores.about.get(key)}, not {value}")
    return scores


def read_names(file: Path) -> list[str]:
    """The disorder names in a file, one per line; lines that begin with # are comments. Raises: ValueError if none."""
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    if not (names := [line.strip() for line in lines if line.strip() and not line.startswith("#")]):
        raise ValueError(f"{file} holds no disorder name: write one per line")
    return names


def names_of_option(only: str) -> list[str]:
    """The disorder names of `--only`: those in a file, or those in the text, separated by commas."""
    if isfile(only):  # pathlib's raises an error where a list of names is too long to be the name of a file
        return read_names(Path(only))
    if not (names := [name.strip() for name in only.split(",") if name.strip()]):
        raise ValueError("--only holds no disorder name: give a file, or names separated by commas")
    return names
