"""The plan: every run of a tier, with its settings, needs and resources, read from ``config/<tier>.yaml``.

Snakemake, DVC and the command line all read this one object, so that they agree on what there is to do. Reading it
imports no numerical library. Between the file and its runs stand validation, defaults, recipes and needs, with one clear line for
every mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas.datasets import dataset_names, get_dataset
from atlas.datasets.own import declare
from atlas.errors import UserError, did_you_mean
from atlas.harness.claims import check_claims
from atlas.harness.names import case_twins, ignores_case, name_fault, shown_name
from atlas.harness.registry import RECIPE_BEFORE, Registry, Task, load
from atlas.harness.run import TRIAL, Resources, Run
from atlas.harness.yaml_file import read_yaml
from atlas.settings import merge, validate_settings

CONFIG_FOLDER = Path("config")
PHASES = ("model", "training", "after")
ROW_WORDS = ("method", "protocol", "resources")
TASK_WORDS = ("protocol", "methods", "datasets", "resources", "seeds", "stack_seeds")
DATASET_WORDS = ("data", "protocol", "methods", "resources", "seeds", "stack_seeds")


@dataclass(frozen=True)
class Study:
    """Every run of a tier.

    Attributes
    ----------
    seeds : tuple of int
        Those of every row whose task or benchmark names none of its own.
    substitutes : mapping
        Dataset that the study names to the one that is read in its place.
    """

    tier: str
    description: str
    seeds: tuple[int, ...]
    batch_seeds: bool
    runs: tuple[Run, ...]
    root: Path
    source: Path
    substitutes: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[str, ...] = ()

    @classmethod
    def read(cls, tier: str, root: Path | str = Path()) -> Study:
        """Read and validate ``<root>/config/<tier>.yaml``.

        Raises
        ------
        UserError
            The file is missing, is not YAML, or names something that does not exist; says where and what would be right.
        """
        if fault := name_fault(tier):
            raise UserError(f"--tier {shown_name(tier)} {fault}")
        root = Path(root)
        if tier.endswith(TRIAL):
            real = tier.removesuffix(TRIAL)
            raise UserError(f"{tier} is where trials of the study {real} lie: name {real}, and the settings with --set")
        path = root / CONFIG_FOLDER / f"{tier}.yaml"
        if not path.is_file():
            known = [file.stem for file in sorted((root / CONFIG_FOLDER).glob("*.yaml"))]
            hint = did_you_mean(tier, known) if known else checkout_hint(root)
            raise UserError(f"there is no study {tier} ({path} does not exist); {hint}")
        study = StudyFile(path, tier, root, load()).study()
        check_claims(study.runs, tier)
        return study

    @cached_property
    def by_cell(self) -> dict[str, Run]:
        """The runs by ``task/dataset/method/seed<k>``."""
        return {run.cell: run for run in self.runs}

    @cached_property
    def by_row(self) -> dict[tuple[str, str, str], list[Run]]:
        """The runs of each row, (task, dataset, method), over its seeds."""
        rows: dict[tuple[str, str, str], list[Run]] = {}
        for run in self.runs:
            rows.setdefault((run.task, run.dataset, run.method), []).append(run)
        return rows

    @cached_property
    def tables(self) -> list[tuple[str, str]]:
        """Every (task, dataset) that has a table, in the study's order."""
        return list(dict.fromkeys((run.task, run.dataset) for run in self.runs))

    @property
    def datasets(self) -> list[str]:
        """Every dataset that some run reads."""
        return sorted({run.data for run in self.runs if run.data})

    @property
    def tasks(self) -> list[str]:
        """Every task of the study, in its order."""
        return list(dict.fromkeys(run.task for run in self.runs))

    @property
    def results(self) -> Path:
        """Folder that holds the results of the study's tier."""
        return self.root / "results" / self.tier

    def find(self, cell: str) -> Run:
        """Return the run of that name, or raise a :class:`UserError` that suggests the nearest one."""
        run = self.by_cell.get(cell.strip("/"))
        if run is None:
            raise UserError(f"{cell} is not a run of {self.source}; {did_you_mean(cell, self.by_cell)}")
        return run

    def find_row(self, row: str) -> list[Run]:
        """Return the runs of a row ``task/dataset/method``, or raise a :class:`UserError` that suggests the nearest one."""
        rows = {"/".join(name): runs for name, runs in self.by_row.items()}
        if row not in rows:
            raise UserError(f"{row} is not a row of {self.source}; {did_you_mean(row, rows)}")
        return rows[row]

    def find_table(self, name: str) -> tuple[str, str]:
        """Return the task and dataset of a table ``task/dataset``, or raise a :class:`UserError` that suggests the nearest."""
        tables = {"/".join(pair): pair for pair in self.tables}
        if name not in tables:
            raise UserError(f"{name} is not a table of {self.source}; {did_you_mean(name, tables)}")
        return tables[name]

    def matching(self, task: str, dataset: str | None = None, method: str | None = None) -> list[Run]:
        """Return the runs of a task, of one of its datasets, or of one row."""
        return [run for run in self.runs if run.task == task and dataset in (None, run.dataset) and method in (None, run.method)]


