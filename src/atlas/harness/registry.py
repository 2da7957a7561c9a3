"""The nouns that carry all tasks: :class:`Metric`, :class:`Task`, :class:`Method`, and the folder registry.

A task lives in ``atlas/tasks/<task>/entry.py`` and a method in ``atlas/methods/<paper>/entry.py``; finding the folder is
the registration, so adding a method touches no list. An entry is a table of rows: data, and names of the code that does the
work, ``"module:name"``. Code is imported when a run needs it, so reading a study imports no numerical library.
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from atlas.errors import UserError, did_you_mean
from atlas.settings import Settings

RECIPE_BEFORE = "<recipe>"
"""Value of a need: the row whose recipe is this one's without the ingredients that act after training."""

COSTS = ("parameters", "flops", "macs", "seconds", "bytes", "flops_ratio", "macs_ratio")
"""Endings of the names of metrics that are costs (``bytes`` covers ``mebibytes``)."""

COUNTS = (*(ending for ending in COSTS if ending != "seconds"), "parameters_ratio", "rays", "windows")
"""Endings of the names of metrics that settings alone decide: counted, not estimated."""

TRAINING = ("train_flops", "train_macs", "rays", "windows")
"""Names of metrics that count the work of a training; the first that two rows share tells whether they cost the same."""


REPORTED = "atlas.harness.execute:training_summary"
"""Value of ``evaluate``: the metrics are what the training reported."""


class CodeReferenceError(UserError):
    """An entry names code that is not there."""


def resolve(reference: str, package: str) -> Any:
    """Import what an entry names.

    Parameters
    ----------
    reference : str
        ``"module:name"``: a module of the entry's own package, or, where it begins with ``atlas.``, of any.
    package : str
        The entry's package.

    Raises
    ------
    CodeReferenceError
        There is no such module, or nothing of that name in it. Errors inside the module are raised as they are.
    """
    module_name, _, name = reference.partition(":")
    if not name:
        raise CodeReferenceError(f'{package}.entry: {reference!r} names no code; write "module:name"')
    module = module_name if module_name.startswith("atlas.") else f"{package}.{module_name}"
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise CodeReferenceError(f"{package}.entry: {reference!r}: there is no module {module}") from None
    if not hasattr(loaded, name):
        hint = did_you_mean(name, [known for known in vars(loaded) if not known.startswith("_")])
        raise CodeReferenceError(f"{package}.entry: {reference!r}: {module} has no {name}; {hint}")
    return getattr(loaded, name)


@dataclass(frozen=True)
class Metric:
    """One number that an evaluation returns.

    Parameters
    ----------
    name : str
        Key in ``metrics.json``; carries the unit where there is one (``step_seconds``).
    label : str
        What a table's header shows.
    better : {"higher", "lower", "neither"}
        Which direction is best; ``"neither"`` marks no winner.
    format : str
        Format specification of one value, for example ``".1%"`` for a fraction shown in per cent.
    table : bool
        Whether the main comparison table shows it; every metric is in the CSV.
    measured : bool
        A wall-clock measurement: it differs from run to run, so it is kept under ``timings`` in ``metrics.json`` and
        out of the tables, which are the same bit for bit wherever the study runs.
    cost : bool, optional
        Whether it says what a method costs: the page lists costs apart, and plots the headline against the first on which
        methods differ. Told from the unit in its name (:data:`COSTS`) if left out.
    optional : bool
        May be missing (``null``) where what measures it is not there: weights that cannot be had, data without a ground truth.
    deterministic : bool, optional
        Whether settings alone decide it, so that a number that is the same on every seed is known exactly and not by chance.
        Told from the unit in its name (:data:`COUNTS`) if left out.
    """

    name: str
    label: str
    better: Literal["higher", "lower", "neither"] = "higher"
    format: str = ".3g"
    table: bool = True
    measured: bool = False
    cost: bool | None = None
    optional: bool = False
    deterministic: bool | None = None

    @property
    def is_deterministic(self) -> bool:
        """Whether it is counted, so that agreement over seeds is no coincidence."""
        return (not self.measured and self.name.endswith(COUNTS)) if self.deterministic is None else self.deterministic

    @property
    def is_training(self) -> bool:
        """Whether the metric counts the work of a training."""
        return self.name in TRAINING

    @property
    def is_cost(self) -> bool:
        """Whether the metric says what a method costs, rather than what it achieves."""
        return (self.better == "lower" and self.name.endswith(COSTS)) if self.cost is None else self.cost


class Amount(NamedTuple):
    """How much work of one kind a whole training does: steps, examples in each, and how many of those are in memory at once.

    What counts as an example is up to the kind, as long as the cost of a step is proportional to their number.
    """

    steps: float
    batch: float
    at_once: float


Amounts = Mapping[str, Amount]
"""By kind of work (:mod:`atlas.nn.work`): the phase of a loop (``train``), ``validation``, and what else the code names."""


