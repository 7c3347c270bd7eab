"""Every code block of the README and of docs/ runs. A block that cannot run has a reason, and its syntax is checked.

How it works:
- Each document is a test. Its blocks run in order, in a folder of their own. `bash` blocks run in a shell. `python`
  blocks share a namespace, or run alone after the comment <!-- run in a process of its own -->. Files that the document
  assumes (`study/`, `datasets/mine`, `runs/mine`, ...) are in this folder from the start: `workplace.make_template`.
- `python`, `radfm`, `torchrun` and `deepspeed` start without delay: `tests/forked_python.py`.
- `radfm` gets additional options and config keys that shorten long commands: `short_radfm.SHORTER`. The documents do
  not show them.
- The shell uses a local replacement of the Hugging Face Hub, `tests/radfm/hub.py`.
- A `text` block directly after a block shows its output. The two are compared, and "..." stands for any text. Where the
  output depends on the weights or the time, a comment says so: <!-- output depends on the weights -->.
- A block that takes minutes or needs ../shared has a comment before it: <!-- slow: trains six models -->. It runs only
  if `RADFM_SLOW` is set. A block that cannot run has another: <!-- not run: downloads -->. For a block that is left
  out, Python code still has to compile, and options of `radfm` commands, config keys and files have to exist.
- `programs` has the programs that replace eight GPUs, two machines and SLURM.

`UPDATE_DOCS=1 pytest tests/docs` writes the printed outputs into the documents. `RADFM_SLOW=1 pytest tests/docs -n 2`
runs all blocks: do this before a release, and when a slow block has changed.
"""

import doctest
import io
import os
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import typer
from markdown_blocks import Block, blocks, commands, with_variables
from workplace import ROOT, fill_workplace, make_template, start_shell  # noqa: F401  fixtures

from radfm.cli import app
from radfm.train.diagnosis_config import read_diagnosis_config
from radfm.train.finetune_config import finetune_config
from radfm.train.text import read_text_config

DOCUMENTS = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
STARTS = ("radfm", "python", "pip", "make", "git", "torchrun", "deepspeed", "sbatch", "jupyter", "curl")
MOST_NOT_RUN = 1  # number of blocks


def all_blocks() -> list[tuple[Path, Block]]:
    return [(document, block) for document in DOCUMENTS for block in blocks(ROOT / document)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_block_of_a_document_runs_and_prints_what_it_shows(document, shell, workplace, request):
    file = ROOT / document
    runnable = [block for block in blocks(file) if block.language in ("bash", "python") and not block.left_out]
    if not runnable:
        return
    if any("deepspeed" in block.code for block in runnable):
        request.getfixturevalue("deepspeed_extensions")
    folder = workplace(file)
    namespace = {"__name__": "__main__"}
    printed: list[tuple[Block, str]] = []
    for block in runnable:
        where = f"{document}:{block.line}"
        if block.language == "bash" or block.alone:
            code = block.code if block.language == "bash" else f"python -c {shlex.quote(block.code)}"
            ran = shell.run(code, folder)
            assert ran.returncode == 0, f"{where} ends with {ran.returncode}\n{block.code}\n{ran.stdout}"
            output = ran.stdout
        else:
            screen = io.StringIO()
            with redirect_stdout(screen):
                exec(compile("\n" * (block.line - 1) + block.code, file, "exec"), namespace)
            output = screen.getvalue()
        if block.output is not None:
            printed.append((block, output))
    if "UPDATE_DOCS" in os.environ:
        update(file, printed)
        return
    for block, output in printed:
        if not block.varies:
            expected = block.output.code
            same = doctest.OutputChecker().check_output(expected, tidy(output), SAME)
            assert same, f"{document}:{block.output.line} says\n{expected}\nbut it prints\n{output}"


def tidy(output: str) -> str:
    """The output without progress bars, trailing blanks and repeated empty lines."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]", output) if not re.search(r"\d%\|.*\|", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def update(file: Path, printed: list[tuple[Block, str]]) -> None:
    """Writes the outputs that differ into the document."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for block, output in reversed(printed):
        shown = block.output
        same = doctest.OutputChecker().check_output(shown.code, tidy(output), SAME)
        if block.varies or not same:
            lines[shown.line - 1 : shown.line - 1 + shown.code.count("\n")] = [tidy(output)]
    file.write_text("".join(lines), encoding="utf-8")


def test_blocks_that_do_not_run_have_valid_syntax_options_and_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    left_out = [(document, block) for document, block in all_blocks() if block.left_out]
    for document, block in left_out:
        try:
            if block.language == "python":
                compile(block.code, document, "exec")
            for words in commands(with_variables(block.code)) if block.language == "bash" else ():
                check_command(words)
        except (SyntaxError, ValueError, OSError, UsageError) as error:
            pytest.fail(f"{document}:{block.line}: {error}")
    assert sum(block.not_run is not None for _, block in left_out) <= MOST_NOT_RUN


UsageError = typer.BadParameter.__base__
"""The class of click, which some versions of typer contain and others import."""


def check_command(words: list[str]) -> None:
    """Raises an error where an option, a key of a config or a file of the repository does not exist."""
    for word in words:
        if word.startswith(("train/", "benchmarks/", "docs/")) and not (ROOT / word).exists():
            raise FileNotFoundError(f"there is no {word}")
    for module, command in (("radfm.train.diagnosis", "diagnosis"), ("radfm.train.text", "text")):
        if module in words:
            words = ["radfm", "train", command, *words[words.index(module) + 1 :]]
    if "radfm" in words and (words[0] == "radfm" or "--no-python" in words):
        parse(words[words.index("radfm") + 1 :])


def parse(arguments: list[str]) -> None:
    """Parses a command with typer, and the changes of its config, without running it."""
    root = typer.main.get_command(app)
    given: dict = {}
    heads = [root]
    while heads:
        command = heads.pop()
        heads += getattr(command, "commands", {}).values()
        if command is not root:
            command.callback = lambda **values: given.update(values)
    root.main(arguments, standalone_mode=False)
    changes = given.get("changes") or []
    if arguments[:2] == ["train", "diagnosis"]:
        read_diagnosis_config(given["config"], changes)
    elif arguments[:2] == ["train", "text"]:
        read_text_config(given["config"], changes)
    elif arguments[:1] == ["finetune"]:
        finetune_config({}, changes)


def test_every_block_has_content_and_a_language():
    """A command in a block without a language would never run."""
    for document, block in all_blocks():
        assert block.code.strip(), f"{document}:{block.line} is empty"
        if block.language not in ("python", "bash"):
            marked = block.not_run or block.slow
            assert not marked, f"{document}:{block.line} is marked as {marked}, but its language is never run"
            for line in block.code.splitlines():
                first = line.split(" ")[0]
                assert first not in STARTS, f"{document}:{block.line} has a command, but is not a bash block: {line}"


def test_every_link_within_the_documents_has_a_target():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}, which does not exist"
