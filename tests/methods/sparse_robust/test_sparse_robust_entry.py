"""Every row of every tier builds what it says, at its density; the cost table is the paper's."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.sparse_robust import (
    EarlyBird,
    FlyingBird,
    FlyingBirdPlus,
    SparseTraining,
    density_of,
    random_masks,
    robust_bird,
    score_masks,
)
from atlas.methods.sparse_robust.settings import DynamicSettings, PlusSettings, RobustBirdSettings, ScoreSettings, SparseSettings
from atlas.tasks.adversarial_robustness.networks import build_network
from atlas.tasks.adversarial_robustness.topology import DenseStepper
from atlas.tasks.adversarial_robustness.training import Training

ROOT = Path(__file__).resolve().parents[3]
TASK = "adversarial-robustness"
SHAPES = {"digits": (1, 8, 8), "tiny-imagenet": (3, 64, 64)}


def rows(tier: str) -> list[Run]:
    first = {(run.dataset, run.method): run for run in reversed(Study.read(tier, ROOT).runs) if run.task == TASK}
    return list(first.values())


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_build(tier: str) -> None:
    runs = rows(tier)
    essential = {"dense", "small-dense", "static-random", "robust-bird", "flying-bird", "flying-bird-plus"}
    assert {"cost-table"} | essential <= {run.recipe[0] for run in runs}
    for run in runs:
        if not run.method_entries[0].plugin:
            continue
        built = run.build()[0]
        protocol = run.protocol_model()
        with torch.device("meta"):
            model = build_network(built.network(protocol.network), 10, SHAPES.get(run.data, (3, 32, 32)), run.seed)
        assert sum(parameter.numel() for parameter in model.parameters()) > 1000
        assert set(protocol.milestones) <= set(range(protocol.epochs))


def test_paper_tier_is_the_papers_protocol() -> None:
    run = next(run for run in rows("paper") if (run.dataset, run.method) == ("cifar10", "flying-bird-plus"))
    protocol, settings = run.protocol_model(), run.settings_model("flying-bird-plus")
    assert (protocol.epochs, protocol.milestones, protocol.batch_size, protocol.learning_rate) == (200, (100, 150), 128, 0.1)
    assert (protocol.attack.eps, protocol.attack.step, protocol.attack.train_steps) == (8 / 255, 2 / 255, 10)
    assert (protocol.attack.bn_mode, protocol.attack.steps, protocol.drop_last) == ("train", 20, False)
    assert (settings.density, settings.scheme, settings.growth) == (0.2, "igq", "gradient")
    assert (settings.interval, settings.late_interval, settings.start_epoch, settings.window) == (900, 1200, 100, 4)
    assert (settings.prune_extra, settings.grow_extra, settings.threshold) == (0.4, 0.05, 0.5)


def test_library_calls_have_the_defaults_of_the_rows() -> None:
    defaults = {
        FlyingBird: (DynamicSettings(), {"density", "interval", "rate", "rate_end", "growth"}),
        FlyingBirdPlus: (PlusSettings(), {"window", "threshold", "prune_extra", "grow_extra"}),
        EarlyBird: (RobustBirdSettings(), {"threshold", "queue"}),
        robust_bird: (RobustBirdSettings(), {"threshold", "queue"}),
        random_masks: (SparseSettings(), {"scheme"}),
        score_masks: (ScoreSettings(), {"scope", "rounds"}),
    }
    for call, (settings, names) in defaults.items():
        parameters = inspect.signature(call).parameters
        assert {name: parameters[name].default for name in names} == settings.model_dump(include=names)


def test_only_flying_bird_plus_adapts(workspace: Path) -> None:
    study = Study.read("demo", ROOT)
    for name, adapts in (("flying-bird", False), ("flying-bird-plus", True)):
        bench = Training(replace(study.find(f"{TASK}/digits/{name}/seed10"), root=workspace))
        rules = bench.topology.stepper(bench, bench.optimizer()).adaptive
        assert bench.topology.watches_validation == adapts
        assert rules == (FlyingBirdPlus(60, 4, 0.5, 0.4, 0.05) if adapts else None)


@pytest.mark.parametrize("name", ["static-random", "magnitude", "snip", "grasp", "synflow", "flying-bird", "flying-bird-plus"])
def test_topologies_start_at_their_density(name: str, workspace: Path) -> None:
    run = Study.read("demo", ROOT).find(f"{TASK}/digits/dense/seed10")
    entry = load().method(TASK, name)
    settings = entry.settings(**{"rounds": 5} if name == "synflow" else {}).model_dump(mode="json")
    run = replace(run, root=workspace, recipe=(name,), settings={name: settings}, method_entries=(entry,))
    benches = [Training(run), Training(run)]
    stepper, again = (bench.topology.stepper(bench, bench.optimizer()) for bench in benches)
    assert isinstance(stepper, FlyingBird if name.startswith("flying") else SparseTraining)
    assert density_of(stepper.masks) == pytest.approx(0.2, abs=1e-3)
    assert all(torch.equal(mask, again.masks[layer]) for layer, mask in stepper.masks.items())


def test_random_masks_and_flying_bird_start_alike(workspace: Path) -> None:
    study = Study.read("demo", ROOT)
    masks = []
    for name in ("static-random", "flying-bird", "flying-bird-plus"):
        bench = Training(replace(study.find(f"{TASK}/digits/{name}/seed10"), root=workspace))
        masks.append(bench.topology.stepper(bench, bench.optimizer()).masks)
    assert all(torch.equal(masks[0][layer], other[layer]) for other in masks[1:] for layer in masks[0])


def test_dense_rows_have_no_masks(workspace: Path) -> None:
    bench = Training(replace(Study.read("demo", ROOT).find(f"{TASK}/digits/small-dense/seed10"), root=workspace))
    assert isinstance(bench.topology.stepper(bench, bench.optimizer()), DenseStepper)
    dense = Training(replace(Study.read("demo", ROOT).find(f"{TASK}/digits/dense/seed10"), root=workspace))
    share = sum(bench.dense_macs.values()) / sum(dense.dense_macs.values())
    assert share == pytest.approx(0.2, abs=0.005)


def test_cost_table_is_the_papers(workspace: Path) -> None:
    run = replace(Study.read("demo", ROOT).find(f"{TASK}/cost-table/cost-table/seed10"), root=workspace)
    train_run(run)
    values = evaluate_run(run)["metrics"]
    assert values["printed_cifar10"] == pytest.approx(80.60e9, rel=1e-4)
    assert values["printed_cifar100"] == pytest.approx(79.84e9, rel=1e-4)
    assert values["printed_tiny"] == pytest.approx(317.17e9, rel=1e-4)
    assert values["ratio_cifar10"] == pytest.approx(0.5163, abs=1e-4)
