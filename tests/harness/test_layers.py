"""Imports keep the contracts of pyproject.toml, circles are few and have reasons, and the plan is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "atlas"
HEAVY = ("torch", "timm", "sklearn", "pandas", "numpy", "scipy", "matplotlib", "torchvision", "skimage")

CIRCLES: dict[frozenset[str], str] = {
    frozenset({"atlas.l2o.drop_in", "atlas.l2o.optimizer", "atlas.l2o.policies"}): (
        "Policy.optimizer makes the drop-in optimizer, which is made of policies; imported when it is called"
    ),
    frozenset(f"atlas.methods.symbolic_l2o.{name}" for name in ("expressions", "modules", "simplification", "sympy_bridge")): (
        "Expression.module, .simplify and .sympy are methods of the public class; each is imported when it is called"
    ),
    frozenset(f"atlas.tasks.adversarial_robustness.{name}" for name in ("topology", "training")): (
        "the hooks of a plug-in are told the training that calls them: for types only"
    ),
    frozenset(f"atlas.tasks.feature_acquisition.{name}" for name in ("evaluate", "learner", "scores", "training")): (
        "the hooks of a plug-in are told the evaluation that calls them: for types only"
    ),
    frozenset(
        f"atlas.tasks.image_classification.{name}" for name in ("evaluate", "ingredients", "models", "passing", "training")
    ): ("the hooks of a plug-in are told the training, its passes and the evaluation that call them: for types only"),
}
"""Modules that import each other, directly or round about (also for types, also inside functions), and why they do."""


def modules() -> dict[str, Path]:
    """Every module of Atlas by its name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """Modules of Atlas that each imports anywhere in its text."""
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {part if part in known else node.module for part in parts}
        graph[module] = {name for name in names if name in known} - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules each of which reaches all others of its group."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {module: reached(module) for module in graph}
    return {frozenset(other for other in reach[module] if module in reach[other]) for module in graph if module in reach[module]}


def test_imports_keep_the_contracts(checkout: Path) -> None:
    """In a process of its own: import-linter switches off every logger that is there, and with it what later tests listen to."""
    program = Path(sys.executable).parent / "lint-imports"
    command = [str(program), "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_circle_has_a_reason() -> None:
    found = circles(imports(modules()))
    assert {tuple(sorted(circle)) for circle in found} == {tuple(sorted(circle)) for circle in CIRCLES}
    assert len(found) <= 8


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
