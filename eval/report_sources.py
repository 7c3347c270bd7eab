"""Where the tables of scores of a report come from, so that its figures can be traced; without a path."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from radfm.eval.scores import Scores


def table_sources(tables: Sequence[Scores], files: Sequence[Path]) -> list[dict]:
    """Of each table of a model, what is known of its origin, in words.

    Args:
        files: the tables as written, in their order; empty where they were not written.
    """
    sources = []
    for number, table in enumerate(tables):
        about = table.about
        file = files[number] if number < len(files) else None
        facts = {
            "model": about.get("model"),
            "SHA-256 of its weights": about.get("checkpoint"),
            "computed in": about.get("dtype"),
            "scans of a case": about.get("scans"),
            "histories": about.get("histories"),
            "names": about.get("vocabulary"),
            "trained on data": about.get("trained_on"),
            "scored by": f"radfm {about['radfm']}" if about.get("radfm") else None,
        }
        if file is not None:
            facts["table of scores"] = f"scores/{file.name}"
            facts["SHA-256 of the table"] = hashlib.sha256(file.read_bytes()).hexdigest()
        sources.append({key: value for key, value in facts.items() if value})
    return sources
