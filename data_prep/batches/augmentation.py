"""Random changes of a training case: of its set of scans, and of the slices of each scan.

Decisions:
- Pixels are changed after normalisation, so that one strength fits all modalities; the slices of a scan are changed
  together, by monai's transforms.
- Rotation and translation are in the plane only: the slices of a scan lie millimetres apart, and a rotation out of the
  plane would mix tissue that is far apart. So the slices of a volume are the channels of one 2D image, which costs less
  than rotating a volume; only the elastic deformation is 3D.
- Mirroring exchanges left and right, which is wrong where disorders differ by side, so it is off by default.
- A case keeps at least one scan. A scan that is added to a case comes from a normal case, of another part of the body:
  it changes no label (Zheng et al. 2024, who add normal scans to make cases of several).
- Whether a change is made is decided here, and monai is called only where it is: most scans have one change or none.
- The random generator is seeded with (seed, epoch, case, repeat), so that a resumed run gets identical images, and so
  does a run on more processes. The changes of a scan do not depend on the other scans of its batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

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
from radfm.data_prep.batches.sampling import Sample

NormalScan = Callable[[np.random.Generator, set[str]], Scan | None]


@dataclass
class Augmentation:
    """The probability of each change, 0 to 1.

    Attributes:
        affine, elastic, noise, contrast: of a scan: rotated, translated and scaled; deformed; noise added; gamma
            changed.
        mirror: of a scan: left and right are exchanged.
        drop_scans: of a scan: it is left out of its case.
        drop_modality: of a case: all scans of one modality are left out.
        add_normal: of a case: a normal scan of another part of the body is added.
        drop_history: of a case: its history is left out.

    Raises:
        ValueError: a value is not a probability.
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

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}  # of the configs that contain it

    def __post_init__(self):
        for name, probability in vars(self).items():
            if not 0 <= probability <= 1:
                raise ValueError(f"augmentation.{name} is a probability from 0 to 1, not {probability}")
        self._deformations: dict[tuple[bool, int], Randomizable] = {}
        self._in_plane: dict[int, tuple[Randomizable, ...]] = {}

    @property
    def changes_pixels(self) -> bool:
        return max(self.affine, self.elastic, self.noise, self.contrast, self.mirror) > 0

    def case(self, case: Case, rng: np.random.Generator, normal_scan: NormalScan | None = None) -> Case:
        """The case in another order of its scans, perhaps without some of them, perhaps with an added normal one.

        Args:
            normal_scan: chooses a normal scan of a part of the body that is none of these; returns None where there is
                none.
        """
        scans = list(case.scans)
        modalities = sorted({str(scan.modality) for scan in scans})
        if rng.random() < self.drop_modality and len(modalities) > 1:
            dropped = rng.choice(modalities)
            scans = [scan for scan in scans if str(scan.modality) != dropped]
        kept = rng.random(len(scans)) >= self.drop_scans
        if not kept.any():
            kept[rng.integers(len(scans))] = True
        scans = [scan for scan, keep in zip(scans, kept, strict=True) if keep]
        if rng.random() < self.add_normal and normal_scan is not None:
            parts = {scan.body_part for scan in case.scans if scan.body_part is not None}
            known = all(scan.body_part is not None for scan in case.scans)
            added = normal_scan(rng, parts) if known else None
            scans += [] if added is None else [replace(added, days=None)]
        scans = [scans[i] for i in rng.permutation(len(scans))]
        history = None if rng.random() < self.drop_history else case.history
        return replace(case, scans=scans, history=history)

    def slices(self, values: Tensor, rng: np.random.Generator, masks: Tensor | None = None) -> None:
        """Changes the normalised slices of one scan, (slices, 3, H, W), in place.

        Args:
            masks: (disorders, slices, H, W) over them, in [0, 1]; moved and deformed in the same way, in place.
        """
        volume, size = len(values) > 1, values.shape[-1]
        if size not in self._in_plane:
            self._in_plane[size] = _in_plane(size)
        elastic = rng.random() < self.elastic
        shares = (self.affine, self.mirror, self.contrast, self.noise)
        changes = [change for change, share in zip(self._in_plane[size], shares, strict=True) if rng.random() < share]
        if not elastic and not changes:
            return
        expanded = values.stride(1) == 0  # three views of one channel
        grey = expanded or (torch.equal(values[:, 0], values[:, 1]) and torch.equal(values[:, 0], values[:, 2]))
        channels = values[:, :1] if grey else values
        no_masks = values.new_zeros(0, *values.shape[:1], *values.shape[2:])
        volumes = torch.cat([channels.transpose(0, 1), no_masks if masks is None else masks])
        # (C + disorders, slices, H, W)
        if elastic:
            if (volume, size) not in self._deformations:
                self._deformations[volume, size] = _deformation(volume, size)
            deform = self._deformations[volume, size]
            volumes = _applied(deform, volumes, rng) if volume else _applied(deform, volumes[:, 0], rng)[:, None]
        images, num_slices = volumes.flatten(0, 1), len(channels) * channels.shape[1]
        for change in changes:
            if isinstance(change, RandAffine | RandFlip):  # the others change intensities, which masks have not
                images = _applied(change, images, rng)
            else:
                images = torch.cat([_applied(change, images[:num_slices], rng), images[num_slices:]])
        changed = images[:num_slices].unflatten(0, (-1, len(channels))).transpose(0, 1)
        (channels if expanded else values).copy_(changed.expand_as(channels if expanded else values))
        if masks is not None:
            masks.copy_(images[num_slices:].view_as(masks))


