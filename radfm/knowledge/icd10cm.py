"""ICD-10-CM as a tree of entries: chapters, blocks, categories, subcategories and seven-character codes.

    >>> from radfm.knowledge import icd10cm
    >>> entry = icd10cm.get("s83.511a")
    >>> entry.description
    'Sprain of anterior cruciate ligament of right knee, initial encounter'
    >>> entry.parent.code, icd10cm.distance("S83.511", "S83.512")
    ('S83.511', 2)

Decisions:
- Source: the tabular list of the CDC/NCHS in the package simple-icd-10-cm (version 1.5: April 2026).
- That package parses 10 MB of XML on import (about 1.5 s). The table is parsed once and kept in the user's cache
  folder; entries are created on access. Importing this module loads nothing.
- Every entry has a unique code. The tabular list names 39 blocks like their only category ("C50"). Here such a block is
  "C50-C50", like the block "C60-C63", and "C50" is the category.
- Descriptions of chapters and blocks omit the range of codes in brackets at their end.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Literal

import numpy as np

from radfm.knowledge.cache import Columns, cached_columns

Kind = Literal["chapter", "block", "category", "subcategory", "extension"]
KINDS: tuple[Kind, ...] = ("chapter", "block", "category", "subcategory", "extension")
NOTES = ("inclusion_terms", "includes", "excludes1", "excludes2")

_FORMAT = 1  # of the cached table: increase it when the result of `_parse` changes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the tabular list.

    Attributes:
        code: with its dot, such as "I71.4"; "A00-A09" for a block, "1" to "22" for a chapter.
        kind: "chapter", "block", "category" (three characters), "subcategory", or "extension" (a seventh character).
        description: in full; for an extension, that of its parent with the meaning of the seventh character.
        inclusion_terms: conditions for which this code is used.
        includes: conditions that the entry and the entries below it contain.
        excludes1: conditions that are never coded together with this entry.
        excludes2: conditions that are not part of this entry, but may be coded in addition.
        parent_code: None for a chapter.
        child_codes: in the order of the tabular list.
    """

    code: str
    kind: Kind
    description: str
    inclusion_terms: tuple[str, ...]
    includes: tuple[str, ...]
    excludes1: tuple[str, ...]
    excludes2: tuple[str, ...]
    parent_code: str | None
    child_codes: tuple[str, ...]

    @property
    def parent(self) -> "Entry | None":
        return None if self.parent_code is None else get(self.parent_code)

    @property
    def children(self) -> tuple["Entry", ...]:
        return tuple(get(code) for code in self.child_codes)

    @property
    def ancestors(self) -> tuple["Entry", ...]:
        """From the parent to the chapter."""
        ancestors = []
        entry = self.parent
        while entry is not None:
            ancestors.append(entry)
            entry = entry.parent
        return tuple(ancestors)

    @property
    def category(self) -> str | None:
        """The first three characters of the code; None for chapters and blocks."""
        return None if self.kind in ("chapter", "block") else self.code[:3]

    @property
    def path(self) -> tuple[str, ...]:
        """Descriptions from the chapter down to this entry."""
        return (*(entry.description for entry in reversed(self.ancestors)), self.description)

    @property
    def billable(self) -> bool:
        """Whether the code may be used for billing: there is no more specific code below it."""
        return not self.child_codes and self.kind not in ("chapter", "block")


def get(code: str) -> Entry:
    """The entry of a code in any spelling that `normalise` accepts. Raises as `normalise`."""
    return _entry(_row(code))


def normalise(code: str) -> str:
    """A code as in the tabular list: "i71.3", "I713" and "I71.3 " become "I71.3", "S83.51-" becomes "S83.51".

    Raises:
        ValueError: the code is unknown (mistyped, retired, of another edition); the message names similar codes.
        TypeError: it is not a string.
    """
    return _table().codes[_row(code)]


