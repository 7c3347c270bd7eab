"""The model: slices -> scans -> case -> logits over disorder names.

Decisions:
- Nothing is padded. All slices of all scans of all cases lie in one row, so cost follows the slices that exist and
  one case's neighbours in the batch cannot change its answer.
- Without gradients the tower takes a fixed number of slices at a time: a scan of a thousand slices needs the memory of
  its pixels, not of its activations.
- A disorder is the embedding of its name: `disorder_embeds` is a buffer, saved with the weights and swapped at will.
- A history is one more token of its case, behind the scans. A case without one has a token less, and nothing else.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_radfm import RadFMConfig, RadFMEncoderConfig, RadFMOpenCLIPTextConfig, RadFMVisionConfig
from .encoder_radfm import RadFMEncoder
from .towers_radfm import FastTower, each_place, feature_map_side, num_features, open_clip_text_tower, visual_tower


@dataclass
class RadFMModelOutput(ModelOutput):
    """
    Args:
        case_embeds: (cases, d). What the head reads: of unit length for the text head, plain for the mlp head.
        scan_embeds: (scans, hidden_size).
        scan_features: (scans, f). The mean over a scan's slices of what the tower says of each.
        slice_attentions: (slices,). How much each slice counted for its scan; sums to 1 per scan.
        scan_attentions: (scans,). How much each scan counted for its case; sums to 1 per case.
        text_embeds: (texts, d), of unit length; where texts were given.
        lone_scan_embeds: (scans, d). As `case_embeds`, if each scan were a case of its own; where asked for.
        lone_place_embeds: (slices, h, w, d). As `case_embeds`, if each place of the tower's last feature map were a
            case of its own; where asked for.
    """

    case_embeds: Tensor | None = None
    scan_embeds: Tensor | None = None
    scan_features: Tensor | None = None
    slice_attentions: Tensor | None = None
    scan_attentions: Tensor | None = None
    text_embeds: Tensor | None = None
    lone_scan_embeds: Tensor | None = None
    lone_place_embeds: Tensor | None = None


@dataclass
class RadFMDiagnosisOutput(ModelOutput):
    """
    Args:
        loss: (). `diagnosis_loss` and `key_slice_loss` together; where labels or known key slices were given.
        logits: (cases, disorders). Over the texts where texts were given, else over the vocabulary.
        case_embeds, scan_embeds, scan_features, slice_attentions, scan_attentions, text_embeds: as in
            [`RadFMModelOutput`].
        lone_scan_logits: (scans, disorders). As `logits`, if each scan were a case of its own; where asked for.
        lone_place_logits: (slices, h, w, disorders). As `logits`, if each place were; where asked for.
        diagnosis_loss: (). Mean binary cross-entropy.
        key_slice_loss: (). [`key_slice_loss`] times `config.key_slice_loss_weight`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    case_embeds: Tensor | None = None
    scan_embeds: Tensor | None = None
    scan_features: Tensor | None = None
    slice_attentions: Tensor | None = None
    scan_attentions: Tensor | None = None
    text_embeds: Tensor | None = None
    lone_scan_logits: Tensor | None = None
    lone_place_logits: Tensor | None = None
    diagnosis_loss: Tensor | None = None
    key_slice_loss: Tensor | None = None


