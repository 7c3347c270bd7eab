"""Nuclear medicine, tomographic or planar: tracer uptake with the blur of the camera and counting noise."""

import numpy as np
from scipy.ndimage import gaussian_filter

from radfm.data_prep.phantoms.tissues import PROPERTIES
from radfm.data_prep.phantoms.views import Stack


class Emission(Stack):
    """Settings: `tracer`, a column of tissues.csv; `fwhm` in mm; `counts` of the hottest pixel; `planar` 1 for sums
    along lines of sight, from the front and from the back."""

    def signal(self, labels: np.ndarray, properties: np.ndarray) -> np.ndarray:
        uptake = properties[:, PROPERTIES.index(self.protocol.settings["tracer"])].astype(np.float32)
        sigma = self.protocol.number("fwhm", 8) / 2.355 / self.volume.spacing_mm
        if self.protocol.number("planar", 0):
            n = labels.shape[0]
            dim = np.exp(-0.1 * np.arange(n) * self.volume.spacing_mm / 10).astype(np.float32)  # 0.1 / cm in tissue
            cube = uptake[labels][::-1]
            front, back = ((cube * w[None, :, None]).sum(1) for w in (dim, dim[::-1]))
            picture = gaussian_filter(np.stack([front, back[:, ::-1]]), (0, sigma, sigma))
            self.spacing_mm = (0.0, self.volume.spacing_mm, self.volume.spacing_mm)
        else:
            picture = gaussian_filter(self.mean(uptake, labels), (0, sigma, sigma))
        self.hot = max(float(np.percentile(picture, 99.7)), 1e-6)
        self.visible = 0.07 * self.hot
        return picture

    def project(self, where: np.ndarray) -> np.ndarray:
        if self.protocol.number("planar", 0):
            front = np.asarray(where[::-1].any(axis=1))
            return np.stack([front, front[:, ::-1]])
        return super().project(where)

    def picture(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        counts = self.protocol.number("counts", 300)
        mean = np.clip(signal / self.hot, 0, 3) * counts
        noisy = mean + np.sqrt(mean + 1) * rng.standard_normal(signal.shape, dtype=np.float32)
        noisy = gaussian_filter(noisy, (0, 0.6, 0.6))
        return np.clip(noisy * (1000 / counts), 0, 4095).astype(np.uint16)
