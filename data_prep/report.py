"""report.html: the content of a data set, what was left out, and what a person should check.

Decisions:
- One file that loads nothing from elsewhere: it holds all figures and pictures, and works without a network.
- It shows pseudonyms only. Pictures are described by modality, plane and body part.
- Long tables are cut. The remaining rows are counted, and the report names the file that holds all of them.
- The same data set gives the same bytes: pictures are chosen by rule, and the report has no date.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from statistics import median

from radfm.data_prep import plots
from radfm.data_prep.counts import UNKNOWN, Counts, code_description, count
from radfm.data_prep.pages import environment
from radfm.data_prep.plan import SPLITS
from radfm.data_prep.report_pictures import LARGE, Picture, Pictures
from radfm.data_prep.stored_cases import is_synthetic
from radfm.data_prep.tables import bytes_on_disk, write_text
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Vocabulary
from radfm.presentation import band_limits

REPORT = "report.html"
ORIGINS = ("header", "source", "guess", "unknown")

_EXAMPLES = 4  # scans of each modality
_DISORDERS = 1000  # rows of the table
_DOUBTFUL = 100
_REASONS = 40
_NAMES_OF_CASE = 3
_NAMES = 4  # examples for each reason
_GROUPS = 12  # groups of duplicates
_COPIES = 4  # pictures of each group
_TEXT_PICTURES = 24
_TEXT_ROWS = 200
_CODES = 60


def write_report(
    out: Path,
    record: dict,
    rows: Sequence[dict],
    scans: Sequence[dict],
    rejected: Sequence[dict],
    duplicates: Sequence[list],
    vocabulary: Vocabulary,
) -> None:
    """Writes report.html into the folder of a data set whose tables are complete.

    Args:
        out: folder of the data set.
        record: content of dataset.json.
        rows: rows of the table of cases.
        scans: summaries of the scans, see `ShardRecord.scans`.
        rejected, duplicates: lines of rejected.csv and duplicates.csv.
        vocabulary: disorders of the data set.
    """
    counts, reasons = count(rows, scans, vocabulary), _reasons(rejected)
    warnings = [
        {"what": "scan", "name": scan["source"], "reason": sentence} for scan in scans for sentence in scan["warnings"]
    ]
    case_of = [row for row in rows for _ in row["scan_rows"]]
    pictures = Pictures(out)
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=record["notice"].get("title") or f"Data set from {record['source']}",
            record=record,
            counts=counts,
            splits=SPLITS,
            bands=band_limits(),
            unknown=UNKNOWN,
            edition=icd10cm.edition(),
            size=bytes_on_disk(out, record["tables"]),
            figures=_figures(counts),
            median_age=median(counts.ages) if counts.ages else None,
            origins=[(origin, counts.modality_from[origin], counts.plane_from[origin]) for origin in ORIGINS],
            disorders=counts.disorders[:_DISORDERS],
            doubtful=_doubtful(vocabulary, counts),
            most_doubtful=_DOUBTFUL,
            bad_codes=record["codes_not_in_icd10cm"][:_CODES],
            examples=_examples(counts, scans, case_of, pictures),
            rejected=len(rejected),
            reasons=reasons[:_REASONS],
            more_reasons=max(0, len(reasons) - _REASONS),
            warnings=_reasons(warnings),
            duplicates=_duplicates(duplicates, pictures),
            synthetic=is_synthetic(record),
            licences=any(row["licence"] for row in rows),
            written=_text_in_pixels(scans, case_of, pictures),
        )
    )
    write_text(out / REPORT, page.rstrip() + "\n")


def _figures(counts: Counts) -> dict[str, str]:
    figures = {
        "modalities": plots.modalities(counts),
        "body_parts": plots.body_parts(counts),
        "scans_per_case": plots.scans_per_case(counts),
        "slices_per_scan": plots.slices_per_scan(counts),
    }
    if any(one.split_cases["train"] for one in counts.disorders):
        figures["tail"] = plots.tail(counts)
        figures["stratification"] = plots.stratification(counts)
    return {name: plots.svg(figure) for name, figure in figures.items()}


def _doubtful(vocabulary: Vocabulary, counts: Counts) -> list[dict]:
    """Disorders without a certain code, the most frequent first, with candidate codes."""
    return [
        {
            "name": disorder.name,
            "cases": counted.cases,
            "codings": [(coding.code, code_description(coding.code), coding.confidence) for coding in disorder.codings],
        }
        for disorder, counted in zip(vocabulary, counts.disorders, strict=True)
        if not disorder.icd10cm
    ]


def _examples(counts: Counts, scans: Sequence[dict], case_of: Sequence[dict], pictures: Pictures) -> list[dict]:
    """A few scans of each modality, of different body parts and cases where possible."""
    by_part: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, scan in enumerate(scans):
        by_part[scan["modality"] or UNKNOWN][scan["body_part"] or UNKNOWN].append(row)
    return [
        {
            "modality": modality,
            "scans": [
                _example(case_of[row], pictures.picture(row))
                for row in sorted(_varied(by_part[modality], scans, case_of))
            ],
        }
        for modality in counts.modalities
    ]


def _example(case: dict, picture: Picture) -> dict:
    """A picture with the disorders of its case, outlined ones first."""
    names = sorted(case["disorders"], key=lambda name: name not in picture.outlined)
    shown = names[:_NAMES_OF_CASE] or [_without_disorder(case)]
    return {"picture": picture, "case": case, "names": shown, "more": max(0, len(names) - _NAMES_OF_CASE)}


def _without_disorder(case: dict) -> str:
    return "normal" if case["normal"] else "no disorder named" if case["labelled"] else "unlabelled"


def _varied(of_part: dict[str, list[int]], scans: Sequence[dict], case_of: Sequence[dict]) -> list[int]:
    """Rows of scans: body parts in turn, each time from another case, scans without text in their pixels first."""
    queues = [
        sorted(rows, key=lambda row: (scans[row]["text_in_pixels"] is not None, not scans[row]["key_slice"], row))
        for _, rows in sorted(of_part.items(), key=lambda part: (part[0] == UNKNOWN, -len(part[1]), part[0]))
    ]
    in_turn = [queue[i] for i in range(_EXAMPLES) for queue in queues if i < len(queue)]
    first_of_case, others, used_cases = [], [], set()
    for row in in_turn + [row for queue in queues for row in queue[_EXAMPLES:]]:
        case = case_of[row]["case_id"]
        (others if case in used_cases else first_of_case).append(row)
        used_cases.add(case)
        if len(first_of_case) == _EXAMPLES:
            break
    return (first_of_case + others)[:_EXAMPLES]


def _reasons(rejected: Iterable[dict]) -> list[dict]:
    """Rejected items, or warnings, by kind and reason, the most frequent first.

    Reasons that differ in names and numbers only are one.
    """
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for one in rejected:
        groups[one["what"], _shape(one["reason"])].append(one)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [
        {
            "what": what,
            "reason": shape if len({one["reason"] for one in items}) > 1 else items[0]["reason"],
            "count": len(items),
            "names": [one["name"] for one in items[:_NAMES]],
        }
        for (what, shape), items in ordered
    ]


def _shape(reason: str) -> str:
    """A reason without the parts that refer to one file: numbers, quoted names, paths."""
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason)
    return re.sub(r"(?<!\w)[^\s(),:;]*(?:\d|\w/|\w\.\w)[^\s(),:;]*", "…", reason)


def _duplicates(lines: Sequence[list], pictures: Pictures) -> dict:
    """Groups of duplicates with pictures, groups across splits first.

    Args:
        lines: group, across splits, case, patient, split, scan.
    """
    groups = [list(group) for _, group in groupby(lines, key=lambda line: line[0])]
    groups.sort(key=lambda group: not group[0][1])
    return {
        "groups": len(groups),
        "across": sum(bool(group[0][1]) for group in groups),
        "scans": len(lines),
        "shown": [
            {
                "number": group[0][0],
                "across": bool(group[0][1]),
                "scans": [
                    {"case": case, "patient": patient, "split": split, "row": row,
                     "picture": pictures.picture(row, plain=True)}
                    for _, _, case, patient, split, row in _one_of_each_split(group)
                ],
                "more": max(0, len(group) - _COPIES),
            }
            for group in groups[:_GROUPS]
        ],
    }  # fmt: skip


def _one_of_each_split(group: list[list]) -> list[list]:
    """A few scans of the group that cover all its splits."""
    splits: set[str] = set()
    repeats = []
    for line in group:
        repeats.append(line[4] in splits)
        splits.add(line[4])
    order = sorted(range(len(group)), key=lambda i: (repeats[i], i))[:_COPIES]
    return [group[i] for i in sorted(order)]


def _text_in_pixels(scans: Sequence[dict], case_of: Sequence[dict], pictures: Pictures) -> dict:
    """Scans that may carry text in their pixels: their number by reason, and some pictures for each reason."""
    rows_of_reason: dict[str, list[int]] = defaultdict(list)
    for row, scan in enumerate(scans):
        if scan["text_in_pixels"] is not None:
            rows_of_reason[scan["text_in_pixels"]].append(row)
    reasons = sorted(rows_of_reason, key=lambda reason: (-len(rows_of_reason[reason]), reason))
    each = -(-_TEXT_PICTURES // max(1, len(reasons)))
    shown = sorted(row for reason in reasons for row in rows_of_reason[reason][:each])[:_TEXT_PICTURES]
    rows = sorted(row for one in rows_of_reason.values() for row in one)
    return {
        "reasons": [(reason, len(rows_of_reason[reason])) for reason in reasons],
        "shown": [
            {"row": row, "reason": scans[row]["text_in_pixels"], "case": case_of[row]["case_id"],
             "picture": pictures.picture(row, LARGE, plain=True)}
            for row in shown
        ],
        "rows": [
            {"row": row, "reason": scans[row]["text_in_pixels"], "case": case_of[row]["case_id"],
             "source": scans[row]["source"], "modality": scans[row]["modality"] or UNKNOWN}
            for row in islice(rows, _TEXT_ROWS)
        ],
        "more": max(0, len(rows) - _TEXT_ROWS),
        "modalities": Counter(scans[row]["modality"] or UNKNOWN for row in rows).most_common(),
    }  # fmt: skip
