"""`pipeline("zero-shot-diagnosis")`: a case in, disorders with ICD-10-CM codes and scores out, best first.

Decisions:
- A name of the checkpoint's vocabulary is scored with the embedding saved there; any other is embedded once and kept.
- Where the checkpoint was calibrated (`radfm finetune`), the scores of its own vocabulary are probabilities, and a name
  with a threshold says whether it is reached. No score depends on what else was asked for.
- What a case's scans and slices counted comes on demand (`return_attentions`): it is the model's, not a label's.
- Where the checkpoint remembers its training data (`radfm calibrate`), a case unlike it is warned of, or refused.
- A checkpoint that learned from drawn patients alone says so (`synthetic_only`), by the recipe beside its weights.
"""

import json
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import torch
from transformers.pipelines import Pipeline
from transformers.utils import cached_file

from .reference_radfm import TrainingReference, ood_features

try:
    from radfm.knowledge.disorders import codes
    from radfm.readers.read_case import read_case
except ImportError:  # a checkpoint's own code, on a machine without radfm
    read_case = codes = None

SYNTHETIC_ONLY = "This model was trained on synthetic patients only. Its answers about a real study mean nothing."
_RECIPES = ("radfm_finetune.json", "radfm_diagnosis.json")  # the newest first


class ZeroShotDiagnosisPipeline(Pipeline):
    r"""
    Scores a case against disorder names.

    ```python
    import radfm
    from transformers import pipeline

    diagnose = pipeline("zero-shot-diagnosis", model="path/to/checkpoint")
    diagnose("study/", candidate_labels=["Pneumothorax", "Rib fracture"])
    # [{"label": "Pneumothorax", "icd10cm": ["J93.9"], "score": 0.91}, ...]
    diagnose(radfm.read_case("study/"), top_k=10)  # the checkpoint's own vocabulary
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._embeds: dict[str, torch.Tensor] = {}  # prompt -> (d,)
        self._asked: tuple[list[str], torch.Tensor] | None = (
            None  # the last prompts, and their embeddings as one tensor
        )
        self._vocabulary: list[str] | None = None  # what `_rows` was made of

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: a `Case`, or a file or folder that `read_case` reads; or a list of these, each a case of its own.
            candidate_labels: disorder names; unset, the checkpoint's vocabulary.
            hypothesis_template: what is embedded for a name that is not in the vocabulary, "{}" standing for it.
            top_k: how many are wanted; unset, all candidate labels, or 10 of the vocabulary.
            batch_size: cases that go through the model together, of a list.
            return_attentions: also say what each scan and slice counted.
            if_ood: "warn" of a case that is unlike the training data, where the answer has no place to say so,
                "refuse" it, or "ignore" that.
        Returns:
            Per case a list of {"label", "icd10cm", "score"}, best first; with "above_threshold" where the checkpoint
            knows a threshold for the name, and "in_set" where it knows which disorders cannot be ruled out. With
            `return_attentions` a dictionary with this list as "diagnoses"; in the order of the case "scans", a list of
            {"source", "modality", "plane", "slices", "weight", "key_slice", "key_slice_weight"};
            "out_of_distribution", see `TrainingReference.judge`, None where the checkpoint has no reference;
            "synthetic_only", whether it learned from drawn patients alone; and "case_embed" (d,), for `score`.
        Raises:
            ValueError: for a case without a readable scan, no or empty labels, a label that a fixed list lacks, or a
                case that is refused.
        """
        several = isinstance(inputs, list | tuple)
        batch_size = kwargs.pop("batch_size", None) or self._batch_size or 1
        parameters = [
            {**at_start, **now}
            for at_start, now in zip(
                (self._preprocess_params, self._forward_params, self._postprocess_params),
                self._sanitize_parameters(**kwargs),
                strict=True,
            )
        ]
        whole = parameters[-1].pop("return_attentions", False)
        cases = list(inputs) if several else [inputs]
        batches = [cases[start : start + batch_size] for start in range(0, len(cases), batch_size)]
        answers = [answer for batch in batches for answer in self.run_single(batch, *parameters)]
        if not whole:
            for judged in (answer["out_of_distribution"] for answer in answers):
                if judged is not None and judged["is_ood"]:
                    warnings.warn(_unlike(judged), stacklevel=2)
            answers = [answer["diagnoses"] for answer in answers]
        return answers if several else answers[0]

    @torch.inference_mode()
    def score(self, case_embed: torch.Tensor, candidate_labels, hypothesis_template: str = "{}") -> list[dict]:
        """Other names for a case that was read before, without reading it again.

        Args:
            case_embed: (d,), from an answer with `return_attentions`.
            candidate_labels, hypothesis_template: as in `__call__`.
        Returns:
            What `__call__` says of these names for this case.
        Raises:
            ValueError: as `__call__`.
        """
        asked = self._sanitize_parameters(candidate_labels, hypothesis_template)[1]
        embeds = case_embed[None].to(self.device)
        if self.model.head.reads_text:
            logits = self.model.head(embeds, self._text_embeds(asked["labels"], asked["template"]))
        else:
            logits = self.model.head(embeds)[:, [self._row(label) for label in asked["labels"]]]
        scores = self._calibrated(logits, embeds, asked["labels"]).float().sigmoid()[0]
        return self._diagnoses(asked["labels"], scores, len(scores))

    def _sanitize_parameters(
        self,
        candidate_labels=None,
        hypothesis_template=None,
        top_k=None,
        return_attentions=None,
        if_ood=None,
        **kwargs,
    ):
        if kwargs:
            raise TypeError(f"zero-shot-diagnosis knows no argument {next(iter(kwargs))!r}")
        forward, after = {}, {}
        if candidate_labels is not None:
            labels = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels)
            if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
                raise ValueError("candidate_labels must be disorder names, none of them empty")
            forward["labels"] = list(dict.fromkeys(label.strip() for label in labels))
        if hypothesis_template is not None:
            forward["template"] = hypothesis_template
        if top_k is not None:
            after["top_k"] = top_k
        if return_attentions is not None:
            after["return_attentions"] = return_attentions
        if if_ood is not None:
            if if_ood not in ("warn", "refuse", "ignore"):
                raise ValueError(f"if_ood is warn, refuse or ignore, not {if_ood!r}")
            after["if_ood"] = if_ood
        return {}, forward, after

    def preprocess(self, inputs: list, **parameters) -> dict:
        cases = [_read(case) for case in inputs]
        for case in cases:
            if not case.scans:
                reasons = "; ".join(f"{file}: {reason}" for file, reason in getattr(case, "skipped", [])[:3])
                raise ValueError("the case holds no readable scan" + (f" ({reasons})" if reasons else ""))
        return {"cases": cases, "batch": self.processor(cases=cases)}

    def _forward(self, inputs: dict, labels: list[str] | None = None, template: str = "{}") -> dict:
        config = self.model.config
        if labels is None and not config.disorders:
            raise ValueError("this checkpoint has no vocabulary of its own: give candidate_labels")
        batch = inputs["batch"]
        names = list(config.disorders) if labels is None else labels
        if labels is None:
            output = self.model(**batch)
        elif self.model.head.reads_text:
            output = self.model(**batch, text_embeds=self._text_embeds(labels, template))
        else:
            rows = [self._row(label) for label in labels]
            output = self.model(**batch)
            output.logits = output.logits[:, rows]
        return {
            "cases": inputs["cases"],
            "names": names,
            "given": labels is not None,
            "scores": self._calibrated(output.logits, output.case_embeds, names).float().sigmoid(),
            "case_embeds": output.case_embeds,
            "slice_attentions": output.slice_attentions.float().split(batch["slices_per_scan"].tolist()),
            "scan_attentions": output.scan_attentions.float().split(batch["scans_per_case"].tolist()),
            "ood_features": ood_features(output.scan_features, batch["pixel_values"], batch["slices_per_scan"]).split(
                batch["scans_per_case"].tolist()
            ),
        }

    def postprocess(self, outputs: dict, top_k: int | None = None, if_ood: str = "warn") -> list[dict]:
        wanted = top_k or (len(outputs["names"]) if outputs["given"] else 10)
        slice_attentions, answers = iter(outputs["slice_attentions"]), []
        of_cases = (outputs[name] for name in ("cases", "scores", "scan_attentions", "ood_features", "case_embeds"))
        for case, scores, weights, looks, case_embed in zip(*of_cases, strict=True):
            slices = [next(slice_attentions) for _ in case.scans]
            answers.append(
                {
                    "diagnoses": self._diagnoses(outputs["names"], scores, wanted),
                    "scans": [self._seen(*x) for x in zip(case.scans, weights.tolist(), slices, strict=True)],
                    "out_of_distribution": self._judged(case, looks, if_ood),
                    "synthetic_only": self.synthetic_only,
                    "case_embed": case_embed,
                }
            )
        return answers

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Model and processor; `pipeline("zero-shot-diagnosis", model=save_directory)` brings them back."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _diagnoses(self, names: list[str], scores: torch.Tensor, wanted: int) -> list[dict]:
        """The best of (names,) scores, best first."""
        best = scores.topk(min(wanted, len(scores)))
        found = zip((names[i] for i in best.indices.tolist()), best.values.tolist(), strict=True)
        return [
            {"label": name, "icd10cm": self._codes(name), "score": score} | self._limits(name, score)
            for name, score in found
        ]

    def _calibrated(self, logits: torch.Tensor, case_embeds: torch.Tensor, names: list[str]) -> torch.Tensor:
        """(cases, names) logits, those of the vocabulary calibrated."""
        if self.model.config.calibration is None:
            return logits
        odds, logits = self.model.log_odds(self.model.head(case_embeds)), logits.float()
        rows = [self._rows.get(name.casefold()) for name in names]
        known = [column for column, row in enumerate(rows) if row is not None]
        logits[:, known] = odds[:, [rows[column] for column in known]]
        return logits

    def _limits(self, name: str, score: float) -> dict[str, bool]:
        """Whether a name of the vocabulary reaches its threshold, and that of the sets, where there are any."""
        row, config = self._rows.get(name.casefold()), self.model.config
        if row is None:
            return {}
        found, least = {}, config.thresholds[row] if config.thresholds else None
        if least is not None:
            found["above_threshold"] = score >= least
        if config.prediction_sets:
            in_set = config.prediction_sets["threshold"]
            found["in_set"] = score >= (in_set[row] if isinstance(in_set, list) else in_set)
        return found

    @cached_property
    def reference(self) -> TrainingReference | None:
        """What the checkpoint remembers of its training data; None where `radfm calibrate` never looked."""
        return TrainingReference.load(self.model.name_or_path) if self.model.name_or_path else None

    @cached_property
    def synthetic_only(self) -> bool:
        """Whether the checkpoint's recipe says that it learned to see from drawn patients alone."""
        return bool(self.model.name_or_path) and synthetic_only(_recipe(self.model.name_or_path))

    def _judged(self, case, looks: torch.Tensor, if_ood: str) -> dict | None:
        if if_ood == "ignore" or self.reference is None:
            return None
        judged = self.reference.judge(looks, [scan.modality for scan in case.scans])
        if judged["is_ood"] and if_ood == "refuse":
            raise ValueError(f"{_unlike(judged)}, and it is refused")
        return judged

    def _text_embeds(self, labels: list[str], template: str) -> torch.Tensor:
        """(labels, d)."""
        rows = self._rows
        prompts = [label if label.casefold() in rows else template.format(label) for label in labels]
        if self._asked is not None and self._asked[0] == prompts:
            return self._asked[1]
        new = [
            p
            for p, label in zip(prompts, labels, strict=True)
            if label.casefold() not in rows and p not in self._embeds
        ]
        for start in range(0, len(new), 256):
            some = new[start : start + 256]
            embeds = self.model.get_text_features(**self.processor(text=some).to(self.device))
            self._embeds |= dict(zip(some, embeds, strict=True))
        embeds = [
            self.model.head.disorder_embeds[rows[label.casefold()]]
            if label.casefold() in rows
            else self._embeds[prompt]
            for label, prompt in zip(labels, prompts, strict=True)
        ]
        self._asked = prompts, torch.stack(embeds)
        return self._asked[1]

    @property
    def _rows(self) -> dict[str, int]:
        """Where a name, in lower case, stands in the vocabulary."""
        if self._vocabulary is not self.model.config.disorders:  # set_disorders swaps it
            self._vocabulary = self.model.config.disorders
            self._row_of = {name.casefold(): row for row, name in enumerate(self._vocabulary)}
            self._asked = None
        return self._row_of

    def _row(self, label: str) -> int:
        row = self._rows.get(label.casefold())
        if row is None:
            near = get_close_matches(label.casefold(), self._rows, n=3)
            names = ", ".join(repr(self.model.config.disorders[self._rows[name]]) for name in near)
            raise ValueError(
                f"{label!r} is not in this checkpoint's list" + (f": did you mean {names}?" if near else "")
            )
        return row

    def _codes(self, name: str) -> list[str]:
        row, known = self._rows.get(name.casefold()), self.model.config.icd10cm
        if row is not None and known:
            return list(known[row])
        return codes(name) if codes is not None else []

    def _seen(self, scan, weight: float, attentions: torch.Tensor) -> dict:
        slices = self.processor.image_processor.choose_slices(len(scan.pixels))
        key = int(attentions.argmax()) if len(attentions) else None
        return {
            "source": scan.source,
            "modality": scan.modality,
            "plane": scan.plane,
            "slices": len(scan.pixels),
            "weight": weight,
            "key_slice": None if key is None else slices[key],
            "key_slice_weight": None if key is None else float(attentions[key]),
        }


