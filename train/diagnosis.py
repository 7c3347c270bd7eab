"""Stage 2: teach a model to name the disorders of a case.

    radfm train diagnosis train/configs/diagnosis.yaml data=datasets/mine output=runs/mine
    torchrun --nproc-per-node 2 -m radfm.train.diagnosis CONFIG training.deepspeed=train/configs/zero2.json

One step, see `DiagnosisTrainer.compute_loss`:

1. A step's cases (`sampling`), varied (`augmentation`), go through the model: one embedding per case.
2. Its logits are the scaled cosine with each disorder's embedding, plus a bias. Where the text encoder is frozen those
   embeddings were computed once; where it learns they are computed again, of all disorders or of some candidates.
3. Relatives in ICD-10-CM become weak positives (`losses`).
4. The model computes the loss of the objectives in its configuration, over the rows of all processes
   (`radfm.objectives_radfm`, `radfm.losses_radfm`).

Decisions:
- The trainer, its arguments and its checkpoints are transformers'. A step is one for all processes together, so a
  config means the same on one process and on eight, and the losses are the same.
- Gradient accumulation is the mean over its micro-steps, each as much as the other: exact for the losses that look at
  pairs where micro-steps have equally many cases, and not for softmax, whose cases compete within a micro-step only.
- A checkpoint counts when all of it is written, which a file says. A killed run goes on from the last that counts; a
  disk that fills up costs the unfinished one only.
- The result is the checkpoint of the best validation, with a recipe beside it that names no folder of any machine.
- The model is built before the trainer's arguments are: DeepSpeed's ZeRO-3 would scatter its weights while the
  disorders are being embedded.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from radfm.checkpoints import CONFIDENCE
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling, StepLoader, step_loader
from radfm.data_prep.batches.sampling import StepSampler, steps_in_order
from radfm.data_prep.batches.slice_features import slice_features
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.stored_cases import load
from radfm.eval.metrics import macro_auc, same_groups
from radfm.heads_radfm import HEADS
from radfm.losses_radfm import LOSSES, all_gather_rows, loss_function
from radfm.objectives_radfm import labels_of_scans
from radfm.recipes_radfm import DIAGNOSIS_RECIPE as RECIPE
from radfm.reference_radfm import FILE as REFERENCE
from radfm.starting_points import embed_texts
from radfm.train.config import filled, run_module, state_at_the_end, trainer_arguments, without_folders
from radfm.train.config import read_config as read_yaml
from radfm.train.diagnosis_model import build
from radfm.train.lineage import effort, has_ended, lineage
from radfm.train.linear_start import LinearStart, fit_linear_start
from radfm.train.losses import kinship, soft_labels
from radfm.train.shots import few_shots

COMPLETE = "complete"  # a file in every checkpoint that counts
_RESULT = (".json", ".safetensors", ".py", ".txt", ".model", ".jinja")  # what of a checkpoint is the model
_NOT_RESULT = ("trainer_state.json", "zero_to_fp32.py", "zero_to_torch.py")
_OF_OTHER_WEIGHTS = (REFERENCE, CONFIDENCE)  # what `radfm calibrate` made for those that lay there before
_STARTS = ("model", "tower_weights", "text_encoder")  # keys of the config: what a model can start from
_MOST_NAMED = 20


@dataclass
class DiagnosisTraining:
    """What a config file holds.

    Attributes:
        data: Folder of a data set that `radfm prepare` made.
        output: Folder of the checkpoints and, at the end, of the model.
        model: Folder of a checkpoint to go on from; None: a new model.
        text_encoder: Folder that `radfm train text` made; None: all-MiniLM-L6-v2 as packaged. For a new model.
        tower_weights: File of weights for the slice encoder's tower, or a checkpoint of radfm. For a new model.
        tower_places: Whether a slice's vector also says, of each disorder that the tower was taught, how much its
            likeliest place looks like it. `tower_weights` then learned with `place_weight`, a text head and no layers.
        frozen_tower: Whether the tower does not learn: each slice goes through it once, and its features are kept.
        architecture: Arguments of RadFMConfig. For a new model.
        head: "text" (KE: a disorder's embedding is its classifier) or "mlp".
        level: "case" (FM: a transformer over all scans) or "scan" (each learns alone, a case is their mean).
        text_whitening: Shrinkage with which the names' embeddings are made to vary alike in all directions, see
            `radfm.train.diagnosis_model.whiten_texts`; None: as the text encoder says them. For a new model.
        linear_start: `penalty` and `power` of the regression from which what lies between tower and names starts, see
            `radfm.train.linear_start`; None: from chance. For a new model whose tower knows something already.
        text_layers: How many of the text encoder's last layers learn; 0: none, "all": it learns as a whole.
        candidates: Disorders that are embedded in a step where the text encoder learns: those of its cases, and others
            up to so many; None: all.
        history: Whether the case encoder reads the history, without words that name the case's own disorders.
        frozen_parts: Names of the tower's modules that do not learn, such as the first blocks of a pretrained
            one; their maps are the largest, so a step costs less.
        freeze_batch_norm: Whether the tower's batch normalisation keeps its statistics; for pretrained towers.
        slices_per_step: Of all processes together.
        slices_per_scan: Of a scan with more, so many are drawn, the key slice among them; None: as `max_slices`.
        max_slices: Of a scan with more, the validation and the model that comes out see so many; None: all.
        by_disorder: Share of the draws that go by disorder, for the tail; see `radfm.data_prep.batches.sampling`.
        loss: `name`, and the arguments of that loss; see `radfm.losses_radfm`. Unset: sigmoid, with an mlp head bce.
        relatives: `strength` and `reach` of weak positives, see `radfm.train.losses.kinship`; None: none.
        key_slice_weight: Of the key-slice supervision; 0: off.
        lone_scan_weight: Of the same loss with each scan as a case of its own, under the labels of its case; 0: off.
        place_weight: Of the supervision of patches, where the data has masks, see `radfm.objectives_radfm`; 0: off.
        augmentation: See `radfm.data_prep.batches.augmentation.Augmentation`.
        shots: Of each class, learn from so many cases only; see `radfm.train.shots`. None: from all.
        withheld: Names of disorders that are not trained on: neither they nor any case that has one.
        seed: Of everything.
        training: Arguments of transformers' TrainingArguments.
    """

    data: str = "datasets/phantoms"
    output: str = "runs/diagnosis"
    model: str | None = None
    text_encoder: str | None = None
    tower_weights: str | None = None
    tower_places: bool = False
    frozen_tower: bool = False
    architecture: dict = field(default_factory=dict)
    head: Literal["text", "mlp"] = "text"
    level: Literal["case", "scan"] = "case"
    text_whitening: float | None = None
    linear_start: dict | None = None
    text_layers: int | Literal["all"] = 0
    candidates: int | None = None
    history: bool = False
    frozen_parts: list[str] = field(default_factory=list)
    freeze_batch_norm: bool = False
    slices_per_step: int = 256
    slices_per_scan: int | None = None
    max_slices: int | None = None
    by_disorder: float = 0.0
    loss: dict = field(default_factory=dict)
    relatives: dict | None = None
    key_slice_weight: float = 0.001
    lone_scan_weight: float = 0.0
    place_weight: float = 0.0
    augmentation: dict = field(default_factory=dict)
    shots: int | None = None
    withheld: list[str] = field(default_factory=list)
    seed: int = 0
    training: dict = field(default_factory=dict)

    def __post_init__(self):
        for name, choices in (("head", tuple(HEADS)), ("level", ("case", "scan"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {' or '.join(choices)}, not {getattr(self, name)!r}")
        if self.loss.get("name", "bce") not in LOSSES:
            raise ValueError(f"there is no loss {self.loss['name']!r}: there are {', '.join(LOSSES)}")
        reads_text = HEADS[self.head].reads_text
        if not reads_text and (self.history or self.text_layers or self.text_whitening is not None):
            raise ValueError("an mlp head comes without a text encoder: leave out history, text_layers, text_whitening")
        if self.level == "scan" and self.history:
            raise ValueError("without a fusion module nobody reads the history: leave it out, or set level=case")
        if self.lone_scan_weight and self.level == "scan":
            raise ValueError("at level=scan each scan is alone already: leave out lone_scan_weight")
        if self.augmentation.get("add_normal") and (self.lone_scan_weight or self.level == "scan"):
            raise ValueError(
                "augmentation.add_normal adds scans that show nothing of their case's disorders, so none of its scans "
                "may be read alone: leave it out, or set level=case and lone_scan_weight=0"
            )
        if self.tower_places and self.tower_weights is None:
            raise ValueError("tower_places are those of a tower that was taught by masks: give it as tower_weights")
        if self.linear_start is not None and (not reads_text or self.tower_places):
            raise ValueError(
                "linear_start is a regression to the names' embeddings: leave it out with an mlp head, which reads no "
                "names, or with tower_places, which say them already"
            )
        if self.place_weight and (self.frozen_tower or self.candidates is not None):
            raise ValueError(
                "place_weight compares places with all disorders, by a tower that learns: leave it out, or set "
                "frozen_tower=false and candidates=null"
            )
        if self.frozen_tower and filled(Augmentation, self.augmentation, "augmentation").changes_pixels:
            raise ValueError(
                "a frozen tower sees each slice once: leave affine, elastic, noise and contrast out of augmentation, "
                "or set frozen_tower=false"
            )


def read_config(path: str | Path, changes: Sequence[str] = ()) -> DiagnosisTraining:
    """The config of an experiment; see `radfm.train.config`."""
    return read_yaml(DiagnosisTraining, path, changes)


def train(config: DiagnosisTraining) -> Path:
    """Trains, going on from the last checkpoint in `output` where there is one; returns the model's folder.

    Raises:
        ValueError: A wrong config, data set or checkpoint; a loss that is no number; memory that ran out.
        FileNotFoundError: There is no such data set, checkpoint or file of weights.
        OSError: A checkpoint could not be saved.
    """
    began = time.monotonic()
    set_seed(config.seed)
    augmentation = filled(Augmentation, config.augmentation, "augmentation")
    stored = [load(config.data, split, labelled=True, without=config.withheld) for split in ("train", "validation")]
    chosen = few_shots(stored[0], config.shots, config.seed)
    disorders, cases = sum(len(stored[0].rows[row]["labels"]) for row in chosen), max(len(chosen), 1)
    model, processor = build(config, stored[0].vocabulary, disorders / cases / max(len(stored[0].vocabulary), 1))
    frozen = config.text_layers == 0
    if config.linear_start is not None and config.model is None and last_checkpoint(config.output) is None:
        start = CaseDataset(stored[0], processor, rows=chosen)
        start.features = slice_features(start.cases, start.rows, model, processor)
        fit_linear_start(model, start, filled(LinearStart, config.linear_start, "linear_start"))
    histories = [embed_histories(model, processor, part.rows) if config.history and frozen else None for part in stored]
    sampling = Sampling(augmentation, 1 if config.level == "scan" else None, config.slices_per_scan, config.seed)
    data = CaseDataset(stored[0], processor, sampling, chosen, histories[0], masks=config.place_weight > 0)
    validation = CaseDataset(stored[1], processor, history_embeds=histories[1])
    if config.frozen_tower:
        for part in (data, validation):
            dtype = torch.bfloat16 if config.training.get("bf16") else torch.float32
            part.features = slice_features(part.cases, part.rows, model, processor, dtype)
    trainer = DiagnosisTrainer(config, model, processor, data, validation)
    trainer.remove_unfinished_checkpoints()
    last = last_checkpoint(config.output)
    trainer.say_what_is_learned(last)
    trainer.train(resume_from_checkpoint=last and str(last))
    return trainer.save_result(effort(began, last is not None, trainer.args.world_size))


class DiagnosisTrainer(Trainer):
    """transformers' Trainer, with the step, the sampling, the measure and the checkpoints of this stage."""

    def __init__(self, config: DiagnosisTraining, model, processor, data: CaseDataset, validation: CaseDataset):
        arguments = trainer_arguments(
            TrainingArguments,
            config.training,
            output_dir=config.output,
            seed=config.seed,
            eval_strategy="steps" if len(validation) else "no",
            save_total_limit=2,
            metric_for_best_model="auc_within",
            greater_is_better=True,
            ddp_find_unused_parameters=False,
            remove_unused_columns=False,
        )
        if arguments.world_size > 1 and torch.cuda.is_available() and not config.freeze_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if arguments.bf16 and arguments.deepspeed_plugin is not None:
            for buffer in model.buffers():  # DeepSpeed casts weights alone, and norms want their statistics alike
                if buffer.is_floating_point():
                    buffer.data = buffer.data.to(torch.bfloat16)
        if is_deepspeed_zero3_enabled():
            # It gathers weights whenever a layer is called, and all processes have to call equally often.
            model.radfm.slice_encoder.slices_per_chunk = sys.maxsize
        super().__init__(model, arguments, train_dataset=data, eval_dataset=validation, processing_class=processor)
        self.model_accepts_loss_kwargs = False  # a micro-step's loss is a mean: the Trainer is to average them
        self.config, self.validation = config, validation
        self.text_learns = config.text_layers != 0
        model.config.loss = {"name": model.head.default_loss} | config.loss
        loss_function(model.config.loss)  # raises for arguments that the loss does not have
        model.config.objectives = {
            "key_slice": {"weight": float(config.key_slice_weight)},
            "per_scan": {"weight": float(config.lone_scan_weight)},
            "patch": {"weight": float(config.place_weight)},
        }
        try:
            self.kin = None if config.relatives is None else kinship(model.config.icd10cm, **config.relatives)
        except TypeError as error:
            raise ValueError(f"relatives: {error}") from error
        if self.text_learns:
            self.names = processor(text=list(model.config.disorders))

    def compute_loss(self, model, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch=None):
        batch = dict(inputs)
        case_rows, labels = batch.pop("case_rows"), batch.pop("labels")
        counts = batch["slices_per_scan"], batch["scans_per_case"]
        scan_labels = labels.repeat_interleave(counts[1], dim=0)
        if self.config.place_weight:
            scan_labels = labels_of_scans(labels, batch["unlocated"], batch["mask_rows"], *counts)
            labels = scan_labels if self.config.level == "scan" else labels
        disorders = self._disorders_of_the_step(labels)
        if self.text_learns:
            texts = {key: rows[disorders] for key, rows in self.names.items()}
            batch |= {key: rows.to(labels.device) for key, rows in texts.items()}
        self._quieten()

        outputs = model(
            **batch,
            labels=self._softened(labels)[:, disorders],
            scan_labels=self._softened(scan_labels)[:, disorders],
        )
        if not outputs.loss.isfinite():
            rows, bad = all_gather_rows(case_rows), ~all_gather_rows(outputs.logits.detach()).isfinite().all(1)
            self._stop_naming_cases(self.train_dataset, rows[bad] if bad.any() else rows, "the loss is")
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        if resume_from_checkpoint and (ended := state_at_the_end(resume_from_checkpoint, self.args)):
            self.state = ended
            return None
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except (RuntimeError, MemoryError) as error:  # in reading, a step or a validation
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
            raise ValueError(
                f"memory ran out after step {self.state.global_step}: lower slices_per_step (now "
                f"{self.config.slices_per_step}), with training.gradient_accumulation_steps for as many cases, or "
                "slices_per_scan; or set training.activation_checkpointing=true or training.bf16=true"
            ) from error

    def get_train_dataloader(self) -> StepLoader:
        data, config = self.train_dataset, self.config
        place = {"rank": self.args.process_index, "world_size": self.args.world_size, "slices_of": data.slices_of}
        sampler = StepSampler(
            data.slice_counts, data.labels, config.slices_per_step, config.by_disorder, config.seed, **place
        )
        return step_loader(data, sampler, self.args.dataloader_num_workers)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Macro AUC of the whole validation split, see `radfm.eval.metrics`, and `auc_within`: the same with negatives
        that show a part of the body in which the disorder occurs. The first can be had by telling knees from heads.
        """
        self.refresh_disorders()
        scores = self._scores(self.validation)
        if (bad := ~np.isfinite(scores).all(1)).any():
            self._stop_naming_cases(self.validation, np.flatnonzero(bad), "the scores are")
        labels = np.stack([self.validation.cases.labels(row) for row in self.validation.rows])
        try:
            found = macro_auc(scores, labels, self.train_dataset.label_counts)
        except ValueError as error:
            raise ValueError(f"validation: {error}: set training.eval_strategy=no") from error
        counted = same_groups([self.validation.body_parts(case) for case in range(len(labels))], labels)
        measurable = ((labels > 0) & counted).any(0) & ((labels == 0) & counted).any(0)
        within = macro_auc(scores, labels, self.train_dataset.label_counts, counted) if measurable.any() else found
        found["auc_within"] = within["auc"]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def refresh_disorders(self) -> None:
        """Embeds the vocabulary again, where the text encoder learns."""
        if self.text_learns:
            was_training = self.model.training
            embeds = embed_texts(self.model.eval(), self.processing_class, self.model.config.disorders)
            self.model.head.disorder_embeds.copy_(embeds)
            self.model.train(was_training)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices and kernels: neither biases, norms and class tokens, nor the scale and bias of the logits."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1 and "token" not in name]

    def remove_unfinished_checkpoints(self) -> None:
        if self.is_world_process_zero():
            for folder in Path(self.args.output_dir).glob("checkpoint-*"):
                if not (folder / COMPLETE).exists():
                    shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()

    def say_what_is_learned(self, last: Path | None) -> None:
        if not self.is_world_process_zero():
            return
        data, labels = self.train_dataset, self.train_dataset.label_counts
        print(
            f"Learning {(labels > 0).sum():,} of {len(labels):,} disorders from {len(data):,} cases, "
            f"{sum(data.slice_counts):,} slices{f', going on from {last}' if last else ''}",
            file=sys.stderr,
        )
        for case_id, reason in (data.skipped + self.validation.skipped)[:_MOST_NAMED]:
            print(f"Left out: case {case_id}: {reason}", file=sys.stderr)

    def save_result(self, spent: dict[str, Any]) -> Path:
        """The best checkpoint's model, with its recipe and what it took (see `effort`), in `output`.

        Where that is there already it stays, with what was calibrated since.
        """
        output = Path(self.args.output_dir)
        best = self.state.best_model_checkpoint
        chosen = output / Path(best).name if best else last_checkpoint(output)
        if self.is_world_process_zero():
            if chosen is None:
                raise ValueError(f"{output} holds no checkpoint to end with: set training.save_strategy=steps")
            recipe = self._recipe(chosen)
            if not has_ended(output, RECIPE, recipe):
                _end_with(chosen, output, recipe | {"effort": spent})
        self.accelerator.wait_for_everyone()
        return output

    def _softened(self, labels: Tensor) -> Tensor:
        return labels if self.kin is None else soft_labels(labels, self.kin.to(labels.device))

    def _quieten(self) -> None:
        """No dropout in the text encoder, as in stage 1; and the tower's statistics as they were, where asked."""
        tower = self.model.radfm.slice_encoder.tower.network
        if self.model.radfm.text_encoder is not None:
            self.model.radfm.text_encoder.eval()
        for name in self.config.frozen_parts:
            tower.get_submodule(name).eval()
        if self.config.freeze_batch_norm:
            for module in tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _disorders_of_the_step(self, labels: Tensor) -> Tensor | slice:
        """Rows of the vocabulary that the step's cases are compared with, the same for all processes."""
        most, all_of_them = self.config.candidates, labels.shape[1]
        if not self.text_learns or most is None or most >= all_of_them:
            return slice(None)
        present = (all_gather_rows(labels) > 0).any(0).cpu()
        others = (~present).nonzero().flatten()
        order = np.random.default_rng([self.config.seed, self.state.global_step]).permutation(len(others))
        chosen = others[torch.from_numpy(order[: max(most - int(present.sum()), 0)])]
        return torch.cat([present.nonzero().flatten(), chosen]).sort().values

    def _stop_naming_cases(self, data: CaseDataset, case_rows: Tensor | np.ndarray, what: str) -> None:
        names = [data.case_id(row) for row in case_rows.tolist()]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        raise ValueError(
            f"{what} no number after step {self.state.global_step}, of cases {', '.join(names[:_MOST_NAMED])}{more}: "
            "look at their pixels or lower training.learning_rate; the last good checkpoint is kept"
        )

    @torch.no_grad()
    def _scores(self, data: CaseDataset) -> np.ndarray:
        """(cases, disorders) logits of whole cases, on every process."""
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        was_training = model.training
        model.eval()
        place = (self.args.process_index, self.args.world_size)
        steps = steps_in_order(data.slice_counts, self.config.slices_per_step, *place)
        scores = torch.zeros(len(data), len(data.cases.vocabulary))
        for batch in step_loader(data, steps, self.args.dataloader_num_workers):
            batch = self._prepare_inputs(batch)
            rows = batch.pop("case_rows")
            del batch["labels"], batch["key_slices"]
            with self.compute_loss_context_manager():
                logits = model(**batch).logits
            scores[all_gather_rows(rows).cpu()] = all_gather_rows(logits.float()).cpu()
        model.train(was_training)
        return scores.numpy()

    def _save_checkpoint(self, model, trial) -> None:
        self.refresh_disorders()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (folder / COMPLETE).touch()
        except Exception as error:  # safetensors, torch and DeepSpeed have each an error of their own for a full disk
            shutil.rmtree(folder, ignore_errors=True)
            last = last_checkpoint(self.args.output_dir)
            raise OSError(
                f"{folder} could not be saved ({' '.join(str(error).split())[:200]}): make room and start again, to go "
                f"on from {last.name if last else 'the beginning'}"
            ) from error

    def _recipe(self, checkpoint: Path) -> dict[str, Any]:
        history = [entry for entry in self.state.log_history if "eval_auc" in entry]
        step = int(checkpoint.name.rpartition("-")[2])
        return {
            "config": without_folders(asdict(self.config)),
            "data": data_summary(self.train_dataset.cases, self.train_dataset.rows),
            "started_from": lineage(**{what: getattr(self.config, what) for what in _STARTS}),
            "cases": {"train": len(self.train_dataset), "validation": len(self.validation)},
            "left_out": dict(self.train_dataset.skipped + self.validation.skipped),
            "steps": self.state.global_step,
            "step": step,
            "validation": next((entry for entry in history if entry["step"] == step), None),
            "validations": history,
            "versions": {name: version(name) for name in ("radfm", "torch", "transformers", "timm")},
        }


def _end_with(checkpoint: Path, output: Path, recipe: dict[str, Any]) -> None:
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in _RESULT and file.name not in _NOT_RESULT:
            shutil.copyfile(file, output / f".{file.name}")
            os.replace(output / f".{file.name}", output / file.name)
    (output / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    for void in _OF_OTHER_WEIGHTS:
        (output / void).unlink(missing_ok=True)


def embed_histories(model, processor, rows: list[dict]) -> Tensor:
    """(cases, d), of a text encoder that does not learn; a case without a history has zeros, which nobody reads."""
    embeds = embed_texts(model.eval(), processor, [row["history"] or "" for row in rows]).clone()
    return embeds * torch.tensor([bool(row["history"]) for row in rows]).unsqueeze(-1)


def last_checkpoint(output: str | Path) -> Path | None:
    """The newest checkpoint of which all was written."""
    found = [file.parent for file in Path(output).glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


if __name__ == "__main__":
    run_module(lambda given: print(train(read_config(given[0], given[1:]))), "CONFIG [KEY=VALUE]...")
