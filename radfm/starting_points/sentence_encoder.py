"""Text encoders as models of sentence-transformers."""

import torch
from sentence_transformers import SentenceTransformer

from radfm.checkpoints import resolve
from radfm.starting_points.minilm import minilm_folder


def load_encoder(base: str | None = None, max_tokens: int = 64) -> SentenceTransformer:
    """A SentenceTransformer by folder or Hub name; None: the packaged all-MiniLM-L6-v2.

    Raises:
        ValueError: it cannot be loaded, or the packaged weights are not the published ones.
    """
    folder = str(resolve(base) if base else minilm_folder())
    try:
        model = SentenceTransformer(
            folder,
            model_kwargs={} if torch.cuda.is_available() else {"attn_implementation": "eager"},
            config_kwargs={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded as a text encoder: {str(error).splitlines()[0]}") from error
    model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
    return model
