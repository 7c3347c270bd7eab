"""A data set of given pictures, for tests of what reads autoencoders and generators."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from radfm import Case, Scan
from radfm.data_prep.plan import CasePlan, Listing, ReadCase, ScanOrigin
from radfm.data_prep.prepare import Settings, prepare
from radfm.latents import Autoencoder
from radfm.latents.autoencoders import AutoencoderSettings

SIDE = 32


@dataclass
class PictureCase:
    """A case of one picture (H, W) uint8; `mask` (H, W) bool shows its disorders."""

    pixels: np.ndarray
    split: str
    disorders: Sequence[str] = ()
    mask: np.ndarray | None = None
    modality: str = "MRI"


class Pictures:
    """A source of pictures in memory."""

    name = "pictures"

    def __init__(self, pictures: Sequence[PictureCase]):
        digest = hashlib.sha256(b"".join(one.pixels.tobytes() for one in pictures)).hexdigest()
        self.pictures, self.settings, self.notice = pictures, {"pixels": digest}, {"title": "Pictures"}

    def listing(self) -> Listing:
        plans = [
            CasePlan(f"c{i:03d}", f"c{i:03d}", disorders=list(one.disorders), split=one.split, source_data={"index": i})
            for i, one in enumerate(self.pictures)
        ]
        return Listing(plans, [], "case", len(plans), len(plans))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        for plan in plans:
            one = self.pictures[plan.source_data["index"]]
            plan.icd10cm = [[] for _ in plan.disorders]
            scan = Scan(one.pixels[None], one.modality, "axial", (0.0, 1.0, 1.0), body_part="brain", source="picture")
            case = Case([scan], disorders=list(one.disorders), case_id=plan.case_id, patient_id=plan.patient_id)
            masks = {} if one.mask is None else dict.fromkeys(one.disorders, one.mask[None])
            yield ReadCase(case, files=0, unread=0, origins=[ScanOrigin("source", "source")], masks=[masks])


def data_set(folder: Path, pictures: Sequence[PictureCase]) -> Path:
    prepare(Pictures(pictures), folder, Settings(size=SIDE))
    return folder


def smooth(seed: int, side: int = SIDE) -> np.ndarray:
    """(side, side) uint8 of blocks of 4 pixels, in which no two seeds are alike."""
    return np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4), np.uint8).repeat(4, 0).repeat(4, 1)


class BlurTiny(torch.nn.Module):
    """Averages blocks of 4 pixels: pictures that are constant in these blocks come back as they were."""

    def __init__(self):
        super().__init__()
        self.config = {"latent_channels": 3, "in_channels": 3, "encoder_block_out_channels": [3, 3, 3]}
        self.weight = torch.nn.Parameter(torch.full((3, 1, 4, 4), 1 / 16))

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=torch.nn.functional.conv2d(pixels, self.weight, stride=4, groups=3))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents.repeat_interleave(4, 2).repeat_interleave(4, 3))


def blurring_autoencoder() -> Autoencoder:
    return Autoencoder(BlurTiny(), AutoencoderSettings(size=SIDE, mean=[0.0] * 3, std=[0.5] * 3))
