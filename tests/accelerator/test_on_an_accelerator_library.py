"""Library calls on a pretended GPU: those that no row of the demo makes, or makes on the CPU."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.conformance.test_methods import STUDY, shortest, train_with_needs, with_data
from tests.pretend_accelerator import Pretence, pretending
from torch import Tensor, nn
from torch.nn import functional

from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.run import Run
from atlas.l2o import Examples, RNNprop, mlp, quadratic, rastrigin, rollout, rosenbrock
from atlas.methods.as_vit import extrinsic_curvature, grad_norm, great_circle, synflow
from atlas.methods.optimizer_amalgamation import Curriculum, amalgamate, distill, make_pool
from atlas.methods.sinnerf import HashField, PatchDiscriminator, Sampler, diff_augment, render_rays
from atlas.methods.sparse_robust import robust_bird, score_masks
from atlas.methods.split_mix import MLP, Client, FedTrainer
from atlas.methods.symbolic_l2o import SymbolicOptimizer, network_field, record
from atlas.methods.uvc import compress, export, one_shot_plan, taylor_scores, unit_scores
from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.vfds import SelectiveGRU, arm_loss, fit, fractions, replace_rnn, selection_loss
from atlas.settings import merge

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu_checks

CUDA = torch.device("cuda")
SHORT = Curriculum(
    depth=(1,), validation_depth=(1,), imitation=(0.1,), resets=(1,), unroll=2, min_periods=1, chances=1, max_repeats=1
)
WIDE = ("AttnScale", "FeatScale", "Diverse-ViT's terms", "SinNeRF rendering, coarse and fine networks")


@pytest.fixture
def device() -> Iterator[Pretence]:
    """A pretended GPU, with a stream of random numbers of its own."""
    with pretending(own_stream=True) as found:
        yield found


def case(name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.slow] if name in WIDE else [])


@pytest.mark.parametrize("name", [case(name) for name in gpu_checks.CASES if "compiled" not in name])
def test_what_is_checked_on_a_gpu_holds_here(name: str) -> None:
    """The checks of benchmarks/gpu.py: float32 there against float64 on the CPU."""
    compute = gpu_checks.CASES[name]
    expected = compute(gpu_checks.CPU, torch.float64)
    single, _ = gpu_checks.difference(compute(gpu_checks.CPU, torch.float32), expected)
    with pretending():
        gap, where = gpu_checks.difference(compute(CUDA, torch.float32), expected)
    assert gap <= max(gpu_checks.LIMIT, gpu_checks.CLOSE * single), where


@pytest.mark.parametrize("name", [case(name) for name in gpu_checks.HALF])
def test_what_is_checked_under_autocast_is_finite(name: str, device: Pretence) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        found = gpu_checks.CASES[name](CUDA, torch.float32)
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_what_lies_on_the_other_device_is_taken_or_refused_as_on_a_gpu(device: Pretence) -> None:
    """As an H200 did (results/performance/nvidia-h200.md), but for lengths on the CPU, which are taken since."""
    refused = {}
    for name, call in gpu_checks.placement_cases(CUDA).items():
        try:
            call()
        except RuntimeError as error:
            refused[name] = str(error)
    assert refused.keys() == gpu_checks.MISTAKES
    assert all("same device" in message for message in refused.values())


def vit(depth: int = 2) -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=depth, num_classes=5
    )


def pictures(count: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 3, 32, 32).to(CUDA), (torch.arange(count) % 5).to(CUDA)


def everywhere(model: nn.Module) -> set[str]:
    """Kinds of devices that a module's tensors are on."""
    return {value.device.type for value in model.state_dict().values()}


def optimizee() -> Any:
    """A small network on examples of the device."""
    torch.manual_seed(0)
    splits = {name: (torch.randn(32, 6), torch.randint(0, 3, (32,))) for name in ("train", "val")}
    return mlp((6, 5, 3), "relu", data=Examples(splits, 8).to(CUDA))


@pytest.mark.parametrize("make", [partial(quadratic, 4), partial(rosenbrock, 2), partial(rastrigin, 4)])
def test_learned_optimizers_descend_test_functions(make: Callable[..., Any], device: Pretence) -> None:
    policy = RNNprop().to(CUDA)
    curves = rollout(policy, make(device=CUDA), n=2, steps=2, every=1, start=True, gen=torch.Generator().manual_seed(0))
    assert curves.theta.device.type == "cuda"
    again = rollout(policy.cpu(), make(), n=2, steps=2, every=1, start=True, gen=torch.Generator().manual_seed(0))
    torch.testing.assert_close(curves.theta.cpu(), again.theta)


