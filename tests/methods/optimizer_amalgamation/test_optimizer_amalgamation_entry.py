"""Rows of every tier build what they say; taught rows find their teachers; replicates are judged apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import merge, validate_settings

ROOT = Path(__file__).resolve().parents[3]
TASK, PAPER = "learned-optimization", "optimizer-amalgamation"
NAMES = {entry.name for entry in load().methods[TASK].values() if entry.paper == PAPER}


def rows(tier: str) -> dict[str, Run]:
    """The first run of every row of the paper in a tier."""
    runs = {}
    for (task, _, row), found in Study.read(tier, ROOT).by_row.items():
        if task == TASK and found[0].recipe[0] in NAMES:
            runs.setdefault(row, found[0])
    return runs


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_build(tier: str) -> None:
    found = rows(tier)
    assert {"oracle", "untaught", "amalgamated-choice", "amalgamated-mean", "amalgamated-minmax", "choice-policy"} <= set(found)
    if tier != "demo":
        assert {run.recipe[0] for run in found.values()} >= NAMES
    for run in found.values():
        (competitor,) = run.build()
        if hasattr(competitor.settings, "schedule"):
            assert competitor.settings.schedule.windows_at_least() > 0
    if tier == "paper":
        student = found["amalgamated-minmax"].build()[0].settings
        assert student.hidden == (20, 20)
        assert student.schedule.windows_at_least() == 1080


def shortest(row: str, root: Path, **settings: object) -> Run:
    run = rows("demo")[row]

    def small(one: Run, changes: dict[str, object]) -> Run:
        entry = one.method_entries[0]
        protocol = merge(one.protocol, one.task_entry.smallest)
        own = merge(merge(one.settings[entry.name], entry.smallest), changes)
        return replace(
            one,
            root=root,
            protocol=validate_settings(one.task_entry.protocol, protocol, "test", TASK),
            settings={entry.name: validate_settings(entry.settings, own, "test", entry.name)},
            needs={role: small(needed, {}) for role, needed in one.needs.items()},
        )

    return small(run, settings)


def trained(run: Run) -> dict[str, float]:
    for needed in run.needs.values():
        trained(needed)
    train_run(run)
    return evaluate_run(run)["metrics"]


def test_choice_student_end_to_end(workspace: Path) -> None:
    run = shortest("amalgamated-choice", workspace)
    metrics = trained(run)
    assert metrics["meta_sd"] is not None
    assert metrics["best_replicate"] <= metrics["best_log_val"]
    weights = (run.needed("choice").results / "weights.csv").read_text().splitlines()
    assert weights[0] == "step,adam_ema,rmsprop_ema"
    assert sum(map(float, weights[-1].split(",")[1:])) == pytest.approx(1, abs=1e-3)
    assert (run.checkpoint / "student.safetensors").is_file()
    assert (run.results / "curriculum.csv").read_text().count("\n") > 2

    import torch

    from atlas.methods.optimizer_amalgamation import load as load_student

    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = load_student(run.checkpoint / "student.safetensors", warmup_steps=0)([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert bool((parameter != 1).all())


def test_oracle_takes_the_best_teacher_of_each_problem(workspace: Path) -> None:
    run = shortest("oracle", workspace)
    trained(run)
    table = [line.split(",") for line in (run.results / "oracle.csv").read_text().splitlines()[1:]]
    for problem in {line[0] for line in table}:
        own = [line for line in table if line[0] == problem]
        chosen = [line for line in own if line[4] == "1"]
        assert len(chosen) == 1
        assert float(chosen[0][2]) == min(float(line[2]) for line in own)


@pytest.mark.parametrize("noise", ["random", "adversarial"])
def test_noise_is_a_setting(noise: str, tmp_path: Path) -> None:
    competitor = shortest("amalgamated-noisy", tmp_path, noise=noise, eps=0.01).build()[0]
    assert type(competitor.noise()).__name__ == {"random": "RandomWeightNoise", "adversarial": "AdversarialWeightNoise"}[noise]


def test_a_wrong_schedule_is_refused_when_planned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must have one length"):
        shortest("untaught", tmp_path, schedule={"depth": [1, 2, 3]})
