"""The configuration of `radfm train diagnosis`, in sections.

Decisions:
- The defaults are those of the recipe that measured best, train/configs/diagnosis_ke.yaml: a frozen tower whose
  features are computed once. A configuration of another experiment lists what differs.
- Combinations of keys of which one would have no effect are refused.
"""

import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from transformers import TrainingArguments

from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.joined_cases import JoinedCases, learned_from
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.heads_radfm import HEADS
from radfm.losses_radfm import LOSSES
from radfm.objectives_radfm import OBJECTIVES
from radfm.train.config import (
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Share,
    arguments_of,
    keywords_of,
    one_of,
    read_config,
    section,
)

# What differs from transformers' defaults, unless a configuration gives it.
TRAINING = {
    "max_steps": 1500,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "weight_decay": 0.05,
    "bf16": True,
    "logging_steps": 50,
    "eval_steps": 250,
    "save_steps": 250,
    "save_total_limit": 2,
}

Trainable = NonNegativeInt | Literal["all"]
TrainerArguments = Annotated[dict[str, Any], arguments_of(TrainingArguments, excluded=("output_dir", "seed"))]


@section
class DataSection:
    """The cases.

    Attributes:
        path: Folder of a data set that `radfm prepare` wrote.
        withheld: Names of disorders that are not trained on: neither they nor any case that has one of them.
        publishable: Whether to leave out cases that a published model must not learn from, as the data set marks them.
        fold: Number of the fold, from 0, that is the validation split, while the others are the training split; None:
            the splits of the data set.
        folds: Number of folds of the patients of training and validation split, if `fold` is given.
        shots: Number of training cases of each class, see `radfm.train.shots`; None: all.
        where: Conditions that the cases of training and validation meet, such as "collection!=medpix", see
            `radfm.data_prep.case_groups`.
        reconstructions: Folder of a data set with the same cases, of which `model.teacher` sees the training cases.
        synthetic: Folders of synthetic data sets, whose training cases are added to the training split, never to
            another one. Their disorders have to be disorders of the data.
    """

    path: str = "datasets/phantoms"
    withheld: list[str] = field(default_factory=list)
    publishable: bool = True
    fold: NonNegativeInt | None = None
    folds: PositiveInt = 5
    shots: PositiveInt | None = None
    where: list[str] = field(default_factory=list)
    reconstructions: str | None = None
    synthetic: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.synthetic and self.fold is not None:
            raise ValueError(
                "data.fold makes training cases a validation split, which the generator of data.synthetic has learned "
                "from: leave out one of the two"
            )
        if self.synthetic and self.shots is not None:
            raise ValueError(
                "data.shots chooses a few training cases, and the generator of data.synthetic has learned from all: "
                "leave out one of the two"
            )

    def load(self, split: str) -> StoredCases:
        """The cases of a split to learn from.

        Raises: as `radfm.data_prep.stored_cases.load` and `radfm.data_prep.joined_cases.JoinedCases`.
        """
        fold = None if self.fold is None else f"{self.fold}/{self.folds}"
        cases = load(
            self.path,
            split,
            labelled=True,
            without=self.withheld,
            publishable=self.publishable,
            fold=fold,
            where=self.where,
        )
        if split != "train" or not self.synthetic:
            return cases
        parts = [self._load_synthetic(folder) for folder in self.synthetic]
        for part in parts:
            if not learned_from(part, cases):
                print(
                    f"Warning: the generator of {part.folder} did not learn from {self.path}: the result is only valid "
                    "if no patient of the validation or test split was among its training cases",
                    file=sys.stderr,
                )
        return JoinedCases(cases, *parts)

    def _load_synthetic(self, folder: str) -> StoredCases:
        known = load(folder).vocabulary
        withheld = [name for name in self.withheld if known.find(name)]
        return load(folder, "train", labelled=True, without=withheld, publishable=self.publishable)


