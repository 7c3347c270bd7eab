"""ICD-10-CM as a tree of entries: chapters, blocks, categories, subcategories and seven-character codes.

    >>> from radfm.knowledge import icd10cm
    >>> entry = icd10cm.get("s83.511a")
    >>> entry.description
    'Sprain of anterior cruciate ligament of right knee, initial encounter'
    >>> entry.parent.code, icd10cm.distance("S83.511", "S83.512")
    ('S83.511', 2)

Decisions:
- Source: the tabular list of the CDC/NCHS as the package simple-icd-10-cm carries it (version 1.5: April 2026).
- That package parses 10 MB of XML on import (about 1.5 s). We parse once, keep the table in the user's cache folder,
  and make an entry when it is asked for. Importing this module loads nothing.
- Every entry has a code of its own. The tabular list gives 39 blocks the name of their only category ("C50"); here
  such a block is "C50-C50", as other blocks are "C60-C63", and "C50" is the category.
- Descriptions of chapters and blocks are without the range in brackets that the tabular list ends them with.
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

from radfm.knowledge.cache import Columns, remember

Kind = Literal["chapter", "block", "category", "subcategory", "extension"]
KINDS: tuple[Kind, ...] = ("chapter", "block", "category", "subcategory", "extension")
NOTES = ("inclusion_terms", "includes", "excludes1", "excludes2")

_FORMAT = 1  # of the cached table: raise it when `_parse` changes what it returns


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the tabular list.

    Attributes:
        code: With its dot, such as "I71.4"; "A00-A09" for a block, "1" to "22" for a chapter.
        kind: "chapter", "block", "category" (three characters), "subcategory", or "extension" (a seventh character).
        description: The full one; for an extension that of its parent and the meaning of the seventh character.
        inclusion_terms: Conditions that this very code is used for.
        includes: Conditions that the entry and all below it contain.
        excludes1: What is never coded together with this entry.
        excludes2: What is not part of this entry, but may be coded beside it.
        parent_code: None for a chapter.
        child_codes: In the order of the tabular list.
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
        found = []
        entry = self.parent
        while entry is not None:
            found.append(entry)
            entry = entry.parent
        return tuple(found)

    @property
    def category(self) -> str | None:
        """The three characters the code begins with; None for chapters and blocks."""
        return None if self.kind in ("chapter", "block") else self.code[:3]

    @property
    def path(self) -> tuple[str, ...]:
        """Descriptions from the chapter down to this entry."""
        return (*(entry.description for entry in reversed(self.ancestors)), self.description)

    @property
    def billable(self) -> bool:
        """Whether nothing more specific exists below it."""
        return not self.child_codes and self.kind not in ("chapter", "block")


def get(code: str) -> Entry:
    """The entry of a code, however it is written: see `normalise`, which also says what is raised."""
    return _entry(_row(code))


def normalise(code: str) -> str:
    """A code as the tabular list writes it: "i71.3", "I713" and "I71.3 " are "I71.3", "S83.51-" is "S83.51".

    Raises:
        ValueError: The code is unknown (mistyped, retired, of another edition of ICD-10); the message names near ones.
        TypeError: It is not a string.
    """
    return _table().codes[_row(code)]


def entries(*kinds: Kind) -> Iterator[Entry]:
    """All 98,505 entries in the order of the tabular list, or those of the given kinds."""
    table = _table()
    unknown = set(kinds).difference(KINDS)
    if unknown:
        raise ValueError(f"no such kind of entry: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    wanted = {KINDS.index(kind) for kind in kinds or KINDS}
    return (_entry(row) for row in range(len(table.codes)) if table.kinds[row] in wanted)


def common_ancestor(a: str, b: str) -> Entry | None:
    """The lowest entry that contains both codes, which may be one of them; None where they share no chapter."""
    above = set(_lineage(_row(a)))
    return next((_entry(row) for row in _lineage(_row(b)) if row in above), None)


def distance(a: str, b: str) -> int:
    """Steps between two codes in the tree; chapters hang two steps apart, on a common root."""
    first, second = _lineage(_row(a)), _lineage(_row(b))
    shared = len(set(first) & set(second))
    return len(first) + len(second) - 2 * shared


def edition() -> str:
    """Which tabular list this is, for a cache key or a model card: "simple-icd-10-cm 1.5.0"."""
    return f"simple-icd-10-cm {version('simple-icd-10-cm')}"


class _Table:
    """The tabular list by columns; `rows` finds the row of a code, `notes[kind]` the notes of a row."""

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
    return _Table(remember("icd10cm", f"{version('simple-icd-10-cm')}-{_FORMAT}", _parse))


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
    shown = code if len(code) <= 20 else f"{code[:20]}..."
    if not re.fullmatch(r"[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?", dotted):
        return f"{shown!r} is no ICD-10-CM code, which looks like I71.3 or S83.511A"
    table, known = _table(), dotted
    while known and known not in table.rows:
        known = known[:-1].removesuffix(".")
    if known:
        below = [table.codes[row] for row in table.children.get(table.rows[known], ())]
        near = [known, *difflib.get_close_matches(dotted, below, n=4, cutoff=0)]
    else:
        categories = [c for c, kind in zip(table.codes, table.kinds, strict=True) if KINDS[kind] == "category"]
        near = difflib.get_close_matches(dotted[:3], categories, n=4, cutoff=0.5)
    found = f"; near it: {', '.join(near)}" if near else ""
    return f"{shown!r} is not in ICD-10-CM ({edition()}): mistyped, retired, or of another edition{found}"


def _parse() -> Columns:
    """The columns of `_Table` from simple-icd-10-cm. Of an extension, `texts` holds what follows its parent's."""
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
    met: set[str] = set()
    lineage: list[int] = []  # rows from the chapter to the entry last read
    for row, name in enumerate(names):
        of_block = name in shared and name not in met  # the block comes before the category that has its name
        met.add(name)
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
