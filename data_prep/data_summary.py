"""A summary of a data set that may go wherever a model goes that was trained on it: origin, licence and numbers.

Decisions:
- It holds counts only, and names no case, patient, file or folder.
- It describes the cases that a model was trained on, not the whole data set.
- Synthetic cases that were added to it are counted apart: they are no patients.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from radfm.data_prep.case_groups import AGES, age_group
from radfm.data_prep.counts import UNKNOWN, count
from radfm.data_prep.stored_cases import StoredCases


def data_summary(cases: StoredCases, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """Origin, licence and counts of training data.

    Args:
        cases: cases of one split.
        rows: indices of the cases that a model was trained on; None: all.
    Returns:
        A JSON-able dictionary: `title`, `source`, `licence`, `citation` (None where the source states none) and
        `fingerprint` of the whole data set; `attributions`, see below; the counts `collections` (that the source
        names), `patients`, `cases`, `normal`,
        `unpublishable` (cases that a published model must not learn from), `scans`, `slices`, and `disorders` that
        occur; `modalities` and `body_parts` (name -> scans), `ages` and `sexes` (group -> patients), including "not
        stated"; of samples of a generator, and of what was made of synthetic
        cases, `synthetic`: the generator's fingerprint, or "phantoms"; with added synthetic cases
        `added_synthetic`, for each of their data sets: `title`, `fingerprint` and the number of `cases`. All but these
        and `attributions` is of the data set without them.
    """
    real, *synthetic = cases.parts
    learned = range(len(cases)) if rows is None else rows
    chosen = [cases.rows[row] for row in learned if row < len(real)]
    scans = {row: _scan(cases.scan_header(row)) for case in chosen for row in case["scan_rows"]}
    counts = count(chosen, scans, cases.vocabulary)
    ages = Counter(age_group(age) for age in counts.ages)
    if unstated := counts.patients - len(counts.ages):
        ages[UNKNOWN] = unstated
    notice, licences = cases.record["notice"], sorted({row["licence"] for row in chosen if row["licence"]})
    is_marked = cases.is_synthetic and cases.record["source"] != "phantoms"
    marked = {"synthetic": cases.record.get("synthetic", {}).get("generator", "phantoms")} if is_marked else {}
    summary = marked | {
        "title": notice.get("title") or cases.record["source"],
        "source": source_of(cases.record),
        "licence": notice.get("licence") or "; ".join(licences) or None,
        "citation": notice.get("citation"),
        "fingerprint": cases.record["fingerprint"],
        "attributions": attributions([cases.rows[row] for row in learned]),
        "collections": len({name for row in chosen for name in (row["collection"] or "").split("; ") if name}),
        "patients": counts.patients,
        "cases": counts.cases,
        "normal": counts.normal,
        "unpublishable": sum(row["publish"] is False for row in chosen),
        "scans": counts.scans,
        "slices": counts.slices,
        "disorders": sum(disorder.cases > 0 for disorder in counts.disorders),
        "modalities": {name: modality.scans for name, modality in counts.modalities.items()},
        "body_parts": counts.body_parts,
        "ages": {group: ages[group] for group in (*AGES.values(), UNKNOWN) if ages[group]},
        "sexes": dict(sorted(counts.sex.items())),
    }
    if synthetic:
        summary["added_synthetic"] = _synthetic_sets(synthetic, len(real), learned)
    return summary


def source_of(record: Mapping[str, Any]) -> str:
    """Where the cases come from; of latents and reconstructions, where the cases come from that they were made of.

    Args:
        record: the content of dataset.json.
    """
    return record["source_settings"].get("of", record["source"]) if "derived_from" in record else record["source"]


def attributions(rows: Sequence[dict]) -> list[dict[str, Any]]:
    """What cases were taken from, with `licence`, `attribution`, `url` and the number of `cases`, most cases first.

    Args:
        rows: rows of the table of cases. Those that state neither licence nor attribution are left out.
    """
    columns = ("licence", "attribution", "url")
    counts = Counter(tuple(row[column] for column in columns) for row in rows if row["licence"] or row["attribution"])
    return [dict(zip(columns, origin, strict=True)) | {"cases": cases} for origin, cases in counts.most_common()]


def _synthetic_sets(parts: Sequence[StoredCases], first: int, learned: Sequence[int]) -> list[dict[str, Any]]:
    """Of each synthetic data set, see `data_summary`; the cases of the first one begin at row `first`."""
    sets = []
    for part in parts:
        record = part.record
        sets.append(
            {
                "title": record["notice"].get("title") or record["source"],
                "fingerprint": record["fingerprint"],
                "cases": sum(first <= row < first + len(part) for row in learned),
            }
        )
        first += len(part)
    return sets


def _scan(row: dict) -> dict:
    """The summary of a scan that `count` takes, from its row in the table of scans."""
    return row | {"slices": row["shape"][0], "key_slice": row["key_slice"] is not None}
