"""Labels from radiology reports: which disorders are present, absent, uncertain, historical or of the family.

    >>> from radfm.data_prep.reports import ReportReader
    >>> reader = ReportReader(["Pleural effusion", "Pneumothorax"])
    >>> [(f.disorder, f.status) for f in reader.read("FINDINGS: Small left pleural effusion. No pneumothorax.")]
    [('Pleural effusion', 'present'), ('Pneumothorax', 'absent')]

Decisions:
- A report goes through four steps, a module each: `sections`, `mentions`, `context`, and `reading`, which makes one
  finding of all mentions of a disorder.
- Everything that is written about language is one table, `rules.csv`, which a table of the user's extends.
"""

__all__ = ["ReportReader"]


def __getattr__(name: str):
    if name == "ReportReader":
        from radfm.data_prep.reports.reading import ReportReader

        return ReportReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
