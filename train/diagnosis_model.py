"""The model that a diagnosis experiment starts from, and which parts of it learn.

Decisions:
- A checkpoint goes on as it is, with the vocabulary of the data: names it knew keep their place in its space.
- An mlp head reads no text, so its model has no text encoder.
- The bias starts at the log odds of a disorder in a case, so that the first steps do not go into learning that most
  cases have few disorders.
- A frozen tower's features do not change, so they are computed once, see `radfm.data_prep.batches.slice_features`.
- The weights of a published tower may bear other names than timm's, as long as they come in the same order and shapes.
"""

from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from radfm.checkpoints import find, resolve
from radfm.configuration_radfm import RadFMConfig, RadFMEncoderConfig, RadFMScanConfig, RadFMVisionConfig
from radfm.data_prep.batches.slice_features import refuse_without_features
from radfm.heads_radfm import HEADS
from radfm.knowledge.disorders import Vocabulary
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts, processor_for, untrained
from radfm.towers_radfm import PatchTower, Tower

if TYPE_CHECKING:
    from radfm.train.diagnosis import DiagnosisTraining

_TEXTS = 256  # at once
_CLEAR = 0.05  # of the largest singular value: directions in which names differ less are left out
_OWN_TOWER = "radfm.slice_encoder.tower."
_TO_TEXT = ("radfm.slice_encoder.projection.weight", "radfm.case_projection.weight")
_NETWORK = "network."  # what the names of a tower's network begin with
_CLASSIFIERS = tuple(f"{_NETWORK}{name}" for name in ("fc.", "head.fc.", "head.", "classifier.", "_fc."))


def build(
    config: "DiagnosisTraining", vocabulary: Vocabulary, prevalence: float
) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """
    Args:
        vocabulary: the disorders of the data.
        prevalence: share of case-disorder pairs that are positive.
    Raises:
        ValueError: for a checkpoint, tower or architecture that does not fit the config.
    """
    if config.model is not None:
        folder = find(config.model)
        model = RadFMForDiagnosis.from_pretrained(folder)
        processor = RadFMProcessor.from_pretrained(folder)
        if model.config.head != config.head:
            raise ValueError(f"{config.model} has a head {model.config.head!r}, the config says {config.head!r}")
    else:
        model, processor = _new(config)
    processor.image_processor.max_slices = config.max_slices
    names, codes = vocabulary.names, [disorder.icd10cm for disorder in vocabulary]
    if config.text_whitening is not None and config.model is None:
        whiten_texts(model, processor, names, config.text_whitening)
    embeds = embed_texts(model.eval(), processor, names).clone() if model.head.reads_text else None
    model.set_disorders(names, embeds, codes)
    if config.model is None:
        model.head.set_bias(float(torch.tensor(prevalence).clamp(1e-4, 0.5).logit()))
        if model.radfm.patch_projection is not None:
            say_places_in_names(model, processor, _taught_places(Path(resolve(config.tower_weights))).disorders)
    model.config.trained = True
    for part in (model.config, model.config.text_config, processor.tokenizer):
        if part is not None:
            part.name_or_path = ""  # where it lay is nobody's business
    learn_text(model, config.text_layers)
    freeze_parts(model.radfm.slice_encoder.tower.network, config.frozen_parts)
    if config.frozen_tower:
        refuse_without_features(model.radfm.slice_encoder)
        model.radfm.slice_encoder.tower.requires_grad_(False)
    return model, processor


