"""Markdown: a grid, and text that stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")
ENTITIES = {"<": "&lt;", ">": "&gt;", "|": "\\|"}


def escape(text: str) -> str:
    """Escape what Markdown or HTML would take for markup."""
    return SPECIAL.sub(lambda match: ENTITIES.get(match[1], "\\" + match[1]), " ".join(text.split()))


def cell(text: str) -> str:
    """Escape a cell, but keep the ``**bold**`` that marks the best."""
    parts = re.split(r"\*\*(.*?)\*\*", text)
    return "".join(f"**{escape(part)}**" if index % 2 else _inner(part) for index, part in enumerate(parts))


def _inner(text: str) -> str:
    """Escape, keeping a space at either end."""
    lead, trail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{lead[:1]}{escape(text)}{trail[:1]}" if text.strip() else text[:1]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a header and rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell(str(text)) for text in line) + " |\n" for line in lines)


def fenced(text: str) -> str:
    """A block of literal text, with a fence that is longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"
