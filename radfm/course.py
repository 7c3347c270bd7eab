"""The course of a case: the scores of disorders on each of its dates, and what changed between them.

    >>> course = diagnose_course(pipe, case)  # pipe: transformers' pipeline("zero-shot-diagnosis", ...)
    >>> course["dates"][0]["days"], course["disorders"][0]["scores"], course["disorders"][0]["direction"]

Decisions:
- The scans of one date are a case of their own, so that no score of a date depends on another date.
- A change is a difference of log odds, since the same difference of probabilities means more near 0 and 1. It "rises"
  or "falls" if the odds become at least three times as high or as low, and "stays" otherwise: of the factors 2, 3, 4
  and 6 the best on the training patients of phantoms. `radfm evaluate course` measures how often the words are right.
- Scores of dates with other modalities are given, and marked as not comparable: the modality alone may change a score.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from radfm.cases import Case

RISES, STAYS, FALLS = "rises", "stays", "falls"
LEAST_CHANGE = math.log(3)  # of log odds

_CLOSEST = 1e-6  # of a probability to 0 and 1


def split_by_date(case: Case) -> list[tuple[float, Case]]:
    """The days before the newest scan and the scans of each date, oldest first. Scans without a date are left out.

    In the case of a date all scans are its newest: they have 0 days.

    Raises:
        ValueError: the case has fewer than two dates.
    """
    days = sorted({scan.days for scan in case.scans if scan.days is not None}, reverse=True)
    if len(days) < 2:
        known = "no scan of the case has a date" if not days else "all dated scans of the case are of one date"
        raise ValueError(f"{known}: a course needs two or more, from DICOM headers or the column `date` of a manifest")
    return [(day, replace(case, scans=[replace(s, days=0.0) for s in case.scans if s.days == day])) for day in days]


def log_odds(score: float) -> float:
    """Of a probability, which may be 0 or 1."""
    score = min(max(score, _CLOSEST), 1 - _CLOSEST)
    return math.log(score / (1 - score))


def direction(change: float) -> str:
    """ "rises", "stays" or "falls", by a difference of log odds."""
    return STAYS if abs(change) < LEAST_CHANGE else RISES if change > 0 else FALLS


def diagnose_course(pipe, case: Case, candidate_labels: Sequence[str] | None = None, top_k: int = 10) -> dict[str, Any]:
    """The scores of disorders on each date of a case.

    Args:
        pipe: the zero-shot-diagnosis pipeline.
        candidate_labels: names of disorders; None: the vocabulary of the checkpoint.
        top_k: number of disorders, those with the highest score on any date.
    Returns:
        JSON-able: `dates`, oldest first, each with `days` before the newest scan, `scans` (their number), `modalities`
        and `out_of_distribution` (None if the checkpoint cannot tell); `disorders`, the highest score first, each with
        `label`, `icd10cm`, `scores` (one for each date), `change` (log odds of the last date less the first), its
        `direction`, and `steps` (the direction from each date to the next); `undated`, number of scans without a date;
        `same_modalities`, whether all dates have the same.
    Raises:
        ValueError: the case has fewer than two dates; or as the pipeline.
    """
    dates = split_by_date(case)
    every = len(candidate_labels or pipe.model.config.disorders or ()) or None
    answers = [pipe(one, candidate_labels=candidate_labels, top_k=every, return_attentions=True) for _, one in dates]
    scores = [{d["label"]: d["score"] for d in answer["diagnoses"]} for answer in answers]
    codes = {d["label"]: d["icd10cm"] for d in answers[-1]["diagnoses"]}
    best = sorted(codes, key=lambda name: (-max(of_date[name] for of_date in scores), name))[:top_k]
    modalities = [sorted({scan.modality or "unknown" for scan in one.scans}) for _, one in dates]
    return {
        "dates": [
            {
                "days": days,
                "scans": len(one.scans),
                "modalities": of_date,
                "out_of_distribution": (judged := answer["out_of_distribution"]) and judged["is_ood"],
            }
            for (days, one), of_date, answer in zip(dates, modalities, answers, strict=True)
        ],
        "disorders": [_disorder(name, codes[name], [of_date[name] for of_date in scores]) for name in best],
        "undated": sum(scan.days is None for scan in case.scans),
        "same_modalities": all(of_date == modalities[0] for of_date in modalities),
    }


def _disorder(name: str, icd10cm: list[str], scores: list[float]) -> dict[str, Any]:
    odds = [log_odds(score) for score in scores]
    return {
        "label": name,
        "icd10cm": icd10cm,
        "scores": scores,
        "change": odds[-1] - odds[0],
        "direction": direction(odds[-1] - odds[0]),
        "steps": [direction(after - before) for before, after in pairwise(odds)],
    }