@torch.no_grad()
def whiten_texts(model: RadFMForDiagnosis, processor: RadFMProcessor, names: list[str], shrinkage: float) -> None:
    """Sets the text encoder's projection so that the names' embeddings vary alike in all directions.

    Disorders of one organ share most of their embedding. As classifiers such neighbours are ill-conditioned: a case
    embedding has to learn the little in which they differ against all that they share. Whitening (ZCA, as Su et al.
    2021, arXiv:2103.15316, do it for sentence embeddings) takes out what is shared. Texts of any other disorder go
    through the same projection, and lose what they share with their neighbours: those that are trained on are told
    apart sooner, those that are only named less well.

    Args:
        names: over which the covariance is taken, (names, d).
        shrinkage: above 0: so many times their mean, over the directions in which the names vary, is added to the
            variances. The larger, the more stays as it was; directions in which no name varies grow by at most
            sqrt(1 + 1 / shrinkage) beside the others.

    Raises:
        ValueError: the projection changes the width.
    """
    text = model.radfm.text_encoder
    if text.projection.in_features != text.projection.out_features:
        raise ValueError("text_whitening needs a projection_dim that is the width of the text encoder")
    nn.init.eye_(text.projection.weight)
    nn.init.zeros_(text.projection.bias)
    said = [dict(processor(text=names[first : first + _TEXTS])) for first in range(0, len(names), _TEXTS)]
    embeds = torch.cat([text(**tokens) for tokens in said])
    mean = embeds.mean(0)
    variances, directions = torch.linalg.eigh((embeds - mean).T @ (embeds - mean) / len(embeds))
    variances = variances.clamp(min=0)
    mean_variance = variances.sum() / max(min(len(embeds) - 1, len(variances)), 1)
    weight = directions * (variances + shrinkage * mean_variance.clamp(min=1e-6)).rsqrt() @ directions.T
    text.projection.weight.copy_(weight)
    text.projection.bias.copy_(-weight @ mean)


def learn_text(model: RadFMForDiagnosis, layers: int | str) -> None:
    """Lets the text encoder learn in its last `layers` layers, in "all", or with 0 not at all."""
    text = model.radfm.text_encoder
    if text is None:
        return
    text.requires_grad_(layers == "all")
    if layers == "all" or layers == 0:
        return
    stack = max((m for m in text.modules() if isinstance(m, nn.ModuleList)), key=len, default=())
    if not 0 < layers <= len(stack):
        raise ValueError(f"text_layers: the text encoder has {len(stack)} layers, {layers} of them cannot learn")
    text.projection.requires_grad_(True)
    for layer in stack[-layers:]:
        layer.requires_grad_(True)


def freeze_parts(tower: nn.Module, names: list[str]) -> None:
    """Keeps modules of a tower as they are. Raises: ValueError where it has no module of that name."""
    for name in names:
        try:
            tower.get_submodule(name).requires_grad_(False)
        except AttributeError as error:
            modules = ", ".join(own for own, _ in tower.named_modules() if own.count(".") < 2 and own)
            raise ValueError(f"frozen_parts: the tower has no {name!r}: it has {modules}") from error


@torch.no_grad()
def say_places_in_names(model: RadFMForDiagnosis, processor: RadFMProcessor, names: list[str]) -> None:
    """Starts the model with what its tower's places say: a case looks like a disorder as much as its likeliest place.

    A case's embedding begins as the vector whose product with each name's embedding is that place's logit, by the
    pseudo-inverse of the embeddings, up to what is the same for all names. Names that the tower was not taught get what
    their neighbours among these say. The scale begins so that a case with one disorder, of which a place is as sure as
    it is of nothing elsewhere, has that place's logit.

    Args:
        names: of the disorders that the tower was taught, in its order.
    """
    embeds = embed_texts(model, processor, names).float()
    places, tower = model.radfm.patch_projection, model.radfm.slice_encoder.tower
    places.weight.copy_(torch.linalg.pinv(embeds, rtol=_CLEAR))
    model.head.logit_scale.copy_((tower.bias.abs() * places.weight.norm(dim=0).mean()).log())


