"""Speed and memory of inference, and the time to score a case against all of ICD-10-CM.

    python benchmarks/inference.py            # all parts, a few minutes on two cores
    python benchmarks/inference.py speed

- "speed" prints slices per second of RadDiag's case-level architecture on two cases, of 1 + 32 + 20 and 3 + 32 slices.
  The baseline (a) computes as RadDiag does: every scan is padded to 32 slices, and every case to 4 scans. The other
  rows are radfm, which computes only the 88 slices that exist; (b) and (c) are compiled. Medians of runs in one process
  are compared, and the runs alternate because machines are noisy. Where ../shared/raddiag exists, its pinned weights
  are used, and the logits of (a) are compared with those of RadDiag's own code. Otherwise the weights are random.
  "bound" is the speed at which the matrix products of a ResNet-50 alone would run on this machine.
- "memory" prints the peak memory of a process that classifies a large case. It is read from /proc, so on
  Linux only.
- "scoring" prints the time to rank all codes of ICD-10-CM for one case with cached text embeddings.
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
    parser.add_argument("parts", nargs="*", help="speed, memory, scoring (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each variant (default: 3)")
    parser.add_argument("--measure", choices=MEMORY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(MEMORY[arguments.measure]())
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"AMX: {'yes' if _has_amx() else 'no, so bfloat16 is only a little faster than float32'}\n")
    for part in arguments.parts or ["speed", "memory", "scoring"]:
        {"speed": lambda: speed(arguments.runs), "memory": memory, "scoring": scoring}[part]()
        print()


@torch.inference_mode()
def speed(runs: int) -> None:
    model = _model()
    batch = _batch()
    slices = int(batch["slices_per_scan"].sum())
    variants = {
        "a  padded as by RadDiag, float32": lambda: padded(model, batch),
        "   packed, float32": lambda: model(**batch).logits,
    }
    fast, chunk = {}, 8  # 88 slices are eleven full chunks, so none is padded
    for name, dtype, compile in (
        ("   packed, float32, channels-last and folded", torch.float32, False),
        ("b  packed, float32, compiled", torch.float32, True),
        ("   packed, bfloat16, channels-last and folded", torch.bfloat16, False),
        ("c  packed, bfloat16, compiled", torch.bfloat16, True),
    ):
        fast[name] = copy.deepcopy(model)
        fast[name].config.vision_config.slices_per_chunk = chunk
        fast[name].optimize_for_inference(dtype, compile=compile)
        variants[name] = lambda model=fast[name]: model(**batch).logits
    logits, first_run = {}, {}
    for name, run in variants.items():
        start = time.perf_counter()
        logits[name] = run().float()
        first_run[name] = time.perf_counter() - start
    seconds = {name: [] for name in variants}
    for _ in range(runs):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    baseline = next(iter(variants))
    print(f"{len(CASES)} cases, {slices} slices ({len(CASES) * 4 * 32} with padding), median of {runs} runs")
    print(f"{'':48}{'slices/s':>10}{'s/case':>9}{'ratio to a':>12}{'|logit - a|':>13}{'first run':>11}")
    for name, median in medians.items():
        difference = (logits[name] - logits[baseline]).abs().max().item()
        ratio = medians[baseline] / median
        print(
            f"{name:48}{slices / median:10.1f}{median / len(CASES):9.2f}{ratio:11.1f}x{difference:13.2g}"
            f"{first_run[name]:9.1f} s"
        )
    for dtype in (torch.float32, torch.bfloat16):
        rate = _matrix_rate(dtype)
        bound = rate / GFLOP_PER_SLICE
        ratio = medians[baseline] * bound / slices
        name = str(dtype).removeprefix("torch.")
        print(f"bound, {name}: {rate:.0f} GFLOP/s in matrix products = {bound:.1f} slices/s = {ratio:.1f}x a")
    if SHARED.is_dir():
        expected = torch.from_numpy(np.load(SHARED / "forward.npz")["logits"])
        print(f"largest difference of (a) from RadDiag's own logits: {(logits[baseline] - expected).abs().max():.2g}")


def padded(model: RadFMForDiagnosis, batch: dict[str, Tensor], depth: int = 32, slots: int = 4) -> Tensor:
    """Logits (cases, disorders) as RadDiag computes them: zeros are added, computed like slices, and then masked."""
    net = model.radfm
    counts, scans = batch["slices_per_scan"].tolist(), batch["scans_per_case"].tolist()
    rows = [case * slots + i for case, n in enumerate(scans) for i in range(n)]
    pixels = torch.zeros(len(scans) * slots, depth, *batch["pixel_values"].shape[1:])
    real_slices = torch.zeros(len(pixels), depth, dtype=torch.bool)
    modality = torch.zeros(len(pixels), dtype=torch.int64)
    for row, part, kind in zip(rows, batch["pixel_values"].split(counts), batch["modality_ids"], strict=True):
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
    """Peak memory of three workloads, each in a process of its own, as the operating system counts it."""
    for name, limit in (("imports", None), ("ct", 3), ("scans", 3)):
        command = [sys.executable, __file__, "--measure", name]
        gib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        workload = {
            "imports": "imports and RadDiag's weights alone",
            "ct": "a CT of 1,000 slices of 256 x 256, from pixels to diagnosis, ResNet-50",
            "scans": "a case of 40 scans of 25 slices, from pixels to diagnosis, ResNet-50",
        }[name]
        print(f"peak memory {gib:5.2f} GiB{f' (limit {limit})' if limit else '':10}  {workload}")


def _peak_after(slices_of_each_scan: list[int]) -> float:
    """Peak memory of this process in GiB, after the diagnosis of one case with these scans."""
    from radfm import Case, Scan
    from radfm.image_processing_radfm import RadFMImageProcessor
    from radfm.processing_radfm import RadFMProcessor

    with torch.inference_mode():
        model = RadFMForDiagnosis(raddiag.config([f"disorder {i}" for i in range(5569)])).eval()
        if slices_of_each_scan:
            rng = np.random.default_rng(0)
            scans = [Scan(rng.integers(-1000, 1000, (n, 256, 256), np.int16), "CT") for n in slices_of_each_scan]
            model(**RadFMProcessor(RadFMImageProcessor(size=256))(cases=[Case(scans=scans)]))
    # VmHWM counts this process only; the maximum of getrusage would include the parent.
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) / 2**20


MEMORY = {
    "imports": lambda: _peak_after([]),
    "ct": lambda: _peak_after([1000]),
    "scans": lambda: _peak_after([25] * 40),
}


@torch.inference_mode()
def scoring(codes: int = 98_505) -> None:
    """The time to score and rank every code of ICD-10-CM for one case, with cached text embeddings."""
    model = RadFMForDiagnosis(RadFMConfig(disorders=[f"code {i}" for i in range(codes)])).eval()
    case = torch.nn.functional.normalize(torch.randn(1, model.config.projection_dim), dim=-1)
    head = model.head
    head.disorder_embeds.copy_(torch.nn.functional.normalize(torch.randn_like(head.disorder_embeds), dim=-1))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        head(case).sigmoid().topk(10)
        times.append(time.perf_counter() - start)
    print(f"scoring and ranking {codes:,} cached text embeddings for a case: {1e3 * statistics.median(times):.1f} ms")


def _batch() -> dict[str, Tensor]:
    rng = np.random.RandomState(7)  # the input of ../shared/raddiag/forward.npz
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
    """GFLOP/s of the product of two square matrices in the fastest run, which is a bound for the model."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    a @ b
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times) / 1e9


def _has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


if __name__ == "__main__":
    main()
