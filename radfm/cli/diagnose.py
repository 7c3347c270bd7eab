"""The command `radfm diagnose`."""

import json
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.checkpoints import DEFAULT
from radfm.cli.console import (
    DISCLAIMER,
    MODEL_HELP,
    Device,
    Json,
    needs,
    one_line,
    quiet_transformers,
    show,
    step,
    table,
    table_without_lines,
)
from radfm.cli.course_table import show_course
from radfm.cli.name_files import read_names
from radfm.course import diagnose_course, split_by_date
from radfm.modalities import DEFAULT_MODALITIES
from radfm.presentation import plural, scan_warnings, shown

if TYPE_CHECKING:
    from radfm.cases import Case

MOST_ROWS = 12  # scans, and skipped files, in the printed table
YES_NO = {True: "yes", False: "no", None: "-"}


def diagnose(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files and folders of one case: DICOM, NIfTI, pictures, arrays."),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT,
    labels: Annotated[str | None, typer.Option(help='Disorder names to score: "Pneumothorax; Rib fracture".')] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A text file with one disorder name per line.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many disorders to print.")] = 10,
    modality: Annotated[
        str | None, typer.Option(help="Modality of the scans whose header does not say it: CT, MRI, ...")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Every path is a case of its own.")] = False,
    course: Annotated[bool, typer.Option("--course", help="Also score each date on its own: what changed?")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Compile the model first; worth it for many cases.")] = False,
    device: Device = None,
    refuse_ood: Annotated[
        bool,
        typer.Option(
            "--refuse-ood", "--refuse-unlike", help="Refuse an out-of-distribution case instead of warning of it."
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures and saliency maps to this file, case.html.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Also write the saliency maps into this folder: NIfTI, and PNG of key slices.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Name the disorders of a case.

    Example: radfm diagnose study/ --model checkpoint/ --labels "Pneumothorax; Rib fracture"
    """
    names = _read_labels(labels, labels_file)
    outputs = {kind: path for kind, path in {"Report": report, "Maps": maps}.items() if path is not None}
    if outputs:
        write_case = _load_case_writer(report, maps, each)
    groups = [[path] for path in paths] if each else [paths]
    with step(f"Loading {model}"):
        pipe = _load_pipeline(model, device, fast)
    if refuse_ood and pipe.reference is None:
        _check_modalities_are_known(pipe, model)
    ask = partial(pipe, candidate_labels=names, top_k=top, return_attentions=True)
    ask = partial(ask, if_ood="refuse" if refuse_ood else "warn")
    failed = 0
    for group in groups:
        try:
            case, answer, seconds = _diagnose_case(ask, group, modality, course)
            over_time = _diagnose_dates(pipe, case, names, top) if course else None
        except (ValueError, OSError) as error:
            if not each:
                raise
            print(f"radfm: {group[0]}: {one_line(error)}", file=sys.stderr)
            failed += 1
            continue
        facts = case, answer, over_time
        _show(group, facts, seconds, pipe.model.config, as_json, None if each else 2)
        if outputs:
            with step(f"Writing {' and '.join(map(str, outputs.values()))}"):
                write_case(pipe, case, answer, model, report, maps, over_time)
            print("\n".join(f"{kind}: {path}" for kind, path in outputs.items()), file=sys.stderr)
    if failed:
        raise ValueError(f"{failed} of {len(groups)} cases could not be diagnosed: see above")


def _diagnose_case(
    ask: Callable[["Case"], dict], paths: list[Path], modality: str | None, course: bool
) -> tuple["Case", dict, tuple[float, float]]:
    """The case of these paths, the answer of the pipeline, and the seconds of reading and of diagnosing.

    Args:
        course: whether the case has to have several dates.
    """
    from radfm.readers.read_case import read_case

    started = time.perf_counter()
    with step(f"Reading {_title(paths)}") as progress:
        case = read_case(paths[0] if len(paths) == 1 else paths, modality=modality, progress=progress)
    if course:
        split_by_date(case)  # a case without dates is refused before it is diagnosed
    read = time.perf_counter()
    with step(f"Diagnosing {sum(len(scan.pixels) for scan in case.scans):,} slices"):
        answer = ask(case)
    return case, answer, (read - started, time.perf_counter() - read)


def _show(paths: list[Path], facts: tuple, seconds: tuple[float, float], config, as_json: bool, indent) -> None:
    """Args: facts: the case, the answer of the pipeline, and the course or None."""
    case, answer, course = facts
    if as_json:
        print(json.dumps(_as_json(case, answer, course, config), indent=indent))
    else:
        _print_answer(_title(paths), case, answer, course, seconds, config)


def _diagnose_dates(pipe, case: "Case", names: list[str] | None, top: int) -> dict:
    with step("Diagnosing each date"):
        return diagnose_course(pipe, case, names, top)


def _read_labels(labels: str | None, file: Path | None) -> list[str] | None:
    if labels is not None and file is not None:
        raise ValueError("give --labels or --labels-file, not both")
    if file is not None:
        return read_names(file)
    if labels is None:
        return None
    names = [name.strip() for name in labels.split(";") if name.strip()]
    if not names:
        raise ValueError('--labels holds no disorder name: separate them by ";"')
    return names


def _load_case_writer(report: Path | None, maps: Path | None, each: bool) -> Callable:
    if each:
        raise ValueError("--report and --maps are of one case: leave out --each, and diagnose the cases one by one")
    if report is not None and (report.suffix.lower() not in (".html", ".htm") or report.is_dir()):
        raise ValueError(f"{report}: --report writes a web page, give it a name such as case.html")
    if maps is not None and maps.is_file():
        raise ValueError(f"{maps}: --maps writes into a folder, and this is a file: give another name")
    with needs("data"):
        from radfm.eval.case_report import write_case
    return write_case


def _load_pipeline(model: str, device: str | None, fast: bool):
    import torch
    from transformers import pipeline

    from radfm.checkpoints import find

    folder = find(model)
    quiet_transformers()
    pipe = pipeline("zero-shot-diagnosis", model=folder, device=device)
    if fast:
        if pipe.device.type != "cuda":  # compiling would warn that CUDA has no GPU
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        has_bfloat16 = pipe.device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        pipe.model.optimize_for_inference(torch.bfloat16 if has_bfloat16 else None, compile=True)
    return pipe


def _check_modalities_are_known(pipe, model: str) -> None:
    """For a model without a reference: refusing needs one, unless the model is for some modalities only."""
    reason = f"{model} has no reference of its training data for --refuse-ood"
    if all(map(pipe.processor.is_made_for, DEFAULT_MODALITIES)):
        raise ValueError(f"{reason}: run radfm calibrate")
    print(f"{reason}: only modalities that it was not made for are refused. radfm calibrate makes one", file=sys.stderr)


def _as_json(case: "Case", answer: dict, course: dict | None, config) -> dict:
    kept = ("alerts", "diagnoses", "scans", "out_of_distribution", "training_data")
    return {
        "case_id": case.case_id,
        "trained": config.trained,
        **{key: answer[key] for key in kept},
        "skipped": [{"file": file, "reason": reason} for file, reason in case.skipped],
        "prediction_sets": config.prediction_sets,
        "notice": DISCLAIMER,
        **({} if course is None else {"course": course}),
    }


def _print_answer(
    title: str, case: "Case", answer: dict, course: dict | None, seconds: tuple[float, float], config
) -> None:
    from rich.markup import escape

    for alert in answer["alerts"]:
        show(f"[bold red]{escape(alert)}[/]", highlight=False)
    slices = sum(len(scan.pixels) for scan in case.scans)
    show(
        f"[bold]{escape(title)}[/]: {plural(len(case.scans), 'scan')}, {plural(slices, 'slice')}, "
        f"read in {seconds[0]:.1f} s, diagnosed in {seconds[1]:.1f} s"
    )
    _print_scans(case, answer["scans"])
    _print_diagnoses(answer, config)
    if course is not None:
        show_course(course)
    number = _by_weight(answer["scans"])[0]
    scan = answer["scans"][number]
    known = scan["slices"] > 1 and scan["key_slice"] is not None
    key_slice = f", key slice {scan['key_slice'] + 1}" if known else ""
    show(f"Most weight: scan {number + 1} ({scan['weight']:.0%}){key_slice}.")
    _print_scan_warnings(answer["scans"])
    _print_skipped(case)
    show(f"[dim]{escape(answer['training_data']['summary'])} {DISCLAIMER}[/]", highlight=False)


def _by_weight(scans: list[dict]) -> list[int]:
    return sorted(range(len(scans)), key=lambda number: -scans[number]["weight"])


def _print_scans(case: "Case", scans: list[dict]) -> None:
    rows = table(">scan", "modality", "plane", ">slices", ">days", ">weight", ">key slice", "from")
    by_weight = _by_weight(scans)
    shown = sorted(by_weight[:MOST_ROWS])
    for number in shown:
        scan, weights = case.scans[number], scans[number]
        key_slice = "1" if len(scan.pixels) == 1 else ""
        if len(scan.pixels) > 1 and weights["key_slice"] is not None:
            key_slice = f"{weights['key_slice'] + 1} ({weights['key_slice_weight']:.0%})"
        rows.add_row(
            str(number + 1),
            scan.modality or "?",
            scan.plane or "?",
            f"{len(scan.pixels):,}",
            "" if scan.days is None else f"{scan.days:g}",
            f"{weights['weight']:.0%}",
            key_slice,
            scan.source,
            style="bold" if number == by_weight[0] else None,
        )
    show(rows)
    if len(shown) < len(scans):
        show(f"and {plural(len(scans) - len(shown), 'scan')} of less weight: --json lists all\n")


def _print_diagnoses(answer: dict, config) -> None:
    diagnoses, limits = answer["diagnoses"], {}
    if not _is_ood(answer):  # no threshold and no prediction set is valid for an out-of-distribution case
        if any("above_threshold" in diagnosis for diagnosis in diagnoses):
            limits["above_threshold"] = "above\nthreshold"
        if any("in_set" in diagnosis for diagnosis in diagnoses):
            limits["in_set"] = f"in the\n{config.prediction_sets['coverage']:.0%} set"
    rows = table(">rank", "disorder", "ICD-10-CM", ">score", *limits.values())
    for rank, diagnosis in enumerate(diagnoses, 1):
        codes = ", ".join(diagnosis["icd10cm"]) or "-"
        marks = [YES_NO[diagnosis.get(limit)] for limit in limits]
        rows.add_row(str(rank), diagnosis["label"], codes, f"{diagnosis['score']:.3g}", *marks)
    show(rows)


def _print_scan_warnings(scans: list[dict]) -> None:
    grouped = scan_warnings([scan["warnings"] for scan in scans])
    if not grouped:
        return
    show("[bold yellow]Check the scans: the answer may mean nothing.[/]")
    rows = table_without_lines()
    for of, sentence in grouped:
        rows.add_row(f"  {of}:", sentence)
    show(rows, style="yellow")


def _print_skipped(case: "Case") -> None:
    if not case.skipped:
        return
    show(f"Skipped: {plural(len(case.skipped), 'file')}")
    for file, reason in case.skipped[:MOST_ROWS]:
        show(f"  {file}: {reason}", highlight=False, markup=False)
    if len(case.skipped) > MOST_ROWS:
        show(f"  and {len(case.skipped) - MOST_ROWS:,} more: --json lists all")


def _is_ood(answer: dict) -> bool:
    judgement = answer["out_of_distribution"]
    return judgement is not None and judgement["is_ood"]


def _title(paths: list[Path]) -> str:
    first = shown(paths[0].resolve().name)
    return first if len(paths) == 1 else f"{first} and {plural(len(paths) - 1, 'more path')}"
