"""The folder of `radfm evaluate --out`: tables of scores, metrics as JSON and CSV, and the report."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from radfm.cli.console import step

if TYPE_CHECKING:
    from radfm.eval.scores import Scores

_ENDS = ("", " low", " high")  # of a figure's columns in metrics.csv


def write_results(out: Path, data: Path, models: dict[str, list["Scores"]], result: dict) -> None:
    """Writes scores/*.parquet, metrics.json, metrics.csv and the report.

    Args:
        out: the folder.
        data: folder of the data set, for the pictures of the report.
        models: name -> its tables of scores.
        result: of `radfm.eval.diagnosis.compare` for them.
    """
    from radfm.data_prep.tables import write_text
    from radfm.eval.report import write_report

    files = {name: save_tables(out / "scores", name, tables) for name, tables in models.items()}
    write_text(out / "metrics.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    _write_metrics(out / "metrics.csv", result)
    with step("Writing the report") as progress:
        write_report(out, data, models, result, reproducible_command(sys.argv[1:]), files, progress)


def save_tables(folder: Path, name: str, tables: list["Scores"]) -> list[Path]:
    """Saves a model's tables of scores, named after it and numbered if there are several seeds; returns the files."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "model"
    numbers = [f"-{number}" for number in range(len(tables))] if len(tables) > 1 else [""]
    return [table.save(folder / f"{stem}{number}.parquet") for number, table in zip(numbers, tables, strict=True)]


def reproducible_command(arguments: list[str]) -> str:
    """The command line without absolute paths: inside the working directory relative, elsewhere the last part alone."""

    def without_folders(argument: str) -> str:
        match = re.fullmatch(r"([^/]*=)?(.*)", argument, re.DOTALL)
        assert match is not None  # any text matches
        before, path = match.groups("")
        if not path.startswith("/"):
            return argument
        try:
            return before + str(Path(path).relative_to(Path.cwd()))
        except ValueError:
            return f"{before}…/{Path(path).name}"

    return shlex.join(["radfm", *map(without_folders, arguments)])


def _write_metrics(path: Path, result: dict) -> None:
    """One row for each model and disorder, with all metrics and their intervals."""
    from radfm.data_prep.tables import replacing
    from radfm.eval.metrics import METRICS

    columns = [f"{metric}{end}" for metric in METRICS for end in _ENDS]
    with replacing(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "disorder", "icd10cm", "training_cases", "cases", *columns])
        for name, model in result["models"].items():
            for row in model["disorders"]:
                figures = [row[metric] or dict.fromkeys(_ENDS, "") for metric in METRICS]
                writer.writerow(
                    [name, row["disorder"], "; ".join(row["icd10cm"]), row["training_cases"], row["cases"]]
                    + [value for figure in figures for value in figure.values()]
                )
