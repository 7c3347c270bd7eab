"""A model asked by text alone: any names in any words, open_clip models too, and whether a case is normal at all.

    >>> templates = ["{}", "an image of {}"]
    >>> ours = zero_shot_scores("runs/mine", "datasets/mine", templates=templates)
    >>> theirs = open_clip_scores("ViT-B-32", "weights.pt", "datasets/mine", templates=templates)
    >>> compare({"ours": [ours], "open_clip": [theirs]})  # radfm.eval.diagnosis
    >>> compare({"ours": [abnormal(ours)], "open_clip": [abnormal(theirs)]})

Decisions:
- Every name is put into words and embedded, also one of the checkpoint's vocabulary: zero-shot means that nothing but
  the text says what is looked for. Its calibration stays out of it.
- Several templates are one classifier: the mean of their unit embeddings, made unit again (Radford et al. 2021).
- An open_clip model sees what radfm sees: the same slices, CT in the same windows, prepared with its own mean and
  deviation. The embeddings of all slices of a scan, then those of the scans, are averaged.
- A case is as abnormal as its likeliest disorder. Where text can be asked, prompts for normal and abnormal can be
  compared instead.

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
from radfm.eval.predict import about_checkpoint, load_checkpoint, score_with
from radfm.eval.scores import OF_DISORDERS, Scores
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.starting_points import embed_texts, from_open_clip

ABNORMAL = "Abnormal"
PROMPTS = {  # of a case as a whole
    "normal": ("normal", "no abnormality", "a normal study", "a healthy patient"),
    "abnormal": ("abnormal", "an abnormality", "an abnormal study", "a patient with a disease"),
}


def prompt_embeds(
    network: RadFMForDiagnosis, processor: RadFMProcessor, names: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Tensor:
    """(names, d), of unit length: each name in all templates, "{}" standing for it.

    Raises:
        ValueError: no template, one without "{}", or a model that cannot be asked by text.
    """
    if not templates:
        raise ValueError('there is no template: give at least one, such as "{}"')
    if without := [template for template in templates if "{}" not in template]:
        raise ValueError(f'the template {without[0]!r} has no "{{}}", which stands for the name')
    _refuse_no_text(network)
    prompts = [template.replace("{}", name) for template in templates for name in names]
    embeds = embed_texts(network, processor, prompts).reshape(len(templates), len(names), -1)
    return F.normalize(embeds.mean(0), dim=-1)


def zero_shot_scores(
    model: str | Path,
    data: str | Path,
    split: str = "test",
    names: Sequence[str] | None = None,
    templates: Sequence[str] = ("{}",),
    device: str | None = None,
    bf16: bool = False,
    progress: Progress = no_progress,
) -> Scores:
    """A checkpoint's logits of all labelled cases of a split, asked by text.

    Args:
        names: disorders to score; None: the data set's.
        templates: see `prompt_embeds`.
    Raises:
        FileNotFoundError, ValueError: as `radfm.eval.predict.score` and `prompt_embeds`.
    """
    network, processor = load_checkpoint(model, device)
    about = about_checkpoint(model)
    return _scored(network, processor, data, split, names, templates, bf16, progress, about)


def open_clip_scores(
    name: str,
    pretrained: str | None,
    data: str | Path,
    split: str = "test",
    names: Sequence[str] | None = None,
    templates: Sequence[str] = ("{}",),
    device: str | None = None,
    bf16: bool = False,
    progress: Progress = no_progress,
) -> Scores:
    """The same of an open_clip model: a table to compare with any other.

    Args:
        name: an architecture ("ViT-B-32"), or "local-dir:..." with its weights.
        pretrained: a file of weights, which has to be there; None with "local-dir:...".
    Raises:
        ValueError: no such architecture, or no weights; FileNotFoundError: no such file.
    """
    itself = name.startswith(("local-dir:", "hf-hub:"))
    if pretrained is None and not itself:
        raise ValueError(f"{name}: give a file of weights, as in {name}=weights.pt; a model without any knows nothing")
    if pretrained is not None and not Path(pretrained).is_file():
        raise FileNotFoundError(f"{pretrained}: no such file of open_clip weights")
    network, processor = from_open_clip(name, pretrained)
    network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shown = name.partition(":")[2].rstrip("/").rpartition("/")[2] if itself else name
    return _scored(network, processor, data, split, names, templates, bf16, progress, {"model": f"open_clip {shown}"})


def abnormal(table: Scores) -> Scores:
    """Whether a case has any disorder at all, by the highest score of those in the table: a table of one column.

    A case is labelled abnormal by any disorder that it has, also by one that was not scored.
    """
    return _of_whole_cases(table, table.scores.max(1, keepdims=True), {"abnormal by": "the likeliest disorder"})


def abnormal_by_prompts(
    model: str | Path | tuple[RadFMForDiagnosis, RadFMProcessor],
    data: str | Path,
    split: str = "test",
    normal: Sequence[str] = PROMPTS["normal"],
    abnormal: Sequence[str] = PROMPTS["abnormal"],
    device: str | None = None,
    progress: Progress = no_progress,
) -> Scores:
    """The same by two prompts, each an ensemble: how much nearer a case is to abnormal than to normal.

    Args:
        model: folder of a checkpoint, or a model in memory, such as `from_open_clip` returns, with its processor.
    """
    network, processor = model if isinstance(model, tuple) else load_checkpoint(model, device)
    _refuse_no_text(network)
    texts = [normal, abnormal]
    embeds = torch.stack([F.normalize(embed_texts(network, processor, some).mean(0), dim=-1) for some in texts])
    about = {"model": "in memory" if isinstance(model, tuple) else Path(model).name}
    found = score_with(network, processor, data, split, ["Normal", ABNORMAL], embeds, progress=progress, about=about)
    training = [row for row in load(data).rows if row["split"] == "train" and row["labelled"] and row["disorders"]]
    found = replace(found, training=[[0]] * len(training))
    return _of_whole_cases(found, found.scores[:, 1:] - found.scores[:, :1], {"abnormal by": "prompts"})


def _scored(network, processor, data, split, names, templates, bf16, progress, about: dict) -> Scores:
    _refuse_no_text(network)
    vocabulary = load(data).vocabulary
    wanted = vocabulary.names if names is None else list(names)
    embeds = prompt_embeds(network, processor, wanted, templates)
    about |= {"templates": list(templates)}
    kept = about.get("frozen_tower", False)
    return score_with(
        network, processor, data, split, wanted, embeds, bf16, progress=progress, about=about, keep_features=kept
    )


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


def _refuse_no_text(network: RadFMForDiagnosis) -> None:
    if network.radfm.text_encoder is None or not network.head.reads_text:
        raise ValueError("this checkpoint has a fixed list of disorders and cannot be asked by text")
