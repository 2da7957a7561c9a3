"""``atlas new``: folders of a new method, or of a new data set, that pass their own tests as they are written."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atlas.datasets import dataset_names
from atlas.errors import UserError, did_you_mean
from atlas.harness.files import write_text
from atlas.harness.registry import load

TEMPLATES = Path(__file__).parent / "templates"
SOURCE, TESTS = Path("src/atlas"), Path("tests")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Example:
    """What the method of a new folder does until it is replaced, in one task.

    Attributes
    ----------
    idea : str
        In a few words, without a full stop.
    setting : str
        Its setting.
    tested : str
        What its test imports from the plug-in.
    options : tuple of str
        Lines of the row's registration.
    imports : tuple of str
        Libraries that its test imports.
    """

    idea: str
    setting: str
    tested: str
    options: tuple[str, ...] = ()
    imports: tuple[str, ...] = ("torch",)


EXAMPLES = {
    "image-classification": Example(
        "predictions pay for their confidence", "strength", "confidence", ('phase="training"',), ("math", "torch")
    ),
    "adversarial-robustness": Example("weights pay for their size", "strength", "ProximalStepper"),
    "learned-optimization": Example(
        "the sign of the mean of gradients",
        "beta",
        "SignOfMean",
        ('traits=("hand-made",)', "extra_metrics=(TUNED_LR,)", "combines=False"),
    ),
    "federated-learning": Example("clients are pulled towards the server's weights", "pull", "average", ("combines=False",)),
    "feature-acquisition": Example("the cheapest features are always read", "keep", "cheapest", ("combines=False",)),
    "novel-view-synthesis": Example(
        "the reference view is shown for every pose", "fade", "faded", ('needs={"scene": "scene"}', "combines=False"), ("numpy",)
    ),
}


def new_method(name: str, task: str) -> list[Path]:
    """Write the folder of a paper with one row in a task, and its tests; return the files.

    Raises
    ------
    UserError
        The name is taken, or no name; the task does not exist; this is not a checkout. Nothing is written then.
    """
    _check_checkout()
    package = _package(name)
    if task not in EXAMPLES:
        raise UserError(f"--task {task}: {did_you_mean(task, EXAMPLES)}")
    registry = load()
    if name in registry.papers or any(entry.name == name for entry in registry.all_methods()):
        raise UserError(f"there is a method or a paper called {name} already")
    example = EXAMPLES[task]
    folder, tests = SOURCE / "methods" / package, TESTS / "methods" / package
    values = {
        "name": name,
        "package": package,
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "title": " ".join(part.capitalize() for part in name.split("-")),
        "task": task,
        "citation": "A. Author, B. Author, where and when",
        "idea": example.idea[0].upper() + example.idea[1:],
        "setting": example.setting,
        "tested": example.tested,
        "options": example.options,
        "imports": example.imports,
        "body": (TEMPLATES / "method" / task.replace("-", "_") / "body.txt").read_text().rstrip(),
    }
    own = f"method/{task.replace('-', '_')}"
    return _write(
        {
            folder / "__init__.py": "method/__init__.py.jinja",
            folder / "settings.py": f"{own}/settings.py.jinja",
            folder / "entry.py": "method/entry.py.jinja",
            folder / "plugin.py": f"{own}/plugin.py.jinja",
            folder / "claims.yaml": "method/claims.yaml.jinja",
            tests / f"test_{package}.py": "method/test.py.jinja",
        },
        values,
    )


def new_dataset(name: str) -> list[Path]:
    """Write a module that makes a small set of images, and its test; return the files.

    Raises
    ------
    UserError
        The name is taken, or no name; this is not a checkout. Nothing is written then.
    """
    _check_checkout()
    package = _package(name)
    if name in dataset_names():
        raise UserError(f"there is a data set called {name} already")
    values = {"name": name, "package": package, "title": " ".join(part.capitalize() for part in name.split("-"))}
    files = {
        SOURCE / "datasets" / f"{package}.py": "dataset/dataset.py.jinja",
        TESTS / "datasets" / f"test_{package}.py": "dataset/test.py.jinja",
    }
    return _write(files, values)


def _check_checkout() -> None:
    if not (SOURCE / "methods").is_dir():
        raise UserError(
            "new code goes into a checkout of Atlas, and this folder is none: go to one, or say atlas -C FOLDER new …"
        )


def _package(name: str) -> str:
    """The name as Python writes it."""
    package = name.replace("-", "_")
    if not NAME.fullmatch(name) or keyword.iskeyword(package):
        raise UserError(f"{name!r} cannot be a name: write small letters, digits and hyphens, for example my-method")
    return package


def _write(files: Mapping[Path, str], values: Mapping[str, object]) -> list[Path]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    taken = next((path for path in files if path.exists() or (path.name == "__init__.py" and path.parent.exists())), None)
    if taken is not None:
        raise UserError(f"{taken} is there already")
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    texts = {path: environment.get_template(template).render(values) for path, template in files.items()}
    for path, text in texts.items():
        write_text(path, text)
    return list(files)
