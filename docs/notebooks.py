"""Writes the notebooks of the first two guides from their Markdown with jupytext: python docs/notebooks.py

Decisions:
- The Markdown is the source. The outputs that it shows are left out, because the notebook prints its own.
- Nothing is executed here, so a notebook is small. `tests/docs/test_notebooks.py` runs the notebooks.
"""

import re
from pathlib import Path

import jupytext
import nbformat

GUIDES = tuple((Path(__file__).parent / "guides").glob("[12]_*.md"))
# Without it, jupytext takes the most frequent language of the blocks for that of the notebook.
_HEADER = """---
jupyter:
  kernelspec:
    display_name: Python 3
    language: python
    name: python3
---

"""
_SHOWN = re.compile(r"(?<=\n```\n)\n(<!-- output depends on [^>]*-->\n)?```text\n.*?\n```\n", re.DOTALL)


def notebook(guide: Path) -> nbformat.NotebookNode:
    """The notebook of a guide. Its blocks of Python and bash become code cells."""
    book = jupytext.reads(_HEADER + _SHOWN.sub("", guide.read_text(encoding="utf-8")), "md")
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"  # jupytext would choose a random id each time
    book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return book


def file_of(guide: Path) -> Path:
    return guide.with_suffix(".ipynb")


if __name__ == "__main__":
    for guide in GUIDES:
        nbformat.write(notebook(guide), file_of(guide))
