"""The commands about autoencoders and generators: `radfm evaluate anomaly | sharing`.

Decisions:
- Nothing heavy is imported before a command needs it.
- Each command writes a folder: figures as pictures, all numbers as JSON, and a table of one row per case or sample.
"""

import csv
import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Json, needs, quiet_transformers, show, step, table
from radfm.eval.command_inputs import Bootstraps, Data, Device, Limit, Split
from radfm.presentation import interval_cell

AutoencoderFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder of an autoencoder of slices.")]
GeneratorFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of a generator that radfm train diffusion made.")
]


@needs("train")
def anomaly(
    data: Data,
    autoencoder: AutoencoderFolder,
    generator: GeneratorFolder = None,
    model: Annotated[
        Path | None, typer.Option(help=f"{A_CHECKPOINT} that was calibrated, for its Mahalanobis distance.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for anomaly.json, scores.csv, and maps.png with some maps.")
    ] = None,
    split: Split = "test",
    limit: Limit = None,
    slices: Annotated[int, typer.Option(min=1, help="Of a scan with more, evenly spaced.")] = 16,
    training_cases: Annotated[int, typer.Option(min=1, help="Normal ones to compare with, at most.")] = 500,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, the training cases and the bootstrap.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure anomaly scores: normal against abnormal cases, and maps.

    By the reconstruction error of an autoencoder, by a generator, and by a model's Mahalanobis distance.

    Example: radfm evaluate anomaly datasets/phantoms --autoencoder runs/autoencoder --model runs/mine --out anomaly
    """
    from radfm.eval.anomaly import fit_detector, measure_anomaly, score_anomaly
    from radfm.eval.predict import Evaluation

    quiet_transformers()
    with step("Learning what normal training cases have") as progress:
        detector = fit_detector(data, autoencoder, generator, slices, training_cases, seed, device, progress)
    with step("Scoring") as progress:
        evaluation = Evaluation(data, split, device=device, progress=progress)
        found = score_anomaly(detector, evaluation, model, limit)
    result = measure_anomaly(detector, found, evaluation, bootstraps, seed)
    if out is not None:
        _write_anomaly(out, detector, found, result, data)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _show_anomaly(result, out)


def _write_anomaly(out: Path, detector, found, result: dict, data: Path) -> None:
    from radfm.data_prep import plots
    from radfm.data_prep.tables import write_text
    from radfm.eval.anomaly_figure import draw_maps

    out.mkdir(parents=True, exist_ok=True)
    columns = {"case_id": found.case_ids, "group": found.groups, "abnormal": found.abnormal.tolist()}
    columns |= {name: [f"{value:.5g}" for value in values] for name, values in found.scores.items()}
    _write_table(out / "scores.csv", columns)
    write_text(out / "anomaly.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    with step("Drawing the maps"):
        (out / "maps.png").write_bytes(plots.png(draw_maps(detector, found, data, result["split"])))


def _write_table(path: Path, columns: dict[str, list]) -> None:
    from radfm.data_prep.tables import replacing

    with replacing(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _show_anomaly(result: dict, out: Path | None) -> None:
    from radfm.eval.anomaly import LEAST_CASES, MEASURES
    from radfm.eval.localisation import MEASURES as NAMES

    fitted = result["fitted_to"]
    show(
        f"{result['normal']:,} normal and {result['abnormal']:,} abnormal cases, split {result['split']}; maps are "
        f"compared with {fitted['cases']:,} {'normal ' if fitted['only_normal'] else ''}training cases",
        highlight=False,
    )
    rows = table("score", ">AUC", ">within groups")
    for name, of_score in result["scores"].items():
        rows.add_row(name, interval_cell(of_score["auc"]), interval_cell(of_score["within_groups"]))
    show(rows)
    groups = len(result["groups"])
    if groups:
        show(
            f"Within groups: the mean over {groups:,} collections or body parts with at least "
            f"{LEAST_CASES} normal and {LEAST_CASES} abnormal cases",
            highlight=False,
        )
    show(_best(result), highlight=False)
    if localisation := result["localisation"]:
        rows = table(
            f"{localisation['lesions']:,} lesions", *(">" + NAMES[one].replace(" ", "\n", 1) for one in MEASURES)
        )
        for name, measures in localisation["rows"].items():
            rows.add_row(name, *(interval_cell(figure, between="–") for figure in measures.values()))
        show(rows)
    if out is not None:
        show(f"Written to {out}: anomaly.json, scores.csv, maps.png", markup=False, highlight=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _best(result: dict) -> str:
    """The best score, and how clear that is."""
    ahead = {name: one for name, one in result["best_less"].items() if one["low"] <= 0}
    by = {"auc": "AUC", "within_groups": "AUC within groups"}[result["best_by"]]
    if not ahead:
        return f"Best by {by}: {result['best']}, above all others with an interval clear of zero"
    return f"Best by {by}: {result['best']}, not clearly above {', '.join(ahead)}"
