"""RadDiag's published checkpoints as ordinary radfm checkpoints (Zheng et al., Nature Communications 15:10147, 2024).

Decisions:
- RadDiag divides by the unbiased standard deviation where LayerNorm divides by the biased one: a constant factor, which
  goes into the weights. The class token of a scan has a position, which is added to the token.
- 102.8 million of its 217.6 million parameters are not used (unused modules, ImageNet's classifier) and left out.
- Slices are prepared as RadDiag's own code does: scaled by the scan's smallest and largest value,
  stretched to 256 x 256, every (D / 32)-th of D slices.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from radfm.configuration_radfm import RadFMConfig, RadFMEncoderConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points.weight_files import read_weights

# RadDiag's modality ids, in its order: CT, MRI and X-ray have a row for each plane or view of the case.
MODALITIES = [
    *("padding", "CT", "CT 2", "CT 3", "MRI", "MRI 2", "MRI 3", "X-ray", "X-ray 2", "ultrasound", "other"),
    *("fluoroscopy", "mammography", "angiography", "nuclear medicine", "barium study"),
]


def from_checkpoint(
    checkpoint: str | Path | Mapping[str, Tensor | np.ndarray],
    disorders: Sequence[str] | None = None,
    icd10cm: Sequence[Sequence[str]] | None = None,
) -> RadFMForDiagnosis:
    """A published RadDiag checkpoint, case level or one scan, as a radfm model with a fixed list of disorders.

    Args:
        checkpoint: a `pytorch_model.bin` (loaded with `weights_only=True`) or `.safetensors` file, a folder that holds
            one, or its state dict.
        disorders: names in the order of the logits, as in `disorder_label_dict.json`; unset, "disorder 0",
            "disorder 1", ...
        icd10cm: ICD-10-CM codes of each disorder, where known.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors of the layout are missing, or the number of names is not that of the logits.
    """
    weights = _load(checkpoint)
    num_disorders = len(weights["fc.2.bias"])
    if disorders is None:
        disorders = [f"disorder {i}" for i in range(num_disorders)]
    if len(disorders) != num_disorders:
        raise ValueError(f"the checkpoint scores {num_disorders:,} disorders, {len(disorders):,} names were given")

    model_config = config(disorders, icd10cm, fusion_layers=_layers(weights, "vitFuse"))
    converted = {f"radfm.slice_encoder.tower.network.{name}": t for name, t in _tower(weights)}
    converted |= {f"radfm.scan_encoder.{name}": t for name, t in _encoder(weights, "attention1D")}
    if cast(RadFMEncoderConfig, model_config.case_config).num_hidden_layers:
        converted |= {f"radfm.case_encoder.{name}": t for name, t in _encoder(weights, "vitFuse")}
        converted["radfm.modality_embed.weight"] = weights["vitFuse.mod_embed"]
    converted |= {f"head.{ours}": weights[theirs] for ours, theirs in _HEAD.items()}

    with torch.device("meta"):
        model = RadFMForDiagnosis(model_config)
    model.load_state_dict(converted, assign=True)
    return model.eval()


def config(
    disorders: Sequence[str], icd10cm: Sequence[Sequence[str]] | None = None, fusion_layers: int = 2
) -> RadFMConfig:
    """The configuration of RadDiag's architecture; the one-scan checkpoint has no `fusion_layers`."""
    layer = {"intermediate_size": 2048, "hidden_act": "relu", "layer_norm_eps": 1e-12, "norm_before_attention": False}
    return RadFMConfig(
        vision_config={"family": "resnet", "tower": "resnet50", "image_size": 256, "num_features": 2048},
        scan_config={"num_hidden_layers": 1, "num_attention_heads": 1, "num_positions": 32, **layer},
        case_config={"num_hidden_layers": fusion_layers, "num_attention_heads": 4, **layer},
        fusion="class_token",
        text_config=None,
        hidden_size=2048,
        head="mlp",
        modalities=MODALITIES,
        use_planes=False,
        use_days=False,
        trained=True,
        disorders=list(disorders),
        icd10cm=[list(codes) for codes in icd10cm] if icd10cm is not None else [],
    )


