"""The model card of a text encoder: what it was trained on, and how well it links and ranks terms that it did not see.

Decisions:
- Names of metrics, and which of them the card shows, are read from each evaluation, which carries the registry of
  `radfm.eval.text_tasks`. This file has no list of metrics.
"""

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from radfm.presentation import value, with_interval
from radfm.publishing.card import Facts, make_card
from radfm.recipes_radfm import TEXT_RECIPE

_MINILM = "all-MiniLM-L6-v2"
_CITATION = (
    "Training started from all-MiniLM-L6-v2: Reimers and Gurevych, Sentence-BERT: sentence embeddings using siamese "
    "BERT-networks, EMNLP 2019, https://arxiv.org/abs/1908.10084."
)


def text_card(facts: Facts) -> ModelCard:
    """The card of a SentenceTransformer.

    Raises:
        ValueError: the metadata of the card does not survive writing and reading.
    """
    config, recipe = facts.config, facts.recipe
    from_minilm = bool(recipe) and recipe.get("base") is None
    model_table = {
        "parameters": f"{facts.weights['parameters']:,}",
        "architecture": f"{config['model_type']}, {config['num_hidden_layers']} layers, "
        f"hidden size {config['hidden_size']}",
        "vocabulary": f"{config['vocab_size']:,} word pieces",
    }
    pairs = recipe.get("pairs", {})
    return make_card(
        "text_encoder.md",
        facts,
        _metadata(facts, from_minilm),
        model_table,
        width=config["hidden_size"],
        knowledge=list(_knowledge(recipe)),
        pairs=f"Used as {', '.join(f'{n:,} pairs of {kind}' for kind, n in pairs.items())}." if pairs else "",
        training=[f"{line}." for line in _training(recipe)],
        evaluations=[_context(evaluation, facts.name) for evaluation in facts.evaluations],
        not_in_training=list(_not_in_training(recipe)),
        citations=[_CITATION] if from_minilm else [],
    )


def _metadata(facts: Facts, from_minilm: bool) -> ModelCardData:
    evaluations = facts.evaluations
    hub_names = {metric["hub_name"] for each in evaluations for metric in _card_metrics(each).values()}
    return ModelCardData(
        language="en",
        license=facts.licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["radfm", "medical", "icd-10-cm", "sentence-transformers", "feature-extraction"],
        base_model=f"sentence-transformers/{_MINILM}" if from_minilm else None,
        base_model_relation="finetune" if from_minilm else None,
        metrics=sorted(filter(None, hub_names)) or None,
        model_name=facts.name if evaluations else None,
        eval_results=[result for each in evaluations for result in _model_index_results(each)] or None,
    )


def _context(evaluation: dict, name: str) -> dict[str, Any]:
    """What the template shows of an evaluation."""
    encoders = evaluation["figures"]
    return {
        "task": f"Evaluated with {evaluation['terms']:,} terms of {evaluation['ontology']} that were not used in "
        f"training, {evaluation['linked']:,} of them with codes. Synonyms are ranked against "
        f"{evaluation['candidates']:,} terms.",
        "intervals": "intervals" in evaluation,
        "encoders": [f"**{name}**" if encoder == "this" else encoder for encoder in encoders],
        "rows": [
            {"name": metric["name"], "figures": [_figure(evaluation, encoder, key) for encoder in encoders]}
            for key, metric in _card_metrics(evaluation).items()
        ],
    }


def _figure(evaluation: dict, encoder: str, metric: str) -> str:
    if metric not in evaluation["figures"][encoder]:
        return value(None)
    figure = {"value": evaluation["figures"][encoder][metric]}
    if ends := evaluation.get("intervals", {}).get(encoder, {}).get(metric):
        return with_interval(figure | dict(zip(("low", "high"), ends, strict=True)))
    return value(figure)


def _model_index_results(evaluation: dict) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="sentence-similarity",
            task_name="Linking and finding disorders",
            dataset_type="ontology",
            dataset_name=evaluation["ontology"],
            dataset_args={"terms": evaluation["terms"]},
            metric_type=metric["hub_name"],
            metric_name=metric["name"],
            metric_value=round(evaluation["figures"]["this"][key], 4),
        )
        for key, metric in _card_metrics(evaluation).items()
        if metric["hub_name"] and key in evaluation["figures"]["this"]
    ]


def _card_metrics(evaluation: dict) -> dict[str, dict]:
    """Key -> properties of the metrics that the card shows; evaluations that do not describe them have keys alone."""
    keys_alone = {key: {"name": key, "hub_name": None, "in_card": True} for key in evaluation["figures"]["this"]}
    metrics = evaluation.get("metrics") or keys_alone
    return {key: metric for key, metric in metrics.items() if metric["in_card"]}


def _not_in_training(recipe: dict) -> Iterator[str]:
    yield "Text of patients: no reports, no histories."
    yield "Languages other than English."
    if recipe:
        fold = recipe.get("held_out")
        yield (
            "No term of its ontologies was held out, so terms of these ontologies cannot be used to evaluate it."
            if fold is None
            else f"Terms and categories of fold {fold} of 0 to 4, which were held out for evaluation."
        )


def _training(recipe: dict) -> Iterator[str]:
    """Starting point, losses, steps and averaging, a line each; nothing without a recipe."""
    if not recipe:
        return
    run, model = recipe.get("config", {}), recipe.get("config", {}).get("model", {})
    trimmed = ", with the vocabulary reduced to word pieces that the training data needs" if model.get("trim") else ""
    yield f"Starting point: {recipe.get('base') or _MINILM}{trimmed}"
    yield "Losses: multiple negatives ranking in both directions, and CoSENT over pairs of codes"
    if steps := run.get("training", {}).get("max_steps"):
        yield f"{steps:,} steps"
    if (first := model.get("average_from")) is not None:
        yield f"The weights are the mean of the checkpoints after {first:.0%} of the training"
    if share := model.get("base_share"):
        yield f"The weights are averaged with those of the starting point, whose share is {share:g}"
    if max_tokens := recipe.get("max_tokens"):
        yield f"Texts are truncated after {max_tokens} word pieces"
    yield f"The complete recipe is in `{TEXT_RECIPE}`"


def _knowledge(recipe: dict) -> Iterator[dict[str, str]]:
    """Rows of the table of sources; nothing without a recipe."""
    if not recipe:
        return
    edition = recipe.get("icd10cm", "edition unknown")
    yield {
        "name": "ICD-10-CM",
        "content": f"descriptions, hierarchy; {edition}",
        "licence": "public domain (US government)",
    }
    for ontology in recipe.get("ontologies", ()):
        remark = ontology.get("remark")
        content = [f"{ontology['terms']:,} terms", ontology.get("version"), remark]
        in_remark = re.search(r"CC0(?: 1\.0)?|CC[ -]BY[A-Z-]*(?: \d\.\d)?", remark or "")
        licence = ontology.get("licence") or (f"{in_remark.group()}, by its remark" if in_remark else "**unknown**")
        yield {"name": ontology["name"], "content": ". ".join(filter(None, content)), "licence": licence}
    base = recipe.get("base")
    yield {"name": base or _MINILM, "content": "starting point", "licence": "**unknown**" if base else "Apache-2.0"}
