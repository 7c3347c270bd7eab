"""The 22 public sets on which RadDiag was evaluated (Zheng et al., Nature Communications 15:10147, 2024), one YAML file
each in `external/`, and the one class that reads any of them.

    radfm prepare CXR14 downloads/cxr14/ datasets/cxr14

Decisions:
- Differences between sets are data (`layout.py` describes the keys). No set has a class or a branch of its own.
- Nothing is downloaded. The files are expected as their authors publish them, unpacked, anywhere below the folder.
- `established` states how well the layout is known: from "documentation" (of the authors, or agreeing public code of
  many users), "partly", or "not". `established_from` states the evidence and what remains unknown.
- Identifiers of cases and patients stay as published, because the authors have de-identified them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from radfm.data_prep.plan import CasePlan, Listing, ReadCase
from radfm.data_prep.read_files import read_files
from radfm.data_prep.sources.layout import KEYS, list_cases
from radfm.data_prep.sources.pickled_arrays import read_pickled
from radfm.readers.errors import Unreadable

SETS = (
    "VinDr-Mammo", "CXR14", "VinDr-SpineXR", "MosMedData", "ADNI", "NSCLC", "TCGA", "ISPY1", "ChestX-Det10", "CheXpert",
    "COVID-19-Radio", "IU-Xray", "LNDb", "PadChest", "CC-CCII", "RadChest", "Brain-Tumor", "Brain-Tumor-17", "POCUS",
    "MURA", "KneeMRI", "CT-Kidney",
)  # fmt: skip
ESTABLISHED = ("documentation", "partly", "not")
ABOUT = (
    "title", "homepage", "licence", "licence_from", "citation", "layout", "established", "established_from",
    "official_split",
)  # fmt: skip
_FOLDER = Path(__file__).parent / "external"


def entry(name: str) -> dict[str, Any]:
    """The entry of a set, whose name ignores case. Raises: ValueError for an unknown set."""
    known = {one.casefold(): one for one in SETS}
    if name.casefold() not in known:
        raise ValueError(f"unknown set {name!r}: use one of {', '.join(SETS)}")
    name = known[name.casefold()]
    about = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    if wrong := (set(ABOUT) - set(about)) | (set(about) - set(ABOUT) - KEYS):
        raise ValueError(f"{name}.yaml lacks, or must not have, {', '.join(sorted(wrong))}")
    return {"name": name} | about


class External:
    """A public set in its published layout: see the module, and `radfm.data_prep.plan.Source`.

    Args:
        name: of `SETS`.
        folder: folder with the unpacked files, at any level above them.
        uncertain: how labels count that the authors mark as uncertain: "absent" or "present".
    """

    name = "external"

    def __init__(self, name: str, folder: str | Path, uncertain: str = "absent"):
        about = entry(name)
        self.folder, self.uncertain = Path(folder), uncertain
        self.layout = {key: value for key, value in about.items() if key in KEYS}
        self.settings: dict[str, Any] = {"set": about["name"], "uncertain": uncertain}
        self.notice = {
            "title": about["title"],
            "licence": f"{about['licence']} ({about['licence_from']})",
            "citation": about["citation"],
            "homepage": about["homepage"],
            "layout": f"{about['established']}: {about['established_from']}",
        }

    def listing(self) -> Listing:
        return list_cases(self.folder, self.layout, self.uncertain)

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        for plan in plans:
            if self.layout.get("pickled"):
                yield _read_pickled(plan)
            elif self.layout.get("stack"):
                yield _joined([_stacked(read_files(replace(plan, items=[item]))) for item in plan.items])
            else:
                yield read_files(plan)


def table() -> str:
    """The sets as a table in Markdown, for docs/external_sets.md."""
    lines = ["| set | what | modality | official split | layout known from | licence |", "|---|---|---|---|---|---|"]
    for name in SETS:
        about = entry(name)
        what = f"[{about['title']}]({about['homepage']})"
        known = f"**{about['established']}**: {about['established_from']}"
        modality = about.get("modality") or "as its DICOM headers say"
        cells = [name, what, modality, about["official_split"], known, f"{about['licence']} ({about['licence_from']})"]
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _read_pickled(plan: CasePlan) -> ReadCase:
    """Reads a case of pickled arrays, which are converted to .npy first."""
    unread = []
    with TemporaryDirectory() as folder:
        items = []
        for number, item in enumerate(plan.items):
            for place, (path, name) in enumerate(zip(item.paths, item.names, strict=True)):
                saved = Path(folder, f"{number}-{place}.npy")
                try:
                    np.save(saved, read_pickled(Path(path)))
                except (Unreadable, OSError) as error:
                    reason = str(error) if isinstance(error, Unreadable) else "cannot be opened: copy it again"
                    unread.append((name, reason))
                    continue
                items.append(replace(item, paths=[str(saved)], names=[name]))
        result = read_files(replace(plan, items=items))
    result.files += len(unread)
    result.unread += len(unread)
    result.case.skipped += unread
    return result


def _stacked(result: ReadCase) -> ReadCase:
    """Joins the pictures of one study as the slices of one scan. Pictures of an unusual size are skipped."""
    scans, case = result.case.scans, result.case
    if len(scans) < 2:
        return result
    shape = Counter(scan.pixels.shape[1:] for scan in scans).most_common(1)[0][0]
    fitting = [scan for scan in scans if scan.pixels.shape[1:] == shape]
    for scan in scans:
        if scan.pixels.shape[1:] != shape:
            case.skipped.append((scan.source, "has another size than the other slices: check whether it belongs there"))
            result.unread += 1
    source = fitting[0].source.rpartition("/")[0] or fitting[0].source
    pixels = np.concatenate([scan.pixels for scan in fitting])
    case.scans = [replace(fitting[0], pixels=pixels, source=source, affine=None)]
    result.origins = result.origins[:1]
    return result


def _joined(parts: list[ReadCase]) -> ReadCase:
    """Joins the parts of one case whose items were read one by one."""
    result = parts[0]
    for part in parts[1:]:
        result.case.scans += part.case.scans
        result.case.skipped += part.case.skipped
        result.origins += part.origins
        result.files += part.files
        result.unread += part.unread
    return result
