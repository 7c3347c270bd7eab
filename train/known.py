"""What a checkpoint knew by name, and the zero-shot model that fine-tuning starts from.

Decisions:
- Names that differ in capitals only are one. A name of the data that the checkpoint knew keeps its classifier; with a
  text head the text encoder places the others, with an mlp head they get rows of zeros.
- The names that the data does not have join again in the end, with the classifiers and calibration they had.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from radfm.checkpoints import find
from radfm.data_prep.stored_cases import StoredCases
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts
from radfm.train import probe

if TYPE_CHECKING:
    from radfm.train.finetune import FineTuning


@dataclass
class Known:
    """What a checkpoint knew by name: to be joined with what it learned."""

    names: list[str]
    icd10cm: list[list[str]]
    head: probe.Head | Tensor  # the last layer of an mlp head; of a text head the disorders' embeddings
    calibration: dict[str, Any]
    thresholds: list[float | None]

    @classmethod
    def of(cls, model: RadFMForDiagnosis) -> "Known":
        config = model.config
        mlp, n = config.head == "mlp", len(config.disorders)
        plain = {"slopes": [1.0] * n, "shifts": [0.0] * n, "one_of": []}
        return cls(
            names=list(config.disorders),
            icd10cm=[list(codes) for codes in config.icd10cm] or [[] for _ in range(n)],
            head=copy.deepcopy(probe.head_of(model)) if mlp else model.disorder_embeds.clone(),
            calibration=config.calibration or plain,
            thresholds=config.thresholds or [None] * n,
        )

    def row(self, name: str) -> int | None:
        """Where it stands, whatever its case."""
        return next((row for row, known in enumerate(self.names) if known.casefold() == name.casefold()), None)

    def join(self, model, processor, config: "FineTuning", slopes, shifts, thresholds, none: bool | None) -> None:
        """Gives the model its names, before those that it has learned, and the calibrations of both."""
        mine = {name.casefold() for name in model.config.disorders}
        old = [row for row, name in enumerate(self.names) if name.casefold() not in mine and config.keep_names]
        learned = list(range(len(old), len(old) + len(mine)))
        names = [self.names[row] for row in old] + list(model.config.disorders)
        codes = [self.icd10cm[row] for row in old] + list(model.config.icd10cm)
        if config.head == "mlp":
            parts = zip(self.head, probe.head_of(model), strict=True)
            both = probe.Head(*(torch.cat([theirs[old], ours]) for theirs, ours in parts))
            model.set_disorders(names, icd10cm=codes)
            probe.put_head(model, both)
        else:
            both = torch.cat([self.head[old], model.disorder_embeds])
            if config.text_layers:
                both = embed_texts(model.eval(), processor, names).clone()
            model.set_disorders(names, both, codes)
            model.disorder_embeds = both  # those of a probe have lengths of their own
        place = {row: new for new, row in enumerate(old)}
        groups = [
            {"rows": [place[row] for row in group["rows"] if row in place], "none": group["none"]}
            for group in self.calibration["one_of"]
        ]
        model.config.calibration = {
            "slopes": [self.calibration["slopes"][row] for row in old] + slopes,
            "shifts": [self.calibration["shifts"][row] for row in old] + shifts,
            "one_of": [group for group in groups if group["rows"]]
            + ([] if none is None else [{"rows": learned, "none": none}]),
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
    rows = {new: old for new, name in enumerate(names) if (old := known.row(name)) is not None}
    new, old = list(rows), list(rows.values())
    if model.config.head == "mlp":
        model.set_disorders(names, icd10cm=codes)
        width = known.head.weight.shape[1]
        head = probe.Head(torch.zeros(len(names), width), known.head.bias.mean().expand(len(names)).clone())
        head.weight[new], head.bias[new] = known.head.weight[old], known.head.bias[old]
        probe.put_head(model, head)
    else:
        embeds = embed_texts(model, processor, names).clone()
        model.set_disorders(names, embeds, codes)
        model.disorder_embeds[new] = known.head[old]
    for part in (model.config, model.config.text_config, processor.tokenizer):
        if part is not None:
            part.name_or_path = ""  # where it lay is nobody's business
    return known, model, processor
