"""What every registered method must do; none is named here, and a new one is tested by being there."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from atlas.errors import Interrupted, UserError
from atlas.harness import resume
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors
from atlas.harness.registry import RECIPE_BEFORE, Method, load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import merge, validate_settings

ROOT = Path(__file__).resolve().parents[2]
# What the demo cannot try, and why.
NOT_TRIED = {
    "all-views": "no embedded scene has views to learn from but the reference; test_sinnerf_plugin.py takes its steps",
    "as-vit-large": "minutes for a wider as-vit-small",
}
# Tensors that two steps do not move, by row: a pattern of their names, and why.
UNMOVED = {
    "t2t-vit": (r"pos_embed|patch_embed\.mixers\.\d\.directions", "sinusoids and random features are drawn once and not trained"),
    "cait": (r"blocks\.\d\.norm\d\.weight", "LayerScale at 1e-5 leaves them gradients below AdamW's ε at first"),
}
# Networks at their published size.
SLOW = {"as-vit-small", "as-vit-base"}
# (task, dataset, row, settings): a row of the demo whose needs are met otherwise than a row which the demo leaves out asks.
OTHERWISE = [("learned-optimization", "digits", "oracle", {"pool": "large"})]


def complete_study() -> Study:
    """The demo study, with a row for every registered method that it leaves out."""
    demo = Study.read("demo", ROOT)
    content = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    for task, dataset, row, settings in OTHERWISE:
        content[task]["datasets"][dataset]["methods"][row].update(settings)
    for entry in left_out(demo):
        rows = content[entry.task]["datasets"][home(demo, entry)].setdefault("methods", {})
        rows[entry.name] = {}
    with TemporaryDirectory() as folder:
        config = Path(folder) / "config" / "demo.yaml"
        config.parent.mkdir()
        config.write_text(yaml.safe_dump(content, sort_keys=False))  # rows are tried on the first dataset that has them
        return Study.read("demo", folder)


def left_out(study: Study) -> list[Method]:
    """Registered methods that are in no row of a study, of the tasks that it has; others are tried beside their task's tests."""
    there = {(run.task, name) for run in study.runs for name in run.recipe}
    tasks = {run.task for run in study.runs}
    return [entry for entry in load().all_methods() if entry.task in tasks and (entry.task, entry.name) not in there]


def home(study: Study, entry: Method) -> str:
    """Dataset for a method that a study leaves out: has the rows that it needs and, best, others of its paper."""
    task = load().task(entry.task)
    needed = [task.baseline if name == RECIPE_BEFORE else name for name in entry.needs.values()]
    strangers = {other.name: other for other in left_out(study) if other.task == entry.task}

    def has_what_it_needs(dataset: str) -> bool:
        rows = {run.method for run in study.matching(entry.task, dataset)}
        return all(name in rows or (name in strangers and home(study, strangers[name]) == dataset) for name in needed)

    def of_other_papers(dataset: str) -> bool:
        return all(other.paper != entry.paper for run in study.matching(entry.task, dataset) for other in run.method_entries)

    datasets = [dataset for name, dataset in study.tables if name == entry.task]
    return next(dataset for dataset in sorted(datasets, key=of_other_papers) if has_what_it_needs(dataset))


def one_run_per_recipe(study: Study) -> list[Run]:
    """First run of every combination of methods, on the first dataset that has it."""
    found: dict[tuple[str, tuple[str, ...]], Run] = {}
    for run in study.runs:
        found.setdefault((run.task, run.recipe), run)
    return list(found.values())


def shortest(run: Run, root: Path) -> Run:
    """The same run in another folder, as short as its entries say it can validly be; so are the runs it needs."""
    task = run.task_entry
    protocol = validate_settings(task.protocol, merge(run.protocol, task.smallest), "smallest", task.name)
    settings = {
        entry.name: validate_settings(entry.settings, merge(run.settings[entry.name], entry.smallest), "smallest", entry.name)
        for entry in run.method_entries
    }
    needs = {role: shortest(needed, root) for role, needed in run.needs.items()}
    return replace(run, root=root, protocol=protocol, settings=settings, needs=needs)


def train_with_needs(run: Run) -> None:
    for needed in run.needs.values():
        train_with_needs(needed)
    train_run(run)


