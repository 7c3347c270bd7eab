"""From the text of a report to its findings: one for each disorder and status, with the sentence that says so.

Decisions:
- Findings and impression say what the images show. Where both name a disorder, the impression decides; where one
  section names it several times, present comes before uncertain, and uncertain before absent.
- The history says what was before: a disorder that it simply names is historical. The indication is what is looked for,
  so it labels nothing, except what it calls historical or of the family.
- Titles, technique, comparison and recommendations label nothing.
- A finding that sections or sentences contradict keeps half of its confidence.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from radfm.data_prep.reports.context import Context
from radfm.data_prep.reports.mentions import Mention, MentionFinder
from radfm.data_prep.reports.rules import read_rules
from radfm.data_prep.reports.sections import SHOWN, Sections, lines_of
from radfm.knowledge.disorders import Vocabulary

BACKGROUND = ("historical", "family")
_CURRENT = ("present", "uncertain", "absent")  # the first wins
_WORD = re.compile(r"[a-z]+")
_SENTENCE_END = re.compile(r"[.;!?](?:\s|$)")


@dataclass(frozen=True)
class Finding:
    """What a report says about a disorder.

    Attributes:
        disorder: name in the vocabulary.
        status: one of `STATUSES`.
        sentence: the evidence.
        section: where it stands.
        icd10cm: the confident code of the disorder, "" where there is none.
        confidence: 0 to 1.
        contradicted: whether another sentence says something else.
    """

    disorder: str
    status: str
    sentence: str
    section: str
    icd10cm: str
    confidence: float
    contradicted: bool = False


class ReportReader:
    """Reads reports. Create it once.

    Args:
        vocabulary: disorders to look for, or their names.
        rules: a table of further rules, see `rules`.
    """

    def __init__(self, vocabulary: Vocabulary | Sequence[str], rules: Path | None = None):
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.from_names(vocabulary)
        table = read_rules(rules)
        self._sections, self._context = Sections(table), Context(table)
        self._finder = MentionFinder(self.vocabulary, table)
        phrases = "|".join(re.escape(" ".join(r.phrase.casefold().split())) for r in table if r.rule == "normal")
        self._normal = re.compile(rf"(?<!not )(?<!not a )(?<!not an )\b(?:{phrases})\b")

    def read(self, report: str) -> list[Finding]:
        """The findings of a report, in the order in which it names the disorders."""
        words = frozenset(_WORD.findall(report.casefold()))
        stated: dict[int, list[Finding]] = {}
        for section in self._sections.split(report):
            if section.kind not in (*SHOWN, "history", "indication"):
                continue
            for sentence in self._context.sentences(lines_of(section.text)):
                text = sentence.text.strip()
                mentions = self._finder.find(sentence.text, words)
                places = [(mention.start, mention.end) for mention in mentions]
                for mention, in_sentence in zip(mentions, self._context.statuses(sentence, places), strict=True):
                    if status := _status_in(section.kind, mention, in_sentence):
                        finding = self._finding(mention, status, text, section.kind)
                        stated.setdefault(mention.disorder, []).append(finding)
        return [finding for findings in stated.values() for finding in _combine(findings)]

    def history(self, report: str) -> str:
        """What was known before the images were read: the sections of history and indication."""
        sections = self._sections.split(report)
        return " ".join(" ".join(s.text.split()) for s in sections if s.kind in ("history", "indication"))

    def is_normal(self, report: str, findings: Iterable[Finding]) -> bool:
        """Whether every sentence of the impression calls the study normal, and no disorder may be there.

        Where there is no impression, the sentences of the findings count.
        """
        if any(finding.status in _CURRENT[:2] for finding in findings):
            return False
        sections = self._sections.split(report)
        texts = [s.text for s in sections if s.kind == "impression"] or [s.text for s in sections if s.kind in SHOWN]
        sentences = [" ".join(part.split()) for part in _SENTENCE_END.split(" ".join(texts).casefold())]
        sentences = [sentence for sentence in sentences if _WORD.search(sentence)]
        return bool(sentences) and all(self._normal.search(sentence) for sentence in sentences)

    def _finding(self, mention: Mention, status: str, sentence: str, section: str) -> Finding:
        disorder = self.vocabulary[mention.disorder]
        code = next(iter(disorder.icd10cm), "")
        return Finding(disorder.name, status, sentence, section, code, mention.confidence)


def _status_in(section: str, mention: Mention, status: str) -> str | None:
    """The status that a mention has by its section; None where it says nothing about the patient."""
    if section in SHOWN:
        return "absent" if mention.denied and status not in BACKGROUND else status
    if section == "history" and status == "present" and not mention.denied:
        return "historical"
    return status if status in BACKGROUND else None


def _combine(findings: list[Finding]) -> list[Finding]:
    """The finding of a disorder that holds, and that of its history and of the family, each with its best evidence."""
    current = [finding for finding in findings if finding.status in _CURRENT]
    kept = []
    if current:
        decisive = [f for f in current if f.section == "impression"] or current
        best = min(decisive, key=lambda f: (_CURRENT.index(f.status), -f.confidence))
        if any(f.status != best.status for f in current):
            best = Finding(**{**vars(best), "confidence": round(best.confidence / 2, 3), "contradicted": True})
        kept.append(best)
    for status in BACKGROUND:
        if of_status := [finding for finding in findings if finding.status == status]:
            kept.append(max(of_status, key=lambda f: f.confidence))
    return kept
