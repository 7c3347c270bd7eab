"""Writes a checkpoint in the layout of the Hugging Face Hub and uploads it: `radfm publish DIR REPO_ID`.

Decisions:
- The folder to be published is written from scratch, from a list of the files that a checkpoint has. Other files are
  not copied, and are reported.
- The weights are the evaluated ones, byte by byte. Only a file that is larger than the maximal shard is split, without
  changing tensors, and all records then name the new fingerprint.
- The code in the published checkpoint is that of the radfm that publishes, with which it was loaded before.
- Recipes and evaluations are published without data of single cases: the number of cases that were left out, without
  their names.
- A published checkpoint can be published again under another name: its evaluation, licence and notes are beside the
  weights and apply until others are given.
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

from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from radfm.checkpoints import CONFIDENCE
from radfm.publishing.card import Facts
from radfm.publishing.checks import (
    read_json,
    refuse_identifying,
    refuse_pickle,
    refuse_unsafe,
    safetensors_metadata,
    write_json,
)
from radfm.publishing.evaluations import (
    EVALUATION,
    count_left_out,
    published_evaluations,
    read_evaluation,
    refuse_other_calibration,
)
from radfm.publishing.hub import refuse_without_hub, upload_folder
from radfm.recipes_radfm import MODEL_RECIPES, TEXT_RECIPE
from radfm.reference_radfm import FILE as REFERENCE
from radfm.reference_radfm import TrainingReference, weights_sha256

CARD = "README.md"
STATED = "radfm_card.json"  # licence and notes by the author
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
              "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")  # fmt: skip
_SENTENCES = ("modules.json", "config.json", "config_sentence_transformers.json", "sentence_bert_config.json")


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
    is_text = (folder / "modules.json").is_file()
    if not is_text and read_config(folder).get("model_type") != "radfm":
        raise ValueError(f"{folder} is neither a checkpoint of radfm nor a SentenceTransformer: see its config.json")
    sha256 = weights_sha256(folder)
    evaluations = [read_evaluation(path, sha256, is_text) for path in request.evaluations]
    evaluations = evaluations or published_evaluations(folder, sha256)
    stated = read_json(folder / STATED) if (folder / STATED).is_file() else {}
    licence = request.licence or stated.get("licence", "unknown")
    notes = stated.get("notes", "") if request.notes is None else request.notes.read_text(encoding="utf-8")
    write_json(out / STATED, {"licence": licence, "notes": notes})
    parameters = (_write_text_encoder if is_text else _write_model)(folder, out, request.max_shard_size)
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
    config = read_json(out / "config.json")
    if not is_text:
        refuse_other_calibration(config, evaluations, request.evaluations or [folder / EVALUATION] * len(evaluations))
    facts = Facts(
        repo_id=request.repo_id,
        weights=weights,
        config=config,
        recipe=recipe,
        training_data=None if is_text else _training_data(recipe, request.training_data),
        confidence=confidence,
        evaluations=evaluations,
        licence=licence,
        notes=notes,
        radfm=version("radfm"),
    )
    (out / CARD).write_text(_card(facts, is_text), encoding="utf-8")
    refuse_identifying(out, dict.fromkeys((CARD, STATED), f"{CARD} ({request.notes})") if request.notes else None)
    files = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    copied = {*files, *(["model.safetensors"] if _INDEX in files else [])}  # unchanged, or in shards
    left_out += [file.name for file in folder.iterdir() if file.is_file() and file.name not in copied]
    subfolders = {name.partition("/")[0] + "/" for name in files if "/" in name}
    return Published(
        out, files, sorted(name for name in left_out if name not in subfolders), (out / CARD).read_text("utf-8")
    )


def read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it holds no config.json")
    return read_json(folder / "config.json")


def _write_model(folder: Path, out: Path, max_shard_size: str | int) -> dict[str, Any]:
    """Writes configuration, processor, code and weights; returns the number of parameters and their dtype."""
    from transformers.dynamic_module_utils import custom_object_save

    from radfm.modeling_radfm import RadFMForDiagnosis
    from radfm.processing_radfm import RadFMProcessor

    files = _weights(folder)
    try:
        model, loaded = RadFMForDiagnosis.from_pretrained(folder, output_loading_info=True)
        processor = RadFMProcessor.from_pretrained(folder)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    for fault, keys in (
        ("lacks", loaded["missing_keys"]),
        ("has tensors that no radfm model has:", loaded["unexpected_keys"]),
    ):
        if keys:
            raise ValueError(f"{files[0]} {fault} {', '.join(sorted(keys)[:5])}: save the checkpoint again")
    custom_object_save(model, out, config=model.config)
    model.config.save_pretrained(out)
    processor.save_pretrained(out)
    _remove_loading_options(out)
    _write_weights(files, out, max_shard_size)
    if (reference := TrainingReference.load(folder)) is not None:
        reference.metadata["weights"] = weights_sha256(out)
        (out / REFERENCE).write_bytes(reference.to_bytes())
    return {"parameters": sum(p.numel() for p in model.parameters()), "dtype": _dtypes(files)}


def _write_weights(files: Sequence[Path], out: Path, max_shard_size: str | int) -> None:
    """Copies the weights; a single file that is larger than a shard is split."""
    if len(files) == 1:
        tensors = _tensors(files)
        if split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size).is_sharded:
            save_torch_state_dict(tensors, out, max_shard_size=max_shard_size, metadata={"format": "pt"})
            return
    else:
        write_json(out / _INDEX, read_json(files[0].parent / _INDEX))
    for file in files:
        shutil.copyfile(file, out / file.name)


def _weights(folder: Path) -> list[Path]:
    """The files of the weights. Raises: ValueError: there are none, or one is not a safetensors file."""
    if not (files := sorted(folder.glob("model*.safetensors"))):
        raise ValueError(f"{folder} holds no model.safetensors: save the checkpoint with model.save_pretrained")
    for file in files:
        safetensors_metadata(file)
    return files


def _tensors(files: Sequence[Path]) -> dict:
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _remove_loading_options(out: Path) -> None:
    """Removes from a tokenizer's configuration what transformers records about how it was loaded."""
    if (file := out / "tokenizer_config.json").is_file():
        config = read_json(file)
        write_json(file, {key: config[key] for key in config if key not in ("is_local", "local_files_only")})


