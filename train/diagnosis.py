"""Stage 2: train a model to diagnose cases.

    radfm train diagnosis train/configs/diagnosis.yaml data=datasets/mine output=runs/mine
    torchrun --nproc-per-node 2 -m radfm.train.diagnosis CONFIG training.deepspeed=train/configs/zero2.json

1. The cases are loaded, and the model is built from the configuration (`diagnosis_model`).
2. The features of a frozen tower are computed once (`radfm.data_prep.batches.slice_features`), and so are the logits of
   a teacher, if there is one (`teacher`).
3. The trainer trains it, resuming from the last checkpoint where there is one (`diagnosis_trainer`).
4. The checkpoint with the best validation becomes the result, with a recipe beside it.

Decisions:
- The model is built before the trainer's arguments: DeepSpeed's ZeRO-3 would partition its weights while the names of
  the disorders are being embedded.
- A recipe names no folder of the machine.
"""

import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling
from radfm.data_prep.batches.slice_features import slice_features
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.stored_cases import StoredCases
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.recipes_radfm import DIAGNOSIS_RECIPE as RECIPE
from radfm.starting_points import embed_texts
from radfm.train.config import without_folders
from radfm.train.diagnosis_config import TRAINING, DiagnosisTraining, read_diagnosis_config
from radfm.train.diagnosis_model import build
from radfm.train.diagnosis_trainer import DiagnosisTrainer, TrainerSettings
from radfm.train.lineage import effort, has_ended, lineage
from radfm.train.shots import few_shots
from radfm.train.teacher import teacher_logits
from radfm.train.trainer_arguments import run_module
from radfm.train.training_checkpoints import result_checkpoint, write_result


def train(config: DiagnosisTraining) -> Path:
    """Trains a model, resuming from the last checkpoint in `output` where there is one; returns the model's folder.

    Raises:
        ValueError: The configuration, data set or checkpoint is wrong, the loss is not finite, or memory ran out.
        FileNotFoundError: There is no such data set, checkpoint or file of weights.
        OSError: A checkpoint could not be saved.
    """
    began = time.monotonic()
    set_seed(config.seed)
    cases, validation_cases = map(config.data.load, ("train", "validation"))
    rows = few_shots(cases, config.data.shots, config.seed)
    teacher = config.model.teacher
    learned = None if teacher is None else teacher_logits(teacher, config.data.reconstructions or "", cases)
    model, processor = build(config, cases.vocabulary, _prevalence(cases, rows), cases.record.get("latents"))

    sampling = Sampling(config.augmentation, slices_per_scan=config.sampling.slices_per_scan, seed=config.seed)
    embed = config.model.history and config.model.text_layers == 0
    histories = [embed_histories(model, processor, part.rows) if embed else None for part in (cases, validation_cases)]
    masks = config.objectives.weight("patch") > 0
    data = CaseDataset(cases, processor, sampling, rows, histories[0], masks=masks, teacher_logits=learned)
    validation = CaseDataset(validation_cases, processor, history_embeds=histories[1])
    if config.model.frozen_tower:
        dtype = torch.bfloat16 if (TRAINING | config.training)["bf16"] else torch.float32
        data, validation = (_with_features(part, model, dtype) for part in (data, validation))

    trainer = DiagnosisTrainer(trainer_settings(config), model, processor, data, validation)
    resumed = trainer.train_or_resume()
    return _save_result(trainer, config, effort(began, resumed, trainer.args.world_size))


def trainer_settings(config: DiagnosisTraining) -> TrainerSettings:
    """The settings of the trainer of an experiment."""
    return TrainerSettings(
        output=config.output,
        seed=config.seed,
        objectives=config.objectives,
        sampling=config.sampling,
        arguments=TRAINING | config.training,
        text_layers=config.model.text_layers,
        frozen_modules=config.model.frozen_modules,
        freeze_batch_norm=config.model.freeze_batch_norm,
    )


def embed_histories(model: RadFMForDiagnosis, processor: RadFMProcessor, rows: list[dict]) -> Tensor:
    """(cases, d), by a text encoder that is not trained; zeros for a case without a history, which are not read."""
    embeds = embed_texts(model.eval(), processor, [row["history"] or "" for row in rows]).clone()
    return embeds * torch.tensor([bool(row["history"]) for row in rows]).unsqueeze(-1)


def _prevalence(cases: StoredCases, rows: list[int]) -> float:
    """The share of pairs of a case and a disorder that are positive."""
    positive = sum(len(cases.rows[row]["labels"]) for row in rows)
    return positive / max(len(rows), 1) / max(len(cases.vocabulary), 1)


def _with_features(data: CaseDataset, model: RadFMForDiagnosis, dtype: torch.dtype = torch.float32) -> CaseDataset:
    """The same data set with the features of its slices instead of their pixels."""
    data.features = slice_features(data.cases, data.rows, model, data.processor, dtype)
    return data


def _save_result(trainer: DiagnosisTrainer, config: DiagnosisTraining, spent: dict[str, Any]) -> Path:
    """The model of the best checkpoint, with its recipe. A result that exists stays, with its later calibration."""
    output = Path(config.output)
    if trainer.is_world_process_zero():
        checkpoint = result_checkpoint(trainer.state, output)
        recipe = _recipe(trainer, config, checkpoint)
        if not has_ended(output, RECIPE, recipe):
            write_result(checkpoint, output, recipe | {"effort": spent}, RECIPE)
    trainer.accelerator.wait_for_everyone()
    return output


def _recipe(trainer: DiagnosisTrainer, config: DiagnosisTraining, checkpoint: Path) -> dict[str, Any]:
    data, validation, start = trainer.train_dataset, trainer.validation, config.model
    validations = [entry for entry in trainer.state.log_history if "eval_auc" in entry]
    step = int(checkpoint.name.rpartition("-")[2])
    return {
        "config": without_folders(asdict(config)),
        "data": data_summary(data.cases, data.rows),
        "started_from": lineage(
            model=start.checkpoint,
            tower_weights=start.tower_weights,
            text_encoder=start.text_encoder,
            teacher=start.teacher,
        ),
        "cases": {"train": len(data), "validation": len(validation)},
        "left_out": dict(data.skipped + validation.skipped),
        "steps": trainer.state.global_step,
        "step": step,
        "validation": next((entry for entry in validations if entry["step"] == step), None),
        "validations": validations,
        "versions": {name: version(name) for name in ("radfm", "torch", "transformers", "timm")},
    }


if __name__ == "__main__":
    run_module(lambda given: print(train(read_diagnosis_config(given[0], given[1:]))), "CONFIG [KEY=VALUE]...")
