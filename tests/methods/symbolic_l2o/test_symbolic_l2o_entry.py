"""The chain from network to equation as runs: every tier builds; artefacts are what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.symbolic_l2o import Records, SymbolicOptimizer, parse
from atlas.methods.symbolic_l2o.baselines import CosineMomentum
from atlas.methods.symbolic_l2o.plugin import SymbolicTraining
from atlas.methods.symbolic_l2o.settings import OptimizerSettings
from atlas.settings import merge, validate_settings

ROOT = Path(__file__).resolve().parents[3]
TASK = "learned-optimization"
OWN = {entry.name for entry in load().methods[TASK].values() if entry.paper == "symbolic-l2o"}


def small(run: Run, root: Path) -> Run:
    protocol = validate_settings(run.task_entry.protocol, merge(run.protocol, run.task_entry.smallest), "test", TASK)
    settings = {
        entry.name: validate_settings(entry.settings, merge(run.settings[entry.name], entry.smallest), "test", entry.name)
        for entry in run.method_entries
    }
    needs = {role: small(needed, root) for role, needed in run.needs.items()}
    return replace(run, root=root, protocol=protocol, settings=settings, needs=needs)


def train_all(run: Run) -> None:
    for needed in run.needs.values():
        train_all(needed)
    train_run(run)


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_are_there_and_build(tier: str) -> None:
    found = {run.recipe[0]: run for run in Study.read(tier, ROOT).matching(TASK) if run.recipe[0] in OWN}
    needed = {"rp-small", "rp-small-records", "rp-small-equation", "symbolic", "template", "template-tuned"}
    if tier != "demo":
        needed |= {"rp", "symbolic-rp", "symbolic-dm", "momentum-cosine"}
    assert needed <= set(found)
    for run in found.values():
        if run.method_entries[0].plugin:  # the others train by a function of their own
            run.build()


def test_the_chain_leaves_readable_artefacts(workspace: Path) -> None:
    run = small(Study.read("demo", ROOT).find(f"{TASK}/digits/symbolic/seed10"), workspace)
    train_all(run)
    content = evaluate_run(run)
    records = Records.load(run.needed("equation").needed("records").checkpoint / "rows.npz")
    assert records.names[:2] == ("m_0", "g_0")
    rule = json.loads((run.needed("equation").checkpoint / "rule.json").read_text())
    assert parse(rule["expression"]).complexity >= 1
    assert rule["engine"] == "operon"
    network = run.needed("equation").needed("teacher")
    assert rule["lr"] == pytest.approx(network.settings["rp-small"]["scale"])
    assert content["metrics"]["mapping_complexity"] == rule["mapping_complexity"]
    assert {path.name for path in run.results.glob("*")} >= {"front.csv", "rule.json", "surface.csv", "curves.csv"}
    # the equation keeps less than the network
    network = small(Study.read("demo", ROOT).find(f"{TASK}/digits/rp-small/seed10"), workspace)
    assert content["metrics"]["state_bytes"] < evaluate_run(network)["metrics"]["state_bytes"]
    # and any model can be trained with the file
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = SymbolicOptimizer([parameter], run.needed("equation").checkpoint / "rule.json", lags=rule["lags"])
    optimizer.step()
    # its state is what the metric says
    many = torch.nn.Parameter(torch.ones(20_000))
    many.grad = torch.ones(20_000)
    optimizer = SymbolicOptimizer([many], run.needed("equation").checkpoint / "rule.json", lags=rule["lags"])
    optimizer.step()
    assert content["metrics"]["state_bytes"] == pytest.approx(optimizer.state_bytes_per_parameter(), abs=0.01)


def test_an_equation_trains_a_recipe_of_image_classification() -> None:
    run = Study.read("demo", ROOT).find("image-classification/digits/deit/seed10")
    ingredient = SymbolicTraining(run, OptimizerSettings(rule="-tanh(2 * m_0)"))
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1, "weight_decay": 0.05, "lr_scale": 1.0}]
    optimizer = ingredient.optimizer(groups)
    assert isinstance(optimizer, SymbolicOptimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    with pytest.raises(Exception, match="q_0 is not a variable"):
        SymbolicTraining(run, OptimizerSettings(rule="-q_0")).optimizer(groups)


def test_cosine_momentum_by_hand() -> None:
    """The first step is whole, the one after T/2 is half, from T on nothing moves; the velocity goes on under it."""
    policy = CosineMomentum(0.1, beta=0.5, steps=4)
    state = policy.init_state(torch.zeros(1, 1, dtype=torch.double))
    updates = []
    for _ in range(6):
        update, state = policy.step(torch.ones(1, 1, dtype=torch.double), state)
        updates.append(float(update))
    root = 2**0.5 / 2
    velocities, shares = (1, 1.5, 1.75, 1.875), (1, (1 + root) / 2, 0.5, (1 - root) / 2)
    assert updates == pytest.approx([-0.1 * v * share for v, share in zip(velocities, shares, strict=True)] + [0, 0], abs=1e-9)
