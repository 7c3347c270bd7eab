"""The report of one case: diagnoses with their confidence, and saliency maps; and the maps as files.

    >>> answer = pipe(case, return_attentions=True)  # pipe: transformers' pipeline("zero-shot-diagnosis", ...)
    >>> write_case(pipe, case, answer, "runs/mine", report=Path("case.html"))

Decisions:
- One file that loads nothing and has no script: pictures are in it, and switching between disorders is CSS.
- Each scan has two pictures side by side of its key slice, without and with the map in colour. Their pixels are square,
  so that the proportions are those of the anatomy.
- Maps of a disorder have one scale over the case, so a grey scan does not contribute to its logit.
- Probabilities, thresholds and prediction sets hold for cases like the training data. For a case that is out of
  distribution the report has none of them.
- Files are named as in the case. Neither the patient, nor the case, nor a folder of the machine is named. The same case
  and checkpoint give the same bytes.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.utils import CONFIG_NAME, cached_file

from radfm.cases import Case, Scan
from radfm.checkpoints import resolve
from radfm.cli.console import DISCLAIMER
from radfm.data_prep.pages import environment
from radfm.data_prep.pictures import ct_window, data_uri, to_uint8
from radfm.data_prep.tables import write_text
from radfm.eval.saliency import Explanation, explain, overlay, to_nifti
from radfm.knowledge import definitions, icd10cm, wording
from radfm.presentation import scan_warnings, shown
from radfm.reference_radfm import weights_sha256
from radfm.training_data_radfm import ood_reason

_EXPLAINED = 3  # disorders with maps, from the best
_SCANS = 12  # with pictures, those of the largest weight
_SIDE = 448  # pixels of a picture
_SYNONYMS = 8  # of a code
_BARS = 64  # of the curve over the slices


def write_case(
    pipe, case: Case, answer: dict, model: str, report: Path | None = None, maps: Path | None = None
) -> None:
    """Writes the report of one case, a folder with its maps, or both.

    Of each scan and each disorder that `explained` names, `scan1_pneumothorax.nii.gz` is the map in [0, 1], which a
    viewer shows over the files of the scan, and `scan1_pneumothorax.png` its brightest slice. Other files of the folder
    are kept.

    Args:
        pipe: the zero-shot-diagnosis pipeline.
        answer: its answer for this case, with `return_attentions`.
        model: the checkpoint's folder, of which the report shows the last part, or its name on the Hub.
        report: file of the page, HTML.
        maps: the folder.
    """
    explanations = explain(pipe.model, pipe.processor, case, explained(answer))
    if report is not None:
        write_text(report, page(content(pipe.model.config, case, answer, explanations, model)))
    if maps is not None:
        maps.mkdir(parents=True, exist_ok=True)
        for explanation in explanations:
            name = re.sub(r"[^a-z0-9]+", "_", explanation.disorder.lower()).strip("_")
            for number, scan in enumerate(case.scans):
                file, brightest = maps / f"scan{number + 1}_{name}", explanation.peak(number)[0]
                to_nifti(scan, explanation.scan_map(number), f"{file}.nii.gz")
                _overlaid(_picture(scan, brightest), explanation, number, brightest).save(f"{file}.png")


def explained(answer: dict) -> list[str]:
    """The disorders of an answer that the report has maps of."""
    return [diagnosis["label"] for diagnosis in answer["diagnoses"][:_EXPLAINED]]


def page(content: dict) -> str:
    """The report as HTML, from its `content`."""
    jinja = environment("radfm.eval")
    jinja.filters |= {"percent": lambda share: f"{share:.0%}", "score": lambda score: f"{score:.3g}"}
    return jinja.get_template("case.html").render(**content).rstrip() + "\n"


def content(
    config, case: Case, answer: dict, explanations: Sequence[Explanation], model: str, credit: str | None = None
) -> dict:
    """The values of the template: text and pictures; the pixels of the case are not among them.

    Args:
        config: the model's.
        explanations: of the disorders that `explained` names.
        answer, model: as in `write_case`.
        credit: whom to credit for the pictures.
    """
    weights = [scan["weight"] for scan in answer["scans"]]
    heaviest = sorted(range(len(case.scans)), key=lambda i: -weights[i])
    judged = answer["out_of_distribution"]
    is_ood = judged is not None and judged["is_ood"]
    return {
        "disclaimer": DISCLAIMER,
        "config": config,
        "model": _name(model),
        "weights": _fingerprint(model),
        "version": version("radfm"),
        "edition": icd10cm.edition(),
        "history": case.history,
        "skipped": case.skipped,
        "warnings": scan_warnings([scan["warnings"] for scan in answer["scans"]]),
        "slices": sum(len(scan.pixels) for scan in case.scans),
        "explained": explained(answer),
        "diagnoses": [diagnosis_details(diagnosis, config, is_ood) for diagnosis in answer["diagnoses"]],
        "scans": [_scan(i, case.scans[i], weights[i], explanations) for i in sorted(heaviest[:_SCANS])],
        "heaviest": heaviest[0],
        "other_scans": [_facts(i, case.scans[i], weights[i]) for i in sorted(heaviest[_SCANS:])],
        "reads_history": config.use_history,
        "calibrated": config.calibration is not None and not is_ood,
        "sets": None if is_ood else config.prediction_sets,
        "judged": judged,
        "ood_reason": ood_reason(judged) if is_ood else None,
        "credit": credit,
        "alerts": answer["alerts"],
        "training_data": answer["training_data"]["summary"],
    }


def diagnosis_details(diagnosis: dict, config, is_ood: bool) -> dict:
    """A diagnosis of the pipeline with codes, definition, threshold, and whether it is calibrated.

    Args:
        is_ood: whether the case is out of distribution, so that no threshold and no probability holds.
    """
    row = config.vocabulary.get(diagnosis["label"])
    threshold = None if row is None or not config.thresholds or is_ood else config.thresholds[row]
    return {
        "label": diagnosis["label"],
        "score": diagnosis["score"],
        "codes": [_code(code) for code in diagnosis["icd10cm"]],
        "definition": _definition(diagnosis["label"], diagnosis["icd10cm"]),
        "calibrated": row is not None and config.calibration is not None and not is_ood,
        "known": row is not None,
        "threshold": threshold,
        "above": None if is_ood else diagnosis.get("above_threshold"),
        "in_set": None if is_ood else diagnosis.get("in_set"),
    }


def _definition(name: str, codes: Sequence[str]) -> dict | None:
    """The definition, its source, and the name that it is "of" if it is that of a code and not of the disorder."""
    definition = definitions.define(name, codes)
    if definition is None:
        return None
    source = definition.source if definition.source == definitions.OWN else f"Disease Ontology, {definition.source}"
    same = wording.key(wording.expand(name)) == wording.key(definition.name)
    return {"of": None if same else definition.name, "text": definition.text, "source": source}


def _code(code: str) -> dict:
    try:
        entry = icd10cm.get(code)
    except ValueError:  # a code of another edition, of which nothing more is known
        return {"code": code, "description": None, "path": [], "terms": [], "more": 0}
    terms = list(dict.fromkeys(entry.inclusion_terms + entry.includes))
    return {
        "code": entry.code,
        "description": entry.description,
        "path": list(entry.path[:-1]),
        "terms": terms[:_SYNONYMS],
        "more": max(0, len(terms) - _SYNONYMS),
    }


def _scan(number: int, scan: Scan, weight: float, explanations: Sequence[Explanation]) -> dict:
    """The values of a scan: of its key slice a picture, and one for each explained disorder."""
    first = explanations[0]
    key = first.key_slice(number)
    plain = _picture(scan, key)
    attention = first.attentions[number]
    return _facts(number, scan, weight) | {
        "taken": len(first.taken[number]),
        "key": key + 1,
        "key_weight": float(attention[first.taken[number].index(key)]),
        "window": ct_window(scan),
        "plain": data_uri(plain),
        "overlays": [
            {
                "disorder": explanation.disorder,
                "uri": data_uri(_overlaid(plain, explanation, number, key)),
                "peak": explanation.peak(number)[0] + 1,
                "dark": float(explanation.coarse[number].max()) < 0.05,
            }
            for explanation in explanations
        ],
        "bars": _bars(attention, first.taken[number].index(key)) if len(attention) > 1 else [],
    }


def _facts(number: int, scan: Scan, weight: float) -> dict:
    return {
        "number": number + 1,
        "modality": scan.modality or "modality unknown",
        "plane": scan.plane,
        "body_part": scan.body_part,
        "source": scan.source,
        "days": scan.days,
        "weight": weight,
        "slices": len(scan.pixels),
        "spacing": _spacing(scan),
    }


def _picture(scan: Scan, index: int) -> Image.Image:
    """A slice in its window, with square pixels."""
    pixels = scan.pixels[index]
    if pixels.dtype != np.uint8:
        pixels = to_uint8(pixels, *(ct_window(scan) or np.percentile(pixels.astype(np.float32), (0.5, 99.5))))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    rows_mm, columns_mm = scan.spacing_mm[1:] if scan.spacing_mm is not None else (1.0, 1.0)
    width, height = image.width * columns_mm, image.height * rows_mm
    scale = _SIDE / max(width, height)
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)


def _overlaid(plain: Image.Image, explanation: Explanation, scan: int, index: int) -> Image.Image:
    saliency_map = Image.fromarray(explanation.scan_map(scan, [index])[0]).resize(plain.size, Image.Resampling.BICUBIC)
    return Image.fromarray(overlay(np.asarray(plain), np.clip(np.asarray(saliency_map), 0, 1)))


def _bars(attention: np.ndarray, key: int) -> list[tuple[float, bool]]:
    """Heights in (0, 1] over the slices, and whether the key slice is in it; with many slices several share a bar."""
    parts = np.array_split(np.arange(len(attention)), min(len(attention), _BARS))
    return [(float(max(0.03, attention[part].max() / attention.max())), key in part) for part in parts]


def _spacing(scan: Scan) -> str | None:
    if scan.spacing_mm is None:
        return None
    between, *within = scan.spacing_mm
    parts = [f"{mm:.2f}".rstrip("0").rstrip(".") for mm in ([between] if between else []) + within]
    return " × ".join(parts) + " mm"


def _name(model: str) -> str:
    return shown(Path(model).resolve().name if Path(model).exists() else model)


def _fingerprint(model: str) -> str | None:
    """The SHA-256 of the weights; None if the checkpoint has no safetensors."""
    model = resolve(model)
    folder = model if Path(model).is_dir() else Path(cached_file(model, CONFIG_NAME)).parent
    return weights_sha256(folder) if any(Path(folder).glob("model*.safetensors")) else None
