"""The table of rules: headings of sections, phrases that change a status, and how reports write disorders.

    rule,value,phrase,unless,needs
    mention,Pleural effusion,costophrenic blunting,,
    uncertain,before,query,,
    section,findings,observations,,

Decisions:
- A user's table has the same columns, and its rows are added to those of `rules.csv`.
- The phrases of a status are those of ConText (Chapman et al. 2007, Harkema et al. 2009), as medspaCy publishes them
  under the MIT licence, and those of radiology reports, found in sentences of which the measurement uses other ones.
- `value` of a status is the side on which the phrase stands: before or after the disorder. Phrases with `pseudo` hold
  a phrase that then means nothing ("no change in" holds "no"). `end` ends the reach of every phrase before it.
- `unless` are words of which none may occur in the report, and `needs` words of which one must: "effusion" is pleural
  unless the report is of a joint, and if it is of the chest.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from radfm.data_prep.plan import Rejected
from radfm.data_prep.sources.rows import read_rows, split_list
from radfm.knowledge import wording

STATUSES = ("present", "absent", "uncertain", "historical", "family")
ORDER = ("family", "historical", "absent", "uncertain")  # of several statuses of a mention, the first holds
SIDES = ("before", "after", "pseudo")
SECTIONS = ("findings", "impression", "history", "indication", "technique", "comparison", "recommendation")
_VALUES = {"section": SECTIONS} | dict.fromkeys(STATUSES[1:], SIDES)
_KINDS = (*_VALUES, "end", "mention", "denial", "ignore", "normal")


@dataclass(frozen=True)
class Rule:
    """A row of the table: what the phrase is, see the module."""

    rule: str
    value: str
    phrase: str
    unless: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def read_rules(file: Path | None = None) -> list[Rule]:
    """The rules that come with radfm, then those of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is no rule; the message names the file, the line and what is possible.
    """
    return [*_own_rules(), *([] if file is None else _read(file))]


@cache
def _own_rules() -> tuple[Rule, ...]:
    rows = wording.read_table("rules.csv", __package__)
    return tuple(_rule(row) for row in rows)


def _read(file: Path) -> list[Rule]:
    rules = []
    for line, row in read_rows(file):
        if isinstance(row, Rejected):
            raise ValueError(f"{file}, {row.name} {row.reason}")
        kind, value, phrase = (str(row.get(name, "")).strip() for name in ("rule", "value", "phrase"))
        if kind not in _KINDS:
            raise ValueError(f"{file}, line {line}: no such rule: {kind!r}; there are {', '.join(_KINDS)}")
        if not phrase:
            raise ValueError(f"{file}, line {line}: the phrase is empty: write one, or delete the row")
        if kind in _VALUES and value not in _VALUES[kind]:
            raise ValueError(f"{file}, line {line}: the value of {kind} is one of {', '.join(_VALUES[kind])}")
        rules.append(_rule(row | {"rule": kind, "value": value, "phrase": phrase}))
    return rules


def _rule(row: dict) -> Rule:
    words = (tuple(word.casefold() for word in split_list(row.get(name))) for name in ("unless", "needs"))
    return Rule(row["rule"], row["value"], row["phrase"], *words)
