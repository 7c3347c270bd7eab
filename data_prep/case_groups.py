"""Groups of cases: by what the tables of a data set say of them, for subgroups, sites and conditions.

    >>> groups = case_groups(cases.rows, cases.scan_header)
    >>> np.flatnonzero(meets(groups, "collection!=medpix"))

Decisions:
- A case has a list of groups of each attribute, as it may have scans of two modalities; it is empty where nothing is
  known. Such a case meets "sex!=F".
- The names of the attributes are those of `radfm evaluate --within` and `--where`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Groups = Mapping[str, list[list[str]]]  # attribute -> (cases,) lists of groups

AGES = {18: "0 to 17", 40: "18 to 39", 65: "40 to 64", 200: "65 and more"}  # upper limit in years -> group
_MOST_FOLDERS = 30
_MOST_NAMED = 20
_SCAN_GROUPS = {2: "1", 3: "2", 5: "3 or 4", 10**9: "5 and more"}  # fewer scans than -> name


def age_group(years: float) -> str:
    """The group of an age, such as "40 to 64"."""
    return next(name for below, name in AGES.items() if years < below)


def case_groups(rows: Sequence[dict], scan_header: Callable[[int], dict]) -> dict[str, list[list[str]]]:
    """Attribute -> the groups of each case.

    Args:
        rows: rows of the table of cases.
        scan_header: from the row of a scan to its columns, see `StoredCases.scan_header`.
    """

    def of_column(name: str) -> list[list[str]]:
        return [[str(row[name])] if row[name] else [] for row in rows]

    headers = [[scan_header(scan) for scan in row["scan_rows"]] for row in rows]
    return {
        "modality": [sorted({scan["modality"] for scan in scans if scan["modality"]}) for scans in headers],
        "body part": [sorted({scan["body_part"] for scan in scans if scan["body_part"]}) for scans in headers],
        "scans": [[next(name for below, name in _SCAN_GROUPS.items() if len(scans) < below)] for scans in headers],
        "folder": _folders(headers),
        "collection": of_column("collection"),
        "age": [[] if row["age"] is None else [age_group(row["age"])] for row in rows],
        **{name: of_column(name) for name in ("sex", "site", "scanner", "year")},
    }


def groups_of(groups: Groups, attribute: str) -> list[list[str]]:
    """(cases,) lists of the groups of an attribute. Raises: ValueError where there is no such attribute."""
    if attribute not in groups:
        raise ValueError(f"there is no attribute {attribute!r}: there are {', '.join(groups) or 'none'}")
    return groups[attribute]


def meets(groups: Groups, condition: str) -> np.ndarray:
    """(cases,) bool: whether a case meets a condition such as "collection=medpix" or "scans!=1".

    Raises:
        ValueError: a condition that is not written like this, an unknown attribute or group.
    """
    attribute, equals, group = condition.partition("=")
    if not equals:
        raise ValueError(f'{condition!r} is no condition: write "collection=NAME" or "scans!=1"')
    of_cases = groups_of(groups, attribute.removesuffix("!").strip())
    known, group = sorted({name for of_case in of_cases for name in of_case}), group.strip()
    if group not in known:
        raise ValueError(f"{condition!r}: there is no {group!r}, there are {_listed(known) or 'no groups'}")
    return np.array([group in of_case for of_case in of_cases]) != attribute.endswith("!")


def _folders(headers: list[list[dict]]) -> list[list[str]]:
    """The first folder of a case's files, if there are few: the sources that a data set was put together from."""
    folders = [sorted({scan["source"].split("/")[0] for scan in scans if "/" in scan["source"]}) for scans in headers]
    few = len({folder for of_case in folders for folder in of_case}) <= _MOST_FOLDERS
    return folders if few else [[] for _ in headers]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
