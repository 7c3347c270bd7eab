"""`pipeline("zero-shot-diagnosis")`: a case in; disorders with ICD-10-CM codes and scores out, best first.

Decisions:
- Calling, batching, `num_workers`, data sets and generators are those of every pipeline of transformers. A step of
  `preprocess` reads and packs one case, and packed cases are joined without padding.
- A name of the checkpoint's vocabulary is scored with the embedding that is saved there; any other name is embedded
  once and cached.
- In a calibrated checkpoint (`radfm calibrate`, `radfm finetune`) the scores of the vocabulary are probabilities, and a
  name with a threshold says whether it is reached. A score does not depend on the other names, unless the model was
  trained with a softmax over them (`config.zero_shot_scores`).
- The weights of scans and slices come on demand (`return_attentions`): they are the model's, not a disorder's.
- What is uncertain about a scan (`Scan.warnings`) is in the answer where that lists the scans, else a Python warning.
- A case that is unlike the training data is an alert (`training_data_radfm`): in the answer where that lists the scans,
  else a Python warning. A checkpoint with a reference (`radfm calibrate`) can refuse it, others a new modality alone.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence, Sized
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from transformers.feature_extraction_utils import BatchFeature
from transformers.pipelines import Pipeline
from transformers.pipelines.pt_utils import PipelineChunkIterator, PipelineDataset, PipelineIterator

from .recipes_radfm import SYNTHETIC_ONLY
from .reference_radfm import TrainingReference, ood_features
from .training_data_radfm import UNTRAINED, TrainingData, ood_reason

try:
    from radfm.knowledge.disorders import codes
    from radfm.readers.read_case import read_case
except ImportError:  # a checkpoint's own code, on a machine without radfm
    read_case = codes = None  # type: ignore[assignment]  # a function, or None without radfm

_TOP_OF_VOCABULARY = 10
_TEXTS_AT_ONCE = 256
_IF_OOD = ("warn", "refuse", "ignore")


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
    diagnose(["study_1/", "study_2/"], batch_size=2)  # a list per case
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._embeds: dict[str, torch.Tensor] = {}  # prompt -> (d,)
        self._last: tuple[list[str], list[str], torch.Tensor] | None = None  # vocabulary, prompts, their embeddings

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: A `Case`, or a file or folder that `read_case` reads; a list, data set or generator of these, each
                a case of its own.
            candidate_labels: Disorder names; by default the checkpoint's vocabulary.
            hypothesis_template: The text to embed for a name that is not in the vocabulary, with "{}" for the name.
            top_k: Number of disorders to return; by default all candidate labels, or 10 of the vocabulary.
            batch_size: Cases that go through the model together.
            num_workers: Processes that read and pack cases.
            return_attentions: Also return the weight of each scan and slice.
            if_ood: "warn" of an out-of-distribution case where the answer does not say it, "refuse" it, or "ignore" it.
        Returns:
            A list of {"label", "icd10cm", "score"}, best first; with "above_threshold" if the checkpoint has a
            threshold for the name, and "in_set" if it has prediction sets. For a list of cases a list of these,
            for a data set or generator an iterator. With `return_attentions` a dictionary:
            "diagnoses", this list;
            "scans", in the order of the case, a list of {"source", "modality", "plane", "body_part", "slices",
            "warnings", "weight", "key_slice", "key_slice_weight"}, the last two None for volumes and equal weights;
            "alerts", why the answer may mean nothing, one sentence each, empty for a case like the training data;
            "training_data", what the model was trained on, see `TrainingData`: a dictionary with its "summary";
            "out_of_distribution", see `TrainingReference.judge`, None if the checkpoint has no reference;
            "token_embeds" (tokens, d), for `score`.
        Raises:
            ValueError: The case has no readable scan, labels are missing or empty, a label is not on the list of a
                model with a fixed one, or the case is refused.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        return [] if inputs == [] else super().__call__(inputs, **kwargs)

    @torch.inference_mode()
    def score(self, token_embeds: torch.Tensor, candidate_labels, hypothesis_template: str = "{}") -> list[dict]:
        """Scores other names for a case that was read before, without reading it again.

        Args:
            token_embeds: (tokens, d), from an answer with `return_attentions`.
            candidate_labels, hypothesis_template: As in `__call__`.
        Returns:
            The diagnoses that `__call__` returns for these names and this case.
        Raises:
            ValueError: As `__call__`.
        """
        parameters = self._sanitize_parameters(candidate_labels, hypothesis_template)[1]
        labels, tokens = parameters["labels"], token_embeds.to(self.device)
        texts = self._text_embeds(labels, parameters["template"]) if self.model.head.reads_text else None
        logits = self.model.pool(self.model.head(tokens, texts), [len(tokens)])
        if texts is None:
            logits = logits[:, self.model.config.vocabulary.rows(labels)]
        scores = self._calibrated(logits, tokens, [len(tokens)], labels).float().sigmoid()[0]
        return self._diagnoses(labels, scores, len(scores))

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
            raise TypeError(f"zero-shot-diagnosis has no argument {next(iter(kwargs))!r}")
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
            if if_ood not in _IF_OOD:
                raise ValueError(f"if_ood is warn, refuse or ignore, not {if_ood!r}")
            after["if_ood"] = if_ood
        return {}, forward, after

    def preprocess(self, case) -> dict:
        """A packed batch of a case: {"cases": [[facts of a scan, ...]], "taken": [[its slices, ...]], "batch"}."""
        case = _read(case)
        if not case.scans:
            reasons = "; ".join(f"{file}: {reason}" for file, reason in getattr(case, "skipped", [])[:3])
            raise ValueError("the case holds no readable scan" + (f" ({reasons})" if reasons else ""))
        facts = [
            {
                "source": scan.source,
                "modality": scan.modality,
                "plane": scan.plane,
                "body_part": getattr(scan, "body_part", None),
                "slices": len(scan.pixels),
                "warnings": self.processor.warnings_of(scan),
            }
            for scan in case.scans
        ]
        images = self.processor.image_processor  # no slices are told of volumes, of which none is a key slice
        taken = [None if images.reads_volume(scan) else images.source_slices(scan) for scan in case.scans]
        return {"cases": [facts], "taken": [taken], "batch": self.processor(cases=[case])}

    def collate(self, items: Sequence[dict]) -> dict:
        """Joins packed batches of `preprocess` into one."""
        if len(items) == 1:
            return items[0]
        batches = [item["batch"] for item in items]
        joined = {key: _join([batch[key] for batch in batches], self._padding(key)) for key in batches[0]}
        of_cases = {key: [case for item in items for case in item[key]] for key in ("cases", "taken")}
        return of_cases | {"batch": BatchFeature(joined)}

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """As transformers' own, with `collate` for packed cases, which need no padding of images."""
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset, num_workers = PipelineIterator(inputs, self.preprocess, preprocess_params), min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=self.collate)
        cases = PipelineChunkIterator(loader, self._forward_cases, forward_params)
        return PipelineIterator(cases, self.postprocess, postprocess_params)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        (answer,) = self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params)
        return answer

    def _forward_cases(self, batch: dict, **parameters) -> Iterator[dict]:
        return iter(self.forward(batch, **parameters)["cases"])

    def _forward(self, inputs: dict, labels: list[str] | None = None, template: str = "{}") -> dict:
        config, batch = self.model.config, inputs["batch"]
        if labels is None and not config.disorders:
            raise ValueError("this checkpoint has no vocabulary: give candidate_labels")
        names = list(config.disorders) if labels is None else labels
        text_embeds, rows = None, slice(None)
        if labels is not None and self.model.head.reads_text:
            text_embeds = self._text_embeds(labels, template)
        elif labels is not None:
            rows = config.vocabulary.rows(labels)
        output = self.model(**batch, text_embeds=text_embeds)
        tokens_per_case = output.tokens_per_case.tolist()
        scores = self._calibrated(output.logits[:, rows], output.token_embeds, tokens_per_case, names).float().sigmoid()
        token_embeds = output.token_embeds.split(tokens_per_case)
        slices_per_scan, scans_per_case = batch["slices_per_scan"].tolist(), batch["scans_per_case"].tolist()
        slice_attentions = iter(output.slice_attentions.float().split(slices_per_scan))
        scan_attentions = output.scan_attentions.float().split(scans_per_case)
        features = ood_features(output.scan_features, batch["pixel_values"], batch["slices_per_scan"])
        features = features.split(scans_per_case)
        cases = [
            {
                "scans": scans,
                "names": names,
                "top_k": _TOP_OF_VOCABULARY if labels is None else len(names),
                "scores": scores[i],
                "token_embeds": token_embeds[i],
                "scan_attentions": scan_attentions[i],
                "slice_attentions": [next(slice_attentions) for _ in scans],
                "ood_features": features[i],
                "taken": taken,
            }
            for i, (scans, taken) in enumerate(zip(inputs["cases"], inputs["taken"], strict=True))
        ]
        return {"cases": cases}

    def postprocess(
        self, output: dict, top_k: int | None = None, return_attentions: bool = False, if_ood: str = "warn"
    ) -> list[dict] | dict:
        """The answer for one case."""
        diagnoses = self._diagnoses(output["names"], output["scores"], top_k or output["top_k"])
        judgement = self._judge(output, if_ood)
        alerts = self.training_data.alerts(output["scans"], judgement)
        if not return_attentions:
            for message in [*alerts, *_scan_messages(output["scans"])]:
                warnings.warn(message, stacklevel=_stacklevel_of_caller())
            return diagnoses
        parts = (output["scans"], output["taken"], output["scan_attentions"].tolist(), output["slice_attentions"])
        return {
            "diagnoses": diagnoses,
            "scans": [self._with_weights(*scan) for scan in zip(*parts, strict=True)],
            "alerts": self.model_alerts + alerts,
            "training_data": {"summary": self.training_data.summary, **asdict(self.training_data)},
            "out_of_distribution": judgement,
            "token_embeds": output["token_embeds"],
        }

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Saves model and processor; `pipeline("zero-shot-diagnosis", model=save_directory)` loads them."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    @cached_property
    def reference(self) -> TrainingReference | None:
        """The checkpoint's reference of its training data; None before `radfm calibrate` has made one."""
        return TrainingReference.load(self.model.name_or_path) if self.model.name_or_path else None

    @cached_property
    def training_data(self) -> TrainingData:
        """What the checkpoint was trained on, by its recipe."""
        return TrainingData.of_model(self.model.name_or_path)

    @property
    def model_alerts(self) -> list[str]:
        """Why no answer of the model means anything, one sentence each; empty for a model that has seen patients."""
        untrained = [] if self.model.config.trained else [UNTRAINED]
        return untrained + [SYNTHETIC_ONLY] * self.training_data.synthetic_only

    def _diagnoses(self, names: list[str], scores: torch.Tensor, top_k: int) -> list[dict]:
        """The best of (names,) scores, best first."""
        best = scores.topk(min(top_k, len(scores)))
        return [
            self._diagnosis(names[row], score)
            for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _diagnosis(self, name: str, score: float) -> dict:
        config = self.model.config
        row = config.vocabulary.get(name)
        diagnosis = {"label": name, "icd10cm": self._codes(name), "score": score}
        if row is None:
            return diagnosis
        if config.thresholds and config.thresholds[row] is not None:
            diagnosis["above_threshold"] = score >= config.thresholds[row]
        if config.prediction_sets:
            in_set = config.prediction_sets["threshold"]
            diagnosis["in_set"] = score >= (in_set[row] if isinstance(in_set, list) else in_set)
        return diagnosis

    def _codes(self, name: str) -> list[str]:
        vocabulary = self.model.config.vocabulary
        if name in vocabulary and self.model.config.icd10cm:
            return vocabulary.codes(name)
        return codes(name) if codes is not None else []

    def _calibrated(self, logits: torch.Tensor, token_embeds: torch.Tensor, counts: list[int], names: list[str]):
        """(cases, names) log odds, those of the vocabulary calibrated."""
        if self.model.config.calibration is None:
            return self.model.zero_shot_log_odds(logits)
        vocabulary = self.model.config.vocabulary
        log_odds = self.model.log_odds(self.model.pool(self.model.head(token_embeds), counts))
        logits = logits.float()
        rows = {column: row for column, name in enumerate(names) if (row := vocabulary.get(name)) is not None}
        logits[:, list(rows)] = log_odds[:, list(rows.values())]
        return logits

    def _judge(self, output: dict, if_ood: str) -> dict | None:
        modalities = [scan["modality"] for scan in output["scans"]]
        if if_ood == "refuse" and self.reference is None:
            self.training_data.refuse_new(modalities, self.processor.is_made_for)
        if if_ood == "ignore" or self.reference is None:
            return None
        judgement = self.reference.judge(output["ood_features"], modalities)
        if judgement["is_ood"] and if_ood == "refuse":
            raise ValueError(f"the case is out of distribution ({ood_reason(judgement)}): it is refused")
        return judgement

    def _text_embeds(self, labels: list[str], template: str) -> torch.Tensor:
        """(labels, d)."""
        disorders, vocabulary = self.model.config.disorders, self.model.config.vocabulary
        rows = [vocabulary.get(label) for label in labels]
        prompts = [template.format(label) if row is None else label for label, row in zip(labels, rows, strict=True)]
        if self._last is not None and self._last[0] is disorders and self._last[1] == prompts:
            return self._last[2]
        unknown = [prompt for prompt, row in zip(prompts, rows, strict=True) if row is None]
        new = [prompt for prompt in unknown if prompt not in self._embeds]
        for start in range(0, len(new), _TEXTS_AT_ONCE):
            texts = new[start : start + _TEXTS_AT_ONCE]
            embeds = self.model.get_text_features(**self.processor(text=texts).to(self.device))
            self._embeds |= dict(zip(texts, embeds, strict=True))
        known, pairs = self.model.head.disorder_embeds, zip(prompts, rows, strict=True)
        embeds = torch.stack([self._embeds[prompt] if row is None else known[row] for prompt, row in pairs])
        self._last = disorders, prompts, embeds
        return embeds

    def _padding(self, key: str) -> int:
        return (self.processor.tokenizer.pad_token_id or 0) if key.endswith("input_ids") else 0

    def _with_weights(self, scan: dict, slices: list[int] | None, weight: float, attentions: torch.Tensor) -> dict:
        is_told = len(attentions) == 1 or len(set(attentions.tolist())) > 1  # slices of one slab have the same weight
        key = int(attentions.argmax()) if slices and is_told else None
        return scan | {
            "weight": weight,
            "key_slice": slices[key] if slices and key is not None else None,
            "key_slice_weight": None if key is None else float(attentions[key]),
        }


def _scan_messages(scans: Sequence[dict]) -> list[str]:
    """One message for each sentence of `warnings`, with the sources of its scans."""
    sources: dict[str, list[str]] = {}
    for number, scan in enumerate(scans, 1):
        for sentence in scan["warnings"]:
            sources.setdefault(sentence, []).append(scan["source"] or f"scan {number}")
    return [f"{', '.join(dict.fromkeys(of))}: {sentence}" for sentence, of in sources.items()]


def _join(tensors: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    """Rows of several packed cases as one tensor; texts are padded to the longest."""
    if tensors[0].ndim == 2 and len({tensor.shape[1] for tensor in tensors}) > 1:
        longest = max(tensor.shape[1] for tensor in tensors)
        pad = torch.nn.functional.pad
        tensors = [pad(tensor, (0, longest - tensor.shape[1]), value=padding) for tensor in tensors]
    if tensors[0].ndim == 4 and all(
        tensor.stride(1) == 0 for tensor in tensors
    ):  # grey slices, shown as three channels
        return torch.cat([tensor[:, :1] for tensor in tensors]).expand(-1, tensors[0].shape[1], -1, -1)
    return torch.cat(list(tensors))


def _stacklevel_of_caller() -> int:
    """For `warnings.warn` in the calling function: the level of the first frame outside of the pipeline's own code."""
    own = (*(str(Path(module.__file__).parent) for module in (torch, transformers)), __file__)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        frame, level = frame.f_back, level + 1
    return level


def _read(case):
    if hasattr(case, "scans"):
        return case
    if not isinstance(case, str | Path):
        raise TypeError(f"expected a Case, a file or a folder, got {type(case).__name__}")
    if read_case is None:
        raise ValueError("reading files needs radfm: pip install radfm")
    return read_case(case)


__all__ = ["ZeroShotDiagnosisPipeline"]
