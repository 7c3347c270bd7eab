"""The worst errors of a report, with pictures of the cases from the data set."""

from collections.abc import Mapping, Sequence

from radfm.data_prep.report_pictures import LARGE, Picture, Pictures
from radfm.data_prep.stored_cases import StoredCases
from radfm.eval.errors import Error, ranks_of
from radfm.eval.scores import Scores


def errors_with_pictures(
    errors: Mapping[str, tuple[Sequence[Error], Sequence[Error]]], tables: Mapping[str, Scores], cases: StoredCases
) -> dict[str, list[dict]]:
    """The errors of the first model with pictures: "confused", "false_alarms" -> a list.

    An item has the `error`, the row of its `case`, its number of `scans`, a `picture`, and of `others`, by model, the
    ranks that it gives to the disorder that was named and to those of the case.

    Args:
        errors: model -> confused cases, and false alarms.
        tables: model -> its table of scores.
    Raises:
        ValueError: the data set does not have the cases.
    """
    first = next(iter(errors))
    pictures, row_of = Pictures(cases.folder), {row["case_id"]: row for row in cases.rows}
    of_first = dict(zip(("confused", "false_alarms"), errors[first], strict=True))
    if missing := [error.case_id for kind in of_first.values() for error in kind if error.case_id not in row_of]:
        raise ValueError(f"{cases.folder} has no case {missing[0]}: the scores are of other data")
    others = {name: table for name, table in tables.items() if name != first}
    return {
        kind: [_with_picture(error, row_of[error.case_id], others, pictures, cases) for error in of_kind]
        for kind, of_kind in of_first.items()
    }


def _with_picture(
    error: Error, case: dict, others: Mapping[str, Scores], pictures: Pictures, cases: StoredCases
) -> dict:
    names = [error.named, *(name for name, _, _ in error.disorders)]
    return {
        "error": error,
        "case": case,
        "scans": len(case["scan_rows"]),
        "picture": _picture(pictures, cases, case["scan_rows"]),
        "others": {name: ranks_of(table, error.row, names) for name, table in others.items()},
    }


def _picture(pictures: Pictures, cases: StoredCases, scans: Sequence[int]) -> Picture:
    """Of the first scan whose key slice is known, or else of the first."""
    known = (row for row in scans if cases.scan_header(row)["key_slice"] is not None)
    return pictures.picture(next(known, scans[0]), LARGE)