class RadFMPreTrainedModel(PreTrainedModel):
    config: RadFMConfig
    config_class = RadFMConfig
    base_model_prefix = "radfm"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["RadFMSliceEncoder", "RadFMEncoderLayer"]  # noqa: RUF012
    _supports_sdpa = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, from safetensors only: a pickle is never opened."""
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs | {"use_safetensors": True})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if getattr(module, "is_part_of_a_tower", False):
            return  # it comes out of its own constructor initialised
        if isinstance(module, RadFMEncoder):
            if module.layers:
                init.normal_(module.class_token, std=std)
            if module.positions is not None:
                init.normal_(module.positions, std=std)
            if module.gate is not None:
                init.zeros_(module.gate)
        elif isinstance(module, RadFMDaysEmbedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, RadFMForDiagnosis):
            if self.config.head == "text":
                init.constant_(module.logit_scale, self.config.logit_scale_init_value)
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)
                init.zeros_(module.disorder_embeds)
        else:
            super()._init_weights(module)


class RadFMModel(RadFMPreTrainedModel):
    """Slices, scans, cases and texts as vectors."""

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        width = config.hidden_size
        self.slice_encoder = RadFMSliceEncoder(config.vision_config, width)
        self.scan_encoder = RadFMEncoder(config.scan_config, width)
        self.case_encoder = RadFMEncoder(config.case_config, width)
        # Without a fusion module there is nobody to tell what kind of scan it is.
        fusion = config.case_config.num_hidden_layers > 0
        self.modality_embed = nn.Embedding(len(config.modalities), width) if fusion else None
        self.plane_embed = nn.Embedding(len(config.planes), width) if fusion and config.use_planes else None
        self.days_embed = RadFMDaysEmbedding(width) if fusion and config.use_days else None
        reads = fusion and config.use_history and config.text_config is not None
        self.history_projection = nn.Linear(config.projection_dim, width) if reads else None
        self.case_projection = _projection(width, config.projection_dim)
        places = config.vision_config.place_disorders if config.head == "text" else 0
        self.place_projection = nn.Linear(places, config.projection_dim, bias=False) if places else None
        self.text_encoder = RadFMTextEncoder(config) if config.text_config is not None else None
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None,
        slices_per_scan: Tensor,
        scans_per_case: Tensor,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        histories_per_case: Tensor | None = None,
        history_input_ids: Tensor | None = None,
        history_attention_mask: Tensor | None = None,
        history_embeds: Tensor | None = None,
        lone_scans: bool = False,
        slice_features: Tensor | None = None,
        lone_places: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ) -> RadFMModelOutput | tuple:
        """
        Args:
            pixel_values: (slices, 3, H, W). Every slice of the batch, in case, scan, slice order.
            slices_per_scan: (scans,) int64, sums to slices.
            scans_per_case: (cases,) int64, sums to scans.
            modality_ids: (scans,) int64, index into `config.modalities`.
            plane_ids: (scans,) int64, index into `config.planes`.
            days: (scans,). Days before the newest scan of the case; NaN where unknown.
            input_ids, attention_mask: (texts, tokens) int64.
            histories_per_case: (cases,) int64, 0 or 1, sums to histories.
            history_input_ids, history_attention_mask: (histories, tokens) int64.
            history_embeds: (histories, d). In place of `history_input_ids` that were embedded before.
            lone_scans: also read each scan as if it were a case of its own, which costs next to nothing.
            slice_features: (slices, f). In place of `pixel_values`: what a tower of one vector per slice said before.
            lone_places: also read each place of the tower's last feature map as if it were a case of its own.
        Raises:
            ValueError: where the counts do not add up, texts meet a model without a text encoder, or places a tower
                that tells of none.
        """
        slice_counts, scan_counts = slices_per_scan.tolist(), scans_per_case.tolist()
        slices = pixel_values if slice_features is None else slice_features
        _check_counts(slices, slice_counts, scan_counts, modality_ids)
        seen = self.slice_encoder(pixel_values, slice_counts, slice_features, lone_places)
        slice_embeds, looks_per_scan, places = seen.embeds, seen.looks_per_scan, seen.places
        scan_embeds, attentions = self.scan_encoder(slice_embeds, looks_per_scan)  # (scans, width), (looks,)

        tokens = scan_tokens = self._in_context(scan_embeds, modality_ids, plane_ids, days)
        counts = scan_counts
        if self.history_projection is not None and histories_per_case is not None:
            if history_embeds is None:
                history_embeds = self.get_text_features(history_input_ids, history_attention_mask)
            histories = self.history_projection(history_embeds)  # (histories, width)
            tokens, counts = _with_histories(tokens, scan_counts, histories, histories_per_case.tolist())
        lone = [scan_tokens] if lone_scans else []
        if lone_places:
            per_scan = slices_per_scan * places.shape[1] * places.shape[2]
            of_place = [x if x is None else x.repeat_interleave(per_scan, 0) for x in (modality_ids, plane_ids, days)]
            place_embeds, _ = self.scan_encoder(places.flatten(0, 2), [1] * places.shape[:3].numel())
            lone.append(self._in_context(place_embeds, *of_place))
        alone = [len(some) for some in lone]
        embeds, attentions_of_tokens = self.case_encoder(torch.cat([tokens, *lone]), counts + [1] * sum(alone))
        scan_attentions = attentions_of_tokens[: sum(counts)]
        if counts is not scan_counts:
            scan_attentions = _of_scans(scan_attentions, counts, scan_counts)
        embeds = self.case_projection(embeds)
        if self.place_projection is not None:
            of_scan = [part.sum().item() for part in slices_per_scan.split(scan_counts)]
            evidence = [_likeliest(seen.evidence, of_scan)]
            evidence += [_likeliest(seen.evidence, slice_counts)] if lone_scans else []
            evidence += [seen.place_evidence.flatten(0, 2)] if lone_places else []
            embeds = embeds + self.place_projection(torch.cat(evidence))
        if self.config.head == "text":
            embeds = F.normalize(embeds, dim=-1)

        embeds, *lone = embeds.split([len(counts), *alone])
        output = RadFMModelOutput(
            case_embeds=embeds,
            scan_embeds=scan_embeds,
            scan_features=_mean_of_each(seen.features, looks_per_scan),
            slice_attentions=self.slice_encoder.spread(attentions, slice_counts),
            scan_attentions=scan_attentions,
            text_embeds=None if input_ids is None else self.get_text_features(input_ids, attention_mask),
            lone_scan_embeds=lone[0] if lone_scans else None,
            lone_place_embeds=lone[-1].unflatten(0, places.shape[:3]) if lone_places else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def _in_context(self, scan_embeds: Tensor, modality_ids: Tensor, plane_ids: Tensor | None, days: Tensor | None):
        """Scans as the case encoder reads them, who is told what kind of scan each is: (scans, width)."""
        if self.modality_embed is not None:
            scan_embeds = scan_embeds + self.modality_embed(modality_ids)
        if self.plane_embed is not None and plane_ids is not None:
            scan_embeds = scan_embeds + self.plane_embed(plane_ids)
        if self.days_embed is not None and days is not None:
            scan_embeds = scan_embeds + self.days_embed(days)
        return scan_embeds

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """(texts, tokens) int64 -> (texts, d), of unit length."""
        if self.text_encoder is None:
            raise ValueError("this checkpoint has no text encoder: it knows its own list of disorders only")
        if not len(input_ids):  # encoders fail on none; one text is read and dropped, so that processes stay in step
            return self.get_text_features(input_ids.new_ones(1, 1))[:0]
        return F.normalize(self.text_encoder(input_ids, attention_mask), dim=-1)

    def get_case_features(self, **inputs) -> Tensor:
        """A packed batch -> (cases, d), of unit length."""
        return F.normalize(self(**inputs).case_embeds, dim=-1)

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.text_encoder is None else self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)


class RadFMForDiagnosis(RadFMPreTrainedModel):
    """The model people load: logits over disorder names, and the loss where labels are given."""

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        self.radfm = RadFMModel(config)
        if config.head == "text":
            self.logit_scale = nn.Parameter(torch.tensor([config.logit_scale_init_value]))
            self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias_init_value]))
            self.register_buffer("disorder_embeds", torch.zeros(len(config.disorders), config.projection_dim))
        else:
            self.classifier = RadFMClassifier(config.hidden_size, len(config.disorders))
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None,
        slices_per_scan: Tensor,
        scans_per_case: Tensor,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        histories_per_case: Tensor | None = None,
        history_input_ids: Tensor | None = None,
        history_attention_mask: Tensor | None = None,
        history_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        key_slices: Tensor | None = None,
        lone_scans: bool = False,
        slice_features: Tensor | None = None,
        lone_places: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ) -> RadFMDiagnosisOutput | tuple:
        """
        Args:
            pixel_values ... history_embeds: the packed batch, as in [`RadFMModel`].
            text_embeds: (texts, d). Embeddings to score against, in place of `input_ids` that were embedded before.
            labels: (cases, disorders) in [0, 1].
            key_slices: (scans,) int64, -1 where unknown.
            lone_scans: also say what each scan shows by itself, as in [`RadFMModel`].
            slice_features: in place of `pixel_values`, as in [`RadFMModel`].
            lone_places: also say what each place of each slice shows by itself, as in [`RadFMModel`].
        """
        output = self.radfm(
            pixel_values,
            slices_per_scan,
            scans_per_case,
            modality_ids,
            plane_ids,
            days,
            input_ids,
            attention_mask,
            histories_per_case,
            history_input_ids,
            history_attention_mask,
            history_embeds,
            lone_scans,
            slice_features,
            lone_places,
        )
        text_embeds = output.text_embeds if text_embeds is None else text_embeds
        logits = self.logits(output.case_embeds, text_embeds)

        losses = {}
        if labels is not None:
            losses["diagnosis_loss"] = diagnosis_loss(logits, labels)
        if key_slices is not None and (key_slices >= 0).any():
            losses["key_slice_loss"] = self.config.key_slice_loss_weight * key_slice_loss(
                output.slice_attentions, slices_per_scan.tolist(), key_slices
            )
        diagnosis = RadFMDiagnosisOutput(
            loss=sum(losses.values()) if losses else None,
            logits=logits,
            case_embeds=output.case_embeds,
            scan_embeds=output.scan_embeds,
            scan_features=output.scan_features,
            slice_attentions=output.slice_attentions,
            scan_attentions=output.scan_attentions,
            text_embeds=text_embeds,
            lone_scan_logits=self.logits(output.lone_scan_embeds, text_embeds) if lone_scans else None,
            lone_place_logits=self.logits(output.lone_place_embeds, text_embeds) if lone_places else None,
            **losses,
        )
        return diagnosis if return_dict is not False else diagnosis.to_tuple()

    def logits(self, case_embeds: Tensor, text_embeds: Tensor | None = None) -> Tensor:
        """The head alone: (cases, d) as `forward` returns them, (texts, d) or the vocabulary -> (cases, disorders)."""
        if self.config.head == "mlp":
            if text_embeds is not None:
                raise ValueError("an mlp head scores its own list of disorders only: leave out the texts")
            return self.classifier(case_embeds)
        disorders = self.disorder_embeds if text_embeds is None else text_embeds.to(case_embeds.dtype)
        return self.logit_scale.exp() * (case_embeds @ disorders.T) + self.logit_bias

    def log_odds(self, logits: Tensor) -> Tensor:
        """The vocabulary's logits, (cases, disorders), as calibrated ones, whose sigmoid is a probability.

        Each has its slope and shift (Platt 1999); of disorders that exclude one another the sigmoid is the softmax.
        Without `config.calibration` they stay as they are.
        """
        fit = self.config.calibration
        if fit is None:
            return logits
        logits = logits.float()
        odds = logits * logits.new_tensor(fit["slopes"]) + logits.new_tensor(fit["shifts"])
        for group in fit["one_of"]:
            odds[:, group["rows"]] = competing_log_odds(odds[:, group["rows"]], group["none"])
        return odds

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """(texts, tokens) int64 -> (texts, d), of unit length."""
        return self.radfm.get_text_features(input_ids, attention_mask)

    def get_case_features(self, **inputs) -> Tensor:
        """A packed batch -> (cases, d), of unit length."""
        return self.radfm.get_case_features(**inputs)

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
        """Swaps the vocabulary; it is saved with the checkpoint. Calibration, thresholds and sets end here.

        Args:
            disorders: n names.
            embeds: (n, d), for the text head, from `get_text_features`. The mlp head has none: it keeps the rows of the
                names that stay, and new names start untrained.
            icd10cm: n lists of codes.
        Raises:
            ValueError: where the lengths differ, a name comes twice, or a text head gets no embeddings.
        """
        disorders = list(disorders)
        codes = [list(c) for c in icd10cm] if icd10cm is not None else []
        if len(set(disorders)) != len(disorders):
            twice = next(name for i, name in enumerate(disorders) if name in disorders[:i])
            raise ValueError(f"{twice!r} is in the vocabulary twice: give each disorder once")
        if codes and len(codes) != len(disorders):
            raise ValueError(f"{len(codes)} lists of ICD-10-CM codes for {len(disorders)} disorders")
        if self.config.head == "text":
            expected = (len(disorders), self.config.projection_dim)
            if embeds is None or tuple(embeds.shape) != expected:
                got = "none" if embeds is None else tuple(embeds.shape)
                raise ValueError(f"the text head needs embeddings of shape {expected}, got {got}")
            self.disorder_embeds = F.normalize(embeds.detach().float(), dim=-1).to(self.disorder_embeds)
        else:
            known = {name: row for row, name in enumerate(self.config.disorders)}
            self.classifier.resize([known.get(name) for name in disorders])
        self.config.disorders, self.config.icd10cm = disorders, codes
        self.config.calibration = self.config.thresholds = self.config.prediction_sets = None

    @torch.no_grad()
    def optimize_for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> "RadFMForDiagnosis":
        """Makes the tower fast for a batch of cases, for inference only; returns the model.

        Batch normalisation is folded into the convolutions and pictures lie channels-last. `compile` adds
        `torch.compile` with frozen weights: half a minute, once, and slices then go in chunks of one fixed size.

        Args:
            dtype: bfloat16 where the processor has instructions for it; unset, what the weights have.
        """
        dtype = dtype or self.dtype
        self.eval().requires_grad_(False)
        self.radfm.slice_encoder.optimize_for_inference(dtype, compile)
        return self.to(dtype)


class SliceEncoding(NamedTuple):
    """What the slice encoder says.

    Args:
        embeds: (looks, width).
        looks_per_scan: (scans,).
        features: (looks, f). What the tower said, before it was projected; of "resnet-vit" the embeddings.
        evidence: (looks, disorders). How much the likeliest place of each looks like each disorder that the tower was
            taught; of a tower that was.
        places: (looks, h, w, width). As `embeds`, if each place were a slice of its own; where asked for.
        place_evidence: (looks, h, w, disorders). As `evidence`, of each place by itself; where asked for.
    """

    embeds: Tensor
    looks_per_scan: list[int]
    features: Tensor
    evidence: Tensor | None = None
    places: Tensor | None = None
    place_evidence: Tensor | None = None


class RadFMSliceEncoder(nn.Module):
    """Slices -> one vector per look; a look is `slice_depth` neighbouring slices, mostly one."""

    def __init__(self, config: RadFMVisionConfig, hidden_size: int):
        super().__init__()
        self.config = config
        self.slices_per_chunk = config.slices_per_chunk
        self.gradient_checkpointing = False
        self.tower = visual_tower(config)
        config.num_features = config.num_features or num_features(self.tower, config)
        self.projection = _projection(config.num_features, hidden_size)
        self.token_encoder = None
        if config.family == "resnet-vit":
            tokens = RadFMEncoderConfig(
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                num_positions=feature_map_side(self.tower, config) ** 2,
            )
            self.token_encoder = RadFMEncoder(tokens, hidden_size)
        self._fast_tower = None

    def forward(
        self,
        pixel_values: Tensor | None,
        slice_counts: list[int],
        slice_features: Tensor | None = None,
        with_places: bool = False,
    ) -> SliceEncoding:
        if with_places and not self.tells_places:
            raise ValueError("of places only a resnet tower tells, of one slice a look")
        if slice_features is not None:
            features = slice_features.to(self.dtype)
            return SliceEncoding(self.projection(features), slice_counts, features, self._evidence(features))
        looks = self._looks(pixel_values, slice_counts)
        chunk = len(looks) if self.training and not self.gradient_checkpointing else self.slices_per_chunk
        counts = [-(-n // self.config.slice_depth) for n in slice_counts]
        if not len(looks):
            none = looks.new_zeros((0, self.config.num_features), dtype=self.dtype)
            embeds, evidence = looks.new_zeros((0, self.embed_dim), dtype=self.dtype), self._evidence(none)
            if not with_places:
                return SliceEncoding(embeds, counts, none, evidence)
            places = evidence if evidence is None else evidence.view(0, 1, 1, -1)
            return SliceEncoding(embeds, counts, none, evidence, embeds.view(0, 1, 1, -1), places)
        starts = range(0, len(looks), chunk)
        parts = zip(*(self._embed(looks[start : start + chunk], with_places) for start in starts), strict=True)
        embeds, *others = (None if part[0] is None else torch.cat(part) for part in parts)
        return SliceEncoding(embeds, counts, *others)

    @property
    def embed_dim(self) -> int:
        return self.projection.out_features if isinstance(self.projection, nn.Linear) else self.config.num_features

    @property
    def dtype(self) -> torch.dtype:
        return next(self.tower.parameters()).dtype

    def spread(self, attentions: Tensor, slice_counts: list[int]) -> Tensor:
        """The attention of each look, shared by its slices: (looks,) -> (slices,)."""
        depth = self.config.slice_depth
        if depth == 1:
            return attentions
        sizes = [min(depth, n - start) for n in slice_counts for start in range(0, n, depth)]
        sizes = torch.tensor(sizes, dtype=torch.int64, device=attentions.device)
        return (attentions / sizes).repeat_interleave(sizes)

    def optimize_for_inference(self, dtype: torch.dtype, compile: bool) -> None:
        self._fast_tower = FastTower(self.tower, dtype, self.config.slices_per_chunk if compile else None)

    def _looks(self, pixel_values: Tensor, slice_counts: list[int]) -> Tensor:
        depth = self.config.slice_depth
        if depth == 1:
            return pixel_values
        rows, first = [], 0
        for n in slice_counts:
            rows += [[first + min(start + k, n - 1) for k in range(depth)] for start in range(0, n, depth)]
            first += n
        index = torch.tensor(rows, dtype=torch.int64, device=pixel_values.device).reshape(-1, depth)
        return pixel_values[index].flatten(1, 2)  # (looks, depth * 3, H, W)

    @property
    def tells_places(self) -> bool:
        """Whether a place of the last feature map can stand for a slice: as a map of one place, pooled by itself."""
        tells = self.config.family == "resnet" and self.config.slice_depth == 1 and hasattr(self.tower, "forward_head")
        return tells and str(getattr(self.tower, "output_fmt", "NCHW")) != "NHWC"

    def _evidence(self, features: Tensor) -> Tensor | None:
        """What stands at the end of a tower's vector, where it was taught places: (..., disorders)."""
        return features[..., -self.config.place_disorders :] if self.config.place_disorders else None

    def _embed(self, looks: Tensor, with_places: bool) -> tuple[Tensor | None, ...]:
        """Of some looks: embeddings, features, evidence, places and evidence of places, as in [`SliceEncoding`]."""
        looks = looks.to(self.dtype, memory_format=torch.channels_last)  # what convolutions are fastest in
        tower = self.tower.forward_features if with_places else self._fast_tower or self.tower
        if self.training and self.gradient_checkpointing and self._fast_tower is None:
            features = self._gradient_checkpointing_func(tower, looks)
        else:
            features = tower(looks)
        if with_places:
            alone = each_place(features)
            places = self.tower.forward_head(alone.flatten(0, 2)).unflatten(0, alone.shape[:3])
            features = self.tower.forward_head(features)
            of_slices = self.projection(features), features, self._evidence(features)
            return *of_slices, self.projection(places), self._evidence(places)
        if self.token_encoder is None:
            return self.projection(features), features, self._evidence(features), None, None
        tokens = self.projection(features.flatten(2).transpose(1, 2))  # (looks, positions, width)
        embeds = self.token_encoder(tokens.flatten(0, 1), [tokens.shape[1]] * len(tokens))[0]
        return embeds, embeds, None, None, None


class RadFMTextEncoder(nn.Module):
    """Token ids -> (texts, d): any text encoder of transformers, or an open_clip text tower."""

    def __init__(self, config: RadFMConfig):
        super().__init__()
        self.pooling = config.text_pooling
        text = config.text_config
        if isinstance(text, RadFMOpenCLIPTextConfig):
            self.encoder, width = open_clip_text_tower(text), text.embed_dim
        else:
            self.encoder, width = AutoModel.from_config(text), text.hidden_size
            if getattr(self.encoder, "pooler", None) is not None:
                self.encoder.pooler = None  # never asked
        if config.text_projection == "affine":
            self.projection = nn.Linear(width, config.projection_dim)
        else:
            self.projection = _projection(width, config.projection_dim, mlp=config.text_projection == "mlp")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if not isinstance(self.encoder, PreTrainedModel):
            missing = self.encoder.context_length - input_ids.shape[1]  # open_clip's mask has one length only
            return self.projection(self.encoder(F.pad(input_ids, (0, missing))))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return self.projection(tokens[:, 0])
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return self.projection((tokens * mask).sum(1) / mask.sum(1).clamp(min=1))

    def get_input_embeddings(self) -> nn.Module:
        return getattr(self.encoder, "token_embedding", None) or self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)


class RadFMDaysEmbedding(nn.Module):
    """Days before the newest scan as a vector, on a logarithmic scale from a day to a lifetime; zero where unknown."""

    def __init__(self, hidden_size: int, frequencies: int = 8):
        super().__init__()
        self.frequencies = frequencies
        self.weight = nn.Parameter(torch.zeros(2 * frequencies, hidden_size))

    def forward(self, days: Tensor) -> Tensor:
        known = ~days.isnan()
        octaves = torch.arange(1, self.frequencies + 1, device=days.device)
        phase = torch.log1p(days.float().nan_to_num().clamp(min=0)).unsqueeze(-1) * octaves * (torch.pi / 12)
        features = torch.cat([phase.sin(), phase.cos()], dim=-1) * known.unsqueeze(-1)
        return features.to(self.weight.dtype) @ self.weight