def entries(*kinds: Kind) -> Iterator[Entry]:
    """All 98,505 entries in the order of the tabular list, or those of the given kinds.

    Raises:
        ValueError: an unknown kind.
    """
    table = _table()
    unknown = set(kinds).difference(KINDS)
    if unknown:
        raise ValueError(f"no such kind of entry: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    chosen = {KINDS.index(kind) for kind in kinds or KINDS}
    return (_entry(row) for row in range(len(table.codes)) if table.kinds[row] in chosen)


def common_ancestor(a: str, b: str) -> Entry | None:
    """The lowest entry that contains both codes, perhaps one of the two; None where they are in different chapters."""
    of_first = set(_lineage(_row(a)))
    return next((_entry(row) for row in _lineage(_row(b)) if row in of_first), None)


def distance(a: str, b: str) -> int:
    """Number of edges between two codes in the tree, whose root is above the chapters."""
    first, second = _lineage(_row(a)), _lineage(_row(b))
    shared = len(set(first) & set(second))
    return len(first) + len(second) - 2 * shared


def edition() -> str:
    """The source of the tabular list, for cache keys and model cards: "simple-icd-10-cm 1.5.0"."""
    return f"simple-icd-10-cm {version('simple-icd-10-cm')}"


class _Table:
    """The tabular list in columns.

    Attributes:
        rows: code -> its row.
        children: row -> the rows below it.
        notes: kind of note -> row -> its notes.
    """

    def __init__(self, columns: Columns):
        self.codes: list[str] = columns["codes"]
        self.texts: list[str] = columns["texts"]
        self.kinds: list[int] = columns["kinds"].tolist()
        self.parents: list[int] = columns["parents"].tolist()
        self.rows = {code: row for row, code in enumerate(self.codes)}
        self.children: dict[int, list[int]] = {}
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                self.children.setdefault(parent, []).append(row)
        self.notes: dict[str, dict[int, list[str]]] = {}
        for kind in NOTES:
            by_row = self.notes[kind] = {}
            for row, text in zip(columns[f"{kind} rows"].tolist(), columns[kind], strict=False):
                by_row.setdefault(row, []).append(text)


@cache
def _table() -> _Table:
    return _Table(cached_columns("icd10cm", f"{version('simple-icd-10-cm')}-{_FORMAT}", _parse))


@cache
def _entry(row: int) -> Entry:
    table = _table()
    parent = table.parents[row]
    text, kind = table.texts[row], KINDS[table.kinds[row]]
    return Entry(
        code=table.codes[row],
        kind=kind,
        description=table.texts[parent] + text if kind == "extension" else text,
        **{note: tuple(table.notes[note].get(row, ())) for note in NOTES},
        parent_code=table.codes[parent] if parent >= 0 else None,
        child_codes=tuple(table.codes[child] for child in table.children.get(row, ())),
    )


def _lineage(row: int) -> list[int]:
    """The rows from an entry up to its chapter."""
    rows, parents = [], _table().parents
    while row >= 0:
        rows.append(row)
        row = parents[row]
    return rows


def _row(code: str) -> int:
    if not isinstance(code, str):
        raise TypeError(f"an ICD-10-CM code is a string, not {type(code).__name__}")
    rows = _table().rows
    bare = re.sub(r"[\s.]", "", code).upper().replace("–", "-").removesuffix("-")
    dotted = f"{bare[:3]}.{bare[3:]}" if len(bare) > 3 and "-" not in bare else bare
    if dotted not in rows:
        raise ValueError(_unknown(code, dotted))
    return rows[dotted]


def _unknown(code: str, dotted: str) -> str:
    """The message of the error for an unknown code."""
    displayed = code if len(code) <= 20 else f"{code[:20]}..."
    if not re.fullmatch(r"[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?", dotted):
        return f"{displayed!r} is no ICD-10-CM code: codes have the form I71.3 or S83.511A"
    table, known = _table(), dotted
    while known and known not in table.rows:
        known = known[:-1].removesuffix(".")
    if known:
        below = [table.codes[row] for row in table.children.get(table.rows[known], ())]
        near = [known, *difflib.get_close_matches(dotted, below, n=4, cutoff=0)]
    else:
        categories = [c for c, kind in zip(table.codes, table.kinds, strict=True) if KINDS[kind] == "category"]
        near = difflib.get_close_matches(dotted[:3], categories, n=4, cutoff=0.5)
    similar = f"; near it: {', '.join(near)}" if near else ""
    return f"{displayed!r} is not in ICD-10-CM ({edition()}): mistyped, retired, or of another edition{similar}"


def _parse() -> Columns:
    """The columns of `_Table` from simple-icd-10-cm. The text of an extension lacks the description of its parent."""
    import simple_icd_10_cm as source

    readers = {
        "inclusion_terms": source.get_inclusion_term,
        "includes": source.get_includes,
        "excludes1": source.get_excludes1,
        "excludes2": source.get_excludes2,
    }
    codes, texts, kinds, parents = [], [], [], []
    notes: dict[str, tuple[list[int], list[str]]] = {note: ([], []) for note in NOTES}
    names = source.get_all_codes()
    shared = {name for name, times in Counter(names).items() if times > 1}
    parsed: set[str] = set()
    lineage: list[int] = []  # rows from the chapter to the last entry
    for row, name in enumerate(names):
        of_block = name in shared and name not in parsed  # the block comes before the category of the same name
        parsed.add(name)
        code = f"{name}-{name}" if of_block else name
        kind = _kind(source, name, of_block)
        parent_name = source.get_parent(name, prioritize_blocks=of_block)
        while lineage and names[lineage[-1]] != parent_name:
            lineage.pop()
        parent = lineage[-1] if lineage else -1
        lineage.append(row)
        text = _one_line(source.get_description(name, prioritize_blocks=of_block))
        if kind == "extension":
            text = text.removeprefix(texts[parent])
        elif kind in ("chapter", "block"):
            text = re.sub(r"\s*\([A-Z0-9]{3}(-[A-Z0-9]{3})?\)$", "", text)
        codes.append(code)
        texts.append(text)
        kinds.append(KINDS.index(kind))
        parents.append(parent)
        for note, read in readers.items():
            for text in read(name, prioritize_blocks=of_block):
                notes[note][0].append(row)
                notes[note][1].append(_one_line(text))
    columns: Columns = {
        "codes": codes,
        "texts": texts,
        "kinds": np.array(kinds, np.int8),
        "parents": np.array(parents, np.int32),
    }
    for note, (rows, lines) in notes.items():
        columns[f"{note} rows"] = np.array(rows, np.int32)
        columns[note] = lines
    return columns


def _kind(source, name: str, of_block: bool) -> Kind:
    if source.is_chapter(name):
        return "chapter"
    if of_block or (source.is_block(name) and not source.is_category(name)):
        return "block"
    if source.is_category(name):
        return "category"
    return "extension" if source.is_extended_subcategory(name) else "subcategory"


def _one_line(text: str) -> str:
    return " ".join(text.split())
