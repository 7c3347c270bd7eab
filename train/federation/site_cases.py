"""The cases of a data set that belong to one site, by a property of the cases: hospitals for a simulation.

    >>> cases = SiteCases("datasets/mine", "train", "collection", ["nih_chestxray14"])

Decisions:
- The vocabulary has the disorders of these cases and no others, as that of a hospital would.
- A case that shows several body parts or modalities belongs to no site.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from radfm.data_prep.stored_cases import StoredCases, load

PROPERTIES = ("collection", "body part", "modality")


class SiteCases(StoredCases):
    """
    Args:
        folder, split, publishable: as of `load`.
        by: one of `PROPERTIES`.
        groups: collections, body parts or modalities of the site; several for the cases of several sites.
    """

    def __init__(self, folder: str | Path, split: str, by: str, groups: Sequence[str], publishable: bool = False):
        super().__init__(folder, split, labelled=True, publishable=publishable)
        self.by, self.groups = by, tuple(groups)
        self.rows = [row for row in self.rows if group_of(self, row, by) in self.groups]
        own = {label for row in self.rows for label in row["labels"]}
        if others := [disorder.name for row, disorder in enumerate(self.vocabulary) if row not in own]:
            self._leave_out(others)

    def __getstate__(self) -> dict:
        names = ("folder", "split", "by", "groups", "publishable")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict) -> None:
        SiteCases.__init__(self, **state)


def group_of(cases: StoredCases, row: dict, by: str) -> str | None:
    """The only collection, body part or modality of a case; None where it has none, or several."""
    if by == "collection":
        return row["collection"]
    values = {cases.scan_header(scan)[by.replace(" ", "_")] for scan in row["scan_rows"]} - {None, ""}
    return values.pop() if len(values) == 1 else None


def sites_of(
    folder: str | Path, by: str, least_cases: int, publishable: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The sites that can take part, largest first, and why others cannot.

    Raises:
        ValueError: there is no such property, or there are fewer than two sites.
    """
    if by not in PROPERTIES:
        raise ValueError(f"--by {by}: use {', '.join(PROPERTIES)}")
    cases = load(folder, "train", labelled=True, publishable=publishable)
    labels: dict[str, Counter] = {}
    for row in cases.rows:
        if (group := group_of(cases, row, by)) is not None:
            labels.setdefault(group, Counter())[tuple(row["labels"])] += 1
    left_out = {}
    for name, kinds in labels.items():
        if len(kinds) == 1:
            left_out[name] = "all its training cases have the same labels: there is one class"
        elif kinds.total() < least_cases:
            left_out[name] = f"{kinds.total()} training cases are fewer than {least_cases}"
    sites = sorted(labels.keys() - left_out.keys(), key=lambda name: (-labels[name].total(), name))
    if len(sites) < 2:
        raise ValueError(
            f"{folder} has {len(sites)} of at least two sites by {by}, with {least_cases} training cases of several "
            "kinds: choose another --by, or lower --least-cases"
        )
    return sites, left_out
