"""UVC in its task: rows of every tier build, every strategy trains and comes back from its files, and errors are lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors
from atlas.harness.registry import load
from atlas.harness.rehearsal import amounts_of
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.uvc import CompressionPlan, ViTShape
from atlas.methods.uvc.baselines import Structured, Unstructured, _cross_entropy
from atlas.methods.uvc.criteria import _saliencies, taylor_scores
from atlas.methods.uvc.plugin import Searched, Trainer
from atlas.nn.work import TRAIN
from atlas.settings import merge, validate_settings
from atlas.tasks.image_classification.ingredients import Ingredients
from atlas.tasks.image_classification.models import build_model
from atlas.tasks.image_classification.training import Training

ROOT = Path(__file__).resolve().parents[3]
TASK = "image-classification"
NAMES = {
    "uvc",
    "prune-only",
    "skip-only",
    "dense-kd",
    "uniform-mag",
    "structured",
    "blind-skip",
    "unstructured",
    "s2vite",
    "dynamic-vit",
}


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
    with pytest.raises(UserError, match=r"below 0\.\d+, the smallest surviving model that every search can reach"):
        train_run(run)


class DoubleData:
    """Batches in float64, so that sums in another order differ in their last digits alone."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def train_batches(self, epoch: int, first: int = 0, **options: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((images.double(), labels) for images, labels in self.data.train_batches(epoch, first, **options))

    def example(self, count: int) -> torch.Tensor:
        return self.data.example(count).double()


def in_pieces(root: Path, method: str, micro_batch: int | None, **settings: Any) -> Training:
    """A training in float64, in a working directory of its own, that stands where compression begins."""
    own = root / f"micro-batch-{micro_batch}"
    own.mkdir()
    (own / "data").symlink_to(root / "data")
    run = short(own, method, **settings)
    changes = {"batch_size": 96, "micro_batch": micro_batch, "mixup": 0, "cutmix": 0, "backbone": {"drop_path_rate": 0}}
    training = Training(replace(run, protocol=merge(run.protocol, changes)))
    training.data = DoubleData(training.data)  # type: ignore[assignment]
    training.model = training.model.double()
    return training


def sizes_given(model: torch.nn.Module) -> list[int]:
    """Sizes of the batches that a model in training is given, as they come."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])) if module.training else None)
    return seen


@pytest.mark.parametrize(("gate", "warmup"), [("gumbel_soft", 0), ("gumbel_hard", 0), ("gumbel_soft", 1)])
def test_a_search_in_micro_batches_decides_and_trains_alike(workspace: Path, gate: str, warmup: int) -> None:
    def searched(micro_batch: int | None) -> tuple[CompressionPlan, dict[str, torch.Tensor], list[int]]:
        settings = {"gate": gate, "search_epochs": 2, "search_warmup_epochs": warmup, "pace": 50.0}
        training = in_pieces(workspace, "uvc", micro_batch, **settings)
        seen = sizes_given(training.model)
        (ingredient,) = training.ingredients
        assert isinstance(ingredient, Searched)
        plan = ingredient.choose(training, Trainer(training, ingredient.settings))
        return plan, training.model.state_dict(), seen

    whole, weights, at_once = searched(None)
    assert set(at_once) == {96}
    plan, others, at_once = searched(40)
    assert set(at_once) == {40, 16}
    assert plan.to_json() == whole.to_json()
    for name, value in weights.items():
        assert torch.allclose(others[name], value, rtol=0, atol=1e-9), name


def test_fine_tuning_in_micro_batches_trains_alike(workspace: Path) -> None:
    def tuned(micro_batch: int | None) -> tuple[dict[str, torch.Tensor], list[int]]:
        training = in_pieces(workspace, "dense-kd", micro_batch, kd_norm="elements", alpha=0.4)
        seen = sizes_given(training.model)
        (ingredient,) = training.ingredients
        trainer = Trainer(training, ingredient.settings)  # type: ignore[attr-defined]
        trainer.fit(TRAIN, training.model, 1, 0, lambda step: 1e-3)
        return training.model.state_dict(), seen

    whole, at_once = tuned(None)
    assert set(at_once) == {96}
    others, at_once = tuned(40)
    assert set(at_once) == {40, 16}
    assert all(torch.allclose(others[name], value, rtol=0, atol=1e-9) for name, value in whole.items())


def test_criteria_are_the_same_in_micro_batches(workspace: Path) -> None:
    training = in_pieces(workspace, "structured", None)
    model, shape = training.model.eval(), ViTShape.from_timm(training.model)
    batches = [next(training.data.train_batches(epoch)) for epoch in range(2)]
    whole, pieces = (taylor_scores(model, batches, _cross_entropy, shape, micro_batch=size) for size in (None, 40))
    assert torch.allclose(pieces.dims, whole.dims, rtol=1e-5)
    assert torch.allclose(pieces.neurons, whole.neurons, rtol=1e-5)
    heads, neurons = _saliencies(model, *batches[0], _cross_entropy, shape, None)
    for one, other in zip(_saliencies(model, *batches[0], _cross_entropy, shape, 40), (heads, neurons), strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "criterion"), [("structured", "taylor"), ("structured", "saliency"), ("unstructured", "taylor")]
)
def test_criteria_see_no_more_images_at_once_than_the_protocol_says(workspace: Path, method: str, criterion: str) -> None:
    training = in_pieces(workspace, method, 40, criterion=criterion, batches=1)
    seen: list[int] = []
    training.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    (ingredient,) = training.ingredients
    assert isinstance(ingredient, Structured | Unstructured)
    trainer = Trainer(training, ingredient.settings)
    seen.clear()
    ingredient.choose(training, trainer)
    assert seen == [40, 40, 16]


def test_the_rehearsal_of_compression_follows_the_micro_batch() -> None:
    study = Study.read("paper", ROOT)
    for row in ("imagenet-compressed-base/uvc-b50", "imagenet-compressed-base/taylor-b50"):
        run = study.find(f"{TASK}/{row}/seed0")
        protocol = run.protocol_model()
        assert {amount.at_once for amount in amounts_of(run).values()} == {protocol.micro_batch}
        assert protocol.micro_batch < protocol.batch_size
