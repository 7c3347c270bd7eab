"""The configuration of `radfm finetune`, and what the checkpoint and the data determine of it.

Decisions:
- Fine-tuning has the sections of `radfm.train.diagnosis_config` that it uses. Head, fusion, history and, unless given,
  `max_slices` are those of the checkpoint; its batch normalisation keeps its statistics, since a few cases give poor
  ones, which cannot be interpolated.
- Where no case has two disorders they are mutually exclusive: the loss is a softmax, with normal cases as a class.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any, Literal

import numpy as np

from radfm.configuration_radfm import LabelKind
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.train.class_weights import class_weights
from radfm.train.config import NonNegative, NonNegativeInt, PositiveInt, Share, configured, section
from radfm.train.diagnosis_config import (
    DataSection,
    ObjectivesSection,
    SamplingSection,
    Trainable,
    TrainerArguments,
)

Method = Literal["auto", "linear", "lora", "full"]

MAX_CASES: dict[Method, int] = {
    "linear": 200,
    "lora": 10_000,
}  # training cases, below which a method is the default; else "full"


@section
class StartSection:
    """The checkpoint.

    Attributes:
        checkpoint: Its folder, or its name on the Hub.
        text_layers: Number of the text encoder's last layers that are trained, or "all"; with method "full" only.
        max_slices: Of a scan with more slices, the validation and the result read so many; None: as the checkpoint.
    """

    checkpoint: str | None = None
    text_layers: Trainable = 0
    max_slices: PositiveInt | None = None


@section
class FineTuning:
    """One fine-tuning.

    Attributes:
        output: Folder of the new checkpoint.
        seed: Of everything random.
        method: "linear", "lora", "full", or "auto": by the number of training cases.
        task: "multiclass" (a case has at most one disorder), "multilabel", or "auto": as the data.
        interpolate: Share of the new weights, 0 to 1, or "auto": by validation.
        class_weights: Power of the inverse frequency by which a class counts; 0: all cases equally, 1: all classes.
        keep_names: Whether the vocabulary keeps the names of the checkpoint that the data does not have.
        patience: Number of validations without a gain after which training ends.
        rank: Of the low-rank changes of method "lora".
        data, model, objectives, sampling: see their classes. The linear probe uses `objectives.loss` alone.
        augmentation: see `radfm.data_prep.batches.augmentation.Augmentation`; not of the linear probe.
        training: Arguments of transformers' `TrainingArguments`.
    """

    output: str = "runs/finetuned"
    seed: NonNegativeInt = 0
    method: Method = "auto"
    task: Literal["auto", "multiclass", "multilabel"] = "auto"
    interpolate: Share | Literal["auto"] = "auto"
    class_weights: NonNegative = 0.5
    keep_names: bool = True
    patience: PositiveInt = 3
    rank: PositiveInt = 8
    data: DataSection = field(default_factory=DataSection)
    model: StartSection = field(default_factory=StartSection)
    objectives: ObjectivesSection = field(
        default_factory=lambda: ObjectivesSection(weights={"key_slice": 0.001}, label_smoothing=0.0)
    )
    sampling: SamplingSection = field(
        default_factory=lambda: SamplingSection(slices_per_step=256, slices_per_scan=None, by_disorder=0.0)
    )
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(affine=0.3, noise=0.2, contrast=0.2))
    training: TrainerArguments = field(default_factory=dict)

    def __post_init__(self):
        if self.model.text_layers and self.method != "full":
            raise ValueError("model.text_layers: the text encoder is trained with method=full only")
        if self.objectives.weight("distillation") or self.data.reconstructions is not None:
            raise ValueError(
                "fine-tuning has no teacher: leave out objectives.weights.distillation and data.reconstructions"
            )
        if self.augmentation.add_normal and self.objectives.weight("per_scan"):
            raise ValueError(
                "augmentation.add_normal adds scans that show no disorder of their case, so no scan can be trained "
                "alone: leave it out, or set objectives.weights.per_scan=0"
            )


def finetune_config(given: dict[str, Any], changes: Sequence[str] = ()) -> FineTuning:
    """A configuration from nested keys, and changes such as "patience=5"; see `radfm.train.config.configured`."""
    return configured(FineTuning, given, changes, "finetune")


def resolved(config: FineTuning, data: CaseDataset, label_kind: LabelKind, default_loss: str) -> FineTuning:
    """The configuration with the method and the loss that the data determines."""
    method = config.method
    if method == "auto":
        method = next((name for name, cases in MAX_CASES.items() if len(data) < cases), "full")
    weights = class_weights(data.label_matrix, label_kind, config.class_weights)
    if label_kind == LabelKind.MULTI_LABEL:
        loss = {"name": default_loss, "positive_weight": weights}
    else:
        loss = {"name": "cross_entropy", "label_kind": str(label_kind), "class_weights": weights}
    given = config.objectives.loss
    loss = given if given.get("name", loss["name"]) != loss["name"] else loss | given
    return replace(config, method=method, objectives=replace(config.objectives, loss=loss))


def label_kind_of(config: FineTuning, *splits: np.ndarray) -> LabelKind:
    """How many disorders a case can have, by the configuration and the labels of all splits, (cases, disorders).

    Raises:
        ValueError: the configuration is of one disorder a case, and there are cases with more.
    """
    counts = np.concatenate([labels.sum(1) for labels in splits])
    if config.task == "multiclass" and counts.max() > 1:
        raise ValueError(
            f"task=multiclass, but {config.data.path} has cases with {int(counts.max())} disorders: set task=multilabel"
        )
    if config.task == "multilabel" or counts.max() > 1:
        return LabelKind.MULTI_LABEL
    return LabelKind.AT_MOST_ONE if counts.min() == 0 else LabelKind.EXACTLY_ONE
