"""Writes a checkpoint or generator in the layout of the Hugging Face Hub and uploads it: `radfm publish DIR REPO_ID`.

Decisions:
- The folder to be published is written from scratch, from a list of the files that a checkpoint has. Other files are
  not copied, and are reported.
- The weights are the evaluated ones, byte by byte. Where a large file was split, all records name the new fingerprint.
- The code in the published checkpoint is that of the radfm that publishes, with which it was loaded before.
- Recipes and evaluations are published without data of single cases: the number of cases that were left out, without
  their names.
- A published checkpoint can be published again under another name: its evaluation, licence and notes are beside the
  weights and apply until others are given.
- A generator is patients' data where it has memorised any. One that learned from patients is published only with what
  `radfm evaluate sharing` measured with samples of it, which is then in its card.
- At the end all files are searched for patient data, see `radfm.publishing.checks`. A folder with a fault is deleted.

References:
    https://huggingface.co/docs/hub/model-cards, https://huggingface.co/docs/hub/models-uploading
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from radfm.checkpoints import CONFIDENCE
from radfm.presentation import plural
from radfm.publishing.card import Facts
from radfm.publishing.checks import read_json, refuse_identifying, refuse_unsafe, write_json
from radfm.publishing.evaluations import (
    EVALUATION,
    TRANSFER,
    count_left_out,
    published_evaluations,
    published_transfer,
    read_evaluation,
    read_sharing,
    refuse_other_calibration,
)
from radfm.publishing.hub import refuse_without_hub, upload_folder
from radfm.publishing.model_files import INDEX, write_model, write_text_encoder
from radfm.recipes_radfm import DIFFUSION_RECIPE, MODEL_RECIPES, TEXT_RECIPE, is_synthetic
from radfm.reference_radfm import weights_sha256

CARD = "README.md"
GENERATOR = "generator.json"  # what only a generator has
STATED = "radfm_card.json"  # licence and notes by the author


@dataclass
class Published:
    """
    Attributes:
        folder: what was written; deleted again where it was only uploaded.
        files: name -> bytes.
        left_out: files and subfolders of the checkpoint that were not published.
        card: the text of README.md.
        url: of the repository; None without an upload.
    """

    folder: Path
    files: dict[str, int]
    left_out: list[str]
    card: str
    url: str | None = None


@dataclass
class Request:
    """What to publish, and how; see `radfm publish --help`."""

    folder: Path
    repo_id: str
    evaluations: Sequence[Path] = ()
    licence: str | None = None
    notes: Path | None = None
    training_data: dict[str, Any] | None = field(default=None, repr=False)  # of `radfm.data_prep.data_summary`
    max_shard_size: str | int = "5GB"


def publish(request: Request, out: Path | None = None, upload: bool = True, private: bool = False) -> Published:
    """Writes the folder, and uploads it.

    Args:
        out: folder to write and keep; None: a temporary one.
        upload: whether to upload the folder.
        private: whether a new repository is private.
    Raises:
        ValueError: the checkpoint cannot be published as it is, or the Hub refuses it; file and remedy are named.
        FileNotFoundError: there is no such checkpoint, evaluation or file of notes.
        OSError: the folder cannot be written.
    """
    try:
        validate_repo_id(request.repo_id)
    except HFValidationError as error:
        raise ValueError(f"{request.repo_id!r} is not a name of a repository, such as me/my-model: {error}") from error
    if upload:
        refuse_without_hub(request.repo_id)
    folder = Path(mkdtemp()) if out is None else _empty(out)
    try:
        published = write(request, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    try:
        if upload:
            published.url = upload_folder(folder, request.repo_id, private)
    finally:
        if out is None:
            shutil.rmtree(folder)
    return published


def write(request: Request, out: Path) -> Published:
    """Writes the folder `out`, which exists and is empty. Arguments and errors: see `publish`."""
    folder = request.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    left_out = refuse_unsafe(folder)
    (_write_generator if (folder / GENERATOR).is_file() else _write_checkpoint)(request, out)
    refuse_identifying(out, dict.fromkeys((CARD, STATED), f"{CARD} ({request.notes})") if request.notes else None)
    files = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    copied = {*files, *(["model.safetensors"] if INDEX in files else [])}  # unchanged, or in shards
    left_out += [file.name for file in folder.iterdir() if file.is_file() and file.name not in copied]
    subfolders = {name.partition("/")[0] + "/" for name in files if "/" in name}
    return Published(
        out, files, sorted(name for name in left_out if name not in subfolders), (out / CARD).read_text("utf-8")
    )


def _write_generator(request: Request, out: Path) -> None:
    from radfm.latents.generator import Generator
    from radfm.publishing.generator_card import write_generator_card

    folder = request.folder
    generator = Generator.from_pretrained(folder, "cpu")
    facts, fingerprint = generator.facts, generator.fingerprint
    evaluations = [read_sharing(path, fingerprint) for path in request.evaluations]
    evaluations = evaluations or published_evaluations(folder, fingerprint)
    data, of_autoencoder = facts.get("data") or {}, facts.get("autoencoder_data")
    _refuse_unpublishable(folder.name, data, {"autoencoder": {"name": "its autoencoder", "data": of_autoencoder}})
    if not evaluations and not (is_synthetic(data) and (of_autoencoder is None or is_synthetic(of_autoencoder))):
        raise ValueError(
            f"{folder} learned from patients, and may have memorised some: run radfm evaluate sharing SAMPLES --real "
            "DATA --generator DIR --out FOLDER, and publish it with --evaluation FOLDER"
        )
    licence, notes = _write_stated(request, out)
    generator.save_pretrained(out)
    _write_recipe(folder, out, (DIFFUSION_RECIPE,))
    if evaluations:
        write_json(out / EVALUATION, evaluations)
    write_generator_card(out, request.repo_id, licence, notes, evaluations)


def _write_stated(request: Request, out: Path) -> tuple[str, str]:
    """Licence and notes by the author: those given, or those of an earlier publication."""
    file = request.folder / STATED
    stated = read_json(file) if file.is_file() else {}
    licence = request.licence or stated.get("licence", "unknown")
    notes = stated.get("notes", "") if request.notes is None else request.notes.read_text(encoding="utf-8")
    write_json(out / STATED, {"licence": licence, "notes": notes})
    return licence, notes


def _write_checkpoint(request: Request, out: Path) -> None:
    """A model, or a text encoder."""
    folder = request.folder
    is_text = (folder / "modules.json").is_file()
    if not is_text and read_config(folder).get("model_type") != "radfm":
        raise ValueError(f"{folder} is neither a checkpoint of radfm nor a SentenceTransformer: see its config.json")
    sha256 = weights_sha256(folder)
    evaluations = [read_evaluation(path, sha256, is_text) for path in request.evaluations]
    evaluations = evaluations or published_evaluations(folder, sha256)
    transfer = {} if is_text else published_transfer(folder, sha256)
    licence, notes = _write_stated(request, out)
    parameters = (write_text_encoder if is_text else write_model)(folder, out, request.max_shard_size)
    recipe = _write_recipe(folder, out, (TEXT_RECIPE,) if is_text else MODEL_RECIPES)
    published = weights_sha256(out)
    weights = {
        "sha256": published,
        "bytes": sum(file.stat().st_size for file in out.glob("model*.safetensors")),
        **parameters,
    }
    confidence = {} if is_text else _write_confidence(folder, out, sha256, published)
    if evaluations:
        for evaluation in evaluations:
            evaluation["weights"] = published
        write_json(out / EVALUATION, evaluations)
    if transfer:
        transfer["weights"] = published
        write_json(out / TRANSFER, transfer)
    config = read_json(out / "config.json")
    if not is_text:
        refuse_other_calibration(config, evaluations, request.evaluations or [folder / EVALUATION] * len(evaluations))
    training_data = None if is_text else _training_data(recipe, request.training_data)
    _refuse_unpublishable(folder.name, training_data, recipe.get("started_from") or {})
    facts = Facts(
        repo_id=request.repo_id,
        weights=weights,
        config=config,
        recipe=recipe,
        training_data=training_data,
        confidence=confidence,
        evaluations=evaluations,
        transfer=transfer,
        licence=licence,
        notes=notes,
        radfm=version("radfm"),
    )
    (out / CARD).write_text(_card(facts, is_text), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it holds no config.json")
    return read_json(folder / "config.json")


def _write_recipe(folder: Path, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Writes the newest recipe without names of cases and paths, and returns it; {} without one."""
    for name in names:
        if (folder / name).is_file():
            recipe = count_left_out(read_json(folder / name))
            if name == TEXT_RECIPE:
                recipe.get("config", recipe).pop("output", None)  # a local path
            write_json(out / name, recipe)
            return recipe
    return {}


