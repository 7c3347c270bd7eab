"""Files of weights of other projects: PyTorch's pickles without code, and safetensors."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_weights(file: Path) -> dict[str, Any]:
    """What a file holds: name -> tensor, or, as some checkpoints nest it, name -> such a dict.

    Raises:
        ValueError: it was cut short, is damaged, or is a pickle with more than tensors, which is not opened.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (EOFError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"{file}: not a file of weights ({type(error).__name__}): download it again") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: not a file of weights: it holds a {type(content).__name__} without names")
    return dict(content)
