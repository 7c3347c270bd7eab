"""README.md of a data set: its card on the Hugging Face Hub, and the first page to read in its folder.

Decisions:
- The metadata lists the tables as configurations, so that the folder can be pushed as it is and `datasets` loads it.
- The licence is the one that the source states. Where it states none, the card says so and guesses nothing.
- Names of disorders are escaped, because a vertical bar or a tag in a name would break the page.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from radfm.data_prep import plots
from radfm.data_prep.columns import TABLES
from radfm.data_prep.counts import Counts, count
from radfm.data_prep.data_summary import attributions
from radfm.data_prep.pages import environment
from radfm.data_prep.stored_cases import is_synthetic
from radfm.data_prep.tables import TABLE_FILES, bytes_on_disk, replacing, write_text
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Vocabulary
from radfm.presentation import band_limits, markdown_cell, plural, tidy_markdown

CARD = "README.md"

_DISORDERS = 50  # rows of the table of disorders
_LICENCES = {  # name of a licence without spaces and signs -> identifier on the Hub
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


def write_card(out: Path, record: dict, rows: Sequence[dict], scans: Sequence[dict], vocabulary: Vocabulary) -> None:
    """Writes README.md and its plots into the folder of a data set. Arguments: see `report.write_report`."""
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
        tables={table: TABLES[table] for table in record["tables"]},
        split_text=_split_text(counts, record),
        text_note=_text_note(counts),
        made=_preparation(record, counts),
        attributions=attributions(rows),
        synthetic=is_synthetic(record),
    )
    write_text(out / CARD, f"---\n{_metadata(title, record, counts)}---\n\n{tidy_markdown(text)}")


def _metadata(title: str, record: dict, counts: Counts) -> str:
    """The YAML front matter that the Hub reads."""
    licence = record["notice"].get("licence")
    known = _LICENCES.get(re.sub(r"[^a-z0-9]|license|licence", "", licence.casefold())) if licence else "unknown"
    named = {"license": known} if known else {"license": "other", "license_name": licence}
    metadata = {
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
            *(["synthetic"] if is_synthetic(record) else []),
        ],
        "configs": [
            {
                "config_name": table,
                "data_files": [{"split": table, "path": f"{table}/{TABLE_FILES}"}],
                **({"default": True} if table == "cases" else {}),
            }
            for table in record["tables"]
        ],
    }
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def _split_text(counts: Counts, record: dict) -> str:
    official = sum(split.official for split in counts.splits.values())
    seed = record["settings"]["seed"]
    drawn = f"drawn with seed {seed}, stratified by disorder as far as the number of patients allows"
    if official == counts.cases:
        origin = "The split is the official one of the source."
    elif official:
        origin = f"The official split is kept for {official:,} of {counts.cases:,} cases; the others are {drawn}."
    else:
        origin = f"The split is {drawn}."
    return f"All cases of a patient are in one split. {origin}"


def _preparation(record: dict, counts: Counts) -> list[str]:
    """Items of a list: how the data set was prepared."""
    settings, listed = record["settings"], record["counts"]["listed"]
    source = ", ".join([record["source"], *(f"{name} {value}" for name, value in record["source_settings"].items())])
    stored = "8 bits, CT in float16 as Hounsfield units" if settings["precision"] == "auto" else "float16"
    most = f", at most {settings['max_slices']} of a scan, evenly spaced" if settings["max_slices"] else ""
    kinds = [(kind, count) for kind, count in record["counts"].items() if kind != "listed" and count["in"]]
    kept = ", ".join(f"{count['out']:,} of {count['in']:,} {kind}" for kind, count in kinds)
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
        return "No sign of text in the pixels was found, which does not prove that there is none."
    scans = plural(counts.text_in_pixels, "scan")
    return f"**{scans} may carry text in the pixels: check them before you share the data set.**"
