"""How well an autoencoder reproduces pictures: PSNR and MS-SSIM.

Decisions:
- MS-SSIM (Wang, Simoncelli, Bovik 2003) is MONAI's. Small pictures have fewer scales, as many as MONAI takes, with the
  published weights of those, normalised to sum to 1.
- Both are over the whole square, with its padding, as is usual; of volumes, over their slices.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from radfm.cases import Scan
from radfm.latents.autoencoders import Autoencoder

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales
_KERNEL = 11  # pixels


def psnr(pictures: Tensor, others: Tensor) -> Tensor:
    """(n, c, H, W) in [0, 1] each -> (n,) peak signal-to-noise ratio in dB, at most 100."""
    error = (pictures - others).flatten(1).square().mean(1)
    return -10 * error.clamp(min=1e-10).log10()


def ms_ssim(pictures: Tensor, others: Tensor) -> Tensor:
    """(n, c, H, W) in [0, 1] each, at least 11 pixels a side -> (n,) multi-scale structural similarity."""
    from monai.metrics.regression import MultiScaleSSIMMetric

    side = min(pictures.shape[2:])
    scales = max(k for k in range(1, len(_WEIGHTS) + 1) if side // max(1, (k - 1) ** 2) >= _KERNEL or k == 1)
    weights = torch.tensor(_WEIGHTS[:scales])
    metric = MultiScaleSSIMMetric(2, kernel_size=_KERNEL, weights=(weights / weights.sum()).tolist(), reduction="none")
    return metric(others, pictures).flatten()


@torch.inference_mode()
def fidelity(autoencoder: Autoencoder, scans: Iterable[Scan], at_once: int = 64) -> dict[str, float]:
    """ "psnr" and "ms_ssim": means over up to four slices, evenly spaced, of each scan; "slices": their number."""
    totals, count, waiting = {"psnr": 0.0, "ms_ssim": 0.0}, 0, []
    for pictures in map(autoencoder.prepare_some, scans):
        waiting.append(pictures)
        if sum(map(len, waiting)) >= at_once:
            count += _add(totals, autoencoder, waiting)
            waiting = []
    if waiting:
        count += _add(totals, autoencoder, waiting)
    return {name: total / max(count, 1) for name, total in totals.items()} | {"slices": count}


def _add(totals: dict[str, float], autoencoder: Autoencoder, waiting: Sequence[Tensor]) -> int:
    pictures = torch.cat(list(waiting))
    others = autoencoder.reconstruct(pictures).cpu()
    if pictures.ndim == 5:
        pictures, others = (volumes.transpose(1, 2).flatten(0, 1) for volumes in (pictures, others))
    totals["psnr"] += float(psnr(pictures, others).sum())
    totals["ms_ssim"] += float(ms_ssim(pictures, others).sum())
    return len(pictures)
