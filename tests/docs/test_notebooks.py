"""The notebooks have the content of their guides, and run."""

import importlib.util

import nbformat
import pytest
from nbclient import NotebookClient
from workplace import ROOT, start_shell  # noqa: F401  a fixture

from tests.waiting import TIMEOUT

_spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
notebooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(notebooks)


@pytest.mark.parametrize("guide", notebooks.GUIDES, ids=lambda guide: guide.stem)
def test_a_notebook_has_the_content_of_its_guide(guide):
    book = nbformat.read(notebooks.file_of(guide), as_version=4)
    assert book == notebooks.notebook(guide), f"{guide.stem} has changed: run docs/notebooks.py"
    assert {cell.cell_type for cell in book.cells} == {"code", "markdown"}
    assert not any("```text" in cell.source for cell in book.cells)


def test_the_notebooks_run_one_after_the_other(shell, tmp_path, monkeypatch):
    """They share one kernel and one folder, as for a reader who continues with the second guide."""
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    book = nbformat.v4.new_notebook()
    for guide in sorted(notebooks.GUIDES):
        book.cells += [cell for cell in notebooks.notebook(guide).cells if cell.cell_type == "code"]
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
    NotebookClient(book, timeout=TIMEOUT, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.outputs)
    assert "Bacterial pneumonia" in printed
    assert "S83.51" in printed
    assert (tmp_path / "case.html").exists()
