"""Ultrasound: speckle over backscatter, bright interfaces, attenuation, shadows behind bone, stones and gas, and
enhancement behind fluid, in the fan of a curved probe or the rectangle of a linear one.

Decisions:
- The simulation uses (depth, beam) coordinates, in which attenuation is a sum along the depth. The result is then
  resampled to a picture.
- Time gain compensation removes the attenuation of ordinary soft tissue; differences from it remain visible.
- The probe points at a lesion where there is one, otherwise at an organ, as a sonographer would.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from radfm.data_prep.phantoms.protocols import Protocol
from radfm.data_prep.phantoms.tissues import PROPERTIES, tissue
from radfm.data_prep.phantoms.volume import Volume

ECHO, ATTENUATION, HU = (PROPERTIES.index(p) for p in ("echo_db", "attenuation_db_cm", "hu"))
ORDINARY_DB_CM = 1.15


class Ultrasound:
    """Settings: `target`, patterns of organs; `angle` in degrees between the front and the probe, on the
    side of the target; `behind` 1: from the back for targets in the back half; `fan`, half the opening in degrees, 0
    for a linear probe; `depth`, `width` and `sweep` in mm; `window`, patterns of bones that the beam passes, as between
    ribs."""

    visible = 2.2

    def __init__(self, volume: Volume, protocol: Protocol, rng: np.random.Generator, aim):
        self.volume, self.protocol, self.plane = volume, protocol, "oblique" if protocol.number("fan", 0) else "axial"
        n, mm = volume.size, volume.spacing_mm
        self.depth_mm, self.size = protocol.number("depth", 140), n
        target = self._target(aim, rng)
        towards = 1 if target[2] > 0 else -1  # from the side the organ is on
        angle = np.radians(towards * protocol.number("angle", 0) + rng.uniform(-10, 10))
        inward = np.array([0.0, np.cos(angle), -np.sin(angle)])  # (z, y, x) from the probe
        if protocol.number("behind", 0) and target[1] > 0:
            angle += np.pi
            inward = np.array([0.0, np.cos(angle), -np.sin(angle)])
        away = self._skin(target, inward)
        self.beams, self.samples = n, n + n // 2
        fan = np.radians(protocol.number("fan", 0))
        across = np.linspace(-1, 1, self.beams)
        along = np.array([0.0, -inward[2], inward[1]])  # in the slice, at right angles to the middle beam
        depth = np.linspace(2, self.depth_mm, self.samples)
        if fan:
            head = 22.0  # radius of the curved probe
            ways = np.cos(fan * across)[:, None] * inward + np.sin(fan * across)[:, None] * along
            points = away - inward * head + (head + depth)[:, None, None] * ways[None]
        else:
            width = protocol.number("width", 50) / 2
            points = away + depth[:, None, None] * inward + (width * across)[None, :, None] * along
        sweep = np.linspace(-1, 1, protocol.slices) * protocol.number("sweep", 20)
        grid = points[None] + np.stack([sweep, 0 * sweep, 0 * sweep], 1)[:, None, None]
        self.index = np.moveaxis(np.round(grid / mm + (n - 1) / 2).astype(int), -1, 0)
        self.outside = ((self.index < 0) | (self.index >= n)).any(0)
        self.index = np.clip(self.index, 0, n - 1)
        self.window = volume.ids(protocol.settings.get("window", ""))
        self.spacing_mm = (float(sweep[1] - sweep[0]) if len(sweep) > 1 else 0.0,) + (self.depth_mm / n,) * 2
        self.pixel_grid = self._pixel_grid(fan)

    def _target(self, aim, rng) -> np.ndarray:
        v = self.volume
        if aim is None:
            options = [i for i in v.ids(self.protocol.settings["target"]) if i]
            where = np.argwhere(v.labels == options[rng.integers(len(options))]) if options else np.zeros((0, 3))
            aim = where.mean(0) if len(where) else np.full(3, (v.size - 1) / 2)
        return (np.asarray(aim, float) - (v.size - 1) / 2) * v.spacing_mm + rng.normal(0, 3, 3)

    def _skin(self, target: np.ndarray, inward: np.ndarray) -> np.ndarray:
        """The point at which the line from the target to the probe leaves the body."""
        v = self.volume
        steps = np.arange(0, v.size * v.spacing_mm, v.spacing_mm)
        line = np.round((target - steps[:, None] * inward) / v.spacing_mm + (v.size - 1) / 2).astype(int)
        line = line[((line >= 0) & (line < v.size)).all(1)]
        inside = np.flatnonzero(v.labels[tuple(line.T)] != 0)
        return target - (steps[inside[-1]] if len(inside) else 0) * inward

    def _pixel_grid(self, fan: float) -> np.ndarray:
        """(2, H, W): (sample, beam) of each pixel, -1 outside the fan."""
        rows, columns = np.mgrid[0 : self.size, 0 : self.size].astype(np.float32)
        mm = self.depth_mm / self.size
        if not fan:
            width = self.protocol.number("width", 50)
            beam = ((columns - (self.size - 1) / 2) * mm / width + 0.5) * (self.beams - 1)
            sample = rows * mm / self.depth_mm * (self.samples - 1)
        else:
            head = 22.0
            x, y = (columns - (self.size - 1) / 2) * mm, rows * mm + head * np.cos(fan)
            beam = (np.arctan2(x, y) / fan + 1) / 2 * (self.beams - 1)
            sample = (np.hypot(x, y) - head) / self.depth_mm * (self.samples - 1)
        bad = (beam < 0) | (beam > self.beams - 1) | (sample < 0) | (sample > self.samples - 1)
        return np.where(bad, -1, np.stack([sample, beam]))

    def _sample(self, cube: np.ndarray) -> np.ndarray:
        return np.where(self.outside, np.zeros((), cube.dtype), cube[tuple(self.index)])

    def project(self, where: np.ndarray) -> np.ndarray:
        return self._sample(where)

    def signal(self, labels: np.ndarray, properties: np.ndarray) -> np.ndarray:
        """(slices, depth, beams) in dB."""
        properties = properties.copy()
        properties[self.window] = tissue("muscle")
        properties[0, [ATTENUATION, HU]] = ORDINARY_DB_CM, 0  # gel between probe and skin
        native = self._sample(labels)
        echo = gaussian_filter(properties[:, ECHO][native], (0, 1.0, 1.0))
        loss = properties[:, ATTENUATION][native]
        cm = self.depth_mm / 10 / self.samples
        lost = 2 * cm * np.cumsum(gaussian_filter1d(loss, 1.2, axis=2) - ORDINARY_DB_CM, axis=1)
        lost = np.clip(lost, -14, 60)
        lost = np.concatenate([lost[:, :1] * 0, lost[:, :-1]], axis=1)
        hard = gaussian_filter(np.log(np.clip(properties[:, HU][native] + 1010, 10, 2500)), (0, 0.7, 0.7))
        bright = np.abs(np.diff(hard, axis=1, prepend=hard[:, :1])) * 26
        return echo + np.minimum(bright, 26) - lost

    def picture(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shape = (2, *signal.shape)
        waves = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0, 0, 0.7, 1.3))
        speckle = 20 * np.log10(np.hypot(*waves) / (waves.std() * 1.25) + 0.03)
        db = signal + 0.75 * speckle
        tops = np.percentile(signal, 92)
        grey = np.clip((db - tops + 31) / 54, 0, 1)
        slices = [map_coordinates(one, self.pixel_grid, order=1, cval=0, mode="constant") for one in grey * 255]
        return np.stack(slices).astype(np.uint8)

    def picture_mask(self, mask: np.ndarray) -> np.ndarray:
        return np.stack([map_coordinates(m.astype(np.uint8), self.pixel_grid, order=0, cval=0) > 0 for m in mask])