class RadFMClassifier(nn.Module):
    """Two layers over a fixed list of disorders."""

    def __init__(self, hidden_size: int, num_disorders: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, hidden_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # there may be no disorder yet
            self.fc2 = nn.Linear(hidden_size, num_disorders)

    def forward(self, case_embeds: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(case_embeds)))

    @torch.no_grad()
    def resize(self, rows: list[int | None]) -> None:
        """Keeps the given rows, in this order; None makes an untrained one."""
        old, new = self.fc2, nn.Linear(self.fc2.in_features, len(rows))
        new = new.to(device=old.weight.device, dtype=old.weight.dtype)
        for i, row in enumerate(rows):
            if row is not None:
                new.weight[i], new.bias[i] = old.weight[row], old.bias[row]
        self.fc2 = new


def competing_log_odds(logits: Tensor, none: bool) -> Tensor:
    """(cases, disorders) that exclude one another: log p / (1 - p) of each, p being the softmax.

    Args:
        none: whether a case may have none of them, which then competes with a logit of 0.
    """
    logits = logits.double()
    rivals = F.pad(logits, (0, 1)) if none else logits
    log_p = (logits - rivals.logsumexp(1, keepdim=True)).clamp(max=-1e-12)
    return (log_p - torch.log(-torch.expm1(log_p))).float()


