"""Seeds of a meta-trained row that are trained at once: each as if it were trained by itself."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stacks import farthest, train_needs

from atlas.errors import Interrupted
from atlas.harness.execute import train_run, train_stack, training_summary
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import merge
from atlas.tasks.learned_optimization.competitors import MetaFitting

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"windows": 12, "unroll": 4, "depth": 3}


def shortened(run: Run, root: Path, stacked: bool) -> Run:
    """A run of few windows, and what it needs, with as little to do."""
    small = dict(run.settings)
    for entry in run.method_entries:
        own = merge(dict(small[entry.name]), dict(entry.smallest))
        small[entry.name] = merge(own, {"meta": SHORT}) if "meta" in own else own
    needs = {role: shortened(one, root, False) for role, one in run.needs.items()}
    protocol = merge(dict(run.protocol), run.task_entry.smallest)
    return replace(run, root=root, stack_seeds=stacked, settings=small, protocol=protocol, needs=needs)


def seeds_of(row: str, root: Path, seeds: tuple[int, ...] = (10, 11, 12), stacked: bool = True) -> list[Run]:
    study = Study.read("demo", ROOT)
    return [shortened(study.find(f"learned-optimization/digits/{row}/seed{seed}"), root, stacked) for seed in seeds]


def beside(root: Path, workspace: Path) -> Path:
    """Another folder with the same data."""
    root.mkdir()
    (root / "data").symlink_to(workspace / "data")
    return root


@pytest.mark.parametrize("row", ["l2o-dm", "rp-small", "template-tuned"])
def test_seeds_at_once_are_single_runs(row: str, workspace: Path, tmp_path: Path) -> None:
    together = seeds_of(row, workspace)
    alone = seeds_of(row, beside(tmp_path / "alone", workspace), stacked=False)
    assert all(run.stacked for run in together)
    assert not any(run.stacked for run in alone)
    for run in [*together, *alone]:
        train_needs(run)
    assert all(outcome is True for outcome in train_stack(together).values())
    for one, same in zip(together, alone, strict=True):
        train_run(same)
        assert farthest(one, same) < 1e-4
        mine, other = training_summary(one), training_summary(same)
        assert mine.keys() == other.keys()
        assert mine.get("skipped") == other.get("skipped")
        curves = [torch.tensor(numbers(run.history)) for run in (one, same)]
        assert curves[0].shape == curves[1].shape
        assert len(curves[0]) == SHORT["windows"]
        assert torch.allclose(*curves, rtol=1e-4)
        assert {path.name for path in one.results.iterdir()} == {path.name for path in same.results.iterdir()}
        assert {path.name for path in one.checkpoint.iterdir()} == {path.name for path in same.checkpoint.iterdir()}
    assert farthest(together[0], together[1]) > 1e-3


def numbers(path: Path) -> list[list[float]]:
    return [[float(value) for value in line.split(",")] for line in path.read_text().splitlines()[1:]]


def test_an_interrupted_stack_goes_on_in_any_company(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seeds_of("rp-small", workspace)
    parts = seeds_of("rp-small", beside(tmp_path / "parts", workspace))
    train_stack(whole)
    log = MetaFitting.log

    def told(self: Any, row: Any) -> None:
        log(self, row)
        if row["window"] == 7 and self.competitor.run.seed == 11:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(MetaFitting, "log", told)
        with pytest.raises(Interrupted, match=r"rp-small/seed10 and 2 more: stopped by SIGTERM after step 7 of 12"):
            train_stack(parts)
    train_stack(parts[2:])
    train_stack(parts)
    for one, same in zip(parts, whole, strict=True):
        assert farthest(one, same) < 1e-5
        assert len(numbers(one.history)) == SHORT["windows"]


def test_deep_networks_and_replicates_train_seed_by_seed() -> None:
    (run,) = seeds_of("rp-small", ROOT, (10,))
    deep = replace(run, protocol=merge(dict(run.protocol), {"train": {"family": "resnet"}}))
    assert run.stacked
    assert not deep.stacked
    (student,) = seeds_of("untaught", ROOT, (10,))
    assert not student.stacked