def _dtypes(files: Sequence[Path]) -> str:
    floats = (tensor.dtype for tensor in _tensors(files).values() if tensor.is_floating_point())
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in floats}))


def _write_text_encoder(folder: Path, out: Path, max_shard_size: str | int) -> dict[str, Any]:
    """Writes modules, tokenizer and weights; returns the number of parameters and their dtype."""
    listing = folder / "modules.json"
    for module in read_json(listing):
        inner = Path(module["path"])
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{listing} names a folder outside of the checkpoint: {module['path']}")
        if not module["type"].startswith("sentence_transformers."):
            raise ValueError(f"{listing} names code that is not sentence-transformers': {module['type']}")
        if module["path"]:
            (out / inner).mkdir(parents=True, exist_ok=True)
            for file in sorted((folder / inner).iterdir()) if (folder / inner).is_dir() else ():
                refuse_pickle(file)
                if file.suffix == ".json":
                    write_json(out / inner / file.name, read_json(file))
                elif file.suffix == ".safetensors":
                    safetensors_metadata(file)
                    shutil.copyfile(file, out / inner / file.name)
    files = _weights(folder)
    _write_weights(files, out, max_shard_size)
    for name in (*_SENTENCES, *_TOKENIZER):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    _remove_loading_options(out)
    return {"parameters": sum(tensor.numel() for tensor in _tensors(files).values()), "dtype": _dtypes(files)}


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
