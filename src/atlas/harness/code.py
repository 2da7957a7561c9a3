"""Which code a run's numbers come from: one hash for each package that its method and its task are made of.

A number is old when the code that computed it has changed. Nobody wants a night of training repeated for a better docstring,
so modules are compared without comments and docstrings, and what changed is told, not rerun.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.harness.files import write_text

if TYPE_CHECKING:
    from atlas.harness.run import Run

SOURCES = Path(__file__).resolve().parent.parent
COMPUTES = ("methods", "tasks", "nn", "l2o", "datasets")
"""Packages whose code makes numbers; the harness around them only carries the numbers about."""
REMEMBERED = Path(".atlas/code.json")


def code_of(run: Run) -> dict[str, str]:
    """Return package to hash of its modules that a run's numbers come from, the runs that it needs included."""
    return _reader(run.root).packages(_origins(run))


def changed_code(run: Run, recorded: object) -> list[str]:
    """Packages whose code differs from what a run's provenance recorded as ``code``; empty where it recorded none."""
    if not isinstance(recorded, dict) or not recorded:
        return []
    now = code_of(run)
    return sorted(name for name in {*now, *recorded} if now.get(name) != recorded.get(name))


def _origins(run: Run) -> tuple[str, ...]:
    """Packages of a run's task and methods, and of those of its needs: where the modules that it uses are looked for."""
    papers = {f"atlas.methods.{entry.paper.replace('-', '_')}" for entry in run.method_entries if entry.paper}
    task = f"atlas.tasks.{run.task.replace('-', '_')}"
    return tuple(sorted({task, *papers, *(name for needed in run.needs.values() for name in _origins(needed))}))


@cache
def _reader(root: Path) -> _Reader:
    return _Reader(root / REMEMBERED)


@dataclass
class _Reader:
    """Reads modules once; a file beside the study's remembers them by size and time, since reading all takes a second.

    Attributes
    ----------
    known : dict
        Module to its [size, time of change, hash, imported modules].
    news : bool
        Whether something is known that the file does not hold yet.
    seen : dict
        Origins to what was found for them.
    """

    path: Path
    known: dict[str, list[Any]] = field(default_factory=dict)
    news: bool = False
    seen: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)

    def packages(self, origins: tuple[str, ...]) -> dict[str, str]:
        """Hash of everything in each package that is reached from some packages."""
        if origins not in self.seen:
            if not self.known:
                with suppress(OSError, ValueError):
                    self.known = dict(json.loads(self.path.read_text()))
            grouped: dict[str, list[str]] = {}
            for module, code in sorted(self.reached(origins).items()):
                grouped.setdefault(_package(module), []).append(f"{module} {code}")
            self.seen[origins] = {name: _sha("\n".join(lines)) for name, lines in grouped.items()}
            if self.news:
                self.news = False
                with suppress(OSError):
                    write_text(self.path, json.dumps(self.known))
        return self.seen[origins]

    def reached(self, origins: Iterable[str]) -> dict[str, str]:
        """Hash of every module of some packages, and of those that they import, directly or by others."""
        waiting = [module for package in origins for module in _modules(package)]
        hashes: dict[str, str] = {}
        while waiting:
            module = waiting.pop()
            if module not in hashes:
                hashes[module], imported = self.facts(module)
                waiting += imported
        return hashes

    def facts(self, module: str) -> tuple[str, list[str]]:
        """Hash of a module's code, and what it imports."""
        path = _file(module)
        assert path is not None
        stat = path.stat()
        remembered = self.known.get(module)
        if not remembered or remembered[:2] != [stat.st_size, stat.st_mtime_ns]:
            tree = ast.parse(path.read_text())
            imported = _imported(tree, module)
            remembered = [stat.st_size, stat.st_mtime_ns, _sha(_without_words(tree)), imported]
            self.known[module] = remembered
            self.news = True
        return remembered[2], remembered[3]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _package(module: str) -> str:
    """The paper's, task's or shared package that a module belongs to: ``atlas.methods.uvc``, ``atlas.nn``."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1] in ("methods", "tasks") else 2])


def _file(module: str) -> Path | None:
    stem = SOURCES.joinpath(*module.split(".")[1:])
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _modules(package: str) -> Iterator[str]:
    for path in sorted(SOURCES.joinpath(*package.split(".")[1:]).glob("*.py")):
        yield package if path.stem == "__init__" else f"{package}.{path.stem}"


def _imported(tree: ast.Module, module: str) -> list[str]:
    """Modules of the packages that compute which a module imports anywhere, also inside functions and for types."""
    file = _file(module)
    parents = module.split(".") if file is not None and file.name == "__init__.py" else module.split(".")[:-1]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    computing = tuple(f"atlas.{name}." for name in COMPUTES)
    return sorted({name for name in names if f"{name}.".startswith(computing) and _file(name)})


def _without_words(tree: ast.Module) -> str:
    """The code of a module as text, without its docstrings (comments are gone already)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
