"""A hook of MkDocs: links to files of the checkout that are no pages become their paths, since a site does not hold them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>(?:\.\./)+[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **options: Any) -> str:
    """Rewrite the links of one page that leave the folder of pages."""
    folder = PurePosixPath(page.file.src_uri).parent

    def plain(link: re.Match[str]) -> str:
        inside = outside(folder, link["target"])
        return link[0] if inside is None else f"{link['text']} (`{inside}`)"

    return LINK.sub(plain, markdown)


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
