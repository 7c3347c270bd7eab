"""MedPix 2.0 (Siragusa et al. 2025) in its own format: Case_topic.json and Descriptions.json beside a folder of images.

Decisions:
- A case is a case of MedPix; its diagnosis is "Case Diagnosis", or the topic's title where there is none.
- Captions and findings name the diagnosis and are not read. The history is kept, and may name it as well.
- The official splits are folders (train, dev, test) or separate files of cases; both are recognised.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from radfm.data_prep.guess import guess_modality, guess_plane
from radfm.data_prep.plan import (
    CasePlan,
    Item,
    Listing,
    ReadCase,
    Rejected,
    known_age,
    known_sex,
    known_split,
)
from radfm.data_prep.read_files import list_files, read_files
from radfm.modalities import modality_name

_CASES, _IMAGES = "Case_topic.json", "Descriptions.json"
_PICTURES = {".png", ".jpg", ".jpeg"}


class MedPix:
    """See `radfm.data_prep.plan.Source`. folder: folder with the JSON files and images at any depth."""

    name = "medpix"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.settings: dict[str, Any] = {}
        self.notice = {
            "title": "MedPix 2.0",
            "citation": "Siragusa et al., MedPix 2.0: a comprehensive multimodal biomedical data set, 2025",
            "layout": "NLM's teaching files; pictures carry a watermark and a footer.",
        }

    def listing(self) -> Listing:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder: give the folder of {_CASES}")
        files = list_files(self.folder)
        pictures = {file.stem: file for file in files if file.suffix.lower() in _PICTURES}
        about = {}
        for file in (file for file in files if file.name.lower() == _IMAGES.lower()):
            about |= {one["image"]: one for one in _records(file) if isinstance(one.get("image"), str)}
        listing = Listing([], [], "case", 0, 0)
        tables = [file for file in files if file.name.lower() == _CASES.lower()]
        if not tables:
            raise FileNotFoundError(f"{self.folder} holds no {_CASES}: give the folder of MedPix 2.0")
        seen: set[str] = set()
        for file in tables:
            split = _split_of(file.parent.name)
            for record in _records(file):
                listing.listed += 1
                name = str(record.get("U_id", f"case {listing.listed}"))
                try:
                    if name in seen:
                        raise ValueError("is listed a second time: the first one counts")
                    listing.plans.append(self._plan(name, record, split, pictures, about))
                    seen.add(name)
                except (KeyError, TypeError, AttributeError) as error:
                    reason = f"is no case of MedPix 2.0 ({type(error).__name__}: {error}): correct it in {file.name}"
                    listing.rejected.append(Rejected("case", name, reason))
                except ValueError as error:
                    listing.rejected.append(Rejected("case", name, str(error)))
        listing.planned = len(listing.plans)
        return listing

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        return map(read_files, plans)

    def _plan(self, name: str, record: dict, split: str | None, pictures: dict, about: dict) -> CasePlan:
        case = record["Case"]
        diagnosis = _text(case.get("Case Diagnosis")) or _text((record.get("Topic") or {}).get("Title"))
        if not diagnosis:
            raise ValueError("has no diagnosis: it cannot be used")
        plan = CasePlan(
            name, name, disorders=[diagnosis], icd10cm=[[]], history=_text(case.get("History")), split=split
        )
        for kind in ("TAC", "MRI"):
            for image in record.get(kind) or []:
                metadata = about.get(image, {})
                described = metadata.get("Description") or {}
                modality = guess_modality(_text(metadata.get("Type")) or "") or ("CT" if kind == "TAC" else "MRI")
                item = Item(
                    [str(pictures[image].absolute()) if image in pictures else str(self.folder.absolute() / image)],
                    [pictures[image].relative_to(self.folder).as_posix() if image in pictures else image],
                    modality_name(modality),
                    guess_plane(_text(described.get("Plane")) or "", modality),
                    body_part=(_text(metadata.get("Location Category")) or "").lower() or None,
                )
                plan.items.append(item)
                plan.sex = plan.sex or known_sex(_text(described.get("Sex")))
                if plan.age is None and (_text(described.get("Age")) or "").isdigit():
                    plan.age = known_age(float(described["Age"]))
        if not plan.items:
            raise ValueError("has no image: it cannot be used")
        return plan


def _records(file: Path) -> list[dict]:
    """Records of a JSON list, or of JSON Lines."""
    try:
        text = file.read_text(encoding="utf-8")
        records = (
            json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    return [record for record in records if isinstance(record, dict)]


def _split_of(name: str) -> str | None:
    try:
        return known_split(name)
    except ValueError:
        return None


def _text(value) -> str | None:
    return " ".join(value.split()) or None if isinstance(value, str) else None
