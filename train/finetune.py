"""Fit a checkpoint to somebody's own cases, and keep what it knew: `radfm finetune DATA --model DIR --output DIR`.

1. The checkpoint takes the vocabulary of the data: with a text head the text encoder places new names, with an mlp head
   they get rows of zeros. This is the zero-shot model, measured first.
2. It learns by one of three methods:

   | method | what learns | default for | learning rate | steps |
   |---|---|---|---|---|
   | linear | the classifiers alone, see `radfm.train.probe` | fewer than 200 cases | | to convergence |
   | lora | low-rank changes to the image side's layers (peft), scale and bias | fewer than 10,000 | 1e-3 | 10 epochs |
   | full | the image side, scale and bias | more | 1e-4 | 10 epochs |

   where 10 epochs are at least 200 steps and at most 20,000, measured 10 times, and ended early when `patience`
   measures in a row bring nothing. lora and full go on from a linear probe (Kumar et al., Fine-tuning can distort
   pretrained features, ICLR 2022, https://arxiv.org/abs/2202.10054), up to 20,000 cases or where the text learns.
3. Its weights are mixed with those of the zero-shot model (WiSE-FT, Wortsman et al., CVPR 2022,
   https://arxiv.org/abs/2109.01903).
4. Scores are calibrated and thresholds chosen on the validation split; both are saved in the configuration.
5. The names that the checkpoint knew join the vocabulary again, with the classifiers and calibration they had.

Decisions:
- Only the disorders of the data are learned, whereas the result names those that the checkpoint knew, too. Their scores
  stay as the checkpoint gave them: how common they are at this hospital, nobody said.
- lora and full train with `radfm.train.diagnosis`'s trainer, steps and checkpoints. Batch normalisation keeps its
  statistics, which a few cases would spoil and which do not mix.
- A share of the new weights that is not given is the smallest that keeps 95% of the best gain in validation AUC.
- Where no case has two disorders they exclude one another: the loss is a softmax, with normal cases as one class more.
- What a linear probe looks at is computed once, and kept in `output/training` with the checkpoints of the trainer: the
  same command goes on where it was killed, and after it has ended says again what it found.
"""

import copy
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import EarlyStoppingCallback, set_seed

from radfm.configuration_radfm import LabelKind
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling, step_loader
from radfm.data_prep.batches.sampling import StepSampler, steps_in_order
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.data_prep.tables import write_text
from radfm.eval import calibration
from radfm.eval.metrics import macro_auc
from radfm.losses_radfm import add_no_disorder_logit, loss_function
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.recipes_radfm import FINETUNE_RECIPE as RECIPE
from radfm.train import probe
from radfm.train.adapters import with_adapters
from radfm.train.class_weights import class_weights
from radfm.train.config import changed, filled, without_folders
from radfm.train.diagnosis import DiagnosisTrainer, DiagnosisTraining, embed_histories, last_checkpoint
from radfm.train.diagnosis_model import learn_text
from radfm.train.known import Known, starting_point
from radfm.train.lineage import effort, lineage
from radfm.train.shots import few_shots
from radfm.train.wise_ft import SHARES, mixed_weights, smallest_share

WORK = "training"  # in output: checkpoints and features, to go on from; can be deleted in the end
METHODS = ("auto", "linear", "lora", "full")
LINEAR_BELOW, LORA_BELOW, PROBED_UP_TO = 200, 10_000, 20_000  # training cases
LEARNING_RATE = {"lora": 1e-3, "full": 1e-4}
EPOCHS, LEAST_STEPS, MOST_STEPS, MEASURES = 10, 200, 20_000, 10

_NOT_OF_THE_RUN = ("data", "model", "output", "training")  # may differ when a killed run goes on
_NOT_SEEN = ("case_rows", "labels", "key_slices")


