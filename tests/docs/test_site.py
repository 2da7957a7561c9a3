"""The site: every page has a place in it, the reference names what packages export, and it builds with every link checked."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
from site_links import on_page_markdown, outside  # noqa: E402 - a hook, which no package holds

PACKAGES = sorted(path.parent.name for path in (ROOT / "src/atlas/methods").glob("*/__init__.pyi"))


def places(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from places(item)


def test_every_page_has_a_place_in_the_site() -> None:
    listed = list(places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_names_what_a_package_exports(package: str) -> None:
    stub = (ROOT / "src/atlas/methods" / package / "__init__.pyi").read_text()
    exported = [f"atlas.methods.{package}.{place}.{name}" for place, name in re.findall(r"from \.(\w+) import (\w+)", stub)]
    page = (DOCS / "api" / f"{package}.md").read_text()
    assert re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE) == exported


@pytest.mark.parametrize(
    ("folder", "target", "path"),
    [
        ("", "../slurm/config.yaml", "slurm/config.yaml"),
        ("methods", "../../README.md#start", "README.md"),
        ("methods", "../report.md", None),
    ],
)
def test_links_that_leave_the_pages_become_paths(folder: str, target: str, path: str | None) -> None:
    assert outside(PurePosixPath(folder), target) == path
    page = SimpleNamespace(file=SimpleNamespace(src_uri=f"{folder}/page.md".lstrip("/")))
    shown = f"see there (`{path}`)" if path else f"see [there]({target})"
    assert on_page_markdown(f"see [there]({target})", page) == shown


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_with_every_link_checked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compress" in (tmp_path / "site/api/uvc/index.html").read_text()
