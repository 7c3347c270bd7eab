"""Fine-tune a checkpoint on new cases, and keep what it knows: `radfm finetune DATA --model DIR --output DIR`.

1. The checkpoint gets the vocabulary of the data: a text head embeds new names, an mlp head gets rows of zeros for
   them. This is the zero-shot model, which is validated first.
2. It is trained by one of three methods:

   | method | what is trained | default for | learning rate | steps |
   |---|---|---|---|---|
   | linear | the linear map of the head, see `radfm.train.probe` | fewer than 200 cases | | to convergence |
   | lora | low-rank changes of the image side's layers (peft), scale and bias | fewer than 10,000 | 1e-3 | 10 epochs |
   | full | the image side, scale and bias | more | 1e-4 | 10 epochs |

   where 10 epochs are at least 200 steps and at most 20,000, validated 10 times, and stopped early when `patience`
   validations in a row bring no gain. lora and full start from a linear probe (Kumar et al., Fine-tuning can distort
   pretrained features, ICLR 2022, https://arxiv.org/abs/2202.10054), with up to 20,000 cases and a frozen text encoder.
3. Its weights are interpolated with those of the zero-shot model (WiSE-FT, Wortsman et al., CVPR 2022,
   https://arxiv.org/abs/2109.01903).
4. Scores are calibrated and thresholds chosen on the validation split; both are saved in the configuration.
5. The names that the checkpoint knew are added to the vocabulary again, with their classifiers and calibration.

Decisions:
- Only the disorders of the data are trained, whereas the result also scores the others. Their scores stay as the
  checkpoint gave them: the data does not tell how common they are.
- lora and full use the trainer of `radfm train diagnosis`, its steps and its checkpoints.
- Without a given share of the new weights, it is the smallest that keeps 95% of the best gain in validation AUC.
- Features, the linear probe and the trainer's checkpoints are kept in `output/training`: the same command resumes a
  killed run, and after the end it returns the recipe.
"""

import copy
import hashlib
import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EarlyStoppingCallback, set_seed

from radfm.configuration_radfm import LabelKind
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling
from radfm.data_prep.batches.sampling import StepSampler
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.stored_cases import patient_of
from radfm.data_prep.tables import write_text
from radfm.eval import calibration
from radfm.losses_radfm import loss_function
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.recipes_radfm import FINETUNE_RECIPE as RECIPE
from radfm.train import probe
from radfm.train.adapters import with_adapters
from radfm.train.checkpoint_vocabulary import CheckpointVocabulary, zero_shot_model
from radfm.train.config import without_folders
from radfm.train.diagnosis import embed_histories
from radfm.train.diagnosis_model import set_trainable_text_layers
from radfm.train.diagnosis_trainer import DiagnosisTrainer, TrainerSettings
from radfm.train.feature_extraction import extract_features
from radfm.train.finetune_config import FineTuning, label_kind_of, resolved
from radfm.train.finetune_figures import validation_auc, validation_figures
from radfm.train.lineage import effort, lineage
from radfm.train.shots import few_shots
from radfm.train.training_checkpoints import result_checkpoint
from radfm.train.wise_ft import SHARES, interpolated, smallest_share

WORK = "training"  # folder in `output` of what a killed run resumes from; it can be deleted after the end
MAX_PROBE_CASES = 20_000
LEARNING_RATE = {"lora": 1e-3, "full": 1e-4}
EPOCHS, MIN_STEPS, MAX_STEPS, VALIDATIONS = 10, 200, 20_000, 10


def finetune(config: FineTuning) -> dict[str, Any]:
    """Fine-tunes, resuming where a killed run stopped; the model is in `output`. Returns the recipe.

    Of several processes the first one validates and saves at the end; the others return an empty recipe.

    Raises:
        ValueError: The configuration, data set or checkpoint is wrong, the loss is not finite, or memory ran out.
        FileNotFoundError: There is no such data set or checkpoint.
        OSError: Something could not be saved.
    """
    began = time.monotonic()
    set_seed(config.seed)
    cases, validation_cases = map(config.data.load, ("train", "validation"))
    rows = few_shots(cases, config.data.shots, config.seed)
    known, start, processor = zero_shot_model(config.model, cases.vocabulary)
    stored = CaseDataset(cases, processor, rows=rows)
    validation = CaseDataset(validation_cases, processor)
    _refuse_uniform_labels(config, stored, validation)
    label_kind = label_kind_of(config, stored.label_matrix, validation.label_matrix)
    config = resolved(config, stored, label_kind, start.head.default_loss)
    _refuse_combinations(config, start)
    with redirect_stdout(sys.stderr):
        return _Run(config, known, start, processor, stored, validation, label_kind, began).result()


