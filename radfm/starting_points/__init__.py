"""Models to start from: untrained ones, and those of open_clip, transformers, RadDiag and Merlin."""

from radfm.starting_points.merlin import from_merlin
from radfm.starting_points.minilm import MINILM_SHA256, minilm_folder, minilm_weights
from radfm.starting_points.new_model import processor_for, untrained
from radfm.starting_points.open_clip_models import from_open_clip
from radfm.starting_points.text_embedding import embed_texts, text_embedder
from radfm.starting_points.transformers_models import from_transformers

__all__ = [
    "MINILM_SHA256",
    "embed_texts",
    "from_merlin",
    "from_open_clip",
    "from_transformers",
    "minilm_folder",
    "minilm_weights",
    "processor_for",
    "text_embedder",
    "untrained",
]