@dataclass(frozen=True)
class Task:
    """A problem with a protocol, metrics and a comparison table.

    Parameters
    ----------
    name : str
        As in paths: ``image-classification``.
    title, question : str
        Heading of its chapter in the report, and the question that the chapter answers.
    protocol : type[Settings]
        What all methods of a table share: data split, backbone, schedule.
    metrics : tuple of Metric
        Exactly what an evaluation returns, for methods that declare none of their own. The first is the headline.
    train : str
        Names ``train(run)``: from data and settings to ``run.weights`` (and curves); resumable. May return numbers about the
        training, which :func:`atlas.harness.execute.training_summary` gives back to the evaluation.
    evaluate : str
        Names ``evaluate(run) -> {metric: value}`` on the test split, from the files that ``train`` left.
    recipes : bool
        Whether a row may combine methods, ``a+b``.
    smallest : mapping
        Protocol overrides that make a run as short as it can validly be: a few steps, with everything exercised.
    rehearsal : mapping
        Protocol overrides that cut a run to one step (or round, window, iteration) of every phase and leave models, data
        shapes and losses at full size; batches may be as small as is valid.
    amounts : str
        Names ``amounts(run) -> {kind: Amount}``: for every kind of work (:mod:`atlas.nn.work`) how many steps a run takes and how
        many examples each sees, from its settings alone; NaN where they do not tell. A rehearsal takes one step of every kind,
        and scales its cost by these.
    ranks : bool
        Whether ``train`` and ``evaluate`` share a run's work out where several processes call them: :mod:`atlas.nn.ranks`.
    together : str
        Names ``train_together(runs)``, which trains several seeds of a row at once, and returns for each run what ``train`` does,
        or the error with which it failed. Empty where the task cannot.
    stackable : str
        Names ``stackable(run)``: whether a run's settings allow that, from them alone.
    baseline : str
        Row that the others are compared with in the table.
    tested : str
        Names ``tested(run)``: on how much a run is evaluated, in words ("539 test images"), from its settings alone; empty where
        they do not tell. Verdicts say it.
    altered : str
        Names ``altered(run)``: what was done to the dataset before anybody learned from it, in words ("a sixth of the labels
        drawn anew"); empty where nothing was. It tells evidence on real data from evidence on modified real data.
    """

    name: str
    title: str
    question: str
    protocol: type[Settings]
    metrics: tuple[Metric, ...]
    train: str
    evaluate: str
    baseline: str
    recipes: bool = False
    ranks: bool = False
    smallest: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    amounts: str = ""
    tested: str = ""
    altered: str = ""
    together: str = ""
    stackable: str = ""

    @property
    def package(self) -> str:
        """Package that its references are looked up in."""
        return f"atlas.tasks.{self.name.replace('-', '_')}"


@dataclass(frozen=True)
class Method:
    """A competitor in a task, one of its ablations, a baseline, or a stage that others need.

    Parameters
    ----------
    name, paper, task : str
        Row name, slug of the paper's folder (a task's own baselines carry ``""``), task.
    title : str
        What the table and the legends print.
    summary : str
        One sentence.
    role : {"method", "ablation", "baseline", "stage"}
        A ``stage`` produces an artefact for other runs and has no row among the competitors.
    settings : type[Settings]
        The row's settings model.
    needs : mapping
        Role to row name: the runs (same dataset and seed) whose artefacts this one reads; the value
        :data:`RECIPE_BEFORE` stands for the same recipe without what acts after training.
    phase : {"model", "training", "after"}
        Recipes list ingredients in this order: rewrite the model, shape the training, act after it.
    conflicts : tuple of str
        Names, or traits, of methods that cannot stand in one recipe with this one.
    traits : tuple of str
        What other methods may have to know about it without naming it, for example that it acts on timm's blocks.
    combines : bool
        Whether it may stand in a recipe; a stage, and a method that trains by a function of its own, never can.
    metrics : tuple of Metric, optional
        What its evaluation returns, where that differs from the task's.
    extra_metrics : tuple of Metric
        What it adds to the task's metrics.
    smallest, rehearsal : mapping
        Settings that make a run as short as it can validly be, and that cut it to one step of every phase at full size, as
        for a task.
    plugin : str
        Names what makes the object that the task's loop works with, usually a class: ``plugin(run, settings, **options)``. Empty
        for a row that trains by a function of its own.
    options : mapping
        What is fixed for this row and no setting: several rows may share one plug-in.
    preset : mapping
        Settings in which this row differs from the defaults of its settings class; a study may override them.
    stacks : bool
        Whether its seeds can be trained at once, where the task can: it builds networks that differ in weights alone, keeps to
        its own generators, and only looks on when its hooks are called.
    train, evaluate, amounts : str
        Name functions that replace the task's own, for stages and studies that do not train in the task's loop.
    ranks : bool
        Whether its own ``train`` and ``evaluate`` share their work out over several processes, as for a task.
    """

    name: str
    paper: str
    task: str
    title: str
    summary: str
    plugin: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    role: Literal["method", "ablation", "baseline", "stage"] = "method"
    settings: type[Settings] = Settings
    needs: Mapping[str, str] = field(default_factory=dict)
    phase: Literal["model", "training", "after"] = "model"
    conflicts: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    combines: bool = True
    metrics: tuple[Metric, ...] | None = None
    extra_metrics: tuple[Metric, ...] = ()
    smallest: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    train: str = ""
    evaluate: str = ""
    amounts: str = ""
    ranks: bool = False
    stacks: bool = False

    @property
    def package(self) -> str:
        """Package that its references are looked up in: the paper's, or that of the task whose own baseline it is."""
        kind, folder = ("methods", self.paper) if self.paper else ("tasks", self.task)
        return f"atlas.{kind}.{folder.replace('-', '_')}"

    @property
    def alone(self) -> bool:
        """Whether the method cannot be combined with others in a recipe."""
        return not self.combines or bool(self.train) or self.role == "stage"

    def build(self, run: Any, settings: Settings) -> Any:
        """Make the object that the task's loop works with."""
        return resolve(self.plugin, self.package)(run, settings, **self.options)


