"""Lists the cases of a published set whose layout is described as data: files, tables, how they are joined, labels.

A layout is a mapping (a YAML file of `external/`) with these keys. Names in braces are names of facts.

    files       patterns of the files that hold scans, below the folder; the first that matches counts
    leave_out   patterns of files that match but are not scans: masks, segmentations
    together    files with the same value are read as one study; unset, every file alone
    stack       true: pictures of one study are the slices of one scan
    pickled     true: each file is an array as NumPy pickles it
    case, patient   patient unset: patients are not identified, so each case is a patient of its own
    tables      a list of: files (patterns), tie (column -> pattern), and, where they differ from what is usual,
                needed: false (a scan may have no row), spare_rows: true (a row may have no scan), spare_files: true
                (a scan without a row does not belong to the set)
    labels      value (a template) with separator or list: true, and empty: normal where an empty list says that much;
                or columns (a pattern with {label}) and values (cell -> present, absent, uncertain)
    normal, unsaid, not_disorders   lists of labels: a normal case; no statement; a statement, but no disorder
    disorders   label -> [name of the disorder, ICD-10-CM codes ...]
    other_labels    "reject" (usual), or "keep": a label that is not listed is the name of a disorder
    split       of (a template) and is (split -> pattern); or of and lists (split -> file with one value a line)
    modality, body_part, plane, history, age, sex   templates; plane may be of and is, as split

Decisions:
- A pattern is a path with `*` (any part of a name), `**/` (any folders, or none), `{fact}` (a name, or a part of one)
  and `{fact:regular expression}`; `{_:...}` is not kept. Letter case does not matter, in paths as in labels.
- Facts of a scan are those of its path, and the columns (in lower case) of its rows in the tables. A row belongs to
  the scans with the same facts as its `tie` columns have; a table may be tied to a column of the one before it.
- Tables are found by name and recognised by their columns ("PatientID or Case ID": either); other tables with the same
  name are ignored.
- A file without a row, a row without a file, and an unknown label are `Rejected`.
"""

import json
import re
from ast import literal_eval
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radfm.data_prep.plan import SPLITS, CasePlan, Item, Listing, Rejected, known_age, known_sex
from radfm.data_prep.read_files import list_files
from radfm.data_prep.sources.rows import read_rows

UNCERTAIN = ("absent", "present")
KEYS = {
    "files", "leave_out", "together", "stack", "pickled", "case", "patient", "tables", "labels", "normal", "unsaid",
    "not_disorders", "disorders", "other_labels", "split", "modality", "body_part", "plane", "history", "age", "sex",
}  # fmt: skip
_TOKENS = re.compile(r"\*\*/|\*|\{(\w+)(?::((?:[^{}]|\{[^{}]*\})*))?\}")


def pattern(text: str) -> re.Pattern:
    """ "**/images/{study}/{image:[0-9]+}.png" -> a regular expression with the groups study and image."""
    parts, end = [], 0
    for token in _TOKENS.finditer(text):
        parts.append(re.escape(text[end : token.start()]))
        name, inner = token.groups()
        if name is None:
            parts.append("(?:.*/)?" if token[0] == "**/" else "[^/]*")
        else:
            parts.append(f"(?{':' if name == '_' else f'P<{name}>'}{inner or '[^/]+'})")
        end = token.end()
    return re.compile("".join([*parts, re.escape(text[end:])]), re.IGNORECASE | re.DOTALL)


