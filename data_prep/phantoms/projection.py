"""Radiographs, mammograms, barium studies and angiograms: integrals of attenuation along lines through the whole cube.

Decisions:
- Attenuation at about 60 keV follows from Hounsfield units. Bone and contrast medium attenuate more than their number
  suggests, because of the photoelectric effect. Mammograms use a column of their own, at 20 keV.
- Dense tissue is bright, as on a film. Part of the low frequencies is removed, as digital detectors do.
- An angiogram is the difference with and without contrast medium; vessels are dark.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from radfm.data_prep.phantoms.protocols import Protocol
from radfm.data_prep.phantoms.tissues import PROPERTIES
from radfm.data_prep.phantoms.volume import Volume

HU, MU20 = PROPERTIES.index("hu"), PROPERTIES.index("mu20_per_cm")
WATER_PER_CM = 0.206  # at 60 keV, NIST XCOM


class Projection:
    """Settings: `low` and `high` of the protocol cut the depth; `fill`, patterns of structures with contrast medium,
    and its `hu`; `subtract` 1 for an angiogram; `flatten`, the share of low frequencies that is removed; `bone`, extra
    attenuation of bone; `black`, the percentile of the body that is black; `shoulder`, compression of bright values;
    `energy` 20 for mammograms; `blur` in pixels; `visible` and `noise` in units of the integral.
    """

    def __init__(self, volume: Volume, protocol: Protocol, rng: np.random.Generator, aim):
        self.volume, self.protocol, self.plane = volume, protocol, protocol.plane
        self.spacing_mm = (0.0, volume.spacing_mm, volume.spacing_mm)
        self.depth = slice(int(protocol.low * volume.size), int(np.ceil(protocol.high * volume.size)))
        self.blur = protocol.number("blur", 0.45)
        self.visible = protocol.number("visible", 0.05)

    def signal(self, labels: np.ndarray, properties: np.ndarray) -> np.ndarray:
        per_cm = self._attenuation(properties)
        path = self._through(per_cm.astype(np.float32)[labels], np.sum) * np.float32(self.volume.spacing_mm / 10)
        return gaussian_filter(path[None], (0, self.blur, self.blur))

    def _attenuation(self, properties: np.ndarray) -> np.ndarray:
        fill = self.volume.ids(self.protocol.settings.get("fill", ""))
        if self.protocol.number("energy", 60) == 20:
            return properties[:, MU20]
        hu = properties[:, HU].copy()
        added = np.zeros_like(hu)
        added[fill] = self.protocol.number("hu", 0) * 1.6e-3
        per_cm = WATER_PER_CM * (1 + hu / 1000 + np.maximum(hu - 150, 0) * 1e-3 * self.protocol.number("bone", 0.5))
        return (
            WATER_PER_CM * added
            if self.protocol.number("subtract", 0)
            else np.maximum(per_cm, 0) + WATER_PER_CM * added
        )

    def project(self, where: np.ndarray) -> np.ndarray:
        return self._through(where, np.any)[None]

    def _through(self, cube: np.ndarray, along) -> np.ndarray:
        if self.plane in ("PA", "AP"):
            return along(cube[::-1, self.depth], axis=1)
        if self.plane == "lateral":
            return along(cube[::-1, :, self.depth], axis=2)
        if self.volume.mirrored:
            cube = cube[:, :, ::-1]
        picture = self._compressed(cube[:, self.depth], along)
        picture = np.pad(picture, ((0, 0), (0, self.volume.size - picture.shape[1])))  # air before the nipple
        return picture[:, ::-1] if self.volume.mirrored else picture

    def _compressed(self, cube: np.ndarray, along) -> np.ndarray:
        """A left breast with the chest wall on the left, signal from above (CC, the outer side on top) or obliquely."""
        if self.plane == "CC":
            return along(cube, axis=0)[::-1, ::-1].T
        n = cube.shape[0]  # MLO: along the line from the inner upper to the outer lower quadrant
        up, deep = np.mgrid[0:n, 0:n] - (n - 1) / 2
        z = np.round((up - deep) * 0.7071 + (n - 1) / 2).astype(int)
        x = np.round((up + deep) * 0.7071 + (n - 1) / 2).astype(int)
        inside = (z >= 0) & (z < n) & (x >= 0) & (x < n)
        turned = cube[np.clip(z, 0, n - 1), :, np.clip(x, 0, n - 1)] * inside[..., None]
        return along(turned, axis=1)[::-1, ::-1]

    def picture_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask

    def picture(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scatter = 0.12 * gaussian_filter(signal, (0, 6, 6))
        path = signal + scatter
        wide = gaussian_filter(path, (0, 9, 9))
        path = path - np.float32(self.protocol.number("flatten", 0.35)) * wide
        sharp = path + 0.5 * (path - gaussian_filter(path, (0, 1.5, 1.5)))
        noise = np.float32(self.protocol.number("noise", 0.03)) * np.exp(np.minimum(signal, 20) / 12)
        sharp = sharp + noise * rng.standard_normal(signal.shape, dtype=np.float32)
        if self.protocol.number("subtract", 0):
            sharp = -sharp
        body = signal > 0.15 if not self.protocol.number("subtract", 0) else np.ones(signal.shape, bool)
        low, high = np.percentile(sharp[body] if body.any() else sharp, (self.protocol.number("black", 0.5), 99.6))
        level = np.clip((sharp - low) / max(high - low, 1e-6), 0, 1)
        shoulder = self.protocol.number("shoulder", 0.01)
        level = (1 - np.exp(-shoulder * level)) / (1 - np.exp(-shoulder))
        if not self.protocol.number("subtract", 0):
            level = level * (signal > 0.02)
        return (level * 4095).astype(np.uint16)
