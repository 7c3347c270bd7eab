"""The command `radfm prepare SOURCE IN OUT`.

Decisions:
- The options of a source are the parameters of a function. The options of all sources, and the privacy options of
  hospital sources, are added to its signature, so that each is defined once.
- Sources from a hospital (manifest, dicom, folder) replace names by pseudonyms unless --keep-names is set. Public sets
  keep their names.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import needs

if TYPE_CHECKING:
    from radfm.data_prep.plan import Source
    from radfm.data_prep.pseudonyms import Pseudonyms

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Prepare a data set of cases from files: radfm prepare SOURCE IN OUT. Each source has its own --help.",
)

In = Annotated[Path, typer.Argument(metavar="IN", help="What to read.")]
Modality = Annotated[str | None, typer.Option(help="Modality of files that do not state one: CT, MRI, X-ray, ...")]


def _common_options(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the data set; a run that was killed continues there.")
    ],
    size: Annotated[int, typer.Option(min=16, help="Longer side of a stored slice, in pixels.")] = 256,
    precision: Annotated[str, typer.Option(help="auto: uint8, and float16 for CT; float16: all grey scans.")] = "auto",
    max_slices: Annotated[
        int | None, typer.Option(min=1, help="Largest number of slices of a scan, evenly spaced.")
    ] = None,
    cases_per_shard: Annotated[
        int, typer.Option(min=1, help="Cases in a shard, the unit in which a killed run continues.")
    ] = 100,
    fractions: Annotated[
        str, typer.Option(help="Shares of train, validation, test without an official split.")
    ] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(help="Seed of the splits.")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one for each core.")] = None,
    part: Annotated[str, typer.Option(help="Part of the shards, for machines that share OUT: 0/4 ... 3/4.")] = "0/1",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
): ...


def _privacy_options(
    key: Annotated[
        Path | None,
        typer.Option(help="File with a secret key: a patient has the same pseudonym in all data sets made with it."),
    ] = None,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Use no pseudonyms, for public data.")] = False,
    links: Annotated[
        Path | None, typer.Option(help="Write a CSV that reverses the pseudonyms; store it safely.")
    ] = None,
): ...


def _source(name: str | None = None, hospital: bool = False):
    """Makes a command of a function that takes `names` (Pseudonyms) and its own options, and returns a `Source`."""

    def command_of(function):
        own = inspect.signature(function).parameters
        shared = {n: p for n, p in inspect.signature(_common_options).parameters.items() if n not in own}
        private = inspect.signature(_privacy_options).parameters if hospital else {}
        source_options = [parameter for parameter in own.values() if parameter.name != "names"]
        arguments = [parameter for parameter in source_options if parameter.default is inspect.Parameter.empty]
        options = [parameter for parameter in source_options if parameter.default is not inspect.Parameter.empty]

        def command(**values) -> None:
            _run(lambda names: function(names, **{p.name: values[p.name] for p in source_options}), values)

        parameters = [*arguments, shared.pop("out"), *options, *private.values(), *shared.values()]
        command.__signature__ = inspect.Signature(
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        command.__doc__ = function.__doc__
        return app.command(name or function.__name__)(command)

    return command_of


@needs("data")
def _print_template(requested: bool) -> None:
    if requested:
        from radfm.data_prep.sources.manifest import COLUMNS, template

        print(template(), end="")
        width = max(map(len, COLUMNS))
        print("\n".join(f"{name:{width}}  {meaning}" for name, meaning in COLUMNS.items()), file=sys.stderr)
        raise typer.Exit


@_source(hospital=True)
def manifest(
    names: "Pseudonyms",
    table: Annotated[Path, typer.Argument(metavar="IN", help="CSV or JSON Lines, one row per file.")],
    modality: Modality = None,
    template: Annotated[
        bool,
        typer.Option("--template", is_eager=True, callback=_print_template, help="Print a table to fill in, and exit."),
    ] = False,
) -> "Source":
    """A table with one row per file.

    Its columns: case, patient, path, modality, disorders, ...

    Example: radfm prepare manifest --template > cases.csv, then radfm prepare manifest cases.csv datasets/mine
    """
    from radfm.data_prep.sources.manifest import Manifest

    return Manifest(table, names, modality)


@_source(hospital=True)
def dicom(
    names: "Pseudonyms",
    path: In,
    labels: Annotated[Path | None, typer.Option(help="CSV with columns study or accession, disorders, ...")] = None,
    case: Annotated[str, typer.Option(help="A case is a study, or a patient with all studies.")] = "study",
) -> "Source":
    """A tree of DICOM studies, or a DICOMDIR.

    With labels by study or accession number.

    Example: radfm prepare dicom archive/ datasets/mine --labels labels.csv
    """
    from radfm.data_prep.sources.dicom import Dicom

    return Dicom(path, names, labels, case)


@_source(hospital=True)
def folder(
    names: "Pseudonyms",
    path: In,
    modality: Modality = None,
    patient: Annotated[
        str | None, typer.Option(help="Regular expression whose group is the patient, such as '^([0-9]+)_'.")
    ] = None,
) -> "Source":
    """One folder per class, whose name is the disorder.

    Example: radfm prepare folder brain_mri/ datasets/brain --modality MRI
    """
    from radfm.data_prep.sources.folder import FolderPerClass

    return FolderPerClass(path, modality, names, patient)


@_source()
def rp3d(
    names: "Pseudonyms",
    path: In,
    granularity: Annotated[str, typer.Option(help="disorder (articles) or icd10cm (categories).")] = "disorder",
    labels: Annotated[Path | None, typer.Option(help="disorder_label_dict.json: use only its names.")] = None,
) -> "Source":
    """RP3D-DiagDS in its own format.

    The folder of RP3D_train.json and RP3D_test.json.

    Example: radfm prepare rp3d RP3D-DiagDS/ datasets/rp3d --labels RP3D-DiagDS/disorder_label_dict.json
    """
    from radfm.data_prep.sources.rp3d import RP3D

    return RP3D(path, granularity, labels)


@_source()
def medpix(names: "Pseudonyms", path: In) -> "Source":
    """MedPix 2.0 in its own format.

    The folder of Case_topic.json, Descriptions.json and the images.

    Example: radfm prepare medpix MedPix-2-0/ datasets/medpix
    """
    from radfm.data_prep.sources.medpix import MedPix

    return MedPix(path)


@_source()
def datasets(
    names: "Pseudonyms",
    path: Annotated[str, typer.Argument(metavar="IN", help="Name on the Hugging Face Hub, or a folder.")],
    image_column: Annotated[str | None, typer.Option(help="Default: the only column of images or NIfTI.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: the only column of classes.")] = None,
    case_column: Annotated[str | None, typer.Option(help="Rows with the same value form one case.")] = None,
    patient_column: Annotated[str | None, typer.Option(help="Default: every case is a patient of its own.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the data set.")] = None,
    modality: Modality = None,
) -> "Source":
    """Any Hugging Face data set of images or NIfTI, streamed.

    Example: radfm prepare datasets organisation/chest-xray datasets/chest --modality X-ray
    """
    from radfm.data_prep.sources.hub import HubDataset

    return HubDataset(path, image_column, label_column, case_column, patient_column, modality, config)


@_source()
def phantoms(
    names: "Pseudonyms",
    cases: Annotated[int, typer.Option(min=1, help="Number of patients.")] = 2000,
    size: Annotated[int, typer.Option(min=32, help="Height and width of a picture, in pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Seed of the patients and of the splits.")] = 0,
    anatomy: Annotated[
        str | None, typer.Option(help="Only the patients with scans of this part of the body, such as knee.")
    ] = None,
) -> "Source":
    """Synthetic patients with known masks.

    For the demo, tests and studies.

    Example: radfm prepare phantoms datasets/phantoms --cases 2000
    """
    from radfm.data_prep.sources.phantoms import Phantoms

    return Phantoms(cases, seed, size, anatomy)


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new data set; a killed run continues there.")]
AutoencoderOption = Annotated[
    str,
    typer.Option(
        metavar="AUTOENCODER",
        help="What radfm train autoencoder wrote, or a folder or Hub name of diffusers or MedVAE's layout.",
    ),
]


@app.command()
@needs("train")
def latents(data: Data, out: Out, autoencoder: AutoencoderOption) -> None:
    """Latents of a data set by an autoencoder.

    A table of the same kind as its slices, which latent models are trained on.

    Example: radfm prepare latents datasets/mine datasets/mine-latents --autoencoder runs/autoencoder
    """
    from radfm.data_prep.latents import prepare_latents

    with _progress(f"Preparing {out}") as progress:
        record = prepare_latents(data, out, autoencoder, progress)
    facts = record["latents"]
    shape = " x ".join(map(str, [facts["channels"], *facts["size"]]))
    print(f"{out}: latents of {record['counts']['scans']['out']:,} scans, {shape}, autoencoder {facts['autoencoder']}")


@app.command()
@needs("train")
def reconstructions(data: Data, out: Out, autoencoder: AutoencoderOption) -> None:
    """A data set as an autoencoder reconstructs it.

    To see what of a disorder it keeps: by eye, or by a model.

    Example: radfm prepare reconstructions datasets/mine datasets/mine-decoded --autoencoder runs/autoencoder
    """
    from radfm.data_prep.latents import prepare_reconstructions

    with _progress(f"Preparing {out}") as progress:
        record = prepare_reconstructions(data, out, autoencoder, progress)
    facts = record["reconstructions"]
    print(
        f"{out}: reconstructions of {record['counts']['scans']['out']:,} scans by the autoencoder "
        f"{facts['autoencoder']}, PSNR {facts['psnr']:.1f} dB, MS-SSIM {facts['ms_ssim']:.3f}"
    )


def _public(set_name: str) -> None:
    """The command of a public set, such as `radfm prepare CheXpert IN OUT`."""

    @_source(set_name)
    def public(
        names: "Pseudonyms",
        path: In,
        uncertain: Annotated[str, typer.Option(help="How uncertain labels count: absent or present.")] = "absent",
    ) -> "Source":
        from radfm.data_prep.sources.external import External

        return External(set_name, path, uncertain)

    app.registered_commands[-1].help = (
        f"{set_name}, see docs/external_sets.md.\n\n"
        f"Example: radfm prepare {set_name} {set_name}/ datasets/{set_name.lower()}"
    )


for _file in sorted(file.name for file in files("radfm.data_prep.sources").joinpath("external").iterdir()):
    if _file.endswith(".yaml"):
        _public(_file.removesuffix(".yaml"))


@needs("data")
def _run(source_of: Callable[["Pseudonyms"], "Source"], values: dict) -> None:
    from radfm.data_prep.prepare import Settings, prepare
    from radfm.data_prep.pseudonyms import Pseudonyms, read_key

    out, key, links = values["out"], values.get("key"), values.get("links")
    keep_names = values.get("keep_names", True)
    if keep_names and (key or links):
        raise ValueError("--keep-names uses no pseudonyms: omit --key and --links, or omit --keep-names")
    names = Pseudonyms(None if keep_names else read_key(key) if key else _key_of(out))
    options = {
        name: values[name] for name in ("size", "precision", "max_slices", "cases_per_shard", "seed") if name in values
    }
    settings = Settings(**options, fractions=_fractions(values["fractions"]))
    with _progress(f"Preparing {out}") as progress:
        record = prepare(
            source_of(names),
            out,
            settings,
            processes=values["processes"] or os.cpu_count() or 1,
            part=_part(values["part"]),
            progress=progress,
        )
    if links:
        names.write_links(links)
    if values["as_json"]:
        print(json.dumps(record or {"finished": False}, indent=2, ensure_ascii=False))
    elif record is None:
        print(f"{out}: part {values['part']} is finished; the last part to finish writes the report")
    else:
        _print(out, record)


def _key_of(out: Path) -> bytes:
    """The key of a run without --key, see `kept_key`."""
    from radfm.data_prep.pseudonyms import kept_key
    from radfm.data_prep.shard import WORK
    from radfm.data_prep.tables import RECORD

    if (out / RECORD).exists():
        raise ValueError(f"{out} holds a finished data set: choose another folder, or delete this one")
    return kept_key(out / WORK / "key")


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in text.split(","))
        return train, validation, test
    except ValueError:
        raise ValueError(f"--fractions takes three numbers such as 0.7,0.1,0.2, not {text!r}") from None


def _part(text: str) -> tuple[int, int]:
    try:
        i, n = text.split("/")
        return int(i), int(n)
    except ValueError:
        raise ValueError(f"--part takes a value such as 0/4, the first of four parts, not {text!r}") from None


@contextmanager
def _progress(what: str):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _print(out: Path, record: dict) -> None:
    from radfm.presentation import plural

    counts, splits = record["counts"], record["splits"]
    totals = (counts["cases"]["out"], "case"), (counts["scans"]["out"], "scan"), (record["disorders"], "disorder")
    summary = ", ".join(plural(count, what) for count, what in totals)
    print(f"{out}: {summary}; " + ", ".join(f"{n:,} {split}" for split, n in splits.items()))
    units = {"listed": counts["listed"]["unit"], "cases": "case", "files": "file", "scans": "scan"}
    if rejected := [plural(count["rejected"], units[what]) for what, count in counts.items() if count["rejected"]]:
        print(f"Rejected: {', '.join(rejected)}; see rejected.csv for the reasons")
    if n := record["text_in_pixels"]:
        print(f"Warning: {plural(n, 'scan')} may carry text in the pixels, such as names: see report.html")
    if n := record["scans_with_warnings"]:
        print(f"Warning: a model may read {plural(n, 'scan')} as nonsense: see warnings.csv")
    if n := record["groups_of_duplicates_across_splits"]:
        print(f"Warning: {plural(n, 'picture is', 'pictures are')} in several splits: see duplicates.csv")
    print(f"Look at {out / 'report.html'}")
