"""A case plan -> its scans, from whatever files it names.

Decisions:
- What a source says of a scan outranks the header where both speak, because somebody wrote it down for this very data
  set; except the modality of DICOM files, which no table knows better.
- Names of files leave this module only as the plan calls them.
- Days: what the plan says; else the dates of DICOM headers, compared over all items of the case; else unknown.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from radfm.cases import Case, Scan
from radfm.data_prep.burned_in import header_says_text
from radfm.data_prep.guess import guess_modality, guess_plane
from radfm.data_prep.plan import CasePlan, Item, ReadCase, ScanOrigin
from radfm.readers.dicom_headers import date_of, read_header
from radfm.readers.errors import reason_for
from radfm.readers.read_case import read_case


def read_files(plan: CasePlan) -> ReadCase:
    """Reads every item of a plan. Nothing is raised for what is wrong with a file: it is in `case.skipped`."""
    case = Case(case_id=plan.case_id, patient_id=plan.patient_id)
    found = ReadCase(case, files=0, unread=0, origins=[])
    newest: list = []
    for item in plan.items:
        scans, skipped, unread, days = _read_item(item)
        found.files += len(item.paths)
        found.unread += unread
        case.skipped += skipped
        for scan, first in scans:
            found.origins.append(_know(scan, item, first))
            newest.append(days)
            case.scans.append(scan)
    if any(item.days is not None for item in plan.items):
        return found
    dates = [day for day in newest if day is not None]
    for scan, day in zip(case.scans, newest, strict=True):
        if len(plan.items) > 1 and scan.days is not None:
            scan.days = scan.days + (max(dates) - day).days if day is not None else None
    return found


def _read_item(item: Item):
    """(scan, a file of it) of every scan, (name, reason) of what was skipped, how many files gave no scan, and the
    newest date of the DICOM files."""
    shared = os.path.commonpath([os.path.dirname(path) for path in item.paths])
    own = {os.path.relpath(path, shared): i for i, path in enumerate(item.paths)}
    try:
        case = read_case(item.paths[0] if len(item.paths) == 1 else item.paths, modality=item.modality)
    except (OSError, ValueError) as error:
        reason = reason_for(error, "an image") if isinstance(error, OSError) else str(error)
        return [], [(name, reason) for name in item.names], len(item.paths), None
    scans = []
    for scan in case.scans:
        first = _first_file(scan.source, own)
        scan.source = _called(scan.source, item, own, first)
        scans.append((scan, item.paths[first]))
    used = {scan.source for scan, _ in scans}
    skipped, unread = [], set()
    for file, reason in case.skipped:
        name = _called(file, item, own, own.get(file, 0))
        if file in own and name not in used:
            unread.add(file)
        skipped.append((name, _without_names(reason, item, own)))
    newest = max((day for day in map(_date, {path for _, path in scans}) if day), default=None)
    return scans, skipped, len(unread), newest


def _first_file(source: str, own: dict[str, int]) -> int:
    """Of a scan that came from a file, a part of one, or a folder."""
    if source in own:
        return own[source]
    for file, i in own.items():
        if source == "." or file.startswith(source + "/") or source.startswith(file + "/"):
            return i
    return 0


def _called(file: str, item: Item, own: dict[str, int], first: int) -> str:
    """The name that the plan gives to a file, to a part of it, or to a folder of its files."""
    name = item.names[first]
    if file in own:
        return name
    path = os.path.relpath(item.paths[first], os.path.commonpath([os.path.dirname(p) for p in item.paths]))
    if file.startswith(path + "/"):  # one array of an archive
        return name + file[len(path) :]
    return str(PurePosixPath(name).parent) if "/" in name else name


def _without_names(reason: str, item: Item, own: dict[str, int]) -> str:
    """A reason may point to another file: it is called as the plan calls it."""
    for file, i in sorted(own.items(), key=lambda pair: -len(pair[0])):
        if file in reason:
            return reason.replace(file, item.names[i])
    return reason


def _know(scan: Scan, item: Item, path: str) -> ScanOrigin:
    """Fills in what the source knows, then what can be guessed, and notes which is which."""
    notes = ScanOrigin(text_in_pixels=header_says_text(Path(path)))
    if scan.modality is not None:
        said = item.modality is not None and scan.modality == item.modality
        notes.modality_from = "source" if said else "header"
    elif guessed := guess_modality(path, scan.pixels):
        scan.modality, notes.modality_from = guessed, "guess"
    if item.plane is not None:
        scan.plane, notes.plane_from = item.plane, "source"
    elif scan.plane is not None:
        notes.plane_from = "header"
    elif guessed := guess_plane(path, scan.modality):
        scan.plane, notes.plane_from = guessed, "guess"
    scan.days = item.days if item.days is not None else scan.days
    scan.body_part = item.body_part or scan.body_part
    if item.key_slice is not None and 0 <= item.key_slice < len(scan.pixels):
        scan.key_slice = item.key_slice
    return notes


def _date(path: str):
    if Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".gz", ".nii", ".tif", ".tiff", ".npy", ".npz"):
        return None
    try:
        return date_of(read_header("", Path(path)).header)
    except Exception:  # not DICOM, or damaged: it has no date
        return None


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without those that systems leave behind. Links to folders are not followed."""
    return list(walk_files(folder))


def walk_files(folder: Path) -> Iterator[Path]:
    """The same one by one, so that the paths of an archive need not all be held."""
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(top, name) for name in sorted(files) if not name.startswith(".") and name not in _LEFT_BEHIND)


_LEFT_BEHIND = {"Thumbs.db", "desktop.ini", "ehthumbs.db"}
