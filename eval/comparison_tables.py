"""The result of `radfm.eval.diagnosis.compare` as tables on a terminal."""

from collections.abc import Callable
from pathlib import Path

from radfm.cli.console import DISCLAIMER, show, table
from radfm.presentation import interval_cell

_TOP = 10  # with so few names or fewer, every case has its diagnosis among the first ten
_COLUMNS = {"all": "overall", "head": "head", "body": "body", "tail": "tail"}


def show_comparison(result: dict, out: Path | None = None) -> None:
    """Prints the macro AUC of each model, its difference to the first, and notes.

    Args:
        result: of `radfm.eval.diagnosis.compare`.
        out: folder of the report, which is named below.
    """
    seeds = {name: len(model["tables"]) for name, model in result["models"].items()}
    cases = f"{result['cases']:,} cases of {result['patients']:,} patients, split {result['split']}"
    cases += "".join(f", {condition}" for condition in result["where"])
    by = "" if result["level"] == "disorder" else f", by ICD-10-CM {result['level']}"
    by += f", disorders with {result['min_cases']:,} training and measured cases or more" if result["min_cases"] else ""
    by += "" if result["within"] is None else f", negatives of the same {result['within']}"
    show(
        f"Macro AUC on {cases}{by}; 95% intervals from {result['bootstraps']:,} bootstrap resamples of the patients",
        highlight=False,
    )
    show(_table("model", {name: m["macro"]["auc"] for name, m in result["models"].items()}, result["bands"], seeds))
    if result["differences"]:
        first = next(iter(result["models"]))
        show(f"Difference to {first}, on the same cases and resamples", highlight=False, markup=False)
        rows = {name: difference["macro"]["auc"] for name, difference in result["differences"].items()}
        show(_table("model", rows, result["bands"], seeds, _difference_cell))
    for name, model in result["models"].items():
        _show_notes(name, model["tables"], result)
    if out is not None:
        show(f"Report: {out / 'report.html'}", highlight=False, markup=False)
        show(f"Every disorder and metric: {out / 'metrics.csv'}, {out / 'metrics.json'}", highlight=False, markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _table(
    first: str, rows: dict[str, dict], bands: dict[str, dict], seeds: dict[str, int], cell: Callable = interval_cell
):
    screen = table(first, *(f">{name}" for name in _COLUMNS.values()))
    for name, figures in rows.items():
        cells = [cell(figures[band]) for band in _COLUMNS]
        screen.add_row(name if seeds[name] == 1 else f"{name} ({seeds[name]} seeds)", *cells)
    measured = [f"{bands[band]['measured']:,} of {bands[band]['disorders']:,}" for band in _COLUMNS]
    screen.add_row("measured", *measured, style="dim")
    return screen


def _difference_cell(figure: dict | None) -> str:
    """A signed difference; its interval has no plus signs, so that four columns fit into 80 characters."""
    return interval_cell(figure, "+.3f", ".3f", ", ")


def _show_notes(name: str, tables: list[dict], result: dict) -> None:
    from radfm.eval.notes import table_notes

    names = result["bands"]["all"]["disorders"] if result["only"] is None else None
    for what, ranks in {
        "with one diagnosis": result["models"][name]["ranking"],
        "whose one diagnosis no training case has": result["models"][name]["ranking_unseen"],
    }.items():
        if ranks["cases"] and names and names > _TOP:
            rank, top10 = ranks["median_rank"], ranks["top10"]["value"]
            _show_plain(
                f"{name}: {ranks['cases']:,} cases {what}: its median rank is {rank['value']:.0f} "
                f"({rank['low']:.0f} to {rank['high']:.0f}) of {names:,}; in {top10:.1%} it is among the first ten"
            )
    for note in table_notes(name, tables):
        _show_plain(note)
    if result["only"] is not None and not result["min_cases"]:
        withheld = {disorder.casefold() for about in tables for disorder in about.get("withheld") or []}
        count = sum(disorder.casefold() in withheld for disorder in result["only"])
        _show_plain(f"{name}: of the {len(result['only']):,} disorders measured, {count:,} were withheld from training")


def _show_plain(text: str) -> None:
    show(text, markup=False, highlight=False)
