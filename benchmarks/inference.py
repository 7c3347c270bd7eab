"""What inference costs: slices per second, memory, and scoring against all of ICD-10-CM.

    python benchmarks/inference.py            # everything, a few minutes on two cores
    python benchmarks/inference.py speed

Speed is measured on RadDiag's case-level architecture and two cases of 1 + 32 + 20 and 3 + 32 slices, (a) as RadDiag
computes them, every scan padded to 32 slices and every case to 4 scans, against (b), (c) what radfm does with the 88
slices that exist. Where ../shared/raddiag is there, its pinned weights are used and (a) is checked against the answer
of RadDiag's own code; elsewhere weights are random. Ratios are between medians of interleaved runs of one process:
machines are noisy. Memory is read from /proc, so on Linux only.
"""

import argparse
import copy
import importlib.util
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from radfm import RadFMConfig, RadFMForDiagnosis, raddiag

SHARED = Path(__file__).parents[1].parent / "shared" / "raddiag"
GFLOP_PER_SLICE = 10.7  # ResNet-50 at 256 x 256
CASES = [[(7, 1), (1, 32), (4, 20)], [(9, 3), (5, 32)]]  # (modality id, slices) of each scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="speed, memory, scoring, or nothing for all")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each way")
    parser.add_argument("--measure", choices=MEMORY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(MEMORY[arguments.measure]())
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"AMX: {'yes' if _has_amx() else 'no, so bfloat16 gains little over float32 here'}\n")
    for part in arguments.parts or ["speed", "memory", "scoring"]:
        {"speed": lambda: speed(arguments.runs), "memory": memory, "scoring": scoring}[part]()
        print()


@torch.inference_mode()
def speed(runs: int) -> None:
    model = _model()
    batch = _batch()
    slices = int(batch["slices_per_scan"].sum())
    ways = {
        "a  padded, as RadDiag, float32": lambda: padded(model, batch),
        "   packed, float32": lambda: model(**batch).logits,
    }
    fast, chunk = {}, 8  # 88 slices are eleven such chunks: none is filled up
    for name, dtype, compile in (
        ("   packed, float32, channels-last and folded", torch.float32, False),
        ("b  packed, float32, compiled", torch.float32, True),
        ("   packed, bfloat16, channels-last and folded", torch.bfloat16, False),
        ("c  packed, bfloat16, compiled", torch.bfloat16, True),
    ):
        fast[name] = copy.deepcopy(model)
        fast[name].config.vision_config.slices_per_chunk = chunk
        fast[name].optimize_for_inference(dtype, compile=compile)
        ways[name] = lambda model=fast[name]: model(**batch).logits
    answers, first = {}, {}
    for name, way in ways.items():
        started = time.perf_counter()
        answers[name] = way().float()
        first[name] = time.perf_counter() - started
    seconds = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    baseline = next(iter(ways))
    print(f"{len(CASES)} cases, {slices} slices ({len(CASES) * 4 * 32} when padded), median of {runs} runs")
    print(f"{'':48}{'slices/s':>10}{'s/case':>9}{'ratio to a':>12}{'|logit - a|':>13}{'first run':>11}")
    for name, median in medians.items():
        difference = (answers[name] - answers[baseline]).abs().max().item()
        ratio = medians[baseline] / median
        print(
            f"{name:48}{slices / median:10.1f}{median / len(CASES):9.2f}{ratio:11.1f}x{difference:13.2g}"
            f"{first[name]:9.1f} s"
        )
    for dtype in (torch.float32, torch.bfloat16):
        rate = _matrix_rate(dtype)
        floor = rate / GFLOP_PER_SLICE
        ratio = medians[baseline] * floor / slices
        name = str(dtype).removeprefix("torch.")
        print(f"floor, {name}: {rate:.0f} GFLOP/s in matrix products = {floor:.1f} slices/s = {ratio:.1f}x a")
    if SHARED.is_dir():
        golden = torch.from_numpy(np.load(SHARED / "forward.npz")["logits"])
        print(f"(a) against RadDiag's own answer: {(answers[baseline] - golden).abs().max():.2g}")


def padded(model: RadFMForDiagnosis, batch: dict[str, Tensor], depth: int = 32, slots: int = 4) -> Tensor:
    """RadDiag's way: all zeros computed, then masked. (cases, disorders)"""
    net = model.radfm
    counts, scans = batch["slices_per_scan"].tolist(), batch["scans_per_case"].tolist()
    where = [case * slots + i for case, n in enumerate(scans) for i in range(n)]
    pixels = torch.zeros(len(scans) * slots, depth, *batch["pixel_values"].shape[1:])
    real_slices = torch.zeros(len(pixels), depth, dtype=torch.bool)
    modality = torch.zeros(len(pixels), dtype=torch.int64)
    for row, part, kind in zip(where, batch["pixel_values"].split(counts), batch["modality_ids"], strict=True):
        pixels[row, : len(part)], real_slices[row, : len(part)], modality[row] = part, True, kind
    slices = net.slice_encoder.tower(pixels.flatten(0, 1)).unflatten(0, (-1, depth))
    scan_embeds = _padded_encoder(net.scan_encoder, slices + net.scan_encoder.positions, real_slices)
    tokens = (scan_embeds + net.modality_embed(modality)).unflatten(0, (-1, slots))
    real_scans = torch.arange(slots) < torch.tensor(scans)[:, None]
    return model.head(_padded_encoder(net.case_encoder, tokens, real_scans))


