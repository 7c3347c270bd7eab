"""The sections of a report: findings, impression, history, indication, and those that state nothing about the images.

    >>> Sections(read_rules()).split("INDICATION: ?PE. FINDINGS: No embolus.")
    [Section(kind='indication', text='?PE.'), Section(kind='findings', text='No embolus.')]

Decisions:
- A heading stands at the start of a line or after the end of a sentence, and before a colon or the end of the line.
  An unknown one in capitals ("LEFT WRIST:") begins findings, if it does not stand in them or in the impression.
- Text before the first heading is the title, if it is one line without a full stop. A report without headings is
  findings.
- Lines that a system has wrapped are joined. A list item and a line in capitals with a colon begin a new line.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from radfm.data_prep.reports.rules import Rule

SHOWN = ("findings", "impression")  # sections that say what the images show

_ITEM = re.compile(r"(?:^|(?<=[\n.;] ))\s*(?:\d{1,2}[.)](?=\s)|[-*•–](?=\s))", re.MULTILINE)
_BREAK = re.compile(r"\n\s*\n|\n(?=\s*[A-Z][A-Za-z /]{2,30}:)|(?<=[.:;])\s*\n")


@dataclass(frozen=True)
class Section:
    kind: str
    text: str


class Sections:
    """Splits reports by the headings of rules."""

    def __init__(self, rules: Iterable[Rule]):
        self._kinds = {_key(rule.phrase): rule.value for rule in rules if rule.rule == "section"}
        names = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(self._kinds, key=len, reverse=True))
        self._heading = re.compile(
            rf"(?:^|(?<=[.;?!]\s))[ \t]*({names})[ \t]*(?::|-(?=\s)|$)|^[ \t]*(?-i:[A-Z][A-Z ,/&-]{{2,40}})(?=:)",
            re.IGNORECASE | re.MULTILINE,
        )

    def split(self, report: str) -> list[Section]:
        """The sections in order, without those that are empty. Kinds are `SECTIONS`, and "title"."""
        headings = list(self._heading.finditer(report))
        if not headings:
            return [Section("findings", report.strip())] if report.strip() else []
        before = report[: headings[0].start()].strip()
        kind = "title" if "\n" not in before and not before.endswith(".") else "findings"
        sections = [Section(kind, before)]
        for heading, following in zip(headings, [*headings[1:], None], strict=True):
            text = report[heading.end() : following.start() if following else None].strip()
            if heading.group(1):
                kind = self._kinds[_key(heading.group(1))]
            else:
                kind, text = kind if kind in SHOWN else "findings", heading.group().strip() + text
            sections.append(Section(kind, text))
        return [section for section in sections if section.text]


def lines_of(text: str) -> Iterator[str]:
    """The paragraphs and list items of a section, each on one line."""
    for paragraph in _BREAK.split(text):
        for item in _ITEM.split(paragraph):
            if line := " ".join(item.split()):
                yield line


def _key(heading: str) -> str:
    return " ".join(heading.casefold().split())
