"""Stage 1: train a text encoder on ICD-10-CM and disease ontologies.

    radfm train text train/configs/text.yaml data.ontologies=[doid.obo] output=runs/text
    torchrun --nproc-per-node 2 -m radfm.train.text train/configs/text.yaml training.deepspeed=train/configs/zero2.json

Decisions:
- The trainer, its arguments and all losses are those of sentence-transformers. radfm adds the knowledge (`text_pairs`)
  and the batches (`batches`).
- Two losses alternate, batch by batch, in proportion to their pairs: a ranking loss in both directions over names and
  definitions, with hard negatives; and CoSENT over pairs of ICD-10-CM codes, by which the cosine decreases with the
  distance in the tree.
- A batch is one for all processes together and is split among them; the ranking loss gathers it again. So two processes
  learn from names and definitions what one would, and the batch size of a configuration means the same everywhere.
  CoSENT does not gather: each process ranks its own share of the pairs of codes.
- There is no dropout: training on this little text does not need it, and it costs a third of the time on a CPU. The
  plain attention is used: on texts of ten tokens the backward pass of the fused one takes twice as long on a CPU.
- The tokenizer spells abbreviations, and its vocabulary is trimmed to what medicine uses before training, which halves
  the size of the encoder (see `vocabulary`).
- The weights of several checkpoints are averaged (`model.average_from`), which finds more synonyms of unseen terms than
  any single checkpoint does: Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI
  2018. The averaged weights are those of checkpoints, so that a resumed run averages the same.
- The result is interpolated with the initial weights (`model.base_share`), which keeps more of the words that the
  knowledge does not contain: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
- The result is the folder of a SentenceTransformer, which is a transformers checkpoint with a pooling beside it:
  `radfm.starting_points.untrained(text_encoder=folder)` makes it the text encoder of a model.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

import torch
from datasets import Dataset
from pydantic import Field
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from radfm.knowledge import icd10cm, ontology
from radfm.recipes_radfm import TEXT_RECIPE as RECIPE
from radfm.starting_points.sentence_encoder import load_encoder
from radfm.train.batches import LengthBatchSampler
from radfm.train.config import NonNegativeInt, Share, arguments_of, one_of, read_config, section, without_folders
from radfm.train.lineage import effort, has_ended
from radfm.train.text_pairs import KINDS, text_pairs
from radfm.train.trainer_arguments import run_module, trainer_arguments
from radfm.train.training_checkpoints import state_at_end
from radfm.train.vocabulary import spell_abbreviations, trim_vocabulary

SCALE = 20.0  # inverse temperature of both losses
MAX_TOKENS = 48  # longer texts are truncated


@section
class KnowledgeSection:
    """What is learned.

    Attributes:
        ontologies: OBO files.
        held_out: Fold of terms and categories that are left out, 0 to 4, for an evaluation; None: all are used.
        knowledge: Kinds of knowledge, see `radfm.train.text_pairs`.
        hierarchy_pairs: Number of pairs of codes that are sampled.
    """

    ontologies: list[str] = field(default_factory=list)
    held_out: Annotated[int, Field(ge=0, le=4)] | None = None
    knowledge: list[Annotated[str, one_of(KINDS)]] = field(default_factory=lambda: list(KINDS))
    hierarchy_pairs: NonNegativeInt = 4000


@section
class EncoderSection:
    """What is trained.

    Attributes:
        base: Folder or Hub name of a SentenceTransformer or a transformers encoder; None: all-MiniLM-L6-v2 as packaged.
        base_share: Share of the initial weights in the saved ones.
        average_from: Share of the training after which checkpoints are averaged; None: the last one is the result.
        spell_abbreviations: Whether the tokenizer reads AHDS as the letters A H D S.
        trim: Whether word pieces that no text of the knowledge needs are removed.
    """

    base: str | None = None
    base_share: Share = 0.1
    average_from: Share | None = 0.33
    spell_abbreviations: bool = True
    trim: bool = True


@section
class TextTraining:
    """One experiment.

    Attributes:
        output: Folder of the checkpoints and, at the end, of the encoder.
        seed: Of everything random.
        data, model: see their classes.
        training: Arguments of SentenceTransformerTrainingArguments (and so of transformers' TrainingArguments).
    """

    output: str = "runs/text"
    seed: NonNegativeInt = 0
    data: KnowledgeSection = field(default_factory=KnowledgeSection)
    model: EncoderSection = field(default_factory=EncoderSection)
    training: Annotated[
        dict[str, Any], arguments_of(SentenceTransformerTrainingArguments, excluded=("output_dir", "seed"))
    ] = field(default_factory=dict)

    def __post_init__(self):
        keeps_all = self.training.get("save_strategy") != "no" and self.training.get("save_total_limit") is None
        if self.model.average_from is not None and not keeps_all:
            raise ValueError(
                "model.average_from needs all checkpoints: leave out training.save_total_limit and "
                "training.save_strategy=no"
            )


def read_text_config(path: str | Path, changes: Sequence[str] = ()) -> TextTraining:
    """The configuration of an experiment, see `radfm.train.config.read_config`."""
    return read_config(TextTraining, path, changes)


def train(config: TextTraining) -> Path:
    """Trains, resuming from the last checkpoint in `output` where there is one; returns the encoder's folder.

    A run that has ended stays as it is.

    Raises:
        ValueError: The configuration, an ontology or the base is wrong.
        FileNotFoundError: There is no such ontology.
    """
    began = time.monotonic()
    set_seed(config.seed)
    output = Path(config.output)
    arguments = _arguments(config)
    with arguments.main_process_first(local=False, desc="knowledge"):
        knowledge = [ontology.read(path) for path in config.data.ontologies]
    data = text_pairs(knowledge, config.data.knowledge, config.data.held_out, config.data.hierarchy_pairs, config.seed)
    recipe = {
        "config": without_folders(asdict(config)),
        "base": config.model.base and Path(config.model.base).name,
        "held_out": config.data.held_out,
        "max_tokens": MAX_TOKENS,
        "ontologies": [{"name": o.name, "terms": len(o), **o.notice} for o in knowledge],
        "icd10cm": icd10cm.edition(),
        "pairs": {name: len(rows) for name, rows in data.items()},
    }
    if has_ended(output, RECIPE, recipe):
        return output
    model = _encoder(config, data)
    initial = {name: tensor.clone() for name, tensor in model[0].auto_model.state_dict().items()}
    ranking = MultipleNegativesRankingLoss(
        model,
        scale=SCALE,
        gather_across_devices=arguments.world_size > 1,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    losses = dict.fromkeys(data, ranking) | {"hierarchy": CoSENTLoss(model, scale=SCALE)}
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss={name: losses[name] for name in data}
    )
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if trainer.is_world_process_zero():
        sizes = ", ".join(f"{len(rows):,} of {name}" for name, rows in data.items())
        print(f"Training on {sizes}{f', resumed from {last}' if last else ''}", file=sys.stderr)
    if last and (state := state_at_end(last, arguments)):
        trainer.state, trained = state, Path(last)
        if trainer.is_world_process_zero():
            model.save_pretrained(str(output))  # all but its weights
    else:
        trainer.train(resume_from_checkpoint=last)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(output))
        trained = output
    if trainer.is_world_process_zero():
        first = config.model.average_from
        checkpoints = [] if first is None else _checkpoints(output, first * trainer.state.max_steps)
        _average(checkpoints or [trained], initial, config.model.base_share, output / "model.safetensors")
        (output / "training_args.bin").unlink(missing_ok=True)  # a pickle that no model needs
        recipe["effort"] = effort(began, last is not None, arguments.world_size)
        (output / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return output


def _encoder(config: TextTraining, data: dict[str, Dataset]) -> SentenceTransformer:
    """The encoder before training, with its tokenizer changed."""
    model = load_encoder(config.model.base, MAX_TOKENS)
    model.model_card_data.generate_widget_examples = False  # of its own card, which radfm's card replaces
    if config.model.spell_abbreviations:
        spell_abbreviations(model)
    if config.model.trim:
        texts = {text for rows in data.values() for name in rows.column_names[:2] for text in rows[:][name]}
        texts.update(entry.description for entry in icd10cm.entries())
        trim_vocabulary(model, sorted(texts))
    return model


def _checkpoints(output: Path, first: float) -> list[Path]:
    """The checkpoints from a step on, in their order."""
    folders = {int(folder.name.partition("-")[2]): folder for folder in output.glob("checkpoint-*")}
    return [folders[step] for step in sorted(folders) if step >= first]


def _average(folders: Sequence[Path], initial: dict[str, torch.Tensor], share: float, file: Path) -> None:
    """Writes the mean of the weights of checkpoints, interpolated with the initial ones."""
    mean: dict[str, torch.Tensor] = {}
    for folder in folders:
        for name, tensor in load_file(folder / "model.safetensors").items():
            mean[name] = mean.get(name, 0) + tensor / len(folders)
    if share:
        mean = {name: torch.lerp(weight, initial[name].to(weight), share) for name, weight in mean.items()}
    save_file(mean, file, {"format": "pt"})


def _arguments(config: TextTraining) -> SentenceTransformerTrainingArguments:
    return trainer_arguments(
        SentenceTransformerTrainingArguments,
        config.training,
        output_dir=config.output,
        seed=config.seed,
        batch_sampler=LengthBatchSampler,
        multi_dataset_batch_sampler="proportional",
        dataloader_drop_last=True,
        accelerator_config={"split_batches": True, "even_batches": True},
    )


if __name__ == "__main__":
    run_module(lambda given: print(train(read_text_config(given[0], given[1:]))), "CONFIG [KEY=VALUE]...")
