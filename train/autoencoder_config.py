"""The configuration of `radfm train autoencoder`, in sections."""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from radfm.train.config import NonNegative, NonNegativeInt, Positive, PositiveInt, Share, read_config, section


@section
class PicturesSection:
    """The pictures.

    Attributes:
        path: Folder of a data set that `radfm prepare` wrote; its training split is learned, labelled or not.
        publishable: Whether to leave out cases that a published model must not learn from, as the data set marks them.
    """

    path: str = "datasets/phantoms"
    publishable: bool = True


@section
class NetworkSection:
    """The network: a checkpoint, or a new one.

    Attributes:
        checkpoint: Folder or Hub name of an autoencoder that is trained on, see `Autoencoder.from_pretrained`; None: a
            new one.
        spatial_dims: 2: slices, by diffusers' `AutoencoderKL`. 3: volumes, by MONAI's.
        size: Height and width of a picture, pixels.
        channels: Of each level; each but the first halves the sides, so three levels make latents of a quarter.
        latent_channels: Of a latent.
        blocks: Residual blocks of a level.
        volume: Of a 3D autoencoder: `size` and `spacing_mm` along depth, height and width, and more, see
            `radfm.volume_processing_radfm.VolumeSettings`.
    """

    checkpoint: str | None = None
    spatial_dims: Literal[2, 3] = 2
    size: PositiveInt = 64
    channels: list[PositiveInt] = field(default_factory=lambda: [16, 32, 64])
    latent_channels: PositiveInt = 4
    blocks: PositiveInt = 1
    volume: dict[str, Any] | None = None

    def __post_init__(self):
        factor = 2 ** (len(self.channels) - 1)
        if self.spatial_dims == 3 and self.volume is None and self.checkpoint is None:
            raise ValueError("model.volume: a 3D autoencoder needs size and spacing_mm of its volumes")
        if self.checkpoint is None and self.size % factor:
            raise ValueError(f"model.size={self.size}: {len(self.channels)} levels need a multiple of {factor}")


@section
class TermsSection:
    """The weights of the terms of the loss.

    Attributes:
        reconstruction: Mean absolute difference of pictures in [-1, 1].
        perceptual: Difference of the features of a network trained on ImageNet; of volumes, of their slices.
        kl: Divergence of the posterior from a normal distribution.
        adversarial: Against a discriminator of patches, from the step on that `adversarial_from` gives.
        adversarial_from: Share of the steps that are trained without the discriminator.
    """

    reconstruction: NonNegative = 1.0
    perceptual: NonNegative = 0.2
    kl: NonNegative = 1e-6
    adversarial: NonNegative = 0.05
    adversarial_from: Share = 0.85


@section
class LoopSection:
    """The steps.

    Attributes:
        max_steps: Number of steps.
        batch_size: Pictures of a step, over all processes together.
        learning_rate: Of AdamW, after `warmup_steps`, decreasing to 0 by a cosine; also of the discriminator.
        save_steps: Steps between two checkpoints, from which a killed run resumes.
        eval_steps: Steps between two validations.
        workers: Processes that read ahead.
        bf16: Whether to compute in bfloat16, where that is faster.
    """

    max_steps: PositiveInt = 3000
    batch_size: PositiveInt = 16
    learning_rate: Positive = 1.2e-3
    warmup_steps: NonNegativeInt = 100
    save_steps: PositiveInt = 500
    eval_steps: PositiveInt = 500
    workers: NonNegativeInt = 0
    bf16: bool = False


@section
class AutoencoderTraining:
    """One experiment.

    Attributes:
        output: Folder of the checkpoints and, at the end, of the autoencoder.
        seed: Of everything random.
        data, model, objectives, training: see their classes.
        classifier: Checkpoint of a model. How much less it discriminates on reconstructions of the validation split is
            then part of the recipe.
    """

    output: str = "runs/autoencoder"
    seed: NonNegativeInt = 0
    data: PicturesSection = field(default_factory=PicturesSection)
    model: NetworkSection = field(default_factory=NetworkSection)
    objectives: TermsSection = field(default_factory=TermsSection)
    training: LoopSection = field(default_factory=LoopSection)
    classifier: str | None = None


def read_autoencoder_config(path: str | Path, changes: Sequence[str] = ()) -> AutoencoderTraining:
    """The configuration of an experiment, see `radfm.train.config.read_config`."""
    return read_config(AutoencoderTraining, path, changes)
