"""Reads tables row by row with line numbers: CSV as saved by any spreadsheet program, or JSON Lines.

Decisions:
- The separator is the most frequent one of comma, semicolon and tab in the header, because some spreadsheet programs
  write semicolons.
- Characters that no text can hold (a lone "\\ud800" in JSON) become question marks.
- A row that cannot be read becomes a `Rejected`, and reading continues with the next row.
"""

import csv
import json
from collections.abc import Collection, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from radfm.data_prep.plan import Rejected

JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str | list] | Rejected]]:
    """(line number, row) of each row that is not empty; names of columns in lower case, values stripped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not text, or has no header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8, or as JSON Lines") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give the table itself") from None
    if "\0" in text:
        raise ValueError(f"{path} holds NUL characters, so it is no text: save it as CSV UTF-8")
    yield from _json_rows(text) if path.suffix.lower() in JSON_LINES else _csv_rows(path, text)


def split_list(value: str | list | None, once: bool = True) -> list[str]:
    """ "Pneumonia; Rib fracture" or a JSON list -> names; `once` leaves out those that occurred before."""
    parts = value if isinstance(value, list) else (value or "").split(";")
    names = [name for name in (" ".join(str(part).split()) for part in parts) if name]
    return list(dict.fromkeys(names)) if once else names


def with_lists(row: dict[str, str | list], columns: Collection[str]) -> dict[str, Any]:
    """The row with JSON lists in these columns only; elsewhere a list becomes its text, for the messages of checks."""
    return {name: value if name in columns else str(value) for name, value in row.items()}


def parse_year(text: str | None) -> int | None:
    """ "2024" -> 2024; None where there is no text. Raises: ValueError for anything that is no year."""
    if not text:
        return None
    if not (text.isdigit() and 1895 <= int(text) <= 2200):
        raise ValueError(f"has the year {text!r}: write it as 2024, without day and month")
    return int(text)


def _csv_rows(path: Path, text: str):
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell that is too long would be split into rows
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    columns: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield line, Rejected("row", f"line {line}", f"cannot be read ({error}): check its quotes")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = [cell.strip().lower() for cell in cells]
            if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
                raise ValueError(f"{path} has two columns called {twice[0]!r}: rename one")
        elif len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
            reason = (
                f"has {len(cells)} cells, and the header {len(columns)}: put text that holds {delimiter!r} in quotes"
            )
            yield line, Rejected("row", f"line {line}", reason)
        else:
            yield line, {name: cell.strip() for name, cell in zip(columns, cells, strict=False)}
    if columns is None:
        raise ValueError(f"{path} is empty: its first line names the columns")


def _json_rows(text: str):
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace"))
            if not isinstance(row, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            reason = str(error).split(": line")[0]
            yield line, Rejected("row", f"line {line}", f"is no JSON object ({reason}): write one object per line")
            continue
        yield line, {str(k).lower(): v if isinstance(v, list) else "" if v is None else str(v) for k, v in row.items()}
