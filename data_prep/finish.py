"""Finishes a data set once all shards are written: splits, labels, vocabulary, duplicates, counts, card and report.

Decisions:
- Everything follows from the records of the shards, in their order, so that finishing twice writes the same bytes.
- Every case, file and scan must be in the data set or in rejected.csv. They are counted where they are read, where they
  are written, and in the written files, and the counts must agree.
- dataset.json is written last, and marks the data set as complete.
"""

import csv
import io
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from radfm.data_prep.duplicates import duplicate_groups
from radfm.data_prep.pictures import grey_slice, representative_slice
from radfm.data_prep.plan import SPLITS, Listing, MarkedSource, Rejected, Source
from radfm.data_prep.shard import WORK, record_file
from radfm.data_prep.splits import assign_splits, official_splits
from radfm.data_prep.tables import (
    FORMAT,
    RECORD,
    StoredScans,
    count_rows,
    describe,
    has_table,
    remove_abandoned_drafts,
    write_rows,
    write_text,
)
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Coding, Disorder, Vocabulary


def finish(out: Path, shards: int, source: Source, settings: dict, listing: Listing, fingerprint: str) -> dict:
    """Writes everything except the scans, and returns the content of dataset.json.

    Raises:
        AssertionError: two counts of the same thing differ.
        ValueError: no case has a usable scan. Only rejected.csv is written then.
    """
    records = [json.loads(record_file(out, i).read_text(encoding="utf-8")) for i in range(shards)]
    cases = [case for record in records for case in record["cases"]]
    scans = [scan for record in records for scan in record["scans"]]
    rejected = [rejection_fields(one) for one in listing.rejected]
    rejected += [one for record in records for one in record["rejected"]]
    _check_cases(out, cases, rejected)
    _unify_spelling(cases)
    vocabulary, unknown_codes = vocabulary_of(cases)
    split_of, several = _splits(cases, settings)
    rows = _case_rows(cases, vocabulary, split_of, source.notice)
    write_rows(out, "cases", rows)
    duplicates = _duplicates(rows, scans, StoredScans(out, [len(record["scans"]) for record in records]))
    _write_csv(out / "duplicates.csv", ["group", "across_splits", "case_id", "patient_id", "split", "scan"], duplicates)
    _write_warnings(out / "warnings.csv", rows, scans)
    vocabulary.save(out)
    tables = ["cases", "scans", *(table for table in ("truth", "sizes") if has_table(out, table))]
    for table in tables:
        describe(out, table, fingerprint)
    write_text(out / "dataset_dict.json", json.dumps({"splits": tables}) + "\n")
    counts = _counts(records, listing, out, shards, len(rows))
    record = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "source": source.name,
        "source_settings": source.settings,
        "settings": settings,
        "shards": shards,
        "scans_per_shard": [len(record["scans"]) for record in records],
        "tables": tables,
        "counts": counts,
        "splits": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "disorders": len(vocabulary),
        "patients_in_several_official_splits": several,
        "codes_not_in_icd10cm": unknown_codes,
        "names_left_out": [list(pair) for pair in vocabulary.skipped],
        "scans_with_warnings": sum(bool(scan["warnings"]) for scan in scans),
        "text_in_pixels": sum(scan["text_in_pixels"] is not None for scan in scans),
        "groups_of_duplicates_across_splits": len({line[0] for line in duplicates if line[1]}),
        "notice": source.notice,
        **(source.entries(listing, rejected) if isinstance(source, MarkedSource) else {}),
    }
    remove_abandoned_drafts(out)
    _write_report(out, record, rows, scans, rejected, duplicates, vocabulary)
    write_text(out / RECORD, json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    shutil.rmtree(out / WORK, ignore_errors=True)
    return record


def _check_cases(out: Path, cases: list[dict], rejected: list[dict]) -> None:
    """Writes rejected.csv. Raises: ValueError: there is no case in the data set."""
    columns = ["what", "name", "case_id", "reason"]
    _write_csv(out / "rejected.csv", columns, [[one[column] for column in columns] for one in rejected])
    if not cases:
        reasons = Counter(f"a {one['what']} {one['reason']}" for one in rejected if one["what"] != "case")
        most = f", most often because {reasons.most_common(1)[0][0]}" if reasons else ""
        raise ValueError(f"no case has a usable scan{most} ({out / 'rejected.csv'} has all reasons)")


def _write_warnings(path: Path, rows: list[dict], scans: list[dict]) -> None:
    case_of = [row["case_id"] for row in rows for _ in row["scan_rows"]]
    lines = [
        [case_of[row], row, scan["source"], sentence] for row, scan in enumerate(scans) for sentence in scan["warnings"]
    ]
    _write_csv(path, ["case_id", "scan", "source", "warning"], lines)


def rejection_fields(rejected: Rejected) -> dict:
    return {name: getattr(rejected, name) for name in ("what", "name", "reason", "case_id")}


def _unify_spelling(cases: list[dict]) -> None:
    """Names that differ in capitals and spaces only are one disorder, in its most frequent spelling."""
    counts = Counter(name for case in cases for name in case["disorders"])
    spelling: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        spelling.setdefault(_normalised(name), name)
    for case in cases:
        case["disorders"] = [spelling[_normalised(name)] for name in case["disorders"]]


def _normalised(name: str) -> str:
    return " ".join(name.casefold().split())


def vocabulary_of(cases: list[dict]) -> tuple[Vocabulary, list[str]]:
    """The disorders of all cases, the most frequent first, and given codes that are not in ICD-10-CM."""
    counts = Counter(name for case in cases for name in set(case["disorders"]))
    given: dict[str, set[str]] = defaultdict(set)
    unknown = set()
    for case in cases:
        for name, codes in zip(case["disorders"], case["icd10cm"] or [[]] * len(case["disorders"]), strict=True):
            for code in codes:
                try:
                    known = icd10cm.normalise(code)
                except ValueError:
                    unknown.add(code)
                else:
                    given[name].add(known)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    linked = {disorder.name: disorder for disorder in Vocabulary.from_names([n for n in names if n not in given])}
    disorders = [
        Disorder(name, codings=tuple(Coding(code, 1.0, "given") for code in sorted(given[name])))
        if name in given
        else linked.get(name) or Disorder(name)
        for name in names
    ]
    return Vocabulary(disorders), sorted(unknown)


def _splits(cases: list[dict], settings: dict) -> tuple[dict[str, tuple[str, str]], int]:
    """Patient -> (split, "source" or "drawn"), and the number of patients that were in several official splits."""
    labels: dict[str, set] = defaultdict(set)
    official: dict[str, set] = defaultdict(set)
    for case in cases:
        labels[case["patient_id"]].update(case["disorders"])
        if case["split"]:
            official[case["patient_id"]].add(case["split"])
    kept, several = official_splits(official)
    disorders = {patient: sorted(names) for patient, names in labels.items()}
    split_of = assign_splits(disorders, kept, settings["fractions"], settings["seed"])
    return {p: (split, "source" if p in kept else "drawn") for p, split in split_of.items()}, len(several)


def _case_rows(cases: list[dict], vocabulary: Vocabulary, split_of: dict, notice: dict[str, str]) -> list[dict]:
    row_of = {disorder.name: i for i, disorder in enumerate(vocabulary)}
    rows, first = [], 0
    for case in cases:
        names = list(dict.fromkeys(name for name in case["disorders"] if name in row_of))
        split, origin = split_of[case["patient_id"]]
        codes = list(dict.fromkeys(code for name in names for code in vocabulary[row_of[name]].icd10cm))
        labelled = case["labelled"] and (bool(names) or not case["disorders"])
        rows.append(
            {
                "case_id": case["case_id"],
                "patient_id": case["patient_id"],
                "scan_rows": list(range(first, first + case["scans"])),
                "disorders": names,
                "labels": [row_of[name] for name in names],
                "icd10cm": codes,
                "labelled": labelled,
                "history": case["history"],
                "age": case["age"],
                "sex": case["sex"],
                "split": split,
                "split_from": origin,
                "normal": labelled and not names and case["normal"] is not False,
                "collection": case["collection"],
                "licence": case["licence"] or notice.get("licence"),
                "attribution": case["attribution"] or notice.get("citation"),
                "url": case["url"],
                "publish": case["publish"],
                "site": case["site"],
                "scanner": case["scanner"],
                "year": case["year"],
            }
        )
        first += case["scans"]
    return rows


def _duplicates(rows: list[dict], scans: list[dict], stored: StoredScans) -> list[list]:
    """Lines of duplicates.csv: copies of one picture under several patients."""
    case_of = [row for row in rows for _ in row["scan_rows"]]
    lines, number = [], 0

    def picture_of(row: int) -> np.ndarray:
        scan = stored[row]
        return grey_slice(scan, representative_slice(scan))

    for group in duplicate_groups([scan["image_fingerprint"] for scan in scans], picture_of):
        cases = [case_of[scan] for scan in group]
        if len({case["patient_id"] for case in cases}) < 2:
            continue
        number += 1
        across = len({case["split"] for case in cases}) > 1
        lines += [
            [number, int(across), case["case_id"], case["patient_id"], case["split"], scan]
            for case, scan in zip(cases, group, strict=True)
        ]
    return lines


def _write_csv(path: Path, columns: list[str], lines: list[list]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(lines)
    write_text(path, text.getvalue())


def _counts(records, listing: Listing, out: Path, shards: int, cases: int) -> dict:
    counts = {kind: Counter() for kind in ("cases", "files", "scans")}
    for record in records:
        for kind, of_shard in record["counts"].items():
            counts[kind].update(of_shard)
    listed = Counter(one["what"] for record in records for one in record["rejected"])
    written = sum(count_rows(out, "scans", shard) for shard in range(shards))
    checks = {
        "planned and read cases": (len(listing.plans), counts["cases"]["in"]),
        "read and written cases": (counts["cases"]["out"], cases),
        "read and written scans": (counts["scans"]["out"], written),
        "rejected and listed cases": (counts["cases"]["rejected"], listed["case"]),
        "rejected and listed scans": (counts["scans"]["rejected"], listed["scan"]),
    }
    for kind, count in counts.items():
        checks[f"{kind} in, and {kind} out or rejected"] = (count["in"], count["out"] + count["rejected"])
    for what, (first, second) in checks.items():
        if first != second:
            raise AssertionError(f"{what} differ, {first} and {second}: the data set is incomplete, prepare it again")
    result = {kind: dict(count) for kind, count in counts.items()}
    result["listed"] = {"unit": listing.unit, "in": listing.listed, "out": listing.planned,
                        "rejected": len(listing.rejected)}  # fmt: skip
    return result


def _write_report(out, record, rows, scans, rejected, duplicates, vocabulary) -> None:
    from radfm.data_prep.card import write_card
    from radfm.data_prep.report import write_report

    write_report(out, record, rows, scans, rejected, duplicates, vocabulary)
    write_card(out, record, rows, scans, vocabulary)
