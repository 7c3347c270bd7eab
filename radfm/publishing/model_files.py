"""Copies the files of a model or of a text encoder to the folder that is published.

Decisions:
- The weights are copied byte by byte. Only a single file that is larger than the maximal shard is split.
- A model is loaded before it is published, so that missing and unexpected tensors are noticed here.
- Of a text encoder, only modules of sentence-transformers are published, and no other code.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards

from radfm.publishing.checks import read_json, refuse_pickle, safetensors_metadata, write_json
from radfm.reference_radfm import FILE as REFERENCE
from radfm.reference_radfm import TrainingReference, weights_sha256

INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
              "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")  # fmt: skip
_SENTENCES = ("modules.json", "config.json", "config_sentence_transformers.json", "sentence_bert_config.json")


def write_model(folder: Path, out: Path, max_shard_size: str | int) -> dict[str, Any]:
    """Writes configuration, processor, code and weights of a `RadFMForDiagnosis`, and what `radfm check` expects of it.

    Returns:
        Number of parameters and their dtype: `parameters`, `dtype`.
    Raises:
        ValueError: the checkpoint cannot be loaded, or has missing or unexpected tensors.
    """
    from transformers.dynamic_module_utils import custom_object_save

    from radfm.checkpoints.reproduction import write_expected
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
    write_expected(out)
    return {"parameters": sum(p.numel() for p in model.parameters()), "dtype": _dtypes(files)}


def write_text_encoder(folder: Path, out: Path, max_shard_size: str | int) -> dict[str, Any]:
    """Writes modules, tokenizer and weights of a SentenceTransformer.

    Returns:
        As `write_model`.
    Raises:
        ValueError: modules.json names files outside of the checkpoint or other code.
    """
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


def _weights(folder: Path) -> list[Path]:
    """The files of the weights. Raises: ValueError: there are none, or one is not a safetensors file."""
    if not (files := sorted(folder.glob("model*.safetensors"))):
        raise ValueError(f"{folder} holds no model.safetensors: save the checkpoint with model.save_pretrained")
    for file in files:
        safetensors_metadata(file)
    return files


def _write_weights(files: Sequence[Path], out: Path, max_shard_size: str | int) -> None:
    """Copies the weights; a single file that is larger than a shard is split."""
    if len(files) == 1:
        tensors = _tensors(files)
        if split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size).is_sharded:
            save_torch_state_dict(tensors, out, max_shard_size=max_shard_size, metadata={"format": "pt"})
            return
    else:
        write_json(out / INDEX, read_json(files[0].parent / INDEX))
    for file in files:
        shutil.copyfile(file, out / file.name)


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
