"""Tables of embeddings: their columns, their parts, and the Parquet file that the parts become.

    >>> table = pandas.read_parquet("embeddings.parquet")
    >>> numpy.stack(table["embedding"]).shape  # (rows, d), of unit length
    >>> read_about("embeddings.parquet")["checkpoint"]

| level | a row is | further columns |
|---|---|---|
| case | a case | modalities, body_parts, scans, slices |
| scan | a scan, as a case of its own | scan, modality, plane, body_part, days, slices |
| slice | a slice, as a case of its own | scan, slice, modality, plane, body_part, days |

Every level has case_id and patient_id, and, where the data set states them, split, collection, labelled, disorders,
icd10cm, age and sex. `scan` is the index of the scan in its case, `slice` that of the slice in its scan, from 0.

Decisions:
- An embedding is a list of fixed size of float32, which pandas, polars and `datasets` read without radfm.
- What made the table is JSON in the metadata of the schema. Nothing in it names a patient or a path.
- A Parquet file cannot be continued, because its index comes last. So a run writes parts, and joins them at the end.
- Parts are joined one after the other, in groups of rows that do not depend on how often the run was killed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from radfm.cases import Case
from radfm.data_prep.tables import replacing

LEVELS = ("case", "scan", "slice")

_KEY = b"radfm embeddings"
_ROWS_PER_GROUP = 8192
_NAMES = pa.list_(pa.string())
_OF_CASE = {
    "case_id": pa.string(),
    "patient_id": pa.string(),
    "split": pa.string(),
    "collection": pa.string(),
    "labelled": pa.bool_(),
    "disorders": _NAMES,
    "icd10cm": _NAMES,
    "age": pa.float32(),
    "sex": pa.string(),
}
_OF_SCAN = {"modality": pa.string(), "plane": pa.string(), "body_part": pa.string(), "days": pa.float32()}
_OF_LEVEL = {
    "case": {"modalities": _NAMES, "body_parts": _NAMES, "scans": pa.int32(), "slices": pa.int32()},
    "scan": {"scan": pa.int32(), **_OF_SCAN, "slices": pa.int32()},
    "slice": {"scan": pa.int32(), "slice": pa.int32(), **_OF_SCAN},
}


def rows_of(level: str, facts: Mapping[str, Any], case: Case, slices: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The rows of a case, without embeddings.

    Args:
        facts: what is known of the case, columns of `_OF_CASE`.
        slices: of each scan, the indices of its slices that have an embedding.
    """
    if level == "case":
        of_case = {
            "modalities": sorted({scan.modality for scan in case.scans if scan.modality}),
            "body_parts": sorted({scan.body_part for scan in case.scans if scan.body_part}),
            "scans": len(case.scans),
            "slices": sum(len(scan.pixels) for scan in case.scans),
        }
        return [{**facts, **of_case}]
    rows = []
    for number, scan in enumerate(case.scans):
        row = {**facts, "scan": number, **{name: getattr(scan, name) for name in _OF_SCAN}}
        rows += (
            [row | {"slices": len(scan.pixels)}] if level == "scan" else [row | {"slice": i} for i in slices[number]]
        )
    return rows


def write_part(
    path: Path, level: str, rows: Sequence[dict[str, Any]], embeddings: np.ndarray, about: Mapping[str, Any]
) -> None:
    """Writes a part, complete or not at all.

    Args:
        embeddings: (rows, d).
        about: of the part, JSON-able.
    """
    columns = _OF_CASE | _OF_LEVEL[level]
    vectors = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel(), pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(vectors, embeddings.shape[1])
    table = pa.Table.from_pylist(list(rows), pa.schema(columns)).append_column("embedding", vectors)
    with replacing(path) as draft:
        pq.write_table(table.replace_schema_metadata(_metadata(about)), draft)


def join_parts(parts: Sequence[Path], out: Path, about: Mapping[str, Any]) -> None:
    """Writes the table of all parts, complete or not at all; a group of rows is in memory at a time."""
    schema = pq.read_schema(parts[0]).with_metadata(_metadata(about))
    with replacing(out) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for table in _groups(parts):
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def read_about(path: Path) -> dict[str, Any]:
    """What made a table, or a part of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table of embeddings.
    """
    try:
        return json.loads(pq.read_schema(path).metadata[_KEY])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no table of embeddings: give another name, or delete it") from None


def _groups(parts: Sequence[Path]) -> Iterator[pa.Table]:
    """The rows of the parts in order, `_ROWS_PER_GROUP` at a time."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(pq.read_table(part))
        while sum(map(len, waiting)) >= _ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, _ROWS_PER_GROUP)
            waiting = [joined.slice(_ROWS_PER_GROUP)]
    yield pa.concat_tables(waiting)


def _metadata(about: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {_KEY: json.dumps(about, ensure_ascii=False).encode()}