def test_a_network_is_recorded_and_its_field_measured_where_it_is(device: Pretence) -> None:
    torch.manual_seed(0)
    policy = RNNprop().to(CUDA)
    assert len(record(policy, optimizee(), runs=2, steps=30, progress=False).y)
    seen = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
    assert network_field(policy, seen, ("m", "g")) == pytest.approx(network_field(policy.cpu(), seen, ("m", "g")), rel=1e-4)


@pytest.mark.parametrize("method", ["mean", "choice"])
def test_amalgamation_takes_place_where_the_problem_is(method: Any, device: Pretence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "_carry_out", lambda trainer, label, progress: trainer.step())
    found = amalgamate(optimizee(), make_pool("small"), method=method, schedule=SHORT, gen=torch.Generator())
    assert everywhere(found.students[0]) == {"cuda"}


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"foreach": True}])
def test_an_equations_state_changes_devices(options: dict[str, Any], device: Pretence) -> None:
    layer, buffer = nn.Linear(4, 3).to(CUDA), io.BytesIO()
    optimizer = SymbolicOptimizer(layer.parameters(), "-0.5*tanh(m_0)+0.1*g_1", 0.01, **options)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 4, device=CUDA)).square().sum().backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    optimizer.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    optimizer.step()
    assert everywhere(layer) == {"cuda"}


@pytest.mark.parametrize("relaxation", ["concrete", "arm"])
def test_lengths_may_stay_on_the_cpu(relaxation: Any, device: Pretence) -> None:
    torch.manual_seed(0)
    model, lengths = SelectiveGRU(5, 8, 3, relaxation=relaxation).to(CUDA), torch.tensor([6, 3, 1])
    x, y, noise = torch.randn(3, 6, 5).to(CUDA), torch.zeros(3, 6, dtype=torch.long, device=CUDA), torch.rand(6, 3, 5).to(CUDA)

    def loss(where: Tensor) -> float:
        if model.arm:
            return float(arm_loss(model, x, y, lam=1.0, lengths=where, noise=noise).total.detach())
        return float(selection_loss(model(x, lengths=where, noise=noise), y, cost=torch.ones(5), lam=1.0).total.detach())

    assert loss(lengths) == loss(lengths.to(CUDA))


def test_a_selective_model_is_fitted_and_measured_where_it_is(device: Pretence) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 6, 5).to(CUDA), torch.randint(0, 3, (12, 6)).to(CUDA)
    model = replace_rnn(nn.GRU(5, 8, batch_first=True).to(CUDA), 3)
    assert everywhere(model) == {"cuda"}
    state = copy.deepcopy(model.state_dict())
    there = fit(model, (x, y), lam=0.1, steps=2, lengths=torch.full((12,), 5).to(CUDA), progress=False)
    model.load_state_dict(state)
    assert fit(model, (x.cpu(), y.cpu()), lam=0.1, steps=2, lengths=torch.full((12,), 5), progress=False) == there
    assert 0 <= fractions(model(x).gates, torch.ones(5)).total <= 1


def test_a_transformer_is_compressed_where_it_is(device: Pretence) -> None:
    model, (images, labels) = vit(3).to(CUDA), pictures(8)
    shape = ViTShape.from_timm(model)
    for scores in (unit_scores(model), taylor_scores(model, [(images, labels)], functional.cross_entropy)):
        assert everywhere(export(model, one_shot_plan(shape, scores, 0.6))) == {"cuda"}
    made = compress(vit(2), 0.6, (images.cpu(), labels.cpu()), batch_size=8, epochs=(1, 1), device=CUDA, progress=False)
    assert everywhere(made.model) == {"cuda"}


def test_architectures_are_measured_where_they_are(device: Pretence) -> None:
    model, (images, labels) = vit().to(CUDA).eval(), pictures()
    circle = great_circle((3, 32, 32), 4, generator=torch.Generator().manual_seed(0))
    assert extrinsic_curvature(model, circle.basis.to(CUDA), circle.theta.to(CUDA)).device.type == "cuda"
    assert grad_norm(model, images, labels) > 0
    assert synflow(model, (3, 32, 32)) > 0


