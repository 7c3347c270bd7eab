"""A prepared data set with labels that were read later, such as from the page of `radfm select`.

    case_id,disorders,icd10cm,normal
    c-7f3a,Pneumothorax; Rib fracture,J93.9; S22.3,
    c-91b0,,,1

    radfm prepare labelled datasets/mine datasets/mine-labelled --labels labels.csv

Decisions:
- The table has the case names of the data set, so it needs neither the files nor their key.
- A row without disorders is a normal case where `normal` is 1, a case whose disorders are not named where it is 0, and
  not labelled yet where it is empty or `disorders` is "unknown": that case stays as it was.
- Pixels, masks and splits stay as they are. Grey scans that were stored as float16 are scaled once more.
- A row that cannot be used is listed in rejected.csv with its line number. Several tables: the last one counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radfm.data_prep.plan import NORMAL, CasePlan, Listing, ReadCase, Rejected, ScanOrigin
from radfm.data_prep.prepare import Settings
from radfm.data_prep.sources.rows import read_rows, split_list, with_lists
from radfm.data_prep.stored_cases import load, patient_of

_CALLED = {"case": "case_id", "disorder": "disorders", "labels": "disorders", "icd10": "icd10cm"}
_FLAGS = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False, "": None}


@dataclass(frozen=True)
class Label:
    """What a reader said of a case.

    Attributes:
        disorders: names; empty for a normal case.
        icd10cm: codes of each; an empty list is looked up by name.
        normal: False where the case may have disorders that are not named.
        line: of the table.
    """

    disorders: list[str]
    icd10cm: list[list[str]]
    normal: bool | None
    line: int


def read_labels(table: Path) -> tuple[dict[str, Label], list[Rejected]]:
    """case_id -> its label, of the rows that are filled in; and the rows that cannot be used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, or has no column case_id.
    """
    labels: dict[str, Label] = {}
    rejected, columns = [], set()
    for line, row in read_rows(table):
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        row = with_lists({_CALLED.get(name, name): value for name, value in row.items()}, ("disorders", "icd10cm"))
        columns |= row.keys()
        try:
            label, case_id = _label(row, line), str(row.get("case_id"))
            if label is not None and case_id in labels:
                raise ValueError(f"labels the same case as line {labels[case_id].line}: delete one of them")
        except ValueError as error:
            rejected.append(Rejected("row", f"line {line}", str(error)))
            continue
        if label is not None:
            labels[case_id] = label
    if columns and not {"case_id", "disorders"} <= columns:
        missing = min({"case_id", "disorders"} - columns)
        raise ValueError(f"{table} has no column {missing!r}: give a table that the page of radfm select exported")
    return labels, rejected


class Labelled:
    """See the module, and `radfm.data_prep.plan.Source`.

    Args:
        data: folder that `radfm prepare` made.
        labels: tables with labels of its cases.
    Raises:
        ValueError: the data set holds latents or samples of a generator, or no row is filled in.
    """

    name = "labelled"

    def __init__(self, data: str | Path, labels: Sequence[str | Path]):
        self.cases = load(data)
        record = self.cases.record
        if made := next((key for key in ("latents", "reconstructions", "synthetic") if key in record), None):
            raise ValueError(f"{data} holds {made}: label the data set that it was made of")
        self.labels, self.rejected = {}, []
        for table in map(Path, labels):
            of_table, unusable = read_labels(table)
            unknown = of_table.keys() - {row["case_id"] for row in self.cases.rows}
            unusable += [
                Rejected("row", f"line {label.line}", "labels a case that is not in the data set: give its table")
                for case_id, label in of_table.items()
                if case_id in unknown
            ]
            self.labels |= {case_id: label for case_id, label in of_table.items() if case_id not in unknown}
            self.rejected += unusable
        if not self.labels:
            why = f" ({self.rejected[0].name} {self.rejected[0].reason})" if self.rejected else ""
            raise ValueError(f"{', '.join(map(str, labels))}: no row labels a case of {data}{why}: fill in disorders")
        of = record["source_settings"].get("of", record["source"])
        self.settings: dict[str, Any] = {"of": of, "data": record["fingerprint"]}
        self.notice: dict[str, str] = record["notice"]

    @property
    def stored_as(self) -> Settings:
        """The settings with which the pixels stay as they are."""
        settings = self.cases.record["settings"]
        return Settings(size=settings["size"], precision=settings["precision"], seed=settings["seed"])

    def listing(self) -> Listing:
        plans = [self._plan(position) for position in range(len(self.cases))]
        listed = len(plans) + len(self.rejected)
        return Listing(plans, self.rejected, "case or label", listed, len(plans))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        for plan in plans:
            position = plan.source_data["position"]
            rows = self.cases.rows[position]["scan_rows"]
            headers = [self.cases.scan_header(row) for row in rows]
            origins = [ScanOrigin(one["modality_from"], one["plane_from"], one["text_in_pixels"]) for one in headers]
            masks = [self.cases.masks(row) for row in rows]
            yield ReadCase(self.cases[position], files=0, unread=0, origins=origins, masks=masks)

    def _plan(self, position: int) -> CasePlan:
        row = self.cases.rows[position]
        codes = {disorder.name: disorder.icd10cm for disorder in self.cases.vocabulary}
        disorders, normal = row["disorders"], row["normal"] if row["labelled"] else None
        label = self.labels.get(row["case_id"])
        given = [list(codes.get(name, [])) for name in disorders]
        if label is not None:
            disorders, normal = label.disorders, label.normal
            given = [own or list(codes.get(name, [])) for name, own in zip(disorders, label.icd10cm, strict=True)]
        facts = {name: row[name] for name in ("history", "split", "age", "sex", "publish")}
        facts |= {name: row[name] for name in ("collection", "licence", "attribution", "url")}
        facts |= {name: row.get(name) for name in ("site", "scanner", "year")}
        return CasePlan(
            case_id=row["case_id"],
            patient_id=patient_of(row),
            disorders=list(disorders),
            icd10cm=given,
            labelled=label is not None or row["labelled"],
            source_data={"position": position},
            normal=False if normal is False and not disorders else None,
            **facts,
        )


def _label(row: dict, line: int) -> Label | None:
    """The label of a row, None where it is not filled in. Raises: ValueError with the mistake and the remedy."""
    if not row.get("case_id"):
        raise ValueError("has no case_id: leave that column as radfm select wrote it")
    flag = (row.get("normal") or "").casefold()
    if flag not in _FLAGS:
        raise ValueError(f"has {row['normal']!r} for normal: write 1 or 0, or leave it empty")
    names = split_list(row.get("disorders"), once=False)
    if any(name.casefold() == "unknown" for name in names):
        return None
    disorders = [name for name in names if name.casefold() not in NORMAL]
    normal = _FLAGS[flag] if disorders or not names else True
    if normal and disorders:
        raise ValueError("has disorders and 1 for normal: correct one of them")
    if not disorders and normal is None:
        return None
    codes = split_list(row.get("icd10cm"), once=False)
    if codes and len(codes) != len(disorders):
        raise ValueError(f"has {len(codes)} codes for {len(disorders)} disorders: give one for each, or none")
    return Label(disorders, [[code] for code in codes] or [[] for _ in disorders], normal, line)
