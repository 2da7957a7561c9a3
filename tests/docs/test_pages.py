"""Pages that hold together: ten of one shape, tables that name code which is there, and parts that are made from the checkout."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import made  # noqa: E402 - a program, which no package holds

METHODS = sorted((DOCS / "methods").glob("*.md"))
SHAPE = [
    "The idea",
    "A picture",
    "On your own model",
    "On your own data",
    "Settings",
    "Claims",
    "Cost",
    "Differences from the official code",
    "From the paper to the code",
]
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"^\| (?P<part>[^|]+) \| \[(?P<name>[^\]]+)\]\((?P<file>[^)]+)\) \| (?P<code>[^|]+) \|$", re.MULTILINE)


def sections(path: Path) -> dict[str, str]:
    """Headings of the second level, in their order, with what stands below each."""
    lines = path.read_text().splitlines()
    starts = [
        (token.map[0], lines[token.map[0]][3:])
        for token in MarkdownIt("commonmark").parse("\n".join(lines))
        if token.type == "heading_open" and token.tag == "h2" and token.map
    ]
    ends = [line for line, _ in starts[1:]] + [len(lines)]
    return {name: "\n".join(lines[line + 1 : end]) for (line, name), end in zip(starts, ends, strict=True)}


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (``Class.method``) that a module defines."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


def test_the_pages_are_of_papers_that_are_there() -> None:
    papers = {path.parent.name for path in (ROOT / "src/atlas/methods").glob("*/entry.py")}
    assert {path.stem for path in METHODS} <= papers  # one that was begun a minute ago has no page yet
    assert len(METHODS) >= 10


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_the_pages_of_methods_have_one_shape(path: Path) -> None:
    found = sections(path)
    assert list(found) == SHAPE
    assert all(text.strip() for text in found.values())
    assert re.match(r"\s*1\. ", found["The idea"])
    (picture,) = PICTURE.findall(found["A picture"])
    assert (path.parent / picture).is_file()
    assert "<!-- made: settings" in found["Settings"]
    assert "coverage.md" in found["Claims"]
    assert found["Differences from the official code"].strip().startswith("| official | here | why |")


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_the_way_from_the_paper_leads_to_code_that_is_there(path: Path) -> None:
    text = sections(path)["From the paper to the code"]
    rows = list(CODE.finditer(text))
    assert len(rows) == len([line for line in text.splitlines() if line.startswith("| ")]) - 1 >= 6
    for row in rows:
        file = (path.parent / row["file"]).resolve()
        assert file.is_relative_to(ROOT / "src/atlas"), row["file"]
        assert file.name == row["name"]
        names = re.findall(r"`([^`]+)`", row["code"])
        assert names
        assert set(names) <= defined(file), f"{row['file']} does not define {set(names) - defined(file)}"


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_what_is_made_in_a_page_is_up_to_date(path: Path) -> None:
    assert made.remade(path.read_text(), path) == path.read_text(), "python docs/made.py writes it anew"


def test_the_gallery_shows_every_figure_of_the_demo() -> None:
    shown = {(DOCS / place).resolve() for place in PICTURE.findall((DOCS / "gallery.md").read_text())}
    assert shown == set((ROOT / made.FIGURES).rglob("*.svg"))
    listed = [
        index.parent / f"{figure['name']}.svg"
        for index in (ROOT / made.FIGURES).rglob("index.json")
        for figure in json.loads(index.read_text())["figures"]
    ]
    assert sorted(listed) == sorted(shown)


def test_a_page_that_was_changed_by_hand_is_noticed() -> None:
    page = DOCS / "methods/uvc.md"
    changed = page.read_text().replace("| `uvc` | `budget` | `0.5` |", "| `uvc` | `budget` | `0.6` |")
    assert changed != page.read_text()
    assert made.remade(changed, page) == page.read_text()


def test_the_findings_are_those_that_their_page_lists() -> None:
    page = (ROOT / "findings/README.md").read_text()
    listed = re.findall(r"^\| `(\w+\.sh)` \|", page, re.MULTILINE)
    assert listed == sorted(path.name for path in (ROOT / "findings").glob("*.sh"))