def list_cases(folder: Path, layout: dict[str, Any], uncertain: str = "absent") -> Listing:
    """All cases of a folder with the given layout.

    Args:
        folder: folder of the set.
        layout: keys as in the module's description.
        uncertain: how uncertain labels count, one of `UNCERTAIN`.
    Raises:
        FileNotFoundError: the folder, or a table that the layout needs, does not exist.
        ValueError: no file matches the layout, or a table has other columns.
    """
    if uncertain not in UNCERTAIN:
        raise ValueError(f"an uncertain label is absent or present, not {uncertain!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    files = [path.relative_to(folder).as_posix() for path in list_files(folder)]
    scans = list(_scans(files, layout))
    if not scans:
        expected = " or ".join(_texts(layout["files"]))
        raise ValueError(f"{folder} holds no file like {expected}: unpack the archives and give the folder they are in")
    tables = [_Table(folder, files, about) for about in layout.get("tables") or ()]
    scans = [scan for scan in scans if all(table.takes(scan.facts) for table in tables)]
    splits = _Splits(folder, files, layout.get("split"))
    labels = _Labels(layout, uncertain)
    cases: dict[str, CasePlan] = {}
    rejected = []
    for scan in scans:
        try:
            _add(scan, cases, folder, layout, tables, splits, labels)
        except ValueError as error:
            alone = len(scan.files) == 1
            name = scan.files[0] if alone else str(Path(scan.files[0]).parent)
            rejected.append(Rejected("file" if alone else "folder", name, str(error)))
    planned = len(scans) - len(rejected)
    rejected += [row for table in tables for row in table.rejected()]
    unit = "file" if all(len(scan.files) == 1 for scan in scans) else "folder"
    return Listing(list(cases.values()), rejected, unit, planned + len(rejected), planned)


@dataclass(slots=True)
class _Scan:
    """Files that are read together, relative to the folder, and the facts in their paths."""

    facts: dict[str, str]
    files: list[str] = field(default_factory=list)


def _scans(files: list[str], layout: dict) -> Iterator[_Scan]:
    fitting = [pattern(text) for text in _texts(layout["files"])]
    left_out = [pattern(text) for text in _texts(layout.get("leave_out"))]
    together = layout.get("together")
    scans: dict[str, _Scan] = {}
    for file in files:
        match = next(filter(None, (one.fullmatch(file) for one in fitting)), None)
        if match is None or any(one.fullmatch(file) for one in left_out):
            continue
        facts = {name: value for name, value in match.groupdict().items() if value is not None}
        scans.setdefault(_filled(together, facts) if together else file, _Scan(facts)).files.append(file)
    yield from scans.values()


def _add(scan: _Scan, cases: dict, folder: Path, layout: dict, tables: list, splits, labels) -> None:
    """Adds a scan to its case. Raises: ValueError with the reason if it belongs to none."""
    facts, rows = dict(scan.facts), []
    for table in tables:
        rows_of_scan = table.of(facts)
        rows += rows_of_scan
        facts = (rows_of_scan[0] if rows_of_scan else {}) | facts
    labelled, disorders = labels.of([scan.facts | row for row in rows] or [facts])
    case = _filled(layout["case"], facts)
    patient = _filled(layout["patient"], facts) if layout.get("patient") else case
    if not case or not patient:
        raise ValueError(f"belongs to no {'patient' if case else 'case'}: its row leaves it open")
    plan = cases.get(case) or CasePlan(case, patient, labelled=False)
    if plan.patient_id != patient:
        raise ValueError(f"belongs to case {case}, which is of another patient: correct its row")
    item = Item(
        paths=[str((folder / file).absolute()) for file in scan.files],
        names=list(scan.files),
        modality=_filled(layout.get("modality"), facts) or None,
        plane=_chosen(layout.get("plane"), facts),
        body_part=_filled(layout.get("body_part"), facts).replace("_", " ").lower() or None,
    )
    cases[case] = plan
    plan.items.append(item)
    plan.labelled |= labelled
    for name, codes in disorders.items():
        if name not in plan.disorders:
            plan.disorders.append(name)
            plan.icd10cm.append(list(codes))
    plan.split = max((one for one in (plan.split, splits.of(facts)) if one), key=SPLITS.index, default=None)
    plan.history = plan.history or _filled(layout.get("history"), facts) or None
    plan.sex = plan.sex or known_sex(_filled(layout.get("sex"), facts))
    if plan.age is None and (years := re.fullmatch(r"(\d+)(\.\d*)?Y?", _filled(layout.get("age"), facts))):  # no months
        plan.age = known_age(float(years[1]))


class _Table:
    """Rows of a table of the layout, by the facts that join them with scans."""

    def __init__(self, folder: Path, files: list[str], about: dict):
        self._about = about
        self._on = {tuple(column.lower().split(" or ")): pattern(text) for column, text in about["tie"].items()}
        self._ties = sorted({name for one in self._on.values() for name in one.groupindex})
        self._rows: dict[tuple, list[tuple[str, dict]]] = {}
        self._unfit: list[Rejected] = []
        self._used: set[tuple] = set()
        fitting = [pattern(text) for text in _texts(about["files"])]
        matches = [(file, match) for file in files for one in fitting if (match := one.fullmatch(file))]
        self.name = " or ".join(text.removeprefix("**/") for text in _texts(about["files"]))
        if not matches and about.get("needed", True):
            raise FileNotFoundError(f"{folder} holds no {self.name}: download it too, and put it there")
        read = [self._read(folder / file, file, match.groupdict()) for file, match in matches]
        if matches and not any(read):
            columns = ", ".join(repr(" or ".join(names)) for names in self._on)
            raise ValueError(f"{folder / matches[0][0]} lacks a column of {columns}: it is not the published table")

    def takes(self, facts: dict[str, str]) -> bool:
        """Whether a scan belongs to the set, as far as the table determines it."""
        return not self._about.get("spare_files") or self._tied(facts) in self._rows

    def of(self, facts: dict[str, str]) -> list[dict[str, str]]:
        """The rows of a scan. Raises: ValueError where it has none and needs one."""
        key = self._tied(facts)
        if key in self._rows:
            self._used.add(key)
        elif self._about.get("needed", True):
            raise ValueError(f"has no row in {self.name}: its labels are missing, so add the row or remove the file")
        return [row for _, row in self._rows.get(key, ())]

    def _tied(self, facts: dict[str, str]) -> tuple:
        return tuple(facts.get(name, "").casefold() for name in self._ties)

    def rejected(self) -> list[Rejected]:
        """Rows that cannot be read, and rows without a scan."""
        if self._about.get("spare_rows"):
            return self._unfit
        reason = "names a scan that is not there: unpack all archives, or leave it out"
        spare = [rows for key, rows in self._rows.items() if key not in self._used]
        return self._unfit + [Rejected("row", where, reason) for rows in spare for where, _ in rows]

    def _read(self, path: Path, name: str, facts: dict[str, str]) -> bool:
        """Stores the rows of a file; False if it lacks the columns of this table."""
        on: dict[str, re.Pattern] | None = None
        for place, row in _rows_of(path):
            if isinstance(row, Rejected):
                self._unfit.append(Rejected("row", f"{name}, {row.name}", row.reason))
                continue
            if on is None:
                on = {next((one for one in names if one in row), ""): form for names, form in self._on.items()}
                if "" in on:
                    return False
            key = self._key(on, row)
            if isinstance(key, str):
                self._unfit.append(Rejected("row", f"{name}, {place}", key))
            else:
                self._rows.setdefault(key, []).append((f"{name}, {place}", facts | row))
        return on is not None

    def _key(self, on: dict[str, re.Pattern], row: dict) -> tuple | str:
        """The facts that join a row with scans, or the reason why it has none."""
        ties: dict[str, str] = {}
        for column, form in on.items():
            value = str(row.get(column, ""))
            match = form.fullmatch(value)
            if not value:
                return f"has no {column}: fill it in"
            if match is None:
                return f"has {value[:40]!r} as {column}, which names no scan: correct it"
            ties |= match.groupdict()
        return tuple(ties[tie].casefold() for tie in self._ties)


class _Labels:
    """The meaning of the labels of a scan."""

    def __init__(self, layout: dict, uncertain: str):
        about = layout["labels"]
        self._value, self._separator, self._list = about.get("value"), about.get("separator"), about.get("list")
        self._empty_is_normal = about.get("empty") == "normal"
        self._columns = pattern(about["columns"]) if "columns" in about else None
        self._label_of: dict[str, str | None] = {}  # column -> label, remembered: some tables have thousands
        self._cells = {str(cell): meaning for cell, meaning in (about.get("values") or {}).items()}
        self._uncertain, self._keep = uncertain, layout.get("other_labels") == "keep"
        self._disorders = {_plain(label): (name, codes) for label, (name, *codes) in layout["disorders"].items()}
        self._unsaid = {_plain(label) for label in layout.get("unsaid") or ()}
        self._none = {_plain(label) for key in ("normal", "not_disorders") for label in layout.get(key) or ()}

    def of(self, rows: list[dict]) -> tuple[bool, dict[str, list[str]]]:
        """Whether the rows state anything, and disorder -> codes. Raises: ValueError for an unknown label."""
        labelled, disorders = False, {}
        for row in rows:
            labels = list(self._in_columns(row) if self._columns else self._in_value(row))
            labelled |= not labels and self._empty_is_normal
            for label, present in labels:
                plain = _plain(label)
                if not plain or plain in self._unsaid:
                    continue
                labelled = True
                if not present or plain in self._none:
                    continue
                if plain not in self._disorders and not self._keep:
                    raise ValueError(f"has the label {label[:60]!r}, which is none of this set: correct it")
                name, codes = self._disorders.get(plain) or (plain[:1].upper() + plain[1:], [])
                disorders[name] = codes
        return labelled, disorders

    def _in_value(self, row: dict) -> Iterator[tuple[str, bool]]:
        column = re.fullmatch(r"\{([^{}]+)\}", self._value)
        value = row.get(column[1].lower(), "") if column else _filled(self._value, row)
        if self._list and isinstance(value, str) and value:
            try:
                value = literal_eval(value)  # a list as Python prints it, which is how these tables hold it
            except (ValueError, SyntaxError):
                raise ValueError(f"has labels that are no list ({value[:40]!r}): correct its row") from None
        if isinstance(value, str):
            value = value.split(self._separator) if self._separator else [value]
        for label in value:
            yield str(label).strip(), True

    def _in_columns(self, row: dict) -> Iterator[tuple[str, bool]]:
        assert self._columns is not None
        for column, cell in row.items():
            if column not in self._label_of:
                match = self._columns.fullmatch(column)
                self._label_of[column] = match and match["label"]
            cell = str(cell).strip().removesuffix(".0")
            label = self._label_of[column]
            if label is None or not cell:
                continue
            if cell not in self._cells:
                raise ValueError(f"has {cell[:20]!r} for {column}, and known are {', '.join(self._cells)}: correct it")
            meaning = self._cells[cell]
            yield label, (self._uncertain if meaning == "uncertain" else meaning) == "present"


class _Splits:
    """The official split of a scan."""

    def __init__(self, folder: Path, files: list[str], about: dict | None):
        self._about = about or {}
        self._of: dict[str, str] = {}
        for split, text in (self._about.get("lists") or {}).items():
            form = pattern(text)
            lists = [file for file in files if form.fullmatch(file)]
            if not lists:
                name = text.removeprefix("**/")
                raise FileNotFoundError(f"{folder} holds no {name}: download it too, it tells the official split")
            for file in lists:
                lines = (folder / file).read_text(encoding="utf-8-sig").splitlines()
                self._of |= {line.strip().casefold(): split for line in lines if line.strip()}

    def of(self, facts: dict) -> str | None:
        if "lists" in self._about:
            return self._of.get(_filled(self._about["of"], facts).casefold())
        return _chosen(self._about, facts) if self._about else None


def _rows_of(path: Path) -> Iterator[tuple[str, dict | Rejected]]:
    """Rows of CSV, JSON Lines or a JSON array with their positions; names of columns in lower case."""
    if path.suffix.lower() == ".json" and path.read_text(encoding="utf-8-sig").lstrip().startswith("["):
        try:
            objects = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError:
            raise ValueError(f"{path} is damaged, it is no JSON: download it again") from None
        for number, one in enumerate(objects, 1):
            if not isinstance(one, dict):
                yield "", Rejected("row", f"entry {number}", "is no object with names and values: correct it")
            else:
                yield f"entry {number}", {str(name).lower(): value for name, value in one.items()}
        return
    for line, row in read_rows(path):
        yield f"line {line}", row


def _chosen(about: str | dict | None, facts: dict) -> str | None:
    """The value of a template; or the key of `is` whose pattern matches the value of `of`."""
    if about is None or isinstance(about, str):
        return _filled(about, facts) or None
    value = _filled(about["of"], facts)
    return next((outcome for outcome, text in about["is"].items() if pattern(text).fullmatch(value)), None)


def _filled(template: str | None, facts: dict) -> str:
    """ "{study}/{view position}" with the facts filled in; unknown facts are empty."""
    return re.sub(r"\{([^{}]+)\}", lambda name: str(facts.get(name[1].lower(), "")).strip(), template or "")


def _plain(label: str) -> str:
    return " ".join(str(label).casefold().split())


def _texts(value: str | Iterable[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
