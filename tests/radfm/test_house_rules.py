"""The rules of CONTRIBUTING.md that a program can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("radfm", "data_prep", "eval", "train", "serve", "benchmarks", "docs")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    return lines - (first.end_lineno - first.lineno + 1 if has_docstring else 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        node.name: lines_without_docstring(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions) and lines_without_docstring(node) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long


def test_no_file_has_a_name_that_says_nothing():
    assert not [file for file in FILES if file.stem.rstrip("s") in ("util", "helper", "common", "misc")]
