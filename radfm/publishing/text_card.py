"""The card of a text encoder: what it was taught, and how well it links and finds names that it never saw."""

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from radfm.presentation import value, with_interval
from radfm.publishing.card import Facts, make_card
from radfm.recipes_radfm import TEXT_RECIPE

_MINILM = "all-MiniLM-L6-v2"
_FIGURES = {  # of `radfm evaluate text`: what is said of it, and what the Hub calls the metric
    "A@1": ("ICD-10-CM code of a term never seen: first guess right", "accuracy"),
    "A@5": ("ICD-10-CM code: among the first five", "accuracy"),
    "A category": ("ICD-10-CM code: category of the first guess right", "accuracy"),
    "A@1 all names": ("ICD-10-CM code by all its names: first guess right", "accuracy"),
    "A category all names": ("ICD-10-CM code by all its names: category right", "accuracy"),
    "B@1": ("Term meant by a synonym never seen: first guess right", "accuracy"),
    "B@10": ("Term meant by a synonym: among the first ten", "accuracy"),
    "C Spearman": ("Cosine against steps in the tree of ICD-10-CM: Spearman", "spearmanr"),
    "D@1": ("Abbreviations, spelling, word order, lay names: right", "accuracy"),
}
_CITATION = (
    "It started from all-MiniLM-L6-v2: Reimers and Gurevych, Sentence-BERT: sentence embeddings using siamese "
    "BERT-networks, EMNLP 2019, https://arxiv.org/abs/1908.10084."
)


def text_card(facts: Facts) -> ModelCard:
    """Of a SentenceTransformer. Raises: ValueError: the head of the card is not as the Hub wants it."""
    config, recipe = facts.config, facts.recipe
    from_minilm = bool(recipe) and recipe.get("base") is None
    head = ModelCardData(
        language="en",
        license=facts.licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["radfm", "medical", "icd-10-cm", "sentence-transformers", "feature-extraction"],
        base_model=f"sentence-transformers/{_MINILM}" if from_minilm else None,
        base_model_relation="finetune" if from_minilm else None,
        metrics=sorted({metric for _, metric in _FIGURES.values()}) if facts.evaluations else None,
        model_name=facts.name if facts.evaluations else None,
        eval_results=[result for one in facts.evaluations for result in _results(one)] or None,
    )
    table = {
        "parameters": f"{facts.weights['parameters']:,}",
        "architecture": f"{config['model_type']}, {config['num_hidden_layers']} layers, {config['hidden_size']} wide",
        "words": f"{config['vocab_size']:,} word pieces",
    }
    pairs = recipe.get("pairs", {})
    return make_card(
        "text_encoder.md",
        facts,
        head,
        table,
        width=config["hidden_size"],
        knowledge=list(_knowledge(recipe)),
        pairs=f"As {', '.join(f'{n:,} pairs of {what}' for what, n in pairs.items())}." if pairs else "",
        method=[f"{line}." for line in _method(recipe)],
        evaluations=[_evaluation(one, facts.name) for one in facts.evaluations],
        never_shown=list(_never_shown(recipe)),
        citations=[_CITATION] if from_minilm else [],
    )


def _evaluation(one: dict, name: str) -> dict[str, Any]:
    spaces = one["figures"]
    return {
        "asked": f"Asked about {one['terms']:,} terms of {one['ontology']} that it never saw, {one['linked']:,} of "
        f"them with codes; a synonym is told from {one['candidates']:,} terms.",
        "intervals": "intervals" in one,
        "spaces": [f"**{name}**" if space == "this" else space for space in spaces],
        "rows": [
            {"what": said, "figures": [_figure(one, space, key) for space in spaces]}
            for key, (said, _) in _FIGURES.items()
        ],
    }


def _figure(one: dict, space: str, key: str) -> str:
    if key not in one["figures"][space]:
        return value(None)
    figure = {"value": one["figures"][space][key]}
    if ends := one.get("intervals", {}).get(space, {}).get(key):
        return with_interval(figure | dict(zip(("low", "high"), ends, strict=True)))
    return value(figure)


def _results(one: dict) -> list[EvalResult]:
    """For the model-index."""
    return [
        EvalResult(
            task_type="sentence-similarity",
            task_name="Linking and finding disorders",
            dataset_type="ontology",
            dataset_name=one["ontology"],
            dataset_args={"terms": one["terms"]},
            metric_type=metric,
            metric_name=said,
            metric_value=round(one["figures"]["this"][key], 4),
        )
        for key, (said, metric) in _FIGURES.items()
        if key in one["figures"]["this"]
    ]


def _never_shown(recipe: dict) -> Iterator[str]:
    yield "Any text of a patient: no report, no history."
    yield "Any other language than English."
    if recipe:
        fold = recipe.get("held_out")
        yield (
            "No term of its ontologies was kept from it, so terms of theirs cannot measure it."
            if fold is None
            else f"Terms and categories of fold {fold} of 0 to 4, which were kept from it to measure it."
        )


def _method(recipe: dict) -> Iterator[str]:
    if not recipe:
        return
    run, model = recipe.get("config", {}), recipe.get("config", {}).get("model", {})
    trimmed = ", its word pieces trimmed to those that the knowledge needs" if model.get("trim") else ""
    yield f"Start: {recipe.get('base') or _MINILM}{trimmed}"
    yield "Losses: multiple negatives ranking in both directions, and CoSENT over pairs of codes"
    if steps := run.get("training", {}).get("max_steps"):
        yield f"{steps:,} steps"
    if (first := model.get("average_from")) is not None:
        yield f"Its weights are the mean of its checkpoints after {first:.0%} of the training"
    if share := model.get("base_share"):
        yield f"Its weights are averaged with those of the start, whose share is {share:g}"
    if longest := recipe.get("max_tokens"):
        yield f"Texts are cut after {longest} word pieces"
    yield f"The whole recipe is in `{TEXT_RECIPE}`"


def _knowledge(recipe: dict) -> Iterator[dict[str, str]]:
    if not recipe:
        return
    edition = recipe.get("icd10cm", "edition unknown")
    yield {"name": "ICD-10-CM", "what": f"descriptions, tree; {edition}", "licence": "public domain (US government)"}
    for one in recipe.get("ontologies", ()):
        said = [f"{one['terms']:,} terms", one.get("version"), one.get("remark")]
        stated = re.search(r"CC0(?: 1\.0)?|CC[ -]BY[A-Z-]*(?: \d\.\d)?", one.get("remark") or "")
        licence = one.get("licence") or (f"{stated.group()}, as it says" if stated else "**unknown**")
        yield {"name": one["name"], "what": ". ".join(filter(None, said)), "licence": licence}
    base = recipe.get("base")
    yield {"name": base or _MINILM, "what": "to start from", "licence": "**unknown**" if base else "Apache-2.0"}
