"""A checkpoint as the Hugging Face Hub wants it, and its upload: `radfm publish DIR REPO_ID`.

Decisions:
- The folder to be published is written anew from a list of what a checkpoint has; nothing is copied because it lay
  there. What was left out is reported.
- The weights are those that were evaluated, byte by byte. Only a file larger than a shard may be is split, tensors as
  they are, and what names the fingerprint then names the new one.
- The code that a checkpoint carries is that of the radfm that publishes, with which it was loaded just before.
- Of recipes and evaluations goes what says nothing of a case: how many were left out, and not which.
- What was published can be published again, elsewhere or by another name: its evaluation, licence and notes lie beside
  the weights and hold until others are given.
- At the end every file is searched for what must not leave, see `radfm.publishing.checks`; a folder with a fault goes.

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
from radfm.publishing.checks import metadata, read_json, refuse_pickle, refuse_unsafe, refuse_what_tells, write_json
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
STATED = "radfm_card.json"  # what the author said: licence and notes
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
              "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")  # fmt: skip
_SENTENCES = ("modules.json", "config.json", "config_sentence_transformers.json", "sentence_bert_config.json")


@dataclass
class Published:
    """
    Attributes:
        folder: What was written; gone where it was only uploaded.
        files: name -> bytes.
        left_out: What of the checkpoint's folder was not taken.
        card: The text of README.md.
        url: Where it was uploaded to.
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
    learned: dict[str, Any] | None = field(default=None, repr=False)  # of `radfm.data_prep.data_summary`
    max_shard_size: str | int = "5GB"


def publish(request: Request, out: Path | None = None, upload: bool = True, private: bool = False) -> Published:
    """Writes the folder, and uploads it.

    Args:
        out: Folder to write, which is kept; None: one that is not.
        private: Whether a repository that is made for it is private.
    Raises:
        ValueError: The checkpoint cannot be published as it is, or the Hub refuses it; file and remedy are named.
        FileNotFoundError: There is no such checkpoint, evaluation or file of notes.
        OSError: The folder cannot be written.
    """
    try:
        validate_repo_id(request.repo_id)
    except HFValidationError as error:
        raise ValueError(f"{request.repo_id!r} is no name of a repository, such as me/my-model: {error}") from error
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
    """Writes the folder; `out` is there and empty. Arguments and errors: see `publish`."""
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
        for one in evaluations:
            one["weights"] = published
        write_json(out / EVALUATION, evaluations)
    config = read_json(out / "config.json")
    if not is_text:
        refuse_other_calibration(config, evaluations, request.evaluations or [folder / EVALUATION] * len(evaluations))
    facts = Facts(
        repo_id=request.repo_id,
        weights=weights,
        config=config,
        recipe=recipe,
        learned=None if is_text else _learned(recipe, request.learned),
        confidence=confidence,
        evaluations=evaluations,
        licence=licence,
        notes=notes,
        radfm=version("radfm"),
    )
    (out / CARD).write_text(_card(facts, is_text), encoding="utf-8")
    refuse_what_tells(out, dict.fromkeys((CARD, STATED), f"{CARD} ({request.notes})") if request.notes else None)
    files = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    taken = {*files, *(["model.safetensors"] if _INDEX in files else [])}  # as it is, or in shards
    left_out += [file.name for file in folder.iterdir() if file.is_file() and file.name not in taken]
    parts = {name.partition("/")[0] + "/" for name in files if "/" in name}
    return Published(
        out, files, sorted(name for name in left_out if name not in parts), (out / CARD).read_text("utf-8")
    )


def read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: it holds no config.json")
    return read_json(folder / "config.json")


def _write_model(folder: Path, out: Path, max_shard_size: str | int) -> dict[str, Any]:
    """Configuration, processor, code and weights; returns how many numbers, and of what kind."""
    from transformers.dynamic_module_utils import custom_object_save

    from radfm.modeling_radfm import RadFMForDiagnosis
    from radfm.processing_radfm import RadFMProcessor

    files = _weights(folder)
    try:
        model, loaded = RadFMForDiagnosis.from_pretrained(folder, output_loading_info=True)
        processor = RadFMProcessor.from_pretrained(folder)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    for what, keys in (
        ("lacks", loaded["missing_keys"]),
        ("holds what no model of radfm has:", loaded["unexpected_keys"]),
    ):
        if keys:
            raise ValueError(f"{files[0]} {what} {', '.join(sorted(keys)[:5])}: save the checkpoint again")
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
    """As they are; a single file is split where it is larger than a shard may be."""
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
    """Raises: ValueError: there are none, or a file is none of safetensors."""
    if not (files := sorted(folder.glob("model*.safetensors"))):
        raise ValueError(f"{folder} holds no model.safetensors: save the checkpoint with model.save_pretrained")
    for file in files:
        metadata(file)
    return files


def _tensors(files: Sequence[Path]) -> dict:
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _remove_loading_options(out: Path) -> None:
    """Takes out of a tokenizer's configuration what transformers notes of how it was loaded."""
    if (file := out / "tokenizer_config.json").is_file():
        said = read_json(file)
        write_json(file, {key: said[key] for key in said if key not in ("is_local", "local_files_only")})


def _dtypes(files: Sequence[Path]) -> str:
    floats = (tensor.dtype for tensor in _tensors(files).values() if tensor.is_floating_point())
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in floats}))


def _write_text_encoder(folder: Path, out: Path, max_shard_size: str | int) -> dict[str, Any]:
    """What its modules.json names, tokenizer and weights; returns how many numbers, and of what kind."""
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
                    metadata(file)
                    shutil.copyfile(file, out / inner / file.name)
    files = _weights(folder)
    _write_weights(files, out, max_shard_size)
    for name in (*_SENTENCES, *_TOKENIZER):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    _remove_loading_options(out)
    return {"parameters": sum(tensor.numel() for tensor in _tensors(files).values()), "dtype": _dtypes(files)}


def _write_recipe(folder: Path, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The newest recipe, without what tells of a case or a folder; {} where there is none."""
    for name in names:
        if (folder / name).is_file():
            recipe = count_left_out(read_json(folder / name))
            if name == TEXT_RECIPE:
                recipe.get("config", recipe).pop("output", None)  # a path of the machine
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


def _learned(recipe: dict, given: dict | None) -> dict[str, Any] | None:
    """What the data was, by the recipe, or as given where the recipe knows no more than its fingerprint."""
    found = recipe.get("data") or recipe.get("key", {}).get("data")
    found = {"fingerprint": found} if isinstance(found, str) else found
    if given is None:
        return (
            {"title": found.get("source", "unknown"), "source": "unknown", "licence": None} | found if found else None
        )
    if found and found.get("fingerprint") != given["fingerprint"]:
        raise ValueError(
            f"the checkpoint learned from other data than --data holds: {str(found.get('fingerprint'))[:12]}, not "
            f"{given['fingerprint'][:12]}"
        )
    return found if found and "cases" in found else given


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
