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
_VOLUME_SLICES, _VOLUME_CELLS = 64, 48  # of the map of a volume, at most: slices, and cells a side


@dataclass
class Answer:
    """
    Attributes:
        shown: What the page shows, as for JSON.
        sheets: Of each scan.
        maps: Of each explained disorder, the maps of all scans one after another, see `maps_as_bytes`.
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
        pictures = sum(map(len, {uri for scan in self.report["scans"] for uri in _data_uris(scan)}))
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
    numbered = [(number, facts[number + 1]) for number in range(len(case.scans))]
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
            {key: scan[key] for key in _FACTS}
            | _viewer_of_scan(number, explanations, sheets[number])
            | _planes_of_volume(scan)
            for number, scan in numbered
        ],
        "seconds": seconds,
    }


def maps_as_bytes(explanation: Explanation) -> bytes:
    """The maps of all scans over their slices one after another, one byte per cell: coarse, the page interpolates."""
    maps = [_map_over_slices(explanation, number)[1] for number in range(len(explanation.scans))]
    return b"".join(np.uint8(np.rint(255 * one)).tobytes() for one in maps)


def _viewer_of_scan(number: int, explanations: Sequence[Explanation], sheets: Sheets) -> dict:
    first = explanations[0]
    grid = first.grid(number)
    taken, cells = _map_over_slices(first, number)
    return {
        "width": sheets.width,
        "height": sheets.height,
        "columns": sheets.columns,
        "per_sheet": PER_SHEET,
        "windows": [{"name": name, "range": limits} for name, limits in sheets.windows.items()],
        "key": first.key_slice(number),
        "taken": taken,
        "attention": [] if grid else [round(float(weight), 5) for weight in first.attentions[number]],
        "map": cells.shape,  # (slices, rows, columns)
        "part": (0, 0, 1, 1) if grid else first.part_of_square(number),
        "read": [_shares(extent, grid.shape) for extent in grid.extents] if grid else [],
        "peaks": [_peak(explanation, number) for explanation in explanations],
    }


def _shares(extent: Sequence[tuple[float, float]], shape: Sequence[int]) -> list[tuple[float, float]]:
    """Where a window begins and ends along slices, rows and columns, as shares of the scan."""
    return [(low / size, high / size) for (low, high), size in zip(extent, shape, strict=True)]


def _planes_of_volume(scan: dict) -> dict:
    """What the model read of a volume, and for each disorder the planes across its slices; none of other scans.

    Args:
        scan: of the report.
    """
    overlays = scan.get("overlays", []) if scan.get("volume") else []
    return {"volume": scan.get("volume"), "planes": [overlay["views"][1:] for overlay in overlays]}


def _map_over_slices(explanation: Explanation, number: int) -> tuple[list[int], np.ndarray]:
    """Slices of a scan, and the map (slices, h, w) over them that the page interpolates.

    For a scan that was read slice by slice they are those that the model got, and the map lies over the square that it
    got. The map of a volume is resampled, so that it lies over the scan's own slices.
    """
    grid = explanation.grid(number)
    if grid is None:
        return explanation.taken[number], explanation.coarse[number]
    count = min(grid.shape[0], _VOLUME_SLICES)
    slices = np.linspace(0, grid.shape[0] - 1, count).round().astype(int)
    cells = [min(side, _VOLUME_CELLS) for side in grid.shape[1:]]
    middles = [(np.arange(n) + 0.5) * side / n - 0.5 for n, side in zip(cells, grid.shape[1:], strict=True)]
    return slices.tolist(), grid.back(explanation.coarse[number], {0: slices, 1: middles[0], 2: middles[1]})


def _brightest_scan(explanation: Explanation) -> int:
    return int(np.argmax([coarse.max() for coarse in explanation.coarse]))


def _peak(explanation: Explanation, number: int) -> int | None:
    """The slice with the largest value of the map; None where the whole map of the scan is near zero."""
    return None if explanation.is_dark(number) else explanation.peak(number)[0]


def _by_score(diagnosis: dict) -> float:
    return -diagnosis["score"]


def _data_uris(scan: dict) -> list[str]:
    views = [view for overlay in scan["overlays"] for view in overlay["views"]]
    return [view[kind] for view in views for kind in ("plain", "overlaid")]