class _Run:
    """One fine-tuning: its data, the zero-shot model that it starts from, and the steps to its result."""

    def __init__(
        self,
        config: FineTuning,
        known: CheckpointVocabulary,
        start: RadFMForDiagnosis,
        processor: RadFMProcessor,
        stored: CaseDataset,
        validation: CaseDataset,
        label_kind: LabelKind,
        began: float,
    ):
        self.config, self.known, self.start, self.processor = config, known, start, processor
        self.validation, self.label_kind, self.began = validation, label_kind, began
        self.output = Path(config.output)
        self.work = self.output / WORK
        self.resumed = (self.work / "run.json").exists()  # written by the main process alone
        histories = None
        if processor.use_history and config.model.text_layers == 0:
            histories = embed_histories(start, processor, stored.cases.rows)
            validation.history_embeds = embed_histories(start, processor, validation.cases.rows)
        augmentation = None if config.method == "linear" else config.augmentation
        sampling = Sampling(augmentation, slices_per_scan=config.sampling.slices_per_scan, seed=config.seed)
        masks = config.method != "linear" and config.objectives.weight("patch") > 0
        self.data = CaseDataset(stored.cases, processor, sampling, stored.rows, histories, masks=masks)
        self.data.skipped = stored.skipped
        self.labels, self.truth = (torch.from_numpy(part.label_matrix) for part in (self.data, validation))
        self.key = {
            "config": _recorded(config),
            "data": stored.cases.record["fingerprint"],
            "weights": _weights_sha256(start),
        }
        if synthetic := stored.cases.parts[1:]:
            self.key["synthetic"] = [part.fingerprint for part in synthetic]

    def result(self) -> dict[str, Any]:
        if (recipe := self._finished_recipe()) is not None:
            return recipe
        zero_shot_features = self._features("validation")
        trained, offsets, fit = self._probed(zero_shot_features)
        if self.config.method != "linear":
            trained = self._trained(trained, offsets)
            if not _is_main_process():
                return {}
        share, aucs, logits = self._best_share(trained, offsets, zero_shot_features)
        model = interpolated(self.start, trained, share)
        own_thresholds = self._calibrate_and_save(model, logits, share * offsets)
        recipe = {
            "key": self.key,
            "data": data_summary(self.data.cases, self.data.rows),
            "started_from": lineage(model=self.config.model.checkpoint),
            "effort": effort(self.began, self.resumed, int(os.environ.get("WORLD_SIZE", 1))),
            "method": self.config.method,
            "task": "multilabel" if self.label_kind == LabelKind.MULTI_LABEL else "multiclass",
            "normal_is_a_class": self.label_kind == LabelKind.AT_MOST_ONE,
            "cases": {"train": len(self.data), "validation": len(self.validation)},
            "disorders": {"data": self.truth.shape[1], "vocabulary": len(model.config.disorders)},
            "before": self._figures(_logits(self.start, zero_shot_features), calibrated=None),
            "after": self._figures(logits, calibrated=self._cross_calibrated(logits)),
            "interpolation": {"share": share, "auc": aucs},
            "thresholds_of_their_own": own_thresholds,
            "left_out": dict(self.data.skipped + self.validation.skipped),
            **fit,
            "versions": {name: version(name) for name in ("radfm", "torch", "transformers", "timm", "peft")},
        }
        write_text(self.output / RECIPE, json.dumps(recipe, indent=1) + "\n")
        return recipe

    def _finished_recipe(self) -> dict[str, Any] | None:
        """The recipe of this run, if it has ended. Raises: ValueError where the folder holds another run."""
        for file in (self.output / RECIPE, self.work / "run.json"):
            if file.exists():
                content = json.loads(file.read_text(encoding="utf-8"))
                if (content["key"] if file.name == RECIPE else content) != self.key:
                    raise ValueError(f"{self.output} holds another run: choose another --output, or delete it")
                if file.name == RECIPE:
                    return content
        self.work.mkdir(parents=True, exist_ok=True)
        if _is_main_process():
            write_text(self.work / "run.json", json.dumps(self.key, indent=1) + "\n")
        return None

    def _probed(self, zero_shot_features: probe.TokenFeatures) -> tuple[RadFMForDiagnosis, Tensor, dict]:
        """A model with a fitted linear map, the offsets (disorders,) of its logits, and how it was regularised."""
        model, file = copy.deepcopy(self.start), self.work / "probe.safetensors"
        too_many = self.config.method != "linear" and len(self.data) > MAX_PROBE_CASES
        if self.config.model.text_layers or too_many:
            return model, torch.zeros(self.truth.shape[1]), {}
        if not file.exists():
            best, strength, aucs = probe.fit(
                self._features("train"),
                self.labels,
                probe.LinearMap(*self.start.head.linear()),
                loss_function(self.config.objectives.loss),
                lambda linear: self._auc(_pooled(self.start, zero_shot_features, linear)),
                self.start.pool,
            )
            tensors = {"weight": best.weight, "bias": best.bias, "strengths": torch.tensor(list(aucs.items()))}
            _save_atomically(file, tensors | {"strength": torch.tensor(strength)})
        fitted = load_file(file)
        auc_of = {f"{strength:g}": auc for strength, auc in fitted["strengths"].tolist()}
        offsets = model.head.set_linear(fitted["weight"], fitted["bias"])
        return model, offsets, {"pull": {"strength": fitted["strength"].item(), "auc": auc_of}}

    def _trained(self, probed: RadFMForDiagnosis, offsets: Tensor) -> RadFMForDiagnosis:
        """The probed model after training by method lora or full."""
        set_seed(self.config.seed)  # whatever was random before depends on the files that exist already
        model, lora = copy.deepcopy(probed), self.config.method == "lora"
        if lora:
            with_adapters(model, self.config.rank)
        set_trainable_text_layers(model, self.config.model.text_layers)
        if offsets.any():
            model.config.loss = {"logit_offsets": offsets.tolist()}
        trainer = DiagnosisTrainer(
            self._trainer_settings(),
            model,
            self.processor,
            self.data,
            self.validation,
            scores=lambda logits: calibration.log_odds(logits + offsets, self.label_kind),
        )
        if trainer.args.eval_strategy != "no":
            trainer.add_callback(EarlyStoppingCallback(self.config.patience))
        trainer.train_or_resume()
        trained = copy.deepcopy(probed)
        adapters = with_adapters(trained, self.config.rank) if lora else None
        trained.load_state_dict(load_file(result_checkpoint(trainer.state, self.work) / "model.safetensors"))
        return trained if adapters is None else adapters.merge_and_unload()

    def _trainer_settings(self) -> TrainerSettings:
        config, given, sampling = self.config, self.config.training, self.config.sampling
        counts, labels = self.data.slice_counts, self.data.labels
        epoch = len(StepSampler(counts, labels, sampling.slices_per_step, sampling.by_disorder, config.seed))
        steps = given.get("max_steps", min(max(EPOCHS * epoch, MIN_STEPS), MAX_STEPS))
        if "num_train_epochs" in given:
            steps = max(round(given["num_train_epochs"] * epoch), 1)
        interval = given.get("eval_steps", max(steps // VALIDATIONS, 1))
        defaults = {
            "learning_rate": LEARNING_RATE[config.method],
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.05,
            "max_steps": steps,
            "warmup_steps": steps // 20,
            "eval_steps": interval,
            "save_steps": interval,
            "logging_steps": max(interval // 5, 1),
            "restore_callback_states_from_checkpoint": True,
        }
        return TrainerSettings(
            output=str(self.work),
            seed=config.seed,
            objectives=config.objectives,
            sampling=sampling,
            arguments=defaults | given,
            text_layers=config.model.text_layers,
            freeze_batch_norm=True,
        )

    def _best_share(
        self, trained: RadFMForDiagnosis, offsets: Tensor, zero_shot_features: probe.TokenFeatures
    ) -> tuple[float, dict[str, float], Tensor]:
        """The share of the new weights, the AUC of each candidate, and the validation logits of the chosen one."""
        given = self.config.interpolate
        logits, aucs = {}, {}
        for share in SHARES if given == "auto" else (0.0, float(given)):
            model = interpolated(self.start, trained, share)
            same_features = self.config.method == "linear" or share == 0
            features = zero_shot_features if same_features else self._extracted(model, self.validation)
            logits[share] = _logits(model, features) + share * offsets
            aucs[share] = self._auc(logits[share])
        share = smallest_share(aucs) if given == "auto" else float(given)
        return share, {f"{share:g}": auc for share, auc in aucs.items()}, logits[share]

    def _calibrate_and_save(self, model: RadFMForDiagnosis, logits: Tensor, offsets: Tensor) -> int:
        """Returns how many disorders have a threshold of their own."""
        slopes, shifts = calibration.calibrate(logits, self.truth, self.label_kind)
        odds = calibration.log_odds(logits * slopes + shifts, self.label_kind)
        thresholds, own = calibration.thresholds(odds.sigmoid().numpy(), self.truth.numpy())
        fitted = {"slopes": slopes.tolist(), "shifts": (shifts + slopes * offsets).tolist()}
        self.known.add_to(model, self.processor, self.config, fitted, thresholds, self.label_kind)
        model.config.trained = True
        model.save_pretrained(self.output)
        self.processor.save_pretrained(self.output)
        return sum(own)

    def _features(self, split: str) -> probe.TokenFeatures:
        """Those of the zero-shot model, stored in a file."""
        file = self.work / f"{split}.safetensors"
        if not file.exists():
            data = self.data if split == "train" else self.validation
            _save_atomically(file, self._extracted(self.start, data)._asdict())
        return probe.TokenFeatures(**load_file(file))

    def _extracted(self, model: RadFMForDiagnosis, data: CaseDataset) -> probe.TokenFeatures:
        arguments = self.config.training
        return extract_features(
            model,
            data,
            self.config.sampling.slices_per_step,
            workers=arguments.get("dataloader_num_workers", 0),
            quiet=arguments.get("disable_tqdm", False) or not _is_main_process(),
        )

    def _auc(self, logits: Tensor) -> float:
        return validation_auc(logits, self.truth, self.label_kind, self.data.label_counts)["auc"]

    def _figures(self, logits: Tensor, calibrated: Tensor | None) -> dict[str, float]:
        return validation_figures(logits, calibrated, self.truth, self.label_kind, self.data.label_counts)

    def _cross_calibrated(self, logits: Tensor) -> Tensor:
        patients = [patient_of(self.validation.cases.rows[row]) for row in self.validation.rows]
        return calibration.calibrated_by_others(logits, self.truth, self.label_kind, patients)


def _refuse_uniform_labels(config: FineTuning, data: CaseDataset, validation: CaseDataset) -> None:
    for split, labels in (("training", data.label_matrix), ("validation", validation.label_matrix)):
        if not len(labels):
            raise ValueError(
                f"{config.data.path} has no labelled {split} cases: prepare it again, with other --fractions"
            )
        if (labels == labels[0]).all():
            raise ValueError(
                f"all {len(labels):,} {split} cases of {config.data.path} have the same labels: there is one class"
            )


def _refuse_combinations(config: FineTuning, start: RadFMForDiagnosis) -> None:
    if config.method == "linear" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("a linear probe is fitted by one process: start it without torchrun, or set method=lora")


def _recorded(config: FineTuning) -> dict[str, Any]:
    """The configuration without what may differ when a killed run is resumed."""
    recorded = without_folders(asdict(config))
    del recorded["output"], recorded["training"], recorded["data"]["path"], recorded["model"]["checkpoint"]
    return recorded


def _weights_sha256(model: RadFMForDiagnosis) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _save_atomically(file: Path, tensors: dict[str, Tensor]) -> None:
    draft = file.with_suffix(f".part{os.environ.get('RANK', 0)}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
    os.replace(draft, file)


@torch.no_grad()
def _logits(model: RadFMForDiagnosis, features: probe.TokenFeatures) -> Tensor:
    return _pooled(model, features, probe.LinearMap(*model.head.linear()))


@torch.no_grad()
def _pooled(model: RadFMForDiagnosis, features: probe.TokenFeatures, linear: probe.LinearMap) -> Tensor:
    return model.pool(linear(features.rows), features.counts.tolist())


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