def _padded_encoder(encoder, tokens: Tensor, real: Tensor) -> Tensor:
    x = torch.cat([encoder.class_token.expand(len(tokens), 1, -1), tokens], 1)
    mask = torch.cat([torch.ones(len(real), 1, dtype=torch.bool), real], 1)[:, None, None]
    for layer in encoder.layers:
        split = [
            p(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
        ]
        scores = split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5
        mixed = scores.masked_fill(~mask, -1e9).softmax(-1) @ split[2]
        x = x + layer.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.fc2(layer.activation(layer.fc1(layer.mlp_norm(x))))
    return encoder.norm(x[:, 0])


def memory() -> None:
    """Each in a process of its own, by the operating system's account of it."""
    for name, limit in (("imports", None), ("ct", 3), ("scans", 3)):
        command = [sys.executable, __file__, "--measure", name]
        gib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        what = {
            "imports": "imports and RadDiag's weights alone",
            "ct": "a CT of 1,000 slices at 256 x 256, read to diagnosis, ResNet-50",
            "scans": "a case of 40 scans of 25 slices, likewise",
        }[name]
        print(f"peak memory {gib:5.2f} GiB{f' (limit {limit})' if limit else '':10}  {what}")


def _peak_after(slices_of_each_scan: list[int]) -> float:
    from radfm import Case, Scan
    from radfm.image_processing_radfm import RadFMImageProcessor
    from radfm.processing_radfm import RadFMProcessor

    with torch.inference_mode():
        model = RadFMForDiagnosis(raddiag.config([f"disorder {i}" for i in range(5569)])).eval()
        if slices_of_each_scan:
            rng = np.random.default_rng(0)
            scans = [Scan(rng.integers(-1000, 1000, (n, 256, 256), np.int16), "CT") for n in slices_of_each_scan]
            model(**RadFMProcessor(RadFMImageProcessor(size=256))(cases=[Case(scans=scans)]))
    # Linux's own high-water mark of this process; getrusage's would include the parent's.
    mark = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(mark[1]) / 2**20


MEMORY = {
    "imports": lambda: _peak_after([]),
    "ct": lambda: _peak_after([1000]),
    "scans": lambda: _peak_after([25] * 40),
}


@torch.inference_mode()
def scoring(codes: int = 98_505) -> None:
    """One case against every code of ICD-10-CM, embeddings cached."""
    model = RadFMForDiagnosis(RadFMConfig(disorders=[f"code {i}" for i in range(codes)])).eval()
    case = torch.nn.functional.normalize(torch.randn(1, model.config.projection_dim), dim=-1)
    head = model.head
    head.disorder_embeds.copy_(torch.nn.functional.normalize(torch.randn_like(head.disorder_embeds), dim=-1))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        head(case).sigmoid().topk(10)
        times.append(time.perf_counter() - started)
    print(f"scoring and ranking a case against {codes:,} cached prompts: {1e3 * statistics.median(times):.1f} ms")


def _batch() -> dict[str, Tensor]:
    rng = np.random.RandomState(7)  # as ../shared/raddiag makes them
    scans = [rng.random_sample((256, 256, n)).astype(np.float32) for case in CASES for _, n in case]
    slices = torch.cat([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in scans])
    return {
        "pixel_values": slices[:, None].repeat(1, 3, 1, 1),
        "slices_per_scan": torch.tensor([n for case in CASES for _, n in case]),
        "scans_per_case": torch.tensor([len(case) for case in CASES]),
        "modality_ids": torch.tensor([modality for case in CASES for modality, _ in case]),
    }


def _model() -> RadFMForDiagnosis:
    if not SHARED.is_dir():
        torch.manual_seed(0)
        return RadFMForDiagnosis(raddiag.config([f"disorder {i}" for i in range(5569)])).eval()
    spec = importlib.util.spec_from_file_location("make_state_dict", SHARED / "make_state_dict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return raddiag.from_checkpoint(module.state_dict())


def _matrix_rate(dtype: torch.dtype, n: int = 2048, runs: int = 10) -> float:
    """GFLOP/s of a product of two square matrices; the best run, for a floor."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    a @ b
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * n**3 / min(times) / 1e9


def _has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


if __name__ == "__main__":
    main()
