"""Synthetic patients with known masks, see docs/phantoms.md. This source needs no files.

radfm prepare phantoms OUT --cases 2000 --seed 0
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from radfm.data_prep.phantoms.follow_up import anatomy_of_follow_up, make_follow_up
from radfm.data_prep.phantoms.phantom import ANATOMIES, anatomy_of, make_case
from radfm.data_prep.plan import CasePlan, Listing, ReadCase, ScanOrigin


class Phantoms:
    """See `radfm.data_prep.plan.Source`.

    Args:
        cases: number of cases, each of a patient of its own.
        seed: seed of all cases.
        size: height and width of a picture in pixels, at least 32.
        anatomy: only the cases of this part of the body, such as "knee", of the number of cases; None: all.
        follow_up: each case has scans of several dates, and the data set a table of sizes, see
            `radfm.data_prep.phantoms.follow_up`.
    """

    name = "phantoms"

    def __init__(self, cases: int, seed: int = 0, size: int = 96, anatomy: str | None = None, follow_up: bool = False):
        if cases < 1:
            raise ValueError(f"cases must be at least 1, not {cases}")
        if anatomy is not None and anatomy not in ANATOMIES:
            raise ValueError(f"unknown anatomy {anatomy!r}: use one of {', '.join(ANATOMIES)}")
        self.cases, self.seed, self.size, self.anatomy = cases, seed, size, anatomy
        self.settings: dict[str, Any] = {"cases": cases, "seed": seed, "size": size}
        if anatomy is not None:
            self.settings["anatomy"] = anatomy
        self.follow_up = follow_up
        if follow_up:
            self.settings["follow_up"] = True
        self.notice = {
            "title": "radfm phantoms",
            "licence": "Apache-2.0",
            "layout": "Drawn by radfm, not learnt: no patient's picture went into them. See docs/phantoms.md.",
        }

    def listing(self) -> Listing:
        plans = []
        anatomy, letter = (anatomy_of_follow_up, "F") if self.follow_up else (anatomy_of, "P")
        for index in range(self.cases):
            if self.anatomy is not None and anatomy(self.seed, index, self.cases) != self.anatomy:
                continue
            name = f"S{self.seed}{letter}{index:06d}"
            plans.append(CasePlan(name, name, source_data={"index": index}))
        return Listing(plans, [], "case", len(plans), len(plans))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        make = make_follow_up if self.follow_up else make_case
        for plan in plans:
            phantom = make(self.seed, plan.source_data["index"], self.cases, self.size)
            plan.disorders, plan.history = phantom.case.disorders, phantom.history
            plan.icd10cm = [[code] for code in phantom.icd10cm]
            notes = [ScanOrigin("source", "source") for _ in phantom.case.scans]
            sizes = [asdict(size) for size in phantom.sizes] if self.follow_up else []
            yield ReadCase(phantom.case, files=0, unread=0, origins=notes, masks=phantom.masks, sizes=sizes)
