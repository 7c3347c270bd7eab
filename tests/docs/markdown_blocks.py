"""The code blocks of a Markdown document, read with markdown-it."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

RUN_SLOW = "RADFM_SLOW" in os.environ
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
SLOW = re.compile(r"<!-- slow: (.+?) -->", re.DOTALL)
ALONE = "<!-- run in a process of its own -->"
NOT_COMPARED = re.compile(r"<!-- output depends on (.+?) -->", re.DOTALL)


@dataclass
class Block:
    """A fenced block.

    Attributes:
        line: Number of its first line of code in the file, from 1.
        language: The word after the fence: python, bash, yaml, text, ...
        not_run: The reason why it is never run, from the comment before it.
        slow: The reason why it runs only with RADFM_SLOW, from the comment before it.
        alone: Whether it is Python code that runs in a process of its own.
        output: The text block directly after it that shows its output, or None.
        varies: The reason why the output is not compared.
    """

    line: int
    language: str
    code: str
    not_run: str | None = None
    slow: str | None = None
    alone: bool = False
    output: "Block | None" = None
    varies: str | None = None

    @property
    def left_out(self) -> bool:
        """Whether this test run leaves the block out."""
        return self.not_run is not None or (self.slow is not None and not RUN_SLOW)


def blocks(file: Path) -> list[Block]:
    """The blocks in the order of the document. A text block that shows an output belongs to the block before it."""
    result: list[Block] = []
    comments, adjacent = "", False
    for token in MarkdownIt().parse(file.read_text(encoding="utf-8")):
        if token.type == "html_block":
            comments += token.content
            continue
        if token.type in ("fence", "code_block"):
            first = token.map[0] + (2 if token.type == "fence" else 1)
            block = Block(first, token.info, token.content, alone=ALONE in comments)
            if (reason := NOT_RUN.search(comments)) is not None:
                block.not_run = " ".join(reason[1].split())
            if (reason := SLOW.search(comments)) is not None:
                block.slow = " ".join(reason[1].split())
            if block.language == "text" and adjacent and result[-1].language in ("python", "bash"):
                result[-1].output = block
                if (reason := NOT_COMPARED.search(comments)) is not None:
                    result[-1].varies = reason[1]
            else:
                result.append(block)
        adjacent = token.type == "fence"
        comments = ""
    return result


def with_variables(code: str) -> str:
    """A shell block with its variables replaced by their values. A loop variable gets its first value."""
    assigned = re.findall(r'^(\w+)="([^"]*)"', code, re.MULTILINE) + re.findall(
        r"^for (\w+) in (\w+)", code, re.MULTILINE
    )
    values = {name: value.replace("\\\n", "") for name, value in assigned}
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), code)


def commands(code: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments, redirections and assignments."""
    result = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "|", "&"):
                if words:
                    result.append(words)
                words = []
            elif word.startswith((">", "<")):
                skip = True
            elif skip:
                skip = False
            elif words or not re.fullmatch(r"\w+=\S*", word):
                words.append(word)
    return result
