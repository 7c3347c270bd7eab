"""What the stages of the model return, and the outputs of its two `forward` methods.

A slab is a group of `vision_config.slice_depth` neighbouring slices that go through the tower together. With the usual
depth of 1 every slab is one slice; for a tower that reads volumes a slab is a volume.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .layers_radfm import mean_of_groups


class PatchEncoding(NamedTuple):
    """The patches of the tower's last feature map, each encoded as if it were a slice of its own.

    Args:
        embeds: (slabs, h, w, hidden_size).
        patch_logits: (slabs, h, w, patch disorders); None for a tower that was not trained on masks.
    """

    embeds: Tensor
    patch_logits: Tensor | None = None


class SliceEncoding(NamedTuple):
    """The result of `encode_slices`.

    Args:
        embeds: (slabs, hidden_size).
        slices_per_scan: slices of each scan.
        slabs_per_scan: slabs of each scan.
        features: (slabs, f). The tower's output before the projection.
        patch_logits: (slabs, patch disorders). For each disorder on whose masks the tower was trained, the largest
            logit over the patches; None for a tower that was not trained on masks.
        patches: [`PatchEncoding`], where requested.
        slices_per_slab: slices of each slab; None where every slab is one slice.
    """

    embeds: Tensor
    slices_per_scan: list[int]
    slabs_per_scan: list[int]
    features: Tensor
    patch_logits: Tensor | None = None
    patches: PatchEncoding | None = None
    slices_per_slab: list[int] | None = None

    def attention_of_slices(self, attention: Tensor) -> Tensor:
        """The attention of each slab, divided among its slices: (slabs,) -> (slices,)."""
        if self.slices_per_slab is None:
            return attention
        sizes = torch.tensor(self.slices_per_slab, dtype=torch.int64, device=attention.device)
        return (attention / sizes).repeat_interleave(sizes)


class ScanEncoding(NamedTuple):
    """The result of `encode_scans`.

    Args:
        embeds: (scans, hidden_size).
        features: (scans, f). The mean of the tower's features over the slabs of a scan.
        slice_attentions: (slices,). Attention over the slices of each scan; sums to 1 per scan.
        patch_logits: (scans, patch disorders). The largest patch logit of a scan, -inf for a scan without slices.
    """

    embeds: Tensor
    features: Tensor | None = None
    slice_attentions: Tensor | None = None
    patch_logits: Tensor | None = None


class CaseEncoding(NamedTuple):
    """The result of `encode_cases`: the tokens that the head scores.

    Args:
        token_embeds: (tokens, d), case by case: the class token, where there is one, then the scans in the context of
            their case. With `fusion="class_token"` the class token alone. Of unit length where the head reads text.
        tokens_per_case: tokens of each case.
        scans_per_case: scans of each case.
        scan_attentions: (scans,). Attention over the scans of each case; sums to 1 per case.
    """

    token_embeds: Tensor
    tokens_per_case: list[int]
    scans_per_case: list[int]
    scan_attentions: Tensor

    @property
    def embeds(self) -> Tensor:
        """(cases, d): the mean of the tokens of each case."""
        return mean_of_groups(self.token_embeds, self.tokens_per_case)

    def of_scans(self, rows: Tensor) -> Tensor:
        """(tokens, ...) -> (scans, ...): the rows of the scans, without those of the class tokens."""
        pairs = zip(rows.split(self.tokens_per_case), self.scans_per_case, strict=True)
        parts = [part[len(part) - scans :] for part, scans in pairs]
        return torch.cat(parts) if parts else rows


@dataclass
class RadFMModelOutput(ModelOutput):
    """
    Args:
        case_embeds: (cases, d). The mean of the tokens of each case, for retrieval; `get_case_features` scales it to
            unit length.
        token_embeds: (tokens, d). What the head scores: of each case the class token, where there is one, and its scans
            in the context of the case. Of unit length for a head that reads text, unscaled otherwise.
        tokens_per_case: (cases,) int64, sums to tokens.
        scan_embeds: (scans, hidden_size).
        scan_features: (scans, f). The mean of the tower's features over the slices of a scan.
        slice_attentions: (slices,). Attention over the slices of each scan; sums to 1 per scan.
        scan_attentions: (scans,). Attention over the scans of each case; sums to 1 per case.
        text_embeds: (texts, d), of unit length; where texts were given.
    """

    case_embeds: Tensor | None = None
    token_embeds: Tensor | None = None
    tokens_per_case: Tensor | None = None
    scan_embeds: Tensor | None = None
    scan_features: Tensor | None = None
    slice_attentions: Tensor | None = None
    scan_attentions: Tensor | None = None
    text_embeds: Tensor | None = None


@dataclass
class RadFMDiagnosisOutput(ModelOutput):
    """
    Args:
        loss: (). The sum of `losses`; where targets were given.
        logits: (cases, disorders). Over the texts where texts were given, else over the vocabulary.
        case_embeds, token_embeds, tokens_per_case, scan_embeds, scan_features, slice_attentions, scan_attentions,
            text_embeds: as in [`RadFMModelOutput`].
        per_scan_logits: (scans, disorders). The logits of each scan in the context of its case, of which those of the
            case are pooled; None with `fusion="class_token"`.
        patch_logits: (slabs, h, w, disorders). The logits of each patch as a case of its own; where an objective needs
            them.
        losses: objective -> (), times its weight; see `radfm.objectives_radfm`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    case_embeds: Tensor | None = None
    token_embeds: Tensor | None = None
    tokens_per_case: Tensor | None = None
    scan_embeds: Tensor | None = None
    scan_features: Tensor | None = None
    slice_attentions: Tensor | None = None
    scan_attentions: Tensor | None = None
    text_embeds: Tensor | None = None
    per_scan_logits: Tensor | None = None
    patch_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None
