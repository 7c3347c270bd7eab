"""README.md: the data set as a card of the Hugging Face Hub, and as the page that people read first in its folder.

Decisions:
- Its head names the tables as configurations, so the folder can be pushed as it is and `datasets` loads it.
- The licence is what the source says of itself. Where it says nothing the card says that too, and guesses nothing.
- Names of disorders are escaped, for a bar or a tag in a name must not break the page.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from radfm.data_prep import plots
from radfm.data_prep.counts import Counts, bytes_on_disk, count
from radfm.data_prep.pages import environment
from radfm.data_prep.tables import replacing, write_text
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Vocabulary
from radfm.presentation import band_limits, markdown_cell, plural, tidy_markdown

CARD = "README.md"

_DISORDERS = 50  # rows of the table
_LICENCES = {  # what a licence is called by people -> by the Hub, without spaces and signs
    "apache20": "apache-2.0",
    "mit": "mit",
    "cc010": "cc0-1.0",
    "cc0": "cc0-1.0",
    "publicdomain": "pddl",
    **{
        f"cc{kind.replace('-', '')}{version.replace('.', '')}": f"cc-{kind}-{version}"
        for kind in ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
        for version in ("3.0", "4.0")
    },
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

COLUMNS = {
    "cases": {
        "case_id": "pseudonym of the case",
        "patient_id": "pseudonym of the patient; all cases of one are in one split",
        "scan_rows": "rows of the table of scans",
        "disorders": "names of what the case shows; empty for a normal case",
        "labels": "the same as rows of the vocabulary, `disorders.json`",
        "icd10cm": "codes of all disorders, those that are sure",
        "labelled": "false where nobody said what the case shows",
        "history": "what was known before the scans were read",
        "age": "years; 90 for all above 89",
        "sex": "F, M or other",
        "split": "train, validation or test",
        "split_from": "source or drawn",
    },
    "scans": {
        "case_id": "the case it belongs to",
        "number": "of the scan within its case, from 0",
        "pixels": "bytes of all slices, in order",
        "shape": "(slices, height, width), or (slices, height, width, 3) in colour",
        "dtype": "uint8 or float16; CT in float16 is in Hounsfield units",
        "modality": "one of radfm's modalities; null where unknown",
        "modality_from": "who said so: header, source, guess or unknown",
        "plane": "axial, coronal, sagittal, oblique; a radiograph's view; null where unknown",
        "plane_from": "who said so",
        "spacing_mm": "between slices, rows and columns, as stored",
        "days": "before the newest scan of the case",
        "body_part": "as the header or the source names it",
        "key_slice": "index of the slice that shows the finding; null where unknown",
        "source": "what the file is called in `rejected.csv` and in tables of links",
        "text_in_pixels": "why there may be writing in the picture; null where nothing says so",
    },
    "truth": {
        "case_id": "the case",
        "number": "of the scan within its case",
        "disorder": "what is masked",
        "mask": "`numpy.packbits` of the mask, true where the disorder is to be seen",
        "shape": "(slices, height, width)",
    },
}


def write_card(out: Path, record: dict, rows: Sequence[dict], scans: Sequence[dict], vocabulary: Vocabulary) -> None:
    """Writes README.md and its plots into the data set's folder. Arguments: see `report.write_report`."""
    counts = count(rows, scans, vocabulary)
    figures = {"modalities": plots.modalities(counts)}
    if has_tail := any(one.split_cases["train"] for one in counts.disorders):
        figures["disorders"] = plots.tail(counts)
    for name, figure in figures.items():
        with replacing(out / "plots" / f"{name}.png") as draft:
            draft.write_bytes(plots.png(figure))
    jinja = environment()
    jinja.filters["cell"] = markdown_cell
    title = record["notice"].get("title") or f"Data set from {record['source']}"
    text = jinja.get_template("card.md").render(
        title=title,
        record=record,
        counts=counts,
        size=bytes_on_disk(out, record["tables"]),
        bands=band_limits(),
        most=_DISORDERS,
        has_tail=has_tail,
        tables={table: COLUMNS[table] for table in record["tables"]},
        split_text=_split_text(counts, record),
        text_note=_text_note(counts),
        made=_made(record, counts),
    )
    write_text(out / CARD, f"---\n{_head(title, record, counts)}---\n\n{tidy_markdown(text)}")