@contextmanager
def interrupted_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs, every loop is told to stop after a few steps, as a signal would tell it."""

    class Impatient(resume.StopRequest):
        seen = 0

        @property
        def signal(self) -> signal.Signals | None:
            self.seen += 1
            return signal.SIGTERM if self.seen > steps else None

        @signal.setter
        def signal(self, value: signal.Signals | None) -> None:
            pass

    @contextmanager
    def requests() -> Iterator[resume.StopRequest]:
        yield Impatient()

    with monkeypatch.context() as patched:
        patched.setattr(resume, "stop_requests", requests)
        yield


STUDY = complete_study()
RUNS = [
    pytest.param(run, id=f"{run.task}:{'+'.join(run.recipe)}", marks=[pytest.mark.slow] if SLOW.intersection(run.recipe) else [])
    for run in one_run_per_recipe(STUDY)
    if not set(NOT_TRIED).intersection(run.recipe)
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """A working directory of all tests here, so that what several runs need is trained once."""
    return with_data(tmp_path_factory.mktemp("shared"), data_folder)


def with_data(root: Path, data_folder: Path) -> Path:
    (root / "data").symlink_to(data_folder)
    return root


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, shared: Path) -> Run:
    return shortest(request.param, shared)


def test_every_registered_method_is_tried() -> None:
    assert left_out(STUDY) == []
    tried = {name for run in STUDY.runs for name in run.recipe}
    assert tried.issuperset(NOT_TRIED)
    assert tried.issuperset(SLOW)


def test_trains_evaluates_and_survives_interruption(
    run: Run, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_with_needs(run)
    assert run.record.is_file()
    if not run.declared_metrics:
        return
    content = evaluate_run(run)
    written = json.loads(run.metrics.read_text())
    assert written == content

    # evaluation returns exactly the declared metrics, finite
    declared = {metric.name: metric for metric in run.declared_metrics}
    assert set(content["metrics"]) | set(content["timings"]) == set(declared)
    for name, value in {**content["metrics"], **content["timings"]}.items():
        if value is None and declared[name].optional:
            continue
        assert value is not None, f"{name} is not finite"
        assert math.isfinite(value)
    assert content["run"]["fingerprint"] == run.fingerprint
    assert content["provenance"]["train_seconds"] >= 0

    # interrupted again and again, it ends with the same weights and the same numbers
    other = replace(run, root=with_data(tmp_path, data_folder))
    interruptions = 0
    with interrupted_every(2, monkeypatch):
        while True:
            try:
                train_with_needs(other)
                break
            except Interrupted:
                interruptions += 1
                assert interruptions < 200, "never comes to an end"
    assert evaluate_run(other)["metrics"] == content["metrics"]
    if run.weights.is_file():
        assert other.weights.read_bytes() == run.weights.read_bytes()
    if run.history.is_file():
        assert other.history.read_text() == run.history.read_text()
    assert not (other.checkpoint / "state").exists()


def test_training_changes_the_weights(run: Run, tmp_path: Path, data_folder: Path) -> None:
    """Every weight that is kept differs from what the same run, from the same start, has after the first step of each loop."""
    train_with_needs(run)
    if not (run.weights.is_file() and run.history.is_file()):
        pytest.skip("keeps no weights, or finds them without a loop")
    begun = replace(run, root=with_data(tmp_path, data_folder), limit=1)
    train_run(begun)
    first, last = read_tensors(begun.weights), read_tensors(run.weights)
    same_place = [name for name in first if name in last and first[name].shape == last[name].shape]
    assert same_place
    # masks are no weights; a network's statistics change without training, so that one change says nothing
    unchanged = [name for name in same_place if first[name].is_floating_point() and (first[name] == last[name]).all()]
    pattern = "|".join(UNMOVED[name][0] for name in run.recipe if name in UNMOVED)
    unchanged = [name for name in unchanged if not pattern or not re.fullmatch(pattern, name)]
    assert unchanged == []


@pytest.mark.parametrize("entry", list(load().all_methods()), ids=lambda entry: f"{entry.task}:{entry.name}")
def test_refuses_unknown_settings(entry) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="no_such_setting is not a setting of"):
        validate_settings(entry.settings, {"no_such_setting": 1}, "config", entry.name)


@pytest.mark.parametrize("entry", list(load().all_methods()), ids=lambda entry: f"{entry.task}:{entry.name}")
def test_says_what_it_is(entry) -> None:  # type: ignore[no-untyped-def]
    assert entry.title
    assert entry.summary.endswith(".")
    assert entry.task in load().tasks
    assert not entry.paper or entry.paper in load().papers
    names = [metric.name for metric in (*(entry.metrics or ()), *entry.extra_metrics)]
    assert len(names) == len(set(names))
