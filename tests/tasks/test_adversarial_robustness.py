"""The task's own parts: splits and their noise, batches that can be gone on with, schedule, costs, strong attacks, phases."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.errors import AtlasError, UserError
from atlas.harness.execute import evaluate_run, train_run, training_summary
from atlas.harness.files import read_tensors
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.nn.counts import parameter_count
from atlas.settings import merge, validate_settings
from atlas.tasks.adversarial_robustness.data import RobustData, noisy_labels, split_images
from atlas.tasks.adversarial_robustness.evaluate import load_network, strong_accuracy, withstands_autoattack
from atlas.tasks.adversarial_robustness.networks import build_network
from atlas.tasks.adversarial_robustness.protocol import Data, Network, learning_rate_at
from atlas.tasks.adversarial_robustness.training import BEST, MASKS, Training, measure

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TASK = "adversarial-robustness"


def demo(root: Path, method: str = "dense", settings: dict[str, Any] | None = None, **protocol: Any) -> Run:
    """A demo row as short as it can be."""
    run = Study.read("demo", ROOT).find(f"{TASK}/digits/{method}/seed10")
    task, entry = run.task_entry, run.method_entries[0]
    small = validate_settings(task.protocol, merge(run.protocol, task.smallest, protocol), "test", task.name)
    own = validate_settings(entry.settings, merge(run.settings[entry.name], entry.smallest, settings), "test", entry.name)
    return replace(run, root=root, protocol=small, settings={entry.name: own})


def full(root: Path, **protocol: Any) -> RobustData:
    run = Study.read("demo", ROOT).find(f"{TASK}/digits/dense/seed10")
    run = replace(run, root=root, protocol=merge(run.protocol, protocol))
    return RobustData(run, run.protocol_model(), CPU)


def test_splits_of_the_demo(workspace: Path) -> None:
    found = full(workspace)
    assert (found.size("train"), found.size("validation"), found.size("test")) == (256, 256, 1284)
    assert (found.classes, found.shape, found.steps_per_epoch) == (10, (1, 8, 8), 4)
    pixels, _ = next(found.batches("test"))
    assert pixels.min() == 0
    assert pixels.max() == 1


def test_train_and_validation_follow_the_seed_and_the_test_images_do_not(workspace: Path) -> None:
    arrays = read_tensors(workspace / "data/digits/images.safetensors")
    settings = Data(split="per-seed", train_size=256, validation_size=256, test_fraction=0.715)
    first, other = (split_images(arrays, settings, seed, "test") for seed in (1, 2))
    assert torch.equal(first["test"][0], other["test"][0])
    assert not torch.equal(first["train"][0], other["train"][0])
    rows = [{tuple(image.flatten().tolist()) for image in first[name][0]} for name in ("train", "validation", "test")]
    assert len(rows[0] & rows[1]) == 0
    assert len((rows[0] | rows[1]) & rows[2]) == 0
    own = [split_images(arrays, settings.model_copy(update={"test_split": "per-seed"}), seed, "test")["test"] for seed in (1, 2)]
    assert not torch.equal(own[0][0], own[1][0])
    assert torch.bincount(own[0][1]).tolist() == torch.bincount(own[1][1]).tolist()


def test_tail_and_permutation() -> None:
    arrays = {"train_images": torch.arange(100).view(100, 1, 1, 1), "train_labels": torch.arange(100)}
    arrays |= {"test_images": torch.zeros(3, 1, 1, 1), "test_labels": torch.zeros(3)}
    tail = split_images(arrays, Data(validation_size=10), 0, "test")
    assert tail["train"][1].tolist() == list(range(90))
    assert tail["validation"][1].tolist() == list(range(90, 100))
    few = split_images(arrays, Data(train_size=20, validation_size=10), 0, "test")
    assert few["train"][1].tolist() == list(range(20))
    permuted = split_images(arrays, Data(split="permuted", validation_size=10), 0, "test")
    assert sorted(torch.cat([permuted["train"][1], permuted["validation"][1]]).tolist()) == list(range(100))
    other = split_images(arrays, Data(split="permuted", validation_size=10), 7, "test")
    assert torch.equal(permuted["train"][1], other["train"][1])
    with pytest.raises(UserError, match="there are 100 images for 95 training and 10 validation images"):
        split_images(arrays, Data(train_size=95, validation_size=10), 0, "test")


def test_stratified_splits_hold_every_class_alike_wherever_files_are_sorted() -> None:
    labels = torch.arange(10).repeat_interleave(30)
    arrays = {"train_images": torch.arange(300).view(300, 1, 1, 1), "train_labels": labels}
    arrays |= {"test_images": torch.arange(100).view(100, 1, 1, 1), "test_labels": torch.arange(10).repeat_interleave(10)}
    settings = Data(split="stratified", train_size=100, validation_size=50)
    found = split_images(arrays, settings, 0, "test")
    assert found["train"][1].bincount().tolist() == [10] * 10
    assert found["validation"][1].bincount().tolist() == [5] * 10
    assert found["test"][1][:50].bincount().tolist() == [5] * 10  # what strong attacks see first
    assert torch.equal(found["test"][0].flatten() // 10, found["test"][1])
    assert not set(found["train"][0].flatten().tolist()) & set(found["validation"][0].flatten().tolist())
    other = split_images(arrays, settings, 9, "test")
    assert all(torch.equal(found[name][0], other[name][0]) for name in found)  # every run sees the same


@pytest.mark.parametrize("tier", ["desk", "lab"])
def test_studies_on_parts_of_cifar_draw_them_stratified(tier: str) -> None:
    parts = [run.protocol_model().data for run in Study.read(tier, ROOT).matching(TASK) if run.data]
    assert parts
    assert all(data.split == "stratified" for data in parts if data.train_size)


def test_label_noise_touches_a_share_of_the_training_labels() -> None:
    labels = torch.arange(1000) % 10
    noisy = noisy_labels(labels, 0.15, 10, seed=3)
    assert 0.10 < float((noisy != labels).double().mean()) <= 0.15  # a tenth of the draws are right by chance
    assert torch.equal(noisy, noisy_labels(labels, 0.15, 10, seed=3))
    assert torch.equal(noisy_labels(labels, 0.0, 10, seed=3), labels)


@pytest.mark.parametrize("augment", [{}, {"crop_padding": 1, "flip": True, "rotation": 15.0}])
def test_an_epoch_can_be_gone_on_with_anywhere(workspace: Path, augment: dict[str, Any]) -> None:
    found = full(workspace, data=augment)
    whole = list(found.train_batches(3))
    for expected, again in zip(whole[2:], found.train_batches(3, first=2), strict=True):
        assert torch.equal(expected[0], again[0])
        assert torch.equal(expected[1], again[1])
    assert not torch.equal(next(found.train_batches(4))[0], whole[0][0])
    assert sum(len(labels) for _, labels in whole) == 256


def test_last_partial_batch_is_kept_unless_dropped(workspace: Path) -> None:
    kept, dropped = full(workspace, batch_size=100, drop_last=False), full(workspace, batch_size=100, drop_last=True)
    assert [len(labels) for _, labels in kept.train_batches(0)] == [100, 100, 56]
    assert [len(labels) for _, labels in dropped.train_batches(0)] == [100, 100]
    with pytest.raises(UserError, match="batch_size 300 exceeds the 256 training images"):
        full(workspace, batch_size=300)
    with pytest.raises(UserError, match=r"network\.mean has 3"):
        full(workspace, network={"mean": [0.5] * 3, "std": [0.5] * 3})


def test_rate_decays_at_the_milestones() -> None:
    rates = [learning_rate_at(epoch, 0.1, (100, 150), 0.1) for epoch in (0, 99, 100, 149, 150, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("name", ["mlp", "convnet", "preact-resnet18", "vgg16", "wide-resnet"])
def test_networks_from_settings(name: str) -> None:
    settings = Network(name=name, scale=0.1, widening=1, depth=10)
    shape = (3, 32, 32)
    model, again, other = (build_network(settings, 7, shape, seed) for seed in (0, 0, 1))
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    values = [torch.cat([p.flatten() for p in one.parameters()]) for one in (model, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert parameter_count(build_network(settings.model_copy(update={"scale": 0.2}), 7, shape, 0)) > parameter_count(model)


def test_best_and_last_network_and_the_report(workspace: Path) -> None:
    run = demo(workspace, "flying-bird-plus", epochs=4, attack={"steps": 3})
    train_run(run)
    values = evaluate_run(run)["metrics"]
    with run.history.open() as stream:
        rows = list(csv.DictReader(stream))
    val_ra = [float(row["val_ra"]) for row in rows]
    assert values["best_epoch"] == 1 + val_ra.index(max(val_ra))
    assert values["robust_overfitting"] == pytest.approx(values["ra_best"] - values["ra_final"])
    assert values["robust_gap"] == pytest.approx(values["train_ra_final"] - values["ra_final"])
    assert values["density"] == pytest.approx(float(rows[-1]["density"]))
    assert values["strong_ra_final"] <= values["cw_ra_final"]
    masks = read_tensors(run.checkpoint / MASKS)
    for file, which in ((run.weights, "final"), (run.checkpoint / BEST, "best")):
        weights = read_tensors(file)
        for name, value in weights.items():
            if f"{which}:{name}" in masks:
                assert (value[~masks[f"{which}:{name}"]] == 0).all()
    existing = sum(int((weights[name] != 0).sum()) for name in weights if name.endswith("weight"))
    assert existing > 0
    missing = sum(int((~mask).sum()) for name, mask in masks.items() if name.startswith("final:"))
    total = sum(value.numel() for value in read_tensors(run.weights).values())
    assert values["parameters"] == total - missing


def test_costs_follow_the_density(workspace: Path) -> None:
    dense, sparse = (Training(demo(workspace, name)) for name in ("dense", "static-random"))
    per_image = 2 * sum(weight.numel() for weight in dense.model.parameters() if weight.ndim == 2)
    assert dense.forward_flops({}) == per_image
    sparse.stepper = sparse.topology.stepper(sparse, sparse.optimizer())
    assert sparse.forward_flops(sparse.stepper.masks) == pytest.approx(0.2 * per_image, rel=0.02)
    run = demo(workspace)
    train_run(run)
    # 3 epochs of 48 images, one attack step: (2 + 3)·F each
    assert training_summary(run)["train_flops"] == 5 * per_image * 3 * 48
    assert training_summary(run)["monitor_flops"] == 0
    bird = demo(workspace, "robust-bird")
    train_run(bird)
    summary = training_summary(bird)
    assert summary["stage_epochs"] in (2, 3)
    first = 3 * per_image * 48 * summary["stage_epochs"]
    assert summary["train_flops"] == pytest.approx(first + 5 * 0.2 * per_image * 3 * 48, rel=0.02)


def test_watching_validation_costs_an_attack_after_every_epoch(workspace: Path) -> None:
    """2F per attack step and watched image, and F for it clean and attacked, over 4 epochs; only where topology decides by it."""
    watched = {"epochs": 4, "monitor_images": 20, "attack": {"monitor_steps": 3}}
    costs = {}
    # the density changes from the start epoch on, which never comes
    for name, settings in (("flying-bird-plus", {"start_epoch": 9}), ("flying-bird", {})):
        run = demo(workspace, name, settings, **watched)
        train_run(run)
        costs[name] = training_summary(run)["monitor_flops"]
    bench = Training(run)
    bench.stepper = bench.topology.stepper(bench, bench.optimizer())
    assert costs["flying-bird-plus"] == pytest.approx(4 * 20 * (2 * 3 + 2) * bench.forward_flops(bench.stepper.masks))
    assert costs["flying-bird"] == 0


def test_one_dense_gradient_per_update_is_charged(workspace: Path) -> None:
    grown, random = (demo(workspace, name) for name in ("flying-bird", "flying-bird-random"))
    costs = []
    for run in (grown, random):
        train_run(run)
        costs.append(training_summary(run)["train_flops"])
    bench = Training(grown)
    dense = bench.forward_flops({})
    bench.stepper = bench.topology.stepper(bench, bench.optimizer())
    sparse = bench.forward_flops(bench.stepper.masks)
    # an update after each of 3 × 2 steps of 24 images
    assert costs[0] - costs[1] == pytest.approx(6 * 24 * (dense - sparse))


@pytest.mark.parametrize("stage", ["standard", "fast", "pgd"])
def test_first_stages_of_robust_bird(workspace: Path, stage: str) -> None:
    run = demo(workspace, "robust-bird", {"stage": stage, "max_epochs": 3, "queue": 2, "threshold": 0.0})
    bench = Training(run)
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    bench.topology.before(bench)
    assert [epoch.attack_steps for epoch in bench.ledger.epochs] == [{"standard": 0, "fast": 1, "pgd": 1}[stage]] * 3
    assert any((one != other).any() for one, other in zip(before, bench.model.parameters(), strict=True))
    with (run.results / "early-bird.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1.0", "2.0", "3.0"]


def test_first_stage_stops_when_masks_settle_and_goes_on_once(workspace: Path) -> None:
    run = demo(workspace, "robust-bird", {"max_epochs": 9, "queue": 2, "threshold": 1.0})
    for _ in range(2):  # the second time finds the stage done
        bench = Training(run)
        bench.topology.before(bench)
        assert len(bench.ledger.epochs) == 2


def test_average_of_weights_ends_under_the_last_masks(workspace: Path) -> None:
    run = demo(workspace, "flying-bird", {"average_from": 1})
    train_run(run)
    plain = demo(workspace / "plain", "flying-bird")
    plain.root.mkdir()
    (plain.root / "data").symlink_to(workspace / "data")
    train_run(plain)
    averaged, last = read_tensors(run.weights), read_tensors(plain.weights)
    masks = read_tensors(run.checkpoint / MASKS)
    assert any((averaged[name] != last[name]).any() for name in last)
    assert all((averaged[name][~masks[f"final:{name}"]] == 0).all() for name in averaged if f"final:{name}" in masks)
    assert all(torch.equal(masks[name], mask) for name, mask in read_tensors(plain.checkpoint / MASKS).items())


def test_a_loss_that_is_not_finite_stops_the_run(workspace: Path) -> None:
    with pytest.raises(AtlasError, match="the loss is not finite in epoch"):
        train_run(demo(workspace, learning_rate=1e30))


def test_strong_attacks_include_the_margin(workspace: Path) -> None:
    run = demo(workspace, epochs=3, strong={"images": 40, "margin_steps": 3})
    bench = Training(run)
    found = strong_accuracy(run, bench.model, bench.data, bench.monitor)
    assert set(found) == {"cw_ra", "strong_ra"}
    assert 0 <= found["strong_ra"] <= found["cw_ra"] <= 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_strong_attacks_work_in_evaluation_loops_and_leave_the_network_as_it_was(mode: Any, workspace: Path) -> None:
    run = demo(workspace, epochs=3, strong={"images": 40, "margin_steps": 3})
    bench = Training(run)
    bench.model.train()
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    outside = strong_accuracy(run, bench.model, bench.data, bench.monitor)
    with mode():
        assert strong_accuracy(run, bench.model, bench.data, bench.monitor) == outside
        inside = measure(bench.model, bench.data.batches("test", 40), bench.monitor, torch.Generator().manual_seed(0))
    assert inside == measure(bench.model, bench.data.batches("test", 40), bench.monitor, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    assert all(module.training for module in bench.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in bench.model.parameters())


@pytest.mark.parametrize("classes", [3, 4])
def test_autoattack_works_in_evaluation_loops_and_with_few_classes(classes: int) -> None:
    """An attack too weak to fool anyone, so that every part of it has its turn; four classes have three wrong ones to aim at."""
    pytest.importorskip("pyautoattack")
    run = Study.read("demo", ROOT).find(f"{TASK}/digits/dense/seed10")
    run = replace(run, protocol=merge(run.protocol, {"attack": {"eps": 1e-5}}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, classes)).eval(), torch.rand(2, 1, 2, 2)
    labels = model(images).argmax(1)
    model[1].weight.grad = torch.ones_like(model[1].weight)
    with torch.inference_mode():
        found = withstands_autoattack(run, model, images.clone(), labels.clone(), classes)
        assert torch.is_inference_mode_enabled()
    assert found.tolist() == [True, True]
    assert bool((model[1].weight.grad == 1).all())
    assert model[1].bias.grad is None
    assert model[1].bias.requires_grad


@pytest.mark.slow
def test_autoattack_breaks_more(workspace: Path) -> None:
    pytest.importorskip("pyautoattack")
    run = demo(workspace, epochs=25, milestones=[20], data={"train_size": 200, "validation_size": 24, "test_fraction": 0.8})
    changes = {"network": {"widths": [64, 64]}, "strong": {"images": 30, "autoattack": True}}
    run = replace(run, protocol=merge(run.protocol, changes))
    train_run(run)
    data = RobustData(run, run.protocol_model(), CPU)
    model, _ = load_network(run, data, "final", CPU)
    attack = Training(run).monitor
    strongest = strong_accuracy(run, model, data, attack)["strong_ra"]
    assert strongest == strong_accuracy(run, model, data, attack)["strong_ra"]
    weaker = replace(run, protocol=merge(run.protocol, {"strong": {"autoattack": False}}))
    assert strongest <= strong_accuracy(weaker, model, data, attack)["strong_ra"]
    assert json.loads(run.record.read_text())["training"]["best_epoch"] >= 1
