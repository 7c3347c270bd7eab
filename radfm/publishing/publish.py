"""A checkpoint as the Hugging Face Hub wants it, and its upload: `radfm publish DIR REPO_ID`.

Decisions:
- The folder to be published is written anew from a list of what a checkpoint has; nothing is copied because it lay
  there. What was left out is told.
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

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import HfApi, constants, get_token, save_torch_state_dict, split_torch_state_dict_into_shards
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from radfm.checkpoints import CONFIDENCE
from radfm.publishing.card import Facts
from radfm.publishing.checks import metadata, read_json, refuse_pickle, refuse_unsafe, refuse_what_tells
from radfm.recipes_radfm import MODEL_RECIPES, TEXT_RECIPE
from radfm.reference_radfm import FILE as REFERENCE
from radfm.reference_radfm import TrainingReference, weights_sha256

CARD, EVALUATION = "README.md", "evaluation.json"
STATED = "radfm_card.json"  # what the author said: licence and notes
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
              "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")  # fmt: skip
_SENTENCES = ("modules.json", "config.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_REPLACED = ["model*.safetensors", "*.safetensors.index.json", "radfm_*", EVALUATION]  # of what was published before
_OF_EVALUATION = ("data", "split", "level", "only", "within", "least", "cases", "patients", "bootstraps", "bands")
_OF_MODEL = ("macro", "ranking", "ranking_unseen", "subgroups", "disorders")


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
        _refuse_without_hub(request.repo_id)
    folder = Path(mkdtemp()) if out is None else _empty(out)
    try:
        published = write(request, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    try:
        if upload:
            published.url = _upload(folder, request.repo_id, private)
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
    evaluations = [_evaluation(path, sha256, is_text) for path in request.evaluations] or _evaluated(folder, sha256)
    stated = read_json(folder / STATED) if (folder / STATED).is_file() else {}
    licence = request.licence or stated.get("licence", "unknown")
    notes = stated.get("notes", "") if request.notes is None else request.notes.read_text(encoding="utf-8")
    _write_json(out / STATED, {"licence": licence, "notes": notes})
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
        _write_json(out / EVALUATION, evaluations)
    config = read_json(out / "config.json")
    if not is_text:
        _refuse_other_calibration(config, evaluations, request.evaluations or [folder / EVALUATION] * len(evaluations))
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
    _forget_place(out)
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
        _write_json(out / _INDEX, read_json(files[0].parent / _INDEX))
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


def _forget_place(out: Path) -> None:
    """Takes out of a tokenizer's configuration what transformers notes of how it was loaded."""
    if (file := out / "tokenizer_config.json").is_file():
        said = read_json(file)
        _write_json(file, {key: said[key] for key in said if key not in ("is_local", "local_files_only")})


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
                    _write_json(out / inner / file.name, read_json(file))
                elif file.suffix == ".safetensors":
                    metadata(file)
                    shutil.copyfile(file, out / inner / file.name)
    files = _weights(folder)
    _write_weights(files, out, max_shard_size)
    for name in (*_SENTENCES, *_TOKENIZER):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    _forget_place(out)
    return {"parameters": sum(tensor.numel() for tensor in _tensors(files).values()), "dtype": _dtypes(files)}


