"""Every method's row of a study on a pretended GPU: it trains, evaluates and leaves the numbers that it has on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conformance.test_methods import NOT_TRIED, SLOW, STUDY, one_run_per_recipe, shortest, train_with_needs, with_data
from tests.pretend_accelerator import pretending

from atlas.harness.execute import evaluate_run
from atlas.harness.files import read_tensors
from atlas.harness.run import Run

FAST = {
    "attnscale",
    "diverse-vit",
    "prune-only",
    "random-topology",
    "vfds",
    "vfds-arm",
    "flying-bird",
    "split-mix",
    "sinnerf",
    "amalgamated-noisy",
    "l2o-dm-equation",
}
"""One of each method, or the quicker of its kind; the other rows take minutes."""
RELATIVE, ABSOLUTE = 1e-3, 1e-5


def quick(run: Run) -> bool:
    """Whether a run is of one of the quick rows."""
    return len(run.recipe) == 1 and FAST.issuperset(run.recipe)


ROWS = [
    pytest.param(run, id=f"{run.task}:{'+'.join(run.recipe)}", marks=[] if quick(run) else [pytest.mark.slow])
    for run in one_run_per_recipe(STUDY)
    if not (set(NOT_TRIED) | SLOW).intersection(run.recipe)
]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> dict[str, Path]:
    """A working directory for each device, so that what several rows need is trained once on each."""
    return {device: with_data(tmp_path_factory.mktemp(device), data_folder) for device in ("cpu", "cuda")}


def on(device: str, run: Run) -> Run:
    """The same run, and the runs it needs, on a device."""
    needs = {role: on(device, needed) for role, needed in run.needs.items()}
    return replace(run, resources=run.resources.model_copy(update={"device": device}), needs=needs)


def numbers(run: Run) -> dict[str, float | None]:
    """Metrics of a run that is trained for them, with what it needs."""
    train_with_needs(run)
    return evaluate_run(run)["metrics"] if run.declared_metrics else {}


def close(mine: float | None, other: float | None) -> bool:
    """Whether two numbers are the same but for the order of sums."""
    return mine == other or (
        mine is not None and other is not None and math.isclose(mine, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    )


def test_every_method_has_a_row() -> None:
    fast = [run for run in one_run_per_recipe(STUDY) if quick(run)]
    assert {entry.paper for run in fast for entry in run.method_entries if entry.paper} == {
        entry.paper for run in STUDY.runs for entry in run.method_entries if entry.paper
    }


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_cpus_numbers(row: Run, roots: dict[str, Path]) -> None:
    host, device = (on(name, shortest(row, root)) for name, root in roots.items())
    expected = numbers(host)
    with pretending():
        found = numbers(device)
    assert found.keys() == expected.keys()
    assert {name: (found[name], value) for name, value in expected.items() if not close(found[name], value)} == {}
    if host.weights.is_file():
        mine, other = read_tensors(device.weights), read_tensors(host.weights)
        assert {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in other.items()}
