"""The vocabulary of a checkpoint, and the zero-shot model that fine-tuning starts from.

Decisions:
- Names that differ in capitals only are the same. A name of the data that the checkpoint knows keeps its classifier; a
  text head embeds the others, and an mlp head gets rows of zeros for them.
- The names that the data does not have are added again at the end, with their classifiers and calibration.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radfm.checkpoints import find
from radfm.configuration_radfm import LabelKind, VocabularyIndex
from radfm.knowledge.disorders import Vocabulary
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts
from radfm.train.diagnosis_model import remove_folder_names
from radfm.train.finetune_config import FineTuning, StartSection


@dataclass
class CheckpointVocabulary:
    """The disorders of a checkpoint, with all that it stores for each.

    Attributes:
        names, icd10cm: (disorders,).
        head: the head's `disorder_tensors`, one row for each disorder.
        calibration: as `RadFMConfig.calibration`.
        thresholds: (disorders,), None where there is none.
    """

    names: list[str]
    icd10cm: list[list[str]]
    head: dict[str, Tensor]
    calibration: dict[str, Any]
    thresholds: list[float | None]

    @classmethod
    def of(cls, model: RadFMForDiagnosis) -> "CheckpointVocabulary":
        config = model.config
        count = len(config.disorders)
        identity = {"slopes": [1.0] * count, "shifts": [0.0] * count, "exclusive": []}
        return cls(
            names=list(config.disorders),
            icd10cm=[list(codes) for codes in config.icd10cm] or [[] for _ in range(count)],
            head={name: tensor.clone() for name, tensor in model.head.disorder_tensors().items()},
            calibration=config.calibration or identity,
            thresholds=config.thresholds or [None] * count,
        )

    @torch.no_grad()
    def add_to(
        self,
        model: RadFMForDiagnosis,
        processor: RadFMProcessor,
        config: FineTuning,
        calibration: dict[str, list[float]],
        thresholds: list[float],
        label_kind: LabelKind,
    ) -> None:
        """Puts the names that a model does not have before its own, and sets calibration and thresholds of both.

        Args:
            model: with the vocabulary of the data.
            calibration: `slopes` and `shifts` of the data's disorders.
            thresholds: of the data's disorders.
            label_kind: how many of the data's disorders a case can have.
        """
        own = VocabularyIndex(list(model.config.disorders))
        kept = [row for row, name in enumerate(self.names) if config.keep_names and name not in own]
        names = [self.names[row] for row in kept] + list(model.config.disorders)
        codes = [self.icd10cm[row] for row in kept] + list(model.config.icd10cm)
        own_rows = list(range(len(kept), len(names)))
        own_tensors = model.head.disorder_tensors()
        tensors = {name: torch.cat([rows[kept], own_tensors[name]]) for name, rows in self.head.items()}
        embeds = tensors.get("disorder_embeds")
        if model.head.reads_text and config.model.text_layers:
            tensors["disorder_embeds"] = embeds = embed_texts(model.eval(), processor, names).clone()
        model.set_disorders(names, embeds, codes)
        for name, rows in model.head.disorder_tensors().items():
            rows.copy_(tensors[name])  # the embeddings of a linear probe are not of unit length
        new_row = {row: new for new, row in enumerate(kept)}
        groups = [
            group | {"rows": [new_row[row] for row in group["rows"] if row in new_row]}
            for group in self.calibration["exclusive"]
        ]
        if label_kind != LabelKind.MULTI_LABEL:
            groups.append({"rows": own_rows, "label_kind": str(label_kind)})
        model.config.calibration = {
            "slopes": [self.calibration["slopes"][row] for row in kept] + calibration["slopes"],
            "shifts": [self.calibration["shifts"][row] for row in kept] + calibration["shifts"],
            "exclusive": [group for group in groups if group["rows"]],
        }
        # A threshold is valid for the weights that it was chosen for. A linear probe does not change the image side's.
        same_weights = config.method == "linear"
        model.config.thresholds = [self.thresholds[row] if same_weights else None for row in kept] + thresholds


@torch.no_grad()
def zero_shot_model(
    start: StartSection, vocabulary: Vocabulary
) -> tuple[CheckpointVocabulary, RadFMForDiagnosis, RadFMProcessor]:
    """The vocabulary of a checkpoint, its model with the disorders of the data, and its processor.

    Raises:
        ValueError: no checkpoint is given, or the folder holds none of radfm.
        FileNotFoundError: there is no such folder.
    """
    if start.checkpoint is None:
        raise ValueError("fine-tuning starts from a checkpoint: give --model")
    folder = find(start.checkpoint)
    model = RadFMForDiagnosis.from_pretrained(folder).eval()
    processor = RadFMProcessor.from_pretrained(folder)
    if start.max_slices is not None:
        processor.image_processor.max_slices = start.max_slices
    known = CheckpointVocabulary.of(model)
    names, codes = vocabulary.names, [disorder.icd10cm for disorder in vocabulary]
    index = VocabularyIndex(known.names)
    rows = {new: old for new, name in enumerate(names) if (old := index.get(name)) is not None}
    if model.head.reads_text:
        model.set_disorders(names, embed_texts(model, processor, names).clone(), codes)
    else:
        model.set_disorders(names, icd10cm=codes)
        bias = known.head["bias"].mean()
        model.head.set_linear(torch.zeros(len(names), known.head["weight"].shape[1]), bias.expand(len(names)))
    for name, tensor in model.head.disorder_tensors().items():
        tensor[list(rows)] = known.head[name][list(rows.values())]
    remove_folder_names(model, processor)
    return known, model, processor
