"""The project's pages as blocks and commands: what a reader would type, and how it is marked.

A fenced block is run as it stands, unless an HTML comment on the line before, ``<!-- run: kind -->``, says what it needs:

- ``cluster``, ``download``, ``gpu``, ``remote``, ``install``: something that a test machine does not have. Every command of such
  a block is checked, and none is executed.
- ``long``: ``make demo`` and ``make test`` only, which contain everything else.
- ``continues``: a Python block that goes on where the one before it ended.
- ``extra NAME…``: a Python block that needs packages which not every environment has; it runs where they are.
- ``file PATH``: the content of a file of the checkout, which later commands of the page use.

Languages are ``python``; ``sh``, ``bash`` or none for commands; ``yaml``; ``output`` for what the Python block before it prints;
and ``text`` for pictures.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

MARK = re.compile(r"<!--\s*run:\s*(?P<kind>\S+)(?:\s+(?P<argument>\S.*?))?\s*-->\s*")
ABSENT = ("cluster", "download", "gpu", "remote", "install")
RUNS = (None, "continues", "extra")
KINDS = (*ABSENT, "long", "continues", "file", "extra")
SHELL = ("", "sh", "bash")
LANGUAGES = (*SHELL, "python", "yaml", "output", "text")
LONG = (["make", "demo"], ["make", "test"])
COMMAND = re.compile(r"(atlas|snakemake|dvc|make|python)( |$)")
SEPARATORS = re.compile(r"[();<>|&]+")


class DocumentError(Exception):
    """A block that says neither by its language nor by its mark what is to be done with it."""


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands (``line`` is its first, from 1), its language, its text and its mark."""

    page: str
    line: int
    language: str
    text: str
    kind: str | None = None
    argument: str | None = None

    @property
    def place(self) -> str:
        """Page and line, as editors understand them."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A Markdown file: its blocks, and the commands within its sentences and tables, in their order."""

    name: str
    blocks: tuple[Block, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """Python blocks that run as one process, what the page says that they print, and the packages that they need besides."""

    blocks: tuple[Block, ...]
    output: str | None
    extra: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where the first block stands."""
        return self.blocks[0].place

    @property
    def source(self) -> str:
        """The blocks at their own lines, so that a traceback names lines of the page."""
        lines: list[str] = []
        for block in self.blocks:
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
        return "\n".join(lines) + "\n"


def pages(root: Path) -> list[Page]:
    """Every page of documentation below a checkout."""
    files = [root / "README.md", root / "config" / "README.md", *sorted((root / "docs").rglob("*.md"))]
    files += sorted((root / "plugins").glob("*/README.md"))
    return [read_page(path.read_text(), path.relative_to(root).as_posix()) for path in files]


def read_page(text: str, name: str) -> Page:
    """Take a page apart.

    Raises
    ------
    DocumentError
        A mark stands before no block.
    """
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    blocks, commands = [], []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            blocks.append(_block(name, token, before))
        elif token.type == "html_block" and MARK.match(token.content) and not _marks(token, tokens):
            raise DocumentError(f"{name}:{_lines(token)[0] + 1}: a mark stands on the line before its block")
        commands += [
            child.content for child in token.children or () if child.type == "code_inline" and COMMAND.match(child.content)
        ]
    return Page(name, tuple(blocks), tuple(commands))


def _lines(token: Token) -> tuple[int, int]:
    assert token.map is not None
    return token.map[0], token.map[1]


def _marks(mark: Token, tokens: list[Token]) -> bool:
    """Whether a fence begins right after a mark."""
    return any(token.type == "fence" and _lines(token)[0] == _lines(mark)[1] for token in tokens)


def _block(page: str, fence: Token, before: Token | None) -> Block:
    first = _lines(fence)[0]
    mark = None
    if before is not None and before.type == "html_block" and _lines(before)[1] == first:
        mark = MARK.fullmatch(before.content)
    kind, argument = (mark["kind"], mark["argument"]) if mark else (None, None)
    return Block(page, first + 2, fence.info.strip(), fence.content, kind, argument)


def check_blocks(page: Page) -> None:
    """Refuse blocks whose language, mark or syntax is wrong.

    Raises
    ------
    DocumentError
        With page and line.
    """
    for before, block in zip([None, *page.blocks], page.blocks, strict=False):
        try:
            _check_block(block, before)
        except (SyntaxError, ValueError, yaml.YAMLError) as error:
            raise DocumentError(f"{block.place}: {error}") from error


def _check_block(block: Block, before: Block | None) -> None:
    if block.language not in LANGUAGES:
        raise ValueError(f"no block is in the language {block.language}; choose from {', '.join(filter(None, LANGUAGES))}")
    if block.kind not in (None, *KINDS):
        raise ValueError(f"there is no mark {block.kind}; choose from {', '.join(KINDS)}")
    if (block.kind in ("file", "extra")) != (block.argument is not None):
        raise ValueError("a file is marked with its path, an extra with its packages, and nothing else with more than a word")
    if block.kind == "extra" and block.language != "python":
        raise ValueError("only a Python block needs an extra")
    if block.kind == "long" and not all(command in LONG for command in commands_of(block.text)):
        raise ValueError(f"only {' and '.join(map(shlex.join, LONG))} may be marked long")
    if block.kind == "continues" and (block.language != "python" or before is None):
        raise ValueError("only a Python block continues, and only after another")
    if block.language == "output" and (before is None or before.language != "python" or before.kind not in RUNS):
        raise ValueError("an output follows the Python block that prints it")
    if block.language == "python":
        compile(block.text, block.page, "exec")
    elif block.language == "yaml":
        yaml.safe_load(block.text)


def programs(page: Page) -> list[Program]:
    """The Python blocks of a page, each with those that continue it."""
    found: list[Program] = []
    for block in page.blocks:
        if block.language == "output":
            found[-1] = replace(found[-1], output=(found[-1].output or "") + block.text)
        elif block.language == "python" and block.kind == "continues":
            found[-1] = replace(found[-1], blocks=(*found[-1].blocks, block))
        elif block.language == "python" and block.kind in (None, "extra"):
            found.append(Program((block,), None, tuple((block.argument or "").split())))
    return found


def commands_of(text: str) -> list[list[str]]:
    """The simple commands of a script, as words: without comments, and taken apart at ``&&``, ``|``, ``;`` and their like."""
    return list(_commands(text))


def _commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if SEPARATORS.fullmatch(word):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words