def read_disorders(file: str | Path) -> list[str]:
    """Names in the order of the logits, from RadDiag's `disorder_label_dict.json` ({name: index}).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or the indices are not 0, 1, 2, ...
    """
    file = Path(file)
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file. RadDiag publishes disorder_label_dict.json with its data set")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        names = sorted(index, key=index.get)
        complete = [index[name] for name in names] == list(range(len(names)))
    except (AttributeError, TypeError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f"{file}: expected a JSON object of disorder names with their indices 0, 1, 2, ...")
    return names


def processor() -> RadFMProcessor:
    """A processor that prepares slices as RadDiag's own code does."""
    slices = RadFMImageProcessor(
        size=256,
        intensity_percentiles=(0, 100),
        ct_windows=None,
        image_mean=None,
        image_std=None,
        keep_aspect_ratio=False,
        max_slices=32,
        modalities=MODALITIES,
    )
    return RadFMProcessor(slices)


_LAYER = {
    "self_attn.linears.0": "q_proj",
    "self_attn.linears.1": "k_proj",
    "self_attn.linears.2": "v_proj",
    "self_attn.linears.3": "out_proj",
    "feed_forward.w_1": "fc1",
    "feed_forward.w_2": "fc2",
}
_HEAD = {"fc1.weight": "fc.0.weight", "fc1.bias": "fc.0.bias", "fc2.weight": "fc.2.weight", "fc2.bias": "fc.2.bias"}


def _load(checkpoint: str | Path | Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    if not isinstance(checkpoint, Mapping):
        checkpoint = _read(Path(checkpoint))
    weights = {name.removeprefix("module."): torch.as_tensor(t) for name, t in checkpoint.items()}
    needed = ["resnet2D.conv1.weight", "attention1D.cls_token", "attention1D.pos_emb", *_HEAD.values()]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(f"not a RadDiag ResNet checkpoint: it has no {missing[0]!r} (of {len(weights)} tensors)")
    return weights


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        path = next((file for file in files if file.exists()), files[-1])
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. RadDiag publishes one pytorch_model.bin per folder")
    return read_weights(path)


def _layers(weights: Mapping[str, Tensor], theirs: str) -> int:
    prefix = f"{theirs}.transformer_encoder.encoder.layers."
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _tower(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        if name.startswith("resnet2D.") and not name.startswith("resnet2D.fc."):
            yield name.removeprefix("resnet2D."), tensor


def _encoder(weights: Mapping[str, Tensor], theirs: str) -> Iterator[tuple[str, Tensor]]:
    prefix = f"{theirs}.transformer_encoder.encoder."
    class_token, positions = weights[f"{theirs}.cls_token"][0], weights.get(f"{theirs}.pos_emb")
    if positions is not None:
        class_token = class_token + positions[:1]
        yield "positions", positions[1:].clone()
    yield "class_token", class_token
    yield from _norm("norm", weights[f"{prefix}norm.a"], weights[f"{prefix}norm.b"])
    for name, tensor in weights.items():
        if not name.startswith(f"{prefix}layers."):
            continue
        layer, _, rest = name.removeprefix(f"{prefix}layers.").partition(".")
        module, _, kind = rest.rpartition(".")
        if module in _LAYER:
            yield f"layers.{layer}.{_LAYER[module]}.{kind}", tensor
        elif rest == "sublayer.1.norm.a":
            yield from _norm(f"layers.{layer}.mlp_norm", tensor, weights[f"{prefix}layers.{layer}.sublayer.1.norm.b"])


def _norm(name: str, a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", a * ((len(a) - 1) / len(a)) ** 0.5
    yield f"{name}.bias", b
