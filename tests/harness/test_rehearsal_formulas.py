"""The committed rehearsal of the paper study against formulas that share no code with the meter: sums over layer sizes."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from atlas.harness.launch import shares_work
from atlas.harness.rehearsal import amounts_of
from atlas.harness.study import Study
from atlas.nn.work import ENCODING, TRAIN

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def formulas() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.rehearsal_formulas")


@pytest.fixture(scope="module")
def found(formulas: ModuleType):  # type: ignore[no-untyped-def]
    return formulas.checks(Study.read("paper", ROOT))


def test_every_row_is_within_two_percent_of_its_formula(found) -> None:  # type: ignore[no-untyped-def]
    assert [(one.row, one.ratio) for one in found if not one.is_close] == []
    assert all(math.isfinite(one.metered) and math.isfinite(one.formula) for one in found)


def test_every_row_that_was_rehearsed_is_in_the_table(formulas: ModuleType, found) -> None:  # type: ignore[no-untyped-def]
    with (ROOT / "results/paper/rehearsal.csv").open() as file:
        rows = [row["run"] for row in csv.DictReader(file)]
    assert [one.row for one in found] == rows
    committed = (ROOT / "results/paper/rehearsal-check.csv").read_text()
    assert committed == formulas.table(found)
    assert len(list(csv.DictReader(committed.splitlines()))) == len(rows)


def test_rows_of_more_than_a_day_ask_for_a_node_of_eight() -> None:
    study = Study.read("paper", ROOT)
    asked = {run.cell.rpartition("/")[0]: run.resources.gpus for run in study.runs if shares_work(run)}
    with (ROOT / "results/paper/rehearsal.csv").open() as file:
        long = {row["run"] for row in csv.DictReader(file) if row["gpu_hours"] and float(row["gpu_hours"]) > 24}
    assert len(long & asked.keys()) > 50
    assert {row: asked.get(row) for row in long if asked.get(row) != 8} == {}


def test_a_row_that_costs_more_than_its_formula_is_found(formulas: ModuleType) -> None:
    assert not formulas.Check("row", "run", 1.03, 1.0).is_close
    assert not formulas.Check("row", "run", math.nan, 1.0).is_close
    assert not formulas.Check("row", "run", 1.0, 0.0).is_close
    assert formulas.Check("row", "run", 0.0, 0.0).is_close
    assert formulas.Check("row", "run", 1.01, 1.0).is_close
    # a known difference must be there, no more and no less
    assert formulas.Check("row", "run", 1.05, 1.0, expected=1.04).is_close
    assert not formulas.Check("row", "run", 1.01, 1.0, expected=1.04).is_close


@pytest.mark.parametrize(
    ("row", "rays", "encoded"),
    [
        ("nerf1", 2 * 4096, 0),
        ("dsnerf", 2 * 4096, 0),
        ("dietnerf", 2.1 * 4096, 12500),  # a whole unseen view every tenth step
        ("sinnerf-geom", 4 * 4096, 0),
        ("sinnerf", 4 * 4096, 62500),  # its first stage alone looks at images with the encoder
    ],
)
def test_fields_are_charged_for_the_rays_and_images_of_their_terms(row: str, rays: float, encoded: float) -> None:
    run = Study.read("paper", ROOT).find(f"novel-view-synthesis/lego/{row}/seed0")
    amounts = amounts_of(run)
    assert amounts[TRAIN].steps == 125_000
    assert amounts[TRAIN].batch == pytest.approx(rays * 192)
    assert amounts[ENCODING].steps == pytest.approx(encoded)
    first = amounts_of(replace(run, limit=1))[TRAIN]  # an unseen view is in a rehearsal's only step
    assert first.batch == first.at_once == pytest.approx(amounts[TRAIN].at_once)