def checkout_hint(root: Path) -> str:
    """Where the checkout is, for a folder that is not one: in a folder above it, or to be named."""
    above = root.resolve().parents
    for steps, folder in enumerate(above, start=1):
        if (folder / CONFIG_FOLDER).is_dir() and (folder / "Snakefile").is_file():
            return f"the checkout is {folder}: go there, or say atlas -C {'/'.join(['..'] * steps)} …"
    return "this is not a checkout of Atlas: go to one, or say which with atlas -C FOLDER …"


class StudyFile:
    """Turns one YAML file into a :class:`Study`; holds what error messages need."""

    def __init__(self, path: Path, tier: str, root: Path, registry: Registry) -> None:
        self.path, self.tier, self.root, self.registry = path, tier, root, registry
        self.shown = CONFIG_FOLDER / path.name
        self.batch_seeds = self.stack_seeds = False
        self.substitutes: dict[str, str] = {}
        self.own_data: dict[str, Mapping[str, Any]] = {}
        self.caseless = ignores_case(path)
        content = read_yaml(path, self.shown)
        if content is None:
            raise self.fail("", "is empty; a study names at least its seeds and one task")
        self.content = self.mapping(content, "")

    def fail(self, where: str, message: str) -> UserError:
        """An error that says which file and where in it."""
        return UserError(f"{self.shown}: {where}{' ' if where else ''}{message}")

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        """A mapping with text keys; nothing at all is an empty one."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(where, f"must be a mapping, not {'a list' if isinstance(value, list) else repr(value)}")
        for key in value:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise self.fail(where, f"has a key that YAML reads as {key!r}; if it is a name, put it in quotes")
        return {str(key): item for key, item in value.items()}

    def part(self, values: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
        """A mapping inside another one; nothing where there is none."""
        return self.mapping(values.get(key), f"{where}.{key}")

    def check_names(self, names: Iterable[str], where: str) -> None:
        """Refuse names of benchmarks or rows that cannot be folders side by side."""
        names = list(names)
        for name in names:
            if fault := name_fault(name):
                raise self.fail(f"{where}:", f"{shown_name(name)} {fault}")
        twins = case_twins(names) if self.caseless else None
        if twins:
            raise self.fail(f"{where}:", f"{twins[0]} and {twins[1]} would share a folder, since this file system ignores case")

    def known_keys(self, values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        """Refuse a key that means nothing here."""
        for key in values:
            if key not in known:
                raise self.fail(f"{where}.{key}".strip("."), f"is not known here; {did_you_mean(key, known)}")

    def study(self) -> Study:
        """Read the whole file, check it, and return it as a study."""
        top = dict(self.content)
        seeds = self.seeds(top.pop("seeds", None), "seeds")
        self.substitutes = self.substituted(top.pop("substitutes", None))
        self.batch_seeds = self.switch(top, "batch_seeds")
        self.stack_seeds = self.stacking(top, "", False)
        description = str(top.pop("description", ""))
        limits = top.pop("limits", None) or []
        if not isinstance(limits, list) or not all(isinstance(limit, str) for limit in limits):
            raise self.fail("limits", "must be a list of sentences: what the study cannot show")
        resources = self.mapping(top.pop("resources", None), "resources")
        runs: list[Run] = []
        words = ("seeds", "batch_seeds", "stack_seeds", "description", "limits", "resources", "substitutes")
        self.known_keys(top, [*self.registry.tasks, *words], "")
        for name, body in top.items():
            runs += self.task_runs(self.registry.task(name), self.mapping(body, name), seeds, resources)
        return Study(
            tier=self.tier,
            description=description,
            seeds=tuple(seeds),
            batch_seeds=self.batch_seeds,
            runs=tuple(runs),
            root=self.root,
            source=self.shown,
            substitutes=self.substitutes,
            limits=tuple(limits),
        )

    def switch(self, values: dict[str, Any], key: str, where: str = "", default: bool = False) -> bool:
        """Take a choice between true and false out of a mapping; false by default."""
        value = values.pop(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{where}.{key}".strip("."), f"must be true or false, not {value!r}")
        return value

    def stacking(self, values: dict[str, Any], where: str, default: bool) -> bool:
        """Take out of a part of the study whether it trains the seeds of a row at once; as the part around it by default."""
        stacked = self.switch(values, "stack_seeds", where, default)
        if stacked and not self.batch_seeds:
            raise self.fail(f"{where}.stack_seeds".strip("."), "needs one job for all seeds of a row: set batch_seeds: true")
        return stacked

    def seeds(self, given: Any, where: str) -> list[int]:
        """Seeds of the study, or of one of its tasks or benchmarks."""
        if not isinstance(given, list) or not given or not all(type(seed) is int and 0 <= seed < 2**63 for seed in given):
            raise self.fail(where, "must be a list of whole numbers from 0, for example [0, 1, 2]")
        if len(set(given)) != len(given):
            raise self.fail(where, f"names a seed twice: {given}")
        return given

    def substituted(self, given: Any) -> dict[str, str]:
        """Dataset to the one that stands for it: two known names each, and nothing that is itself replaced."""
        substitutes = self.mapping(given, "substitutes")
        for name, other in substitutes.items():
            for dataset in (name, str(other)):
                if dataset not in dataset_names():
                    raise self.fail(
                        f"substitutes.{name}", f"names {dataset}, not a data set; {did_you_mean(dataset, dataset_names())}"
                    )
            if str(other) in substitutes:
                raise self.fail(f"substitutes.{name}", f"= {other} is itself replaced")
        return {name: str(other) for name, other in substitutes.items()}

    def task_runs(self, task: Task, body: dict[str, Any], seeds: list[int], resources: dict[str, Any]) -> Iterator[Run]:
        """Yield every run of one task: each dataset, method and seed that its section names."""
        self.known_keys(body, TASK_WORDS, task.name)
        datasets = self.mapping(body.get("datasets"), f"{task.name}.datasets")
        if not datasets:
            raise self.fail(f"{task.name}.datasets", "names no dataset")
        self.check_names(datasets, f"{task.name}.datasets")
        if "seeds" in body:
            seeds = self.seeds(body["seeds"], f"{task.name}.seeds")
        stacked = self.stacking(body, task.name, self.stack_seeds)
        for dataset, options in datasets.items():
            where = f"{task.name}.datasets.{dataset}"
            options = self.mapping(options, where)
            self.known_keys(options, DATASET_WORDS, where)
            data = self.data(dataset, options, where)
            shapes = _found(task, data) if isinstance(options.get("data"), Mapping) else {}
            protocol = merge(shapes, self.part(body, "protocol", task.name), self.part(options, "protocol", where))
            own_resources = merge(resources, self.part(body, "resources", task.name), self.part(options, "resources", where))
            rows = self.rows(task, body, options, dataset)
            self.check_names(rows, f"{where}.methods")
            own = self.seeds(options["seeds"], f"{where}.seeds") if "seeds" in options else seeds
            together = self.stacking(options, where, stacked)
            yield from _Benchmark(self, task, dataset, data, protocol, own_resources, rows, together).runs(own)

    def data(self, benchmark: str, options: Mapping[str, Any], where: str) -> str:
        """Name of the data set that a benchmark reads; empty where its data is generated."""
        name = options.get("data", benchmark)
        if name is None:
            return ""
        if isinstance(name, Mapping):
            if self.own_data.setdefault(benchmark, name) != name:
                raise self.fail(
                    f"{where}.data", "names other data than another benchmark of that name: give it a name of its own"
                )
            return declare(benchmark, name, self.root, f"{self.shown}: {where}.data").name
        if name in dataset_names():
            return str(name)
        hint = did_you_mean(str(name), dataset_names())
        if "data" in options:
            raise self.fail(f"{where}.data", f"= {name!r} is not a data set; {hint}")
        raise self.fail(where, f"is not a data set, and a benchmark of another name needs data: NAME (or null); {hint}")

    def rows(
        self, task: Task, body: dict[str, Any], options: dict[str, Any], dataset: str
    ) -> dict[str, tuple[str, dict[str, Any]]]:
        """Rows of one dataset: name → (where it stands in the file, its body); ``false`` leaves a row out."""
        rows: dict[str, tuple[str, dict[str, Any]]] = {}
        own = f"{task.name}.datasets.{dataset}.methods"
        for where, methods in ((f"{task.name}.methods", body.get("methods")), (own, options.get("methods"))):
            for name, row in self.mapping(methods, where).items():
                if row is False:
                    rows.pop(name, None)
                    continue
                base = rows[name][1] if name in rows else {}
                rows[name] = (f"{where}.{name}", merge(base, self.mapping(row, f"{where}.{name}")))
        if not rows:
            raise self.fail(own, "names no method")
        return rows


def _found(task: Task, data: str) -> dict[str, Any]:
    """What the protocol takes from a person's own images, unless the study says otherwise: their size and channels."""
    shape = get_dataset(data).facts.get("shape")
    if "backbone" not in task.protocol.model_fields or not isinstance(shape, tuple):
        return {}
    return {"backbone": {"in_chans": shape[0], "img_size": shape[1]}}


