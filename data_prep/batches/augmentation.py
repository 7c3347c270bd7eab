"""What training does to a case before the model sees it: to its scans as a set, and to the slices of each.

Decisions:
- Pixels are changed after they were normalised, so one strength fits all modalities; a scan's slices are changed
  together, by monai's transforms.
- Turned and moved in the plane only: a scan's slices lie millimetres apart, and turning them out of the plane would mix
  what was never beside each other. So a volume's slices are the channels of one 2D picture, which costs less than
  turning a volume; only bending is 3D.
- Left and right are exchanged only where that is asked for: it is the cheapest way to more pictures, and wrong where
  disorders differ by side.
- A case keeps at least one scan. What is added to a case comes from cases that were found normal, of another part of
  the body: it changes no label (Zheng et al. 2024, who add normal scans to make cases of several).
- Whether a change is made is drawn here, so that monai is asked only for those that are: most scans get one or none.
- Everything is drawn from a generator of (seed, epoch, case, time), so that a resumed run sees the same pictures, and
  so does a run on more processes. Nothing a scan is given depends on the others of its batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    Rand2DElastic,
    Rand3DElastic,
    RandAdjustContrast,
    RandAffine,
    RandFlip,
    RandGaussianNoise,
    Randomizable,
)
from torch import Tensor

from radfm.cases import Case, Scan
from radfm.data_prep.batches.sampling import Draw

NormalScan = Callable[[np.random.Generator, set[str]], Scan | None]


@dataclass
class Augmentation:
    """How often each change is made; all 0: never.

    Attributes:
        affine, elastic, noise, contrast: of a scan: turned, moved and scaled; bent; noisier; another gamma.
        mirror: of a scan: its left and right are exchanged.
        drop_scans: of a scan: it leaves its case.
        drop_modality: of a case: all scans of one modality leave it.
        add_normal: of a case: a normal scan of another part of the body joins it.
        drop_history: of a case: its history is not told.
        shuffle: whether the scans of a case come in any order.
    """

    affine: float = 0.0
    elastic: float = 0.0
    noise: float = 0.0
    contrast: float = 0.0
    mirror: float = 0.0
    drop_scans: float = 0.0
    drop_modality: float = 0.0
    add_normal: float = 0.0
    drop_history: float = 0.5
    shuffle: bool = True

    def __post_init__(self):
        wrong = [name for name, share in vars(self).items() if name != "shuffle" and not 0 <= share <= 1]
        if wrong:
            raise ValueError(f"augmentation: {wrong[0]} is a probability, not {getattr(self, wrong[0])}")
        self._bends: dict[tuple[bool, int], Randomizable] = {}
        self._in_plane: dict[int, tuple[Randomizable, ...]] = {}

    @property
    def changes_pixels(self) -> bool:
        return max(self.affine, self.elastic, self.noise, self.contrast, self.mirror) > 0

    def case(self, case: Case, rng: np.random.Generator, normal_scan: NormalScan | None = None) -> Case:
        """The case with some scans less, perhaps a normal one more, in another order.

        Args:
            normal_scan: finds a normal scan of a part of the body that is none of these; None where there is none.
        """
        scans = list(case.scans)
        modalities = sorted({str(scan.modality) for scan in scans})
        if rng.random() < self.drop_modality and len(modalities) > 1:
            gone = rng.choice(modalities)
            scans = [scan for scan in scans if str(scan.modality) != gone]
        stays = rng.random(len(scans)) >= self.drop_scans
        if not stays.any():
            stays[rng.integers(len(scans))] = True
        scans = [scan for scan, stay in zip(scans, stays, strict=True) if stay]
        if rng.random() < self.add_normal and normal_scan is not None:
            parts = {scan.body_part for scan in case.scans}
            another = None if None in parts else normal_scan(rng, parts)
            scans += [] if another is None else [replace(another, days=None)]
        if self.shuffle:
            scans = [scans[i] for i in rng.permutation(len(scans))]
        history = None if rng.random() < self.drop_history else case.history
        return replace(case, scans=scans, history=history)

    def slices(self, values: Tensor, rng: np.random.Generator, masks: Tensor | None = None) -> None:
        """Changes the normalised slices of one scan, (slices, 3, H, W), in place.

        Args:
            masks: (disorders, slices, H, W) over them, in [0, 1]; moved and bent along with them, in place.
        """
        volume, size = len(values) > 1, values.shape[-1]
        if size not in self._in_plane:
            self._in_plane[size] = _in_plane(size)
        bent = rng.random() < self.elastic
        shares = (self.affine, self.mirror, self.contrast, self.noise)
        drawn = [change for change, share in zip(self._in_plane[size], shares, strict=True) if rng.random() < share]
        if not bent and not drawn:
            return
        one = values.stride(1) == 0  # three views of one channel
        grey = one or (torch.equal(values[:, 0], values[:, 1]) and torch.equal(values[:, 0], values[:, 2]))
        channels = values[:, :1] if grey else values
        marked = values.new_zeros(0, *values.shape[:1], *values.shape[2:]) if masks is None else masks
        volumes = torch.cat([channels.transpose(0, 1), marked])  # (C + disorders, slices, H, W)
        if bent:
            if (volume, size) not in self._bends:
                self._bends[volume, size] = _bend(volume, size)
            bend = self._bends[volume, size]
            volumes = _applied(bend, volumes, rng) if volume else _applied(bend, volumes[:, 0], rng)[:, None]
        pictures, kept = volumes.flatten(0, 1), len(channels) * channels.shape[1]
        for change in drawn:
            if isinstance(change, RandAffine | RandFlip):  # the others make brighter or noisier
                pictures = _applied(change, pictures, rng)
            else:
                pictures = torch.cat([_applied(change, pictures[:kept], rng), pictures[kept:]])
        changed = pictures[:kept].unflatten(0, (-1, len(channels))).transpose(0, 1)
        (channels if one else values).copy_(changed.expand_as(channels if one else values))
        if masks is not None:
            masks.copy_(pictures[kept:].view_as(masks))


def generator(seed: int, draw: Draw) -> np.random.Generator:
    """All chance in a draw's augmentation."""
    return np.random.default_rng([seed, draw.epoch, draw.case, draw.time])


