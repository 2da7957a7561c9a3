"""The task learned-optimization: how data is divided, that every row sees the same problems, and what its measures mean."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run, training_summary
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.l2o import Curves, analytic, quadratic
from atlas.settings import merge, validate_settings
from atlas.tasks.learned_optimization.data import divide, load_arena, mixture
from atlas.tasks.learned_optimization.entry import FIELD
from atlas.tasks.learned_optimization.evaluate import CAP, judge, measures, outcome
from atlas.tasks.learned_optimization.protocol import Data, Problem, Protocol

ROOT = Path(__file__).resolve().parents[2]
TASK = "learned-optimization"


def demo(root: Path, row: str = "adam", protocol: dict[str, Any] | None = None) -> Run:
    run = Study.read("demo", ROOT).find(f"{TASK}/digits/{row}/seed10")
    task = run.task_entry
    values = merge(merge(run.protocol, task.smallest), protocol or {})
    return replace(run, root=root, protocol=validate_settings(task.protocol, values, "test", task.name))


def examples(count: int = 200) -> dict[str, torch.Tensor]:
    images = torch.arange(count).reshape(count, 1, 1, 1)
    return {"train_images": images, "train_labels": torch.arange(count) % 10}


def test_no_example_is_on_both_sides_or_in_two_splits() -> None:
    meta, judged = divide(Protocol(), examples())
    seen = [set(images.flatten().tolist()) for side in (meta, judged) for images, _ in side.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 200
    assert [len(one) for one in seen] == [80, 20, 60, 20, 20]  # two of every eight in a class round to two
    again = divide(Protocol(), examples())
    assert torch.equal(again[1]["test"][0], judged["test"][0])


def test_an_official_test_split_is_kept_and_sides_may_share() -> None:
    arrays = {**examples(), "test_images": torch.full((7, 1, 1, 1), 999), "test_labels": torch.zeros(7).long()}
    meta, judged = divide(Protocol(), arrays)
    assert judged["test"][0].flatten().tolist() == [999] * 7
    meta, judged = divide(Protocol(data=Data(shared=True)), arrays)
    assert torch.equal(meta["train"][0], judged["train"][0])
    assert len(meta["train"][0]) == 160
    meta, judged = divide(Protocol(data=Data(shared=True)), examples())
    test = set(judged["test"][0].flatten().tolist())
    assert not test & set(meta["train"][0].flatten().tolist())


def test_the_mixture_can_be_learned_and_is_always_the_same() -> None:
    first, second = mixture(), mixture()
    assert torch.equal(first["train"][0], second["train"][0])
    assert not torch.equal(first["val"][0], first["test"][0])
    assert first["train"][1].unique().tolist() == list(range(10))


def test_rows_of_a_seed_start_alike(workspace: Path) -> None:
    run = demo(workspace)
    arena = load_arena(run)
    still = [analytic("sgd", 1e-12), analytic("adam", 1e-12)]
    first, second = (judge(run, arena, [policy]) for policy in still)
    for name, one in first.outcomes.items():
        assert torch.allclose(one.val[..., 0], second.outcomes[name].val[..., 0])
        assert torch.allclose(one.train, second.outcomes[name].train, rtol=1e-4)


def test_epochs_are_the_data_or_what_the_protocol_cuts(workspace: Path) -> None:
    arena = load_arena(replace(demo(workspace), protocol=Study.read("demo", ROOT).find(f"{TASK}/digits/adam/seed10").protocol))
    assert arena.steps_per_epoch("home") == 539 // 64 == 8
    assert arena.steps_per_epoch("quadratic") == 8
    assert arena.steps_per_epoch() == len(arena.meta["train"][0]) // 64
    assert load_arena(demo(workspace)).steps_per_epoch("home") == 2


def test_diverged_runs_are_finite_and_bad() -> None:
    problem = quadratic(3)
    val = torch.tensor([[2.0, 3.0], [torch.nan, 1.0], [torch.inf, 5e9]])
    curves = Curves(val[1:].repeat(2, 1)[:4], [0, 1, 2], {"val_loss": val}, torch.zeros(2, 3), torch.zeros(2, 3))
    one = outcome(curves, problem, 2, 1)
    assert one.val[0].tolist() == [[2.0, CAP * 2, CAP * 2], [3.0, 1.0, CAP * 3]]
    assert one.best_log_val[0].tolist() == pytest.approx([math.log(2), 0.0])
    assert one.finite.tolist() == [[False, True]]
    assert bool(torch.isfinite(one.stability).all())


def test_measures_follow_the_validation_split(workspace: Path) -> None:
    run = demo(workspace, protocol={"epochs": 4})
    evaluation = judge(run, load_arena(run), [analytic("adam", 0.02)])
    values = measures(evaluation)
    home = evaluation.home
    assert home.val.shape == (1, 2, 5)
    assert home.train.shape == (1, 2, 4)
    assert values["best_log_val"] == pytest.approx(float(home.val.amin(-1).log().mean()))
    assert values["trajectory_loss"] == pytest.approx(float(home.train.mean()))
    assert values["diverged"] == 0
    names = evaluation.arena.protocol.transfer
    assert names == ["deeper", "conv", "mixture"]
    assert values["transfer1_log_val"] == pytest.approx(float(evaluation.outcomes["deeper"].best_log_val.mean()))


def test_step_sizes_are_tuned_on_the_meta_training_side_and_reported(workspace: Path) -> None:
    run = demo(workspace)
    train_run(run)
    lines = (run.results / "tuning.csv").read_text().splitlines()
    scores = {float(line.split(",")[0]): float(line.split(",")[1]) for line in lines[1:]}
    assert training_summary(run)["lr"] == min(scores, key=lambda lr: scores[lr])
    metrics = evaluate_run(run)["metrics"]
    assert metrics["tuned_lr"] == training_summary(run)["lr"]
    assert metrics["state_bytes"] == pytest.approx(8, abs=0.01)
    fixed = replace(run, settings={"adam": {**run.settings["adam"], "lr": 0.5}})
    train_run(fixed)
    assert training_summary(fixed)["lr"] == 0.5


def test_a_limit_keeps_classes_balanced_wherever_files_are_sorted() -> None:
    arrays = {"train_images": torch.zeros(400, 1, 2, 2), "train_labels": torch.arange(10).repeat_interleave(40)}
    arrays |= {"test_images": torch.zeros(10, 1, 2, 2), "test_labels": torch.arange(10)}
    sides = divide(Protocol(data={"limit": 200}), arrays)
    found = sum(side[name][1].bincount(minlength=10) for side in sides for name in ("train", "val"))
    assert found.tolist() == [20] * 10


@pytest.mark.parametrize("tier", ["demo", "desk", "lab", "paper"])
def test_the_field_and_the_problems_of_every_tier_build(tier: str) -> None:
    study = Study.read(tier, ROOT)
    runs = {run.method: run for run in study.runs if run.task == TASK}
    wanted = {name for name, *_ in FIELD} - ({"nesterov"} if tier in ("demo", "desk") else set())
    assert wanted <= set(runs)
    for name in wanted:
        assert len(runs[name].build()) == 1
    for run in runs.values():
        protocol = run.protocol_model()
        assert len(protocol.transfer) >= 2
        assert not protocol.home.is_function


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"family": "quadratic"}}, "must be networks"),
        ({"problems": {"home": {}, "one": {}, "two": {"family": "rosenbrock"}}}, "at least two networks after the first"),
        ({"problems": {"home": {"depht": 2}, "b": {}, "c": {}}}, "depht"),
    ],
)
def test_impossible_protocols_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(load().task(TASK).protocol, change, "test", TASK)


def test_vision_transformers_and_resnets_are_problems() -> None:
    from atlas.tasks.learned_optimization.data import Arena

    gen = torch.Generator().manual_seed(0)
    splits = {name: (torch.randn(8, 3, 8, 8, generator=gen), torch.arange(8)) for name in ("train", "val", "test")}
    problems = {
        "home": Problem(family="convnet", layers=((4, 3),), batch_size=4),
        "resnet": Problem(family="resnet", depth=8, batch_size=4),
        "vit": Problem(family="vit", patch_size=4, width=12, depth=1, heads=2, batch_size=4),
    }
    arena = Arena(Protocol(train=problems["home"], problems=problems), splits, splits, torch.device("cpu"))
    for problem in arena.problems.values():
        theta = problem.init(2, torch.Generator().manual_seed(0))
        losses, gradient = problem.gradients(theta, problem.sample(2, torch.Generator().manual_seed(1)))
        assert losses.shape == (2,)
        assert bool(gradient.isfinite().all())
