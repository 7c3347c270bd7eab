"""The commands about autoencoders and generators: `radfm evaluate anomaly | denoising | sharing`.

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


@needs("train")
def denoising(
    data: Data,
    autoencoder: AutoencoderFolder,
    generator: GeneratorFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for denoising.html, denoising.json, and pictures.png.")
    ] = None,
    split: Split = "test",
    limit: Limit = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE", min=0.001, max=1, help="Of the noise, of the range of the picture; several times."
        ),
    ] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and the bootstrap.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure how well known noise is removed from slices.

    By an autoencoder and a generator, beside non-local means, total variation and wavelets.

    Example: radfm evaluate denoising datasets/mine --autoencoder runs/autoencoder --out denoising
    """
    from radfm.eval.denoising import STRENGTHS, measure_denoising
    from radfm.eval.predict import Evaluation

    quiet_transformers()
    with step("Adding and removing noise") as progress:
        evaluation = Evaluation(data, split, device=device, progress=progress)
        strengths = sorted(set(strength or STRENGTHS))
        study = measure_denoising(evaluation, autoencoder, generator, limit, strengths, bootstraps, seed)
    if out is not None:
        _write_denoising(out, study)
    if as_json:
        print(json.dumps(study.result, indent=2, ensure_ascii=False))
    else:
        _show_denoising(study.result, out)