@dataclass
class FineTuning(DiagnosisTraining):
    """The keys of fine-tuning, and those of `radfm.train.diagnosis.DiagnosisTraining` that go with a checkpoint.

    `head`, `level` and `history` are those of the checkpoint, and so is `max_slices` unless given.

    Attributes:
        method: "linear", "lora", "full", or "auto": by the number of training cases.
        task: "multiclass" (a case has at most one disorder), "multilabel", or "auto": what the data is.
        interpolate: Share of the new weights, 0 to 1, or "auto": by validation.
        class_weights: Power of the inverse frequency by which a class counts; 0: all cases alike, 1: all classes alike.
        keep_names: Whether the vocabulary keeps the names that the checkpoint knew and the data does not have.
        patience: Measures in a row without a gain after which training ends.
        rank: Of the low-rank changes.
    """

    output: str = "runs/finetuned"
    method: Literal["auto", "linear", "lora", "full"] = "auto"
    task: Literal["auto", "multiclass", "multilabel"] = "auto"
    interpolate: float | Literal["auto"] = "auto"
    class_weights: float = 0.5
    keep_names: bool = True
    patience: int = 3
    rank: int = 8
    freeze_batch_norm: bool = True
    augmentation: dict = field(default_factory=lambda: {"affine": 0.3, "noise": 0.2, "contrast": 0.2})

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("method", METHODS), ("task", ("auto", "multiclass", "multilabel"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {', '.join(choices[:-1])} or {choices[-1]}, not {getattr(self, name)!r}")
        given = self.interpolate
        if given != "auto" and not (isinstance(given, int | float) and 0 <= given <= 1):
            raise ValueError(f"interpolate is auto or a share from 0 to 1, not {given!r}")
        if self.class_weights < 0:
            raise ValueError(f"class_weights is a power of at least 0, not {self.class_weights}")
        if self.text_layers and self.method != "full":
            raise ValueError("text_layers: the text encoder learns with method=full only")
        if self.frozen_tower:
            raise ValueError("frozen_tower: fine-tuning that leaves the tower as it is goes by method=linear")
        for name in ("text_encoder", "tower_weights", "text_whitening", "architecture"):
            if getattr(self, name):
                raise ValueError(f"{name} is for a new model, fine-tuning goes on from a checkpoint: leave it out")


def settings(given: dict[str, Any], changes: Sequence[str] = ()) -> FineTuning:
    """What was given, and changes such as "patience=5"; see `radfm.train.config`."""
    options = [f"{key}={value}" for key, value in given.items() if key == "interpolate"]  # 1e-1 is a number there, too
    return filled(FineTuning, changed(dict(given), [*options, *changes]), "finetune")


def finetune(config: FineTuning) -> dict[str, Any]:
    """Fine-tunes, going on where a killed run stopped; the model is in `output`. Returns the recipe.

    Of several processes the first measures and saves in the end; the others return an empty recipe.

    Raises:
        ValueError: A wrong setting, data set or checkpoint; a loss that is no number; memory that ran out.
        FileNotFoundError: There is no such data set or checkpoint.
        OSError: Something could not be saved.
    """
    set_seed(config.seed)
    cases, validation = (load(config.data, split, True, config.withheld) for split in ("train", "validation"))
    chosen = few_shots(cases, config.shots, config.seed)
    labels = _labels(cases)[chosen]
    _refuse_what_teaches_nothing(config, labels, _labels(validation))
    known, model, processor = starting_point(config, cases)
    config = _settled(config, labels, _labels(validation), model, processor)
    with redirect_stdout(sys.stderr):
        run = _Run(config, known, model, processor, cases, chosen, validation)
        return run.result()


class _Run:
    """One fine-tuning: its data, the zero-shot model that it starts from, and the steps to its result."""

    def __init__(self, config: FineTuning, known: Known, start, processor, cases, chosen, validation):
        self.began = time.monotonic()
        self.config, self.known, self.start, self.processor = config, known, start, processor
        self.output = Path(config.output)
        self.work = self.output / WORK
        self.resumed = (self.work / "run.json").exists()  # which the main process alone writes
        told = config.history and config.text_layers == 0
        histories = [embed_histories(start, processor, part.rows) if told else None for part in (cases, validation)]
        varied = None if config.method == "linear" else filled(Augmentation, config.augmentation, "augmentation")
        sampling = Sampling(varied, 1 if config.level == "scan" else None, config.slices_per_scan, config.seed)
        self.data = CaseDataset(cases, processor, sampling, chosen, histories[0])
        self.validation = CaseDataset(validation, processor, history_embeds=histories[1])
        self.labels, self.truth = (
            torch.from_numpy(_labels(part.cases, part.rows)) for part in (self.data, self.validation)
        )
        self.label_kind = _label_kind(config, self.labels, self.truth)
        self.key = {
            "config": {k: v for k, v in without_folders(asdict(config)).items() if k not in _NOT_OF_THE_RUN},
            "data": cases.record["fingerprint"],
            "weights": _fingerprint(start),
        }

    def result(self) -> dict[str, Any]:
        if (recipe := self._finished_or_mine()) is not None:
            return recipe
        before = self._look("validation", self.start)
        learned, lacking, how = self._probe(before)
        if self.config.method != "linear":
            learned = self._train(learned, lacking)
            if not _is_main_process():
                return {}
        share, tried, logits = self._mix(learned, lacking, before)
        mixed = mixed_weights(self.start, learned, share)
        slopes, shifts = calibration.calibrate(logits, self.truth, self.label_kind)
        odds = calibration.log_odds(logits * slopes + shifts, self.label_kind)
        probabilities, truth = odds.sigmoid().numpy(), self.truth.numpy()
        thresholds, own = calibration.thresholds(probabilities, truth)
        shifts = shifts + slopes * share * lacking
        self._save(mixed, slopes.tolist(), shifts.tolist(), thresholds)
        by_others = calibration.calibrated_by_others(logits, self.truth, self.label_kind, self._patients())
        recipe = {
            "key": self.key,
            "data": data_summary(self.data.cases, self.data.rows),
            "started_from": lineage(model=self.config.model),
            "effort": effort(self.began, self.resumed, int(os.environ.get("WORLD_SIZE", 1))),
            "method": self.config.method,
            "task": "multilabel" if self.label_kind == LabelKind.MULTI_LABEL else "multiclass",
            "normal_is_a_class": self.label_kind == LabelKind.AT_MOST_ONE,
            "cases": {"train": len(self.data), "validation": len(self.validation)},
            "disorders": {"data": self.truth.shape[1], "vocabulary": len(mixed.config.disorders)},
            "before": self._figures(self._logits(self.start, before), None),
            "after": self._figures(logits, by_others),
            "interpolation": {"share": share, "auc": tried},
            "thresholds_of_their_own": sum(own),
            "left_out": dict(self.data.skipped + self.validation.skipped),
            **how,
            "versions": {name: version(name) for name in ("radfm", "torch", "transformers", "timm", "peft")},
        }
        write_text(self.output / RECIPE, json.dumps(recipe, indent=1) + "\n")
        return recipe

    def _finished_or_mine(self) -> dict | None:
        """The recipe of this very run, if it has ended. Raises: ValueError where another one is in the folder."""
        for file in (self.output / RECIPE, self.work / "run.json"):
            if file.exists():
                found = json.loads(file.read_text(encoding="utf-8"))
                if (found["key"] if file.name == RECIPE else found) != self.key:
                    raise ValueError(f"{self.output} holds another run: choose another --output, or delete it")
                if file.name == RECIPE:
                    return found
        self.work.mkdir(parents=True, exist_ok=True)
        if _is_main_process():
            write_text(self.work / "run.json", json.dumps(self.key, indent=1) + "\n")
        return None

    def _probe(self, before: Tensor) -> tuple[RadFMForDiagnosis, Tensor, dict]:
        """A model with fitted classifiers, what its logits lack (disorders,), and how strongly they were held back."""
        learned, file = copy.deepcopy(self.start), self.work / "probe.safetensors"
        if self.config.text_layers or (self.config.method != "linear" and len(self.data) > PROBED_UP_TO):
            return learned, torch.zeros(self.truth.shape[1]), {}
        if not file.exists():
            features, loss = self._look("train", self.start), self._loss()
            head, strength, found = probe.fit(
                features,
                self.labels,
                probe.LinearMap(*self.start.head.linear()),
                loss,
                lambda head: self._auc(head(before)),
            )
            fitted = {"weight": head.weight, "bias": head.bias, "strengths": torch.tensor(list(found.items()))}
            self._keep(file, fitted | {"strength": torch.tensor(strength)})
        fitted = load_file(file)
        aucs = {f"{strength:g}": auc for strength, auc in fitted["strengths"].tolist()}
        lacking = learned.head.set_linear(fitted["weight"], fitted["bias"])
        return learned, lacking, {"pull": {"strength": fitted["strength"].item(), "auc": aucs}}

    def _train(self, probed: RadFMForDiagnosis, lacking: Tensor) -> RadFMForDiagnosis:
        """The probed model, further trained as the method has it."""
        set_seed(self.config.seed)  # whatever was drawn before, which depends on what files are there already
        model = copy.deepcopy(probed)
        if self.config.method == "lora":
            with_adapters(model, self.config.rank)
        learn_text(model, self.config.text_layers)
        config = replace(self.config, output=str(self.work), training=self._training())
        trainer = _Trainer(config, model, self.processor, self.data, self.validation, self.label_kind, lacking)
        trainer.remove_unfinished_checkpoints()
        last = last_checkpoint(self.work)
        trainer.say_what_is_learned(last)
        trainer.train(resume_from_checkpoint=last and str(last))
        best = trainer.state.best_model_checkpoint
        chosen = self.work / Path(best).name if best else last_checkpoint(self.work)
        if chosen is None:
            raise ValueError(f"{self.work} holds no checkpoint to end with: set training.save_strategy=steps")
        learned = copy.deepcopy(probed)
        adapters = with_adapters(learned, self.config.rank) if self.config.method == "lora" else None
        learned.load_state_dict(load_file(chosen / "model.safetensors"))
        return learned if adapters is None else adapters.merge_and_unload()

    def _training(self) -> dict[str, Any]:
        """The trainer's arguments: what was given, and else what suits the method and the number of cases."""
        config, given = self.config, self.config.training
        counts = self.data.slice_counts
        epoch = len(StepSampler(counts, self.data.labels, config.slices_per_step, config.by_disorder, config.seed))
        steps = given.get("max_steps", min(max(EPOCHS * epoch, LEAST_STEPS), MOST_STEPS))
        if "num_train_epochs" in given:
            steps = max(round(given["num_train_epochs"] * epoch), 1)
        every = given.get("eval_steps", max(steps // MEASURES, 1))
        return {
            "learning_rate": LEARNING_RATE[config.method],
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.05,
            "max_steps": -1 if "num_train_epochs" in given else steps,
            "warmup_steps": steps // 20,
            "eval_steps": every,
            "save_steps": every,
            "logging_steps": max(every // 5, 1),
            "restore_callback_states_from_checkpoint": True,
        } | given

    def _mix(self, learned, lacking: Tensor, before: Tensor) -> tuple[float, dict[str, float], Tensor]:
        """The share of the new weights, the AUC of each that was tried, and the mixed model's validation logits."""
        wanted = self.config.interpolate
        tried, aucs = {}, {}
        for share in SHARES if wanted == "auto" else (0.0, float(wanted)):
            mixed = mixed_weights(self.start, learned, share)
            same = self.config.method == "linear" or share == 0
            tried[share] = self._logits(mixed, before if same else self._look(None, mixed)) + share * lacking
            aucs[share] = self._auc(tried[share])
        share = smallest_share(aucs) if wanted == "auto" else float(wanted)
        return share, {f"{s:g}": auc for s, auc in aucs.items()}, tried[share]

    def _save(self, model: RadFMForDiagnosis, slopes: list, shifts: list, thresholds: list) -> None:
        self.known.join(model, self.processor, self.config, slopes, shifts, thresholds, self.label_kind)
        model.config.trained = True
        model.save_pretrained(self.output)
        self.processor.save_pretrained(self.output)

    def _look(self, split: str | None, model: RadFMForDiagnosis) -> Tensor:
        """(cases, width) what the head reads of a split; of the zero-shot model kept in a file."""
        data = self.data if split == "train" else self.validation
        file = self.work / f"{split}.safetensors"
        if split is not None and file.exists():
            return load_file(file)["features"]
        found = look(model, data.as_stored(), self.config, f"Looking at {len(data):,} cases")
        if split is not None:
            self._keep(file, {"features": found})
        return found

    def _keep(self, file: Path, tensors: dict[str, Tensor]) -> None:
        part = file.with_suffix(f".part{os.environ.get('RANK', 0)}")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        os.replace(part, file)

    @torch.no_grad()
    def _logits(self, model: RadFMForDiagnosis, features: Tensor) -> Tensor:
        return probe.LinearMap(*model.head.linear())(features)

    def _auc(self, logits: Tensor) -> float:
        odds = calibration.log_odds(logits, self.label_kind).numpy()
        return macro_auc(odds, self.truth.numpy(), self.data.label_counts)["auc"]

    def _figures(self, logits: Tensor, calibrated: Tensor | None) -> dict[str, float]:
        """Of the validation split; what depends on calibration by the fit to other cases, where there is one."""
        truth = self.truth.numpy()
        odds = calibration.log_odds(logits, self.label_kind).numpy()
        fair = logits if calibrated is None else calibrated
        found = macro_auc(odds, truth, self.data.label_counts)
        if self.label_kind != LabelKind.MULTI_LABEL:
            rivals = add_no_disorder_logit(fair, self.label_kind)
            classes = np.where(truth.any(1), truth.argmax(1), truth.shape[1])
            right = rivals.argmax(1).numpy() == classes
            found["accuracy"] = float(right.mean())
            found["balanced_accuracy"] = float(np.mean([right[classes == c].mean() for c in np.unique(classes)]))
        found["log_loss"] = float(calibration.log_loss(fair, self.truth, self.label_kind))
        probabilities = calibration.log_odds(fair, self.label_kind).sigmoid().numpy()
        return found | {"calibration_error": calibration.calibration_error(probabilities, truth)}

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return loss_function(self.config.loss)

    def _patients(self) -> list[str]:
        return [patient_of(self.validation.cases.rows[row]) for row in self.validation.rows]


class _Trainer(DiagnosisTrainer):
    """That of diagnosis, ending early, with what a probe's logits lack, and exclusive disorders measured as such."""

    def __init__(self, config: FineTuning, model, processor, data, validation, label_kind: LabelKind, lacking: Tensor):
        super().__init__(config, model, processor, data, validation)
        self.label_kind, self.lacking = label_kind, lacking
        if lacking.any():
            model.config.loss = model.config.loss | {"logit_offsets": lacking.tolist()}
        if self.args.eval_strategy != "no":
            self.add_callback(EarlyStoppingCallback(config.patience))

    def _scores(self, data: CaseDataset) -> np.ndarray:
        return calibration.log_odds(torch.from_numpy(super()._scores(data)) + self.lacking, self.label_kind).numpy()


@torch.no_grad()
def look(model: RadFMForDiagnosis, data: CaseDataset, config: FineTuning, what: str) -> Tensor:
    """(cases, width) what is linear in the model's head reads, of every case as it is stored."""
    model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu").eval()
    loader = step_loader(
        data,
        steps_in_order(data.slice_counts, config.slices_per_step),
        config.training.get("dataloader_num_workers", 0),
    )
    found, silent = [], config.training.get("disable_tqdm", False) or not _is_main_process()
    for batch in tqdm(loader, desc=what, unit="step", leave=False, disable=silent):
        seen = {key: value.to(model.device) for key, value in batch.items() if key not in _NOT_SEEN}
        features = model.head.features(model.radfm(**seen).case_embeds).float().cpu()
        found += zip(batch["case_rows"].tolist(), features, strict=True)
    model.to("cpu")
    return torch.stack([features for _, features in sorted(found, key=lambda pair: pair[0])])


def _settled(config: FineTuning, labels: np.ndarray, truth: np.ndarray, model, processor) -> FineTuning:
    """What the checkpoint and the data decide."""
    method = config.method
    if method == "auto":
        method = "linear" if len(labels) < LINEAR_BELOW else "lora" if len(labels) < LORA_BELOW else "full"
    if method == "linear" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("a linear probe is fitted by one process: start it without torchrun, or set method=lora")
    label_kind = _label_kind(config, labels, truth)
    weights = class_weights(labels, label_kind, config.class_weights)
    if label_kind == LabelKind.MULTI_LABEL:
        loss = {"name": model.head.default_loss, "positive_weight": weights}
    else:
        loss = {"name": "cross_entropy", "label_kind": str(label_kind), "class_weights": weights}
    if config.max_slices is not None:
        processor.image_processor.max_slices = config.max_slices
    return replace(
        config,
        method=method,
        head=model.config.head,
        level="case" if model.config.case_config.num_hidden_layers else "scan",
        history=processor.use_history,
        max_slices=processor.image_processor.max_slices,
        loss=config.loss if config.loss.get("name", loss["name"]) != loss["name"] else loss | config.loss,
    )


def _label_kind(config: FineTuning, *labels) -> LabelKind:
    """How many disorders a case can have."""
    most, least = max(int(rows.sum(1).max()) for rows in labels), min(int(rows.sum(1).min()) for rows in labels)
    if config.task == "multiclass" and most > 1:
        raise ValueError(f"task=multiclass, but there are cases of {config.data} with {most} disorders: set multilabel")
    if config.task == "multilabel" or most > 1:
        return LabelKind.MULTI_LABEL
    return LabelKind.AT_MOST_ONE if least == 0 else LabelKind.EXACTLY_ONE


def _refuse_what_teaches_nothing(config: FineTuning, labels: np.ndarray, truth: np.ndarray) -> None:
    for split, rows in (("training", labels), ("validation", truth)):
        if not len(rows):
            raise ValueError(f"{config.data} has no labelled {split} cases: prepare it again, with other --fractions")
        if (rows == rows[0]).all():
            raise ValueError(
                f"all {len(rows):,} {split} cases of {config.data} have the same labels: there is one class"
            )


def _labels(cases: StoredCases, rows: Sequence[int] | None = None) -> np.ndarray:
    """(cases, disorders) float32."""
    wanted = range(len(cases)) if rows is None else rows
    return np.stack([cases.labels(row) for row in wanted]) if len(wanted) else np.zeros((0, len(cases.vocabulary)))


def _fingerprint(model: RadFMForDiagnosis) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
