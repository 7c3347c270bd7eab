"""Computed tomography: Hounsfield units with a point spread and the correlated noise of a reconstruction."""

import numpy as np
from scipy.ndimage import gaussian_filter

from radfm.data_prep.phantoms.fields import solid_noise
from radfm.data_prep.phantoms.tissues import PROPERTIES
from radfm.data_prep.phantoms.views import Stack

HU, IODINE, GRAIN = (PROPERTIES.index(p) for p in ("hu", "iodine_hu", "grain"))


class CT(Stack):
    """Settings: `noise` in HU; `contrast`, the share of portal venous enhancement; `blur` in voxels."""

    visible = 6.0

    def signal(self, labels: np.ndarray, properties: np.ndarray) -> np.ndarray:
        values = properties[:, HU] + self.protocol.number("contrast", 0) * properties[:, IODINE]
        self.grain = properties[:, GRAIN][self.take(labels)]
        blur = self.protocol.number("blur", 0.6)
        return gaussian_filter(self.mean(values, labels), (0, blur, blur))

    def picture(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        grain = solid_noise(rng, signal.shape, 1.0) * self.grain * np.float32(130)
        noise = gaussian_filter(rng.standard_normal(signal.shape, dtype=np.float32), (0, 0.6, 0.6))
        dose = self.protocol.number("noise", 14) * rng.uniform(0.8, 1.3) / max(float(noise.std()), 1e-6)
        return np.clip(np.round(signal + grain + noise * np.float32(dose)), -1024, 3071).astype(np.int16)
