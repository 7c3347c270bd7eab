"""The model that a diagnosis experiment starts from, and which parts of it are trained.

Decisions:
- A checkpoint is continued as it is, with the vocabulary of the data: names that it knows keep their embeddings.
- A head that reads no text has no text encoder.
- The bias starts at the log odds of a disorder in a case: most cases have few disorders, which the first steps then
  need not learn.
- The features of a frozen tower do not change, so they are computed once, see `radfm.data_prep.batches.slice_features`.
"""

from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from radfm.checkpoints import find, resolve
from radfm.configuration_radfm import RadFMConfig, RadFMEncoderConfig, RadFMScanConfig, RadFMVisionConfig
from radfm.data_prep.batches.slice_features import refuse_without_features
from radfm.heads_radfm import HEADS
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.knowledge.disorders import Vocabulary
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts, processor_for, untrained
from radfm.train.diagnosis_config import DiagnosisTraining, ModelSection, Trainable
from radfm.train.tower_weights import load_tower, patch_arguments, patch_disorders

_TEXTS_AT_ONCE = 256
_MIN_SINGULAR_VALUE = 0.05  # of the largest one: directions in which the names differ less are left out
_PARTS = {
    "vision_config": RadFMVisionConfig,
    "volume_config": RadFMVisionConfig,
    "scan_config": RadFMScanConfig,
    "case_config": RadFMEncoderConfig,
}


def build(
    config: DiagnosisTraining, vocabulary: Vocabulary, prevalence: float, latents: dict[str, Any] | None = None
) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """The model of an experiment before training, and its processor.

    Args:
        vocabulary: the disorders of the data.
        prevalence: the share of pairs of a case and a disorder that are positive.
        latents: what a data set of latents states of them; None: the data set holds pixels.

    Raises:
        ValueError: the checkpoint, tower or architecture does not fit the configuration.
        FileNotFoundError: there is no such checkpoint or file of weights.
    """
    settings, is_new = config.model, config.model.checkpoint is None
    model, processor = _new_model(_reading(latents, settings), config.seed) if is_new else _loaded_model(settings)
    processor.image_processor.max_slices = settings.max_slices
    names, codes = vocabulary.names, [disorder.icd10cm for disorder in vocabulary]
    if is_new and settings.text_whitening is not None:
        whiten_texts(model, processor, names, settings.text_whitening)
    embeds = embed_texts(model.eval(), processor, names).clone() if model.head.reads_text else None
    model.set_disorders(names, embeds, codes)
    if is_new:
        model.head.set_bias(float(torch.tensor(prevalence).clamp(1e-4, 0.5).logit()))
        if model.radfm.patch_projection is not None:
            start_from_patches(model, processor, patch_disorders(resolve(settings.tower_weights)))
    model.config.trained, model.config.zero_shot_scores = True, "sigmoid"
    remove_folder_names(model, processor)
    set_trainable_text_layers(model, settings.text_layers)
    freeze_modules(model.radfm.slice_encoder.tower.network, settings.frozen_modules)
    if settings.frozen_tower:
        refuse_without_features(model)
        model.radfm.slice_encoder.tower.requires_grad_(False)
    return model, processor


