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
from radfm.cli.name_files import read_names

if TYPE_CHECKING:
    from radfm.data_prep.stored_cases import StoredCases
    from radfm.eval.predict import Evaluation
    from radfm.eval.scores import Scores

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")]
Split = Annotated[str, typer.Option(help="train, validation, test or all.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; unset, a GPU where there is one.")]
Bfloat16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, where that is faster.")]
Bootstraps = Annotated[int, typer.Option(min=1, help="Number of bootstrap resamples of the patients.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many cases, evenly spaced.")]
Names = Annotated[
    Path | None, typer.Option(help="File of disorder names to score, one per line, in place of the data set's.")
]
Folds = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Measure each case by the model of its fold, trained with data.fold=0, 1, ...: MODEL has {fold} in place "
        "of the number.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(help="Disorders to measure, among all that are scored: a file, or names separated by commas."),
]
MinCases = Annotated[
    int, typer.Option(min=0, help="Only disorders with at least so many training cases, and so many measured cases.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        help='Only the cases of a group: "collection=NAME", "scans!=1", "modality=MRI", ..., or of several.',
    ),
]
Level = Annotated[str, typer.Option(help="disorder; or of ICD-10-CM chapter, block, category, or 4, 5, 6 characters.")]
Within = Annotated[
    str | None,
    typer.Option(
        help="modality, body part, collection, folder (of the source), ...: the negatives of a disorder are only cases "
        "of the groups in which it occurs."
    ),
]
Least = Annotated[
    tuple[int, int],
    typer.Option(metavar="HEAD BODY", help="How many training cases a disorder of head and body has at least."),
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

    if not path.is_file():
        with step(f"Scoring with {path}") as progress:
            return score(path, replace(evaluation, progress=progress))
    return _load_scores(path, load(evaluation.data), evaluation.split, evaluation.fold)


def load_or_compute_folds(path: Path, evaluation: "Evaluation", folds: int) -> "Scores":
    """The scores of a cross-validation, see `radfm.eval.folds`.

    Args:
        path: of a checkpoint or table for each fold, with {fold} in place of its number; or a saved table of all folds.
    Raises:
        ValueError: as `load_or_compute_scores`, or a single checkpoint.
    """
    from radfm.data_prep.stored_cases import load
    from radfm.eval.folds import FOLD, join_folds, split_of_folds

    everything = load(evaluation.data)
    if FOLD in str(path):
        paths = [Path(str(path).replace(FOLD, str(number))) for number in range(folds)]
        evaluations = (replace(evaluation, split="validation", fold=f"{number}/{folds}") for number in range(folds))
        return join_folds([load_or_compute_scores(*pair) for pair in zip(paths, evaluations, strict=True)], everything)
    if not path.is_file():
        raise ValueError(f"--folds {folds} needs a model for each fold: write {FOLD} in {path} for its number")
    return _load_scores(path, everything, split_of_folds(folds))


def _load_scores(path: Path, everything: "StoredCases", split: str, fold: str | None = None) -> "Scores":
    from radfm.eval.scores import Scores

    scores = Scores.load(path)
    for key, value in {"data": everything.record["fingerprint"], "split": split, "fold": fold}.items():
        if scores.about.get(key) != value:
            raise ValueError(f"{path} holds scores of other data: its {key} is {scores.about.get(key)}, not {value}")
    return scores


def names_of_option(only: str) -> list[str]:
    """The disorder names of `--only`: those in a file, or those in the text, separated by commas."""
    if isfile(only):  # pathlib's raises an error where a list of names is too long to be the name of a file
        return read_names(Path(only))
    if not (names := [name.strip() for name in only.split(",") if name.strip()]):
        raise ValueError("--only holds no disorder name: give a file, or names separated by commas")
    return names
