"""Seconds and memory of one case, for each model that radfm loads: the table of docs/models.md.

    python benchmarks/models.py                 # all of them, some minutes on two cores
    python benchmarks/models.py "RAD-DINO"

The cases are a radiograph of 1,024 x 1,024 pixels and a CT of 20 slices of 512 x 512, as `read_case` returns them. They
are prepared and diagnosed in float32, each model in a process of its own. The faster of two runs counts, unless the
first takes over 10 s. Models that do not come with radfm have random weights of their published architecture: that
changes neither speed nor memory. Memory is the peak of the process, libraries and weights included. It is read from
/proc, so on Linux only.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, SiglipVisionConfig

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMProcessor, Scan, raddiag
from radfm.checkpoints import resolve
from radfm.image_processing_radfm import RadFMImageProcessor

AVERAGE = {"scan_config": {"num_hidden_layers": 0}, "case_config": {"num_hidden_layers": 0}, "fusion": "class_token"}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
MERLIN = {"axes": "SRA", "spacing_mm": [3.0, 1.5, 1.5], "size": [160, 224, 224]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--measure", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measured(arguments.measure))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    print(f"{'':20}{'parameters':>12}{'radiograph':>12}{'CT, 20 slices':>15}{'memory':>10}")
    for name in arguments.models or MODELS:
        command = [sys.executable, __file__, "--measure", name]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


@torch.inference_mode()
def measured(name: str) -> str:
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    parameters = sum(p.numel() for part, p in model.named_parameters() if "text_encoder" not in part)
    model.optimize_for_inference(torch.float32)
    rng = np.random.default_rng(0)
    radiograph = Scan(rng.integers(0, 4096, (1, 1024, 1024)).astype(np.uint16), "X-ray", "PA", (0.0, 0.3, 0.3))
    ct = Scan(rng.integers(-1000, 1000, (20, 512, 512)).astype(np.int16), "CT", "axial", (5.0, 0.8, 0.8))
    seconds = [seconds_of(model, processor, Case([scan])) for scan in (radiograph, ct)]
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
    return f"{name:20}{parameters / 1e6:10.1f} M{seconds[0]:10.2f} s{seconds[1]:13.1f} s{peak:6.1f} GiB"


def seconds_of(model: RadFMForDiagnosis, processor: RadFMProcessor, case: Case) -> float:
    def run() -> float:
        start = time.perf_counter()
        model(**processor(cases=[case]))
        return time.perf_counter() - start

    first = run()
    return first if first > 10 else min(first, run())


def shipped(name: str) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    folder = resolve(name)
    return RadFMForDiagnosis.from_pretrained(folder).eval(), RadFMProcessor.from_pretrained(folder)


def random(vision: dict, width: int, volume: dict | None = None) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    config = RadFMConfig(vision_config=vision, hidden_size=width, projection_dim=width, **AVERAGE)
    images = RadFMImageProcessor(size=vision["image_size"], ct_windows=((40, 400),), volume=volume)
    return RadFMForDiagnosis(config).eval(), RadFMProcessor(images)


def of_transformers(config) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    arguments = {"config": config.to_dict(), "pooling": "pooler", "num_features": config.hidden_size}
    vision = {"family": "transformers", "tower_args": arguments, "image_size": config.image_size}
    return random(vision, config.hidden_size)


def merlin() -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    vision = {"family": "resnet3d", "tower": "resnet152", "slice_depth": 0, "image_size": 224}
    return random(vision, 512, MERLIN)


def of_raddiag() -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    names = [f"disorder {number}" for number in range(5569)]
    return RadFMForDiagnosis(raddiag.config(names)).eval(), raddiag.processor()


MODELS = {
    "radfm-open-mini": lambda: shipped("radfm-open-mini"),
    "radfm-phantom-mini": lambda: shipped("radfm-phantom-mini"),
    "RadDiag": of_raddiag,
    "Merlin": merlin,
    "BiomedCLIP": lambda: random({"family": "vit", "tower": "vit_base_patch16_224", "image_size": 224}, 512),
    "RAD-DINO": lambda: of_transformers(Dinov2Config(image_size=518)),
    "MedSigLIP": lambda: of_transformers(SiglipVisionConfig(image_size=448, patch_size=14, **SIGLIP)),
}


if __name__ == "__main__":
    main()
