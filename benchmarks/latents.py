"""Throughput and activation memory of classifiers of latents beside classifiers of images, in one run on one machine.

    python benchmarks/latents.py                       # a minute or two on two cores
    python benchmarks/latents.py --size 256 --runs 20

Images have 224 pixels a side. Latents are what an autoencoder of factor 8 with 4 channels makes of them, 28 x 28. They
are made once for a data set, so the autoencoder is not part of the measurement.

| column | what it is |
|---|---|
| GFLOP | of a slice through the tower |
| tower/s | slices per second through the tower alone, in float32, optimized for inference; the fastest run |
| model/s | the same of the whole model: tower, scan and case encoder and text head, for cases of one slice |
| peak MB | of a slice in inference: the largest sum of all tensors that are alive at once, without weights |
| saved MB | of a slice in training: all that the tower keeps for the backward pass, without weights |
| ratios | to the first row: how many times as fast (tower, model), what part of the memory (peak, saved) |

"same network" is the network of the first row on latents: what the smaller input alone gives. Runs of the models
alternate, because machines are noisy.
"""

import argparse
import time
import weakref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from radfm import RadFMConfig, RadFMForDiagnosis
from radfm.base_tower_radfm import Tower

FACTOR, CHANNELS = 8, 4
IMAGES = {
    "images, ResNet-50": {"tower": "resnet50"},
    "images, ResNet-18 (default)": {"tower": "resnet18"},
    "images, EfficientNet-lite0": {"tower": "tf_efficientnet_lite0"},  # of radfm-open-mini
}
SMALL = {"depths": [1, 1, 2, 1], "dims": [32, 64, 128, 256]}
LATENTS = {
    "latents, same network": {"tower": "resnet50", "tower_args": {}},
    "latents, ConvNeXt-Tiny, stem 4": {"tower": "convnext_tiny", "tower_args": {"patch_size": 4}},
    "latents, ConvNeXt-Atto, stem 4": {"tower": "convnext_atto", "tower_args": {"patch_size": 4}},
    "latents, ConvNeXt-Atto, stem 1": {"tower": "convnext_atto", "tower_args": {"patch_size": 1}},
    "latents, 5 blocks, stem 4": {"tower": "convnext_atto", "tower_args": {"patch_size": 4} | SMALL},
    "latents, 5 blocks, stem 1": {"tower": "convnext_atto", "tower_args": {"patch_size": 1} | SMALL},
}
LAYER = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 512}
TARGETS = {"speed": 64, "memory": 120}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="pixels of an image (default: 224)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each model (default: 5)")
    parser.add_argument("--images", type=int, default=4, help="images of a run (default: 4)")
    parser.add_argument("--latents", type=int, default=32, help="latents of a run (default: 32)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    size = arguments.size // FACTOR
    models, slices = {}, {}
    for name, vision in IMAGES.items():
        models[name] = model_of(vision | {"image_size": arguments.size})
        slices[name] = torch.randn(arguments.images, 3, arguments.size, arguments.size)
    for name, vision in LATENTS.items():
        of_latents = {"in_chans": CHANNELS} | vision["tower_args"]
        models[name] = model_of(vision | {"family": "latent", "image_size": size, "tower_args": of_latents})
        slices[name] = torch.randn(arguments.latents, CHANNELS, size, size) / 2
    facts = {name: [gflop(tower_of(model), slices[name][:1])] for name, model in models.items()}
    saved = {name: saved_bytes(tower_of(model), slices[name][:4]) for name, model in models.items()}
    for model in models.values():
        model.optimize_for_inference()
    towers = {name: tower_of(model) for name, model in models.items()}
    rates = fastest({name: lambda t=towers[name], x=slices[name]: t(x) for name in models}, slices, arguments.runs)
    batches = {name: batch_of(pixels) for name, pixels in slices.items()}
    whole = fastest({name: lambda m=models[name], b=batches[name]: m(**b) for name in models}, slices, arguments.runs)
    for name in models:
        facts[name] += [rates[name], whole[name], peak_bytes(towers[name], slices[name][:4]) / 1e6, saved[name] / 1e6]
    show(facts, arguments.size)


def show(facts: dict[str, list[float]], size: int) -> None:
    names = ("GFLOP", "tower/s", "model/s", "peak MB", "saved MB")
    print(f"{size} pixels" + " " * 23 + "".join(f"{name:>10}" for name in names) + "   ratios: tower model peak saved")
    _, *first = next(iter(facts.values()))
    for name, (flops, tower, model, peak, saved) in facts.items():
        ratios = (tower / first[0], model / first[1], first[2] / peak, first[3] / saved)
        speed = "".join(f"{ratio:8.1f}x" for ratio in ratios[:2])
        memory = "".join(f"   1/{ratio:<5.1f}" for ratio in ratios[2:])
        print(f"{name:33}{flops:10.3f}{tower:10.1f}{model:10.1f}{peak:10.2f}{saved:10.2f}{speed}{memory}")
    print(f"targets: {TARGETS['speed']}x the throughput, 1/{TARGETS['memory']} of the memory of the first row")


def model_of(vision: dict) -> RadFMForDiagnosis:
    torch.manual_seed(0)
    parts = {"scan_config": LAYER, "case_config": LAYER, "hidden_size": 320, "text_config": None}
    return RadFMForDiagnosis(
        RadFMConfig(vision_config=vision, disorders=[f"disorder {i}" for i in range(100)], **parts)
    )


def tower_of(model: RadFMForDiagnosis) -> Tower:
    return model.radfm.slice_encoder.tower


def batch_of(slices: Tensor) -> dict[str, Tensor]:
    """Cases of one slice each."""
    ones = torch.ones(len(slices), dtype=torch.int64)
    return {"pixel_values": slices, "slices_per_scan": ones, "scans_per_case": ones, "modality_ids": ones}


@torch.inference_mode()
def fastest(computations: dict, slices: dict[str, Tensor], runs: int) -> dict[str, float]:
    """Slices per second of each, in its fastest run."""
    for compute in computations.values():
        compute()
    seconds = dict.fromkeys(computations, float("inf"))
    for _ in range(runs):
        for name, compute in computations.items():
            start = time.perf_counter()
            compute()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: len(slices[name]) / seconds[name] for name in computations}


@torch.no_grad()
def gflop(tower: Tower, slices: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        tower.eval()(slices)
    return counter.get_total_flops() / len(slices) / 1e9


def saved_bytes(tower: Tower, slices: Tensor) -> float:
    """Bytes for each slice that a forward pass in training keeps for the backward pass, each tensor once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*tower.parameters(), *tower.buffers())}
    kept: dict[int, tuple[Tensor, int]] = {}  # with the tensor, so that no other one gets its memory

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = tower.train()(slices)
    assert output.requires_grad
    tower.eval()
    return sum(size for _, size in kept.values()) / len(slices)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it and still alive.

    Attributes:
        peak: the largest number so far.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before | self._known:
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@torch.inference_mode()
def peak_bytes(tower: Tower, slices: Tensor) -> float:
    """Bytes for each slice that are alive at once in inference, without weights and the slices."""
    with LiveTensors() as counter:
        tower(slices)
    return counter.peak / len(slices)


if __name__ == "__main__":
    main()
