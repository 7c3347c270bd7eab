"""A table with one row for each file.

    case,patient,path,modality,disorders,history,...
    17,P4,17/chest.png,X-ray,Pneumothorax; Rib fracture,fell off a ladder
    17,P4,17/ct,CT,,

Decisions:
- Rows with the same case form one case; their disorders and histories are combined.
- A path is a file, or a folder with the files of one study, relative to the table.
- A row with a mistake is rejected and listed with its line number. Its case keeps its other rows.
- A case is normal if `disorders` is empty in all its rows and `normal` is 0 in none. It is unlabelled only if the table
  has no column `disorders` and the case no `normal` 1, or if it states "unknown".
- Where the rows of a case state several origins, all are kept. One row with `publish` 0 holds for its whole case.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from radfm.data_prep.guess import guess_plane
from radfm.data_prep.plan import NORMAL, CasePlan, Item, Listing, ReadCase, Rejected, known_age, known_sex, known_split
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.read_files import list_files, read_files
from radfm.data_prep.sources.rows import parse_year, read_rows, split_list, with_lists
from radfm.modalities import modality_name

COLUMNS = {
    "case": "name of the case that the file belongs to; required",
    "patient": "name of the patient, who stays in one split; by default each case is a patient of its own",
    "path": "file, or folder of a DICOM study, relative to this table; required",
    "modality": "CT, MRI, X-ray, ultrasound, mammography, ... for files that are not DICOM",
    "disorders": 'names separated by ";", empty for a normal case, "unknown" if the labels are missing',
    "icd10cm": 'codes separated by ";", one for each disorder in the same order; by default looked up',
    "history": "what was known before the scans were read",
    "plane": "axial, coronal, sagittal, oblique; PA, AP, lateral, MLO, CC",
    "body_part": "what was examined",
    "days": "day of the scan, counted from any day",
    "date": "date of the scan in place of days, as 2024-05-31; only the distance to the newest scan is kept",
    "key_slice": "number of the slice that shows the finding, from 0",
    "split": "train, validation or test; by default stratified by disorder",
    "age": "age of the patient in years; ages above 89 are stored as 90",
    "sex": "F, M or other",
    "normal": "1: known to show no disorder; 0: no disorder is named, and there may be others; by default 1",
    "regions": 'boxes "name x y width height" separated by ";", from the top left, as parts of the picture (0 to 1)',
    "collection": "collection that the file comes from, stored as given: radfm evaluate --within collection",
    "site": "hospital or department, stored as a pseudonym: radfm evaluate transfer --by site",
    "scanner": "scanner or its manufacturer, stored as given: radfm evaluate transfer --by scanner",
    "year": "year of the scan, stored as given: radfm evaluate transfer --by date",
    "licence": "of the file, stored as given",
    "attribution": "whom to credit for the file, stored as given",
    "url": "where the file or its licence is found, stored as given",
    "publish": "0: a model that is published must not learn from the file, and training leaves its case out",
}
_CALLED = {"case_id": "case", "patient_id": "patient", "file": "path", "anatomy": "body_part", "icd10": "icd10cm"}
_CALLED |= {"source": "collection", "license": "licence", "citation": "attribution"}
_CALLED |= {"hospital": "site", "institution": "site"}
_CALLED |= {"disorder": "disorders", "label": "disorders", "labels": "disorders", "gender": "sex", "icd": "icd10cm"}
_ORIGIN = ("collection", "licence", "attribution", "url", "scanner")
_REGION = "Lung mass 0.55 0.22 0.25 0.5"
_ROUNDING = 0.01  # of a box that ends at the edge of its picture
_LISTS = ("disorders", "icd10cm", "regions")


def template() -> str:
    """A manifest to fill in, as CSV with one example row."""
    example = {"case": "17", "patient": "P4", "path": "17/chest.png", "modality": "X-ray"}
    example |= {"disorders": "Pneumothorax; Rib fracture", "history": "fell off a ladder", "plane": "PA"}
    lines = [",".join(COLUMNS), ",".join(example.get(column, "") for column in COLUMNS)]
    return "\n".join(lines) + "\n"


class Manifest:
    """See the module, and `radfm.data_prep.plan.Source`.

    Args:
        table: CSV or JSON Lines.
        pseudonyms: names of patients, cases and files in the data set.
        modality: modality of files whose row and header state none.
    """

    name = "manifest"

    def __init__(self, table: str | Path, pseudonyms: Pseudonyms, modality: str | None = None):
        self.table, self.pseudonyms = Path(table), pseudonyms
        self.modality = modality and modality_name(modality)
        self.settings: dict[str, Any] = {"modality": self.modality}
        self.notice: dict[str, str] = {}

    def listing(self) -> Listing:
        rejected, planned, listed, columns = [], 0, 0, set()
        rows_of: dict[str, list[tuple[int, dict]]] = {}
        for line, row in read_rows(self.table):
            listed += 1
            if isinstance(row, Rejected):
                rejected.append(row)
                continue
            row = with_lists({_CALLED.get(name, name): value for name, value in row.items()}, _LISTS)
            columns |= row.keys()
            try:
                checked = self._checked(row)
                known = rows_of.get(checked["case"])
                if known and known[0][1]["patient"] != checked["patient"]:
                    raise ValueError(f"gives its case another patient than line {known[0][0]}: correct one of them")
            except ValueError as error:
                rejected.append(Rejected("row", f"line {line}", str(error)))
                continue
            rows_of.setdefault(checked["case"], []).append((line, checked))
            planned += 1
        if listed and (missing := {"case", "path"} - columns):
            raise ValueError(
                f"{self.table} has no column {sorted(missing)[0]!r}: see radfm prepare manifest --template"
            )
        plans = [self._plan(rows, "disorders" in columns) for rows in rows_of.values()]
        return Listing(plans, rejected, "row", listed, planned)

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        return map(read_files, plans)

    def _checked(self, row: dict) -> dict:
        """The row with parsed values. Raises: ValueError with the mistake and the remedy."""
        for column in ("case", "path"):
            if not row.get(column):
                raise ValueError(f"has no {column}: fill it in")
        checked = dict(row)
        path = self.table.parent / row["path"]
        if not path.exists():
            raise ValueError(f"names a file that is not there ({self._shown(row['path'])}): correct the path")
        checked["files"] = list_files(path) if path.is_dir() else [path]
        if not checked["files"]:
            raise ValueError("names a folder without files: correct the path")
        checked["modality"] = modality_name(row["modality"]) if row.get("modality") else self.modality
        checked["patient"] = row.get("patient") or f"case {row['case']}"
        checked["disorders"] = split_list(row.get("disorders"), once=False)
        checked["icd10cm"] = split_list(row.get("icd10cm"), once=False)
        if checked["icd10cm"] and len(checked["icd10cm"]) != len(checked["disorders"]):
            if len(checked["disorders"]) != 1:
                raise ValueError(
                    f"has {len(checked['icd10cm'])} codes for {len(checked['disorders'])} disorders: give one for each"
                )
            checked["icd10cm"] = [checked["icd10cm"]]
        else:
            checked["icd10cm"] = [[code] for code in checked["icd10cm"]]
        checked["split"] = known_split(row["split"]) if row.get("split") else None
        checked["days"] = _number(row.get("days"), "days")
        checked["plane"] = guess_plane(row.get("plane") or "", checked["modality"])
        checked["age"] = known_age(_number(row.get("age"), "age"))
        checked["sex"] = known_sex(row.get("sex"))
        checked["normal"], checked["publish"] = (_flag(row.get(column), column) for column in ("normal", "publish"))
        if checked["normal"] and any(name.casefold() not in NORMAL for name in checked["disorders"]):
            raise ValueError("has disorders and 1 for normal: correct one of them")
        checked["regions"] = _regions(row.get("regions"), checked["disorders"])
        checked["year"] = parse_year(row.get("year"))
        key = _number(row.get("key_slice"), "key_slice")
        checked["key_slice"] = None if key is None else int(key)
        if row.get("date"):
            try:
                checked["days"] = float(date.fromisoformat(row["date"]).toordinal())
            except ValueError:
                raise ValueError("has an invalid date: write it as 2024-05-31") from None
        return checked

    def _plan(self, rows: list[tuple[int, dict]], labelled: bool) -> CasePlan:
        first = rows[0][1]
        days = [row["days"] for _, row in rows if row["days"] is not None]
        disorders: dict[str, list[str]] = {}
        for _, row in rows:
            codes = row["icd10cm"] or [[]] * len(row["disorders"])
            for name, given in zip(row["disorders"], codes, strict=True):
                disorders[name] = disorders.get(name) or given
        known = not any(name.casefold() == "unknown" for name in disorders)
        disorders = {n: c for n, c in disorders.items() if n.casefold() not in NORMAL | {"unknown"}}
        plan = CasePlan(
            case_id=self.pseudonyms.of("case", first["case"]),
            patient_id=self.pseudonyms.of("patient", first["patient"]),
            disorders=list(disorders),
            icd10cm=list(disorders.values()),
            history=next((row["history"] for _, row in rows if row.get("history")), None),
            split=next((row["split"] for _, row in rows if row["split"]), None),
            labelled=known and (labelled or any(row["normal"] for _, row in rows)),
            age=next((row["age"] for _, row in rows if row["age"] is not None), None),
            sex=next((row["sex"] for _, row in rows if row["sex"]), None),
            normal=_all_of(row["normal"] for _, row in rows),
            publish=_all_of(row["publish"] for _, row in rows),
        )
        if sites := [row["site"] for _, row in rows if row.get("site")]:
            plan.site = self.pseudonyms.of("site", sites[0])
        plan.year = max((row["year"] for _, row in rows if row["year"] is not None), default=None)
        for column in _ORIGIN:
            setattr(plan, column, _joined(row.get(column) for _, row in rows))
        for _, row in rows:
            plan.items.append(
                Item(
                    paths=[str(path.absolute()) for path in row["files"]],
                    names=[self._shown(os.path.relpath(path, self.table.parent)) for path in row["files"]],
                    modality=row["modality"],
                    plane=row["plane"],
                    days=None if row["days"] is None else max(days) - row["days"],
                    body_part=(row.get("body_part") or "").lower() or None,
                    key_slice=row["key_slice"],
                    regions=row["regions"],
                )
            )
        return plan

    def _shown(self, path: str) -> str:
        return self.pseudonyms.of("file", path)


def _number(value: str | None, column: str) -> float | None:
    if not value:
        return None
    try:
        number = float(value.replace(",", "."))
    except ValueError:
        raise ValueError(f"has {value!r} for {column}: write a number") from None
    if not abs(number) < 1e7 or (column != "days" and number < 0):
        raise ValueError(f"has {value!r} for {column}: out of range")
    return number


def _flag(value: str | None, column: str) -> bool | None:
    if not value:
        return None
    try:
        return {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}[value.casefold()]
    except KeyError:
        raise ValueError(f"has {value!r} for {column}: write 1 or 0") from None


def _regions(value: str | list | None, disorders: Sequence[str]) -> dict[str, list[list[float]]] | None:
    """Disorder -> boxes (x, y, width, height). Raises: ValueError with the mistake and the remedy."""
    spelling = {name.casefold(): name for name in disorders}
    boxes: dict[str, list[list[float]]] = {}
    for region in split_list(value):
        name, *numbers = region.rsplit(" ", 4)
        if name.casefold() not in spelling:
            raise ValueError(f"has a region of {name!r}, which is none of its disorders: write it as {_REGION!r}")
        try:
            x, y, width, height = map(float, numbers)
        except ValueError:
            raise ValueError(f"has the region {region!r}: write it as {_REGION!r}") from None
        if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 - x + _ROUNDING and 0 < height <= 1 - y + _ROUNDING):
            raise ValueError(f"has the region {region!r}, which is not within the picture: numbers are parts of it")
        boxes.setdefault(spelling[name.casefold()], []).append([x, y, width, height])
    return boxes or None


def _all_of(flags: Iterable[bool | None]) -> bool | None:
    """False if one is false, None if none is stated."""
    stated = [flag for flag in flags if flag is not None]
    return all(stated) if stated else None


def _joined(values: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(value for value in values if value)) or None
