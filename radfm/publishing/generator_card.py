"""The card of a generator: README.md in its folder, from what is beside it.

Decisions:
- A generator is no patient's data, but it may have memorised some: the card says how to compare its samples with the
  training data, and that this was not done where it was not.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from safetensors import safe_open

from radfm.presentation import BANDS, band_limits, band_of, markdown_cell
from radfm.publishing.card import Facts, counts_cell, make_card
from radfm.recipes_radfm import DIFFUSION_RECIPE, is_synthetic

_SETTINGS, _WEIGHTS = "generator.json", "denoiser/model.safetensors"
_MOST = 200  # rows of the table of disorders


def write_generator_card(
    folder: str | Path,
    repo_id: str | None = None,
    licence: str = "unknown",
    notes: str = "",
    evaluations: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes README.md into the folder of a generator.

    Args:
        repo_id: name on the Hub; None: it has none.
        licence, notes: as of `Facts`.
        evaluations: of `radfm.publishing.evaluations.read_sharing`.
    Raises:
        FileNotFoundError: it holds no generator.
    """
    folder = Path(folder)
    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    recipe_file = folder / DIFFUSION_RECIPE
    recipe = json.loads(recipe_file.read_text(encoding="utf-8")) if recipe_file.is_file() else {}
    data = settings["facts"].get("data") or {}
    facts = Facts(
        repo_id or folder.resolve().name,
        _weights(folder / _WEIGHTS),
        settings,
        recipe,
        data,
        licence=licence,
        notes=notes,
        radfm=version("radfm"),
    )
    known: dict[str, int] = settings["facts"].get("known", {})
    denoiser = settings["denoiser"]
    card = make_card(
        "generator.md",
        facts,
        ModelCardData(
            license=licence, tags=["radfm", "radiology", "medical", "diffusion", "latent-diffusion", "synthetic"]
        ),
        {
            "latents": " x ".join(map(str, denoiser["shape"])),
            "network": markdown_cell(denoiser["kind"]),
            "parameters": f"{facts.weights['parameters']:,}",
            "autoencoder": f"`{recipe.get('autoencoder', {}).get('fingerprint', 'not recorded')}`",
            "data of the autoencoder": _trained_on(settings["facts"].get("autoencoder_data")),
        },
        data=data,
        modalities=counts_cell(data.get("modalities", {})),
        body_parts=counts_cell(data.get("body_parts", {})),
        disorders=[(markdown_cell(name), slices) for name, slices in list(known.items())[:_MOST]],
        more=max(0, len(known) - _MOST),
        tail=sum(band_of(slices) == BANDS[-1] for slices in known.values()),
        tail_limit=band_limits()[BANDS[-1]],
        training=list(_training(recipe)),
        not_in_training=list(_not_in_training(data, known)),
        evaluations=evaluations,
        published=repo_id is not None,
        is_volume=len(denoiser["shape"]) == 4,
        citations=(),
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def _trained_on(data: dict[str, Any] | None) -> str:
    """What the autoencoder learned from."""
    if data is None:
        return "not recorded"
    unpublishable = "; with cases that a published model must not learn from" if data.get("unpublishable") else ""
    return f"{markdown_cell(data['title'])}, licence {markdown_cell(data['licence'] or 'unknown')}{unpublishable}"


def _weights(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  no mapping
    parameters = 0
    for shape in shapes:
        count = 1
        for length in shape:
            count *= length
        parameters += count
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return {"sha256": sha256, "bytes": len(content), "parameters": parameters, "dtype": "float32"}


def _training(recipe: dict[str, Any]) -> Iterator[str]:
    if not recipe:
        return
    run, latents = recipe["config"], recipe["latents"]
    training = run["training"]
    yield "Loss, noise levels and preconditioning of EDM (Karras et al., NeurIPS 2022)"
    yield (
        f"{recipe['steps']:,} steps of {training['batch_size']:,} latents, from {latents['train']:,} slices, one of "
        f"each scan; learning rate {training['learning_rate']:g}; moving average of weights {training['ema_decay']:g}"
    )
    yield f"{run['data']['by_disorder']:.0%} of the latents were chosen by disorder, so that rare ones occur more often"
    losses = [entry for entry in recipe["log"] if "validation" in entry]
    if losses:
        yield (
            f"Denoising loss at the end: {losses[-1]['loss']:.4f} in training, {losses[-1]['validation']:.4f} on "
            f"{min(latents['validation'], training['validation_latents']):,} held-out latents"
        )
    yield f"The complete recipe is in `{DIFFUSION_RECIPE}`"


def _not_in_training(data: dict[str, Any], known: dict[str, int]) -> Iterator[str]:
    if is_synthetic(data):
        yield "**Real patients.** All training cases were rendered by a program or sampled from a generator."
    yield f"Disorders other than the {len(known):,} below: they can be asked for by name, and were never seen."
    yield "Modalities and body parts other than those below."
