"""The tables of a data set, their files, and how they are written so that a kill at any moment leaves no half file.

    OUT/scans/data-00000.arrow ...   one record batch per scan
    OUT/cases/data-00000.arrow       the labels
    OUT/truth/data-00000.arrow ...   masks, only where the source knows them
    OUT/disorders.json               the vocabulary: `labels` are its rows
    OUT/dataset.json                 settings, counts; written last

Decisions:
- Arrow's stream format without compression, which `datasets` maps into memory, and so do we: a scan's pixels are a view
  of the file, and any slice of any scan costs the same.
- Pixels are bytes with a shape and a type beside them, because a list of numbers per pixel would be copied.
- Floats are 32 bits wide, except pixels.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

FORMAT = 1
RECORD = "dataset.json"

SCANS = pa.schema(
    [
        ("case_id", pa.string()),
        ("number", pa.int32()),  # of the scan within its case
        ("pixels", pa.large_binary()),
        ("shape", pa.list_(pa.int32())),  # (slices, H, W) or (slices, H, W, 3)
        ("dtype", pa.string()),  # uint8 or float16
        ("modality", pa.string()),
        ("modality_from", pa.string()),  # header, source, guess, or unknown
        ("plane", pa.string()),
        ("plane_from", pa.string()),
        ("spacing_mm", pa.list_(pa.float32())),  # slices, rows, columns
        ("days", pa.float32()),  # before the newest scan of the case
        ("body_part", pa.string()),
        ("key_slice", pa.int32()),
        ("source", pa.string()),
        ("text_in_pixels", pa.string()),  # why there may be any: header, borders; null where nothing says so
    ]
)
CASES = pa.schema(
    [
        ("case_id", pa.string()),
        ("patient_id", pa.string()),
        ("scan_rows", pa.list_(pa.int64())),
        ("disorders", pa.list_(pa.string())),
        ("labels", pa.list_(pa.int32())),  # rows of the vocabulary
        ("icd10cm", pa.list_(pa.string())),  # of all disorders
        ("labelled", pa.bool_()),  # False: nobody said what the case shows
        ("history", pa.string()),
        ("age", pa.float32()),  # years, 90 for all above 89
        ("sex", pa.string()),  # F, M or other
        ("split", pa.string()),
        ("split_from", pa.string()),  # source or drawn
    ]
)
TRUTH = pa.schema(
    [
        ("case_id", pa.string()),
        ("number", pa.int32()),
        ("disorder", pa.string()),
        ("mask", pa.large_binary()),  # numpy.packbits of (slices, H, W)
        ("shape", pa.list_(pa.int32())),
    ]
)
TABLES = {"scans": SCANS, "cases": CASES, "truth": TRUTH}


def shard_file(folder: Path, table: str, shard: int) -> Path:
    return folder / table / f"data-{shard:05d}.arrow"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, that takes its place when the block ends well: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def write_batches(path: Path, schema: pa.Schema, rows: Iterable[list[dict]]) -> None:
    """One record batch for each list of rows."""
    with replacing(path) as draft, pa.OSFile(str(draft), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in rows:
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def one_row(row: dict, schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of one row; pixels, a C-contiguous array, are not copied."""
    columns = []
    for field in schema:
        value = row[field.name]
        if isinstance(value, np.ndarray):
            ends = pa.py_buffer(np.array([0, value.nbytes], np.int64))
            columns.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(value)]))
        else:
            columns.append(pa.array([value], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def read_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a file, mapped into memory. Raises: ValueError for what is no Arrow stream."""
    try:
        return list(pa.ipc.open_stream(pa.memory_map(str(path))))
    except pa.ArrowInvalid:
        raise _damaged(path) from None


class StoredScans(Sequence[pa.RecordBatch]):
    """The rows of the table of scans, each a record batch of one row whose pixels are a view of the file.

    A file's batches are found by their places in it, which are looked up when a row of it is first asked for.
    """

    def __init__(self, folder: Path, rows_per_shard: Sequence[int]):
        self._folder = folder
        self._ends = np.cumsum(rows_per_shard)
        self._open: dict[int, tuple[pa.MemoryMappedFile, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> pa.RecordBatch:
        if not 0 <= row < len(self):
            raise IndexError(f"there is no scan {row} of {len(self)}")
        shard = int(np.searchsorted(self._ends, row, side="right"))
        file, places = self._open.get(shard) or self._look_up(shard)
        file.seek(int(places[row - int(self._ends[shard])]))  # counted from the end, so the schema does not matter
        return pa.ipc.read_record_batch(pa.ipc.read_message(file), SCANS)

    def _look_up(self, shard: int) -> tuple[pa.MemoryMappedFile, np.ndarray]:
        path = shard_file(self._folder, "scans", shard)
        file, places = pa.memory_map(str(path)), []
        try:
            while True:
                places.append(file.tell())
                pa.ipc.read_message(file)
        except EOFError:
            places.pop()
        except pa.ArrowInvalid:
            raise _damaged(path) from None
        self._open[shard] = file, np.array(places, np.int64)
        return self._open[shard]


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged: prepare the data set again, or copy it again")


def describe(folder: Path, table: str, fingerprint: str) -> None:
    """Writes what `datasets.load_from_disk` wants to find beside the files of a table."""
    from datasets import DatasetInfo, Features

    files = sorted(file.name for file in (folder / table).glob("data-*.arrow"))
    state = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = DatasetInfo(features=Features.from_arrow_schema(TABLES[table]))
    kept = {"citation": "", "description": "", "features": info.features.to_dict(), "homepage": "", "license": ""}
    write_text(folder / table / "state.json", json.dumps(state, indent=2, sort_keys=True) + "\n")
    write_text(folder / table / "dataset_info.json", json.dumps(kept, indent=2, sort_keys=True) + "\n")
