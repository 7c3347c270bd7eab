"""A tree of DICOM studies, or a DICOMDIR, with labels from a table by accession number or study.

    radfm prepare dicom archive/ OUT --labels labels.csv        # columns: study or accession, disorders, ...

Decisions:
- A case is a study, or, with case="patient", all studies of a patient, which shows a course over time.
- Headers are read twice: here, to group files by study and patient, and later with the pixels. Here they are
  de-identified before anything is read from them, and so are the numbers in the table of labels, so that both are
  compared as pseudonyms. Later, `radfm.readers` reads only elements that the profile keeps, and dates, of which it
  keeps the differences.
- The scanner is a pseudonym of manufacturer and model, because these are texts, which may hold anything. The profile
  removes site and year: the table of labels may state them.
- Studies without a label are kept and marked as unlabelled. Labels without a study are listed as rejected.
- Files that are not DICOM are listed as rejected. Names of files and folders may contain names of patients, so they are
  replaced by pseudonyms.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from radfm.data_prep.deidentify import deidentify, keyed_uid
from radfm.data_prep.plan import CasePlan, Item, Listing, ReadCase, Rejected, known_age, known_sex, known_split
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.read_files import read_files, walk_files
from radfm.data_prep.sources.rows import parse_year, read_rows, split_list, with_lists
from radfm.readers.dicom_files import text
from radfm.readers.dicom_headers import read_header
from radfm.readers.dicomdir import named_files
from radfm.readers.errors import Unreadable, quiet_libraries, reason_for
from radfm.readers.formats import format_of

_TAGS = ["StudyInstanceUID", "AccessionNumber", "PatientID", "PatientAge", "PatientSex", "StudyDate"]
_TAGS += ["Manufacturer", "ManufacturerModelName", "DirectoryRecordSequence"]
_NUMBERS = [tag_for_keyword(keyword) for keyword in _TAGS]
_LAST = max(_NUMBERS)
_BY = {"study": "study", "studyinstanceuid": "study", "study_id": "study", "study_uid": "study"}
_BY |= {"accession": "accession", "accessionnumber": "accession", "accession_number": "accession"}
NUMBER_COLUMNS = tuple(_BY)  # of a table of labels
CASES = ("study", "patient")


class Dicom:
    """See the module, and `radfm.data_prep.plan.Source`.

    Args:
        path: a folder, or a DICOMDIR.
        pseudonyms: names of patients, studies and files in the data set.
        labels: CSV or JSON Lines with a column "study" or "accession", and "disorders", "icd10cm", "history", "split",
            "site", "year", "normal" (0: a row without disorders is not known to be normal).
        case: what a case is, "study" or "patient".
    """

    name = "dicom"

    def __init__(self, path: str | Path, pseudonyms: Pseudonyms, labels: str | Path | None = None, case: str = "study"):
        if case not in CASES:
            raise ValueError(f"a case is a study or a patient, not {case!r}")
        self.path, self.pseudonyms, self.case = Path(path), pseudonyms, case
        self.labels = None if labels is None else Path(labels)
        self.settings: dict[str, Any] = {"case": case, "labels": labels is not None}
        self.notice: dict[str, str] = {}

    def listing(self) -> Listing:
        count, rejected, studies = 0, [], {}
        known: dict[tuple, Dataset] = {}  # files of a study share these elements, which are de-identified once
        for file in self._files():
            header = _header(file)
            if header is not None and "DirectoryRecordSequence" in header:  # a DICOMDIR
                continue
            count += 1
            if header is not None:
                elements = tuple(text(header, keyword) for keyword in _TAGS)
                if elements not in known:
                    deidentify(header, self.pseudonyms)
                    known[elements] = header
                header = known[elements]
            else:
                rejected.append(Rejected("file", self._shown(file), _rejection_reason(file)))
                continue
            study = str(header.get("StudyInstanceUID", "")) or keyed_uid(f"folder {file.parent}", self.pseudonyms)
            studies.setdefault(study, []).append((str(file.absolute()), self._shown(file), header))
        labels, unusable = self._labels()
        grouped: dict[str, dict[str, list]] = {}
        for study, members in studies.items():
            patient = next((str(h.PatientID) for *_, h in members if h.get("PatientID")), study)
            grouped.setdefault(study if self.case == "study" else patient, {})[study] = members
        plans, used = [], set()
        for case, of_case in sorted(grouped.items()):
            plans.append(self._plan(case, of_case, labels, used))
        unusable += [
            Rejected(
                "row", f"line {row['line']}", "labels a study that is not among the files: copy it, or drop the row"
            )
            for row in {id(row): row for row in labels.values()}.values()
            if row["line"] not in used
        ]
        listed = count + len(unusable)
        return Listing(plans, rejected + unusable, "file or label", listed, listed - len(rejected) - len(unusable))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        return map(read_files, plans)

    def _files(self) -> Iterable[Path]:
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file or folder")
        if self.path.is_dir():
            return walk_files(self.path)
        header = _header(self.path)
        if header is None or "DirectoryRecordSequence" not in header:
            raise ValueError(f"{self.path} is not a DICOMDIR: give one, or the folder of the studies")
        found, missing = named_files([read_header(self.path.name, self.path)], [], [])
        return sorted([file.path for file in found] + [self.path.parent / name for name, _ in missing])

    def _labels(self) -> tuple[dict[tuple[str, str], dict], list[Rejected]]:
        """("study" or "accession", number) -> row, and the rows that could not be used."""
        if self.labels is None:
            return {}, []
        row_of, rejected = {}, []
        for line, content in read_rows(self.labels):
            if isinstance(content, Rejected):
                rejected.append(content)
                continue
            row = with_lists(content, ("disorders", "icd10cm"))
            keys = [
                (_BY[column], self._number(_BY[column], row[column])) for column in row if column in _BY and row[column]
            ]
            if not keys:
                rejected.append(Rejected("row", f"line {line}", "has no study and no accession number: fill one in"))
                continue
            row["line"] = line
            try:
                row["year"] = parse_year(row.get("year"))
                row["split"] = known_split(row["split"]) if row.get("split") else None
            except ValueError as error:
                rejected.append(Rejected("row", f"line {line}", str(error)))
                continue
            for key in keys:
                row_of.setdefault(key, row)
        if not row_of:
            raise ValueError(f"{self.labels} has no row with a study or an accession number: add such a column")
        return row_of, rejected

    def _plan(self, case: str, of_case: dict[str, list], labels: dict, used: set) -> CasePlan:
        members = [member for study in of_case.values() for member in study]
        headers = [header for *_, header in members]
        plan = CasePlan(
            case_id=_short("c-", case),
            patient_id=next((str(h.PatientID) for h in headers if h.get("PatientID")), _short("", case)),
            labelled=False,
            age=known_age(next((age for age in map(_age, headers) if age is not None), None)),
            sex=known_sex(str(next((h.PatientSex for h in headers if h.get("PatientSex")), ""))),
            scanner=next((self.pseudonyms.of("scanner", name) for name in map(_scanner, headers) if name), None),
        )
        disorders: dict[str, list[str]] = {}
        for study, files in of_case.items():
            numbers = [("study", study)] + [("accession", str(h.get("AccessionNumber", ""))) for *_, h in files]
            row = next((labels[number] for number in numbers if number in labels), None)
            if row is not None:
                used.add(row["line"])
                names, codes = (split_list(row.get(column), once=False) for column in ("disorders", "icd10cm"))
                paired = (
                    [[c] for c in codes]
                    if len(codes) == len(names)
                    else [codes if len(names) == 1 else []] * len(names)
                )
                disorders |= dict(zip(names, paired or [[] for _ in names], strict=True))
                plan.labelled = True
                plan.history = plan.history or row.get("history") or None
                plan.split = plan.split or row["split"]
                plan.normal = False if row.get("normal") == "0" else plan.normal
                plan.site = plan.site or (self.pseudonyms.of("site", row["site"]) if row.get("site") else None)
                plan.year = max(filter(None, (plan.year, row["year"])), default=None)
            paths, names, _ = (list(column) for column in zip(*files, strict=True))
            plan.items.append(Item(paths, names))
        plan.disorders, plan.icd10cm = list(disorders), list(disorders.values())
        return plan

    def _number(self, kind: str, number: str) -> str:
        """The number of a study or an accession as in de-identified headers."""
        return keyed_uid(number, self.pseudonyms) if kind == "study" else self.pseudonyms.of("accession", number)

    def _shown(self, file: Path) -> str:
        top = self.path if self.path.is_dir() else self.path.parent
        return self.pseudonyms.of("file", file.relative_to(top).as_posix())


def _short(kind: str, name: str) -> str:
    """A short identifier: the first 16 hex digits of a keyed UID, which is a long number."""
    digits = name.removeprefix("2.25.")
    return f"{kind}{int(digits):032x}"[: len(kind) + 16] if name != digits and digits.isdigit() else kind + name


def _header(file: Path):
    """The elements that listing needs; None for a file that is not DICOM."""
    try:
        with quiet_libraries():
            with open(file, "rb") as opened:
                header = read_partial(opened, lambda tag, *_: tag > _LAST, force=True, specific_tags=_NUMBERS)
            return header if header.file_meta or "StudyInstanceUID" in header else None
    except Exception:  # pydicom raises anything on damaged headers
        return None


def _rejection_reason(file: Path) -> str:
    try:
        format_of(file)
    except Unreadable as error:
        return str(error)
    except OSError as error:
        return reason_for(error, "a DICOM image")
    return "is not DICOM, or its header is damaged: export it again"


def _scanner(header) -> str:
    """Manufacturer and model, such as "SIEMENS Aera"; "" where the header has neither."""
    return " ".join(str(header.get(keyword) or "") for keyword in ("Manufacturer", "ManufacturerModelName")).strip()


def _age(header) -> float | None:
    """The age in years: "034Y" -> 34.0; also months, weeks and days."""
    age = str(header.get("PatientAge", "")).strip()
    if not age[:-1].isdigit() or age[-1:] not in "YMWD":
        return None
    return float(age[:-1]) / {"Y": 1, "M": 12, "W": 52, "D": 365}[age[-1]]
