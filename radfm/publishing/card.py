"""The model card of a checkpoint (README.md): what all cards have in common, and how their figures are written.

Decisions:
- Every figure is copied from the JSON of an evaluation whose checkpoint has the fingerprint of these weights. What no
  file states is given as unknown.
- The metadata of a card is huggingface_hub's `ModelCardData`; the text is a template of `model_cards/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from radfm.checkpoints import NAMES
from radfm.cli.console import DISCLAIMER
from radfm.presentation import (
    duration,
    markdown_cell,
    number,
    percent_interval,
    plural,
    tidy_markdown,
    with_interval,
)

_WATTS = {"CPU": 65, "GPU": 400}  # assumed for each process
_LICENCES = {
    "apache-2.0": "Apache-2.0",
    "cc-by-sa-4.0": "CC BY-SA 4.0",
    "cc0-1.0": "CC0 1.0",
    "mit": "MIT",
}  # name on the Hub -> usual name
_CITATION = """@software{radfm,
  title  = {radfm: a knowledge-enhanced, multimodal foundation model for radiology},
  author = {The radfm contributors},
  year   = {2026}
}"""


@dataclass
class Facts:
    """What is known about a checkpoint.

    Attributes:
        repo_id: name of the repository on the Hub.
        weights: SHA-256 of the weights, bytes and parameters: `sha256`, `bytes`, `parameters`, `dtype`.
        config: of the model, as in config.json.
        recipe: the record that training saved beside the weights; {} without one.
        training_data: see `radfm.data_prep.data_summary`; None where it is not recorded.
        confidence: the record of `radfm calibrate`; {} without one.
        evaluations: of these weights, see `radfm.publishing.evaluations`.
        transfer: of `radfm evaluate transfer`, of these weights; {} without it.
        licence: its name on the Hub.
        notes: text of the author, Markdown.
        radfm: the version of radfm that publishes.
    """

    repo_id: str
    weights: dict[str, Any]
    config: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    training_data: dict[str, Any] | None = None
    confidence: dict[str, Any] = field(default_factory=dict)
    evaluations: Sequence[dict[str, Any]] = ()
    transfer: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    notes: str = ""
    radfm: str = ""

    @property
    def name(self) -> str:
        return self.repo_id.rpartition("/")[2]


def make_card(
    template: str, facts: Facts, metadata: ModelCardData, model_table: Mapping[str, str], **context: Any
) -> ModelCard:
    """Renders a card.

    Args:
        template: name of a file in `model_cards/`.
        metadata: YAML at the top of the card.
        model_table: rows about the model; those about its weights are added.
        context: further variables of the template.
    Raises:
        ValueError: the metadata does not survive writing and reading.
    """
    jinja = Environment(
        loader=PackageLoader("radfm.model_cards", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    jinja.filters |= {"cell": markdown_cell, "number": number, "many": plural}
    jinja.filters |= {"figure": with_interval, "share": partial(percent_interval, digits=1)}
    weights = facts.weights
    text = jinja.get_template(template).render(
        name=facts.name,
        repo_id=facts.repo_id,
        checkpoint_folder=f"../radfm/checkpoints/{facts.repo_id}/" if facts.repo_id in NAMES else "",
        disclaimer=DISCLAIMER,
        notes=facts.notes.strip(),
        model_table={
            **model_table,
            "weights": f"{weights['bytes'] / 1e6:,.1f} MB, {weights['dtype']}",
            "SHA-256 of the weights": f"`{weights['sha256']}`",
        },
        effort=_effort(facts.recipe),
        licence_text=_licence_text(facts.licence),
        bibtex=_CITATION,
        radfm=facts.radfm,
        **context,
    )
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{tidy_markdown(text)}")
    if card.data.to_dict() != metadata.to_dict():
        raise ValueError(f"the metadata of the card of {facts.repo_id} changes when it is written and read again")
    return card


def counts_cell(counts: Mapping[str, int]) -> str:
    """Counts by name as the cell of a table: "CT 150, MRI 100"."""
    return ", ".join(f"{markdown_cell(name)} {count:,}" for name, count in counts.items()) or "none"


def _effort(recipe: dict) -> dict | None:
    """Time and energy of the run that trained these weights and of its starting points, as far as recorded."""
    if not recipe.get("effort"):
        return None
    starts = _efforts_of_starting_points(recipe)
    recorded = [recipe["effort"], *(effort for effort in starts.values() if effort)]
    kilowatt_hours = sum(run["seconds"] / 3600 * _watts(run) * run["processes"] / 1000 for run in recorded)
    return recipe["effort"] | {
        "time": duration(recipe["effort"]["seconds"]),
        "starting_points": [f"{name}, {duration(effort['seconds'])}" for name, effort in starts.items() if effort],
        "not_recorded": [name for name, effort in starts.items() if not effort],
        "total_time": duration(sum(run["seconds"] for run in recorded)),
        "resumed": any(run["resumed"] for run in recorded),
        "watts": " or ".join(f"{watts} W" for watts in sorted(set(map(_watts, recorded)))),
        "kilowatt_hours": f"{kilowatt_hours:.2g}",
    }


def _efforts_of_starting_points(recipe: dict) -> dict[str, dict | None]:
    """Name of each starting point, and of the starting points of these, -> its effort."""
    efforts: dict[str, dict | None] = {}
    for start in recipe.get("started_from", {}).values():
        efforts[start["name"]] = start.get("effort")
        earlier = _efforts_of_starting_points(start)
        efforts |= {name: effort for name, effort in earlier.items() if effort or name not in efforts}
    return efforts


def _watts(effort: dict) -> int:
    return _WATTS["CPU" if effort["device"].startswith("CPU") else "GPU"]


def _licence_text(licence: str) -> str:
    code_and_data = "The code is radfm's: Apache-2.0. The training data has licences of its own (above)."
    if licence == "unknown":
        return f"The licence of these weights is **unknown**: ask their publisher before you use them. {code_and_data}"
    return f"Weights: {_LICENCES.get(licence, f'`{licence}`')}. {code_and_data}"
