"""What `radfm select` writes: a table, and a page that a radiologist reads and fills in without a network.

    write_selection(select("datasets/mine", "runs/mine", budget=50), Path("next.csv"))  # and next.html

Decisions:
- The page is one file that loads nothing. What is filled in is kept by the browser, and exported as a table that
  `radfm prepare labelled` reads.
- What the model suggests is closed until it is opened, because a reader who sees it first tends to agree with it.
- Known masks are not drawn: they would give the answer away.
- Of a case with many scans the page shows the first; the table has their number.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radfm.cli.console import DISCLAIMER
from radfm.data_prep.pages import environment
from radfm.data_prep.report_pictures import LARGE, Pictures
from radfm.data_prep.tables import write_text
from radfm.eval.selection_pool import Selection

MOST_SCANS = 4  # of a case on the page
COLUMNS = ("case_id", "disorders", "icd10cm", "normal", "comment")  # that the page exports
_FACTS = ("order", "patient_id", "modalities", "body_parts", "scans", "slices", "suggestions")


def write_selection(selection: Selection, out: Path) -> Path:
    """Writes the table, and the page beside it, with the ending .html. Returns the path of the page."""
    cases = [_case(selection, number) for number in range(len(selection.rows))]
    text = io.StringIO()
    table = csv.DictWriter(text, [*COLUMNS, *_FACTS], restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for case in cases:
        words = {key: "; ".join(case[key]) for key in ("modalities", "body_parts")}
        suggested = "; ".join(f"{name} {probability:.2f}" for name, probability in case["suggestions"])
        table.writerow(case | words | {"suggestions": suggested})
    write_text(out, text.getvalue())
    page = out.with_suffix(".html")
    write_text(page, _page(selection, cases))
    return page


def _case(selection: Selection, number: int) -> dict[str, Any]:
    row = selection.cases.rows[selection.rows[number]]
    headers = [selection.cases.scan_header(scan) for scan in row["scan_rows"]]
    return {
        "order": number + 1,
        **{name: row[name] for name in ("case_id", "patient_id", "history", "age", "sex", "scan_rows")},
        "modalities": _known(headers, "modality"),
        "body_parts": _known(headers, "body_part"),
        "scans": len(headers),
        "slices": sum(header["shape"][0] for header in headers),
        "suggestions": selection.suggestions[number],
    }


def _known(headers: Sequence[dict], name: str) -> list[str]:
    return sorted({header[name] for header in headers if header[name]})


def _page(selection: Selection, cases: list[dict]) -> str:
    pictures = Pictures(selection.cases.folder)
    ids = "\n".join([selection.facts["data"], *(case["case_id"] for case in cases)])
    page = (
        environment("radfm.eval")
        .get_template("reading_list.html")
        .render(
            facts=selection.facts,
            cases=[
                case
                | {"pictures": [pictures.picture(row, LARGE, outlined=False) for row in case["scan_rows"][:MOST_SCANS]]}
                for case in cases
            ],
            names=sorted(selection.names, key=str.casefold),
            content={"key": f"radfm {hashlib.sha256(ids.encode()).hexdigest()[:16]}", "columns": COLUMNS},
            disclaimer=DISCLAIMER,
            version=version("radfm"),
        )
    )
    return page.rstrip() + "\n"
