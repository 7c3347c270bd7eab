"""What the server keeps of a study after it was answered, and what of it the page shows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from radfm.cases import Case
from radfm.eval import case_report
from radfm.eval.saliency import Explanation
from radfm.serve.sheets import PER_SHEET, Sheets

_FACTS = ("number", "modality", "plane", "body_part", "days", "weight", "slices", "spacing", "source")
_LEAST_PEAK = 0.05  # of the largest value of a map; below it a scan has no peak that is worth showing


@dataclass
class Answer:
    """
    Attributes:
        shown: What the page shows, as for JSON.
        sheets: Of each scan.
        maps: Of each explained disorder, the coarse maps of all scans one after another, one byte per patch.
        report: The content of the study's report.
        token_embeds: (tokens, d), with which other names are scored.
        typed: Names that the visitor typed -> their scores.
        used: When a visitor last requested something of it.
    """

    shown: dict
    sheets: list[Sheets]
    maps: list[bytes]
    report: dict
    token_embeds: torch.Tensor
    typed: dict[str, dict] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        pictures = sum(len(uri) for scan in self.report["scans"] for uri in _data_uris(scan))
        return sum(sheets.bytes for sheets in self.sheets) + sum(map(len, self.maps)) + pictures

    @property
    def is_ood(self) -> bool:
        return self.shown["out_of_distribution"] is not None

    def diagnoses_of_typed(self) -> list[dict]:
        """The names that the visitor typed, best first."""
        return sorted(self.typed.values(), key=_by_score)

    def report_page(self) -> str:
        """The study's report with the names that were typed, HTML."""
        listed = {diagnosis["label"].casefold() for diagnosis in self.report["diagnoses"]}
        others = [diagnosis for name, diagnosis in self.typed.items() if name.casefold() not in listed]
        diagnoses = sorted([*self.report["diagnoses"], *others], key=_by_score)
        return case_report.page(self.report | {"diagnoses": diagnoses})


def content_of_page(
    report: dict, case: Case, explanations: Sequence[Explanation], sheets: Sequence[Sheets], seconds: dict[str, float]
) -> dict:
    """What the page shows of a study, as for JSON.

    Args:
        report: The content of its report, see `radfm.eval.case_report.content`.
        seconds: What reading and the model took.
    """
    config, judgement, sets = report["config"], report["judged"], report["sets"]
    facts = {scan["number"]: scan for scan in [*report["scans"], *report["other_scans"]]}
    copied = (
        "model",
        "alerts",
        "training_data",
        "calibrated",
        "slices",
        "heaviest",
        "diagnoses",
        "explained",
        "skipped",
        "warnings",
    )
    return {
        **{key: report[key] for key in copied},
        "vocabulary": len(config.disorders),
        "sets": sets and {key: sets[key] for key in ("coverage", "guarantee")},
        "out_of_distribution": report["ood_reason"],
        "p_value": judgement and judgement["p_value"],
        "brightest": [_brightest_scan(explanation) for explanation in explanations],
        "scans": [
            {key: facts[number + 1][key] for key in _FACTS} | _viewer_of_scan(number, explanations, sheets[number])
            for number in range(len(case.scans))
        ],
        "seconds": seconds,
    }


def maps_as_bytes(explanation: Explanation) -> bytes:
    """The coarse maps of all scans one after another, one byte per patch."""
    return b"".join(np.uint8(np.rint(255 * coarse)).tobytes() for coarse in explanation.coarse)


def _viewer_of_scan(number: int, explanations: Sequence[Explanation], sheets: Sheets) -> dict:
    first = explanations[0]
    return {
        "width": sheets.width,
        "height": sheets.height,
        "columns": sheets.columns,
        "per_sheet": PER_SHEET,
        "windows": [{"name": name, "range": limits} for name, limits in sheets.windows.items()],
        "key": first.key_slice(number),
        "taken": first.taken[number],
        "attention": [round(float(weight), 5) for weight in first.attentions[number]],
        "map": first.coarse[number].shape,  # (slices that the model read, rows, columns)
        "part": first.part_of_square(number),
        "peaks": [_peak(explanation, number) for explanation in explanations],
    }


def _brightest_scan(explanation: Explanation) -> int:
    return int(np.argmax([coarse.max() for coarse in explanation.coarse]))


def _peak(explanation: Explanation, number: int) -> int | None:
    """The slice with the largest value of the map; None where the whole map of the scan is near zero."""
    return explanation.peak(number)[0] if explanation.coarse[number].max() >= _LEAST_PEAK else None


def _by_score(diagnosis: dict) -> float:
    return -diagnosis["score"]


def _data_uris(scan: dict) -> list[str]:
    return [scan["plain"], *(overlay["uri"] for overlay in scan["overlays"])]
