"""The configuration of `radfm train diffusion`, in sections.

Decisions:
- A batch is one for all processes and all steps of accumulation together, so that a configuration means the same on one
  process and on eight.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from radfm.latents.denoisers import DENOISERS
from radfm.train.config import NonNegative, NonNegativeInt, Positive, PositiveInt, Share, one_of, read_config, section


@section
class LatentsSection:
    """What is learned.

    Attributes:
        path: Folder of a latent data set, which `radfm prepare latents` wrote.
        masks: Folder of the data set that the latents were made of, if it has masks: a slice then shows the disorders
            that its masks show. None: a slice shows the disorders of its case.
        publishable: Whether to leave out cases that a published model must not learn from, as the data set marks them.
        withheld: Names of disorders that are not learned: neither they nor any case that has one of them.
        by_disorder: Share of the latents that are chosen by disorder, so that rare disorders occur often enough.
    """

    path: str = "datasets/phantoms-latents"
    masks: str | None = None
    publishable: bool = True
    withheld: list[str] = field(default_factory=list)
    by_disorder: Share = 0.3


@section
class GeneratorSection:
    """The generator.

    Attributes:
        autoencoder: Folder or Hub name of the autoencoder that made the latents.
        denoiser: Name in `radfm.latents.denoisers.DENOISERS`.
        arguments: Of its network.
        text_encoder: Folder that `radfm train text` wrote, or a name of one that comes with radfm.
    """

    autoencoder: str = "runs/autoencoder"
    denoiser: Annotated[str, one_of(DENOISERS)] = "unet"
    arguments: dict[str, Any] = field(default_factory=dict)
    text_encoder: str = "radfm-text-mini"


@section
class StepsSection:
    """The steps of the training.

    Attributes:
        max_steps: Number of steps.
        batch_size: Latents of a step, of all processes together.
        gradient_accumulation_steps: Number of parts in which each process computes its share of a step.
        learning_rate: The highest; it rises linearly for `warmup_steps`, and falls as a cosine to 0.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are clipped to this norm.
        drop_disorders: Share of the latents whose disorders are unknown to the network, for classifier-free guidance.
        ema_decay: Of the moving average of the weights, which is the result.
        bf16: Whether to compute in bfloat16.
        eval_steps: Steps between validations.
        validation_latents: Number of held-out latents whose loss is computed, at most.
        save_steps: Steps between checkpoints, from which a killed run resumes.
        logging_steps: Steps over which a logged loss is the mean.
    """

    max_steps: PositiveInt = 5000
    batch_size: PositiveInt = 64
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: Positive = 1e-3
    warmup_steps: NonNegativeInt = 200
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    drop_disorders: Share = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    bf16: bool = False
    eval_steps: PositiveInt = 1000
    validation_latents: PositiveInt = 512
    save_steps: PositiveInt = 1000
    logging_steps: PositiveInt = 100


@section
class DiffusionTraining:
    """One experiment.

    Attributes:
        output: Folder of the checkpoints and, at the end, of the generator.
        seed: Of everything random.
        data, model, training: see their classes.
    """

    output: str = "runs/diffusion"
    seed: NonNegativeInt = 0
    data: LatentsSection = field(default_factory=LatentsSection)
    model: GeneratorSection = field(default_factory=GeneratorSection)
    training: StepsSection = field(default_factory=StepsSection)


def read_diffusion_config(path: str | Path, changes: Sequence[str] = ()) -> DiffusionTraining:
    """The configuration of an experiment, see `radfm.train.config.read_config`."""
    return read_config(DiffusionTraining, path, changes)
