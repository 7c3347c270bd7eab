"""The command `radfm`.

Decisions:
- Nothing heavy is imported before a command needs it: `radfm --help` and reading a study need no torch.
- Bad input ends in one line on standard error and a status that is not 0, never in a traceback. Results go to standard
  output, everything else to standard error, so `--json` can feed a program.
"""

import csv
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from radfm.cli.console import (
    DISCLAIMER,
    ON_THE_HUB,
    Json,
    PlainCommand,
    needs,
    one_line,
    quiet_transformers,
    show,
    step,
    table,
)
from radfm.cli.memory import keep_freed_memory
from radfm.data_prep.command import app as prepare
from radfm.eval.command import app as evaluate
from radfm.eval.confidence_command import calibrate
from radfm.presentation import plural
from radfm.train.command import app as train
from radfm.train.command import finetune

if TYPE_CHECKING:
    from radfm.cases import Case
    from radfm.knowledge.linking import Linker

UsageError = typer.BadParameter.__base__  # click's, which typer carries within itself or not, by version
MOST_ROWS = 12  # of scans, and of skipped files, on a screen
COMPUTING = ("diagnose", "train", "finetune", "calibrate", "evaluate", "demo")  # the others count on little memory
FIRST = ("diagnose", "icd", "prepare", "train", "finetune", "calibrate", "evaluate")  # in help, before the others


