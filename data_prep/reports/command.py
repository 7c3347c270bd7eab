"""The command `radfm prepare reports REPORTS LABELS`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import Json, needs, step

if TYPE_CHECKING:
    from radfm.knowledge.disorders import Vocabulary


@needs("reports")
def reports(
    table: Annotated[Path, typer.Argument(metavar="REPORTS", help="CSV or JSON Lines, one row per report.")],
    out: Annotated[Path, typer.Argument(metavar="LABELS", help="CSV to write, for radfm prepare dicom --labels.")],
    vocabulary: Annotated[
        str, typer.Option(metavar="MODEL|FILE", help="A checkpoint, a data set, or a file with one disorder per line.")
    ],
    rules: Annotated[
        Path | None, typer.Option(help="CSV of further rules: rule, value, phrase, unless, needs.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: study or accession.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Default: report, or findings, impression, ...")] = None,
    corrected: Annotated[
        Path | None, typer.Option(help="Corrected findings: from the page, or an edited table of evidence.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Labels from radiology reports.

    Which disorders are present, absent, uncertain, historical or of the family, with the sentence that says so.

    Example: radfm prepare reports reports.csv labels.csv --vocabulary disorders.txt
    """
    from radfm.data_prep.reports import labels as tables
    from radfm.data_prep.reports.page import write_page
    from radfm.data_prep.reports.reading import ReportReader
    from radfm.data_prep.reports.report_table import read_reports
    from radfm.presentation import plural

    if out.suffix.lower() != ".csv":
        raise ValueError(f"{out}: LABELS is a CSV to write, give it a name such as labels.csv")
    read, rejected = read_reports(table, id_column, text_column)
    with step(f"Loading {vocabulary}"):
        disorders = _vocabulary(vocabulary)
        reader = ReportReader(disorders, rules)
    with step(f"Reading {len(read):,} reports") as progress:
        labelled = tables.label(reader, read, progress)
    corrections = 0 if corrected is None else tables.correct(labelled, corrected, disorders.names)
    beside = {kind: out.with_name(f"{out.stem}_{kind}.csv") for kind in ("evidence", "rejected")}
    tables.write_labels(out, labelled)
    tables.write_evidence(beside["evidence"], labelled)
    tables.write_rejected(beside["rejected"], rejected)
    page = out.with_suffix(".html")
    write_page(page, labelled, rejected, disorders, beside["evidence"].name)
    statuses = [finding.status for one in labelled for finding in one.findings]
    to_check = sum(bool(tables.check(finding)) for one in labelled for finding in one.findings)
    summary = {
        "reports": len(labelled),
        "rejected": len(rejected),
        "corrected": corrections,
        "normal": sum(one.normal for one in labelled),
        "to_check": to_check,
        "findings": {status: statuses.count(status) for status in tables.STATUSES},
    }
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    counts = ", ".join(f"{statuses.count(status):,} {status}" for status in tables.STATUSES)
    print(f"{out}: {plural(len(labelled), 'report')}; {counts}")
    if rejected:
        print(f"Rejected: {plural(len(rejected), 'row')}; see {beside['rejected'].name} for the reasons")
    print(f"Look at {page}: {plural(to_check, 'finding')} to check")


def _vocabulary(source: str) -> "Vocabulary":
    """The disorders of a checkpoint or a data set with their codes, or those of a file of names."""
    from radfm.checkpoints import find
    from radfm.cli.name_files import read_names
    from radfm.knowledge.disorders import FILE, Coding, Vocabulary

    path = Path(source)
    if path.is_file():
        return Vocabulary.from_names(read_names(path))
    if (path / FILE).is_file():
        return Vocabulary.load(path)
    from radfm import RadFMConfig

    config = RadFMConfig.from_pretrained(find(source))
    if not config.disorders:
        raise ValueError(f"{source} has no vocabulary: give a file with one disorder per line")
    linked = Vocabulary.from_names(config.disorders)
    given = dict(zip(config.disorders, config.icd10cm, strict=False))
    return Vocabulary(
        replace(one, codings=(*(Coding(code, 1.0, "given") for code in given.get(one.name, ())), *one.codings))
        for one in linked
    )