def test_sparse_networks_are_found_where_they_are(device: Pretence) -> None:
    images, labels = pictures()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)).to(CUDA)
    for criterion in ("magnitude", "snip", "grasp", "synflow"):
        masks = score_masks(model, 0.5, criterion, [(images, labels)], rounds=2)  # type: ignore[arg-type]
        assert {mask.device.type for mask in masks.values()} == {"cuda"}

    def epoch(trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(trained(images), labels).backward()
        optimizer.step()

    masks = robust_bird(model, lambda m: torch.optim.SGD(m.parameters(), 0.1), epoch, 0.5, 2, queue=2, progress=False)
    assert {mask.device.type for mask in masks.values()} == {"cuda"}


@pytest.mark.parametrize("method", ["split-mix", "heterofl", "fedavg"])
def test_clients_may_be_on_either_device(method: Any, device: Pretence) -> None:
    random = torch.Generator().manual_seed(0)
    people = [(torch.rand(16, 64, generator=random), torch.arange(16) % 10, budget) for budget in (1.0, 0.5)]
    losses = []
    for place in ("cpu", "cuda"):
        clients = [Client(x.to(place), y.to(place), budget) for x, y, budget in people]
        trainer = FedTrainer(method, MLP, rounds=2, batch_size=8, device=CUDA, atom=0.5).start(clients)
        losses.append([trainer.round()["loss"], trainer.round()["loss"]])
    assert losses[0] == pytest.approx(losses[1])


def test_fields_and_discriminators_compute_where_they_are(device: Pretence) -> None:
    rays = torch.cat([torch.rand(4, 3), torch.randn(4, 3), torch.full((4, 1), 0.5), torch.full((4, 1), 2.0)], 1).to(CUDA)
    field = HashField().to(CUDA)
    render_rays(field, rays, Sampler(coarse=4, fine=0)).rgb.sum().backward()
    assert all(value.grad is not None for value in field.parameters())
    patches = diff_augment(pictures()[0], torch.Generator().manual_seed(0))
    assert PatchDiscriminator().to(CUDA)(patches).device.type == "cuda"


def on_the_device(run: Run, **protocol: Any) -> Run:
    """A run with another protocol, on the device, as are the runs that it needs."""
    needs = {role: on_the_device(needed, **protocol) for role, needed in run.needs.items()}
    resources = run.resources.model_copy(update={"device": "cuda"})
    return replace(run, protocol=merge(run.protocol, protocol), resources=resources, needs=needs)


@pytest.mark.parametrize(
    ("row", "precision"),
    [
        ("image-classification/digits/deit", "float16"),
        pytest.param("image-classification/digits-mixed/diverse-vit", "bfloat16", marks=pytest.mark.slow),
        ("adversarial-robustness/digits/flying-bird", "bfloat16"),
        pytest.param("image-classification/digits-compressed/uvc-b35", "float16", marks=pytest.mark.slow),
        pytest.param("image-classification/digits/symbolic-optimizer", "float16", marks=pytest.mark.slow),
    ],
)
def test_rows_train_in_mixed_precision(row: str, precision: str, tmp_path: Path, data_folder: Path, device: Pretence) -> None:
    """Which protocols of the larger studies ask for, and which no CPU computes in."""
    found = next(run for run in STUDY.runs if f"{run.task}/{run.dataset}/{run.method}" == row)
    run = on_the_device(shortest(found, with_data(tmp_path, data_folder)), precision=precision)
    train_with_needs(run)
    assert all(value is None or np.isfinite(value) for value in evaluate_run(run)["metrics"].values())


DETECTION = """
description: A detector of seconds.
seeds: [0]
resources: {threads: 1, memory_mb: 4000, minutes: 5, device: cuda}
object-detection:
  datasets:
    digit-scenes:
      protocol: {image_size: 64, mean: [0.25], std: [0.25], anchors: [12, 16, 20, 24, 32]}
      methods: {plain-transformer: {}}
"""


def test_a_detector_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Pretence) -> None:
    """torchvision's pooling of regions would be compiled on CUDA, where deterministic kernels are asked for; here it is not."""
    from atlas.datasets import acquire
    from atlas.harness.study import Study

    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "demo.yaml").write_text(DETECTION)
    acquire("digit-scenes", root=tmp_path / "data")
    monkeypatch.setattr(sys.modules["torchvision.ops.roi_align"], "is_compile_supported", lambda kind: False)
    run = replace(shortest(Study.read("demo", tmp_path).runs[0], tmp_path))
    train_run(run)
    assert 0 <= evaluate_run(run)["metrics"]["box_ap"] <= 1