class _InOrder(TyperGroup):
    """Help lists commands in the order in which they are met, where typer would put those with commands last."""

    def list_commands(self, context) -> list[str]:
        return sorted(self.commands, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


app = typer.Typer(
    name="radfm",
    cls=_InOrder,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Reads every scan of a case and names the disorders, with ICD-10-CM codes. {DISCLAIMER}",
)
convert = typer.Typer(rich_markup_mode=None, help="Turn other checkpoints into radfm's.")
app.add_typer(convert, name="convert")
app.add_typer(prepare, name="prepare")
app.add_typer(train, name="train")
app.command(cls=PlainCommand)(finetune)
app.command()(calibrate)
app.add_typer(evaluate, name="evaluate")


def main() -> None:
    try:
        status = app(standalone_mode=False)
    except UsageError as error:
        print(f"radfm: {error.format_message().rstrip('.')}. Try --help.", file=sys.stderr)
        status = error.exit_code
    except (ValueError, OSError) as error:
        print(f"radfm: {one_line(error)}", file=sys.stderr)
        status = 1
    except (KeyboardInterrupt, typer.Abort):
        print("radfm: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from radfm import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
    elif context.invoked_subcommand in COMPUTING:
        keep_freed_memory()


@app.command(cls=PlainCommand)
def diagnose(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files and folders of one case: DICOM, NIfTI, pictures, arrays."),
    ],
    model: Annotated[str, typer.Option(help=ON_THE_HUB)],
    labels: Annotated[str | None, typer.Option(help='Disorder names to score: "Pneumothorax; Rib fracture".')] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A text file with one disorder name per line.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many disorders to print.")] = 10,
    modality: Annotated[str | None, typer.Option(help="What the scans are where no header says: CT, MRI, ...")] = None,
    each: Annotated[bool, typer.Option("--each", help="Every path is a case of its own.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Compile the model first, for many cases.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; unset, a GPU where there is one.")] = None,
    refuse_unlike: Annotated[
        bool, typer.Option("--refuse-unlike", help="Refuse a case unlike the training data, in place of a warning.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures of where the model looked, as in case.html.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Also write where it looked into this folder: NIfTI, and the brightest slices.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Name the disorders of a case.

    Example: radfm diagnose study/ --model checkpoint/ --labels "Pneumothorax; Rib fracture"
    """
    from radfm.readers.read_case import read_case

    names = _labels(labels, labels_file)
    asked = {what: to for what, to in {"Report": report, "Maps": maps}.items() if to is not None}
    if asked:
        write_case = _case_writer(report, maps, each)
    groups = [[path] for path in paths] if each else [paths]
    with step(f"Loading {model}"):
        pipe = _pipeline(model, device, fast)
    if refuse_unlike and pipe.reference is None:
        raise ValueError(f"{model} does not remember its training data, to refuse a case: run radfm calibrate first")
    answered = 0
    for group in groups:
        started = time.perf_counter()
        try:
            with step(f"Reading {_title(group)}") as progress:
                case = read_case(group[0] if len(group) == 1 else group, modality=modality, progress=progress)
            read = time.perf_counter()
            with step(f"Looking at {sum(len(scan.pixels) for scan in case.scans):,} slices"):
                unlike = "refuse" if refuse_unlike else "warn"
                found = pipe(case, candidate_labels=names, top_k=top, return_attentions=True, if_unlike=unlike)
        except (ValueError, OSError) as error:
            if not each:
                raise
            print(f"radfm: {group[0]}: {one_line(error)}", file=sys.stderr)
            continue
        answered += 1
        seconds = (read - started, time.perf_counter() - read)
        if as_json:
            print(json.dumps(_as_json(case, found, pipe.model.config), indent=None if each else 2))
        else:
            _print_diagnosis(_title(group), case, found, seconds, pipe.model.config)
        if asked:
            with step(f"Writing {' and '.join(map(str, asked.values()))}"):
                write_case(pipe, case, found, model, report, maps)
        for what, to in asked.items():
            print(f"{what}: {to}", file=sys.stderr)
    if answered < len(groups):
        raise ValueError(f"{len(groups) - answered} of {len(groups)} cases could not be diagnosed: see above")


@app.command()
def icd(
    text: Annotated[
        str | None, typer.Argument(metavar="DISORDER", help="A disorder, as a clinician would write it.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Or a file of many: one per line, or a JSON list or dictionary. Prints CSV.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="radfm-text-mini, or folder of a text encoder, as further evidence; minutes at first use."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many codes to print.")] = 5,
    as_json: Json = False,
) -> None:
    """Find the ICD-10-CM codes of a disorder.

    Example: radfm icd "ACL tear"
    """
    if (text is None) == (names is None):
        raise ValueError('give a disorder, as in radfm icd "ACL tear", or --names FILE')
    linker = _linker(encoder)
    if names:
        _link_all(linker, names)
        return
    result = linker.link(text, top=top)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    if not result.candidates:
        show(f"{text}: unlinked, nothing in ICD-10-CM is near enough", markup=False)
        return
    show(f"{text}: {result.verdict}" + (", look before you use it" if not result.codes else ""), markup=False)
    rows = table("code", "description", ">confidence", "evidence")
    for candidate in result.candidates:
        rows.add_row(candidate.code, candidate.description, f"{candidate.confidence:.2f}", candidate.evidence)
    show(rows)
    show(f"{result.candidates[0].code}: " + " > ".join(result.candidates[0].path), markup=False, highlight=False)


def _linker(encoder: str | None) -> "Linker":
    from radfm.knowledge.linking import Linker

    if encoder is None:
        return Linker()
    with step(f"Loading {encoder}, and what ICD-10-CM is to it"):
        from radfm.checkpoints import resolve
        from radfm.reference_radfm import weights_sha256
        from radfm.starting_points import text_embedder

        quiet_transformers()
        return Linker(encoder=text_embedder(encoder), fingerprint=weights_sha256(resolve(encoder)))


def _link_all(linker: "Linker", file: Path) -> None:
    """The report of a list of names: a line of CSV each, and on standard error how many are sure."""
    text = file.read_text(encoding="utf-8-sig")
    names = list(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else [n for n in text.splitlines() if n.strip()]
    table = csv.writer(sys.stdout)
    table.writerow(["name", "verdict", "codes", "likeliest", "description", "confidence", "evidence"])
    verdicts: Counter[str] = Counter()
    with step(f"Linking {len(names):,} names") as progress:
        for done, name in enumerate(names, 1):
            found = linker.link(name, top=1)
            best = found.candidates[0] if found.candidates else None
            said = [best.code, best.description, f"{best.confidence:.2f}", best.evidence] if best else [""] * 4
            table.writerow([name, found.verdict, "; ".join(found.codes), *said])
            verdicts[found.verdict] += 1
            progress(done, len(names))
    counted = ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.most_common())
    print(f"{len(names):,} names: {counted}", file=sys.stderr)


@convert.command()
def raddiag(
    src: Annotated[
        Path, typer.Argument(metavar="SRC", help="pytorch_model.bin or .safetensors of RadDiag, or the folder of it.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the radfm checkpoint.")],
    disorders: Annotated[
        Path | None,
        typer.Option(help="RadDiag's disorder_label_dict.json; unset, the one beside the checkpoint."),
    ] = None,
) -> None:
    """Convert a published RadDiag checkpoint.

    Example: radfm convert raddiag pytorch_model.bin checkpoints/raddiag --disorders disorder_label_dict.json
    """
    from radfm import raddiag

    names = raddiag.read_disorders(disorders or (src if src.is_dir() else src.parent) / "disorder_label_dict.json")
    with step("Looking up ICD-10-CM codes"):
        from radfm.knowledge.disorders import codes

        icd10cm = codes(names)
    with step(f"Converting {src}"):
        quiet_transformers()
        model = raddiag.from_checkpoint(src, names, icd10cm)
        model.save_pretrained(dst)
        raddiag.processor().save_pretrained(dst)
    numbers = sum(p.numel() for p in model.parameters())
    level = "case level" if model.config.case_config.num_hidden_layers else "one scan"
    coded = sum(bool(c) for c in icd10cm)
    print(f"{dst}: {level}, {numbers:,} numbers, {len(names):,} disorders, {coded:,} of them with ICD-10-CM codes")


@app.command()
def serve(
    model: Annotated[str, typer.Option(help=ON_THE_HUB)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of one study, as sent and as unpacked.")] = 512,
    max_files: Annotated[int, typer.Option(min=1, help="Of one study, those in zip files counted.")] = 2000,
    max_slices: Annotated[int, typer.Option(min=1, help="Of one study.")] = 1000,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds to send a study, and again to answer it.")] = 120,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; unset, a GPU where there is one.")] = None,
) -> None:
    """Serve the model as a page in the browser.

    Drop a study, scroll through it, ask for diseases, take the report along.

    Example: radfm serve --model radfm-phantom-mini
    """
    from radfm.serve import Limits
    from radfm.serve import serve as run

    run(model, host, port, Limits(max_megabytes, max_files, max_slices, timeout), device)


@app.command()
@needs("data")
def publish(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder of a checkpoint, or the name of one that comes with radfm.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What it is called on the Hugging Face Hub.")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="Folder of radfm evaluate --out, or JSON of radfm evaluate text --json; several times."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Of the weights, as the Hub calls it: apache-2.0, cc-by-nc-4.0, ...")
    ] = None,
    notes: Annotated[
        Path | None, typer.Option(help="Markdown for the card: what the model is for, in your words.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data set it learned from, where its recipe keeps no licence and counts.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write, and keep.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder, or without --out print the card.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Only you see the repository, if it is new.")] = False,
    max_shard_size: Annotated[str, typer.Option(help="A larger file of weights is split.")] = "5GB",
    as_json: Json = False,
) -> None:
    """Upload a checkpoint with its card to the Hugging Face Hub.

    Example: radfm publish runs/mine me/mine --evaluation evaluation/ --license apache-2.0 --dry-run --out published/
    """
    from radfm.checkpoints import resolve
    from radfm.publishing.publish import Request
    from radfm.publishing.publish import publish as write

    quiet_transformers()
    learned = None
    if data is not None:
        from radfm.data_prep.data_summary import data_summary
        from radfm.data_prep.stored_cases import load

        learned = data_summary(load(data, "train", labelled=True))
    request = Request(Path(resolve(folder)), repo_id, evaluation or (), licence, notes, learned, max_shard_size)
    with step(f"Publishing {folder}"):
        done = write(request, out, not dry_run, private)
    if as_json:
        said = {"files": done.files, "left_out": done.left_out, "url": done.url, "folder": out and str(out)}
        print(json.dumps(said, indent=2))
        return
    if dry_run and out is None:
        print(done.card, end="")
        return
    rows = table("file", ">bytes")
    for name, size in done.files.items():
        rows.add_row(name, f"{size:,}")
    show(rows)
    if done.left_out:
        show(f"Left out: {', '.join(done.left_out)}", markup=False, highlight=False)
    show(f"Published: {done.url}" if done.url else f"Written: {out}. Nothing was uploaded.", markup=False)


@app.command()
@needs("train")
def demo(out: Annotated[Path, typer.Option(help="Folder for all that is made.")] = Path("runs/demo")) -> None:
    """Go the whole way in minutes: draw, train, measure, diagnose.

    Example: radfm demo
    """
    with step("Starting"):
        from radfm.cli.demo import run
    run(out)


def _labels(labels: str | None, file: Path | None) -> list[str] | None:
    if labels is not None and file is not None:
        raise ValueError("give --labels or --labels-file, not both")
    if file is not None:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not names:
            raise ValueError(f"{file} holds no disorder name: write one per line")
        return names
    if labels is None:
        return None
    names = [name.strip() for name in labels.split(";") if name.strip()]
    if not names:
        raise ValueError('--labels holds no disorder name: separate them by ";"')
    return names


def _case_writer(report: Path | None, maps: Path | None, each: bool) -> Callable:
    if each:
        raise ValueError("--report and --maps are of one case: leave out --each, and diagnose the cases one by one")
    if report is not None and (report.suffix.lower() not in (".html", ".htm") or report.is_dir()):
        raise ValueError(f"{report}: --report writes a web page, give it a name such as case.html")
    if maps is not None and maps.is_file():
        raise ValueError(f"{maps}: --maps writes into a folder, and this is a file: give another name")
    with needs("data"):
        from radfm.eval.case_report import write_case
    return write_case


def _pipeline(model: str, device: str | None, fast: bool):
    import torch
    from transformers import pipeline

    from radfm.checkpoints import find

    folder = find(model)
    quiet_transformers()
    pipe = pipeline("zero-shot-diagnosis", model=folder, device=device)
    if fast:
        if pipe.device.type != "cuda":  # else compiling would tell of a CUDA that finds no GPU
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        has_bfloat16 = pipe.device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        pipe.model.optimize_for_inference(torch.bfloat16 if has_bfloat16 else None, compile=True)
    return pipe


def _as_json(case: "Case", found: dict, config) -> dict:
    return {
        "case_id": case.case_id,
        "trained": config.trained,
        "diagnoses": found["diagnoses"],
        "scans": found["scans"],
        "unlike_training": found["unlike_training"],
        "drawn_only": found["drawn_only"],
        "skipped": [{"file": file, "reason": reason} for file, reason in case.skipped],
        "prediction_sets": config.prediction_sets,
        "notice": DISCLAIMER,
    }


def _print_diagnosis(title: str, case: "Case", found: dict, seconds: tuple[float, float], config) -> None:
    from radfm.pipeline_radfm import DRAWN_ONLY, why_unlike

    slices = sum(len(scan.pixels) for scan in case.scans)
    show(
        f"[bold]{title}[/]: {plural(len(case.scans), 'scan')}, {plural(slices, 'slice')}, "
        f"read in {seconds[0]:.1f} s, diagnosed in {seconds[1]:.1f} s"
    )
    scans = table(">scan", "modality", "plane", ">slices", ">days", ">weight", ">key slice", "from")
    heaviest = sorted(range(len(case.scans)), key=lambda i: -found["scans"][i]["weight"])
    shown = sorted(heaviest[:MOST_ROWS])
    for i in shown:
        scan, seen = case.scans[i], found["scans"][i]
        days = "" if scan.days is None else f"{scan.days:g}"
        row = [str(i + 1), scan.modality or "?", scan.plane or "?", f"{len(scan.pixels):,}", days]
        key = f"{seen['key_slice'] + 1} ({seen['key_slice_weight']:.0%})" if len(scan.pixels) > 1 else "1"
        scans.add_row(*row, f"{seen['weight']:.0%}", key, scan.source, style="bold" if i == heaviest[0] else None)
    show(scans)
    if len(shown) < len(case.scans):
        show(f"and {plural(len(case.scans) - len(shown), 'scan')} of less weight: --json has them all\n")
    judged = found["unlike_training"]
    unlike = judged is not None and judged["unlike"]  # then no threshold and no set holds
    limits = {}
    if not unlike and any("above_threshold" in diagnosis for diagnosis in found["diagnoses"]):
        limits["above_threshold"] = "above\nthreshold"
    if not unlike and any("in_set" in diagnosis for diagnosis in found["diagnoses"]):
        limits["in_set"] = f"in the\n{config.prediction_sets['coverage']:.0%} set"
    disorders = table(">rank", "disorder", "ICD-10-CM", ">score", *limits.values())
    for rank, diagnosis in enumerate(found["diagnoses"], 1):
        codes = ", ".join(diagnosis["icd10cm"]) or "-"
        said = [{True: "yes", False: "no", None: "-"}[diagnosis.get(limit)] for limit in limits]
        disorders.add_row(str(rank), diagnosis["label"], codes, f"{diagnosis['score']:.3g}", *said)
    show(disorders)
    key = found["scans"][heaviest[0]]
    where = f", there slice {key['key_slice'] + 1}" if key["slices"] > 1 else ""
    show(f"Most weight: scan {heaviest[0] + 1} ({key['weight']:.0%}){where}.")
    if case.skipped:
        show(f"Set aside: {plural(len(case.skipped), 'file')}")
        for file, reason in case.skipped[:MOST_ROWS]:
            show(f"  {file}: {reason}", highlight=False, markup=False)
        if len(case.skipped) > MOST_ROWS:
            show(f"  and {len(case.skipped) - MOST_ROWS:,} more: --json has them all")
    if found["drawn_only"]:
        show(f"[bold yellow]{DRAWN_ONLY}[/]")
    if unlike:
        show(f"[bold yellow]This case is unlike the training data ({why_unlike(judged)}): its scores mean little.[/]")
    if not config.trained:
        show("[bold yellow]This model is untrained: its scores and weights mean nothing.[/]")
    show(f"[dim]{DISCLAIMER}[/]")


def _title(paths: list[Path]) -> str:
    first = paths[0].resolve().name
    return first if len(paths) == 1 else f"{first} and {plural(len(paths) - 1, 'more path')}"
