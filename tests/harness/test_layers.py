"""Imports point down only, and the plan is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = "snakemake_executor_plugin_submitit"
SOURCE = Path(__file__).resolve().parents[2] / "src" / "atlas"
HEAVY = ("torch", "timm", "sklearn", "pandas", "numpy", "scipy", "matplotlib", "torchvision", "skimage")

# From the ground up; a module may import its own floor and the floors below it.
FLOORS = (
    ("atlas.errors", "atlas.nn", "atlas.l2o"),
    ("atlas.datasets",),
    ("atlas.harness", "atlas.study"),
    ("atlas.tasks",),
    ("atlas.methods",),
    ("atlas.report",),
    ("atlas.cli", "atlas.__main__"),
)


def floor(module: str) -> int:
    for height, names in enumerate(FLOORS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return height
    return -1


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found.append((".".join(parts).removesuffix(".__init__"), path))
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name == "atlas" or name.startswith("atlas.")}


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    upward = {name for name in imported(path) if floor(name) > floor(module) >= 0}
    assert not upward


def test_mathematics_stands_alone() -> None:
    """A paper's package uses the ground floor and itself; what plugs it in (entry, ingredients, figures…) may use more."""
    plugs = {"entry", "figures", "ingredient", "ingredients", "stage", "stages", "baselines"}
    for module, path in modules():
        if not module.startswith("atlas.methods.") or path.stem in plugs:
            continue
        package = ".".join(module.split(".")[:3])
        foreign = {name for name in imported(path) if floor(name) > 0 and not name.startswith(package)}
        assert not foreign, f"{module} imports {foreign}"


def test_atlas_and_the_executor_do_not_import_each_other() -> None:
    plugin = SOURCE.parents[1] / "plugins" / "snakemake-executor-plugin-submitit" / "src" / PLUGIN
    files = sorted(plugin.rglob("*.py"))
    assert len(files) > 10
    assert not {path for path in files if imported(path)}
    assert not {module for module, path in modules() if re.search(rf"\b{PLUGIN}\b", path.read_text())}


def test_methods_do_not_import_each_other() -> None:
    for module, path in modules():
        if module.startswith("atlas.methods."):
            package = ".".join(module.split(".")[:3])
            others = {name for name in imported(path) if name.startswith("atlas.methods.") and not name.startswith(package)}
            assert not others, f"{module} imports {others}"


@pytest.mark.parametrize(
    "statement",
    [
        "from atlas.study import Study, agenda; agenda(Study.read('demo'))",
        "from atlas.harness.registry import load; load()",
        "import importlib, pkgutil, atlas.methods as m; "
        "[importlib.import_module(f'atlas.methods.{i.name}') for i in pkgutil.iter_modules(m.__path__)]",
        "from atlas.datasets import dataset_names, get_dataset; [get_dataset(n) for n in dataset_names()]",
        "import atlas.cli",
    ],
)
def test_plan_is_light(statement: str, checkout: Path) -> None:
    code = f"import sys; {statement}; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
