"""Cases -> a table of embeddings, for retrieval, linear probes and clusters.

    >>> from radfm.eval.embedding_sources import DataSetCases
    >>> from radfm.eval.embeddings import write_embeddings
    >>> write_embeddings(DataSetCases(Path("datasets/mine")), "runs/mine", Path("embeddings.parquet"))

Decisions:
- The embeddings of cases, scans and slices are in one space, that of the names of disorders where the head reads text:
  `get_case_features`, `get_scan_features`, `get_slice_features`.
- Each case goes through the model alone, so that its embedding is to the last bit what the model says of it. On CPUs
  that takes no longer than several cases together.
- Cases are divided into parts. A part is complete or absent, so that a run that was killed continues with the absent
  ones, and ends with the same table. The parts lie beside the table, and are deleted with the run's key at the end.
- A case that cannot be read is left out, and listed with the reason in the metadata of the table.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils.logging import disable_progress_bar

from radfm.cases import Case, Scan
from radfm.checkpoints import find
from radfm.data_prep.processes import run_in_processes
from radfm.data_prep.tables import write_text
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.embedding_sources import CaseSource, reasons
from radfm.eval.embedding_tables import LEVELS, join_parts, read_about, rows_of, write_part
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.presentation import plural
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.reference_radfm import weights_sha256

CASES_PER_PART = 16

_FORMAT = 2
_RUN = "run.json"


class _Part(NamedTuple):
    """Cases that are embedded together, and the file that they are written to."""

    file: Path
    cases: CaseSource


def write_embeddings(
    cases: CaseSource,
    model: str | Path,
    out: Path,
    level: str = "case",
    *,
    bf16: bool = False,
    device: str | None = None,
    processes: int = 1,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes a table of embeddings, or continues a run that was killed.

    Args:
        model: folder of a checkpoint, or name of one that comes with radfm.
        out: the table, a Parquet file; see `radfm.eval.embedding_tables`.
        level: what has an embedding: "case", "scan" or "slice".
        bf16: compute in bfloat16, where that is faster.
        device: "cpu", "cuda", ...; None: the GPUs, if there are any, each process its own.
        processes: number of processes, each with the model.
        progress: called with the number of cases done, and of all cases.
    Returns:
        The metadata of the table: `level`, `rows`, `cases`, `size` (d), `left_out` (case_id -> reason), `not_read`
        (case_id -> how many of its files were not read, and why), `model`, `checkpoint` (SHA-256 of the weights),
        `pixels` (SHA-256 of the pixels), `data` (fingerprint of the data set) and more.
    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: there is no case, none can be read, or `out` holds something else.
    """
    if level not in LEVELS:
        raise ValueError(f"there is no level {level!r}: there are {', '.join(LEVELS)}")
    if not len(cases):
        raise ValueError("there is no case to embed")
    folder = find(model, local=True)
    about = _about(cases, Path(model).name, Path(folder), level, bf16, device)
    work = work_folder(out)
    if out.exists():
        return _finished(out, about, work)
    _mark(work, about)
    starts = range(0, len(cases), CASES_PER_PART)
    files = [work / f"part-{number:06d}.parquet" for number in range(len(starts))]
    missing = [
        _Part(file, cases.part(start, min(start + CASES_PER_PART, len(cases))))
        for file, start in zip(files, starts, strict=True)
        if not file.exists()
    ]
    processes = max(1, min(processes, len(missing)))
    threads = max(1, torch.get_num_threads() // processes)
    embed = partial(_embed_part, folder=folder, level=level, bf16=bf16, device=device, threads=threads)
    try:
        for done in run_in_processes(embed, missing, processes):
            progress(min((len(files) - len(missing) + done) * CASES_PER_PART, len(cases)), len(cases))
    finally:
        _load.cache_clear()
    if not out.exists():  # else another run of the same command has finished
        join_parts(files, out, about | _summary(files, len(cases)))
    return _finished(out, about, work)


def work_folder(out: Path) -> Path:
    """The folder of the parts of a table, until it is finished."""
    return out.with_name(f".{out.name}.parts")


def _about(cases: CaseSource, name: str, folder: Path, level: str, bf16: bool, device: str | None) -> dict[str, Any]:
    """What determines a table, JSON-able."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    images = RadFMProcessor.from_pretrained(folder).image_processor.to_dict()
    return {
        "format": _FORMAT,
        "level": level,
        "model": name,
        "checkpoint": weights_sha256(folder),
        "image_processor": {name: value for name, value in images.items() if name != "auto_map"},
        **cases.about,
        "dtype": "bfloat16" if bf16 else "float32",
        "device": torch.device(device).type,
        "radfm": version("radfm"),
        "torch": torch.__version__,
    }


def _finished(out: Path, about: dict[str, Any], work: Path) -> dict[str, Any]:
    """The metadata of a finished table; deletes its parts. Raises: ValueError if something else made it."""
    made = read_about(out)
    if differs := [name for name, value in about.items() if made.get(name) != value]:
        raise ValueError(f"{out} holds another table ({', '.join(differs)} differ): give another name, or delete it")
    shutil.rmtree(work, ignore_errors=True)
    return made


def _mark(work: Path, about: dict[str, Any]) -> None:
    """Notes in the folder of the parts what determines them. Raises: ValueError if it holds other parts."""
    mark = work / _RUN
    if not mark.exists():
        write_text(mark, json.dumps(about))
    begun = json.loads(mark.read_text(encoding="utf-8"))
    if differs := [name for name, value in about.items() if begun.get(name) != value]:
        raise ValueError(
            f"{work} holds a run that was killed, of another table ({', '.join(differs)} differ): give --out another "
            "name, or delete that folder"
        )


def _summary(files: Sequence[Path], cases: int) -> dict[str, Any]:
    """What is known of a table when all of its parts are there. Raises: ValueError if no case could be read."""
    parts = [read_about(file) for file in files]
    left_out = {case_id: reason for part in parts for case_id, reason in part["left_out"].items()}
    if len(left_out) == cases:
        raise ValueError(f"none of {cases:,} cases could be embedded: {next(iter(left_out.values()))}")
    digest = hashlib.sha256("".join(digest for part in parts for digest in part["pixels"]).encode())
    return {
        "pixels": digest.hexdigest(),
        "cases": cases - len(left_out),
        "rows": sum(part["rows"] for part in parts),
        "size": parts[0]["size"],
        "left_out": left_out,
        "not_read": {case_id: files for part in parts for case_id, files in part["not_read"].items()},
    }


def _embed_part(part: _Part, folder: str, level: str, bf16: bool, device: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    model, processor = _load(folder, device)
    rows, embeddings, left_out, not_read, digests = [], [], {}, {}, []
    for position in range(len(part.cases)):
        try:
            facts, case = part.cases.read(position)
            vectors = _features(model, processor, case, level, bf16)
        except ValueError as error:
            left_out[part.cases.case_id(position)] = " ".join(str(error).split())
            continue
        if why := reasons(case.skipped):
            not_read[part.cases.case_id(position)] = f"{plural(len(case.skipped), 'file')}: {why}"
        slices = [_first_slices(model, processor, scan) for scan in case.scans]
        rows += rows_of(level, facts, case, slices)
        embeddings.append(vectors)
        digests.append(_pixels_sha256(case))
    size = model.config.projection_dim
    matrix = np.concatenate(embeddings) if embeddings else np.zeros((0, size), np.float32)
    about = {"rows": len(rows), "size": size, "left_out": left_out, "not_read": not_read, "pixels": digests}
    write_part(part.file, level, rows, matrix, about)


def _first_slices(model: RadFMForDiagnosis, processor: RadFMProcessor, scan: Scan) -> list[int]:
    """The first slice of each slab of a scan."""
    images, radfm = processor.image_processor, model.radfm
    encoder = radfm.volume_encoder if images.reads_volume(scan) and radfm.volume_encoder else radfm.slice_encoder
    taken = images.source_slices(scan)
    (sizes,) = encoder.slab_sizes([len(taken)])
    return [taken[sum(sizes[:slab])] for slab in range(len(sizes))]


@torch.inference_mode()
def _features(model: RadFMForDiagnosis, processor: RadFMProcessor, case: Case, level: str, bf16: bool) -> np.ndarray:
    """(rows, d) float32. Raises: ValueError if pixels or embeddings are not finite."""
    batch = {key: value.to(model.device) for key, value in processor(cases=[case]).items()}
    features = {"case": model.get_case_features, "scan": model.get_scan_features, "slice": model.get_slice_features}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        vectors = features[level](**batch).cpu()
    if vectors.dtype != torch.float32:
        vectors = F.normalize(vectors.float(), dim=-1)  # in bfloat16 a length is right to two digits
    if not vectors.isfinite().all():
        raise ValueError("its embedding is not finite")
    return vectors.numpy()


@lru_cache(maxsize=1)
def _load(folder: str, device: str | None) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """The checkpoint, on the GPU of this process where the device is not given."""
    if parent_process() is not None:  # one bar is enough, that of the process that started this one
        disable_progress_bar()
    if device is None and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    model, processor = load_checkpoint(folder, device)
    processor.use_history = False
    return model, processor


def _pixels_sha256(case: Case) -> str:
    digest = hashlib.sha256()
    for scan in case.scans:
        digest.update(f"{scan.pixels.shape} {scan.pixels.dtype}".encode())
        digest.update(np.ascontiguousarray(scan.pixels).data)
    return digest.hexdigest()
