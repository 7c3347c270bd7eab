"""The card of a checkpoint, README.md: the frame of all cards, and how their figures and words are written.

Decisions:
- Every figure is copied from the JSON of an evaluation, whose checkpoint has the fingerprint of these weights. What no
  file says is said to be unknown.
- The head of a card is huggingface_hub's `ModelCardData`; the body is a template of `model_cards/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from radfm.checkpoints import NAMES
from radfm.cli.console import DISCLAIMER
from radfm.presentation import duration, markdown_cell, number, plural, tidy_markdown

_WATTS = {"CPU": 65, "GPU": 400}  # of a process, assumed
_LICENCES = {"apache-2.0": "Apache-2.0", "cc0-1.0": "CC0 1.0", "mit": "MIT"}  # as the Hub calls them -> as people do
_CITATION = """@software{radfm,
  title  = {radfm: a knowledge-enhanced, multimodal foundation model for radiology},
  author = {The radfm contributors},
  year   = {2026}
}"""


@dataclass
class Facts:
    """What is known of a checkpoint.

    Attributes:
        repo_id: Where it is published.
        weights: SHA-256 of the weights, bytes and parameters: `sha256`, `bytes`, `parameters`, `dtype`.
        config: Of the model, as in config.json.
        recipe: What training left beside it; {} where there is none.
        learned: See `radfm.data_prep.data_summary`; None where nobody recorded it.
        confidence: Of `radfm calibrate`; {} where there is none.
        evaluations: Of these weights, see `radfm.publishing.publish`.
        licence: As the Hub calls it.
        notes: Words of the author, Markdown.
        radfm: Version that publishes.
    """

    repo_id: str
    weights: dict[str, Any]
    config: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, Any] | None = None
    confidence: dict[str, Any] = field(default_factory=dict)
    evaluations: Sequence[dict[str, Any]] = ()
    licence: str = "unknown"
    notes: str = ""
    radfm: str = ""

    @property
    def name(self) -> str:
        return self.repo_id.rpartition("/")[2]


def make_card(template: str, facts: Facts, head: ModelCardData, table: Mapping[str, str], **context: Any) -> ModelCard:
    """
    Args:
        template: Of `model_cards/`.
        head: Metadata.
        table: Of the model, what -> said; weights join it.
        context: What the template shows besides.
    Raises:
        ValueError: The head does not come back as it was written.
    """
    jinja = Environment(
        loader=PackageLoader("radfm.model_cards", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    jinja.filters |= {"cell": markdown_cell, "number": number, "many": plural}
    size = facts.weights
    body = jinja.get_template(template).render(
        name=facts.name,
        repo_id=facts.repo_id,
        beside=f"../radfm/checkpoints/{facts.repo_id}/" if facts.repo_id in NAMES else "",
        disclaimer=DISCLAIMER,
        notes=facts.notes.strip(),
        facts={
            **table,
            "weights": f"{size['bytes'] / 1e6:,.1f} MB, {size['dtype']}",
            "SHA-256 of the weights": f"`{size['sha256']}`",
        },
        effort=_effort(facts.recipe),
        licence_text=_licence(facts.licence),
        bibtex=_CITATION,
        radfm=facts.radfm,
        **context,
    )
    card = ModelCard(f"---\n{head.to_yaml()}\n---\n\n{tidy_markdown(body)}")
    if card.data.to_dict() != head.to_dict():
        raise ValueError(f"the head of the card of {facts.repo_id} does not come back as it was written")
    return card


def _effort(recipe: dict) -> dict | None:
    """Of the run that made these weights, and of those that it started from, as far as they were recorded."""
    if not recipe.get("effort"):
        return None
    starts = _starts(recipe)
    recorded = [recipe["effort"], *(effort for effort in starts.values() if effort)]
    used = sum(run["seconds"] / 3600 * _watts(run) * run["processes"] / 1000 for run in recorded)
    return recipe["effort"] | {
        "time": duration(recipe["effort"]["seconds"]),
        "starts": [f"{name}, {duration(effort['seconds'])}" for name, effort in starts.items() if effort],
        "unknown": [name for name, effort in starts.items() if not effort],
        "together": duration(sum(run["seconds"] for run in recorded)),
        "resumed": any(run["resumed"] for run in recorded),
        "watts": " or ".join(f"{watts} W" for watts in sorted(set(map(_watts, recorded)))),
        "kilowatt_hours": f"{used:.2g}",
    }


def _starts(recipe: dict) -> dict[str, dict | None]:
    """Of all checkpoints that a model started from, and those from which they did: name -> what it took."""
    found: dict[str, dict | None] = {}
    for start in recipe.get("started_from", {}).values():
        found[start["name"]] = start.get("effort")
        found |= {name: effort for name, effort in _starts(start).items() if effort or name not in found}
    return found


def _watts(effort: dict) -> int:
    return _WATTS["CPU" if effort["device"].startswith("CPU") else "GPU"]


def _licence(licence: str) -> str:
    own = "The code is radfm's: Apache-2.0. Data that it learned from has licences of its own (above)."
    if licence == "unknown":
        return f"The licence of these weights is **unknown**: ask whoever published them before you use them. {own}"
    return f"Weights: {_LICENCES.get(licence, f'`{licence}`')}. {own}"


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{markdown_cell(name)} {n:,}" for name, n in counts.items()) or "none"