def load_tower(tower: Tower, path: str | Path) -> None:
    """Weights of a timm or torchvision-like model into a tower without classifier; .safetensors, .pth or .bin.

    A folder is a checkpoint of radfm, whose tower is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are those of another tower.
    """
    read, patches = _read_weights(Path(path)), isinstance(tower, PatchTower)
    own = {name: value for name, value in tower.state_dict().items() if patches or name.startswith(_NETWORK)}
    if patches and "embeds" not in read:
        read |= _places_of(Path(path))
    weights = {name: value for name, value in read.items() if name in own or not name.startswith(_CLASSIFIERS)}
    if set(own) - set(weights):
        ordered = [value for name, value in weights.items() if not name.endswith("num_batches_tracked")]
        names = [name for name in own if not name.endswith("num_batches_tracked")]
        if [tuple(own[name].shape) for name in names] != [tuple(value.shape) for value in ordered]:
            missing = sorted(set(own) - set(weights))
            raise ValueError(f"{path} holds another tower: {missing[0]} and {len(missing) - 1} more are not in it")
        weights = dict(zip(names, ordered, strict=True))
    wrong = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]} is {tuple(weights[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}")
    tower.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)


def _taught_places(path: Path) -> RadFMConfig:
    """The configuration of a checkpoint whose places can be read alone. Raises: ValueError where they cannot."""
    config = RadFMConfig.from_pretrained(path) if (path / "config.json").is_file() else None
    own = config is not None and config.vision_config.patch_disorders == len(config.disorders)
    layers = config is not None and config.scan_config.num_hidden_layers + config.case_config.num_hidden_layers
    if config is None or not (own or (HEADS[config.head].reads_text and not layers)):
        raise ValueError(
            f"tower_places: {path} is no tower that was taught its places: train one with place_weight, head=text, "
            "level=scan and architecture.scan_config.num_hidden_layers=0"
        )
    return config


def _places_of(path: Path) -> dict[str, Tensor]:
    """How a checkpoint compares places with its disorders, as weights of a PatchTower."""
    weights = load_file(path / "model.safetensors")
    embeds = weights["head.disorder_embeds"]
    layers = [weights[name] for name in _TO_TEXT if name in weights]  # between equal widths there is none
    return {
        "projection.weight": reduce(torch.matmul, layers[::-1]) if layers else torch.eye(embeds.shape[1]),
        "embeds": embeds,
        "scale": weights["head.logit_scale"].exp(),
        "bias": weights["head.logit_bias"],
    }


def _new(config: "DiagnosisTraining") -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    given = {"head": config.head, "use_history": config.history} | config.architecture
    if config.level == "scan":
        given["case_config"] = {"num_hidden_layers": 0}
    _refuse_unknown(config.architecture)
    if config.tower_places:
        taught = _taught_places(Path(resolve(config.tower_weights)))
        own = taught.vision_config.patch_disorders
        patches = (own, taught.vision_config.patch_dim) if own else (len(taught.disorders), taught.projection_dim)
        names = dict(zip(("patch_disorders", "patch_dim"), patches, strict=True))
        given["vision_config"] = (given.get("vision_config") or {}) | names | {"family": "resnet-patch"}
    if config.text_whitening is not None:
        given["text_projection"] = "affine"
    if HEADS[config.head].reads_text:
        model, processor = untrained(RadFMConfig(**given), config.seed, config.text_encoder)
    else:
        model = RadFMForDiagnosis(RadFMConfig(**given | {"text_config": None}))
        processor = processor_for(model.config)
    if config.tower_weights is not None:
        load_tower(model.radfm.slice_encoder.tower, resolve(config.tower_weights))
    return model, processor


def _refuse_unknown(architecture: dict) -> None:
    """A configuration of transformers takes any key, and does nothing with those it does not know."""
    parts = {"vision_config": RadFMVisionConfig, "scan_config": RadFMScanConfig, "case_config": RadFMEncoderConfig}
    kinds = [("architecture", RadFMConfig, architecture)]
    kinds += [(f"architecture.{name}", kind, architecture.get(name) or {}) for name, kind in parts.items()]
    for where, kind, given in kinds:
        known = {f.name for f in fields(kind)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"{where}: there is no {', '.join(unknown)}: see radfm/configuration_radfm.py")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"tower_weights: there is no {path}")
    try:
        if path.is_dir():
            weights = load_file(path / "model.safetensors")
            return {k.removeprefix(_OWN_TOWER): v for k, v in weights.items() if k.startswith(_OWN_TOWER)}
        safe = path.suffix == ".safetensors"
        weights = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, FileNotFoundError) as error:
        raise ValueError(f"tower_weights: {path} cannot be read: {str(error).splitlines()[0]}") from error
    return {f"{_NETWORK}{name}": value for name, value in weights.get("state_dict", weights).items()}
