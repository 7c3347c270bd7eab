"""RP3D-DiagDS in its own format: JSON files of cases (RP3D_train.json, RP3D_test.json), arrays and key slices as .npy.

Decisions:
- A case is a link. A sample is a study of the case, with one array for each plane; each array is a scan.
- Arrays are (H, W, slices). An array of three equal channels is a single slice. The files contain paths on the authors'
  disks, so an array is searched by ever shorter ends of its path.
- A disorder is an article, or an ICD-10-CM category ("granularity"). If the label file is given, labels that it lacks
  are left out, as in the authors' code.
- The name of a file states its split: train, val or test.
- Patients are not identified, so that every case is a patient of its own.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radfm.cases import Case, Scan
from radfm.data_prep.guess import guess_plane
from radfm.data_prep.plan import (
    CasePlan,
    Item,
    Listing,
    ReadCase,
    Rejected,
    ScanOrigin,
    known_age,
    known_sex,
    known_split,
)
from radfm.knowledge import icd10cm
from radfm.modalities import modality_name

GRANULARITIES = ("disorder", "icd10cm")


class RP3D:
    """See `radfm.data_prep.plan.Source`.

    Args:
        folder: folder with the JSON files and, below it, the arrays; or one JSON file.
        granularity: "disorder" (articles) or "icd10cm" (categories).
        labels: JSON of name -> row, such as disorder_label_dict.json; None: all names are used.
    """

    name = "rp3d"

    def __init__(self, folder: str | Path, granularity: str = "disorder", labels: str | Path | None = None):
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity is disorder or icd10cm, not {granularity!r}")
        given = Path(folder)
        self.root = given if given.is_dir() else given.parent
        self.files = [given] if given.is_file() else _case_files(given)
        self.granularity = granularity
        self.known = None if labels is None else set(_read_json(Path(labels)))
        self.settings: dict[str, Any] = {"granularity": granularity, "labels": labels and Path(labels).name}
        self.notice = {
            "title": "RP3D-DiagDS",
            "citation": "Zheng et al., Large-scale long-tailed disease diagnosis on radiology images, "
            "Nature Communications 15:10147, 2024",
        }

    def listing(self) -> Listing:
        plans, rejected, seen = [], [], set()
        listed = 0
        for file in self.files:
            split = _split_of(file)
            for link, content in _read_json(file).items():
                listed += 1
                name = link.rstrip("/").rpartition("/")[2].partition("?")[0] or link
                if link in seen:
                    rejected.append(Rejected("case", name, f"is in {file.name} a second time: the first one counts"))
                    continue
                seen.add(link)
                try:
                    plans.append(self._plan(link, name, content, split))
                except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                    reason = f"is no case of RP3D-DiagDS ({type(error).__name__}: {error}): correct it in {file.name}"
                    rejected.append(Rejected("case", name, reason))
        times = Counter(plan.case_id for plan in plans)
        for plan in plans:  # two links may end alike
            if times[plan.case_id] > 1:
                plan.case_id = plan.patient_id = plan.source_data["link"]
        return Listing(plans, rejected, "case", listed, len(plans))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        return map(self._read, plans)

    def _plan(self, link: str, name: str, content: dict, split: str | None) -> CasePlan:
        samples = content["Samples"]
        articles, codes = _union(samples, "articles"), _union(samples, "icd10s")
        if self.granularity == "icd10cm":
            names, given = _categories(codes if self.known is None else [c for c in codes if c in self.known])
        else:
            names = articles if self.known is None else [a for a in articles if a in self.known]
            given = [[] for _ in names]
        about = samples[0].get("pat") or ""
        age = re.search(r"Age:\s*(\d+)\s*(year|month|week|day)", about)
        years = float(age.group(1)) / {"year": 1, "month": 12, "week": 52, "day": 365}[age.group(2)] if age else None
        sex = re.search(r"Gender:\s*(\w+)", about)
        plan = CasePlan(
            name,
            name,
            disorders=names,
            icd10cm=given,
            history=samples[0].get("pre") or None,
            split=split,
            age=known_age(years),
            sex=known_sex(sex and sex.group(1)),
            source_data={"link": link, "icd10s": codes},
        )
        for sample, stated in zip(samples, content["Modalities"], strict=True):
            planes = sample.get("plane_projection") or []
            keys = sample.get("image_key_path") or []
            for i, path in enumerate(sample["image_data_path"]):
                item = Item(
                    [path], [path], modality_name(stated), body_part=(sample.get("anatomy") or "").lower() or None
                )
                item.plane = guess_plane(planes[i], item.modality) if i < len(planes) and planes[i] else None
                if i < len(keys) and keys[i]:
                    item.paths.append(keys[i])
                    item.names.append(keys[i])
                plan.items.append(item)
        return plan

    def _read(self, plan: CasePlan) -> ReadCase:
        case = Case(case_id=plan.case_id, patient_id=plan.patient_id)
        result = ReadCase(case, files=0, unread=0, origins=[])
        for item in plan.items:
            result.files += 1
            try:
                scan = self._scan(item)
            except (OSError, ValueError) as error:
                result.unread += 1
                case.skipped.append((item.names[0], _reason(error)))
                continue
            if len(item.paths) > 1:
                try:
                    key = int(np.load(self._find(item.paths[1]), allow_pickle=False).ravel()[0])
                    scan.key_slice = key if 0 <= key < len(scan.pixels) else None
                except (OSError, ValueError, IndexError) as error:
                    case.skipped.append((item.names[1], _reason(error)))
            case.scans.append(scan)
            result.origins.append(ScanOrigin("source", "source" if item.plane else "unknown"))
        return result

    def _scan(self, item: Item) -> Scan:
        pixels = np.load(self._find(item.paths[0]), allow_pickle=False)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.ndim != 3 or pixels.dtype.kind not in "iuf" or not np.isfinite(pixels).all():
            raise ValueError(f"holds {pixels.dtype} of shape {pixels.shape}, not finite numbers (H, W, slices)")
        if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., :1]
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
        return Scan(pixels, item.modality, item.plane, body_part=item.body_part, source=item.names[0])

    def _find(self, path: str) -> Path:
        parts = Path(path).parts
        for start in range(len(parts)):
            candidate = self.root.joinpath(*parts[start:])
            if candidate.is_file():
                return candidate
        raise FileNotFoundError("is not there: put the arrays below the folder of the JSON file")


def _case_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.glob("*.json")) if "label_dict" not in file.name]
    if not files:
        raise FileNotFoundError(f"{folder} holds no JSON file of cases: give the folder of RP3D_train.json")
    return files


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, not a dictionary")
    return content


def _split_of(file: Path) -> str | None:
    for word in re.split(r"[^a-z]+", file.stem.lower()):
        try:
            return known_split(word)
        except ValueError:
            continue
    return None


def _union(samples: list[dict], key: str) -> list[str]:
    return list(dict.fromkeys(" ".join(text.split()) for sample in samples for text in sample.get(key) or [] if text))


def _categories(codes: list[str]) -> tuple[list[str], list[list[str]]]:
    """Codes -> the descriptions of their categories, and the codes of those; what ICD-10-CM lacks keeps its name."""
    codes_of: dict[str, list[str]] = {}
    for code in codes:
        try:
            entry = icd10cm.get(code)
            codes_of[entry.description] = [entry.code]
        except ValueError:
            codes_of[code] = [code]
    return list(codes_of), list(codes_of.values())


def _reason(error: Exception) -> str:
    text = str(error)
    return text if text.startswith(("is not there", "holds ")) else "is damaged, or no array of numbers: copy it again"