@dataclass(frozen=True)
class Paper:
    """One of the ten studies: the citation, and where its claims are."""

    slug: str
    title: str
    citation: str
    url: str
    claims: Path


@dataclass
class Registry:
    """Every task, paper and method found in the folders."""

    tasks: dict[str, Task] = field(default_factory=dict)
    papers: dict[str, Paper] = field(default_factory=dict)
    methods: dict[str, dict[str, Method]] = field(default_factory=dict)  # task → name → method

    def task(self, name: str) -> Task:
        """Look a task up, or raise a :class:`~atlas.errors.UserError` that suggests the nearest name."""
        if name not in self.tasks:
            raise UserError(f"there is no task {name}; {did_you_mean(name, self.tasks)}")
        return self.tasks[name]

    def method(self, task: str, name: str) -> Method:
        """Look a method of a task up, or raise a :class:`~atlas.errors.UserError` that suggests the nearest name."""
        known = self.methods.get(self.task(task).name, {})
        if name not in known:
            raise UserError(f"{name} is not a method of {task}; {did_you_mean(name, known)}")
        return known[name]

    def all_methods(self) -> Iterator[Method]:
        """Iterate over the methods of every task."""
        for by_name in self.methods.values():
            yield from by_name.values()


_registry = Registry()


def task(entry: Task) -> Task:
    """Register a task; to be called at module level of ``atlas/tasks/<task>/entry.py``."""
    _registry.tasks[entry.name] = entry
    return entry


def paper(slug: str, *, title: str, citation: str, url: str) -> str:
    """Register the paper whose ``entry.py`` calls this; returns the slug, for the entry's methods."""
    folder = files("atlas.methods") / slug.replace("-", "_")
    _registry.papers[slug] = Paper(slug, title, citation, url, Path(str(folder / "claims.yaml")))
    return slug


def method(name: str, *, task: str, paper: str = "", title: str, summary: str, **options: Any) -> None:
    """Register one row: a method, one of its ablations, a baseline or a stage; the options are the fields of :class:`Method`.

    What all rows of an entry share is said once, by :func:`functools.partial`.

    Examples
    --------
    >>> from functools import partial
    >>> row = partial(method, paper="anti-oversmoothing", task="image-classification")
    >>> row("attnscale", title="AttnScale", summary="Amplify the high-pass part of attention.",
    ...     plugin="plugin:Scaling")                                           # doctest: +SKIP
    """
    known = _registry.methods.setdefault(task, {})
    if name in known:
        raise ValueError(f"two methods of {task} are called {name}: {known[name].paper or task} and {paper or task}")
    known[name] = Method(name=name, paper=paper, task=task, title=title, summary=summary, **options)


@cache
def load() -> Registry:
    """Import every ``entry.py`` of the task and method folders once, and return what they registered.

    Raises
    ------
    UserError
        A folder holds an ``entry.py`` that Python cannot import: it has no ``__init__.py``, its name is no Python name, or the
        entry fails. Silence would look as if the method did not exist.
    """
    for package in ("atlas.tasks", "atlas.methods"):
        for folder in _folders(package):
            _import_entry(package, folder)
    for name in _registry.methods:
        _registry.task(name)
    return _registry


def _folders(package: str) -> list[Path]:
    """Folders of a package that hold an ``entry.py``, sorted by name."""
    parents = importlib.import_module(package).__path__
    folders = [entry.parent for parent in parents for entry in Path(parent).glob("*/entry.py")]
    return sorted(folders, key=lambda folder: folder.name)


def _import_entry(package: str, folder: Path) -> None:
    """Import the entry of one folder, or say in one line why that cannot be."""
    entry = folder / "entry.py"
    shown = entry.relative_to(Path.cwd()) if entry.is_relative_to(Path.cwd()) else entry
    if not folder.name.isidentifier():
        name = re.sub(r"\W|^(?=\d)", "_", folder.name)
        raise UserError(f"{shown} is never read, because Python cannot import a folder of this name; call it {name}")
    if not (folder / "__init__.py").is_file():
        raise UserError(f"{shown} is never read, because its folder has no __init__.py; add one")
    try:
        importlib.import_module(f"{package}.{folder.name}.entry")
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(entry)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        reason = str(error).partition("\n")[0]
        raise UserError(f"{shown}{f':{line}' if line else ''}: {type(error).__name__}: {reason}") from error
