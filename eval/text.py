"""Measures text encoders on terms of an ontology that they were not trained on: `radfm evaluate text`.

    >>> print(as_markdown(evaluate(["runs/text"], "disease_ontology.obo")))

The tasks are described in `radfm.eval.text_tasks`. An encoder that was trained on the tested terms is refused.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from radfm.eval.linker import measure_linker
from radfm.eval.text_encoders import fingerprint, sentence_encoder, tfidf, training_recipe
from radfm.eval.text_tasks import METRICS, compare_prompts, curated_codes, measure, questions
from radfm.knowledge.linking import Linker
from radfm.knowledge.ontology import read
from radfm.progress import Progress, no_progress


def evaluate(
    models: Sequence[str],
    ontology: str | Path,
    held_out: int | None = None,
    unseen_by: str | Path | None = None,
    link: bool = True,
    prompts: bool = False,
    progress: Progress = no_progress,
) -> dict:
    """Figures of TF-IDF, of all-MiniLM-L6-v2 untrained, and of each model.

    "figures" is {encoder: {metric: value}}, "metrics" describes these metrics, and "checkpoints" is the SHA-256 of
    each model's weights.

    Args:
        held_out: the tested fold; None: the one that the first model's recipe held out, or without models 4.
        unseen_by: an ontology that was trained on, whose terms are not tested.
        link: also task A of `link()`, by words alone and with the first model.
        prompts: also task B by each style of prompt, with the first model, or all-MiniLM-L6-v2.

    Raises:
        ValueError: a model was trained on the tested terms, by its recipe, or no term can be tested.
        FileNotFoundError: there is no such ontology.
    """
    trained_on = None if unseen_by is None else read(unseen_by)
    if trained_on is None:
        held_out = _held_out_fold(models, held_out)
    tested = questions(read(ontology), held_out, trained_on)
    encoders = {"TF-IDF": tfidf(), "all-MiniLM-L6-v2": sentence_encoder(None)}
    encoders |= {str(model): sentence_encoder(model) for model in models}
    first = next((str(model) for model in models), None)
    figures, intervals, step, steps = {}, {}, 0, len(encoders) + (1 + bool(first)) * link + prompts
    for name, encode in encoders.items():
        progress(step, steps)
        figures[name], intervals[name] = measure(encode, tested)
        step += 1
    result = {
        "ontology": Path(ontology).stem,
        "checkpoints": {str(model): fingerprint(model) for model in models},
        "terms": len(tested.terms),
        "linked": sum(bool(curated_codes(term)) for term in tested.terms),
        "candidates": len(tested.candidates),
        "metrics": {key: asdict(metric) for key, metric in METRICS.items()},
        "figures": figures,
        "intervals": intervals,
    }
    if link:
        progress(step, steps)
        figures["link()"] = measure_linker(Linker(), tested)
        step += 1
        if first:
            progress(step, steps)
            figures[f"link() with {first}"] = measure_linker(Linker(encoder=encoders[first]), tested)
            step += 1
    if prompts:
        progress(step, steps)
        result["prompts"] = compare_prompts(encoders[first or "all-MiniLM-L6-v2"], tested)
    return result


def as_markdown(result: dict) -> str:
    """The result of `evaluate` as tables."""
    lines = [
        f"{result['linked']:,} of {result['terms']:,} terms have a code; {result['candidates']:,} candidates for B.\n",
        "| | " + " | ".join(METRICS) + " |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for encoder, figures in result["figures"].items():
        cells = [f"{figures[name]:.3f}" if name in figures else "" for name in METRICS]
        lines.append(f"| {encoder} | " + " | ".join(cells) + " |")
        if "confident" in figures:
            share, right = figures["confident"], figures["category of the confident"]
            lines[0] += f"{encoder} is confident for {share:.1%}, of which {right:.1%} have the right category."
            accepted = [miss["accepted"] for miss in figures["misses"] if miss["accepted"] is not None]
            judged = f"; of {len(accepted):,} judged, a coder would accept {sum(accepted):,}" if accepted else ""
            lines[0] += f" Its first code differs from the curators' for {len(figures['misses']):,}{judged}.\n"
    if "prompts" in result:
        lines += ["", "| prompt | B@1 | B@10 |", "|---|---|---|"]
        lines += [f"| {style} | {at['R@1']:.3f} | {at['R@10']:.3f} |" for style, at in result["prompts"].items()]
    return "\n".join(lines)


def _held_out_fold(models: Sequence[str], held_out: int | None) -> int:
    """The given fold, or that which the first model held out. Raises: ValueError: a model was trained on it."""
    folds = {str(model): (training_recipe(model) or {}).get("held_out", held_out) for model in models}
    held_out = next(iter(folds.values()), 4) if held_out is None else held_out
    for model, fold in folds.items():
        if fold is None or fold != held_out:
            raise ValueError(
                f"{model} was trained on terms of fold {held_out}, or on all: "
                "train with held_out, or give --unseen-by the ontology it was trained on"
            )
    assert held_out is not None
    return held_out
