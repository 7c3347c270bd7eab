"""The models of a federated training: the one that all start from, the one that a site trains, and the result.

Decisions:
- The start is a checkpoint without disorders, or with those of the checkpoint that it continues. A site gives it its
  own vocabulary; the result has the names of the start and those that the sites state.
- The bias starts at a prevalence that no site has to tell.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from torch import Tensor

from radfm.checkpoints import find
from radfm.configuration_radfm import RadFMConfig, VocabularyIndex
from radfm.data_prep.tables import write_text
from radfm.knowledge.disorders import Vocabulary
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.recipes_radfm import DIAGNOSIS_RECIPE
from radfm.reference_radfm import weights_sha256
from radfm.starting_points import embed_texts
from radfm.train.adapters import with_adapters
from radfm.train.config import without_folders
from radfm.train.diagnosis_model import build, remove_folder_names
from radfm.train.federation.config import FederatedTraining
from radfm.train.federation.updates import Weights
from radfm.train.lineage import lineage

PREVALENCE = 0.05  # share of the pairs of a case and a disorder that are positive, before the first round
_COUNTED = ("collections", "patients", "cases", "normal", "unpublishable", "scans", "slices")
_STATED = ("title", "licence", "citation")


def write_start(config: FederatedTraining, folder: Path) -> str:
    """Saves the checkpoint that all sites start from, unless the folder has one; returns the SHA-256 of its weights.

    Raises: as `radfm.train.diagnosis_model.build`, and ValueError: the checkpoint to continue has no text head.
    """
    if not (folder / "model.safetensors").is_file():
        if config.model.checkpoint is None:
            model, processor = build(config, Vocabulary([]), PREVALENCE)
        else:
            found = find(config.model.checkpoint)
            model, processor = RadFMForDiagnosis.from_pretrained(found), RadFMProcessor.from_pretrained(found)
            if not model.head.reads_text:
                raise ValueError(f"{config.model.checkpoint} has no text head, and sites have different disorders")
            remove_folder_names(model, processor)
        processor.save_pretrained(folder)
        model.save_pretrained(folder)
    return weights_sha256(folder)


def model_of_site(
    config: FederatedTraining, start: Path, vocabulary: Vocabulary
) -> tuple[RadFMForDiagnosis, RadFMProcessor, LoraModel | None]:
    """The start with the disorders of a site, its processor, and its low-rank changes if the configuration has any."""
    continued = replace(config, model=replace(config.model, checkpoint=str(start), tower_weights=None))
    model, processor = build(continued, vocabulary, PREVALENCE)
    adapters = None
    if config.federation.rank:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)  # all sites start with the same random matrices
            adapters = with_adapters(model, config.federation.rank)
        if config.model.frozen_tower:
            model.radfm.slice_encoder.tower.requires_grad_(False)
    return model, processor, adapters


def trained_weights(model: RadFMForDiagnosis) -> dict[str, Tensor]:
    """What is trained and sent, by name; shared with the model."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def to_arrays(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().cpu().float().numpy().copy() for name, tensor in tensors.items()}


@torch.no_grad()
def load_weights(model: RadFMForDiagnosis, weights: Weights) -> None:
    """Raises: ValueError: they are not the trained weights of this model."""
    own = trained_weights(model)
    if {name: tuple(weight.shape) for name, weight in own.items()} != {name: w.shape for name, w in weights.items()}:
        raise ValueError("the server trains other weights than this site: both need the same version of radfm")
    for name, weight in own.items():
        weight.copy_(torch.from_numpy(weights[name]))


def result(
    config: FederatedTraining, start: Path, weights: Weights, names: Mapping[str, Sequence[str]]
) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """The model with these weights, and with more names in its vocabulary.

    Args:
        names: disorder -> its ICD-10-CM codes.
    """
    known = RadFMConfig.from_pretrained(start)
    codes = dict(zip(known.disorders, known.icd10cm or [[]] * len(known.disorders), strict=True))
    index = VocabularyIndex(list(known.disorders))
    codes |= {name: list(of_name) for name, of_name in names.items() if name not in index}
    model, processor, adapters = model_of_site(config, start, Vocabulary([]))
    load_weights(model, weights)
    if adapters is not None:
        model = adapters.merge_and_unload()
    model.set_disorders(list(codes), embed_texts(model.eval(), processor, list(codes)).clone(), list(codes.values()))
    model.config.calibration = model.config.thresholds = model.config.prediction_sets = None  # of the start's weights
    return model, processor


def save_result(model: RadFMForDiagnosis, processor: RadFMProcessor, folder: Path, recipe: dict[str, Any]) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_text(folder / DIAGNOSIS_RECIPE, json.dumps(recipe, indent=1) + "\n")


def recipe_of(
    config: FederatedTraining, sites: Mapping[str, Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How a model was trained, JSON-able.

    Args:
        sites: name -> `data`, see `shared_summary`.
        rounds: see `State`.
    """
    return {
        "config": without_folders(asdict(config)),
        "data": _joined([facts["data"] for facts in sites.values()]),
        "sites": {name: facts["data"] for name, facts in sites.items()},
        "rounds": list(rounds),
        "started_from": lineage(
            model=config.model.checkpoint,
            tower_weights=config.model.tower_weights,
            text_encoder=config.model.text_encoder,
        ),
        "versions": {name: version(name) for name in ("radfm", "torch", "transformers", "timm")},
    }


def shared_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a site tells of its data: origin, licence and counts, without ages, sexes and attributions."""
    keys = ("source", "synthetic", "fingerprint", *_STATED, *_COUNTED, "modalities", "body_parts")
    return {key: summary[key] for key in keys if key in summary}


def _joined(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of the data of all sites, as `radfm.data_prep.data_summary`; patients count once at each site."""
    joined: dict[str, Any] = {"source": "; ".join(sorted({one["source"] for one in summaries}))}
    if all(one["source"] == "phantoms" or one.get("synthetic") for one in summaries):
        joined["synthetic"] = "phantoms"
    for key in _STATED:
        joined[key] = "; ".join(sorted({one[key] for one in summaries if one[key]})) or None
    joined["fingerprint"] = "; ".join(sorted({one["fingerprint"] for one in summaries}))
    joined |= {key: sum(one[key] for one in summaries) for key in _COUNTED}
    for key in ("modalities", "body_parts"):
        names = dict.fromkeys(name for one in summaries for name in one[key])
        joined[key] = {name: sum(one[key].get(name, 0) for one in summaries) for name in names}
    return joined
