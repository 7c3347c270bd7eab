"""The slice encoder: a tower and the projection of its features to the width of the model.

Decisions:
- Without gradients the tower takes a fixed number of slabs at a time: a scan of a thousand slices needs the memory of
  its pixels, not of its activations.
- Features of a frozen tower that were computed before take the place of pixels: the tower is then left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .configuration_radfm import RadFMVisionConfig
from .layers_radfm import projection_layer
from .outputs_radfm import PatchEncoding, SliceEncoding
from .towers_radfm import build_tower


class RadFMSliceEncoder(nn.Module):
    """Slices -> one vector for each slab, a group of `slice_depth` neighbouring slices, usually one."""

    def __init__(self, config: RadFMVisionConfig, hidden_size: int):
        super().__init__()
        self.config = config
        self.slices_per_chunk = config.slices_per_chunk
        self.gradient_checkpointing = False
        self.tower = build_tower(config, hidden_size)
        config.num_features = self.tower.num_features
        self.projection = projection_layer(self.tower.num_features, hidden_size)
        self.embed_dim = hidden_size

    def forward(self, pixel_values: Tensor, slices_per_scan: list[int], with_patches: bool = False) -> SliceEncoding:
        """
        ```python
        slices = model.radfm.slice_encoder(batch["pixel_values"], batch["slices_per_scan"].tolist())
        slices.embeds  # (slabs, hidden_size)
        ```

        Args:
            pixel_values: (slices, 3, H, W), or (slices, f), features that the tower computed before.
            slices_per_scan: sums to slices.
            with_patches: whether to encode also each patch of the last feature map.
        Raises:
            ValueError: the tower cannot show its patches.
        """
        if with_patches and not (self.tower.shows_patches and pixel_values.ndim == 4):
            raise ValueError("patches can be encoded from pixels, by a CNN with slice_depth=1, only")
        if pixel_values.ndim == 2:
            features = pixel_values.to(self.dtype)
            embeds, patch_logits = self.projection(features), self.tower.patch_logits(features)
            return SliceEncoding(embeds, slices_per_scan, slices_per_scan, features, patch_logits)
        slabs = self._slabs(pixel_values, slices_per_scan)
        slabs_per_scan = [-(-n // self.config.slice_depth) for n in slices_per_scan]
        if not len(slabs):
            return self._nothing(slabs, slices_per_scan, slabs_per_scan, with_patches)
        chunk = len(slabs) if self.training and not self.gradient_checkpointing else self.slices_per_chunk
        starts = range(0, len(slabs), chunk)
        parts = zip(*(self._encode(slabs[start : start + chunk], with_patches) for start in starts), strict=True)
        embeds, features, *patches = (None if part[0] is None else torch.cat(part) for part in parts)
        return SliceEncoding(
            embeds=embeds,
            slices_per_scan=slices_per_scan,
            slabs_per_scan=slabs_per_scan,
            features=features,
            patch_logits=self.tower.patch_logits(features),
            patches=PatchEncoding(*patches) if with_patches else None,
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.tower.parameters()).dtype

    def attention_of_slices(self, attention: Tensor, slices_per_scan: list[int]) -> Tensor:
        """The attention of each slab, divided among its slices: (slabs,) -> (slices,)."""
        if self.config.slice_depth == 1:
            return attention
        sizes = slab_sizes(slices_per_scan, self.config.slice_depth, attention.device)
        return (attention / sizes).repeat_interleave(sizes)

    def _encode(self, slabs: Tensor, with_patches: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings and features of some slabs; embeddings and patch logits of their patches, where requested."""
        slabs = slabs.to(self.dtype, memory_format=torch.channels_last)  # in which convolutions are fastest
        run = self.tower.feature_map if with_patches else self.tower
        output = self._gradient_checkpointing_func(run, slabs) if self._checkpoints else run(slabs)
        if not with_patches:
            return self.projection(output), output, None, None
        features, of_patches = self.tower.pool(output), self.tower.pool_patches(output)
        return self.projection(features), features, self.projection(of_patches), self.tower.patch_logits(of_patches)

    @property
    def _checkpoints(self) -> bool:
        return self.training and self.gradient_checkpointing

    def _slabs(self, pixel_values: Tensor, slices_per_scan: list[int]) -> Tensor:
        depth = self.config.slice_depth
        if depth == 1:
            return pixel_values
        rows, first = [], 0
        for n in slices_per_scan:
            rows += [[first + min(start + k, n - 1) for k in range(depth)] for start in range(0, n, depth)]
            first += n
        index = torch.tensor(rows, dtype=torch.int64, device=pixel_values.device).reshape(-1, depth)
        return pixel_values[index].flatten(1, 2)  # (slabs, depth * 3, H, W)

    def _nothing(self, slabs: Tensor, slices_per_scan, slabs_per_scan, with_patches: bool) -> SliceEncoding:
        features = slabs.new_zeros((0, self.tower.num_features), dtype=self.dtype)
        embeds, patch_logits = features.new_zeros(0, self.embed_dim), self.tower.patch_logits(features)
        patches = None
        if with_patches:
            logits = None if patch_logits is None else patch_logits.view(0, 1, 1, -1)
            patches = PatchEncoding(embeds.view(0, 1, 1, -1), logits)
        return SliceEncoding(embeds, slices_per_scan, slabs_per_scan, features, patch_logits, patches)


def slab_sizes(slices_per_scan: Sequence[int], depth: int, device: torch.device | None = None) -> Tensor:
    """(slabs,) int64, the number of slices in each slab."""
    sizes = [min(depth, n - start) for n in slices_per_scan for start in range(0, n, depth)]
    return torch.tensor(sizes, dtype=torch.int64, device=device)