def generator(seed: int, sample: Sample) -> np.random.Generator:
    """The random generator of a sample."""
    return np.random.default_rng([seed, sample.epoch, sample.case, sample.repeat])


def some_slices(scan: Scan, most: int | None, rng: np.random.Generator) -> Scan:
    """At most so many slices of a scan, evenly spaced from a random start, the key slice among them where known."""
    count, key = len(scan.pixels), scan.key_slice
    if most is None or count <= most:
        return scan
    start = rng.random() if key is None else (key + rng.random()) * most / count % 1
    chosen = ((np.arange(most) + start) * count / most).astype(int)
    key = None if key is None else int(np.abs(chosen - key).argmin())
    spacing = scan.spacing_mm and (scan.spacing_mm[0] * count / most, *scan.spacing_mm[1:])
    masks = scan.masks and {disorder: mask[chosen] for disorder, mask in scan.masks.items()}
    return replace(scan, pixels=scan.pixels[chosen], key_slice=key, spacing_mm=spacing, masks=masks, affine=None)


def _applied(change: Randomizable, image: Tensor, rng: np.random.Generator) -> Tensor:
    change.set_random_state(state=np.random.RandomState(rng.bit_generator))
    tracked = get_track_meta()
    set_track_meta(False)  # the history of transforms is not needed, and recording it takes time
    try:
        return torch.as_tensor(change(image)).as_subclass(Tensor)
    finally:
        set_track_meta(tracked)


def _deformation(volume: bool, size: int) -> Rand2DElastic | Rand3DElastic:
    if volume:
        return Rand3DElastic(sigma_range=(4, 6), magnitude_range=(40, 80), prob=1, padding_mode="border")
    return Rand2DElastic((size / 4, size / 4), magnitude_range=(1, 2), prob=1, padding_mode="border")


def _in_plane(size: int) -> tuple[RandAffine, RandFlip, RandAdjustContrast, RandGaussianNoise]:
    """Transforms of (slices * C, H, W), which change all channels in the same way."""
    moved = {"translate_range": (size / 16, size / 16), "scale_range": (0.1, 0.1), "padding_mode": "border"}
    return (
        RandAffine(1, rotate_range=0.2, spatial_size=(size, size), cache_grid=True, **moved),  # radians
        RandFlip(1, spatial_axis=1),
        RandAdjustContrast(1, gamma=(0.7, 1.5)),
        RandGaussianNoise(1, std=0.2),
    )
