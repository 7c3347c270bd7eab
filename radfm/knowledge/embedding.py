"""Likeness of meaning: cosines between a name and every name of ICD-10-CM, by an encoder that the caller brings.

Decisions:
- The encoder is any callable from a list of texts to vectors, or anything with `encode` (a SentenceTransformer).
- Vectors of the codes' names are computed once. With a fingerprint of the encoder they are kept in the cache, in half
  precision; without one they live as long as the object, since a changed encoder could not be told from the old.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from radfm.knowledge.cache import remember

Encoder = Callable[[list[str]], np.ndarray]


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
            vectors = remember("vectors", key, lambda: {"vectors": self._unit(unique).astype(np.float16)})["vectors"]
        self._vectors = vectors.astype(np.float32)  # (unique names, d)
        position = {name: i for i, name in enumerate(unique)}
        self._rows = np.array([position[name] for name in names])

    def cosines(self, text: str) -> np.ndarray:
        """(names,) cosine of each name with the text."""
        return (self._vectors @ self._unit([text])[0])[self._rows]

    def _unit(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self._encode(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"the encoder gave {vectors.shape} for {len(texts)} texts: expected (n, d), all finite")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