@section
class ModelSection:
    """The model: a checkpoint, or a new one.

    Attributes:
        checkpoint: Folder of a checkpoint whose training is continued; None: a new model.
        head: Name in `radfm.heads_radfm.HEADS`: "text" (KE: the classifier of a disorder is the embedding of its name),
            or one or two layers over a fixed list, "linear" or "mlp".
        history: Whether the case encoder reads the history, without words that name the case's own disorders.
        max_slices: Of a scan with more slices, the validation and the resulting model read so many; None: all.
        text_encoder: Folder that `radfm train text` wrote, for a new model; None: all-MiniLM-L6-v2 as packaged.
        text_whitening: Shrinkage of the whitening of the names' embeddings, for a new model, see
            `radfm.train.diagnosis_model.whiten_texts`; None: no whitening.
        text_layers: Number of the text encoder's last layers that are trained, or "all"; 0: none.
        tower_weights: File of weights for the slice encoder's tower, a checkpoint of radfm, or "imagenet" for
            tf_efficientnet_lite0; for a new model.
        volume_weights: The same for the second tower, which reads volumes (`architecture.volume_config`).
        tower_patches: Whether the vector of a slice contains, for each disorder that the tower was trained on with
            masks, the highest logit of its patches. `tower_weights` was then trained with `objectives.weights.patch`, a
            text head and no layers in the scan and case encoder.
        frozen: "tower": the tower is not trained, and the features of every slice are computed once. Or names of its
            modules that are not trained, such as the first blocks of a pretrained tower, which cost most.
        freeze_batch_norm: Whether the tower's batch normalisation keeps its statistics; for pretrained towers.
        teacher: Folder of a checkpoint, whose logits for the cases of `data.reconstructions` are the targets of
            `objectives.weights.distillation`. It reads names, or has those of the data in its vocabulary.
        architecture: Arguments of `RadFMConfig`, for a new model. Channels and size of latents are those of the data.
        images: Arguments of `RadFMImageProcessor`, for a new model. A tower that reads volumes needs `volume`; unset,
            it is that of the checkpoint whose weights the tower has.
    """

    checkpoint: str | None = None
    head: Annotated[str, one_of(HEADS)] = "text"
    history: bool = False
    max_slices: PositiveInt | None = None
    text_encoder: str | None = None
    text_whitening: Positive | None = None
    text_layers: Trainable = 0
    tower_weights: str | None = None
    volume_weights: str | None = None
    tower_patches: bool = False
    frozen: list[str] | Literal["tower"] = field(default_factory=list)
    freeze_batch_norm: bool = False
    teacher: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)

    @property
    def frozen_tower(self) -> bool:
        return self.frozen == "tower"

    @property
    def frozen_modules(self) -> list[str]:
        """Names of the tower's modules that are not trained."""
        return [] if isinstance(self.frozen, str) else self.frozen


@section
class ObjectivesSection:
    """The loss.

    Attributes:
        loss: `name` in `radfm.losses_radfm.LOSSES`, and arguments of that loss; empty: sigmoid, with an mlp head bce.
        weights: of the objectives beside it, names in `radfm.objectives_radfm.OBJECTIVES`.
        label_smoothing: Hierarchical label smoothing: the label of the nearest relative of a disorder in ICD-10-CM, see
            `radfm.train.label_smoothing`; 0: none.
    """

    loss: Annotated[dict[str, Any], keywords_of(LOSSES)] = field(default_factory=dict)
    weights: dict[Annotated[str, one_of(OBJECTIVES)], NonNegative] = field(default_factory=lambda: {"key_slice": 10.0})
    label_smoothing: Share = 0.1

    def weight(self, objective: str) -> float:
        return self.weights.get(objective, 0.0)


