"""Speed of the ICD-10-CM lookup, of embedding its descriptions, and of linking a name to its code.

    python benchmarks/text.py radfm-text-mini [--names disorder_label_dict.json]
    python benchmarks/text.py --index disease_ontology.obo      # needs pip install bm25s

What is printed, with targets for two cores:

- the time to load ICD-10-CM after the first use (target 1 s),
- the time to embed 4,000 descriptions. The baseline is the same encoder in sentence-transformers, in float32,
- the time to embed the names, such as the 5,569 of RP3D-DiagDS (target 5 s),
- the time to embed all 98,505 descriptions (target 90 s), relative to the time of the encoder's matrix products alone
  in bfloat16 over as many tokens. That is a lower bound for a bfloat16 encoder, measured in the same run because
  machines are noisy,
- the time to link a name with a loaded linker (target 20 ms).

With `--index` the inverted index of the lexicon is compared with bm25s: time to import, build and link, and accuracy.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
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
    parser.add_argument("encoder", nargs="?", default="radfm-text-mini", help="folder or name of a text encoder")
    parser.add_argument("--names", type=Path, help="JSON list or dictionary of names (default: 5,569 of ICD-10-CM)")
    parser.add_argument("--index", type=Path, help="compare the index with bm25s on terms of this ontology")
    arguments = parser.parse_args()
    if arguments.index:
        compare_indices(arguments.index)
        return
    descriptions = [entry.description for entry in icd10cm.entries()]
    names = list(json.loads(arguments.names.read_text())) if arguments.names else descriptions[:5569]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")

    load = "import time; s = time.perf_counter(); from radfm.knowledge import icd10cm; icd10cm.get('I71.3'); "
    command = [sys.executable, "-c", load + "print(time.perf_counter() - s)"]
    seconds = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    print(f"loading ICD-10-CM                 {statistics.median(seconds):7.2f} s (target 1)")

    sample = random.Random(0).sample(descriptions, 4000)
    plain = SentenceTransformer(str(resolve(arguments.encoder)), device="cpu")
    encode_seconds = {
        "float32": timed(lambda: plain.encode(sample, batch_size=256)),
        "radfm": embed_seconds(arguments.encoder, sample),
    }
    speed_up = encode_seconds["float32"] / encode_seconds["radfm"]
    print(f"4,000 descriptions                {encode_seconds['radfm']:7.2f} s, {speed_up:.1f}x as fast as float32")
    print(f"{len(names):,} names                       {embed_seconds(arguments.encoder, names):7.2f} s (target 5)")
    whole = embed_seconds(arguments.encoder, descriptions)
    bound = matrix_product_seconds(plain, descriptions)
    print(f"{len(descriptions):,} descriptions               {whole:7.2f} s (target 90), ", end="")
    print(f"{whole / bound:.2f}x the {bound:.0f} s of the matrix products")

    encoder = {"encoder": text_embedder(arguments.encoder), "fingerprint": fingerprint(arguments.encoder)}
    for inputs, linker in {"words": Linker(), "words and encoder": Linker(**encoder)}.items():
        linker.link("pneumothorax")
        each = []
        for name in random.Random(1).sample(names, 200):
            started = time.perf_counter()
            linker.link(name)
            each.append(time.perf_counter() - started)
        print(f"linking a name, {inputs:18} {1000 * statistics.median(each):6.1f} ms, ", end="")
        print(f"95th percentile {1000 * statistics.quantiles(each, n=20)[-1]:.1f} ms (target 20)")


def compare_indices(obo: Path) -> None:
    """Compares the index of `Lexicon` with bm25s on the same features: time to import, build and link, and accuracy."""
    from radfm.eval.text import measure_linker, questions
    from radfm.knowledge import lexicon, ontology, wording

    for module in ("bm25s", "radfm.knowledge.lexicon"):
        code = (
            f"import sys, time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s, *sys.modules)"
        )
        command = [sys.executable, "-c", code]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(5)]
        seconds = statistics.median(float(run[0]) for run in runs)
        print(f"import {module:24} {seconds:7.2f} s{', with scipy' * ('scipy' in runs[0])}")
    names = lexicon.Lexicon().names
    words = [wording.words(name) for name in names]
    grams = [lexicon._grams(each) for each in words]
    built = {
        "radfm": timed(lambda: [lexicon._inverted_index(features) for features in (words, grams)]),
        "bm25s": timed(lambda: [Bm25Index(features) for features in (words, grams)]),
    }
    print(f"build                           radfm {built['radfm']:.1f} s, bm25s {built['bm25s'] / built['radfm']:.1f}x")

    ours, theirs = Linker(), Linker()
    theirs.lexicon._words, theirs.lexicon._grams = Bm25Index(words), Bm25Index(grams)
    theirs.lexicon._vocabulary = Bm25Index([lexicon._grams([word]) for word in theirs.lexicon._all_words])
    text_questions = questions(ontology.read(obo), held_out=4)
    sample = [term.name for term in text_questions.terms][:200]
    times: dict[str, list[float]] = {"radfm": [], "bm25s": []}
    for name in sample:  # the two alternate, so that noise of the machine affects both alike
        for index, linker in (("radfm", ours), ("bm25s", theirs)):
            times[index].append(timed(lambda linker=linker, name=name: linker.link(name)))
    radfm, bm25s = (1000 * statistics.median(seconds) for seconds in times.values())
    print(f"linking a name                  radfm {radfm:.1f} ms, bm25s {bm25s / radfm:.2f}x")
    for index, linker in (("radfm", ours), ("bm25s", theirs)):
        figures = {
            figure: value for figure, value in measure_linker(linker, text_questions).items() if figure != "misses"
        }
        print(f"{index}: " + ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items()))


class Bm25Index:
    """bm25s with the interface of the lexicon's index. Scores are divided by that of the query, to lie in [0, 1]."""

    def __init__(self, lists: list[list[str]]):
        import bm25s

        lists = [sorted(set(features)) or ["-"] for features in lists]
        self.retriever, self.size = bm25s.BM25(), len(lists)
        self.retriever.index(lists, show_progress=False, leave_progress=False)
        frequency = Counter(feature for features in lists for feature in features)
        self.idf = {f: math.log(1 + (self.size - n + 0.5) / (n + 0.5)) for f, n in frequency.items()}
        self.largest_idf = math.log(1 + (self.size + 0.5) / 0.5)

    def __contains__(self, feature: str) -> bool:
        return feature in self.idf

    def cosines(self, features: list[str]) -> np.ndarray:
        known = [feature for feature in sorted(set(features)) if feature in self.idf]
        if not known:
            return np.zeros(self.size, np.float32)
        query_score = sum(self.idf.get(feature, self.largest_idf) for feature in set(features))
        saturated = 1 + self.retriever.k1  # a feature counts once per name
        return np.minimum(self.retriever.get_scores(known) * saturated / query_score, 1).astype(np.float32)


def embed_seconds(folder: str, texts: list[str]) -> float:
    """Seconds to embed the texts with an empty cache, after a warm-up."""
    encode = text_embedder(folder)
    encode(["pneumothorax", "fracture of the surgical neck of the humerus"])
    return timed(lambda: encode(texts))


@torch.inference_mode()
def matrix_product_seconds(encoder: SentenceTransformer, texts: list[str], rows: int = 3072) -> float:
    """Seconds of the linear layers alone in bfloat16, over the number of tokens of the texts."""
    tokens = sum(map(len, encoder.tokenizer(texts, truncation=True, max_length=encoder.max_seq_length)["input_ids"]))
    layers = [module.bfloat16() for module in encoder[0].auto_model.encoder.modules() if isinstance(module, nn.Linear)]
    inputs = {width: torch.randn(rows, width).bfloat16() for width in {layer.in_features for layer in layers}}
    passes = [timed(lambda: [layer(inputs[layer.in_features]) for layer in layers]) for _ in range(20)]
    return statistics.median(passes) * tokens / rows


def timed(function) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
