"""Each date of each case as a case of its own.

    >>> dates = DatedCases(load("datasets/follow_up", "test"))
    >>> dates.rows[0]["case_id"], dates.rows[0]["days"]  # in the order of the cases, the oldest date first

Decisions:
- The scans of a date have 0 days, since they are the newest of their case; `radfm.course` does the same.
- Labels are those of the whole case: what is there on which date is in the table of sizes alone.
- Cases of one date, and scans without a date, are left out.
"""

from dataclasses import replace

from radfm.cases import Scan
from radfm.data_prep.stored_cases import StoredCases


class DatedCases(StoredCases):
    """The dates of the cases of a data set; `rows` have `days`. All other attributes are as of `StoredCases`.

    Raises:
        ValueError: no case has several dates.
    """

    def __init__(self, cases: StoredCases):
        self.__dict__.update({name: value for name, value in vars(cases).items() if not name.startswith("_")})
        self.vocabulary, self._cases = cases.vocabulary, cases
        self.rows = [row for of_case in cases.rows for row in self._dates(of_case)]
        if not self.rows:
            raise ValueError(
                f"no case of {cases.folder} has scans of two dates: prepare it with dates, and with all dates of a "
                "patient as one case"
            )

    def scan(self, row: int) -> Scan:
        return replace(self._cases.scan(row), days=0.0)

    def scan_header(self, row: int) -> dict:
        return self._cases.scan_header(row) | {"days": 0.0}

    def _dates(self, row: dict) -> list[dict]:
        of_date: dict[float, list[int]] = {}
        for scan in row["scan_rows"]:
            if (days := self._cases.scan_header(scan)["days"]) is not None:
                of_date.setdefault(days, []).append(scan)
        ordered = sorted(of_date.items(), reverse=True)
        return [row | {"days": days, "scan_rows": scans} for days, scans in ordered] if len(ordered) > 1 else []
