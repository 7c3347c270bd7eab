"""What knowing ICD-10-CM costs: loading it, embedding its descriptions, linking a name.

    python benchmarks/text.py radfm-text-mini [--names disorder_label_dict.json]

Targets, on two cores: the names of RP3D-DiagDS (5,569) embedded under 5 s, all 98,505 descriptions of ICD-10-CM under
90 s, a name linked under 20 ms once the linker is loaded, ICD-10-CM loaded under a second after first use. The baseline
is the same encoder as sentence-transformers runs it, in float32; and, since machines are noisy, what the encoder's
matrix products alone take over as many tokens in the same run: in bfloat16 nothing can be faster than that.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from radfm.checkpoints import resolve
from radfm.eval.text_encoders import fingerprint
from radfm.knowledge import icd10cm
from radfm.knowledge.linking import Linker
from radfm.starting_points import text_embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="folder of a text encoder, or radfm-text-mini")
    parser.add_argument("--names", type=Path, help="JSON list or dictionary of names; unset, drawn from ICD-10-CM")
    arguments = parser.parse_args()
    descriptions = [entry.description for entry in icd10cm.entries()]
    names = list(json.loads(arguments.names.read_text())) if arguments.names else descriptions[:5569]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")

    load = "import time; s = time.perf_counter(); from radfm.knowledge import icd10cm; icd10cm.get('I71.3'); "
    command = [sys.executable, "-c", load + "print(time.perf_counter() - s)"]
    seconds = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    print(f"loading ICD-10-CM                 {statistics.median(seconds):7.2f} s (target 1)")

    sample = random.Random(0).sample(descriptions, 4000)
    plain = SentenceTransformer(str(resolve(arguments.encoder)), device="cpu")
    took = {"float32": timed(lambda: plain.encode(sample, batch_size=256)), "radfm": fresh(arguments.encoder, sample)}
    print(f"4,000 descriptions                {took['radfm']:7.2f} s, {took['float32'] / took['radfm']:.1f}x float32")
    print(f"{len(names):,} names                       {fresh(arguments.encoder, names):7.2f} s (target 5)")
    whole, bound = fresh(arguments.encoder, descriptions), products(plain, descriptions)
    print(f"{len(descriptions):,} descriptions               {whole:7.2f} s (target 90), ", end="")
    print(f"{whole / bound:.2f}x the {bound:.0f} s of its matrix products")

    encoder = {"encoder": text_embedder(arguments.encoder), "fingerprint": fingerprint(arguments.encoder)}
    for what, linker in {"words": Linker(), "words and encoder": Linker(**encoder)}.items():
        linker.link("pneumothorax")
        each = []
        for name in random.Random(1).sample(names, 200):
            started = time.perf_counter()
            linker.link(name)
            each.append(time.perf_counter() - started)
        print(f"linking a name, {what:18} {1000 * statistics.median(each):6.1f} ms, ", end="")
        print(f"19 of 20 under {1000 * statistics.quantiles(each, n=20)[-1]:.1f} ms (target 20)")


def fresh(folder: str, texts: list[str]) -> float:
    """Seconds with an encoder that has seen no text yet, once it is warm."""
    encode = text_embedder(folder)
    encode(["pneumothorax", "fracture of the surgical neck of the humerus"])
    return timed(lambda: encode(texts))


@torch.inference_mode()
def products(encoder: SentenceTransformer, texts: list[str], rows: int = 3072) -> float:
    """Seconds of the linear layers alone in bfloat16, over all tokens of the texts."""
    tokens = sum(map(len, encoder.tokenizer(texts, truncation=True, max_length=encoder.max_seq_length)["input_ids"]))
    layers = [module.bfloat16() for module in encoder[0].auto_model.encoder.modules() if isinstance(module, nn.Linear)]
    given = {width: torch.randn(rows, width).bfloat16() for width in {layer.in_features for layer in layers}}
    passes = [timed(lambda: [layer(given[layer.in_features]) for layer in layers]) for _ in range(20)]
    return statistics.median(passes) * tokens / rows


def timed(way) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
