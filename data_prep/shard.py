"""One shard: its cases are read, cleaned and written. What else is to be known of it goes into a small JSON file.

Decisions:
- A shard depends on its plans and the settings alone, so whoever makes it, and however often, the bytes are the same.
- The JSON file is written last: where it is, the shard is whole. A killed run makes unfinished shards again.
- One case is in memory at a time.
- Nothing a file does can stop a shard: what cannot be read or used is a line in `rejected`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from radfm.cases import Scan
from radfm.data_prep.burned_in import text_in_borders
from radfm.data_prep.checks import why_not
from radfm.data_prep.image_fingerprint import image_fingerprint
from radfm.data_prep.plan import CasePlan, Found, Notes, Rejected, Source
from radfm.data_prep.stored import chosen_slices, stored_scan
from radfm.data_prep.tables import SCANS, TRUTH, one_row, replacing, shard_file, write_batches, write_text
from radfm.readers.errors import quiet_libraries

WORK = ".work"  # folder within the data set, gone when it is done


@dataclass
class ShardRecord:
    """What the end of the run needs to know of a shard.

    Attributes:
        cases: plans of the cases that are in the data set, with `scans`: how many each has.
        scans: of each scan in order: modality, its source of knowledge, slices, body part, image fingerprint, text in
            pixels.
        counts: "cases", "files", "scans", each with "in", "out" and "rejected".
    """

    cases: list[dict] = field(default_factory=list)
    scans: list[dict] = field(default_factory=list)
    rejected: list[dict] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def record_file(folder: Path, shard: int) -> Path:
    return folder / WORK / f"shard-{shard:05d}.json"


def make_shard(folder: Path, shard: int, plans: list[CasePlan], source: Source, settings: dict) -> None:
    """Writes the shard's files. settings: size, precision, max_slices."""
    record = ShardRecord(counts={kind: {"in": 0, "out": 0, "rejected": 0} for kind in ("cases", "files", "scans")})
    masks: list[dict] = []
    with (
        quiet_libraries(),
        replacing(shard_file(folder, "scans", shard)) as draft,
        pa.OSFile(str(draft), "wb") as file,
        pa.ipc.new_stream(file, SCANS) as table,
    ):
        for plan, found in zip(plans, source.read(plans), strict=True):
            for row, mask_rows in _case_rows(plan, found, settings, record):
                table.write_batch(one_row(row, SCANS))
                masks += mask_rows
    if masks:
        write_batches(shard_file(folder, "truth", shard), TRUTH, ([mask] for mask in masks))
    write_text(record_file(folder, shard), json.dumps(vars(record), ensure_ascii=False, sort_keys=True))


def _case_rows(plan: CasePlan, found: Found, settings: dict, record: ShardRecord) -> Iterator[tuple[dict, list[dict]]]:
    """Rows of the case's scans, each with the rows of its masks; the record is kept on the way."""
    counts, case = record.counts, found.case
    counts["cases"]["in"] += 1
    counts["files"]["in"] += found.files
    counts["files"]["rejected"] += found.unread
    counts["files"]["out"] += found.files - found.unread
    counts["scans"]["in"] += len(case.scans)
    record.rejected += [asdict(Rejected("file", name, reason, plan.case_id)) for name, reason in case.skipped]
    kept = 0
    for index, (scan, notes) in enumerate(zip(case.scans, found.notes, strict=True)):
        stored = stored_scan(scan, settings["size"], settings["precision"], settings["max_slices"])
        if reason := why_not(stored.pixels):
            counts["scans"]["rejected"] += 1
            record.rejected.append(asdict(Rejected("scan", scan.source, reason, plan.case_id)))
            continue
        text = notes.text_in_pixels or ("writing at its borders" if text_in_borders(scan) else None)
        record.scans.append(_note(stored, notes, text))
        masks = _mask_rows(plan, kept, scan, stored, found.truth[index], settings) if found.truth else []
        yield _scan_row(plan, kept, stored, notes, text), masks
        case.scans[index] = None  # so that its pixels can go before the next scan's come
        kept += 1
    counts["scans"]["out"] += kept
    if kept:
        counts["cases"]["out"] += 1
        record.cases.append(asdict(replace(plan, items=[])) | {"scans": kept})
    else:
        counts["cases"]["rejected"] += 1
        record.rejected.append(asdict(Rejected("case", plan.case_id, "has no scan that can be used", plan.case_id)))


def _scan_row(plan: CasePlan, number: int, stored: Scan, notes: Notes, text: str | None) -> dict:
    return {
        "case_id": plan.case_id,
        "number": number,
        "pixels": stored.pixels,
        "shape": list(stored.pixels.shape),
        "dtype": stored.pixels.dtype.name,
        "modality": stored.modality,
        "modality_from": notes.modality_from,
        "plane": stored.plane,
        "plane_from": notes.plane_from,
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


def _note(stored: Scan, notes: Notes, text: str | None) -> dict:
    fingerprint = image_fingerprint(stored)
    return {
        "modality": stored.modality,
        "modality_from": notes.modality_from,
        "plane_from": notes.plane_from,
        "body_part": stored.body_part,
        "key_slice": _key_slice(stored) is not None,
        "text_in_pixels": text,
        "slices": len(stored.pixels),
        "bytes": stored.pixels.nbytes,
        "source": stored.source,
        "image_fingerprint": fingerprint and [fingerprint.hash, fingerprint.thumbnail],
    }


def _mask_rows(plan: CasePlan, number: int, scan: Scan, stored: Scan, masks: dict, settings: dict) -> list[dict]:
    """Masks of the slices that are stored, in their size."""
    chosen = chosen_slices(len(scan.pixels), scan.key_slice, settings["max_slices"])
    height, width = stored.pixels.shape[1:3]
    rows = []
    for disorder, mask in masks.items():
        mask = mask[chosen]
        if mask.shape[1:] != (height, width):
            pictures = (Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST) for part in mask)
            mask = np.stack([np.asarray(picture) for picture in pictures])
        about = {"case_id": plan.case_id, "number": number, "disorder": disorder, "shape": list(mask.shape)}
        rows.append(about | {"mask": np.packbits(mask).tobytes()})
    return rows
