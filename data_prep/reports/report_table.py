"""Reads a table of reports: CSV or JSON Lines with one row for each report, or for each part of one.

    accession,report
    A1,"FINDINGS: Small left pleural effusion. ..."

Decisions:
- A report is named by study or accession number, as `radfm prepare dicom --labels` looks for, or by `--id-column`.
- The text is one column, or columns named after sections (findings, impression, ...), which are joined.
- Rows with the same number and other text are one report: an addendum. A row that repeats another one is left out.
- Rows that cannot be used are listed with the reason. A table of which most reports are not English is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from radfm.data_prep.plan import Rejected
from radfm.data_prep.reports.language import other_language
from radfm.data_prep.reports.rules import SECTIONS
from radfm.data_prep.sources.dicom import NUMBER_COLUMNS
from radfm.data_prep.sources.rows import read_rows

TEXT_COLUMNS = ("report", "text", "report_text", "report text")
LONGEST_REPORT = 50_000  # characters
_LONGEST_COLUMN = 30  # characters of its name


@dataclass
class Report:
    """
    Attributes:
        number: by which the report is named.
        texts: of its rows.
        kept: columns that the labels repeat: numbers of the study, and the split.
    """

    number: str
    texts: list[str]
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n\n".join(self.texts)


def read_reports(
    table: Path, id_column: str | None = None, text_column: str | None = None
) -> tuple[list[Report], list[Rejected]]:
    """The reports of a table, and the rows that were left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, lacks a column, holds no report, or most of its reports are not English.
    """
    reports: dict[str, Report] = {}
    rejected, languages = [], []
    rows = list(read_rows(table))
    columns = dict.fromkeys((name for _, row in rows if not isinstance(row, Rejected) for name in row), "")
    for line, row in rows:
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        cells = columns | {name: str(value) for name, value in row.items()}
        number_column = _column(table, cells, id_column, NUMBER_COLUMNS, "--id-column")
        number, text = cells[number_column], _text(table, cells, text_column)
        language = other_language(text)
        if reason := _problem(number, text, language) or _repeats(reports.get(number), text):
            rejected.append(Rejected("row", f"line {line}", reason))
            languages += [language] * bool(language)
        elif number in reports:
            reports[number].texts.append(text)
        else:
            kept = {name: value for name, value in cells.items() if name in (*NUMBER_COLUMNS, "split", number_column)}
            reports[number] = Report(number, [text], kept)
    if len(languages) > len(reports):
        most = max(languages, key=languages.count)
        raise ValueError(f"{table}: {len(languages):,} reports are not in English ({most}): translate them first")
    if not reports:
        reason = f", {rejected[0].name} {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{table} holds no report that can be read{reason}")
    return list(reports.values()), rejected


def _column(table: Path, row: dict[str, str], wanted: str | None, possible: Iterable[str], option: str) -> str:
    names = [wanted.strip().lower()] if wanted else possible
    column = next((name for name in names if name in row), None)
    if column is None:
        what = repr(wanted) if wanted else " or ".join(map(repr, list(possible)[:2]))
        if max(map(len, row), default=0) > _LONGEST_COLUMN:  # a report, which may name a patient
            raise ValueError(f"{table} has no header: write the names of its columns into the first line")
        raise ValueError(f"{table} has no column {what}, only {', '.join(row)}: name one with {option}")
    return column


def _text(table: Path, row: dict[str, str], wanted: str | None) -> str:
    sections = [name for name in row if name in SECTIONS and row[name]]
    if wanted is None and not any(name in row for name in TEXT_COLUMNS) and any(name in row for name in SECTIONS):
        return "\n".join(f"{name.upper()}: {row[name]}" for name in sections)
    return row[_column(table, row, wanted, TEXT_COLUMNS, "--text-column")]


def _problem(number: str, text: str, language: str | None) -> str | None:
    if not number:
        return "has no number of a study or report: fill it in"
    if not text.strip():
        return "has no text: leave the row out, or fill it in"
    if len(text) > LONGEST_REPORT:
        return f"has a text of {len(text):,} characters, and a report at most {LONGEST_REPORT:,}: one row is one report"
    return f"is not in English ({language}): translate it, or leave it out" if language else None


def _repeats(known: Report | None, text: str) -> str | None:
    return "repeats a report that came before: leave it out" if known and text in known.texts else None
