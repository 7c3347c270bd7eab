"""Likeness of meaning: cosines between a name and every name of ICD-10-CM, by an encoder that the caller brings.

Decisions:
- The encoder is any callable from a list of texts to vectors, or anything with `encode` (a SentenceTransformer).
- Vectors of the codes' names are computed once, and held and compared in half precision: a cosine is then off by some
  1e-4, and a name is linked in half the time. With a fingerprint of the encoder they are kept in the cache; without one
  they live as long as the object, since a changed encoder could not be told from the old.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch

from radfm.knowledge.cache import remember

Encoder = Callable[[list[str]], np.ndarray]


def batches_of_one_length(lengths: Sequence[int], tokens: int = 3072) -> Iterator[list[int]]:
    """Positions of texts in batches of so many tokens, and of texts equally long, so that nothing is padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for length, group in groupby(order, key=lengths.__getitem__):
        rows, size = list(group), max(1, tokens // length)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


class NameVectors:
    """Unit vectors of names.

    Args:
        names: The names.
        encoder: Takes a list of texts and returns (n, d) numbers, or has such a method `encode`.
        fingerprint: Names the encoder and its weights, for the cache.

    Raises:
        ValueError: The encoder does not return one finite vector per text.
    """

    def __init__(self, names: list[str], encoder: Encoder, fingerprint: str | None = None):
        self._encode = getattr(encoder, "encode", encoder)
        unique = list(dict.fromkeys(names))
        if fingerprint is None:
            vectors = self._unit(unique)
        else:
            key = hashlib.sha256("\n".join([fingerprint, *unique]).encode()).hexdigest()[:16]
            vectors = remember("vectors", key, lambda: {"vectors": self._unit(unique)})["vectors"]
        self._vectors = torch.from_numpy(np.array(vectors))  # (unique names, d)
        position = {name: i for i, name in enumerate(unique)}
        self._rows = np.array([position[name] for name in names])

    def cosines(self, text: str) -> np.ndarray:
        """(names,) cosine of each name with the text."""
        cosines = self._vectors @ torch.from_numpy(self._unit([text])[0])
        return cosines.float().numpy()[self._rows]

    def _unit(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self._encode(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"the encoder gave {vectors.shape} for {len(texts)} texts: expected (n, d), all finite")
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float16)
