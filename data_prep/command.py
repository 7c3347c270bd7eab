"""The command `radfm prepare SOURCE IN OUT`.

Decisions:
- The options of a source are the parameters of a function; `source_command` adds those of all sources.
- Sources from a hospital (manifest, dicom, folder) replace names by pseudonyms unless --keep-names is set. Public sets
  keep their names.
"""

import sys
import warnings
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import needs
from radfm.data_prep.reports.command import reports
from radfm.data_prep.source_command import app, print_summary, progress_bar, source_command

if TYPE_CHECKING:
    from radfm.data_prep.plan import Source
    from radfm.data_prep.pseudonyms import Pseudonyms

In = Annotated[Path, typer.Argument(metavar="IN", help="What to read.")]
Modality = Annotated[str | None, typer.Option(help="Modality of files that do not state one: CT, MRI, X-ray, ...")]


@needs("data")
def _print_template(requested: bool) -> None:
    if requested:
        from radfm.data_prep.sources.manifest import COLUMNS, template

        print(template(), end="")
        width = max(map(len, COLUMNS))
        print("\n".join(f"{name:{width}}  {meaning}" for name, meaning in COLUMNS.items()), file=sys.stderr)
        raise typer.Exit


@source_command(hospital=True)
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


@source_command(hospital=True)
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


@source_command(hospital=True)
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


@source_command()
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


@source_command()
def medpix(names: "Pseudonyms", path: In) -> "Source":
    """MedPix 2.0 in its own format.

    The folder of Case_topic.json, Descriptions.json and the images.

    Example: radfm prepare medpix MedPix-2-0/ datasets/medpix
    """
    from radfm.data_prep.sources.medpix import MedPix

    return MedPix(path)


@source_command()
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


@source_command()
def phantoms(
    names: "Pseudonyms",
    cases: Annotated[int, typer.Option(min=1, help="Number of patients.")] = 2000,
    size: Annotated[int, typer.Option(min=32, help="Height and width of a picture, in pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Seed of the patients and of the splits.")] = 0,
    anatomy: Annotated[
        str | None, typer.Option(help="Only the patients with scans of this part of the body, such as knee.")
    ] = None,
    follow_up: Annotated[
        bool, typer.Option("--follow-up", help="Scans of several dates; lesions grow, shrink, stay, appear, resolve.")
    ] = False,
) -> "Source":
    """Synthetic patients with known masks.

    For the demo, tests and studies.

    Example: radfm prepare phantoms datasets/phantoms --cases 2000
    """
    from radfm.data_prep.sources.phantoms import Phantoms

    return Phantoms(cases, seed, size, anatomy, follow_up)


@source_command("synthetic")
@needs("train")
def synthetic_cases(
    names: "Pseudonyms",
    model: Annotated[Path, typer.Option(help="Folder of a generator, which radfm train diffusion wrote.")],
    disorders: Annotated[
        str, typer.Option(help='Names with commas between them (or semicolons), also "no finding"; all: all it knows.')
    ],
    per_disorder: Annotated[int, typer.Option(min=1, help="Cases of each disorder.")] = 100,
    classifier: Annotated[
        Path | None, typer.Option(help="A latent classifier; it refuses samples that do not show what was asked for.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability that it gives to what was asked for.")
    ] = 0.1,
    rank: Annotated[
        int, typer.Option(min=1, help="Lowest rank among the disorders of its body part that it may have.")
    ] = 1,
    real: Annotated[
        Path | None, typer.Option(help="The latents that the generator was trained on; copies of them are refused.")
    ] = None,
    no_comparison: Annotated[
        bool, typer.Option("--no-comparison", help="Make samples without --real; copies of patients may be among them.")
    ] = False,
    closest: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the held-out cases that would be refused as copies.")
    ] = 0.05,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the sampler.")] = 18,
    guidance: Annotated[float, typer.Option(min=0, help="How much the disorder is stressed; 1: as in training.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
) -> "Source":
    """Synthetic cases of a generator, marked as such.

    Example: radfm prepare synthetic datasets/synthetic --model runs/diffusion --disorders Gout --real datasets/latents
    """
    from radfm.data_prep.sources.synthetic import Synthetic, disorder_names

    if (real is None) != no_comparison:
        raise ValueError(
            "samples may be copies of training cases: give --real LATENTS, those that the generator was trained on, or "
            "--no-comparison, one of the two"
        )
    with warnings.catch_warnings(record=True) as caught:
        source = Synthetic(
            model,
            disorder_names(disorders, model),
            per_disorder,
            seed,
            steps=steps,
            guidance=guidance,
            classifier=classifier,
            threshold=threshold,
            rank=rank,
            real=real,
            closest=closest,
        )
    for message in (str(one.message) for one in caught if one.category is UserWarning):
        print(f"Warning: {message}", file=sys.stderr)
    return source


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
@needs("data")
def labelled(
    data: Data,
    out: Out,
    labels: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="CSV that the page of radfm select exported: case_id, disorders; several times."
        ),
    ],
    processes: Annotated[int, typer.Option(min=1, help="Processes that write.")] = 1,
) -> None:
    """A data set with labels that were read later.

    Such as those of the page that radfm select writes; the other cases stay as they are.

    Example: radfm prepare labelled datasets/mine datasets/mine-labelled --labels labels.csv
    """
    from radfm.data_prep.prepare import prepare
    from radfm.data_prep.sources.labelled import Labelled

    source = Labelled(data, labels)
    with progress_bar(f"Preparing {out}") as progress:
        record = prepare(source, out, source.stored_as, processes=processes, progress=progress)
    if record is not None:
        print_summary(out, record)


@app.command()
@needs("train")
def latents(data: Data, out: Out, autoencoder: AutoencoderOption) -> None:
    """Latents of a data set by an autoencoder.

    A table of the same kind as its slices, which latent models are trained on.

    Example: radfm prepare latents datasets/mine datasets/mine-latents --autoencoder runs/autoencoder
    """
    from radfm.data_prep.latents import prepare_latents

    with progress_bar(f"Preparing {out}") as progress:
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

    with progress_bar(f"Preparing {out}") as progress:
        record = prepare_reconstructions(data, out, autoencoder, progress)
    facts = record["reconstructions"]
    print(
        f"{out}: reconstructions of {record['counts']['scans']['out']:,} scans by the autoencoder "
        f"{facts['autoencoder']}, PSNR {facts['psnr']:.1f} dB, MS-SSIM {facts['ms_ssim']:.3f}"
    )


app.command()(reports)


def _public(set_name: str) -> None:
    """The command of a public set, such as `radfm prepare CheXpert IN OUT`."""

    @source_command(set_name)
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
