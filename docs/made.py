"""Write what is made in the pages: tables of settings, and the gallery of figures. ``python docs/made.py`` in a checkout.

In a page, what stands between ``<!-- made: settings ROW … -->`` and ``<!-- made: end -->`` is the settings of these rows, as
their classes declare them; ``<!-- made: gallery -->`` holds every figure of the demo. A test fails where a page differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from atlas.cli.describing import rows
from atlas.harness.registry import Method, load
from atlas.report.markdown import escape

ROOT = Path(__file__).resolve().parents[1]
FIGURES = "results/demo/figures"
PART = re.compile(
    r"(?P<head><!-- made: (?P<kind>settings|gallery)(?P<names>[^>]*?) -->\n).*?(?P<end><!-- made: end -->)", re.DOTALL
)


def main() -> None:
    """Write every page anew that has something made in it."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text()
        if (made := remade(text, path)) != text:
            path.write_text(made)


def remade(text: str, path: Path) -> str:
    """A page with its made parts as they should be."""
    up = "../" * len(path.relative_to(ROOT).parts[:-1])

    def part(found: re.Match[str]) -> str:
        body = settings(found["names"].split()) if found["kind"] == "settings" else gallery(up)
        return f"{found['head']}\n{body}\n{found['end']}"

    return PART.sub(part, text)


def settings(names: list[str]) -> str:
    """The settings of some rows as a table: of which row, its name, its default, what it may be."""
    lines = ["| row | setting | default | may be |", "|---|---|---|---|"]
    for entry in map(_entry, names):
        for name, default, allowed in rows(entry.settings, entry.preset):
            shown = f"`{default}`" if default else ""
            lines.append(f"| `{entry.name}` | `{name}` | {shown} | {allowed.replace('|', 'or')} |")
    return "\n".join(lines) + "\n"


def _entry(name: str) -> Method:
    (found,) = (entry for entry in load().all_methods() if entry.name == name)
    return found


def gallery(up: str) -> str:
    """Every figure of the demo study, table by table; ``up`` leads from the page to the checkout."""
    return "\n".join(_gallery(up))


def _gallery(up: str) -> Iterator[str]:
    for task in sorted(load().tasks.values(), key=lambda task: task.title):
        indices = sorted((ROOT / FIGURES / task.name).glob("*/index.json"))
        if indices:
            yield f"## {task.title}\n"
        for index in indices:
            yield f"### {index.parent.name}\n"
            for figure in json.loads(index.read_text())["figures"]:
                place = f"{FIGURES}/{task.name}/{index.parent.name}/{figure['name']}.svg"
                yield f"**{escape(figure['title'])}.** {escape(figure['caption'])}\n"
                yield f"![{escape(figure['title'])}, {index.parent.name}]({up}{place})\n"


if __name__ == "__main__":
    main()
