"""LABELS.html: what the reports say, and the findings that a person should check, one by one.

Decisions:
- One file that loads nothing from elsewhere. A person chooses the status of each doubtful finding, and downloads a
  table that `radfm prepare reports --corrected` takes.
- The doubtful are ordered by reason: contradicted first, then a disorder that may not be meant, then uncertain.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from radfm.data_prep.pages import environment
from radfm.data_prep.plan import Rejected
from radfm.data_prep.reports.labels import NONE, Labels, check
from radfm.data_prep.reports.rules import STATUSES
from radfm.data_prep.tables import write_text
from radfm.knowledge.disorders import Vocabulary

REASONS = {
    "contradicted": "the report also says something else",
    "disorder": "the words may mean something else",
    "uncertain": "the report leaves it open",
}
_MOST = 500  # findings to check
_REJECTED = 40


def write_page(
    file: Path, labels: Sequence[Labels], rejected: Sequence[Rejected], vocabulary: Vocabulary, evidence: str
) -> None:
    """Writes the page.

    Args:
        evidence: name of the table with all findings.
    """
    counts = {status: Counter(name for one in labels for name in one.names(status)) for status in STATUSES}
    doubtful = [(one.report.number, f, check(f)) for one in labels for f in one.findings if check(f)]
    doubtful.sort(key=lambda row: (list(REASONS).index(row[2]), row[1].confidence))
    counted = [(one, [counts[status][one.name] for status in STATUSES]) for one in vocabulary]
    counted = [(one, numbers) for one, numbers in counted if any(numbers)]
    counted.sort(key=lambda row: row[1], reverse=True)
    page = (
        environment()
        .get_template("reports.html")
        .render(
            labels=labels,
            with_disorders=sum(bool(one.names("present")) for one in labels),
            normal=sum(one.normal for one in labels),
            statuses=STATUSES,
            choices=(*STATUSES, NONE),
            disorders=counted,
            vocabulary=len(vocabulary),
            doubtful=doubtful[:_MOST],
            more=max(0, len(doubtful) - _MOST),
            reasons=REASONS,
            rejected=rejected[:_REJECTED],
            more_rejected=max(0, len(rejected) - _REJECTED),
            evidence=evidence,
            corrected=file.stem + "_corrected.csv",
        )
    )
    write_text(file, page.rstrip() + "\n")
