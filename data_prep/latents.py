"""Data sets that follow from another one through an autoencoder: its latents, and its reconstructions.

    radfm prepare latents datasets/mine datasets/mine-latents --autoencoder runs/autoencoder
    radfm prepare reconstructions datasets/mine datasets/mine-reconstructions --autoencoder runs/autoencoder

Decisions:
- A latent is a picture with other channels. So a data set of latents is a data set whose scans have the pixels
  (slices, channels, height, width) in float16, and all that reads data sets reads it: training, evaluation, tables.
- Its cases, splits, vocabulary and row numbers are those of its source. Masks are left out.
- A file of scans is written for each of the source, complete or not at all: a killed run continues with the missing
  ones, and the result has the same bytes.
- Latents are only of use with the autoencoder that made them: dataset.json states its fingerprint, and mean and
  standard deviation of the channels, by which they are normalised.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radfm.cli.console import NO_PATIENTS
from radfm.data_prep.data_summary import source_of
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.data_prep.tables import (
    FORMAT,
    RECORD,
    describe,
    read_rows,
    remove_abandoned_drafts,
    write_rows,
    write_scans,
    write_text,
)
from radfm.latents.autoencoders import Autoencoder
from radfm.progress import Progress, no_progress

SLICES_AT_ONCE = 64
MEASURED_SCANS = 1000  # whose latents give mean and standard deviation, where the autoencoder states none

_UNFINISHED = ".derived.json"


def prepare_latents(
    data: str | Path, out: str | Path, autoencoder: str | Path, progress: Progress = no_progress
) -> dict[str, Any]:
    """Writes the latents of every slice of a data set, or continues a run that was killed.

    Args:
        data: folder that `radfm prepare` made.
        out: folder of the new data set: new, empty, or that of a run that was killed.
        autoencoder: folder or Hub name, see `Autoencoder.from_pretrained`.
        progress: called with the number of finished files of scans, and of all.
    Returns:
        The content of dataset.json; its `latents` has `autoencoder` (fingerprint), `channels`, `size`, `mean`, `std`.
    Raises:
        FileNotFoundError: there is no such data set or autoencoder.
        ValueError: the folder holds something else.
    """
    cases, network = load(data), Autoencoder.from_pretrained(autoencoder)
    refuse_latents(cases)
    _measure_if_needed(network, cases)
    side = network.size // network.factor
    depth = [(network.settings.volume or {})["size"][0] // network.factor] if network.spatial_dims == 3 else []
    facts = {
        "autoencoder": network.fingerprint,
        "channels": network.channels,
        "size": [*depth, side, side],
        "factor": network.factor,
        "mean": network.settings.mean,
        "std": network.settings.std,
    }

    def latents_of(row: int) -> dict[str, Any]:
        scan = cases.scan(row)
        pictures = network.prepare(scan)
        latents = torch.cat([network.encode(some).cpu() for some in pictures.split(SLICES_AT_ONCE)])
        return _with_pixels(cases.scan_header(row), latents.half().numpy())

    return _derive(cases, Path(out), "latents", {"latents": facts}, latents_of, progress)


def prepare_reconstructions(
    data: str | Path, out: str | Path, autoencoder: str | Path, progress: Progress = no_progress
) -> dict[str, Any]:
    """Writes a data set with the pictures that an autoencoder makes of those of another; as `prepare_latents`.

    Returns:
        The content of dataset.json; its `reconstructions` has `autoencoder` (fingerprint), `psnr` and `ms_ssim`,
        means over up to four slices of each test scan.
    """
    from radfm.latents.fidelity import fidelity

    cases, network = load(data), Autoencoder.from_pretrained(autoencoder)
    refuse_latents(cases)
    _measure_if_needed(network, cases)

    def reconstruction_of(row: int) -> dict[str, Any]:
        scan = cases.scan(row)
        pictures = network.prepare(scan)
        parts = [network.reconstruct(some).cpu() for some in pictures.split(SLICES_AT_ONCE)]
        pixels = network.scan_pixels(torch.cat(parts), scan.modality)
        header = cases.scan_header(row)
        if header["spacing_mm"] is not None and network.spatial_dims == 2:
            header["spacing_mm"] = _spacing_of_square(header, network.size)
        return _with_pixels(header, pixels)

    facts: dict[str, Any] = {"autoencoder": network.fingerprint}
    facts |= fidelity(network, (cases.scan(row) for row in _some_scans(cases, "test") or _some_scans(cases, None)))
    return _derive(cases, Path(out), "reconstructions", {"reconstructions": facts}, reconstruction_of, progress)


def refuse_latents(cases: StoredCases) -> None:
    """Raises: ValueError: the data set holds latents, where an autoencoder reads pictures."""
    if cases.record.get("latents"):
        raise ValueError(
            f"{cases.folder} holds latents, and an autoencoder reads pictures: give the data set that they were made of"
        )


def _derive(
    cases: StoredCases,
    out: Path,
    kind: str,
    facts: dict[str, Any],
    row_of: Callable[[int], dict[str, Any]],
    progress: Progress,
) -> dict[str, Any]:
    source = {
        key: cases.record[key] for key in ("shards", "scans_per_shard", "splits", "disorders", "counts", "notice")
    }
    record = source | {
        "format": FORMAT,
        "fingerprint": f"{kind} {facts[kind]['autoencoder']} of {cases.record['fingerprint']}",
        "source": kind,
        "source_settings": {"of": source_of(cases.record)},
        "settings": cases.record["settings"],
        "tables": ["cases", "scans"],
        "derived_from": cases.record["fingerprint"],
        **({"synthetic": cases.record["synthetic"]} if "synthetic" in cases.record else {}),
        **facts,
    }
    if (out / RECORD).exists():
        return _finished(out, record)
    _begin(out, record)
    ends = np.cumsum(cases.record["scans_per_shard"]).tolist()
    for shard, end in enumerate(ends):
        if not (out / "scans" / f"data-{shard:05d}.arrow").exists():
            write_scans(out, shard, map(row_of, range(end - cases.record["scans_per_shard"][shard], end)))
        progress(shard + 1, len(ends))
    write_rows(out, "cases", read_rows(cases.folder, "cases"))
    shutil.copyfile(cases.folder / "disorders.json", out / "disorders.json")
    for table in record["tables"]:
        describe(out, table, cases.record["fingerprint"])
    remove_abandoned_drafts(out)
    write_text(out / "README.md", _readme(cases, record))
    write_text(out / RECORD, json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    (out / _UNFINISHED).unlink(missing_ok=True)
    return record


def _begin(out: Path, record: dict[str, Any]) -> None:
    mark = out / _UNFINISHED
    if mark.exists():
        if mark.read_text(encoding="utf-8") != record["fingerprint"]:
            raise ValueError(f"{out} holds a run with another data set or autoencoder: choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a new folder")
    else:
        write_text(mark, record["fingerprint"])


def _finished(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    stored = json.loads((out / RECORD).read_text(encoding="utf-8"))
    if stored.get("fingerprint") != record["fingerprint"]:
        raise ValueError(f"{out} holds another data set: choose another folder, or delete this one")
    return stored


def _measure_if_needed(network: Autoencoder, cases: StoredCases) -> None:
    if not network.is_measured:
        network.measure(network.prepare_some(cases.scan(row)) for row in _some_scans(cases, "train") or [0])


def _some_scans(cases: StoredCases, split: str | None) -> list[int]:
    """Rows of at most `MEASURED_SCANS` scans of a split, evenly spaced."""
    rows = [scan for row in cases.rows if split in (None, row["split"]) for scan in row["scan_rows"]]
    step = max(1, len(rows) // MEASURED_SCANS)
    return rows[::step][:MEASURED_SCANS]


def _with_pixels(header: dict[str, Any], pixels: np.ndarray) -> dict[str, Any]:
    pixels = np.ascontiguousarray(pixels)
    return header | {"pixels": pixels, "shape": list(pixels.shape), "dtype": pixels.dtype.name}


def _spacing_of_square(header: dict[str, Any], size: int) -> list[float]:
    """Slices keep their distance; the longer side of the picture, with the padding of the other, has `size` pixels."""
    slices_mm, row_mm, column_mm = header["spacing_mm"]
    longer_mm = max(header["shape"][1] * row_mm, header["shape"][2] * column_mm)
    return [slices_mm, longer_mm / size, longer_mm / size]


def _readme(cases: StoredCases, record: dict[str, Any]) -> str:
    facts = record["latents" if "latents" in record else "reconstructions"]
    title = cases.record["notice"].get("title") or f"Data set from {cases.record['source']}"
    what = "Latents" if record["source"] == "latents" else "Reconstructions"
    synthetic = f"\n\n**{NO_PATIENTS}**" if "synthetic" in record else ""
    return (
        f"# {what} of: {title}{synthetic}\n\n{what} of every slice by the autoencoder `{facts['autoencoder']}`, of the "
        f"data set with the fingerprint `{record['derived_from']}`. Cases, splits and licences are those of that data "
        "set. Latents can be decoded into the pictures: they are patients' data where the pictures are.\n"
    )
