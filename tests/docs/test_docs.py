"""Every code block of the README and of docs/ runs. A block that cannot run says why, and is checked.

How it works:
- A document is a test. Its blocks run in order, in a folder of their own: blocks of `bash` in a shell, blocks of
  `python` in one namespace, or alone where a comment says so (<!-- run in a process of its own -->). What the document
  assumes (`study/`, `datasets/mine`, `runs/mine`, ...) is in this folder from the start: `workplace.make_template`.
- `python`, `radfm`, `torchrun` and `deepspeed` start at once: `tests/forked_python.py`.
- `radfm` makes long things short, by options and keys of configs that are added: `short_radfm.SHORTER`. The
  documents do not mention them.
- The Hugging Face Hub of the shell is a stand-in within this machine, `tests/radfm/hub.py`.
- A block of `text` directly after a block shows its output and is compared; "..." stands for any text. Where the output
  depends on the weights or the time, a comment says so: <!-- output depends on the weights -->.
- A block that takes minutes, or what lies in ../shared, has a comment before it: <!-- slow: trains six models -->. It
  runs where `RADFM_SLOW` is set. One that cannot run has another: <!-- not run: downloads -->. What is left out still
  has to compile if it is Python; options of its `radfm` commands, keys of its configs and its files have to exist.
- The programs that replace eight GPUs, two machines and SLURM are in `programs`.

`UPDATE_DOCS=1 pytest tests/docs` writes what is printed into the documents. `RADFM_SLOW=1 pytest tests/docs -n 2` runs
all blocks: do this before a release, and when a slow block has changed.
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
MOST_NOT_RUN = 1  # blocks


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
    """The output without progress bars, without blanks at the ends of lines, and with one empty line for several."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]", output) if not re.search(r"\d%\|.*\|", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def update(file: Path, printed: list[tuple[Block, str]]) -> None:
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
"""Click's, which typer carries within itself or not, by version."""


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
            assert not marked, f"{document}:{block.line} is marked as {marked}, but would not be run anyway"
            for line in block.code.splitlines():
                first = line.split(" ")[0]
                assert first not in STARTS, f"{document}:{block.line} holds a command, but is no block of bash: {line}"


def test_every_link_within_the_documents_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}, which is not there"
