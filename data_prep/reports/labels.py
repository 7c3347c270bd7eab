"""Writes what reports say as tables: labels for `radfm prepare dicom --labels`, and the evidence of each label.

    LABELS.csv              one row for each report: disorders that are present, codes, history, the other statuses
    LABELS_evidence.csv     one row for each report, disorder and status: the sentence, and what to check
    LABELS_rejected.csv     rows of the table that were left out, with the reason
    LABELS.html             the counts, and the doubtful for a person

Decisions:
- A disorder that is uncertain is no label, and its report is not normal. Only a report that calls the study normal is.
- Codes are written where all disorders of a report have one; otherwise `prepare` looks them up by name.
- Dates, long numbers and names after a title are removed from sentences and histories. Names elsewhere in the text are
  not recognised, and the numbers of the studies are needed: keep the files where the reports are.
- A corrected table decides for each report and disorder in it. The status "none" removes a finding.
"""

import csv
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from radfm.data_prep.plan import Rejected
from radfm.data_prep.reports.reading import Finding, ReportReader
from radfm.data_prep.reports.report_table import Report
from radfm.data_prep.reports.rules import STATUSES
from radfm.data_prep.sources.rows import read_rows
from radfm.data_prep.tables import replacing
from radfm.progress import Progress

EVIDENCE = ("report", "disorder", "status", "sentence", "section", "icd10cm", "confidence", "check")
NONE = "none"  # status of a finding that a person removes
_LEAST = 0.85  # confidence of a finding that needs no check
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_IDENTIFIERS = re.compile(
    r"\b(?:(?i:dr)\b\.?\s+[A-Za-z]|(?i:mr|mrs|ms|prof|professor|doctor)\b\.?\s+[A-Z])[\w'’-]+(?:\s+[A-Z][\w'’-]+)?"
    r"|\b(?i:mrn|accession|patient id)\b\W*\w+"
    r"|\b\d{3}[-. ]\d{3}[-. ]\d{4}\b"
    rf"|\b(?i:{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})\b"
    r"|\b\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b|\b[A-Z]{0,3}\d{6,}\b"
    rf"|\b(?i:\d{{1,2}}\s+{_MONTH}\s+\d{{4}})\b"
)


@dataclass
class Labels:
    """The findings of a report.

    Attributes:
        normal: whether the report calls the study normal.
    """

    report: Report
    findings: list[Finding]
    history: str
    normal: bool

    def names(self, status: str) -> list[str]:
        return [finding.disorder for finding in self.findings if finding.status == status]


def label(reader: ReportReader, reports: Sequence[Report], progress: Progress = lambda done, total: None):
    """The labels of reports, as a list of `Labels`."""
    labelled = []
    for done, report in enumerate(reports, 1):
        findings = [replace(f, sentence=without_identifiers(f.sentence)) for f in reader.read(report.text)]
        history = without_identifiers(reader.history(report.text))
        labelled.append(Labels(report, findings, history, reader.is_normal(report.text, findings)))
        progress(done, len(reports))
    return labelled


def correct(labels: Sequence[Labels], file: Path, disorders: Collection[str]) -> int:
    """Replaces findings by those of a corrected table, which has the columns report, disorder and status.

    A column `was`, as the page writes it, names the status of the one finding that a row replaces; without it the rows
    of a report and disorder replace all its findings.

    Returns the number of its rows.
    Raises:
        ValueError: a row names an unknown report, disorder or status.
    """
    by_number = {one.report.number: one for one in labels}
    corrected: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line, row in read_rows(file):
        if isinstance(row, Rejected):
            raise ValueError(f"{file}, {row.name} {row.reason}")
        cells = {name: str(value) for name, value in row.items()}
        if missing := {"report", "disorder", "status"} - cells.keys():
            raise ValueError(f"{file} has no column {sorted(missing)[0]!r}: correct LABELS_evidence.csv, or the page")
        if cells["report"] not in by_number:
            raise ValueError(f"{file}, line {line}: no report has the number {cells['report']}: delete the row")
        if cells["status"] not in (*STATUSES, NONE):
            raise ValueError(
                f"{file}, line {line}: no such status: {cells['status']!r}; there are {', '.join((*STATUSES, NONE))}"
            )
        if cells["disorder"] not in disorders:
            raise ValueError(
                f"{file}, line {line}: {cells['disorder']!r} is not in the vocabulary: write the name as it is there"
            )
        corrected.setdefault((cells["report"], cells["disorder"]), []).append(cells)
    for (number, disorder), rows in corrected.items():
        one = by_number[number]
        before = next((f for f in one.findings if f.disorder == disorder), Finding(disorder, NONE, "", "", "", 1.0))
        given = [replace(before, status=row["status"], confidence=1.0, contradicted=False) for row in rows]
        replaced = {row.get("was") for row in rows}
        kept = [f for f in one.findings if f.disorder != disorder or not ({f.status, None, ""} & replaced)]
        one.findings = kept + [f for f in given if f.status != NONE]
        one.normal = one.normal and not (one.names("present") or one.names("uncertain"))
    return sum(map(len, corrected.values()))


def write_labels(file: Path, labels: Sequence[Labels]) -> None:
    """Writes LABELS.csv."""
    kept = list(dict.fromkeys(name for one in labels for name in one.report.kept))
    columns = [*kept, "disorders", "icd10cm", "history", "normal", *STATUSES[1:]]
    with _table(file, columns) as row:
        for one in labels:
            present = [finding for finding in one.findings if finding.status == "present"]
            codes = [finding.icd10cm for finding in present]
            disorders, *others = ("; ".join(one.names(status)) for status in STATUSES)
            numbers = (one.report.kept.get(name, "") for name in kept)
            coded = "; ".join(codes) if all(codes) else ""
            row([*numbers, disorders, coded, one.history, int(one.normal), *others])


def write_evidence(file: Path, labels: Sequence[Labels]) -> None:
    """Writes LABELS_evidence.csv."""
    with _table(file, EVIDENCE) as row:
        for one in labels:
            for f in one.findings:
                row([one.report.number, f.disorder, f.status, f.sentence, f.section, f.icd10cm, f.confidence, check(f)])


def write_rejected(file: Path, rejected: Sequence[Rejected]) -> None:
    """Writes LABELS_rejected.csv."""
    with _table(file, ("what", "name", "reason")) as row:
        for one in rejected:
            row([one.what, one.name, one.reason])


def check(finding: Finding) -> str:
    """Why a person should look at a finding; "" where there is no need."""
    if finding.contradicted:
        return "contradicted"
    if finding.status == "uncertain" and finding.confidence < 1:
        return "uncertain"
    return "disorder" if finding.confidence < _LEAST else ""


def without_identifiers(text: str) -> str:
    """The text without dates, times, long numbers, and names after a title."""
    return _IDENTIFIERS.sub("…", text)


@contextmanager
def _table(file: Path, columns: Sequence[str]) -> Iterator[Callable]:
    """A CSV file that is complete or not there; yields a function that writes a row."""
    with replacing(file) as draft, open(draft, "w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(columns)
        yield table.writerow
