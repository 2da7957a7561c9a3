"""Seeds of a row of feature acquisition that are trained at once: each as if it were trained by itself."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.stacks import farthest, train_needs

from atlas.errors import AtlasError, Interrupted
from atlas.harness.execute import train_run, train_stack, training_summary
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import merge
from atlas.tasks.feature_acquisition import training as training_module

ROOT = Path(__file__).resolve().parents[2]
SHORT: dict[str, Any] = {"steps": 20, "log_every": 7, "hidden": 6, "batch_size": 8, "keep_best_every": 8}
SMALL = {"steps": 12, "train_sequences": 24, "validation_sequences": 8, "test_sequences": 8}


def seeds_of(row: str, root: Path, seeds: tuple[int, ...] = (10, 11, 12)) -> list[Run]:
    study = Study.read("demo", ROOT)
    found = [study.find(f"feature-acquisition/{row}/seed{seed}") for seed in seeds]
    short = {**SHORT, "stream": SMALL}
    made = [replace(run, root=root, stack_seeds=True, protocol=merge(run.protocol, short)) for run in found]

    def needs(run: Run) -> dict[str, Run]:
        own = {"root": root, "stack_seeds": False}
        changed = {role: replace(one, protocol=merge(one.protocol, short), **own) for role, one in run.needs.items()}
        return {role: replace(one, needs=needs(one)) for role, one in changed.items()}

    return [replace(run, needs=needs(run)) for run in made]


def copied(root: Path, run: Run) -> Run:
    """The same single run, with files of its own."""
    if not root.exists():
        root.mkdir()
        (root / "data").symlink_to(run.root / "data")
    return replace(run, root=root, stack_seeds=False, needs={role: copied(root, one) for role, one in run.needs.items()})


FAST = ("synth/vfds", "synth/vanilla", "handover/static")
SLOW = ("synth/vfds-st", "synth/attention", "synth/static-top-k", "synth/group-lasso")


@pytest.mark.parametrize("row", [*FAST, *(pytest.param(row, marks=pytest.mark.slow) for row in SLOW)])
def test_seeds_at_once_are_single_runs(row: str, workspace: Path, tmp_path: Path) -> None:
    together = seeds_of(row, workspace, seeds=(10, 11))
    alone = [copied(tmp_path / "alone", run) for run in together]
    for run in [*together, *alone]:
        train_needs(run)
    assert all(outcome is True for outcome in train_stack(together).values())
    several = row in ("synth/vfds", "handover/static")  # several λ are a batch of models already
    for one, same in zip(together, alone, strict=True):
        train_run(same)
        assert farthest(one, same) == 0 or (not several and farthest(one, same) < 1e-4)
        mine, other = training_summary(one), training_summary(same)
        assert mine.pop("modes") == other.pop("modes")
        assert mine == pytest.approx(other, abs=0 if several else 0.02)
        assert {path.name for path in one.results.iterdir()} == {path.name for path in same.results.iterdir()}
        assert {path.name for path in one.checkpoint.iterdir()} == {path.name for path in same.checkpoint.iterdir()}
        for curves in one.results.glob("*.csv"):
            rows = [path.read_text().splitlines() for path in (curves, same.results / curves.name)]
            assert rows[0][0] == rows[1][0]
            numbers = [[[float(value) for value in line.split(",")] for line in lines[1:]] for lines in rows]
            assert len(numbers[0]) == len(numbers[1]) == 3  # steps 7, 14 and 20
            assert all(a == pytest.approx(b, rel=0 if several else 1e-4) for a, b in zip(*numbers, strict=True))
    assert farthest(*together) > 0.01


@pytest.mark.parametrize("row", ["synth/vfds", "synth/vanilla"])
def test_numbers_do_not_depend_on_which_seeds_are_there(row: str, workspace: Path, tmp_path: Path) -> None:
    three = seeds_of(row, workspace)
    one = replace(copied(tmp_path / "one", three[1]), stack_seeds=True)
    train_stack(three)
    train_stack([one])
    assert farthest(one, three[1]) == 0


def test_an_interrupted_stack_goes_on_in_any_company(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seeds_of("synth/vfds", workspace)
    parts = [replace(copied(tmp_path / "parts", run), stack_seeds=True) for run in whole]
    train_stack(whole)
    ended = training_module.PhaseFitting.end_step

    def told(self: Any, step: int, losses: Any) -> None:
        ended(self, step, losses)
        if step == 9 and self.bench.run.seed == 11:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(training_module.PhaseFitting, "end_step", told)
        with pytest.raises(Interrupted, match=r"vfds/seed10 and 2 more: stopped by SIGTERM after step 10 of 20"):
            train_stack(parts)
    train_stack(parts[2:])
    train_stack(parts)
    assert all(farthest(one, same) == 0 for one, same in zip(parts, whole, strict=True))


def test_a_seed_that_fails_leaves_the_others_be(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seeds_of("synth/vfds", workspace)
    runs = [replace(copied(tmp_path / "some", run), stack_seeds=True) for run in whole]
    train_stack(whole)
    ended = training_module.PhaseFitting.end_step

    def spoilt(self: Any, step: int, losses: Any) -> None:
        factor = float("nan") if self.bench.run.seed == 11 else 1.0
        ended(self, step, losses._replace(total=losses.total * factor))

    monkeypatch.setattr(training_module.PhaseFitting, "end_step", spoilt)
    outcomes = train_stack(runs)
    assert isinstance(outcomes[runs[1].cell], AtlasError)
    assert "not finite at step 7" in runs[1].failure.read_text()
    assert all(farthest(runs[index], whole[index]) == 0 for index in (0, 2))
