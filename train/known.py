"""What a checkpoint knew by name, and the zero-shot model that fine-tuning starts from.

Decisions:
- Names that differ in capitals only are one. A name of the data that the checkpoint knew keeps its classifier; with a
  text head the text encoder places the others, with an mlp head they get rows of zeros.
- The names that the data does not have join again in the end, with the classifiers and calibration they had.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from radfm.checkpoints import find
from radfm.configuration_radfm import LabelKind, VocabularyIndex
from radfm.data_prep.stored_cases import StoredCases
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts

if TYPE_CHECKING:
    from radfm.train.finetune import FineTuning


@dataclass
class Known:
    """What a checkpoint knew by name: to be joined with what it learned."""

    names: list[str]
    icd10cm: list[list[str]]
    head: dict[str, Tensor]  # its `disorder_tensors`
    calibration: dict[str, Any]
    thresholds: list[float | None]

    @classmethod
    def of(cls, model: RadFMForDiagnosis) -> "Known":
        config = model.config
        n = len(config.disorders)
        plain = {"slopes": [1.0] * n, "shifts": [0.0] * n, "exclusive": []}
        return cls(
            names=list(config.disorders),
            icd10cm=[list(codes) for codes in config.icd10cm] or [[] for _ in range(n)],
            head={name: tensor.clone() for name, tensor in model.head.disorder_tensors().items()},
            calibration=config.calibration or plain,
            thresholds=config.thresholds or [None] * n,
        )

    def join(self, model, processor, config: "FineTuning", slopes, shifts, thresholds, label_kind: LabelKind) -> None:
        """Gives the model its names, before those that it has learned, and the calibrations of both."""
        mine = {name.casefold() for name in model.config.disorders}
        old = [row for row, name in enumerate(self.names) if name.casefold() not in mine and config.keep_names]
        learned = list(range(len(old), len(old) + len(mine)))
        names = [self.names[row] for row in old] + list(model.config.disorders)
        codes = [self.icd10cm[row] for row in old] + list(model.config.icd10cm)
        learned_rows = model.head.disorder_tensors()
        both = {name: torch.cat([rows[old], learned_rows[name]]) for name, rows in self.head.items()}
        embeds = both.get("disorder_embeds")
        if model.head.reads_text and config.text_layers:
            both["disorder_embeds"] = embeds = embed_texts(model.eval(), processor, names).clone()
        model.set_disorders(names, embeds, codes)
        for name, rows in model.head.disorder_tensors().items():
            rows.copy_(both[name])  # the embeddings of a probe have lengths of their own
        place = {row: new for new, row in enumerate(old)}
        groups = [
            group | {"rows": [place[row] for row in group["rows"] if row in place]}
            for group in self.calibration["exclusive"]
        ]
        model.config.calibration = {
            "slopes": [self.calibration["slopes"][row] for row in old] + slopes,
            "shifts": [self.calibration["shifts"][row] for row in old] + shifts,
            "exclusive": [group for group in groups if group["rows"]]
            + ([] if label_kind == LabelKind.MULTI_LABEL else [{"rows": learned, "label_kind": str(label_kind)}]),
        }
        # A threshold holds for the weights that it was chosen for, and those of a probe's image side are the same.
        kept = [self.thresholds[row] if config.method == "linear" else None for row in old]
        model.config.thresholds = kept + thresholds


def starting_point(config: "FineTuning", cases: StoredCases) -> tuple[Known, RadFMForDiagnosis, RadFMProcessor]:
    """What the checkpoint knew, the zero-shot model of the data's disorders, and its processor.

    Raises:
        ValueError: the folder holds no radfm checkpoint.
        FileNotFoundError: there is no such folder.
    """
    if config.model is None:
        raise ValueError("fine-tuning goes on from a checkpoint: give --model")
    folder = find(config.model)
    model = RadFMForDiagnosis.from_pretrained(folder).eval()
    processor = RadFMProcessor.from_pretrained(folder)
    known, vocabulary = Known.of(model), cases.vocabulary
    names, codes = vocabulary.names, [disorder.icd10cm for disorder in vocabulary]
    known_names = VocabularyIndex(known.names)
    rows = {new: old for new, name in enumerate(names) if (old := known_names.get(name)) is not None}
    new, old = list(rows), list(rows.values())
    if model.head.reads_text:
        model.set_disorders(names, embed_texts(model, processor, names).clone(), codes)
    else:
        model.set_disorders(names, icd10cm=codes)
        bias = known.head["bias"].mean()
        model.head.set_linear(torch.zeros(len(names), known.head["weight"].shape[1]), bias.expand(len(names)))
    for name, tensor in model.head.disorder_tensors().items():
        tensor[new] = known.head[name][old]
    for part in (model.config, model.config.text_config, processor.tokenizer):
        if part is not None:
            part.name_or_path = ""  # where it lay is nobody's business
    return known, model, processor
