"""The nearest training case of each sample, in pixels and in a model's space.

    >>> spaces = Spaces(network, processor)
    >>> training = Slices(load("datasets/mine", "train"))
    >>> found = nearest(spaces.vectors(samples), spaces.blocks(training))
    >>> found["pixels"].distances, [training[i] for i in found["pixels"].indices]

Decisions:
- Of each scan one slice is compared, the key slice or the middle one, which is what a generator learns from. A scan of
  this slice alone is prepared in both data sets, so that intensities are scaled alike.
- In pixels: one minus the correlation of two pictures of 64 x 64, as a case is the same in another brightness. In the
  model's space: one minus the cosine of the embeddings of the two slices. A copy has the distance 0 in both.
- The distances of all pairs are never in memory: training cases come in blocks, and each keeps the nearest so far.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radfm.cases import Case, Scan
from radfm.data_prep.pictures import representative_slice
from radfm.data_prep.stored_cases import StoredCases, patient_of
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.latents import Autoencoder
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress

PIXELS, MODEL = "pixels", "model"
SIZE = 64  # of a picture that is compared, pixels a side

_BLOCK = 256  # training slices at once
_CASES = 16  # in one batch of the model


@dataclass(frozen=True)
class SlicePlace:
    """One slice that is compared.

    Attributes:
        case: row of the case.
        scan: row of the scan.
        case_id, patient_id: pseudonyms.
        disorders: names, of the case.
        group: modality and body part.
    """

    case: int
    scan: int
    case_id: str
    patient_id: str
    disorders: tuple[str, ...]
    group: tuple[str | None, str | None]


class Slices(Sequence[SlicePlace]):
    """One slice of each scan of a data set.

    Args:
        limit: at most so many, evenly spaced.
        autoencoder: of slices; each is compared as this one reconstructs it, as samples are decoded, too.
    """

    def __init__(self, cases: StoredCases, limit: int | None = None, autoencoder: Autoencoder | None = None):
        self.cases, self.autoencoder = cases, autoencoder
        places = [
            SlicePlace(index, scan, row["case_id"], patient_of(row), tuple(row["disorders"]), (None, None))
            for index, row in enumerate(cases.rows)
            for scan in row["scan_rows"]
        ]
        count = min(limit or len(places), len(places))
        chosen = np.unique(np.linspace(0, len(places) - 1, count).round().astype(int)) if count else []
        self._places = [self._with_group(places[i]) for i in chosen]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index):
        return self._places[index]

    def scan(self, index: int) -> Scan:
        """A scan of the compared slice alone."""
        scan = self.cases.scan(self._places[index].scan)
        slice_index = representative_slice(scan)
        if self.autoencoder is not None:
            picture = self.autoencoder.reconstruct(self.autoencoder.prepare(scan, [slice_index]))
            pixels = self.autoencoder.scan_pixels(picture, scan.modality)
            return replace(scan, pixels=pixels, key_slice=0, spacing_mm=None)
        return replace(scan, pixels=scan.pixels[slice_index : slice_index + 1], key_slice=0)

    def keep(self, chosen: Sequence[int]) -> None:
        """Leaves out all others."""
        self._places = [self._places[i] for i in chosen]

    def _with_group(self, place: SlicePlace) -> SlicePlace:
        header = self.cases.scan_header(place.scan)
        return replace(place, group=(header["modality"], header["body_part"]))


@dataclass
class Neighbours:
    """
    Attributes:
        distances: (queries,) float32, to the nearest; infinite where there is none.
        indices: (queries,) int64, which one that is, in the order in which they came.
    """

    distances: np.ndarray
    indices: np.ndarray


class Spaces:
    """Slices -> vectors of length 1 in pixels and in the space of a model."""

    def __init__(self, network: RadFMForDiagnosis, processor: RadFMProcessor):
        self.network, self.processor = network, processor
        self.processor.use_history = False
        self._images = RadFMImageProcessor(size=SIZE, image_mean=None, image_std=None)

    def vectors(self, slices: Slices, progress: Progress = no_progress) -> dict[str, Tensor]:
        """Space -> (slices, d) float32."""
        blocks = list(self.blocks(slices, progress))
        return {space: torch.cat([block[space] for block in blocks]) for space in (PIXELS, MODEL)}

    def blocks(self, slices: Slices, progress: Progress = no_progress) -> Iterator[dict[str, Tensor]]:
        """The vectors of some slices at a time, in order."""
        for start in range(0, len(slices), _BLOCK):
            scans = [slices.scan(i) for i in range(start, min(start + _BLOCK, len(slices)))]
            yield {PIXELS: torch.stack([self.picture(scan) for scan in scans]), MODEL: self._embed(scans)}
            progress(start + len(scans), len(slices))

    def picture(self, scan: Scan) -> Tensor:
        """(4096,) float32 with mean 0 and length 1; all 0 for a slice of one grey value."""
        values = torch.empty(1, self._images.channels(scan), SIZE, SIZE)
        self._images.fill(values, scan)
        grey = values[0].mean(0)
        return F.normalize((grey - grey.mean()).flatten(), dim=0)

    @torch.inference_mode()
    def _embed(self, scans: Sequence[Scan]) -> Tensor:
        vectors = []
        for start in range(0, len(scans), _CASES):
            batch = self.processor(cases=[Case([scan]) for scan in scans[start : start + _CASES]])
            inputs = {key: value.to(self.network.device) for key, value in batch.items()}
            vectors.append(F.normalize(self.network.get_case_features(**inputs).float().cpu(), dim=1))
        return torch.cat(vectors)


def nearest(queries: Mapping[str, Tensor], blocks: Iterable[Mapping[str, Tensor]]) -> dict[str, Neighbours]:
    """Space -> the nearest of all vectors in the blocks, for each query.

    Args:
        queries: space -> (queries, d), of length 1.
        blocks: space -> (n, d), of length 1; one after another.
    """
    best = {
        space: (torch.full((len(vectors),), torch.inf), torch.full((len(vectors),), -1), vectors.clone())
        for space, vectors in queries.items()
    }
    done = 0
    for block in blocks:
        for space, vectors in queries.items():
            distances, indices, found = best[space]
            nearest_here, position = (1 - vectors @ block[space].T).min(1)
            closer = nearest_here < distances
            distances[closer], indices[closer] = nearest_here[closer], position[closer] + done
            found[closer] = block[space][position[closer]]
        done += len(next(iter(block.values())))
    # Half the squared difference is the same number, and exact for a copy.
    return {
        space: Neighbours(
            torch.where(indices < 0, torch.inf, (queries[space] - found).square().sum(1) / 2).numpy(), indices.numpy()
        )
        for space, (_, indices, found) in best.items()
    }
