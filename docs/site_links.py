"""A hook of MkDocs for what pages show from outside their folder.

Links to files of the checkout that are no pages become their paths, since a site does not hold them. Figures of the demo, which
pages show from the results, become files of the site.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = "results/demo/figures"
PICTURE = re.compile(rf"(?P<before>!\[(?:\\.|[^\]\\])*\]\()(?:\.\./)+{FIGURES}/(?P<name>[^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>(?:\.\./)+[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **options: Any) -> str:
    """Rewrite the links of one page that leave the folder of pages."""
    folder = PurePosixPath(page.file.src_uri).parent

    def plain(link: re.Match[str]) -> str:
        inside = outside(folder, link["target"])
        return link[0] if inside is None else f"{link['text']} (`{inside}`)"

    up = "../" * len(folder.parts)
    return LINK.sub(plain, PICTURE.sub(lambda found: f"{found['before']}{up}figures/{found['name']})", markdown))


def on_files(files: Any, config: Any) -> Any:
    """Add the demo's figures to the files of the site."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / FIGURES).rglob("*.svg")):
        name = f"figures/{path.relative_to(ROOT / FIGURES).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def outside(folder: PurePosixPath, target: str) -> str | None:
    """Path in the checkout of what a link names outside ``docs/``; ``None`` if it stays inside."""
    parts = list(folder.parts)
    for part in PurePosixPath(target.partition("#")[0]).parts:
        if part != "..":
            parts.append(part)
        elif parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append("..")
    return "/".join(parts[1:]) if parts[:1] == [".."] else None