@section
class SamplingSection:
    """The steps, see `radfm.data_prep.batches.sampling`.

    Attributes:
        slices_per_step: Slices of a step, over all processes together.
        slices_per_scan: Of a scan with more slices, a training step has so many, the key slice among them; None: all.
        by_disorder: Share of the samples that are chosen by disorder, which makes rare disorders more frequent.
    """

    slices_per_step: PositiveInt = 2048
    slices_per_scan: PositiveInt | None = 12
    by_disorder: Share = 0.3


@section
class DiagnosisTraining:
    """One experiment.

    Attributes:
        output: Folder of the checkpoints and, at the end, of the model.
        seed: Of everything random.
        data, model, objectives, sampling: see their classes.
        augmentation: see `radfm.data_prep.batches.augmentation.Augmentation`.
        training: Arguments of transformers' `TrainingArguments`; the defaults are in `TRAINING`.
    """

    output: str = "runs/diagnosis"
    seed: NonNegativeInt = 0
    data: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    objectives: ObjectivesSection = field(default_factory=ObjectivesSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(drop_scans=0.2))
    training: TrainerArguments = field(default_factory=dict)

    def __post_init__(self):
        model, objectives, augmentation = self.model, self.objectives, self.augmentation
        reads_text = HEADS[model.head].reads_text
        patch, per_scan = objectives.weight("patch") > 0, objectives.weight("per_scan") > 0
        distillation = {objectives.weight("distillation") > 0, bool(model.teacher), bool(self.data.reconstructions)}
        texts = model.history or model.text_layers != 0 or model.text_whitening is not None
        for impossible, reason in (
            (texts and not reads_text, _NO_TEXT),
            (model.history and _is_without_layers(model), "model.history is read by the case encoder: give it layers"),
            (per_scan and model.architecture.get("fusion") == "class_token", _NO_SCANS),
            (augmentation.add_normal > 0 and per_scan, _NORMAL_SCANS),
            (model.tower_patches and model.tower_weights is None, "model.tower_patches needs model.tower_weights"),
            (patch and model.frozen_tower, "objectives.weights.patch trains the tower: leave it out, or model.frozen"),
            (model.frozen_tower and augmentation.changes_pixels, _FROZEN_PIXELS),
            (len(distillation) > 1, _TEACHER),
            (bool(model.teacher) and bool(self.data.synthetic), _TEACHER_OF_SYNTHETIC),
            (self.training.get("max_steps") == 0, "training.max_steps=0 trains nothing: set it to at least 1"),
        ):
            if impossible:
                raise ValueError(reason)


def _is_without_layers(model: ModelSection) -> bool:
    return (model.architecture.get("case_config") or {}).get("num_hidden_layers") == 0


def read_diagnosis_config(path: str | Path, changes: Sequence[str] = ()) -> DiagnosisTraining:
    """The configuration of an experiment, see `radfm.train.config.read_config`."""
    return read_config(DiagnosisTraining, path, changes)


_NO_TEXT = (
    "model.head=mlp has no text encoder: leave out model.history, model.text_layers and model.text_whitening, or set "
    "model.head=text"
)
_NO_SCANS = (
    "objectives.weights.per_scan needs the logits of scans: leave it out, or set model.architecture.fusion=logsumexp"
)
_NORMAL_SCANS = (
    "augmentation.add_normal adds scans that show no disorder of their case, so no scan has the labels of its case: "
    "leave it out, or set objectives.weights.per_scan=0"
)
_FROZEN_PIXELS = (
    "model.frozen=tower reads each slice once: leave affine, elastic, noise, contrast and mirror out of augmentation, "
    "or leave out model.frozen"
)
_TEACHER = (
    "model.teacher, data.reconstructions and objectives.weights.distillation are of use together only: give all three, "
    "or set model.teacher=null data.reconstructions=null objectives.weights.distillation=0"
)
_TEACHER_OF_SYNTHETIC = (
    "data.synthetic has no reconstructions that model.teacher could see: leave out data.synthetic, or set "
    "model.teacher=null data.reconstructions=null objectives.weights.distillation=0"
)