def diagnosis_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of (cases, disorders), logits clamped to +-60 (Zheng et al. 2024)."""
    return F.binary_cross_entropy_with_logits(logits.float().clamp(-60, 60), labels.float())


def key_slice_loss(slice_attentions: Tensor, slice_counts: list[int], key_slices: Tensor) -> Tensor:
    """How far the attention over slices is from a Gaussian around the annotated key slice (Zheng et al. 2024).

    The mean of [`key_slice_divergences`] over the scans whose key slice is known; 0 where none is.
    """
    divergences = key_slice_divergences(slice_attentions, slice_counts, key_slices)
    return divergences.mean() if len(divergences) else slice_attentions.sum() * 0.0


def key_slice_divergences(slice_attentions: Tensor, slice_counts: list[int], key_slices: Tensor) -> Tensor:
    """(scans whose key slice is known,): the mean of the two Kullback-Leibler divergences from that Gaussian.

    Sigma is two slices, probabilities are clamped at 1e-5.

    Args:
        slice_attentions: (slices,), sums to 1 per scan.
        slice_counts: slices of each scan.
        key_slices: (scans,) int64, -1 where unknown.
    """
    counts = torch.tensor(slice_counts, dtype=torch.int64, device=slice_attentions.device)
    scan = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)  # of each slice
    place = torch.arange(len(scan), device=counts.device) - (counts.cumsum(0) - counts)[scan]

    def of_scans(values: Tensor) -> Tensor:
        return values.new_zeros(len(counts)).index_add(0, scan, values)

    target = torch.exp(-((place - key_slices[scan]) ** 2) / (2 * 2.0**2))
    target, attention = (target / of_scans(target)[scan]).clamp(min=1e-5), slice_attentions.float().clamp(min=1e-5)
    return of_scans((target - attention) * (target.log() - attention.log()))[key_slices >= 0] / 2


def _projection(inputs: int, outputs: int, mlp: bool = False) -> nn.Module:
    if mlp:  # as open_clip has it
        between = (inputs + outputs) // 2
        return nn.Sequential(nn.Linear(inputs, between, bias=False), nn.GELU(), nn.Linear(between, outputs, bias=False))
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)


def _mean_of_each(features: Tensor, sizes: list[int]) -> Tensor:
    """(looks, f) and looks of each group -> (groups, f)."""
    return torch.stack([part.mean(0) for part in features.split(sizes)]) if sizes else features[:0]


def _likeliest(evidence: Tensor, sizes: list[int]) -> Tensor:
    """(looks, disorders) and looks of each group -> (groups, disorders), the most that any of its looks says."""
    return torch.stack([part.amax(0) if len(part) else part.sum(0) for part in evidence.split(sizes)])


def _with_histories(
    scans: Tensor, scan_counts: list[int], histories: Tensor, history_counts: list[int]
) -> tuple[Tensor, list[int]]:
    """Each case's history behind its scans: (scans + histories, width), and the tokens of each case."""
    pairs = zip(scans.split(scan_counts), histories.to(scans.dtype).split(history_counts), strict=True)
    counts = [a + b for a, b in zip(scan_counts, history_counts, strict=True)]
    return torch.cat([part for pair in pairs for part in pair]), counts


def _of_scans(attentions: Tensor, counts: list[int], scan_counts: list[int]) -> Tensor:
    """What the scans counted among themselves: (scans + histories,) -> (scans,), sums to 1 per case."""
    parts = [part[:n] for part, n in zip(attentions.split(counts), scan_counts, strict=True)]
    return torch.cat([part / part.sum().clamp(min=1e-12) for part in parts])


def _check_counts(slices: Tensor, slice_counts: list[int], scan_counts: list[int], modality_ids: Tensor) -> None:
    if sum(slice_counts) != len(slices):
        raise ValueError(f"slices_per_scan sums to {sum(slice_counts)}, pixel_values holds {len(slices)} slices")
    if sum(scan_counts) != len(slice_counts):
        raise ValueError(f"scans_per_case sums to {sum(scan_counts)}, slices_per_scan holds {len(slice_counts)} scans")
    if len(modality_ids) != len(slice_counts):
        raise ValueError(f"{len(modality_ids)} modality_ids for {len(slice_counts)} scans")


RadFMForDiagnosis.register_for_auto_class("AutoModel")

__all__ = ["RadFMForDiagnosis", "RadFMModel", "RadFMPreTrainedModel"]
