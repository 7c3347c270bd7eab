"""Reads the scans of a case plan from its files.

Decisions:
- A description that the source gives takes precedence over the header, because it was written for this data set. The
  modality of a DICOM file is always that of its header.
- Files are named as in the plan in everything that this module returns.
- Days come from the plan, otherwise from the dates in DICOM headers, compared over all items of the case.
- Of a picture that two items of a case have, on the same day, the first is used. Within an item it may be two slices.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from radfm.cases import Case, Scan, copy_among
from radfm.data_prep.burned_in import header_says_text
from radfm.data_prep.guess import guess_modality, guess_plane
from radfm.data_prep.plan import CasePlan, Item, ReadCase, ScanOrigin
from radfm.modalities import UNKNOWN_MODALITY
from radfm.presentation import shown
from radfm.readers.content_checks import content_warnings
from radfm.readers.dicom_headers import date_of, read_header
from radfm.readers.errors import reason_for
from radfm.readers.read_case import read_case


def read_files(plan: CasePlan) -> ReadCase:
    """Reads all items of a plan. A damaged file raises nothing, and is listed in `case.skipped`."""
    case = Case(case_id=plan.case_id, patient_id=plan.patient_id)
    result = ReadCase(case, files=0, unread=0, origins=[])
    newest: list = []
    masks: list[dict[str, np.ndarray]] = []
    for item in plan.items:
        scans, skipped, unread, days = _read_item(item)
        result.files += len(item.paths)
        result.unread += unread
        case.skipped += skipped
        of_other_items = list(case.scans)
        for scan, first in scans:
            origin = _describe(scan, item, first)
            if not item.regions and (copied := copy_among(scan, of_other_items)) is not None:
                case.skipped.append((scan.source, f"is a copy of {copied.source}: read once"))
                result.unread += 1
                continue
            result.origins.append(origin)
            masks.append(_masks(scan, item, len(scans) == 1))
            newest.append(days)
            case.scans.append(scan)
    result.masks = masks if any(masks) else None
    if any(item.days is not None for item in plan.items):
        return result
    dates = [day for day in newest if day is not None]
    for scan, day in zip(case.scans, newest, strict=True):
        if len(plan.items) > 1 and scan.days is not None:
            scan.days = scan.days + (max(dates) - day).days if day is not None else None
    return result


def _read_item(item: Item):
    """Scans with one of their files, (name, reason) of skipped files, the number of files without a scan, and the
    newest date of the DICOM files."""
    shared = os.path.commonpath([os.path.dirname(path) for path in item.paths])
    own = {shown(os.path.relpath(path, shared)): i for i, path in enumerate(item.paths)}  # as `read_case` names them
    try:
        case = read_case(
            item.paths[0] if len(item.paths) == 1 else item.paths, modality=item.modality, keep_copies=True
        )
    except (OSError, ValueError) as error:
        reason = reason_for(error, "an image") if isinstance(error, OSError) else str(error)
        return [], [(name, reason) for name in item.names], len(item.paths), None
    scans = []
    for scan in case.scans:
        first = _first_file(scan.source, own)
        scan.source = _name_in_plan(scan.source, item, own, first)
        scans.append((scan, item.paths[first]))
    used = {scan.source for scan, _ in scans}
    skipped, unread = [], set()
    for file, reason in case.skipped:
        name = _name_in_plan(file, item, own, own.get(file, 0))
        if file in own and name not in used:
            unread.add(file)
        skipped.append((name, _without_names(reason, item, own)))
    newest = max((day for day in map(_date, {path for _, path in scans}) if day), default=None)
    return scans, skipped, len(unread), newest


def _masks(scan: Scan, item: Item, alone: bool) -> dict[str, np.ndarray]:
    """Disorder -> (slices, H, W) bool mask of the item's regions, in the only slice of its scan or the key slice."""
    if not item.regions:
        return {}
    slices, height, width = scan.pixels.shape[:3]
    shown_in = 0 if slices == 1 else item.key_slice
    if not alone or shown_in is None or shown_in >= slices:
        scan.warnings.append("its regions are not used, since the source does not say in which slice they lie")
        return {}
    masks = {name: np.zeros((slices, height, width), bool) for name in item.regions}
    for name, boxes in item.regions.items():
        for x, y, w, h in boxes:
            rows = slice(math.floor(y * height), math.ceil((y + h) * height))
            columns = slice(math.floor(x * width), math.ceil((x + w) * width))
            masks[name][shown_in, rows, columns] = True
    return masks


def _first_file(source: str, own: dict[str, int]) -> int:
    """Index of the first file of a scan, whose source is a file, a part of one, or a folder."""
    if source in own:
        return own[source]
    for file, i in own.items():
        if source == "." or file.startswith(source + "/") or source.startswith(file + "/"):
            return i
    return 0


def _name_in_plan(file: str, item: Item, own: dict[str, int], first: int) -> str:
    """The name in the plan of a file, of a part of it, or of a folder of its files."""
    name = item.names[first]
    if file in own:
        return name
    path = shown(os.path.relpath(item.paths[first], os.path.commonpath([os.path.dirname(p) for p in item.paths])))
    if file.startswith(path + "/"):  # one array of an archive
        return name + file[len(path) :]
    return str(PurePosixPath(name).parent) if "/" in name else name


def _without_names(reason: str, item: Item, own: dict[str, int]) -> str:
    """A reason may point to another file: it is called as the plan calls it."""
    for file, i in sorted(own.items(), key=lambda pair: -len(pair[0])):
        if file in reason:
            return reason.replace(file, item.names[i])
    return reason


def _describe(scan: Scan, item: Item, path: str) -> ScanOrigin:
    """Completes a scan with what the source states, then with guesses, and returns the origin of each."""
    origin = ScanOrigin(text_in_pixels=header_says_text(Path(path)))
    if scan.modality is not None:
        from_source = item.modality is not None and scan.modality == item.modality
        origin.modality_from = "source" if from_source else "header"
    elif guessed := guess_modality(path, scan.pixels):
        scan.modality, origin.modality_from = guessed, "guess"
        checked_before = [sentence for sentence in scan.warnings if sentence != UNKNOWN_MODALITY]
        scan.warnings = list(dict.fromkeys(checked_before + content_warnings(scan)))
    if item.plane is not None:
        scan.plane, origin.plane_from = item.plane, "source"
    elif scan.plane is not None:
        origin.plane_from = "header"
    elif guessed := guess_plane(path, scan.modality):
        scan.plane, origin.plane_from = guessed, "guess"
    scan.days = item.days if item.days is not None else scan.days
    scan.body_part = item.body_part or scan.body_part
    if item.key_slice is not None and 0 <= item.key_slice < len(scan.pixels):
        scan.key_slice = item.key_slice
    return origin


def _date(path: str):
    if Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".gz", ".nii", ".tif", ".tiff", ".npy", ".npz"):
        return None
    try:
        return date_of(read_header("", Path(path)).header)
    except Exception:  # not DICOM, or damaged: it has no date
        return None


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without files of the operating system. Links to folders are not followed."""
    return list(walk_files(folder))


def walk_files(folder: Path) -> Iterator[Path]:
    """The files of `list_files` one by one, so that the paths of a large archive are not all in memory."""
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(top, name) for name in sorted(files) if not name.startswith(".") and name not in _SYSTEM_FILES)


_SYSTEM_FILES = {"Thumbs.db", "desktop.ini", "ehthumbs.db"}