def ood_reason(judged: dict) -> str:
    """In words, of what `TrainingReference.judge` found of an unlike case."""
    new = judged["new_modalities"]
    if new:
        return f"no training scan was of {', '.join(new)}"
    return f"at most {judged['p_value']:.1%} of the cases that it was checked on differ as much from its training scans"


def synthetic_only(recipe: Mapping) -> bool:
    """Whether it is known that a model saw drawn patients alone: in its own training, and in all that it started from.

    Args:
        recipe: of a checkpoint: `radfm_finetune.json` or `radfm_diagnosis.json`.
    """
    if (recipe.get("data") or {}).get("source") != "phantoms":
        return False
    asked, starts = recipe.get("key", recipe).get("config") or {}, recipe.get("started_from") or {}
    named = [key for key in ("model", "tower_weights") if asked.get(key) or starts.get(key)]
    return all(synthetic_only(starts.get(key) or {}) for key in named)


def _unlike(judged: dict) -> str:
    return f"the case is out of distribution ({ood_reason(judged)}): its scores are unreliable"


def _recipe(model: str) -> dict:
    """The newest recipe of a checkpoint, by its folder or name on the Hub; {} where it has none."""
    for name in _RECIPES:
        file = cached_file(
            model,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if file is not None:
            try:
                return json.loads(Path(file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} is damaged: restore it, or delete it ({error})") from error
    return {}


def _read(case):
    if hasattr(case, "scans"):
        return case
    if not isinstance(case, str | Path):
        raise TypeError(f"expected a Case, a file or a folder, got {type(case).__name__}")
    if read_case is None:
        raise ValueError("reading files needs radfm: pip install radfm")
    return read_case(case)


__all__ = ["SYNTHETIC_ONLY", "ZeroShotDiagnosisPipeline", "ood_reason", "synthetic_only"]