def _write_recipe(folder: Path, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The newest recipe, without what tells of a case or a folder; {} where there is none."""
    for name in names:
        if (folder / name).is_file():
            recipe = _told(read_json(folder / name))
            if name == TEXT_RECIPE:
                recipe.pop("output", None)  # where it lay
            _write_json(out / name, recipe)
            return recipe
    return {}


def _write_confidence(folder: Path, out: Path, sha256: str, published: str) -> dict[str, Any]:
    if not (folder / CONFIDENCE).is_file():
        return {}
    record = _told(read_json(folder / CONFIDENCE))
    if record.get("weights") != sha256:
        raise ValueError(f"{folder / CONFIDENCE} belongs to other weights: run radfm calibrate again, or delete it")
    record["weights"] = published
    _write_json(out / CONFIDENCE, record)
    return record


def _told(value: Any) -> Any:
    """The same with the number of cases that were left out, in place of their names and reasons."""
    if isinstance(value, dict):
        return {
            key: len(inner) if key == "left_out" and isinstance(inner, dict) else _told(inner)
            for key, inner in value.items()
        }
    return [_told(inner) for inner in value] if isinstance(value, list) else value


def _evaluation(path: Path, sha256: str, is_text: bool) -> dict[str, Any]:
    """What an evaluation says of these weights.

    Raises:
        ValueError: It is of other weights, or no evaluation.
        FileNotFoundError: There is none.
    """
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such evaluation; radfm evaluate DATA --model DIR --out {path} makes one")
    found = read_json(file)
    try:
        if is_text:
            return _of_text(found, sha256)
        calibration = file.with_name("calibration.json")
        return _of_model(found, read_json(calibration) if calibration.is_file() else {}, sha256)
    except (KeyError, TypeError, AttributeError) as error:
        kind = "radfm evaluate text --json" if is_text else "radfm evaluate DATA --out"
        raise ValueError(f"{file} is no evaluation that this radfm reads: make one with {kind}") from error
    except _OtherWeights as error:
        raise ValueError(f"{file} {error}") from error


def _evaluated(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """What lies beside weights that were published before. Raises: ValueError: it is of other weights."""
    if not (file := folder / EVALUATION).is_file():
        return []
    found = read_json(file)
    for one in found:
        if one.get("weights") != sha256:
            made_with = str(one.get("weights"))[:12]
            raise ValueError(
                f"{file} was made with other weights ({made_with}, not {sha256[:12]}): evaluate this checkpoint, or "
                "delete the file"
            )
    return found


class _OtherWeights(Exception):
    pass


def _of_model(found: dict, calibration: dict, sha256: str) -> dict[str, Any]:
    made_with = []
    for name, model in found["models"].items():
        if len(model["tables"]) == 1 and model["tables"][0].get("checkpoint") == sha256:
            about = _told(model["tables"][0])
            subgroups = {what: groups for what, groups in model["subgroups"].items() if what != "folder"}
            return {
                **{key: found[key] for key in _OF_EVALUATION},
                "metrics": found.get("metrics"),  # none in evaluations by radfm 0.1
                "about": {key: value for key, value in about.items() if key not in ("model", "checkpoint")},
                **{key: model[key] for key in _OF_MODEL},
                "subgroups": subgroups,
                "calibration": calibration.get(name),
            }
        made_with += [str(table.get("checkpoint"))[:12] for table in model["tables"]]
    raise _OtherWeights(
        f"was made with other weights ({', '.join(made_with) or 'none'}, not {sha256[:12]}): evaluate this checkpoint, "
        "or leave --evaluation out"
    )


def _of_text(found: dict, sha256: str) -> dict[str, Any]:
    own = next((name for name, mine in found["checkpoints"].items() if mine == sha256), None)
    if own is None:
        made_with = ", ".join(mine[:12] for mine in found["checkpoints"].values()) or "none"
        raise _OtherWeights(
            f"was made with other weights ({made_with}, not {sha256[:12]}): evaluate this checkpoint, or leave "
            "--evaluation out"
        )
    told = {key: found[key] for key in ("terms", "linked", "candidates", "ontology")}
    for key in ("figures", "intervals"):
        spaces = found.get(key, {})  # own's name may be a path
        told[key] = {name: spaces[name] for name in ("TF-IDF", "all-MiniLM-L6-v2") if name in spaces}
        told[key]["this"] = spaces.get(own, {})
    return told


def _refuse_other_calibration(config: dict, evaluations: Sequence[dict], paths: Sequence[Path]) -> None:
    """Raises: ValueError: scores were measured before these weights were calibrated, or calibrated otherwise."""
    rows = {name.casefold(): row for row, name in enumerate(config["disorders"])}
    for one, path in zip(evaluations, paths, strict=True):
        names = [row["disorder"].casefold() for row in one["disorders"]]
        if one["level"] != "disorder" or any(name not in rows for name in names):
            continue
        known = config["thresholds"] or [None] * len(rows)
        expected = [known[rows[name]] for name in names]
        found = one["about"].get("thresholds") or [None] * len(names)
        if len(found) == len(expected) and found != expected:
            raise ValueError(f"{path} was made before these weights were calibrated as they are: evaluate them again")


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


def _refuse_without_hub(repo_id: str) -> None:
    dry = "or write the folder alone with --dry-run --out FOLDER"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it, {dry}")
    if get_token() is None:
        raise ValueError(f"there is no token for {constants.ENDPOINT}: run hf auth login, or set HF_TOKEN, {dry}")
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} does not say whose repository it is: write OWNER/{repo_id}")


def _upload(folder: Path, repo_id: str, private: bool) -> str:
    api = HfApi(library_name="radfm", library_version=version("radfm"))
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Publish by radfm {version('radfm')}",
            delete_patterns=_REPLACED,
        )
    except HTTPError as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{constants.ENDPOINT} did not take {repo_id}: {said}") from error
    return str(url)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _empty(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose another folder, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    return out