def _write_confidence(folder: Path, out: Path, sha256: str, published: str) -> dict[str, Any]:
    if not (folder / CONFIDENCE).is_file():
        return {}
    record = count_left_out(read_json(folder / CONFIDENCE))
    if record.get("weights") != sha256:
        raise ValueError(f"{folder / CONFIDENCE} belongs to other weights: run radfm calibrate again, or delete it")
    record["weights"] = published
    write_json(out / CONFIDENCE, record)
    return record


def _refuse_unpublishable(name: str, training_data: dict | None, started_from: dict[str, dict]) -> None:
    learned_from = [(name, training_data), *((origin["name"], origin.get("data")) for origin in started_from.values())]
    for checkpoint, data in learned_from:
        if data and data.get("unpublishable"):
            raise ValueError(
                f"{checkpoint} has learned from {plural(data['unpublishable'], 'case')} that a published model must "
                "not learn from, as their data set states: train it again with data.publishable=true"
            )


def _training_data(recipe: dict, given: dict | None) -> dict[str, Any] | None:
    """The summary of the data set in the recipe, or the given one if the recipe has only its fingerprint.

    Raises:
        ValueError: the given data set is not the one that the recipe names.
    """
    recorded = recipe.get("data") or recipe.get("key", {}).get("data")
    recorded = {"fingerprint": recorded} if isinstance(recorded, str) else recorded
    if given is None:
        if not recorded:
            return None
        return {"title": recorded.get("source", "unknown"), "source": "unknown", "licence": None} | recorded
    if recorded and recorded.get("fingerprint") != given["fingerprint"]:
        raise ValueError(
            f"the checkpoint was trained on other data than --data: {str(recorded.get('fingerprint'))[:12]}, not "
            f"{given['fingerprint'][:12]}"
        )
    return recorded if recorded and "cases" in recorded else given


def _card(facts: Facts, is_text: bool) -> str:
    if is_text:
        from radfm.publishing.text_card import text_card as card
    else:
        from radfm.publishing.diagnosis_card import diagnosis_card as card
    return str(card(facts))


def _empty(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose another folder, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    return out
