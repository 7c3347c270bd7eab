"""The command `radfm evaluate`.

Decisions:
- `radfm evaluate DATA ...` is short for `radfm evaluate cases DATA ...`: what is no command is a data set. One that is
  called as a command is, goes as `./text`.
- Nothing heavy is imported before a command needs it.
"""

import csv
import json
import re
import shlex
import sys
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Json, PlainCommand, needs, quiet_transformers, show, step, table
from radfm.eval import confidence_command

if TYPE_CHECKING:
    from radfm.eval.scores import Scores

_MOST_NAMED = 10
_FIRST = 10  # ranks: of fewer names, to be among them says nothing
_COLUMNS = {"all": "overall", "head": "head", "body": "body", "tail": "tail"}


class _CasesByDefault(TyperGroup):
    def parse_args(self, context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *context.help_option_names):
            args = ["cases", *args]
        return super().parse_args(context, args)


app = typer.Typer(
    cls=_CasesByDefault,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure models and text encoders. Models on the cases of a data set, as in radfm evaluate datasets/mine "
    "--model runs/mine, which is short for radfm evaluate cases datasets/mine ...; or text encoders, as in radfm "
    "evaluate text runs/text --ontology disease_ontology.obo; or where a model looks, as in radfm evaluate saliency "
    "datasets/phantoms --model runs/mine.",
)
app.command()(confidence_command.uncertainty)
app.command()(confidence_command.refusal)
app.command("zero-shot")(confidence_command.zero_shot)


