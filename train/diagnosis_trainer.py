"""transformers' Trainer for cases: its step, its steps of equal cost, its validation and its checkpoints.

One step, see `DiagnosisTrainer.compute_loss`:

1. The labels of the batch are smoothed, and the names of the disorders are added where the text encoder is trained.
2. The model computes the embeddings of the cases, their logits and the loss of the objectives in its configuration,
   over the rows of all processes (`radfm.objectives_radfm`, `radfm.losses_radfm`).

Decisions:
- The trainer, its arguments and its checkpoints are those of transformers. A step is one for all processes together, so
  a configuration means the same on one process and on eight, and the losses are the same.
- Gradient accumulation is the mean over the micro-steps, with equal weights. For the losses over pairs this equals one
  large step if micro-steps have equally many cases; it does not for softmax, whose cases compete within a micro-step.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import Trainer, TrainerControl, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from radfm.data_prep.batches.case_dataset import CaseDataset, StepLoader, step_loader
from radfm.data_prep.batches.sampling import StepSampler, steps_in_order
from radfm.eval.metrics import macro_auc, same_groups
from radfm.losses_radfm import all_gather_rows
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.objectives_radfm import labels_of_scans
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts
from radfm.train.diagnosis_config import ObjectivesSection, SamplingSection, Trainable
from radfm.train.label_smoothing import hierarchical_similarity, smooth_labels
from radfm.train.trainer_arguments import trainer_arguments
from radfm.train.training_checkpoints import last_checkpoint, mark_complete, remove_incomplete, state_at_end

_MAX_NAMED_CASES = 20
_NOT_INPUTS = ("case_rows", "labels", "key_slices", "masks", "mask_rows", "unlocated", "teacher_logits")


@dataclass(frozen=True)
class TrainerSettings:
    """What the trainer needs of a configuration.

    Attributes:
        output: folder of the checkpoints.
        seed: of everything random.
        objectives, sampling: sections of the configuration.
        arguments: of TrainingArguments.
        text_layers: number of the text encoder's layers that are trained, or "all".
        frozen_modules: names of modules of the tower that stay in evaluation mode.
        freeze_batch_norm: whether the tower's batch normalisation keeps its statistics.
    """

    output: str
    seed: int
    objectives: ObjectivesSection
    sampling: SamplingSection
    arguments: dict[str, Any]
    text_layers: Trainable = 0
    frozen_modules: list[str] = field(default_factory=list)
    freeze_batch_norm: bool = False


class DiagnosisTrainer(Trainer):
    """Trains a model on cases.

    Args:
        settings: see `TrainerSettings`.
        data, validation: training and validation cases.
        scores: (cases, disorders) logits -> the scores that the validation measures; None: the logits.
    """

    control: TrainerControl

    def __init__(
        self,
        settings: TrainerSettings,
        model: RadFMForDiagnosis,
        processor: RadFMProcessor,
        data: CaseDataset,
        validation: CaseDataset,
        scores: Callable[[Tensor], Tensor] | None = None,
    ):
        arguments = trainer_arguments(
            TrainingArguments,
            settings.arguments,
            output_dir=settings.output,
            seed=settings.seed,
            eval_strategy="steps" if len(validation) else "no",
            save_total_limit=2,
            metric_for_best_model="auc_within",
            greater_is_better=True,
            ddp_find_unused_parameters=False,
            remove_unused_columns=False,
        )
        objectives = settings.objectives
        model.config.loss = (model.config.loss or {}) | objectives.loss
        model.config.objectives = {name: {"weight": weight} for name, weight in objectives.weights.items() if weight}
        model = _prepared_for_processes(model, arguments, settings.freeze_batch_norm)
        super().__init__(model, arguments, train_dataset=data, eval_dataset=validation, processing_class=processor)
        self.model_accepts_loss_kwargs = False  # the loss of a micro-step is a mean: the Trainer has to average them
        self.settings, self.validation, self.scores = settings, validation, scores or (lambda logits: logits)
        self.similarity = None
        if objectives.label_smoothing:
            self.similarity = hierarchical_similarity(model.config.icd10cm, objectives.label_smoothing)
        self.trains_text = settings.text_layers != 0
        self.names = processor(text=list(model.config.disorders)) if self.trains_text else {}

    def compute_loss(self, model, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch=None):
        batch = dict(inputs)
        case_rows = batch.pop("case_rows")
        batch |= self._targets(batch)
        batch |= {key: rows.to(case_rows.device) for key, rows in self.names.items()}
        self._set_frozen_modules_to_eval()

        outputs = model(**batch)

        if not outputs.loss.isfinite():
            rows, wrong = all_gather_rows(case_rows), ~all_gather_rows(outputs.logits.detach()).isfinite().all(1)
            self._raise_not_finite(self.train_dataset, rows[wrong] if wrong.any() else rows, "the loss is")
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        if resume_from_checkpoint and (state := state_at_end(resume_from_checkpoint, self.args)):
            self.state = state
            return None
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except (RuntimeError, MemoryError) as error:  # in reading, a step or a validation
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
            raise ValueError(
                f"memory ran out after step {self.state.global_step}: lower sampling.slices_per_step (now "
                f"{self.settings.sampling.slices_per_step}), with training.gradient_accumulation_steps for as many "
                "cases, or sampling.slices_per_scan; or set training.activation_checkpointing=true or "
                "training.bf16=true"
            ) from error

    def train_or_resume(self) -> bool:
        """Trains, from the last complete checkpoint where there is one. Returns whether there was one."""
        if self.is_world_process_zero():
            remove_incomplete(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        last = last_checkpoint(self.args.output_dir)
        self._print_summary(last)
        self.train(resume_from_checkpoint=None if last is None else str(last))
        return last is not None

    def get_train_dataloader(self) -> StepLoader:
        data, sampling = self.train_dataset, self.settings.sampling
        sampler = StepSampler(
            data.slice_counts,
            data.labels,
            sampling.slices_per_step,
            sampling.by_disorder,
            self.settings.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            slices_of=data.slices_of,
        )
        return step_loader(data, sampler, self.args.dataloader_num_workers)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The macro AUC of the whole validation split, see `radfm.eval.metrics`.

        `auc_within` is the same with negatives of a collection in which the disorder occurs or, where none is stated,
        of a part of the body: the first can be reached by telling knees from heads.
        """
        self.refresh_disorder_embeddings()
        scores = self.scores(self._validation_logits()).numpy()
        if (wrong := ~np.isfinite(scores).all(1)).any():
            self._raise_not_finite(self.validation, np.flatnonzero(wrong), "the scores are")
        labels, counts = self.validation.label_matrix, self.train_dataset.label_counts
        try:
            figures = macro_auc(scores, labels, counts)
        except ValueError as error:
            raise ValueError(f"validation: {error}: set training.eval_strategy=no") from error
        negatives = same_groups([self.validation.groups(case) for case in range(len(labels))], labels)
        measurable = ((labels > 0) & negatives).any(0) & ((labels == 0) & negatives).any(0)
        within = macro_auc(scores, labels, counts, negatives) if measurable.any() else figures
        figures["auc_within"] = within["auc"]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def refresh_disorder_embeddings(self) -> None:
        """Computes the embeddings of the vocabulary again where the text encoder is trained."""
        if self.trains_text:
            was_training = self.model.training
            embeds = embed_texts(self.model.eval(), self.processing_class, self.model.config.disorders)
            self.model.head.disorder_embeds.copy_(embeds)
            self.model.train(was_training)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices and kernels: neither biases, norms and class tokens, nor the scale and bias of the logits."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1 and "token" not in name]

    def _targets(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Smoothed labels of the cases and of the scans, these as far as masks tell what each scan shows."""
        counts = batch["slices_per_scan"], batch["scans_per_case"]
        labels, scan_labels = batch["labels"], batch["labels"].repeat_interleave(counts[1], dim=0)
        if "masks" in batch:
            scan_labels = labels_of_scans(labels, batch["unlocated"], batch["mask_rows"], *counts)
        if self.similarity is not None:
            similarity = self.similarity.to(labels.device)
            labels, scan_labels = smooth_labels(labels, similarity), smooth_labels(scan_labels, similarity)
        return {"labels": labels, "scan_labels": scan_labels}

    def _set_frozen_modules_to_eval(self) -> None:
        """The text encoder has no dropout, as when it was trained alone; and frozen modules keep their statistics."""
        towers = [tower.network for tower in self.model.radfm.towers]
        if self.model.radfm.text_encoder is not None:
            self.model.radfm.text_encoder.eval()
        for name in self.settings.frozen_modules:
            towers[0].get_submodule(name).eval()
        if self.settings.freeze_batch_norm:
            for module in chain.from_iterable(tower.modules() for tower in towers):
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @torch.no_grad()
    def _validation_logits(self) -> Tensor:
        """(cases, disorders) logits of whole cases, on every process."""
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        was_training = model.training
        model.eval()
        data, processes = self.validation, (self.args.process_index, self.args.world_size)
        steps = steps_in_order(data.slice_counts, self.settings.sampling.slices_per_step, *processes)
        logits = torch.zeros(len(data), len(data.cases.vocabulary))
        for batch in step_loader(data, steps, self.args.dataloader_num_workers):
            batch = self._prepare_inputs(batch)
            inputs = {key: value for key, value in batch.items() if key not in _NOT_INPUTS}
            with self.compute_loss_context_manager():
                of_step = model(**inputs).logits
            logits[all_gather_rows(batch["case_rows"]).cpu()] = all_gather_rows(of_step.float()).cpu()
        model.train(was_training)
        return logits

    def _save_checkpoint(self, model, trial) -> None:
        self.refresh_disorder_embeddings()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder)
        except Exception as error:  # safetensors, torch and DeepSpeed each have an error of their own for a full disk
            shutil.rmtree(folder, ignore_errors=True)
            last = last_checkpoint(self.args.output_dir)
            raise OSError(
                f"{folder} could not be saved ({' '.join(str(error).split())[:200]}): make room and start again, to "
                f"resume from {last.name if last else 'the beginning'}"
            ) from error

    def _print_summary(self, last: Path | None) -> None:
        if not self.is_world_process_zero():
            return
        data, counts = self.train_dataset, self.train_dataset.label_counts
        print(
            f"Training on {(counts > 0).sum():,} of {len(counts):,} disorders from {len(data):,} cases, "
            f"{sum(data.slice_counts):,} slices{f', resumed from {last}' if last else ''}",
            file=sys.stderr,
        )
        for case_id, reason in (data.skipped + self.validation.skipped)[:_MAX_NAMED_CASES]:
            print(f"Left out: case {case_id}: {reason}", file=sys.stderr)

    def _raise_not_finite(self, data: CaseDataset, case_rows: Tensor | np.ndarray, subject: str) -> None:
        names = [data.case_id(row) for row in case_rows.tolist()]
        more = f" and {len(names) - _MAX_NAMED_CASES} more" if len(names) > _MAX_NAMED_CASES else ""
        raise ValueError(
            f"{subject} not a number after step {self.state.global_step}, of cases "
            f"{', '.join(names[:_MAX_NAMED_CASES])}{more}: check their pixels or lower training.learning_rate; the "
            "last good checkpoint is kept"
        )


def _prepared_for_processes(
    model: RadFMForDiagnosis, arguments: TrainingArguments, freeze_batch_norm: bool
) -> RadFMForDiagnosis:
    if arguments.world_size > 1 and torch.cuda.is_available() and not freeze_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if arguments.bf16 and arguments.deepspeed_plugin is not None:
        for buffer in model.buffers():  # DeepSpeed casts weights only, and norms need statistics of the same type
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(torch.bfloat16)
    if is_deepspeed_zero3_enabled():
        # It gathers weights whenever a layer is called, and all processes have to call equally often.
        for encoder in filter(None, (model.radfm.slice_encoder, model.radfm.volume_encoder)):
            encoder.slices_per_chunk = sys.maxsize
    return model