@torch.no_grad()
def whiten_texts(model: RadFMForDiagnosis, processor: RadFMProcessor, names: list[str], shrinkage: float) -> None:
    """Sets the text encoder's projection so that the names' embeddings have about equal variance in all directions.

    Disorders of one organ share most of their embedding, which makes them ill-conditioned classifiers: a case embedding
    has to represent the small differences against all that is common. Whitening (ZCA, as Su et al. 2021,
    arXiv:2103.15316, apply it to sentence embeddings) removes what is common. The texts of all other disorders go
    through the same projection and lose what they have in common with similar names: disorders that are trained on are
    discriminated earlier, disorders that are not trained on are discriminated less well.

    Args:
        names: (names, d) embeddings of these give the covariance.
        shrinkage: above 0: this multiple of their mean, over the directions in which the names vary, is added to the
            variances. The larger it is, the less is changed; directions in which no name varies are scaled by at most
            sqrt(1 + 1 / shrinkage) relative to the others.

    Raises:
        ValueError: the projection changes the width.
    """
    text = model.radfm.text_encoder
    assert text is not None
    if text.projection.in_features != text.projection.out_features:
        raise ValueError("model.text_whitening needs a projection_dim that is the width of the text encoder")
    nn.init.eye_(text.projection.weight)
    nn.init.zeros_(text.projection.bias)
    starts = range(0, len(names), _TEXTS_AT_ONCE)
    embeds = torch.cat([text(**processor(text=names[start : start + _TEXTS_AT_ONCE])) for start in starts])
    mean = embeds.mean(0)
    variances, directions = torch.linalg.eigh((embeds - mean).T @ (embeds - mean) / len(embeds))
    variances = variances.clamp(min=0)
    mean_variance = variances.sum() / max(min(len(embeds) - 1, len(variances)), 1)
    weight = directions * (variances + shrinkage * mean_variance.clamp(min=1e-6)).rsqrt() @ directions.T
    text.projection.weight.copy_(weight)
    text.projection.bias.copy_(-weight @ mean)