@app.command()
@needs("train")
def cases(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")],
    model: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]MODEL",
            help=f"{A_CHECKPOINT}, or a table of scores; several times. The same NAME again: seeds.",
        ),
    ],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    names: Annotated[
        Path | None, typer.Option(help="File of disorder names to score, one per line, in place of the data set's.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Disorders to measure, among all that are scored: a file, or names split by commas."),
    ] = None,
    level: Annotated[
        str, typer.Option(help="disorder; or of ICD-10-CM chapter, block, category, or 4, 5, 6 characters.")
    ] = "disorder",
    within: Annotated[
        str | None,
        typer.Option(
            help="modality, body part, folder (of the source), ...: tell a disorder only from cases of the groups in "
            "which it occurs."
        ),
    ] = None,
    least: Annotated[
        tuple[int, int],
        typer.Option(metavar="HEAD BODY", help="How many training cases a disorder of head and body has at least."),
    ] = (100, 30),
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, its figures, and tables: of scores, metrics.csv, ...")
    ] = None,
    bootstraps: Annotated[int, typer.Option(min=1, help="How many times the patients are drawn.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, where that is faster.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; unset, a GPU where there is one.")] = None,
    one_scan: Annotated[
        bool, typer.Option("--one-scan", help="Show one scan of a case, drawn by case, instead of all.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Tell models that read histories those of the cases.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure and compare models on the cases of a data set.

    Example: radfm evaluate datasets/mine --model KE=runs/ke0 --model KE=runs/ke1 --model baseline=runs/base
    """
    from radfm.eval.diagnosis import compare

    quiet_transformers()
    vocabulary = None if names is None else lines(names)
    recipes: dict[str, list[Scores]] = {}
    for name, path in named(model):
        recipes.setdefault(name, []).append(scores_of(path, data, split, vocabulary, bf16, device, one_scan, history))
    with step("Measuring") as progress:
        chosen = None if only is None else names_of(only)
        result = compare(recipes, chosen, level, within, least, bootstraps, seed, progress)
    if out is not None:
        _write(out, data, recipes, result)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show_comparison(result, out)


@app.command(cls=PlainCommand)
@needs("train")
def text(
    ontology: Annotated[Path, typer.Option(help="An OBO file with cross references to ICD-10-CM.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENCODER",
            help="Folders of text encoders, or radfm-text-mini; none: the baselines and link() alone.",
        ),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(min=0, max=4, help="The terms to ask about; unset, those that the first model left out."),
    ] = None,
    unseen_by: Annotated[
        Path | None, typer.Option(help="Ask about the terms that this OBO file, trained on, does not have.")
    ] = None,
    link: Annotated[bool, typer.Option(help="Also measure link(), alone and with the first model.")] = True,
    prompts: Annotated[bool, typer.Option(help="Also compare the styles of prompts, by the first model.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a text encoder on terms that it never saw.

    Beside TF-IDF and all-MiniLM-L6-v2.

    Example: radfm evaluate text runs/text --ontology disease_ontology.obo
    """
    from radfm.eval.text import as_markdown, evaluate

    quiet_transformers()
    with step(f"Measuring {', '.join(models or ['the baselines'])}") as progress:
        result = evaluate(models or [], ontology, fold, unseen_by, link, prompts, progress)
    print(json.dumps(result, indent=2) if as_json else as_markdown(result))


@app.command()
@needs("train")
def saliency(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set with masks, such as phantoms.")],
    model: Annotated[Path, typer.Option(metavar="MODEL", help=f"{A_CHECKPOINT}.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many cases, evenly spaced.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights and the draws of patients.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; unset, a GPU where there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Measure whether a model looks at the lesion.

    Beside the centre of the scan, and weights that learned nothing.

    Example: radfm evaluate saliency datasets/phantoms --model runs/mine --limit 100
    """
    from radfm.eval.localisation import MEASURES, NEAR, ROWS, localise

    quiet_transformers()
    with step(f"Looking with {model}") as progress:
        result = localise(model, data, split, limit, seed, device, progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    show(
        f"{result['tries']:,} tries (a disorder on a scan that shows it) in {result['cases']:,} cases, split {split}; "
        "95% intervals from draws of the patients",
        highlight=False,
    )
    rows = table("", *(">" + name.replace(" ", "\n", 1) for name in MEASURES.values()))  # 80 columns hold all
    for row, name in ROWS.items():
        rows.add_row(name, *_figures(result["rows"][row]))
    for band, of_band in result["bands"].items():
        for row in ("model", "centre") if of_band["tries"] else ():
            rows.add_row(f"{row}, {band}\n{of_band['tries']:,} tries", *_figures(of_band["rows"][row]))
    show(rows)
    show(f"Slices: within {NEAR} of one with the lesion, {result['key_slice_tries']:,} tries", highlight=False)
    if result["left_out"]:
        show(f"Not in the checkpoint's list, and left out: {', '.join(result['left_out'])}", markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


def named(models: list[str]) -> list[tuple[str, Path]]:
    """NAME=PATH, or a path, which is then called as its folder is, or in full where that name is taken."""
    named: list[tuple[str, Path]] = []
    plain: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if equals and name and not Path(text).exists():
            named.append((name, Path(path)))
            continue
        name = Path(text).stem if Path(text).is_file() else Path(text).name or text
        if plain.setdefault(name, Path(text)) != Path(text):
            name = text
        named.append((name, Path(text)))
    return named


def scores_of(
    path: Path,
    data: Path,
    split: str,
    names: list[str] | None = None,
    bf16: bool = False,
    device: str | None = None,
    one_scan: bool = False,
    history: bool = True,
) -> "Scores":
    from radfm.data_prep.stored_cases import load
    from radfm.eval.predict import score
    from radfm.eval.scores import Scores

    if not path.is_file():
        with step(f"Scoring with {path}") as progress:
            return score(path, data, split, names, bf16, device, one_scan, history, progress)
    found = Scores.load(path)
    wanted = {"data": load(data).record["fingerprint"], "split": split}
    for what, value in wanted.items():
        if found.about.get(what) != value:
            raise ValueError(f"{path} holds scores of other data: its {what} is {found.about.get(what)}, not {value}")
    return found


def lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    if not (names := [line.strip() for line in lines if line.strip() and not line.startswith("#")]):
        raise ValueError(f"{file} holds no disorder name: write one per line")
    return names


def names_of(only: str) -> list[str]:
    """The lines of a file, or the names in a text, split by commas."""
    if isfile(only):  # pathlib's raises an error where a list of names is too long for a file to be called so
        return lines(Path(only))
    if not (names := [name.strip() for name in only.split(",") if name.strip()]):
        raise ValueError("--only holds no disorder name: give a file, or names split by commas")
    return names


def _write(out: Path, data: Path, recipes: dict[str, list["Scores"]], result: dict) -> None:
    from radfm.data_prep.tables import replacing, write_text
    from radfm.eval.metrics import METRICS
    from radfm.eval.report import write_report

    files: dict[str, list[Path]] = {name: [] for name in recipes}
    for name, tables in recipes.items():
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "model"
        for number, scores in enumerate(tables):
            file = f"{plain}{f'-{number}' if len(tables) > 1 else ''}.parquet"
            files[name].append(scores.save(out / "scores" / file))
    write_text(out / "metrics.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    with replacing(out / "metrics.csv") as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        ends = ("", " low", " high")
        figures = [f"{metric}{end}" for metric in METRICS for end in ends]
        rows.writerow(["model", "disorder", "icd10cm", "training_cases", "cases", *figures])
        for name, model in result["models"].items():
            for row in model["disorders"]:
                about = [name, row["disorder"], "; ".join(row["icd10cm"]), row["training_cases"], row["cases"]]
                rows.writerow(
                    [*about, *(v for metric in METRICS for v in (row[metric] or dict.fromkeys(ends, "")).values())]
                )
    with step("Writing the report") as progress:
        write_report(out, data, recipes, result, as_given(sys.argv[1:]), files, progress)


def as_given(arguments: list[str]) -> str:
    """The command, to be given again where the working directory is; of other places, only the last name is told."""

    def told(argument: str) -> str:
        before, path = re.fullmatch(r"([^/]*=)?(.*)", argument, re.DOTALL).groups("")
        if not path.startswith("/"):
            return argument
        try:
            return before + str(Path(path).relative_to(Path.cwd()))
        except ValueError:
            return f"{before}…/{Path(path).name}"

    return shlex.join(["radfm", *map(told, arguments)])


def show_comparison(result: dict, out: Path | None = None) -> None:
    """What `radfm.eval.diagnosis.compare` found, as tables on the screen."""
    seeds = {name: len(model["tables"]) for name, model in result["models"].items()}
    what = f"{result['cases']:,} cases of {result['patients']:,} patients, split {result['split']}"
    by = "" if result["level"] == "disorder" else f", by ICD-10-CM {result['level']}"
    by += "" if result["within"] is None else f", negatives of the same {result['within']}"
    show(f"Macro AUC on {what}{by}; 95% intervals from {result['bootstraps']:,} draws of the patients", highlight=False)
    show(_table("model", {name: m["macro"]["auc"] for name, m in result["models"].items()}, result["bands"], seeds))
    if result["differences"]:
        first = next(iter(result["models"]))
        show(f"Difference to {first}, on the same cases in the same draws", highlight=False, markup=False)
        rows = {name: found["macro"]["auc"] for name, found in result["differences"].items()}
        show(_table("model", rows, result["bands"], seeds, "+.3f"))
    for name, model in result["models"].items():
        _print_notes(name, model["tables"], result)
    if out is not None:
        show(f"Report: {out / 'report.html'}", highlight=False, markup=False)
        show(f"Every disorder and metric: {out / 'metrics.csv'}, {out / 'metrics.json'}", highlight=False, markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _table(first: str, rows: dict[str, dict], bands: dict[str, dict], seeds: dict[str, int], digits: str = ".3f"):
    shown = table(first, *(f">{name}" for name in _COLUMNS.values()))
    for name, figures in rows.items():
        cells = [_cell(figures[band], digits) for band in _COLUMNS]
        shown.add_row(name if seeds[name] == 1 else f"{name} ({seeds[name]} seeds)", *cells)
    counted = [f"{bands[band]['measured']:,} of {bands[band]['disorders']:,}" for band in _COLUMNS]
    shown.add_row("measured", *counted, style="dim")
    return shown


def _cell(figure: dict | None, digits: str) -> str:
    if figure is None:
        return "-"
    to = ", " if digits.startswith("+") else " to "  # two signs more, and it has to fit into 80 columns
    return f"{figure['value']:{digits}}\n{figure['low']:.3f}{to}{figure['high']:.3f}"


def _figures(measures: dict[str, dict | None]) -> list[str]:
    return [_cell(figure, ".3f").replace(" to ", "–") for figure in measures.values()]


def _print_notes(name: str, tables: list[dict], result: dict) -> None:
    from radfm.eval.scores import calibrated_on_them

    names = result["bands"]["all"]["disorders"] if result["only"] is None else None
    for what, ranks in {
        "with one diagnosis": result["models"][name]["ranking"],
        "whose one diagnosis no training case has": result["models"][name]["ranking_unseen"],
    }.items():
        if ranks["cases"] and names and names > _FIRST:
            rank, top10 = ranks["median_rank"]["value"], ranks["top10"]["value"]
            show(
                f"{name}: {ranks['cases']:,} cases {what}: its median rank is {rank:.0f} of {names:,}; "
                f"in {top10:.1%} it is among the first ten",
                markup=False,
                highlight=False,
            )
    for about in tables:
        if left_out := about.get("left_out"):
            show(f"{name}: {len(left_out):,} cases could not be read, and are left out", markup=False)
        trained_on = about.get("trained_on")
        if trained_on is not None and trained_on != about.get("data"):
            show(f"{name}: trained on another data set; whether it shares patients is not known", markup=False)
        if calibrated_on_them(about):
            show(f"{name}: calibrated on these cases, which flatters its ranks: measure a test split", markup=False)
        withheld = about.get("withheld") or []
        if withheld:
            more = f" and {len(withheld) - _MOST_NAMED:,} more" if len(withheld) > _MOST_NAMED else ""
            named = f"{', '.join(withheld[:_MOST_NAMED])}{more}"
            show(f"{name}: {len(withheld):,} disorders were withheld from its training: {named}", markup=False)
    if result["only"] is not None:
        withheld = {w.casefold() for about in tables for w in about.get("withheld") or []}
        of_them = sum(n.casefold() in withheld for n in result["only"])
        show(f"{name}: of the {len(result['only']):,} disorders measured, {of_them:,} withheld", markup=False)
