"""The features of every slice, or volume, by a frozen tower, computed once and cached between runs.

Decisions:
- The features are stored in half precision, in files of some scans each in the user's cache folder, and memory-mapped:
  data sets may be larger than memory. The name of the folder is a hash of everything that the features depend on:
  pixels, tower and processor.
- A file exists only when it is complete, so a killed run computes only what is missing. Several processes start at
  different files and use what the others have computed.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from radfm.base_tower_radfm import FastTower
from radfm.data_prep.stored_cases import StoredCases
from radfm.data_prep.tables import replacing
from radfm.knowledge.cache import cache_folder
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.slice_encoder_radfm import RadFMSliceEncoder

SCANS_PER_FILE = 64
# What decides how a slice becomes an input of the tower.
_SETTINGS = (
    *("size", "intensity_percentiles", "ct_windows", "image_mean", "image_std", "keep_aspect_ratio"),
    *("shortest_edge", "resample", "rescale_bytes", "standardize_slices", "volume"),
)


class SliceFeatures:
    """The features of a data set: `features.of(scan_row)` is (slices or volumes, f) float16, mapped from a file."""

    def __init__(self, folder: Path, scan_rows: list[int]):
        self._folder = folder
        self._position = {row: divmod(i, SCANS_PER_FILE) for i, row in enumerate(scan_rows)}
        self._mapped: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, scan_row: int) -> np.ndarray:
        number, position = self._position[scan_row]
        if number not in self._mapped:
            features = np.load(_file(self._folder, number), mmap_mode="r", allow_pickle=False)
            self._mapped[number] = features, np.load(_ends(self._folder, number), allow_pickle=False)
        features, ends = self._mapped[number]
        return features[ends[position - 1] if position else 0 : ends[position]]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": {}}


def slice_features(
    cases: StoredCases,
    rows: Sequence[int],
    model: RadFMForDiagnosis,
    processor: RadFMProcessor,
    dtype: torch.dtype = torch.float32,
) -> SliceFeatures:
    """The features of every slice of some cases, from the cache or computed now.

    Args:
        rows: of `cases`.
        model: the model of the tower.
        processor: how a slice becomes an input of the tower; `max_slices` has no effect.
        dtype: the precision of the tower.

    Raises:
        ValueError: the tower gives more than one vector per slice.
    """
    encoder, images = model.radfm.slice_encoder, copy(processor.image_processor)
    images.max_slices = None
    refuse_without_features(model)
    scan_rows = sorted(scan for row in rows for scan in cases.rows[row]["scan_rows"])
    root = cache_folder() or Path(tempfile.gettempdir()) / "radfm"
    folder = root / "slices" / _key(cases, encoder, images, scan_rows, dtype)
    home = device = model.device
    if device.type == "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    tower = FastTower(encoder.tower.eval().to(device), dtype, volumes=encoder.tower.reads_volumes)
    numbers = list(range(-(-len(scan_rows) // SCANS_PER_FILE)))
    first = len(numbers) * int(os.environ.get("RANK", 0)) // int(os.environ.get("WORLD_SIZE", 1))
    missing = [n for n in numbers[first:] + numbers[:first] if not _file(folder, n).exists()]
    for number in tqdm(missing, "Features of slices by the frozen tower", unit="file", disable=not sys.stderr.isatty()):
        if not _file(folder, number).exists():
            _compute(folder, number, cases, scan_rows, tower, encoder, images, device, dtype)
    encoder.tower.to(home)
    return SliceFeatures(folder, scan_rows)


def refuse_without_features(model: RadFMForDiagnosis) -> None:
    if model.radfm.volume_encoder is not None:
        raise ValueError("a frozen tower gives vectors of one kind, and this model has a second tower, for volumes")
    if not model.radfm.slice_encoder.tower.features_can_be_cached:
        raise ValueError(
            "a frozen tower gives one vector per slice, which towers with slice_depth above 1 and resnet-vit do not"
        )


@torch.inference_mode()
def _compute(folder: Path, number: int, cases: StoredCases, scan_rows, tower, encoder, images, device, dtype) -> None:
    features, ends = [], []
    for row in scan_rows[number * SCANS_PER_FILE : (number + 1) * SCANS_PER_FILE]:
        scan = cases.scan(row)
        values = torch.empty(images.slices_of(scan), images.channels(scan), images.size, images.size)
        images.fill(values, scan)
        slabs = encoder.slabs(values.to(device, dtype).expand(-1, images.num_channels, -1, -1), [len(values)])
        of_scan = [tower(some).to("cpu", torch.float16).numpy() for some in slabs]
        features += of_scan
        ends.append(sum(map(len, of_scan)) + (ends[-1] if ends else 0))
    for file, array in ((_ends(folder, number), np.array(ends)), (_file(folder, number), np.concatenate(features))):
        with replacing(file) as draft, open(draft, "wb") as written:
            np.save(written, array, allow_pickle=False)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _ends(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.ends.npy"


def _key(cases: StoredCases, encoder: RadFMSliceEncoder, images, scan_rows: list[int], dtype) -> str:
    settings = [getattr(images, name) for name in _SETTINGS]
    tower = [encoder.config.tower, encoder.config.tower_args, encoder.config.slice_depth, str(dtype)]
    digest = hashlib.sha256(json.dumps([cases.fingerprint, settings, tower, scan_rows]).encode())
    for name, tensor in sorted(encoder.tower.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
