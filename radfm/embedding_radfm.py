"""The embedding model: slices, scans, cases and texts as vectors.

Decisions:
- Nothing is padded. All slices of all scans of all cases lie in one row, so cost follows the slices that exist and
  the other cases of a batch cannot change an answer.
- The stages `encode_slices`, `encode_scans` and `encode_cases` can be called alone. A scan, or a patch of a slice, has
  an embedding of its own by going through the later stages as a case of its own.
- A history is one more token of its case, behind the scans. A case without one has a token less, and nothing else.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .base_tower_radfm import Tower
from .configuration_radfm import RadFMConfig, RadFMEncoderConfig, RadFMScanConfig, RadFMVisionConfig
from .encoder_radfm import RadFMEncoder
from .heads_radfm import Head, head_class
from .layers_radfm import RadFMDaysEmbedding, first_of_groups, max_of_groups, mean_of_groups, projection_layer
from .outputs_radfm import CaseEncoding, RadFMModelOutput, ScanEncoding, SliceEncoding
from .slice_encoder_radfm import RadFMSliceEncoder, encode_with_both
from .text_encoder_radfm import RadFMTextEncoder


class RadFMPreTrainedModel(PreTrainedModel):
    config: RadFMConfig
    config_class = RadFMConfig
    base_model_prefix = "radfm"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # a step's loss is a mean: a Trainer averages those of the micro-steps
    _no_split_modules = ["RadFMSliceEncoder", "RadFMEncoderLayer"]  # noqa: RUF012
    _supports_sdpa = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, from safetensors only: a pickle is never opened."""
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs | {"use_safetensors": True})

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, with the names of `state_dict()`: a training that is resumed reads weights by these.

        transformers would save parts of its own, such as a ViT, with the names that they had in earlier versions.
        """
        return super().save_pretrained(save_directory, *args, **{"save_original_format": False} | kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if getattr(module, "is_part_of_a_tower", False):
            return  # its own constructor has initialised it
        if isinstance(module, RadFMEncoder):
            if module.layers:
                init.normal_(module.class_token, std=std)
            if module.positions is not None:
                init.normal_(module.positions, std=std)
        elif isinstance(module, RadFMDaysEmbedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, Head):
            module.init_weights(self.config)
        else:
            super()._init_weights(module)


class RadFMModel(RadFMPreTrainedModel):
    """Slices, scans, cases and texts as vectors."""

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        head, width = head_class(config), config.hidden_size
        vision = cast(RadFMVisionConfig, config.vision_config)
        scans, cases = cast(RadFMScanConfig, config.scan_config), cast(RadFMEncoderConfig, config.case_config)
        config.projection_dim = head.embed_dim(config)
        self.head_reads_text = head.reads_text
        self.scores_scans = config.fusion == "logsumexp"
        self.slice_encoder = RadFMSliceEncoder(vision, width)
        volumes = cast(RadFMVisionConfig | None, config.volume_config)
        self.volume_encoder = None if volumes is None else RadFMSliceEncoder(volumes, width)
        self.scan_encoder = RadFMEncoder(scans, width)
        self.case_encoder = RadFMEncoder(cases, width)
        # Without a fusion module nothing reads the modality, the plane or the days of a scan.
        fusion = cases.num_hidden_layers > 0
        self.modality_embed = nn.Embedding(len(config.modalities), width) if fusion else None
        self.plane_embed = nn.Embedding(len(config.planes), width) if fusion and config.use_planes else None
        self.days_embed = RadFMDaysEmbedding(width) if fusion and config.use_days else None
        reads_history = fusion and config.use_history and config.text_config is not None
        self.history_projection = nn.Linear(config.projection_dim, width) if reads_history else None
        self.case_projection = projection_layer(width, config.projection_dim)
        patch_disorders = self.slice_encoder.tower.patch_disorders if head.reads_text else 0
        self.patch_projection = (
            nn.Linear(patch_disorders, config.projection_dim, bias=False) if patch_disorders else None
        )
        self.text_encoder = RadFMTextEncoder(config) if config.text_config is not None else None
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
        return_dict: bool | None = None,
        **kwargs,
    ) -> RadFMModelOutput | tuple:
        """
        ```python
        batch = processor(cases=[radfm.read_case("study/")])
        outputs = model.radfm(**batch)
        outputs.case_embeds  # (1, d)
        ```

        Args:
            pixel_values: (slices, 3, H, W). Every slice of the batch, in case, scan, slice order. Or (slices, f): the
                features of these slices that a frozen tower with one vector for each slice computed before.
            slices_per_scan: (scans,) int64, sums to slices.
            scans_per_case: (cases,) int64, sums to scans.
            modality_ids: (scans,) int64, index into `config.modalities`.
            plane_ids: (scans,) int64, index into `config.planes`.
            days: (scans,). Days before the newest scan of the case; NaN where unknown.
            volumes: (scans,) bool, the scans that the tower of volumes reads; for a model with `volume_config`.
            input_ids, attention_mask: (texts, tokens) int64.
            histories_per_case: (cases,) int64, 0 or 1, sums to histories.
            history_input_ids, history_attention_mask: (histories, tokens) int64.
            history_embeds: (histories, d). In place of `history_input_ids` that were embedded before.
        Raises:
            ValueError: the counts do not add up, or there are texts and no text encoder.
        """
        slices = self.encode_slices(pixel_values, slices_per_scan, volumes=volumes)
        scans = self.encode_scans(slices)
        cases = self.encode_cases(
            scans=scans,
            scans_per_case=scans_per_case,
            modality_ids=modality_ids,
            plane_ids=plane_ids,
            days=days,
            histories_per_case=histories_per_case,
            history_input_ids=history_input_ids,
            history_attention_mask=history_attention_mask,
            history_embeds=history_embeds,
        )
        output = RadFMModelOutput(
            case_embeds=cases.embeds,
            token_embeds=cases.token_embeds,
            tokens_per_case=scans_per_case.new_tensor(cases.tokens_per_case),
            scan_embeds=scans.embeds,
            scan_features=scans.features,
            slice_attentions=scans.slice_attentions,
            scan_attentions=cases.scan_attentions,
            text_embeds=None if input_ids is None else self.get_text_features(input_ids, attention_mask),
        )
        return output if return_dict is not False else output.to_tuple()

    @property
    def towers(self) -> list[Tower]:
        """That of slices and, where there is one, that of volumes."""
        encoders = (self.slice_encoder, self.volume_encoder)
        return [encoder.tower for encoder in encoders if encoder is not None]

    def encode_slices(
        self,
        pixel_values: Tensor,
        slices_per_scan: Tensor,
        with_patches: bool = False,
        volumes: Tensor | None = None,
    ) -> SliceEncoding:
        """The first stage.

        Args:
            pixel_values, slices_per_scan, volumes: as in `forward`.
            with_patches: whether to encode also each patch of the tower's last feature map.
        Raises:
            ValueError: the counts do not add up, or the tower cannot show its patches.
        """
        slice_counts = slices_per_scan.tolist()
        if sum(slice_counts) != len(pixel_values):
            raise ValueError(
                f"slices_per_scan sums to {sum(slice_counts)}, pixel_values holds {len(pixel_values)} slices"
            )
        if self.volume_encoder is None:
            return self.slice_encoder(pixel_values, slice_counts, with_patches=with_patches)
        if with_patches or pixel_values.ndim != 4:
            raise ValueError("a model with two towers encodes neither patches nor features that were computed before")
        chosen = [False] * len(slice_counts) if volumes is None else volumes.tolist()
        return encode_with_both(self.slice_encoder, self.volume_encoder, pixel_values, slice_counts, chosen)

    def encode_scans(self, slices: SliceEncoding) -> ScanEncoding:
        """The second stage: attention over the slices of each scan."""
        encoded = self.scan_encoder(slices.embeds, slices.slabs_per_scan)
        patch_logits = None
        if slices.patch_logits is not None:
            patch_logits = max_of_groups(slices.patch_logits, slices.slabs_per_scan)
        return ScanEncoding(
            embeds=encoded.embeds,
            features=mean_of_groups(slices.features, slices.slabs_per_scan),
            slice_attentions=slices.attention_of_slices(encoded.attention),
            patch_logits=patch_logits,
        )

    def encode_cases(
        self,
        scans: ScanEncoding,
        scans_per_case: Tensor,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        histories_per_case: Tensor | None = None,
        history_input_ids: Tensor | None = None,
        history_attention_mask: Tensor | None = None,
        history_embeds: Tensor | None = None,
    ) -> CaseEncoding:
        """The third stage: attention over the scans of each case and its history.

        Args:
            scans: from `encode_scans`; the others as in `forward`. With `scans_per_case` of ones each scan is a case.
        Raises:
            ValueError: the counts do not add up.
        """
        scan_counts = scans_per_case.tolist()
        _check_counts(scan_counts, len(scans.embeds), modality_ids)

        # scans in context, (scans, hidden_size)
        tokens = self._add_scan_context(scans.embeds, modality_ids, plane_ids, days)
        token_counts = scan_counts
        if self.history_projection is not None and histories_per_case is not None:
            if history_embeds is None:
                history_embeds = self.get_text_features(history_input_ids, history_attention_mask)
            histories = self.history_projection(history_embeds)  # (histories, hidden_size)
            tokens, token_counts = _append_histories(tokens, scan_counts, histories, histories_per_case.tolist())

        # fusion
        encoded = self.case_encoder(tokens, token_counts, with_tokens=self.scores_scans)
        scan_attentions, in_context = encoded.attention, encoded.tokens if self.scores_scans else None
        if token_counts is not scan_counts:
            scan_attentions = _attentions_of_scans(encoded.attention, token_counts, scan_counts)
            in_context = None if in_context is None else first_of_groups(in_context, token_counts, scan_counts)

        # the tokens that are scored, projected and normalized, (tokens, d)
        token_embeds = self._project(encoded.embeds, scans.patch_logits, scan_counts)
        tokens_per_case = [1] * len(scan_counts)
        if in_context is not None:
            of_scans = self._project(in_context, scans.patch_logits, [1] * len(in_context))
            has_class_token = self.case_encoder.class_token is not None
            parts = [
                torch.cat([own, part]) if has_class_token or not len(part) else part  # a case without scans has a token
                for own, part in zip(token_embeds.split(1), of_scans.split(scan_counts), strict=True)
            ]
            token_embeds, tokens_per_case = torch.cat(parts) if parts else of_scans, [len(part) for part in parts]
        return CaseEncoding(token_embeds, tokens_per_case, scan_counts, scan_attentions)

    def encode_each_patch(
        self, slices: SliceEncoding, modality_ids: Tensor, plane_ids: Tensor | None = None, days: Tensor | None = None
    ) -> CaseEncoding:
        """The slabs * h * w patches, each as a case of its own.

        Args:
            slices: from `encode_slices(..., with_patches=True)`.
            modality_ids, plane_ids, days: of the scans, as in `forward`.
        """
        if (patches := slices.patches) is None:
            raise ValueError("these slices have no patches: call encode_slices(..., with_patches=True)")
        slabs, height, width = patches.embeds.shape[:3]
        patches_per_scan = torch.tensor(slices.slabs_per_scan, device=modality_ids.device) * (height * width)
        modality_ids, plane_ids, days = (
            ids if ids is None else ids.repeat_interleave(patches_per_scan, 0)
            for ids in (modality_ids, plane_ids, days)
        )
        encoded = self.scan_encoder(patches.embeds.flatten(0, 2), [1] * (slabs * height * width))
        patch_logits = None if patches.patch_logits is None else patches.patch_logits.flatten(0, 2)
        return self.encode_cases(
            scans=ScanEncoding(embeds=encoded.embeds, patch_logits=patch_logits),
            scans_per_case=torch.ones_like(modality_ids),
            modality_ids=modality_ids,
            plane_ids=plane_ids,
            days=days,
        )

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

    def get_scan_features(
        self,
        pixel_values: Tensor,
        slices_per_scan: Tensor,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        volumes: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """A packed batch -> (scans, d), of unit length: each scan as a case of its own, without a history."""
        scans = self.encode_scans(self.encode_slices(pixel_values, slices_per_scan, volumes=volumes))
        return self._features_of_each(scans, modality_ids, plane_ids, days)

    def get_slice_features(
        self,
        pixel_values: Tensor,
        slices_per_scan: Tensor,
        modality_ids: Tensor,
        plane_ids: Tensor | None = None,
        days: Tensor | None = None,
        volumes: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """A packed batch -> (slabs, d), of unit length: each slab as a case of its own, without a history."""
        slices = self.encode_slices(pixel_values, slices_per_scan, volumes=volumes)
        ones = [1] * sum(slices.slabs_per_scan)
        scans = self.encode_scans(slices._replace(slices_per_scan=ones, slabs_per_scan=ones, slices_per_slab=None))
        slabs_per_scan = torch.tensor(slices.slabs_per_scan, dtype=torch.int64, device=modality_ids.device)
        context = (modality_ids, plane_ids, days)
        return self._features_of_each(
            scans, *(ids if ids is None else ids.repeat_interleave(slabs_per_scan) for ids in context)
        )

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.text_encoder is None else self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        if self.text_encoder is None:
            raise ValueError("this checkpoint has no text encoder: it knows its own list of disorders only")
        self.text_encoder.set_input_embeddings(value)

    def _features_of_each(
        self, scans: ScanEncoding, modality_ids: Tensor, plane_ids: Tensor | None, days: Tensor | None
    ) -> Tensor:
        """(scans, d), of unit length: each scan as a case of its own."""
        cases = self.encode_cases(scans, torch.ones_like(modality_ids), modality_ids, plane_ids, days)
        return F.normalize(cases.embeds, dim=-1)

    def _project(self, embeds: Tensor, patch_logits: Tensor | None, scan_counts: list[int]) -> Tensor:
        """(groups, hidden_size) -> (groups, d), with the highest patch logits of the scans of each group.

        Args:
            patch_logits: (scans, patch disorders).
            scan_counts: scans of each group.
        """
        embeds = self.case_projection(embeds)
        if self.patch_projection is not None:
            highest = max_of_groups(patch_logits, scan_counts)
            embeds = embeds + self.patch_projection(highest.masked_fill(highest.isneginf(), 0))  # -inf: no slices
        return F.normalize(embeds, dim=-1) if self.head_reads_text else embeds

    def _add_scan_context(
        self, scan_embeds: Tensor, modality_ids: Tensor, plane_ids: Tensor | None, days: Tensor | None
    ) -> Tensor:
        """(scans, hidden_size), with the modality, the plane and the days of each scan added, as far as configured."""
        if self.modality_embed is not None:
            scan_embeds = scan_embeds + self.modality_embed(modality_ids)
        if self.plane_embed is not None and plane_ids is not None:
            scan_embeds = scan_embeds + self.plane_embed(plane_ids)
        if self.days_embed is not None and days is not None:
            scan_embeds = scan_embeds + self.days_embed(days)
        return scan_embeds


def _append_histories(
    scans: Tensor, scan_counts: list[int], histories: Tensor, history_counts: list[int]
) -> tuple[Tensor, list[int]]:
    """Each case's history behind its scans: (scans + histories, hidden_size), and the number of tokens of each case."""
    pairs = zip(scans.split(scan_counts), histories.to(scans.dtype).split(history_counts), strict=True)
    counts = [a + b for a, b in zip(scan_counts, history_counts, strict=True)]
    return torch.cat([part for pair in pairs for part in pair]), counts


def _attentions_of_scans(attentions: Tensor, token_counts: list[int], scan_counts: list[int]) -> Tensor:
    """The attention over the scans without the histories: (scans + histories,) -> (scans,), sums to 1 per case."""
    parts = [part[:n] for part, n in zip(attentions.split(token_counts), scan_counts, strict=True)]
    return torch.cat([part / part.sum().clamp(min=1e-12) for part in parts])


def _check_counts(scan_counts: list[int], scans: int, modality_ids: Tensor) -> None:
    if sum(scan_counts) != scans:
        raise ValueError(f"scans_per_case sums to {sum(scan_counts)}, slices_per_scan holds {scans} scans")
    if len(modality_ids) != scans:
        raise ValueError(f"{len(modality_ids)} modality_ids for {scans} scans")
