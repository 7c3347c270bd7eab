"""The slice encoder: a tower and the projection of its features to the width of the model.

Decisions:
- Without gradients the tower takes a fixed number of slabs at a time: a scan of a thousand slices needs the memory of
  its pixels, not of its activations.
- A slab of a tower that reads volumes may be a whole scan. Volumes of one depth go through the tower together.
- Features of a frozen tower that were computed before take the place of pixels: the tower is then left out.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .base_tower_radfm import channels_last
from .configuration_radfm import RadFMVisionConfig
from .layers_radfm import projection_layer
from .outputs_radfm import PatchEncoding, SliceEncoding
from .towers_radfm import build_tower

_BLACK_SLICES = 8  # of the scan that goes through a tower for which there is none


class RadFMSliceEncoder(nn.Module):
    """Slices -> one vector for each slab, a group of `slice_depth` neighbouring slices, usually one."""

    def __init__(self, config: RadFMVisionConfig, hidden_size: int):
        super().__init__()
        self.config = config
        self.slices_per_chunk = config.slices_per_chunk
        self.gradient_checkpointing = False
        self.tower = build_tower(config, hidden_size)
        if config.slice_depth < 1 and not self.tower.reads_volumes:
            raise ValueError(f"the family {config.family!r} reads slices: slice_depth has to be at least 1")
        config.num_features = self.tower.num_features
        self.projection = projection_layer(self.tower.num_features, hidden_size, config.projection)
        self.embed_dim = hidden_size

    def forward(self, pixel_values: Tensor, slices_per_scan: list[int], with_patches: bool = False) -> SliceEncoding:
        """
        ```python
        slices = model.radfm.slice_encoder(batch["pixel_values"], batch["slices_per_scan"].tolist())
        slices.embeds  # (slabs, hidden_size)
        ```

        Args:
            pixel_values: (slices, 3, H, W), or (slabs, f), features that the tower computed before, of which
                `slices_per_scan` then counts the rows.
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
        slab_sizes = self.slab_sizes(slices_per_scan)
        slabs_per_scan = [len(sizes) for sizes in slab_sizes]
        parts = [self._encode(slabs, with_patches) for slabs in self.slabs(pixel_values, slices_per_scan)]
        if not parts:
            return self._nothing(pixel_values, slices_per_scan, slabs_per_scan, with_patches)
        embeds, features, *patches = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
        return SliceEncoding(
            embeds=embeds,
            slices_per_scan=slices_per_scan,
            slabs_per_scan=slabs_per_scan,
            features=features,
            patch_logits=self.tower.patch_logits(features),
            patches=PatchEncoding(*patches) if with_patches else None,
            slices_per_slab=None if self.config.slice_depth == 1 else [n for sizes in slab_sizes for n in sizes],
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.tower.parameters()).dtype

    def slab_sizes(self, slices_per_scan: list[int]) -> list[list[int]]:
        """The number of slices in each slab of each scan; the last slab of a scan may have fewer."""
        return [slab_sizes(slices, self.config.slice_depth) for slices in slices_per_scan]

    def _encode(self, slabs: Tensor, with_patches: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings and features of some slabs; embeddings and patch logits of their patches, where requested."""
        slabs = slabs.to(self.dtype, memory_format=channels_last(self.tower.reads_volumes))
        run = self.tower.feature_map if with_patches else self.tower
        output = self._gradient_checkpointing_func(run, slabs) if self._checkpoints else run(slabs)
        if not with_patches:
            return self.projection(output), output, None, None
        features, of_patches = self.tower.pool(output), self.tower.pool_patches(output)
        return self.projection(features), features, self.projection(of_patches), self.tower.patch_logits(of_patches)

    @property
    def _checkpoints(self) -> bool:
        return self.training and self.gradient_checkpointing

    def slabs(self, pixel_values: Tensor, slices_per_scan: list[int]) -> Iterator[Tensor]:
        """Slabs in their order, as the tower reads them, in groups that go through it at once."""
        pixel_values = pixel_values[:, : self.tower.in_channels]
        depth = self.config.slice_depth
        if depth == 1:
            yield from pixel_values.split(self._slabs_at_once(len(pixel_values), 1)) if len(pixel_values) else ()
            return
        first_slices, first = [], 0
        for size in (size for sizes in self.slab_sizes(slices_per_scan) for size in sizes):
            first_slices.append((first, size))
            first += size
        # Whole scans differ in depth; all other slabs have the same, since a short one repeats its last slice.
        for size, slabs in groupby(first_slices, key=lambda slab: depth or slab[1]):
            rows = [[start + min(k, taken - 1) for k in range(size)] for start, taken in slabs]
            for some in torch.tensor(rows, device=pixel_values.device).split(self._slabs_at_once(len(rows), size)):
                values = pixel_values[some]  # (slabs, depth, channels, H, W)
                yield values.transpose(1, 2) if self.tower.reads_volumes else values.flatten(1, 2)

    def _slabs_at_once(self, slabs: int, depth: int) -> int:
        """Of so many slabs of this depth, how many go through the tower together."""
        if self.training and not self.gradient_checkpointing:
            return slabs
        return max(1, self.slices_per_chunk // depth) if self.tower.reads_volumes else self.slices_per_chunk

    def _nothing(self, pixel_values: Tensor, slices_per_scan, slabs_per_scan, with_patches: bool) -> SliceEncoding:
        features = pixel_values.new_zeros((0, self.tower.num_features), dtype=self.dtype)
        embeds, patch_logits = features.new_zeros(0, self.embed_dim), self.tower.patch_logits(features)
        patches = None
        if with_patches:
            logits = None if patch_logits is None else patch_logits.view(0, 1, 1, -1)
            patches = PatchEncoding(embeds.view(0, 1, 1, -1), logits)
        return SliceEncoding(embeds, slices_per_scan, slabs_per_scan, features, patch_logits, patches)


def encode_with_both(
    slice_encoder: RadFMSliceEncoder,
    volume_encoder: RadFMSliceEncoder,
    pixel_values: Tensor,
    slices_per_scan: list[int],
    volumes: list[bool],
) -> SliceEncoding:
    """Scans by two encoders, in the order of the batch.

    Args:
        volumes: for each scan, whether the encoder of volumes reads it.
    """
    scans = list(zip(pixel_values.split(slices_per_scan), slices_per_scan, volumes, strict=True))
    encodings: list[SliceEncoding] = []
    for encoder, is_volume in ((slice_encoder, False), (volume_encoder, True)):
        some = [(pixels, count) for pixels, count, volume in scans if volume == is_volume]
        if some:
            encodings.append(encoder(torch.cat([pixels for pixels, _ in some]), [count for _, count in some]))
        else:
            encodings.append(_of_no_scan(encoder, pixel_values))
    return _in_order(encodings[0], encodings[1], volumes)


def slab_sizes(slices: int, depth: int) -> list[int]:
    """The number of slices in each slab of a scan; a depth of 0 means all of them."""
    if depth < 1:
        return [slices] if slices else []
    return [min(depth, slices - start) for start in range(0, slices, depth)]


def _of_no_scan(encoder: RadFMSliceEncoder, pixel_values: Tensor) -> SliceEncoding:
    """The encoding of no scan. In training and among processes a black one goes through the tower and is dropped: all
    weights have a gradient then, and all processes call all layers."""
    training = encoder.training
    if not training and not (dist.is_available() and dist.is_initialized()):
        return encoder(pixel_values[:0], [])
    encoder.tower.eval()  # a black scan counts in no statistics
    try:
        black = encoder(pixel_values.new_zeros(_BLACK_SLICES, *pixel_values.shape[1:]), [_BLACK_SLICES])
    finally:
        encoder.tower.train(training)
    return SliceEncoding(black.embeds[:0], [], [], black.features[:0], slices_per_slab=[])


def _in_order(slices: SliceEncoding, volumes: SliceEncoding, chosen: list[bool]) -> SliceEncoding:
    """The scans of both towers in the order of the batch.

    Features, which are of different networks, lie side by side: (slabs, f of slices + f of volumes), with zeros in the
    place of the other network.

    Args:
        chosen: for each scan, whether it is a volume.
    """

    def merged(of_slices: Sequence, of_volumes: Sequence) -> list:
        parts = {False: iter(of_slices), True: iter(of_volumes)}
        return [next(parts[volume]) for volume in chosen]

    def rows(of_slices: Tensor, of_volumes: Tensor) -> Tensor:
        pairs = (of_slices.split(slices.slabs_per_scan), of_volumes.split(volumes.slabs_per_scan))
        return torch.cat([*merged(*pairs), of_slices[:0], of_volumes[:0]])  # of both, for their gradients

    def sizes(encoding: SliceEncoding) -> list[list[int]]:
        ones = [1] * sum(encoding.slabs_per_scan)
        row = torch.tensor(ones if encoding.slices_per_slab is None else encoding.slices_per_slab)
        return [part.tolist() for part in row.split(encoding.slabs_per_scan)]

    widths = slices.features.shape[1], volumes.features.shape[1]
    return SliceEncoding(
        embeds=rows(slices.embeds, volumes.embeds),
        slices_per_scan=merged(slices.slices_per_scan, volumes.slices_per_scan),
        slabs_per_scan=merged(slices.slabs_per_scan, volumes.slabs_per_scan),
        features=rows(F.pad(slices.features, (0, widths[1])), F.pad(volumes.features, (widths[0], 0))),
        slices_per_slab=[n for part in merged(sizes(slices), sizes(volumes)) for n in part],
    )
