"""Semantic similarity: cosines between a name and all names of ICD-10-CM, by a text encoder of the caller.

Decisions:
- The encoder is any callable from a list of texts to vectors, or an object with `encode` (a SentenceTransformer).
- The vectors of the names are computed once, and stored and compared in half precision. The error of a cosine is then
  about 1e-4, and linking a name takes half the time.
- With a fingerprint of the encoder the vectors are cached on disk. Without one they are not, because a changed encoder
  could not be recognised.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch

from radfm.knowledge.cache import cached_columns

Encoder = Callable[[list[str]], np.ndarray]


def batches_of_one_length(lengths: Sequence[int], tokens: int = 3072) -> Iterator[list[int]]:
    """Batches of texts of equal length, so that no padding is needed.

    Args:
        lengths: tokens of each text.
        tokens: of a batch, at most, unless one text is longer.
    Yields:
        The positions of a batch's texts.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for length, group in groupby(order, key=lengths.__getitem__):
        rows, size = list(group), max(1, tokens // length)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


class NameVectors:
    """Unit vectors of names, for comparing texts with all of them.

    Args:
        names: may repeat; each is encoded once.
        encoder: takes a list of n texts and returns (n, d) numbers, or has a method `encode` that does.
        fingerprint: identifies the encoder and its weights, for the cache on disk.
    Raises:
        ValueError: the encoder does not return one finite vector per text.
    """

    def __init__(self, names: list[str], encoder: Encoder, fingerprint: str | None = None):
        self._encode = getattr(encoder, "encode", encoder)
        unique = list(dict.fromkeys(names))
        if fingerprint is None:
            vectors = self._unit(unique)
        else:
            key = hashlib.sha256("\n".join([fingerprint, *unique]).encode()).hexdigest()[:16]
            vectors = cached_columns("vectors", key, lambda: {"vectors": self._unit(unique)})["vectors"]
        self._vectors = torch.from_numpy(np.array(vectors))  # (unique names, d)
        position = {name: i for i, name in enumerate(unique)}
        self._rows = np.array([position[name] for name in names])

    def cosines(self, text: str) -> np.ndarray:
        """(names,) float32, the cosine of each name with the text."""
        cosines = self._vectors @ torch.from_numpy(self._unit([text])[0])
        return cosines.float().numpy()[self._rows]

    def _unit(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self._encode(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"the encoder gave {vectors.shape} for {len(texts)} texts: expected (n, d), all finite")
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float16)