def declare_own(name: str, root: Path, tier: str | None = None) -> None:
    """Look for own data of a name in the studies of a checkout, or in that of a tier, and declare it.

    A study that cannot be read is passed over.

    Raises
    ------
    UserError
        Several studies mean different data by the name, or the data are not as expected.
    """
    found = list(_own_data(name, root, tier))
    if not found:
        return
    asked, where = found[0]
    other = next((place for data, place in found if data != asked), None)
    if other is not None:
        raise UserError(f"{name} is declared in {where} and otherwise in {other}: say which study's is meant with --tier")
    declare(name, asked, root, where)


def _own_data(name: str, root: Path, tier: str | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every declaration of own data of a name, and where it stands."""
    for path in sorted((root / CONFIG_FOLDER).glob(f"{tier or '*'}.yaml")):
        try:
            content = read_yaml(path, CONFIG_FOLDER / path.name)
        except UserError:
            continue
        for task, body in content.items() if isinstance(content, Mapping) else ():
            datasets = body.get("datasets") if isinstance(body, Mapping) else None
            options = datasets.get(name) if isinstance(datasets, Mapping) else None
            if isinstance(options, Mapping) and isinstance(options.get("data"), Mapping):
                yield options["data"], f"{CONFIG_FOLDER / path.name}: {task}.datasets.{name}.data"


@dataclass
class _Benchmark:
    """One dataset of one task while its rows become runs."""

    reader: StudyFile
    task: Task
    dataset: str
    data: str
    protocol: dict[str, Any]
    resources: dict[str, Any]
    rows: dict[str, tuple[str, dict[str, Any]]]
    stack_seeds: bool
    made: dict[tuple[str, int], Run] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    first: int | None = None

    def runs(self, seeds: list[int]) -> Iterator[Run]:
        self.first = seeds[0] if seeds else None
        for seed in seeds:
            for row in self.rows:
                self.run(row, seed)
        return (self.made[row, seed] for row in self.rows for seed in seeds)

    def run(self, row: str, seed: int) -> Run:
        """Make one run, and before it the runs that it needs."""
        if (row, seed) in self.made:
            return self.made[row, seed]
        if row in self.open:
            raise self.reader.fail(self.rows[row][0], f"needs itself: {' → '.join([*self.open, row])}")
        self.open.append(row)
        where, body = self.rows[row]
        recipe = self.recipe(row)
        needs = {
            role: self.run(self.needed_row(row, needed, where), seed)
            for name in recipe
            for role, needed in self.reader.registry.method(self.task.name, name).needs.items()
        }
        self.open.pop()
        shown = self.reader.shown
        protocol = validate_settings(
            self.task.protocol,
            merge(self.protocol, self.reader.part(body, "protocol", where)),
            f"{shown}: {where}.protocol",
            f"the protocol of {self.task.name}",
        )
        resources = validate_settings(
            Resources,
            merge(self.resources, self.reader.part(body, "resources", where)),
            f"{shown}: {where}.resources",
            "resources",
        )
        self.made[row, seed] = Run(
            tier=self.reader.tier,
            task=self.task.name,
            dataset=self.dataset,
            data=self.reader.substitutes.get(self.data, self.data),
            stands_for=self.data if self.data in self.reader.substitutes else "",
            method=row,
            recipe=recipe,
            seed=seed,
            protocol=protocol,
            settings=self.settings(row, recipe),
            resources=Resources(**resources),
            needs=needs,
            batched=self.reader.batch_seeds,
            stack_seeds=self.stack_seeds,
            first=seed == self.first,
            root=self.reader.root,
            task_entry=self.task,
            method_entries=tuple(self.reader.registry.method(self.task.name, name) for name in recipe),
        )
        return self.made[row, seed]

    def recipe(self, row: str) -> tuple[str, ...]:
        """The registered methods of a row, validated: known, allowed together, in the order in which they act."""
        where, body = self.rows[row]
        names = str(body.get("method", row)).split("+")
        known = self.reader.registry.methods.get(self.task.name, {})
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise self.reader.fail(where, f"{name} is not a method of {self.task.name}; {hint}")
        if len(names) == 1:
            return tuple(names)
        if not self.task.recipes:
            raise self.reader.fail(where, f"methods of {self.task.name} cannot be combined")
        if len(set(names)) != len(names):
            raise self.reader.fail(where, "names a method twice")
        for name in names:
            if known[name].alone:
                raise self.reader.fail(where, f"{name} trains by itself and cannot stand in a recipe")
            for other in names:
                if other != name and set(known[name].conflicts).intersection((other, *known[other].traits)):
                    raise self.reader.fail(where, f"{name} and {other} cannot stand in one recipe")
        ordered = sorted(names, key=lambda name: PHASES.index(known[name].phase))
        if ordered != names:
            raise self.reader.fail(where, f"acts in another order: write {'+'.join(ordered)}")
        if sum(known[name].phase == "after" for name in names) > 1:
            raise self.reader.fail(where, "holds two methods that act after training; at most one can")
        return tuple(names)

    def needed_row(self, row: str, needed: str, where: str) -> str:
        """Name of the row that fills a need of ``row``."""
        if needed == RECIPE_BEFORE:
            known = self.reader.registry.methods[self.task.name]
            before = [name for name in self.recipe(row) if known[name].phase != "after"]
            needed = "+".join(before) or self.task.baseline
        if needed not in self.rows:
            raise self.reader.fail(where, f"needs the row {needed}, which {self.dataset} does not have; add it there")
        return needed

    def settings(self, row: str, recipe: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Validated settings of every method of the row; a recipe's are nested by method."""
        where, body = self.rows[row]
        values = {key: value for key, value in body.items() if key not in ROW_WORDS}
        if len(recipe) > 1:
            self.reader.known_keys(values, [*recipe, *ROW_WORDS], where)
        complete = {}
        for name in recipe:
            own = values if len(recipe) == 1 else self.reader.mapping(values.get(name), f"{where}.{name}")
            address = f"{self.reader.shown}: {where}" + ("" if len(recipe) == 1 else f".{name}")
            entry = self.reader.registry.method(self.task.name, name)
            complete[name] = validate_settings(entry.settings, merge(entry.preset, own), address, name)
        return complete
