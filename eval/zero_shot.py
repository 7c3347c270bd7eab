"""Zero-shot classification: models that know the disorders by text alone, open_clip models among them.

    >>> evaluation, templates = Evaluation("datasets/mine"), ["{}", "an image of {}"]
    >>> ours = zero_shot_scores("runs/mine", evaluation, templates)
    >>> theirs = open_clip_scores("ViT-B-32", "weights.pt", evaluation, templates)
    >>> compare({"ours": [ours], "open_clip": [theirs]})  # radfm.eval.diagnosis
    >>> compare({"ours": [abnormal(ours)], "open_clip": [abnormal(theirs)]})

Decisions:
- Every name is put into the templates and embedded, also those of the checkpoint's vocabulary: in zero-shot
  classification only the text describes a disorder. The calibration of the checkpoint is not used.
- Several templates are one classifier: the mean of their unit embeddings, normalised again (Radford et al. 2021).
- An open_clip model gets the same input as radfm: the same slices, CT in the same windows, normalised with the mean and
  deviation of its own. The embeddings of all slices of a scan, then those of the scans, are averaged.
- The score of a case for being abnormal is that of its highest-ranked disorder, or the difference between prompts for
  abnormal and for normal cases.

References:
    Radford et al., Learning transferable visual models from natural language supervision, ICML 2021,
    https://arxiv.org/abs/2103.00020, section 3.1.4 (templates and ensembling)
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from radfm.data_prep.stored_cases import load
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.predict import Evaluation, score_with
from radfm.eval.score_tables import about_checkpoint
from radfm.eval.scores import OF_DISORDERS, Scores
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts, from_open_clip

ABNORMAL = "Abnormal"
PROMPTS = {  # for a case as a whole
    "normal": ("normal", "no abnormality", "a normal study", "a healthy patient"),
    "abnormal": ("abnormal", "an abnormality", "an abnormal study", "a patient with a disease"),
}


def prompt_embeds(
    network: RadFMForDiagnosis, processor: RadFMProcessor, names: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Tensor:
    """(names, d), of unit length: each name in all templates, in place of "{}".

    Raises:
        ValueError: no template, one without "{}", or a model that does not embed text.
    """
    if not templates:
        raise ValueError('there is no template: give at least one, such as "{}"')
    if without := [template for template in templates if "{}" not in template]:
        raise ValueError(f'the template {without[0]!r} has no "{{}}", the place of the name')
    _require_text_head(network)
    prompts = [template.replace("{}", name) for template in templates for name in names]
    embeds = embed_texts(network, processor, prompts).reshape(len(templates), len(names), -1)
    return F.normalize(embeds.mean(0), dim=-1)


def zero_shot_scores(model: str | Path, evaluation: Evaluation, templates: Sequence[str] = ("{}",)) -> Scores:
    """A checkpoint's logits of all labelled cases of a split, by the text embeddings of the disorders.

    Args:
        templates: see `prompt_embeds`.
    Raises:
        FileNotFoundError, ValueError: as `radfm.eval.predict.score` and `prompt_embeds`.
    """
    network, processor = load_checkpoint(model, evaluation.device)
    return _text_scores(network, processor, evaluation, templates, about_checkpoint(model))


def open_clip_scores(
    name: str, pretrained: str | None, evaluation: Evaluation, templates: Sequence[str] = ("{}",)
) -> Scores:
    """The same for an open_clip model: a table that can be compared with any other.

    Args:
        name: an architecture ("ViT-B-32"), or "local-dir:..." with its weights.
        pretrained: a file of weights; None with "local-dir:...".
    Raises:
        ValueError: no such architecture, or no weights; FileNotFoundError: no such file.
    """
    with_weights = name.startswith(("local-dir:", "hf-hub:"))
    if pretrained is None and not with_weights:
        raise ValueError(f"{name}: give a file of weights, as in {name}=weights.pt; without it the weights are random")
    if pretrained is not None and not Path(pretrained).is_file():
        raise FileNotFoundError(f"{pretrained}: no such file of open_clip weights")
    network, processor = from_open_clip(name, pretrained)
    network.to(evaluation.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    short = name.partition(":")[2].rstrip("/").rpartition("/")[2] if with_weights else name
    return _text_scores(network, processor, evaluation, templates, {"model": f"open_clip {short}"})


def abnormal(table: Scores) -> Scores:
    """A table of one column: whether a case has any disorder, by the highest score of those in the table.

    A case is labelled abnormal by any of its disorders, also by those that were not scored.
    """
    return _of_whole_cases(table, table.scores.max(1, keepdims=True), {"abnormal by": "the highest-ranked disorder"})


def abnormal_by_prompts(
    model: str | Path | tuple[RadFMForDiagnosis, RadFMProcessor],
    evaluation: Evaluation,
    normal: Sequence[str] = PROMPTS["normal"],
    abnormal: Sequence[str] = PROMPTS["abnormal"],
) -> Scores:
    """The same by two prompts, each an ensemble: the difference between the logits of abnormal and of normal.

    Args:
        model: folder of a checkpoint, or a model in memory, such as `from_open_clip` returns, with its processor.
    """
    network, processor = model if isinstance(model, tuple) else load_checkpoint(model, evaluation.device)
    _require_text_head(network)
    prompts = [normal, abnormal]
    embeds = torch.stack([F.normalize(embed_texts(network, processor, texts).mean(0), dim=-1) for texts in prompts])
    about = {"model": "in memory" if isinstance(model, tuple) else Path(model).name}
    both = score_with(network, processor, replace(evaluation, names=["Normal", ABNORMAL]), embeds, about)
    rows = load(evaluation.data).rows
    training = [row for row in rows if row["split"] == "train" and row["labelled"] and row["disorders"]]
    both = replace(both, training=[[0]] * len(training))
    return _of_whole_cases(both, both.scores[:, 1:] - both.scores[:, :1], {"abnormal by": "prompts"})


def _text_scores(
    network: RadFMForDiagnosis, processor: RadFMProcessor, evaluation: Evaluation, templates, about: dict
) -> Scores:
    _require_text_head(network)
    names = load(evaluation.data).vocabulary.names if evaluation.names is None else list(evaluation.names)
    embeds = prompt_embeds(network, processor, names, templates)
    about = about | {"templates": list(templates)}
    return score_with(network, processor, replace(evaluation, names=names), embeds, about)


def _of_whole_cases(table: Scores, scores, about: dict) -> Scores:
    return replace(
        table,
        scores=scores,
        logits=None,
        names=[ABNORMAL],
        icd10cm=[[]],
        disorders=[[ABNORMAL] if names else [] for names in table.disorders],
        training=[[0] for _ in table.training],
        about={key: value for key, value in table.about.items() if key not in OF_DISORDERS} | about,
    )


def _require_text_head(network: RadFMForDiagnosis) -> None:
    if network.radfm.text_encoder is None or not network.head.reads_text:
        raise ValueError("this checkpoint has a fixed list of disorders and does not embed text: give another model")
