"""The encoders that `radfm evaluate text` compares: TF-IDF, and sentence encoders, untrained or trained by radfm."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from radfm.checkpoints import resolve
from radfm.knowledge import icd10cm
from radfm.knowledge.embedding import batches_of_one_length
from radfm.recipes_radfm import TEXT_RECIPE

Encode = Callable[[Sequence[str]], "np.ndarray"]  # texts -> (texts, d), rows of unit length; sparse for TF-IDF

LONGEST_CODE = 6  # characters of the tested codes of ICD-10-CM, with the dot


def tfidf() -> Encode:
    """The baseline: TF-IDF of character 3- to 5-grams within words, fitted to ICD-10-CM."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectorizer.fit([icd10cm.get(code).description for code in tested_codes()])
    return vectorizer.transform


def sentence_encoder(folder: str | Path | None) -> Encode:
    """A SentenceTransformer by folder or name; None: all-MiniLM-L6-v2, untrained. Each text is embedded once."""
    from radfm.starting_points.sentence_encoder import load_encoder

    model = load_encoder(None if folder is None else str(folder)).bfloat16()
    cache: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if text not in cache))
        lengths = [len(ids) for ids in model.tokenizer(new, truncation=True)["input_ids"]] if new else []
        for rows in batches_of_one_length(lengths):
            batch = [new[i] for i in rows]
            vectors = model.encode(batch, batch_size=len(batch), convert_to_tensor=True, normalize_embeddings=True)
            cache.update(zip(batch, vectors.float().cpu().numpy(), strict=True))
        return np.stack([cache[text] for text in texts])

    return encode


def tested_codes() -> list[str]:
    """The codes of ICD-10-CM with at most five characters: categories, and subcategories."""
    return [e.code for e in icd10cm.entries("category", "subcategory") if len(e.code) <= LONGEST_CODE]


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of an encoder's weights, for caches; of its name if it has no file of weights."""
    file = Path(resolve(folder)) / "model.safetensors"
    return hashlib.sha256(file.read_bytes() if file.is_file() else str(folder).encode()).hexdigest()


def training_recipe(folder: str | Path) -> dict | None:
    """The recipe beside an encoder that radfm trained, or None."""
    file = Path(resolve(folder)) / TEXT_RECIPE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
