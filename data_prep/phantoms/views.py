"""Renderers of pictures from a volume: stacks of slices, and lines of sight through the whole body.

Every renderer (`ct`, `mri`, `projection`, `ultrasound`, `emission`) is a `View`.

Decisions:
- Pictures follow docs/reading.md: the patient's right is on the left, front or head at the top; slices run from feet to
  head, from front to back, or from right to left.
"""

import typing

import numpy as np

from radfm.data_prep.phantoms.protocols import Protocol
from radfm.data_prep.phantoms.volume import Volume


class View(typing.Protocol):
    """A scan of a volume.

    Attributes:
        plane: plane of the slices.
        spacing_mm: distance between slices, rows and columns of the picture.
        visible: smallest difference of `signal` that counts as visible.
    """

    plane: str
    spacing_mm: tuple[float, float, float]
    visible: float

    def signal(self, labels: np.ndarray, properties: np.ndarray) -> np.ndarray:
        """The noise-free signal of a labelled volume in the grid of the view."""

    def project(self, where: np.ndarray) -> np.ndarray:
        """A bool volume in that grid."""

    def picture(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The pixels with noise and the processing of the scanner: (slices, H, W)."""

    def picture_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask in that grid, as the picture shows it: (slices, H, W) bool."""


class Stack:
    """Parallel slices through the volume, evenly spaced between two fractions of its extent."""

    def __init__(self, volume: Volume, protocol: Protocol, rng: np.random.Generator, aim):
        n = volume.size
        self.volume, self.protocol, self.plane = volume, protocol, protocol.plane
        jitter = float(rng.uniform(-0.012, 0.012))
        ends = np.clip(np.array([protocol.low, protocol.high]) + jitter, 0, 1) * (n - 1)
        self.index = np.unique(np.round(np.linspace(ends[0], ends[1], protocol.slices)).astype(int))
        step = float(np.diff(self.index).mean()) if len(self.index) > 1 else 0.0
        # A slice has a thickness: it shows the mean of the layers it spans, so that no lesion lies between two slices.
        layers = min(int(protocol.number("layers", 2)), max(int(step), 1))
        self.layers = [np.minimum(self.index + k, n - 1) for k in range(layers)]
        self.spacing_mm = (step * volume.spacing_mm, volume.spacing_mm, volume.spacing_mm)

    def take(self, cube: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
        """(n, n, n) -> (slices, n, n): the layers of an index, by default the first layer of each slice."""
        index = self.index if index is None else index
        if self.plane == "axial":
            return cube[index]
        if self.plane == "coronal":
            return cube[::-1, index].transpose(1, 0, 2)
        return cube[::-1, :, index].transpose(2, 0, 1)

    def mean(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Values of the labels, averaged over the thickness of each slice: (slices, n, n) float32."""
        values = values.astype(np.float32)
        return sum(values[self.take(labels, index)] for index in self.layers) / np.float32(len(self.layers))

    def project(self, where: np.ndarray) -> np.ndarray:
        return np.logical_or.reduce([self.take(where, index) for index in self.layers])

    def picture_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask
