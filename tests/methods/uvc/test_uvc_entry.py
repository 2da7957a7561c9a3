"""UVC in its task: rows of every tier build, every strategy trains and comes back from its files, and errors are lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.uvc import CompressionPlan, ViTShape
from atlas.settings import merge, validate_settings
from atlas.tasks.image_classification.ingredients import Ingredients
from atlas.tasks.image_classification.models import build_model

ROOT = Path(__file__).resolve().parents[3]
TASK = "image-classification"
NAMES = {"uvc", "prune-only", "skip-only", "dense-kd", "uniform-mag", "structured", "blind-skip", "unstructured"}


def short(root: Path, method: str, **settings: Any) -> Run:
    """A row of any method of this paper, as short as it can be, with the dense run that it needs."""
    run = Study.read("demo", ROOT).find(f"{TASK}/digits-compressed/uniform-mag-b35/seed10")
    task, entry = run.task_entry, load().method(TASK, method)
    protocol = validate_settings(task.protocol, merge(run.protocol, task.smallest), "test", task.name)
    dense = replace(run.needs["dense"], root=root, protocol=protocol)
    return replace(
        run,
        root=root,
        recipe=(method,),
        method=method,
        method_entries=(entry,),
        protocol=protocol,
        settings={method: validate_settings(entry.settings, merge(entry.smallest, settings), "test", method)},
        needs={"dense": dense},
    )


def trained(run: Run) -> dict[str, Any]:
    for needed in run.needs.values():
        train_run(needed)
    train_run(run)
    return evaluate_run(run)["metrics"]


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_build(tier: str) -> None:
    rows = [runs[0] for runs in Study.read(tier, ROOT).by_row.values() if NAMES & set(runs[0].recipe)]
    found = {name for run in rows for name in run.recipe}
    assert {"uvc", "prune-only", "skip-only", "dense-kd", "uniform-mag"} <= found
    if tier != "demo":
        assert found >= NAMES
        criteria = {values.get("criterion") for run in rows for values in run.settings.values()}
        assert criteria >= {"magnitude", "taylor", "gradual", "saliency"}
    for run in rows:
        assert len(run.build()) == len(run.recipe)
        assert run.needs["dense"].method == ("+".join(name for name in run.recipe if name not in NAMES) or "deit")


def test_sizes_of_the_paper_study_are_deits() -> None:
    rows = Study.read("paper", ROOT).by_row
    for name, macs in (("", 4_598_498_304), ("-tiny", 1_253_491_200), ("-base", 17_563_060_224)):
        run = rows[TASK, f"imagenet-compressed{name}", "uvc-b50"][0]
        with torch.device("meta"):
            shape = ViTShape.from_timm(build_model(run, Ingredients(run.build()), 1000))
        assert shape.full_macs == macs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("structured", {"criterion": "magnitude"}),
        ("structured", {"criterion": "taylor"}),
        ("structured", {"criterion": "gradual", "epochs": 4, "jumps": 1}),
        ("structured", {"criterion": "saliency"}),
        ("blind-skip", {"budget": 0.7}),
        ("blind-skip", {"budget": 0.7, "order": "first", "from_scratch": True}),
        ("uvc", {"preset": "reference", "v_layout": "uniform"}),
        ("uvc", {"gate": "gumbel_hard"}),
    ],
)
def test_every_strategy_meets_its_budget_and_comes_back(method: str, settings: dict[str, Any], workspace: Path) -> None:
    run = short(workspace, method, **settings)
    metrics = trained(run)
    plan = CompressionPlan.from_json((run.checkpoint / "plan.json").read_text())
    budget = settings.get("budget", 0.5)
    assert 0 < metrics["r_phys"] <= budget
    assert metrics["blocks_kept"] == int(plan.keep.sum())
    assert metrics["budget_error"] == pytest.approx(metrics["r_phys"] - budget)
    assert metrics["parameters"] < 60_000
    described = json.loads((run.results / "plan.json").read_text())
    assert sum(described["keep"]) == metrics["blocks_kept"]


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "gradual"])
def test_unstructured_pruning_saves_weights_and_nothing_else(criterion: str, workspace: Path) -> None:
    run = short(workspace, "unstructured", criterion=criterion, sparsity=0.7, epochs=6)
    metrics = trained(run)
    assert metrics["weights_kept"] == pytest.approx(0.3, abs=0.001)
    assert metrics["r_phys"] == 1
    kept = read_tensors(run.weights)
    first = read_tensors(run.checkpoint / "exported.safetensors")
    if criterion != "gradual":  # the mask is decided once
        assert torch.equal(kept["blocks.0.mlp.fc1.weight"] == 0, first["blocks.0.mlp.fc1.weight"] == 0)
    assert (kept["head.weight"] != 0).all()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("uvc", {"budget": 0}, "budget = 0"),
        ("uvc", {"search_epochs": 3, "search_warmup_epochs": 3}, "leaves nothing of search_epochs 3"),
        ("uvc", {"flops_bugdet": 0.5}, "flops_bugdet is not a setting of uvc; choose from alpha"),
        ("compression-latency", {"blocks": 12}, "blocks 12 must be less than depth 12"),
    ],
)
def test_wrong_settings(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(load().method(TASK, method).settings, settings, "test", method)


def test_impossible_budgets_say_what_is_possible(workspace: Path) -> None:
    run = short(workspace, "uvc", budget=0.01)
    train_run(run.needs["dense"])
    with pytest.raises(UserError, match="below the smallest surviving model, 0.0"):
        train_run(run)
