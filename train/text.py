"""Stage 1: teach a text encoder ICD-10-CM and disease ontologies.

    radfm train text train/configs/text.yaml ontologies=[doid.obo] output=runs/text
    torchrun --nproc-per-node 2 -m radfm.train.text train/configs/text.yaml training.deepspeed=train/configs/zero2.json

Decisions:
- The trainer, its arguments and all losses are sentence-transformers'. What is radfm's own is the knowledge
  (`text_pairs`) and the batches (`batches`).
- Two losses take turns, batch by batch, in proportion to their pairs: a ranking loss in both directions over names and
  definitions, with a hard negative each; and CoSENT over pairs of ICD-10-CM codes, which makes the cosine fall with the
  distance in the tree.
- A batch is one for all processes together and is split among them; the ranking loss gathers it again. So two
  processes learn from names and definitions what one would, and the batch size in a config means the same everywhere.
  CoSENT does not gather: each process ranks its own share of the pairs of codes.
- No dropout: a pass over so little text needs none, and on a CPU it costs a third of the time; nor does the fused
  attention pay on texts of ten tokens there, whose backward is half as fast as the plain one.
- The tokenizer spells abbreviations, and its vocabulary is trimmed to what medicine writes before training, which
  halves the encoder (see `vocabulary`).
- Weights are averaged along the way (`average_from`), which finds more synonyms of terms never seen than any single
  checkpoint does: Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018. The
  checkpoints are what is averaged, so that a resumed run has the same.
- The result is averaged with the weights at the start (`base_share`), which keeps more of what the base knew of
  words that the knowledge does not have: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
- The result is a SentenceTransformer's folder, which is a transformers checkpoint with a pooling beside it:
  `radfm.starting_points.untrained(text_encoder=folder)` makes it the text encoder of a model.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from radfm.knowledge import icd10cm, ontology
from radfm.recipes_radfm import TEXT_RECIPE as RECIPE
from radfm.starting_points.sentence_encoder import load_encoder
from radfm.train.batches import LengthBatchSampler
from radfm.train.config import read_config as read_yaml
from radfm.train.config import run_module, state_at_the_end, trainer_arguments, without_folders
from radfm.train.lineage import effort, has_ended
from radfm.train.text_pairs import KINDS, text_pairs
from radfm.train.vocabulary import spell_abbreviations, trim_vocabulary


@dataclass
class TextTraining:
    """What a config file holds.

    Attributes:
        output: Folder of the checkpoints and, at the end, of the encoder.
        base: Folder or Hub name of a SentenceTransformer or a transformers encoder; None: all-MiniLM-L6-v2 as packaged.
        ontologies: OBO files.
        held_out: Fold of terms and categories to keep out, 0 to 4, for an honest measure; None to learn from all.
        knowledge: Kinds of it, see `radfm.train.text_pairs`.
        hierarchy_pairs: How many pairs of codes to draw.
        scale: Inverse temperature of the ranking loss.
        hierarchy_scale: Of CoSENT.
        average_from: Share of the training, 0 to 1, after which checkpoints are averaged; None: the last one comes out.
        base_share: Share of the base in the weights that are saved, 0 to 1.
        spell_abbreviations: Whether the tokenizer reads AHDS as the letters A H D S.
        trim: Whether to drop the word pieces that no text of the knowledge needs.
        max_tokens: Longer texts are cut.
        seed: Of everything.
        training: Arguments of SentenceTransformerTrainingArguments (and so of transformers' TrainingArguments).
    """

    output: str = "runs/text"
    base: str | None = None
    ontologies: list[str] = field(default_factory=list)
    held_out: int | None = None
    knowledge: list[str] = field(default_factory=lambda: list(KINDS))
    hierarchy_pairs: int = 20_000
    scale: float = 20.0
    hierarchy_scale: float = 20.0
    average_from: float | None = None
    base_share: float = 0.0
    spell_abbreviations: bool = True
    trim: bool = True
    max_tokens: int = 64
    seed: int = 0
    training: dict = field(default_factory=dict)


def read_config(path: str | Path, changes: Sequence[str] = ()) -> TextTraining:
    """The config of an experiment; see `radfm.train.config`."""
    return read_yaml(TextTraining, path, changes)


def train(config: TextTraining) -> Path:
    """Trains, going on from the last checkpoint in `output` where there is one; returns the encoder's folder.

    A run that has ended stays as it is.

    Raises:
        ValueError: A wrong config, ontology or base; the message says which.
        FileNotFoundError: There is no such ontology.
    """
    began = time.monotonic()
    set_seed(config.seed)
    output = Path(config.output)
    arguments = _arguments(config)
    with arguments.main_process_first(local=False, desc="knowledge"):
        knowledge = [ontology.read(path) for path in config.ontologies]
    data = text_pairs(knowledge, config.knowledge, config.held_out, config.hierarchy_pairs, config.seed)
    recipe = {
        **without_folders(asdict(config)),
        "ontologies": [{"name": o.name, "terms": len(o), **o.notice} for o in knowledge],
        "icd10cm": icd10cm.edition(),
        "pairs": {name: len(rows) for name, rows in data.items()},
    }
    if has_ended(output, RECIPE, recipe):
        return output
    model = load_encoder(config.base, config.max_tokens)
    model.model_card_data.generate_widget_examples = False  # of its own card, which radfm's replaces
    if config.spell_abbreviations:
        spell_abbreviations(model)
    if config.trim:
        texts = {text for rows in data.values() for name in rows.column_names[:2] for text in rows[:][name]}
        texts.update(entry.description for entry in icd10cm.entries())
        trim_vocabulary(model, sorted(texts))
    start = {name: tensor.clone() for name, tensor in model[0].auto_model.state_dict().items()}
    ranking = MultipleNegativesRankingLoss(
        model,
        scale=config.scale,
        gather_across_devices=arguments.world_size > 1,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    losses = dict.fromkeys(data, ranking) | {"hierarchy": CoSENTLoss(model, scale=config.hierarchy_scale)}
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss={name: losses[name] for name in data}
    )
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if trainer.is_world_process_zero():
        sizes = ", ".join(f"{len(rows):,} of {name}" for name, rows in data.items())
        print(f"Learning from {sizes}{f', going on from {last}' if last else ''}", file=sys.stderr)
    if last and (ended := state_at_the_end(last, arguments)):
        trainer.state, learned = ended, Path(last)
        if trainer.is_world_process_zero():
            model.save_pretrained(str(output))  # all but its weights
    else:
        trainer.train(resume_from_checkpoint=last)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(output))
        learned = output
    if trainer.is_world_process_zero():
        averaged = []
        if config.average_from is not None:
            averaged = _checkpoints(output, config.average_from * trainer.state.max_steps)
        _mix(averaged or [learned], start, config.base_share, output / "model.safetensors")
        (output / "training_args.bin").unlink(missing_ok=True)  # a pickle, which no model needs
        recipe["effort"] = effort(began, last is not None, arguments.world_size)
        (output / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return output


def _checkpoints(output: Path, first: float) -> list[Path]:
    """Those of a run from a step on, in their order."""
    folders = {int(folder.name.partition("-")[2]): folder for folder in output.glob("checkpoint-*")}
    return [folders[step] for step in sorted(folders) if step >= first]


def _mix(folders: Sequence[Path], start: dict[str, torch.Tensor], share: float, file: Path) -> None:
    """Writes the mean of encoders' weights, with a share of those at the start."""
    mean: dict[str, torch.Tensor] = {}
    for folder in folders:
        for name, tensor in load_file(folder / "model.safetensors").items():
            mean[name] = mean.get(name, 0) + tensor / len(folders)
    if share:
        mean = {name: torch.lerp(end, start[name].to(end), share) for name, end in mean.items()}
    save_file(mean, file, {"format": "pt"})


def _arguments(config: TextTraining) -> SentenceTransformerTrainingArguments:
    """Raises: ValueError for wrong ones, also where there would be no checkpoints to average."""
    arguments = trainer_arguments(
        SentenceTransformerTrainingArguments,
        config.training,
        output_dir=config.output,
        seed=config.seed,
        batch_sampler=LengthBatchSampler,
        multi_dataset_batch_sampler="proportional",
        dataloader_drop_last=True,
        accelerator_config={"split_batches": True, "even_batches": True},
    )
    if config.average_from is not None:
        if not 0 <= config.average_from <= 1:
            raise ValueError(f"average_from is a share of the training, 0 to 1, not {config.average_from}")
        if arguments.save_strategy == "no" or arguments.save_total_limit is not None:
            raise ValueError("average_from needs all checkpoints: leave out save_total_limit and save_strategy=no")
    return arguments


if __name__ == "__main__":
    run_module(lambda given: print(train(read_config(given[0], given[1:]))), "CONFIG [KEY=VALUE]...")
