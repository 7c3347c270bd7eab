"""The report of one case: diagnoses with their confidence, and saliency maps; and the maps as files.

    >>> answer = pipe(case, return_attentions=True)  # pipe: transformers' pipeline("zero-shot-diagnosis", ...)
    >>> write_case(pipe, case, answer, "runs/mine", report=Path("case.html"))

Decisions:
- One file that loads nothing and has no script: pictures are in it, and switching between disorders is CSS.
- Each scan has two pictures side by side of its key slice, without and with the map in colour. A scan that was read as
  a volume has three planes through the maximum of each map, since it has no key slice.
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
from transformers.utils import CONFIG_NAME, cached_file

from radfm.cases import Case, Scan
from radfm.checkpoints import resolve
from radfm.cli.console import DISCLAIMER
from radfm.data_prep.pages import environment
from radfm.data_prep.pictures import ct_window, data_uri
from radfm.data_prep.tables import write_text
from radfm.eval.course_figure import score_line
from radfm.eval.saliency import Explanation, explain, to_nifti
from radfm.eval.scan_views import View, views
from radfm.eval.volume_facts import volume_facts
from radfm.knowledge import definitions, icd10cm, orphanet, wording
from radfm.presentation import scan_warnings, shown
from radfm.reference_radfm import weights_sha256
from radfm.training_data_radfm import ood_reason

_EXPLAINED = 3  # disorders with maps, from the best
_SCANS = 12  # with pictures, those of the largest weight
_SYNONYMS = 8  # of a code
_BARS = 64  # of the curve over the slices


def write_case(
    pipe,
    case: Case,
    answer: dict,
    model: str,
    report: Path | None = None,
    maps: Path | None = None,
    course: dict | None = None,
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
        course: of `radfm.course.diagnose_course`, which the report draws.
    """
    explanations = explain(pipe.model, pipe.processor, case, explained(answer))
    if report is not None:
        write_text(report, page(content(pipe.model.config, case, answer, explanations, model, course=course)))
    if maps is not None:
        maps.mkdir(parents=True, exist_ok=True)
        for explanation in explanations:
            name = re.sub(r"[^a-z0-9]+", "_", explanation.disorder.lower()).strip("_")
            for number, scan in enumerate(case.scans):
                file, peak = maps / f"scan{number + 1}_{name}", explanation.peak(number)
                to_nifti(scan, explanation.scan_map(number), f"{file}.nii.gz")
                views(explanation, number, peak)[0].overlaid.save(f"{file}.png")


def explained(answer: dict) -> list[str]:
    """The disorders of an answer that the report has maps of."""
    return [diagnosis["label"] for diagnosis in answer["diagnoses"][:_EXPLAINED]]


def page(content: dict) -> str:
    """The report as HTML, from its `content`."""
    jinja = environment("radfm.eval")
    jinja.filters |= {"percent": lambda share: f"{share:.0%}", "score": lambda score: f"{score:.3g}"}
    return jinja.get_template("case.html").render(**content).rstrip() + "\n"


def content(
    config,
    case: Case,
    answer: dict,
    explanations: Sequence[Explanation],
    model: str,
    credit: str | None = None,
    course: dict | None = None,
) -> dict:
    """The values of the template: text and pictures; the pixels of the case are not among them.

    Args:
        config: the model's.
        explanations: of the disorders that `explained` names.
        answer, model, course: as in `write_case`.
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
        "course": course and _with_lines(course),
        "alerts": answer["alerts"],
        "training_data": answer["training_data"]["summary"],
    }


def _with_lines(course: dict) -> dict:
    """The course with a `line` for each disorder."""
    days = [date["days"] for date in course["dates"]]
    return course | {"disorders": [one | {"line": score_line(days, one["scores"])} for one in course["disorders"]]}


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
        "orpha": orphanet.codes(diagnosis["label"]),
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
    """The values of a scan: for each explained disorder pictures of its key slice, or of three planes of a volume."""
    first = explanations[0]
    grid, settings, key = first.grid(number), first.volume_settings, first.key_slice(number)
    uris: dict[tuple[str, int], str] = {}  # of slices without a map, which several disorders may share
    overlays = [
        {
            "disorder": explanation.disorder,
            "peak": explanation.peak(number)[0] + 1,
            "dark": explanation.is_dark(number),
            "views": [_view(view, uris) for view in views(explanation, number, point)],
        }
        for explanation, point in zip(explanations, _points(number, explanations), strict=True)
    ]
    values = _facts(number, scan, weight) | {"key": key + 1, "window": ct_window(scan), "overlays": overlays}
    if grid and settings:  # neither a key slice nor weights of slices
        return values | {"volume": volume_facts(grid, settings), "bars": []}
    attention, taken = first.attentions[number], first.taken[number]
    index = taken.index(key)
    return values | {
        "volume": None,
        "taken": len(taken),
        "key_weight": float(attention[index]),
        "bars": _bars(attention, index) if len(attention) > 1 else [],
    }


def _points(number: int, explanations: Sequence[Explanation]) -> list[tuple[int, int, int]]:
    """The voxel of a scan through which each disorder is shown: the peak of its map, or the key slice.

    Where the map of a disorder is dark, it is that of the first one whose map is not, else the middle of the volume.
    """
    first = explanations[0]
    grid = first.grid(number)
    if grid is None:
        return [(first.key_slice(number), 0, 0)] * len(explanations)
    peaks = [None if one.is_dark(number) else one.peak(number) for one in explanations]
    slices, rows, columns = (int((low + high) / 2) for low, high in grid.extents[grid.windows // 2])
    other = next((peak for peak in peaks if peak is not None), (slices, rows, columns))
    return [other if peak is None else peak for peak in peaks]


def _view(view: View, uris: dict[tuple[str, int], str]) -> dict:
    """A picture and its outlines in pixels, for the template and the page."""
    width, height = view.plain.size
    plane = view.plane
    shown = plane.name, view.index
    if shown not in uris:
        uris[shown] = data_uri(view.plain)
    down, across = (axis == 0 for axis in plane.axes[1:])
    return {
        "plane": plane.name,
        "slice": view.index + 1,
        "of": view.count,
        "width": width,
        "height": height,
        "edges": view.edges,
        "point": view.point,
        "plain": uris[shown],
        "overlaid": data_uri(view.overlaid),
        "windows": view.windows,
        "slices": {"down": down, "flipped": plane.flipped[0 if down else 1]} if down or across else None,
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
