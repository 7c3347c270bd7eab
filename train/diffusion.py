"""Train a generator of latents by diffusion.

    radfm train diffusion train/configs/diffusion.yaml data=datasets/mine-latents model.autoencoder=runs/autoencoder
    torchrun --nproc-per-node 2 -m radfm.train.diffusion CONFIG [KEY=VALUE]...

1. One slice of each scan is read, with what it shows (`radfm.data_prep.latent_slices`).
2. The denoiser is trained, resuming from the checkpoint where there is one (`diffusion_trainer`).
3. The averaged weights become the generator, with its autoencoder, a recipe and a card beside them.

Decisions:
- The latents state the autoencoder that made them. Another autoencoder is refused, since it would decode them into
  pictures that look right and are not.
- The generator carries its autoencoder, and what may be told of its training data: counts, licence, attributions.
"""

import hashlib
import json
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.latents.autoencoders import Autoencoder
from radfm.latents.conditions import TextConditions
from radfm.latents.denoisers import Denoiser
from radfm.latents.generator import SETTINGS, Generator
from radfm.presentation import plural
from radfm.publishing.generator_card import write_generator_card
from radfm.recipes_radfm import AUTOENCODER_RECIPE
from radfm.recipes_radfm import DIFFUSION_RECIPE as RECIPE
from radfm.train.config import without_folders
from radfm.train.diffusion_config import DiffusionTraining, LatentsSection, read_diffusion_config
from radfm.train.diffusion_trainer import DiffusionTrainer
from radfm.train.lineage import effort
from radfm.train.step_checkpoints import remove_checkpoint
from radfm.train.trainer_arguments import run_module

_NOT_OF_THE_RESULT = ("save_steps", "logging_steps", "max_steps")  # may change in a run that is resumed


def train(config: DiffusionTraining) -> Path:
    """Trains, resuming from the checkpoint in `output` where there is one; returns the generator's folder.

    A run that has ended stays as it is.

    Raises:
        ValueError: The configuration, data set or autoencoder is wrong, or the loss is not finite.
        FileNotFoundError: There is no such data set or autoencoder.
        OSError: A checkpoint could not be saved.
    """
    began, output = time.monotonic(), Path(config.output)
    set_seed(config.seed)
    data, validation = _slices(config.data, "train"), _slices(config.data, "validation")
    if not len(data):
        raise ValueError(f"{config.data.path} has no case to learn from in its training split")
    autoencoder = _autoencoder(config, data.cases)
    summary = data_summary(data.cases)
    recipe = {
        "config": without_folders(asdict(config)),
        "data": summary,
        "autoencoder": {"name": Path(config.model.autoencoder).name, "fingerprint": autoencoder.fingerprint},
        "latents": {"train": len(data), "validation": len(validation)},
    }
    if _has_ended(output, recipe):
        return output
    conditions = TextConditions(config.model.text_encoder)
    torch.manual_seed(config.seed)
    denoiser = Denoiser(config.model.denoiser, data.shape, conditions.width, config.model.arguments)
    trainer = DiffusionTrainer(
        denoiser,
        conditions,
        data,
        validation,
        config.training,
        config.data.by_disorder,
        config.seed,
        output,
        _key(recipe),
    )
    if trainer.accelerator.is_main_process:
        parameters = sum(weight.numel() for weight in denoiser.parameters())
        print(
            f"Training {plural(parameters, 'weight')} on {plural(len(data), 'latent')} of "
            f"{plural(len(data.known), 'disorder')}",
            file=sys.stderr,
        )
    denoiser = trainer.train()
    if trainer.accelerator.is_main_process:
        facts = _facts(config.data, data, summary) | _terms(summary, _training_data(config.model.autoencoder))
        Generator(autoencoder, denoiser, config.model.text_encoder, facts).save_pretrained(output)
        recipe |= {
            "steps": trainer.step,
            "log": trainer.log,
            "effort": effort(began, trainer.resumed, trainer.accelerator.num_processes),
            "versions": {name: version(name) for name in ("torch", "diffusers", "accelerate")},
        }
        (output / RECIPE).write_text(json.dumps(recipe, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_generator_card(output)
        remove_checkpoint(output)
    trainer.accelerator.wait_for_everyone()
    return output


def _slices(section: LatentsSection, split: str) -> LatentSlices:
    cases = load(section.path, split, without=section.withheld, publishable=section.publishable)
    return LatentSlices(cases, None if section.masks is None else load(section.masks))


def _autoencoder(config: DiffusionTraining, cases: StoredCases) -> Autoencoder:
    facts = cases.record["latents"]
    autoencoder = Autoencoder.from_pretrained(config.model.autoencoder, statistics=facts)
    if autoencoder.fingerprint != facts["autoencoder"]:
        raise ValueError(
            f"{config.data.path} holds latents of the autoencoder {facts['autoencoder']}, and model.autoencoder="
            f"{config.model.autoencoder} is {autoencoder.fingerprint}: give the one that made them, or run radfm "
            "prepare latents with this one"
        )
    return autoencoder


def _facts(section: LatentsSection, data: LatentSlices, summary: dict[str, Any]) -> dict[str, Any]:
    """What may be told of the training data, see `Generator`."""
    masks = section.masks is not None
    return {
        "known": data.known,
        "contexts": data.contexts,
        "data": summary,
        "derived_from": data.cases.record.get("derived_from"),
        "chosen": {"withheld": section.withheld, "publishable": section.publishable, "masks": masks},
    }


def _training_data(autoencoder: str) -> dict[str, Any] | None:
    """The summary of what an autoencoder learned from, by its recipe; None where it states none."""
    file = Path(autoencoder) / AUTOENCODER_RECIPE
    return json.loads(file.read_text(encoding="utf-8"))["data"] if file.is_file() else None


def _terms(data: dict[str, Any], of_autoencoder: dict[str, Any] | None) -> dict[str, Any]:
    """Terms of the samples: those of what the denoiser learned from, and of what the decoder learned from."""
    both = [data, of_autoencoder or {}]
    licence, attribution = (
        "; ".join(dict.fromkeys(one[key] for one in both if one.get(key))) or None for key in ("licence", "citation")
    )
    return {
        "autoencoder_data": of_autoencoder,
        "licence": licence,
        "attribution": attribution,
        "publish": False if any(one.get("unpublishable") for one in both) else None,
    }


def _key(recipe: dict[str, Any]) -> str:
    """Identifies what determines the steps of a run."""
    config = recipe["config"]
    training = {key: value for key, value in config["training"].items() if key not in _NOT_OF_THE_RESULT}
    content = [config["seed"], config["data"], config["model"], training, recipe["data"]["fingerprint"]]
    content += [recipe["autoencoder"]["fingerprint"], recipe["latents"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _has_ended(output: Path, recipe: dict[str, Any]) -> bool:
    """Raises: ValueError: another run has ended there."""
    if not (output / RECIPE).is_file() or not (output / SETTINGS).is_file():
        return False
    stored = json.loads((output / RECIPE).read_text(encoding="utf-8"))
    given = json.loads(json.dumps(recipe))
    if any(stored.get(key) != value for key, value in given.items()):
        raise ValueError(
            f"{output} holds a generator of other data or settings: choose another output, or delete this one"
        )
    return True


if __name__ == "__main__":
    run_module(lambda given: print(train(read_diffusion_config(given[0], given[1:]))), "CONFIG [KEY=VALUE]...")
