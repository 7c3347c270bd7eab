"""The model for diagnosis: the embedding of a case -> logits over disorder names, and the loss.

Decisions:
- The text embeddings of the vocabulary are a buffer of the head, saved with the weights and replaced at will.
- The logits of a case are pooled over its tokens with the text as query: each disorder asks every scan, and the scan
  that shows it decides. So the logits of the scans are those that the answer was computed from.
- A patch of a slice has logits of its own by going through the later stages as a case of its own.
- `forward` computes the loss named in the configuration over the rows of all processes, so every trainer trains alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .configuration_radfm import LabelKind, RadFMConfig
from .embedding_radfm import RadFMModel, RadFMPreTrainedModel
from .heads_radfm import head_class
from .layers_radfm import logsumexp_of_groups
from .losses_radfm import competing_log_odds, sum_gradients_over_processes
from .objectives_radfm import Objective, build_objectives
from .outputs_radfm import RadFMDiagnosisOutput, SliceEncoding

_LEAST_SHARPNESS = 1e-3  # of the log-sum-exp over scans, which then is their mean


class RadFMForDiagnosis(RadFMPreTrainedModel):
    """Logits over disorder names, and the loss where targets are given."""

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        self.radfm = RadFMModel(config)
        self.head = head_class(config)(config)
        self.sharpness = nn.Parameter(torch.ones(1)) if config.fusion == "logsumexp" else None
        config.loss = config.loss or {"name": self.head.default_loss}
        build_objectives(config)  # raises for an objective that there is not
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        slices_per_scan: Tensor,
        scans_per_case: Tensor,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        volumes: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        histories_per_case: Tensor | None = None,
        history_input_ids: Tensor | None = None,
        history_attention_mask: Tensor | None = None,
        history_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        scan_labels: Tensor | None = None,
        key_slices: Tensor | None = None,
        masks: Tensor | None = None,
        mask_rows: Tensor | None = None,
        unlocated: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> RadFMDiagnosisOutput | tuple:
        """
        ```python
        batch = processor(cases=[radfm.read_case("study/")])
        outputs = model(**batch)
        outputs.logits  # (1, disorders)
        outputs = model(**batch, labels=labels)
        outputs.loss.backward()
        outputs.losses  # {"diagnosis": ..., "key_slice": ...}
        ```

        Args:
            pixel_values ... history_embeds: the packed batch, as in [`RadFMModel`].
            text_embeds: (texts, d). Embeddings to score against, in place of `input_ids` that were embedded before.
            labels: (cases, disorders) in [0, 1]. With several processes, all have to give them, or none.
            scan_labels: (scans, disorders) in [0, 1], for the objective "per_scan"; unset, those of the case.
            key_slices: (scans,) int64, -1 where unknown.
            masks, mask_rows, unlocated: as in `radfm.objectives_radfm.PatchObjective`.
            teacher_logits: (cases, disorders), of another model, for the objective "distillation".
        Raises:
            ValueError: as [`RadFMModel`]; there are texts and a head that reads none.
        """
        targets = {"labels": labels, "scan_labels": scan_labels, "key_slices": key_slices}
        targets |= {"masks": masks, "mask_rows": mask_rows, "unlocated": unlocated, "teacher_logits": teacher_logits}
        objectives = self._objectives(targets)
        context = {"modality_ids": modality_ids, "plane_ids": plane_ids, "days": days}
        histories = {"histories_per_case": histories_per_case, "history_embeds": history_embeds}
        histories |= {"history_input_ids": history_input_ids, "history_attention_mask": history_attention_mask}

        # slices, scans and cases as vectors
        with_patches = any(objective.reads == "patch_logits" for objective in objectives)
        slices = self.radfm.encode_slices(pixel_values, slices_per_scan, with_patches, volumes)
        scans = self.radfm.encode_scans(slices)
        cases = self.radfm.encode_cases(scans=scans, scans_per_case=scans_per_case, **histories, **context)

        # texts, where they take the place of the vocabulary; logits of the tokens, pooled for each case
        if text_embeds is None and input_ids is not None:
            text_embeds = self.radfm.get_text_features(input_ids, attention_mask)
        token_logits = self.head(cases.token_embeds, text_embeds)
        outputs = RadFMDiagnosisOutput(
            logits=self.pool(token_logits, cases.tokens_per_case),
            case_embeds=cases.embeds,
            token_embeds=cases.token_embeds,
            tokens_per_case=scans_per_case.new_tensor(cases.tokens_per_case),
            per_scan_logits=None if self.sharpness is None else cases.of_scans(token_logits),
            scan_embeds=scans.embeds,
            scan_features=scans.features,
            slice_attentions=scans.slice_attentions,
            scan_attentions=cases.scan_attentions,
            text_embeds=text_embeds,
        )

        if objectives:
            batch = targets | {"slices_per_scan": slices_per_scan, "scans_per_case": scans_per_case}
            self._add_losses(outputs, objectives, batch, slices, context)
        return outputs if return_dict is not False else outputs.to_tuple()

    def pool(self, token_logits: Tensor, tokens_per_case: list[int]) -> Tensor:
        """(tokens, disorders) logits -> (cases, disorders): the log-sum-exp over the tokens of each case.

        ```python
        model.pool(model.head(outputs.token_embeds, text_embeds), outputs.tokens_per_case.tolist())  # other disorders
        ```
        """
        if self.sharpness is None:
            return token_logits
        return logsumexp_of_groups(token_logits, tokens_per_case, self.sharpness.clamp(min=_LEAST_SHARPNESS))

    def patch_logits(
        self,
        slices: SliceEncoding,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        text_embeds: Tensor | None = None,
    ) -> Tensor:
        """(slabs, h, w, disorders): the logits of each patch as a case of its own, without a history.

        Args:
            slices: from `model.radfm.encode_slices(..., with_patches=True)`.
            modality_ids, plane_ids, days: of the scans, as in `forward`.
            text_embeds: (texts, d), in place of the vocabulary.
        """
        cases = self.radfm.encode_each_patch(slices, modality_ids, plane_ids, days)
        logits = self.pool(self.head(cases.token_embeds, text_embeds), cases.tokens_per_case)
        assert slices.patches is not None
        return logits.unflatten(0, slices.patches.embeds.shape[:3])

    def log_odds(self, logits: Tensor) -> Tensor:
        """Calibrates the logits of the vocabulary, (cases, disorders): the sigmoid of the result is a probability.

        Each disorder has its slope and shift (Platt 1999); for mutually exclusive disorders the sigmoid is the softmax.
        Without `config.calibration` the logits are returned as they are.
        """
        fit = self.config.calibration
        if fit is None:
            return logits
        logits = logits.float()
        odds = logits * logits.new_tensor(fit["slopes"]) + logits.new_tensor(fit["shifts"])
        for group in fit["exclusive"]:
            odds[:, group["rows"]] = competing_log_odds(odds[:, group["rows"]], LabelKind(group["label_kind"]))
        return odds

    def zero_shot_log_odds(self, logits: Tensor) -> Tensor:
        """(cases, names) logits -> what has the scores of these names as its sigmoid, by `config.zero_shot_scores`."""
        if self.config.zero_shot_scores == "sigmoid":
            return logits
        return competing_log_odds(logits, LabelKind.EXACTLY_ONE)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """(texts, tokens) int64 -> (texts, d), of unit length."""
        return self.radfm.get_text_features(input_ids, attention_mask)

    def get_case_features(self, **inputs) -> Tensor:
        """A packed batch -> (cases, d), of unit length.

        ```python
        with torch.inference_mode():
            embedding = model.get_case_features(**processor(cases=[radfm.read_case("study/")]))  # (1, d)
        ```
        """
        return self.radfm.get_case_features(**inputs)

    def get_scan_features(self, **inputs) -> Tensor:
        """A packed batch -> (scans, d), of unit length: each scan as a case of its own, without a history."""
        return self.radfm.get_scan_features(**inputs)

    def get_slice_features(self, **inputs) -> Tensor:
        """A packed batch -> (slabs, d), of unit length: each slab as a case of its own, without a history.

        A slab is one slice, unless `vision_config.slice_depth` is above 1.
        """
        return self.radfm.get_slice_features(**inputs)

    def get_input_embeddings(self) -> nn.Module | None:
        return self.radfm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.radfm.set_input_embeddings(value)

    def set_disorders(
        self,
        disorders: Sequence[str],
        embeds: Tensor | None = None,
        icd10cm: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Replaces the vocabulary; it is saved with the checkpoint. What was fitted to the old one is removed:
        calibration, thresholds, prediction sets, and arguments of the loss with one number for each disorder.

        Args:
            disorders: n names.
            embeds: (n, d), from `get_text_features`, for a head that reads text. A fixed list needs none: it keeps the
                rows of the names that stay, and new names start with random weights.
            icd10cm: n lists of codes.
        Raises:
            ValueError: the lengths differ, a name comes twice, or a head that reads text gets no embeddings.
        """
        disorders = list(disorders)
        codes = [list(c) for c in icd10cm] if icd10cm is not None else []
        if len(set(disorders)) != len(disorders):
            twice = next(name for i, name in enumerate(disorders) if name in disorders[:i])
            raise ValueError(f"{twice!r} is in the vocabulary twice: give each disorder once")
        if codes and len(codes) != len(disorders):
            raise ValueError(f"{len(codes)} lists of ICD-10-CM codes for {len(disorders)} disorders")
        vocabulary = self.config.vocabulary
        self.head.set_disorders([vocabulary.get(name) for name in disorders], embeds)
        self.config.disorders, self.config.icd10cm = disorders, codes
        self.config.calibration = self.config.thresholds = self.config.prediction_sets = None
        self.config.loss = {k: v for k, v in (self.config.loss or {}).items() if not isinstance(v, list | tuple)}

    @torch.no_grad()
    def optimize_for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> "RadFMForDiagnosis":
        """Makes the towers fast for a batch of cases, for inference only; returns the model.

        Batch normalisation is folded into the convolutions and slices lie channels-last. `compile` adds
        `torch.compile` with frozen weights: half a minute, once, and slices then go in chunks of one fixed size.

        Args:
            dtype: bfloat16 where the processor has instructions for it; unset, that of the weights.
        """
        dtype = dtype or self.dtype
        self.eval().requires_grad_(False)
        for tower in self.radfm.towers:
            tower.optimize_for_inference(dtype, compile)
        return self.to(dtype)

    def _add_losses(
        self,
        outputs: RadFMDiagnosisOutput,
        objectives: list[Objective],
        batch: dict[str, Tensor],
        slices: SliceEncoding,
        context: dict[str, Tensor | None],
    ) -> None:
        """Sets the weighted loss of each objective, their sum, and the logits of patches, if one reads them."""
        context = context | {"text_embeds": outputs.text_embeds}
        if slices.patches is not None:
            outputs.patch_logits = self.patch_logits(slices, **context)
        outputs.losses = {o.name: o.weight * o.loss(outputs, batch) for o in objectives}
        outputs.loss = sum_gradients_over_processes(sum(outputs.losses.values()))

    def _objectives(self, targets: dict[str, Tensor | None]) -> list[Objective]:
        """The objectives whose targets are given. Key slices alone are targets where at least one is known."""
        key_slices = targets["key_slices"]
        if targets["labels"] is None and (key_slices is None or not (key_slices >= 0).any()):
            return []
        objectives = build_objectives(self.config)
        return [o for o in objectives if all(targets[name] is not None for name in o.targets)]


RadFMForDiagnosis.register_for_auto_class("AutoModel")

__all__ = ["RadFMForDiagnosis", "RadFMModel", "RadFMPreTrainedModel"]