def _head(title: str, record: dict, counts: Counts) -> str:
    """The YAML that the Hub reads."""
    licence = record["notice"].get("licence")
    known = _LICENCES.get(re.sub(r"[^a-z0-9]|license|licence", "", licence.casefold())) if licence else "unknown"
    named = {"license": known} if known else {"license": "other", "license_name": licence}
    about = {
        "pretty_name": title,
        **named,
        "task_categories": ["image-classification", "zero-shot-image-classification"],
        "task_ids": ["multi-label-image-classification"],
        "size_categories": [next((name for most, name in _SIZES if counts.cases < most), "n>1M")],
        "tags": [
            "medical",
            "radiology",
            "icd-10-cm",
            "radfm",
            *(["synthetic"] if record["source"] == "phantoms" else []),
        ],
        "configs": [
            {
                "config_name": table,
                "data_files": [{"split": table, "path": f"{table}/data-*.arrow"}],
                **({"default": True} if table == "cases" else {}),
            }
            for table in record["tables"]
        ],
    }
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True)


def _split_text(counts: Counts, record: dict) -> str:
    official = sum(split.official for split in counts.splits.values())
    drawn = f"drawn with seed {record['settings']['seed']}, each disorder spread alike as far as its patients reach"
    if official == counts.cases:
        origin = "The split is the official one of the source."
    elif official:
        origin = f"The official split is kept for {official:,} of {counts.cases:,} cases; the others are {drawn}."
    else:
        origin = f"The split is {drawn}."
    return f"All cases of a patient are in one split. {origin}"


def _made(record: dict, counts: Counts) -> list[str]:
    """How the data set was made, in items of a list."""
    settings, listed = record["settings"], record["counts"]["listed"]
    source = ", ".join([record["source"], *(f"{name} {value}" for name, value in record["source_settings"].items())])
    stored = "8 bits, CT in float16 as Hounsfield units" if settings["precision"] == "auto" else "float16"
    most = f", at most {settings['max_slices']} of a scan, evenly spaced" if settings["max_slices"] else ""
    kinds = [(kind, found) for kind, found in record["counts"].items() if kind != "listed" and found["in"]]
    kept = ", ".join(f"{found['out']:,} of {found['in']:,} {kind}" for kind, found in kinds)
    origins = [
        ", ".join(f"{number:,} by {origin}" if origin != "unknown" else f"{number:,} unknown"
                  for origin, number in sorted(origin_of.items()))
        for origin_of in (counts.modality_from, counts.plane_from)
    ]  # fmt: skip
    return [
        f"Source: {markdown_cell(source)}",
        f"Slices: longer side at most {settings['size']} pixels, pixels square, {stored}{most}",
        f"Kept: {kept}; before reading, {listed['rejected']:,} of {listed['in']:,} {listed['unit']}s were rejected",
        f"Modality: {origins[0]}; plane: {origins[1]}",
        f"ICD-10-CM: {icd10cm.edition()}",
        f"Fingerprint: `{record['fingerprint']}`, format {record['format']}",
        *([f"Note: {markdown_cell(record['notice']['layout'])}"] if record["notice"].get("layout") else []),
    ]


def _text_note(counts: Counts) -> str:
    if not counts.text_in_pixels:
        return "No sign of text in the pixels was found, which is no proof that there is none."
    scans = plural(counts.text_in_pixels, "scan")
    return f"**{scans} may carry text in the pixels: look before you share the data set.**"
