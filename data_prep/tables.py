"""The files of a data set, and the file format of its tables. Nothing else in radfm knows the format.

    OUT/scans/data-00000.arrow ...   one record batch per scan
    OUT/cases/data-00000.arrow       the cases with their labels
    OUT/truth/data-00000.arrow ...   masks, only where the source provides them
    OUT/sizes/data-00000.arrow ...   volumes of disorders by date, only where the source knows them
    OUT/disorders.json               the vocabulary: `labels` are its rows
    OUT/dataset.json                 settings and counts; written last

Decisions:
- The format is Arrow's stream format without compression. `datasets` and `StoredScans` map it into memory, so that the
  pixels of a scan are a view of the file, and reading any slice of any scan costs the same.
- Pixels are bytes with a shape and a data type in other columns, because a list of numbers would be copied.
- Floats are stored with 32 bits, except pixels.
- Every file is written beside its final place and renamed when it is complete, so that an interruption at any moment
  leaves no partial file.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radfm.cases import Scan
from radfm.data_prep.columns import TABLES, Column

FORMAT = 1
RECORD = "dataset.json"
TABLE_FILES = "data-*.arrow"

_ROWS_PER_BATCH = 1000
_TYPES = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "bytes": pa.large_binary(),
}


class StoredScans(Sequence[Scan]):
    """The scans of a data set by their row in the table of scans. Pixels are read-only views of the files.

    The position of each scan in a file is looked up when a scan of that file is first read.

    Args:
        folder: of a data set, which need not be finished.
        scans_per_shard: number of scans in each file; None: they are counted.
    """

    def __init__(self, folder: Path, scans_per_shard: Sequence[int] | None = None):
        self._folder = folder
        self._positions: dict[int, tuple[pa.MemoryMappedFile, np.ndarray]] = {}
        if scans_per_shard is None:
            shards = range(len(list((folder / "scans").glob(TABLE_FILES))))
            scans_per_shard = [len(self._look_up(shard)[1]) for shard in shards]
        self._ends = np.cumsum(scans_per_shard)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Scan:  # type: ignore[override]  # one scan at a time, no slices
        batch = self._batch(row)
        header = _header(batch)
        shape, spacing = header["shape"], header["spacing_mm"]
        # The column's own buffer, because a scalar taken from the column would be a copy.
        pixels = np.frombuffer(batch["pixels"].buffers()[2], header["dtype"], count=math.prod(shape)).reshape(shape)
        return Scan(
            pixels,
            header["modality"],
            header["plane"],
            None if spacing is None else tuple(spacing),
            header["days"],
            header["body_part"],
            header["key_slice"],
            header["source"],
        )

    def header(self, row: int) -> dict:
        """All columns of a scan except its pixels."""
        return _header(self._batch(row))

    def masks(self, row: int) -> dict[str, np.ndarray]:
        """Disorder -> (slices, H, W) bool mask of a scan, read from its shard alone; empty where there is none."""
        file = _shard_file(self._folder, "truth", int(np.searchsorted(self._ends, row, side="right")))
        if not file.exists():
            return {}
        header, masks = self.header(row), {}
        for truth in _read_batches(file):
            of_case = pc.equal(truth["case_id"], header["case_id"])
            of_scan = truth.filter(pc.and_(of_case, pc.equal(truth["number"], header["number"])))
            masks |= {mask["disorder"]: unpack_mask(mask) for mask in of_scan.to_pylist()}
        return masks

    def _batch(self, row: int) -> pa.RecordBatch:
        if not 0 <= row < len(self):
            raise IndexError(f"there is no scan {row} of {len(self)}")
        shard = int(np.searchsorted(self._ends, row, side="right"))
        file, positions = self._look_up(shard)
        from_end = int(self._ends[shard]) - row
        if from_end > len(positions):  # the file was cut short between two scans, or holds zeros
            raise _damaged(_shard_file(self._folder, "scans", shard))
        file.seek(int(positions[-from_end]))
        return pa.ipc.read_record_batch(pa.ipc.read_message(file), _SCHEMAS["scans"])

    def _look_up(self, shard: int) -> tuple[pa.MemoryMappedFile, np.ndarray]:
        """A file of scans, and the positions of its record batches."""
        if shard in self._positions:
            return self._positions[shard]
        path = _shard_file(self._folder, "scans", shard)
        file, positions = pa.memory_map(str(path)), []
        try:
            while True:
                positions.append(file.tell())
                pa.ipc.read_message(file)
        except EOFError:
            positions.pop()
        except pa.ArrowInvalid:
            raise _damaged(path) from None
        self._positions[shard] = file, np.array(positions[1:], np.int64)  # the first message is the schema
        return self._positions[shard]


def read_rows(folder: Path, table: str) -> list[dict]:
    """All rows of a table, whose columns `columns.py` describes; None where an older data set lacks a column.

    Raises:
        FileNotFoundError: the data set has no such table.
        ValueError: a file is damaged.
    """
    files = _files(folder, table)
    if not files:
        raise FileNotFoundError(f"{folder / table} holds no table: prepare the data set again, or copy it again")
    columns = dict.fromkeys(TABLES[table])
    return [columns | row for file in files for batch in _read_batches(file) for row in batch.to_pylist()]


def read_masks(folder: Path) -> dict[tuple[str, int], dict[str, dict]]:
    """(case_id, number of the scan) -> disorder -> row of the table of truth, for `unpack_mask`; empty without one."""
    masks: dict[tuple[str, int], dict[str, dict]] = {}
    for row in read_rows(folder, "truth") if _files(folder, "truth") else ():
        masks.setdefault((row["case_id"], row["number"]), {})[row["disorder"]] = row
    return masks


def unpack_mask(row: dict) -> np.ndarray:
    """The mask of a row of the table of truth: (slices, H, W) bool."""
    bits = np.unpackbits(np.frombuffer(row["mask"], np.uint8), count=int(np.prod(row["shape"])))
    return bits.reshape(row["shape"]).astype(bool)


def write_rows(folder: Path, table: str, rows: Sequence[dict], shard: int = 0, rows_per_batch: int = _ROWS_PER_BATCH):
    """Writes a file of a table."""
    batches = (rows[start : start + rows_per_batch] for start in range(0, len(rows), rows_per_batch))
    with _stream(folder, table, shard) as stream:
        for batch in batches:
            stream.write_batch(pa.RecordBatch.from_pylist(list(batch), schema=_SCHEMAS[table]))


def write_scans(folder: Path, shard: int, rows: Iterable[dict]) -> None:
    """Writes a file of scans, one after the other as `rows` yields them; `pixels` are C-contiguous arrays."""
    with _stream(folder, "scans", shard) as stream:
        for row in rows:
            stream.write_batch(_one_row(row, _SCHEMAS["scans"]))


def count_rows(folder: Path, table: str, shard: int) -> int:
    """Number of rows in a file of a table."""
    return sum(batch.num_rows for batch in _read_batches(_shard_file(folder, table, shard)))


def has_table(folder: Path, table: str) -> bool:
    """Whether the data set has a table; "truth" and "sizes" are only where a source knows what they hold."""
    return bool(_files(folder, table))


def bytes_on_disk(folder: Path, tables: Sequence[str]) -> int:
    """Size of the files of these tables, which are nearly all of a data set."""
    return sum(file.stat().st_size for table in tables for file in _files(folder, table))


def describe(folder: Path, table: str, fingerprint: str) -> None:
    """Writes what `datasets.load_from_disk` expects beside the files of a table."""
    from datasets import DatasetInfo, Features

    state = {
        "_data_files": [{"filename": file.name} for file in _files(folder, table)],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = DatasetInfo(features=Features.from_arrow_schema(_SCHEMAS[table]))
    kept = {"citation": "", "description": "", "features": info.features.to_dict(), "homepage": "", "license": ""}
    write_text(folder / table / "state.json", json.dumps(state, indent=2, sort_keys=True) + "\n")
    write_text(folder / table / "dataset_info.json", json.dumps(kept, indent=2, sort_keys=True) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which replaces it if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def remove_abandoned_drafts(folder: Path) -> None:
    """Removes the partial files of tables that killed processes have left."""
    for table in TABLES:
        for draft in (folder / table).glob(f".{TABLE_FILES}.*"):
            if not _is_running(int(draft.suffix[1:])):
                draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, complete or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # where signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def _schema(columns: dict[str, Column]) -> pa.Schema:
    def arrow_type(name: str) -> pa.DataType:
        return pa.list_(_TYPES[name[8:]]) if name.startswith("list of ") else _TYPES[name]

    return pa.schema([(name, arrow_type(column.type)) for name, column in columns.items()])


_SCHEMAS = {table: _schema(columns) for table, columns in TABLES.items()}


def _shard_file(folder: Path, table: str, shard: int) -> Path:
    return folder / table / f"data-{shard:05d}.arrow"


def _files(folder: Path, table: str) -> list[Path]:
    return sorted((folder / table).glob(TABLE_FILES))


@contextmanager
def _stream(folder: Path, table: str, shard: int) -> Iterator[pa.RecordBatchStreamWriter]:
    with (
        replacing(_shard_file(folder, table, shard)) as draft,
        pa.OSFile(str(draft), "wb") as file,
        pa.ipc.new_stream(file, _SCHEMAS[table]) as stream,
    ):
        yield stream


def _one_row(row: dict, schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of one row; arrays are not copied."""
    columns = []
    for field in schema:
        value = row[field.name]
        if isinstance(value, np.ndarray):
            ends = pa.py_buffer(np.array([0, value.nbytes], np.int64))
            columns.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(value)]))
        else:
            columns.append(pa.array([value], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _header(batch: pa.RecordBatch) -> dict:
    return {name: batch[name][0].as_py() for name in batch.schema.names if name != "pixels"}


def _read_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a file, mapped into memory. Raises: ValueError for what is no Arrow stream."""
    try:
        return list(pa.ipc.open_stream(pa.memory_map(str(path))))
    except pa.ArrowInvalid:
        raise _damaged(path) from None


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged: prepare the data set again, or copy it again")
