"""Magnetic resonance imaging: spin echo, inversion recovery and diffusion, coil shading, Rician noise.

Decisions:
- S = PD * recovery * exp(-TE/T2) * exp(-b ADC), with recovery 1 - exp(-TR/T1), or |1 - 2 exp(-TI/T1) + exp(-TR/T1)|
  after an inversion (FLAIR, STIR). Source: Haacke et al., Magnetic Resonance Imaging (Wiley, 1999), chapters 8 and 26.
- Tissues whose diffusion is nearly zero count as fat.
- Gadolinium shortens T1 by the `gd_per_s` of the tissue. Blood flows, so that a spin echo has little signal from it.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from radfm.data_prep.phantoms.fields import sheet, solid_noise
from radfm.data_prep.phantoms.tissues import PROPERTIES
from radfm.data_prep.phantoms.views import Stack

T1, T2, PD, ADC, GD, GRAIN = (PROPERTIES.index(p) for p in ("t1_ms", "t2_ms", "pd", "adc", "gd_per_s", "grain"))


class MRI(Stack):
    """Settings: `tr`, `te`, `ti` in ms; `b` in s/mm2; `gadolinium` 0 or 1; `fat`, the share of fat signal that
    remains after fat suppression; `noise`, relative to white."""

    def signal(self, labels: np.ndarray, properties: np.ndarray) -> np.ndarray:
        signal = self._equations(properties)
        self.grain = properties[:, GRAIN][self.take(labels)]
        picture = gaussian_filter(self.mean(signal, labels), (0, 0.5, 0.5))
        self.white = max(float(np.percentile(picture[:, ::3, ::3], 99.5)), 1e-3)
        self.visible = 0.045 * self.white
        return picture

    def _equations(self, p: np.ndarray) -> np.ndarray:
        tr, te, ti, b = (self.protocol.number(name, 0) for name in ("tr", "te", "ti", "b"))
        t1 = 1 / (1 / np.maximum(p[:, T1], 1) + self.protocol.number("gadolinium", 0) * p[:, GD] / 1000)
        recovery = 1 - np.exp(-tr / t1) if not ti else np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1))
        fat = np.where(p[:, ADC] < 0.2, self.protocol.number("fat", 1), 1)
        return fat * p[:, PD] * recovery * np.exp(-te / np.maximum(p[:, T2], 0.5)) * np.exp(-b * p[:, ADC] * 1e-3)

    def picture(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shade = np.exp(0.13 * np.clip(sheet(rng, signal.shape[1:], 4), -2, 2))
        grain = 1 + solid_noise(rng, signal.shape, 1.0) * self.grain * np.float32(0.6)
        noise = np.float32(self.protocol.number("noise", 0.022) * self.white * rng.uniform(0.7, 1.4))
        real = signal * grain * shade + noise * rng.standard_normal(signal.shape, dtype=np.float32)
        imaginary = noise * rng.standard_normal(signal.shape, dtype=np.float32)
        return np.clip(np.hypot(real, imaginary) * (800 / self.white), 0, 4095).astype(np.uint16)