def set_trainable_text_layers(model: RadFMForDiagnosis, layers: Trainable) -> None:
    """Trains the last `layers` layers of the text encoder, "all" of it, or with 0 nothing.

    Raises:
        ValueError: the text encoder has fewer layers.
    """
    text = model.radfm.text_encoder
    if text is None:
        return
    text.requires_grad_(layers == "all")
    if isinstance(layers, str) or layers == 0:
        return
    stack = max((m for m in text.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    if layers > len(stack):
        raise ValueError(f"model.text_layers: the text encoder has {len(stack)} layers, not {layers}")
    text.projection.requires_grad_(True)
    for layer in stack[-layers:]:
        layer.requires_grad_(True)


def freeze_modules(network: nn.Module, names: list[str]) -> None:
    """Excludes modules of a tower from training. Raises: ValueError: the tower has no module of that name."""
    for name in names:
        try:
            network.get_submodule(name).requires_grad_(False)
        except AttributeError as error:
            modules = ", ".join(own for own, _ in network.named_modules() if own.count(".") < 2 and own)
            raise ValueError(f"model.frozen: the tower has no {name!r}: it has {modules}") from error


@torch.no_grad()
def start_from_patches(model: RadFMForDiagnosis, processor: RadFMProcessor, names: list[str]) -> None:
    """Initialises the model so that a case has the logit of its patch with the highest logit, for each disorder.

    A case embedding starts as the vector whose product with each name's embedding is that logit, by the pseudo-inverse
    of the embeddings, up to a constant over all names. Names that the tower was not trained on get what similar names
    have. The scale starts so that a case with a single positive patch logit of one disorder has that logit.

    Args:
        names: of the disorders that the tower was trained on, in its order.
    """
    embeds = embed_texts(model, processor, names).float()
    patches, tower = model.radfm.patch_projection, model.radfm.slice_encoder.tower
    assert patches is not None
    patches.weight.copy_(torch.linalg.pinv(embeds, rtol=_MIN_SINGULAR_VALUE))
    model.head.logit_scale.copy_((tower.bias.abs() * patches.weight.norm(dim=0).mean()).log())


def remove_folder_names(model: RadFMForDiagnosis, processor: RadFMProcessor) -> None:
    """A checkpoint does not tell the folders of the machine on which it was made."""
    parts: tuple[Any, ...] = (model.config, model.config.text_config, processor.tokenizer)
    for part in parts:
        if part is not None:
            part.name_or_path = ""


def _loaded_model(settings: ModelSection) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    assert settings.checkpoint is not None
    folder = find(settings.checkpoint)
    model = RadFMForDiagnosis.from_pretrained(folder)
    if model.config.head != settings.head:
        raise ValueError(
            f"model.head={settings.head}, but {settings.checkpoint} has a head {model.config.head!r}: set model.head"
        )
    return model, RadFMProcessor.from_pretrained(folder)


def _reading(latents: dict[str, Any] | None, settings: ModelSection) -> ModelSection:
    """The settings of a new model, with the size, channels and autoencoder of the latents of a data set.

    Raises:
        ValueError: the data set holds latents and the tower reads pixels, or the other way round.
    """
    vision = settings.architecture.get("vision_config") or {}
    if latents is None:
        if vision.get("family") == "latent":
            raise ValueError("model.architecture.vision_config.family=latent: the data set holds pixels, not latents")
        return settings
    if vision.get("family") != "latent":
        raise ValueError("the data set holds latents: use the config latent_classifier.yaml, or prepared pixels")
    if len(latents["size"]) != 2 or len(set(latents["size"])) != 1:
        raise ValueError(f"latents of size {latents['size']}: the family latent reads square latents of slices")
    size, channels = latents["size"][0], latents["channels"]
    vision = vision | {"image_size": size, "tower_args": (vision.get("tower_args") or {}) | {"in_chans": channels}}
    images = {"size": size, "latents": {"autoencoder": latents["autoencoder"], "channels": channels}}
    architecture = settings.architecture | {"vision_config": vision}
    return replace(settings, architecture=architecture, images=settings.images | images)


def _new_model(settings: ModelSection, seed: int) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    _refuse_unknown_arguments(settings.architecture)
    arguments: dict[str, Any] = {"head": settings.head, "use_history": settings.history} | settings.architecture
    if settings.tower_patches:
        vision = arguments.get("vision_config") or {}
        arguments["vision_config"] = vision | patch_arguments(resolve(settings.tower_weights))
    if settings.text_whitening is not None:
        arguments["text_projection"] = "affine"
    if HEADS[settings.head].reads_text:
        model, processor = untrained(RadFMConfig(**arguments), seed, settings.text_encoder)
    else:
        model = RadFMForDiagnosis(RadFMConfig(**arguments | {"text_config": None}))
        processor = processor_for(model.config)
    towers = dict(zip(("tower_weights", "volume_weights"), model.radfm.towers, strict=False))
    for name in ("tower_weights", "volume_weights"):
        if (weights := getattr(settings, name)) is not None:
            if name not in towers:
                raise ValueError(f"model.{name} needs a second tower: model.architecture.volume_config")
            load_tower(towers[name], weights)
    processor.image_processor = _image_processor(processor.image_processor, model, settings)
    return model, processor


def _image_processor(
    default: RadFMImageProcessor, model: RadFMForDiagnosis, settings: ModelSection
) -> RadFMImageProcessor:
    """How pixels are prepared. Raises: ValueError: there is no such setting, or volumes have none."""
    if unknown := sorted(set(settings.images) - set(signature(RadFMImageProcessor).parameters)):
        raise ValueError(f"model.images.{unknown[0]}: no such key; see radfm/image_processing_radfm.py")
    given = {name: getattr(default, name) for name in ("size", "modalities", "planes")} | settings.images
    if model.radfm.towers[-1].reads_volumes and given.get("volume") is None:
        two_towers = model.radfm.volume_encoder is not None
        weights = settings.volume_weights if two_towers else settings.tower_weights
        volume = _volume_settings(weights)
        if volume is None:
            raise ValueError("model.images.volume: a tower that reads volumes needs their size and spacing_mm")
        given["volume"] = volume | {"least_slices": 2 if two_towers else volume.get("least_slices", 1)}
    return RadFMImageProcessor(**given)


def _volume_settings(weights: str | None) -> dict[str, Any] | None:
    """How the model of these weights prepares volumes; None for a file, or a model that reads none."""
    folder = Path(resolve(weights)) if weights else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    return RadFMProcessor.from_pretrained(folder).image_processor.volume


def _refuse_unknown_arguments(architecture: dict[str, Any]) -> None:
    """A configuration of transformers accepts any key, and unknown ones have no effect."""
    parts: list[tuple[str, Any, dict[str, Any]]] = [("model.architecture", RadFMConfig, architecture)]
    parts += [(f"model.architecture.{name}", kind, architecture.get(name) or {}) for name, kind in _PARTS.items()]
    for name, kind, arguments in parts:
        known = {field.name for field in fields(kind)}
        if unknown := sorted(set(arguments) - known):
            raise ValueError(f"{name}.{unknown[0]}: no such key; see radfm/configuration_radfm.py")
