"""One shard of a data set: its cases are read, checked and written, and a small JSON file records what they contain.

Decisions:
- A shard depends on its plans and the settings alone, so that every process on every machine writes the same bytes.
- The JSON file is written last, and marks the shard as complete. A run that was killed repeats incomplete shards.
- One case is in memory at a time.
- A damaged or unusable file never stops a shard. It becomes a line of `rejected`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from radfm.cases import Scan
from radfm.data_prep.burned_in import text_in_borders
from radfm.data_prep.checks import rejection_reason
from radfm.data_prep.image_fingerprint import image_fingerprint
from radfm.data_prep.plan import CasePlan, ReadCase, Rejected, ScanOrigin, Source
from radfm.data_prep.stored_scan import chosen_slices, stored_scan
from radfm.data_prep.tables import write_rows, write_scans, write_text
from radfm.readers.errors import quiet_libraries

WORK = ".work"  # folder within the data set, removed when the data set is finished


@dataclass
class ShardRecord:
    """What finishing a data set needs of a shard.

    Attributes:
        cases: plans of the cases that are in the data set, each with `scans`, its number of scans.
        scans: summaries of the scans in order, see `_scan_summary`.
        rejected: fields of `Rejected`.
        counts: "cases", "files", "scans", each with "in", "out" and "rejected".
    """

    cases: list[dict] = field(default_factory=list)
    scans: list[dict] = field(default_factory=list)
    rejected: list[dict] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def record_file(folder: Path, shard: int) -> Path:
    return folder / WORK / f"shard-{shard:05d}.json"


def make_shard(folder: Path, shard: int, plans: list[CasePlan], source: Source, settings: dict) -> None:
    """Writes the files of a shard. settings: size, precision and max_slices, see `stored_scan`."""
    record = ShardRecord(counts={kind: {"in": 0, "out": 0, "rejected": 0} for kind in ("cases", "files", "scans")})
    masks: list[dict] = []
    sizes: list[dict] = []

    def scan_rows() -> Iterator[dict]:
        for plan, read in zip(plans, source.read(plans), strict=True):
            for row, mask_rows in _case_rows(plan, read, settings, record):
                yield row
                masks.extend(mask_rows)
            sizes.extend({"case_id": plan.case_id} | size for size in read.sizes)

    with quiet_libraries():
        write_scans(folder, shard, scan_rows())
    if masks:
        write_rows(folder, "truth", masks, shard, rows_per_batch=1)
    if sizes:
        write_rows(folder, "sizes", sizes, shard)
    write_text(record_file(folder, shard), json.dumps(vars(record), ensure_ascii=False, sort_keys=True))


def _case_rows(
    plan: CasePlan, read: ReadCase, settings: dict, record: ShardRecord
) -> Iterator[tuple[dict, list[dict]]]:
    """The row of each scan of a case with the rows of its masks. Adds the case to the record."""
    counts, case = record.counts, read.case
    counts["cases"]["in"] += 1
    counts["files"]["in"] += read.files
    counts["files"]["rejected"] += read.unread
    counts["files"]["out"] += read.files - read.unread
    counts["scans"]["in"] += len(case.scans)
    record.rejected += [asdict(Rejected(read.unit, name, reason, plan.case_id)) for name, reason in case.skipped]
    kept = 0
    for index, (scan, origin) in enumerate(zip(case.scans, read.origins, strict=True)):
        stored = stored_scan(scan, settings["size"], settings["precision"], settings["max_slices"])
        if reason := rejection_reason(stored.pixels):
            counts["scans"]["rejected"] += 1
            record.rejected.append(asdict(Rejected("scan", scan.source, reason, plan.case_id)))
            continue
        text = origin.text_in_pixels or ("writing at its borders" if text_in_borders(scan) else None)
        record.scans.append(_scan_summary(stored, origin, text))
        masks = _mask_rows(plan, kept, scan, stored, read.masks[index], settings) if read.masks else []
        yield _scan_row(plan, kept, stored, origin, text), masks
        # Frees its pixels before the next scan is processed.
        case.scans[index] = None  # type: ignore[call-overload]  # the case is not read again
        kept += 1
    counts["scans"]["out"] += kept
    if kept:
        counts["cases"]["out"] += 1
        record.cases.append(asdict(replace(plan, items=[])) | {"scans": kept})
    else:
        counts["cases"]["rejected"] += 1
        record.rejected.append(asdict(Rejected("case", plan.case_id, "has no usable scan", plan.case_id)))


def _scan_row(plan: CasePlan, number: int, stored: Scan, origin: ScanOrigin, text: str | None) -> dict:
    return {
        "case_id": plan.case_id,
        "number": number,
        "pixels": stored.pixels,
        "shape": list(stored.pixels.shape),
        "dtype": stored.pixels.dtype.name,
        "modality": stored.modality,
        "modality_from": origin.modality_from,
        "plane": stored.plane,
        "plane_from": origin.plane_from,
        "spacing_mm": None if stored.spacing_mm is None else list(stored.spacing_mm),
        "days": stored.days,
        "body_part": stored.body_part,
        "key_slice": _key_slice(stored),
        "source": stored.source,
        "text_in_pixels": text,
    }


def _key_slice(stored: Scan) -> int | None:
    key = stored.key_slice
    return key if key is not None and 0 <= key < len(stored.pixels) else None


def _scan_summary(stored: Scan, origin: ScanOrigin, text: str | None) -> dict:
    """What counts, report and card need of a scan."""
    fingerprint = image_fingerprint(stored)
    return {
        "modality": stored.modality,
        "modality_from": origin.modality_from,
        "plane_from": origin.plane_from,
        "body_part": stored.body_part,
        "key_slice": _key_slice(stored) is not None,
        "text_in_pixels": text,
        "warnings": stored.warnings,
        "slices": len(stored.pixels),
        "bytes": stored.pixels.nbytes,
        "source": stored.source,
        "image_fingerprint": fingerprint and [fingerprint.hash, fingerprint.thumbnail],
    }


def _mask_rows(plan: CasePlan, number: int, scan: Scan, stored: Scan, masks: dict, settings: dict) -> list[dict]:
    """Rows of the table of truth: masks of the stored slices, in their size."""
    chosen = chosen_slices(len(scan.pixels), scan.key_slice, settings["max_slices"])
    height, width = stored.pixels.shape[1:3]
    rows = []
    for disorder, mask in masks.items():
        mask = mask[chosen]
        if mask.shape[1:] != (height, width):
            pictures = (Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST) for part in mask)
            mask = np.stack([np.asarray(picture) for picture in pictures])
        key = {"case_id": plan.case_id, "number": number, "disorder": disorder, "shape": list(mask.shape)}
        rows.append(key | {"mask": np.packbits(mask).tobytes()})
    return rows