@needs("train")
def sharing(
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTHETIC", help="Folder of a data set of samples.")],
    real: Annotated[Path, typer.Option(metavar="DATA", help="Data set that the generator was trained on.")],
    model: Annotated[Path, typer.Option(metavar="MODEL", help=f"{A_CHECKPOINT}, for distances in its space.")],
    generator: GeneratorFolder = None,
    latents: Annotated[
        Path | None, typer.Option(help="Latents of DATA: measure membership inference with --generator, too.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sharing.html, sharing.json, samples.csv, and samples.png.")
    ] = None,
    quantile: Annotated[
        float, typer.Option(min=0, max=1, help="Share of held-out cases below whose distance a sample is closer.")
    ] = 0.05,
    limit: Annotated[int, typer.Option(min=1, help="At most so many samples, and so many held-out slices.")] = 2000,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and the bootstrap.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure how close samples are to training cases.

    Nearest neighbours in pixels and in a model's space, and membership inference.

    Example: radfm evaluate sharing datasets/synthetic --real datasets/mine --model runs/mine --out sharing
    """
    from radfm.eval.sharing import find_neighbours, measure_sharing

    quiet_transformers()
    if generator is None and latents is not None:
        raise ValueError("membership inference needs both --generator and --latents: give both, or leave out --latents")
    network = None if generator is None else _its_generator(synthetic, generator, device)
    membership = None
    if network is not None and latents is not None:
        membership = _membership(network, real, latents, bootstraps, seed)
    autoencoder = None if network is None or network.autoencoder.spatial_dims != 2 else network.autoencoder
    with step("Comparing with the training cases") as progress:
        found = find_neighbours(synthetic, real, model, limit, device, progress, autoencoder)
    result = measure_sharing(found, quantile, bootstraps, seed) | {"membership": membership}
    if out is not None:
        _write_sharing(out, found, result)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _show_sharing(result, out)


def _its_generator(synthetic: Path, folder: Path, device: str | None):
    """Raises: ValueError: the samples are of another generator."""
    from radfm.data_prep.stored_cases import load
    from radfm.latents.generator import Generator

    generator, of_samples = Generator.from_pretrained(folder, device), load(synthetic).record.get("synthetic")
    if of_samples and of_samples["generator"] != generator.fingerprint:
        raise ValueError(f"{synthetic} holds samples of generator {of_samples['generator']}, not of {folder}")
    return generator


def _membership(generator, real: Path, latents: Path, bootstraps: int, seed: int) -> dict:
    """The result of `measure_membership`. Raises: ValueError: the latents are not those of the data set."""
    from radfm.data_prep.stored_cases import load
    from radfm.eval.membership import measure_membership

    if load(latents).record.get("derived_from") != load(real).record["fingerprint"]:
        raise ValueError(f"{latents} was not made of {real}: give the latents of this data set")
    with step("Measuring membership inference") as progress:
        return measure_membership(generator, latents, real, bootstraps=bootstraps, seed=seed, progress=progress)


def _write_sharing(out: Path, found, result: dict) -> None:
    from radfm.data_prep.tables import write_text
    from radfm.eval.sharing import SPACES
    from radfm.eval.sharing_page import write_page

    out.mkdir(parents=True, exist_ok=True)
    columns = {
        "case_id": [one.case_id for one in found.samples],
        "disorders": ["; ".join(one.disorders) for one in found.samples],
    }
    for space in SPACES:
        neighbours = found.of_samples[space]
        columns |= {
            f"{space} distance": [f"{distance:.6f}" for distance in neighbours.distances],
            f"{space} share of held-out as close": [f"{share:.4f}" for share in found.shares(space)],
            f"{space} nearest case": [found.training[i].case_id for i in neighbours.indices.tolist()],
        }
    _write_table(out / "samples.csv", columns)
    write_text(out / "sharing.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    with step("Writing the page"):
        write_page(out, found, result)


def _show_sharing(result: dict, out: Path | None) -> None:
    from radfm.eval.sharing import COPIES, SPACES

    show(
        f"{result['samples']:,} samples, {result['training']:,} training slices, {result['held_out']:,} real slices of "
        f"the {result['held_out_split']} split",
        highlight=False,
    )
    if not result["synthetic"]:
        show("The data set of the samples does not say that it is synthetic", highlight=False)
    if result["left_out"]:
        show(f"Left out: {result['left_out']:,} real slices that are copies of training slices, or of their patients")
    rows = table("distance to the nearest training slice", *(f">{name}" for name in SPACES.values()))
    spaces = [result["spaces"][space] for space in SPACES]
    expected = f"closer than {1 - result['quantile']:.0%} of the real ones,\n{result['quantile']:.0%} expected"
    rows.add_row(expected, *(interval_cell(one["closer"], ".1%") for one in spaces))
    rows.add_row("closer than a real one, 0.5 expected", *(interval_cell(one["auc"]) for one in spaces))
    rows.add_row(COPIES[result["autoencoder"] is not None], *(f"{one['copies']:,}" for one in spaces))
    show(rows)
    if membership := result["membership"]:
        rows = table(f"membership inference, {membership['training']:,} and {membership['held_out']:,} slices", ">")
        rows.add_row("AUC, training against validation", interval_cell(membership["auc"]))
        rows.add_row("recall at a false positive rate of 1%", interval_cell(membership["recall"]))
        show(rows)
    if out is not None:
        show(f"Written to {out}: sharing.html, sharing.json, samples.csv, samples.png", markup=False, highlight=False)
    show(f"[dim]{DISCLAIMER}[/]")


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


def _write_denoising(out: Path, study) -> None:
    from radfm.data_prep.tables import write_text
    from radfm.eval.denoising_page import write_page

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "denoising.json", json.dumps(study.result, indent=1, ensure_ascii=False) + "\n")
    with step("Writing the page"):
        write_page(out, study)


def _show_denoising(result: dict, out: Path | None) -> None:
    from radfm.eval.denoising import MEASURES
    from radfm.eval.denoising_page import winner

    show(
        f"{result['slices']:,} slices of {result['patients']:,} patients, {result['split']} split, {result['size']} "
        "pixels a side; PSNR in dB and SSIM within the picture",
        highlight=False,
    )
    for kind, of_kind in result["kinds"].items():
        strengths = of_kind["strengths"]
        rows = table(f"{kind} noise", *(f">{strength}" for strength in strengths))
        for name in next(iter(strengths.values()))["methods"]:
            figures = [one["methods"][name] for one in strengths.values()]
            rows.add_row(name, *(f"{one['psnr']['value']:.2f}, {one['ssim']['value']:.3f}" for one in figures))
        show(rows)
        for strength, one in strengths.items():
            wins = "; ".join(f"by {title.split(',')[0]} {winner(one, name)}" for name, title in MEASURES.items())
            show(f"{strength}: {wins}", highlight=False, markup=False)
    if out is not None:
        show(f"Written to {out}: denoising.html, denoising.json, pictures.png", markup=False, highlight=False)
    show(f"[dim]{DISCLAIMER}[/]")


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