def some_slices(scan: Scan, most: int | None, rng: np.random.Generator) -> Scan:
    """Of a scan with more slices so many, evenly spaced: from anywhere, or so that the key slice is one of them."""
    count, key = len(scan.pixels), scan.key_slice
    if most is None or count <= most:
        return scan
    start = rng.random() if key is None else (key + rng.random()) * most / count % 1
    chosen = ((np.arange(most) + start) * count / most).astype(int)
    key = None if key is None else int(np.abs(chosen - key).argmin())
    spacing = scan.spacing_mm and (scan.spacing_mm[0] * count / most, *scan.spacing_mm[1:])
    masks = scan.masks and {disorder: mask[chosen] for disorder, mask in scan.masks.items()}
    return replace(scan, pixels=scan.pixels[chosen], key_slice=key, spacing_mm=spacing, masks=masks, affine=None)


def _applied(change: Randomizable, picture: Tensor, rng: np.random.Generator) -> Tensor:
    change.set_random_state(state=np.random.RandomState(rng.bit_generator))  # so that monai draws from it, too
    tracked = get_track_meta()
    set_track_meta(False)  # nobody asks what became of a picture, and to note it takes time
    try:
        return torch.as_tensor(change(picture)).as_subclass(Tensor)
    finally:
        set_track_meta(tracked)


def _bend(volume: bool, size: int) -> Rand2DElastic | Rand3DElastic:
    if volume:
        return Rand3DElastic(sigma_range=(4, 6), magnitude_range=(40, 80), prob=1, padding_mode="border")
    return Rand2DElastic((size / 4, size / 4), magnitude_range=(1, 2), prob=1, padding_mode="border")


def _in_plane(size: int) -> tuple[RandAffine, RandFlip, RandAdjustContrast, RandGaussianNoise]:
    """Of (slices * C, H, W), all alike."""
    moved = {"translate_range": (size / 16, size / 16), "scale_range": (0.1, 0.1), "padding_mode": "border"}
    return (
        RandAffine(1, rotate_range=0.2, spatial_size=(size, size), cache_grid=True, **moved),  # radians
        RandFlip(1, spatial_axis=1),
        RandAdjustContrast(1, gamma=(0.7, 1.5)),
        RandGaussianNoise(1, std=0.2),
    )
