"""Smooth random fields, which make anatomies, organs and lesions differ.

Decisions:
- Solid noise is cut from one tile for each coarseness, made once per process from a fixed seed, and shifted, transposed
  and mirrored by the caller's generator. Filtering a new volume for each patient would dominate the time.
- Displacements are sums of three fields of two coordinates each, which takes a tenth of the time of one field of three.
- BLAS is not used, because its sums may depend on the number of threads, and a phantom must not.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

_TILE = 96


def solid_noise(rng: np.random.Generator, shape: tuple[int, int, int], grain: float) -> np.ndarray:
    """Periodic noise of mean 0 and standard deviation 1, correlated over `grain` voxels: `shape` float32."""
    tile = _tile(max(1, round(grain * 4)))
    order = rng.permutation(3)
    starts, signs = rng.integers(0, _TILE, 3), rng.choice([-1, 1], 3)
    tile = tile.transpose(order)
    steps = [(start + sign * np.arange(n)) % _TILE for start, sign, n in zip(starts, signs, shape, strict=True)]
    return tile[np.ix_(*steps)]


@lru_cache(maxsize=16)
def _tile(quarter_grain: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence([96, quarter_grain]))
    tile = gaussian_filter(rng.standard_normal((_TILE,) * 3, dtype=np.float32), quarter_grain / 4, mode="wrap")
    tile -= tile.mean()
    return tile / tile.std()


def displacement(rng: np.random.Generator, size: int, knots: int = 5) -> np.ndarray:
    """A smooth field over a cube, standard deviation about 1: (size, size, size) float32."""
    zy, zx, yx = (sheet(rng, (size, size), knots) for _ in range(3))
    return (zy[:, :, None] + zx[:, None, :] + yx[None, :, :]) * np.float32(3**-0.5)


def sheet(rng: np.random.Generator, shape: tuple[int, int], knots: int = 5) -> np.ndarray:
    """A smooth field over a rectangle, standard deviation about 1: `shape` float32."""
    rows, columns = (_spline(n, knots) for n in shape)
    coarse = rng.standard_normal((knots, knots), dtype=np.float32) * np.float32(1.8)
    return np.einsum("ri,ij,cj->rc", rows, coarse, columns, optimize=False)


@lru_cache(maxsize=32)
def _spline(size: int, knots: int) -> np.ndarray:
    """Values of `knots` uniform cubic B-splines at `size` points: (size, knots) float32."""
    points = np.linspace(1.0, knots - 2.0, size)[:, None]
    away = np.abs(points - np.arange(knots))
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away) ** 3 / 6
    return np.where(away < 1, near, np.where(away < 2, far, 0)).astype(np.float32)
