"""Distillation, and compression as one call."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from atlas.methods.uvc import (
    ExportError,
    UnsupportedArchitectureError,
    ViTShape,
    compress,
    export,
    kd_loss,
    kd_term,
    one_shot_plan,
    taylor_scores,
    uniform_plan,
    unit_scores,
)
from atlas.methods.uvc.compression import cosine_rate
from atlas.methods.uvc.criteria import saliency_plan
from atlas.methods.uvc.settings import UVCSettings


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"embed_dim": 16, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "weight_init": "jax", "num_classes": 5}
    model = VisionTransformer(**{"img_size": 8, "patch_size": 4, "in_chans": 1, **settings, **options})
    torch.nn.init.normal_(model.head.weight)
    return model


def loader(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 1, 8, 8, generator=random), torch.randint(5, (8,), generator=random)) for _ in range(count)]


def test_distillation_limits_and_gradient() -> None:
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    labels = torch.randint(5, (6,))
    assert torch.allclose(kd_loss(student, teacher, labels, 0.0, 2.0), functional.cross_entropy(student, labels))
    assert float(kd_term(teacher, teacher, 3.0).abs()) < 1e-6
    for norm, size in (("batch", 6), ("elements", 30)):
        (gradient,) = torch.autograd.grad(kd_term(student, teacher, 2.5, norm), student)  # type: ignore[arg-type]
        wanted = 2.5 * ((student / 2.5).softmax(-1) - (teacher / 2.5).softmax(-1)) / size
        assert torch.allclose(gradient, wanted, atol=1e-6)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    by_hand = 4 * (p * (p.log() - q.log())).sum() / 6
    assert float(kd_loss(student, teacher, labels, 1.0, 2.0).detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    hard = kd_loss(student, teacher, labels, 1.0, 2.0, hard=True)
    assert torch.allclose(hard, functional.cross_entropy(student, teacher.argmax(-1)))


def test_distillation_token_learns_from_the_teacher_alone() -> None:
    cls, dist, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5), torch.randint(5, (4,))
    value = kd_loss((cls, dist), teacher, labels, 0.3, 1.0)
    assert torch.allclose(value, 0.7 * functional.cross_entropy(cls, labels) + 0.3 * kd_term(dist, teacher))


def test_distillation_refuses() -> None:
    ten, five, labels = torch.randn(4, 10), torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="teacher's logits"):
        kd_loss(five, ten, labels, 0.5, 1.0)
    with pytest.raises(ValueError, match="alpha"):
        kd_loss(five, five, labels, 1.5, 1.0)
    with pytest.raises(ValueError, match="T must be"):
        kd_loss(five, five, labels, 0.5, 0.0)
    with pytest.raises(ValueError, match="norm must be"):
        kd_loss(five, five, labels, 0.5, 1.0, norm="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (0.5, {}),
        (0.4, {"preset": "reference"}),
        (0.6, {"skip": False, "v_layout": "uniform"}),
        (0.75, {"prune": False}),
    ],
)
def test_compress(budget: float, options: dict[str, Any]) -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = compress(model, budget, loader(), val_loader=loader(2), epochs=(4, 2), learning_rate=1e-3, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    shape = ViTShape.from_timm(model)
    assert result.r_phys == result.plan.r_phys(shape) <= budget
    if options.get("prune", True) and "v_layout" not in options:
        assert budget - result.r_phys <= 0.01
    assert result.acc_pre_ft is not None
    assert 0 <= result.acc_pre_ft <= 1
    assert sum(row["stage"] == "search" for row in result.log) == 16
    assert sum(row["stage"] == "finetune" for row in result.log) == 8
    assert not result.model.training
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    if not options:
        again = compress(model, budget, loader(), epochs=(4, 2), learning_rate=1e-3)
        assert again.plan == result.plan
        assert again.acc_pre_ft is None
        assert all(
            torch.equal(a, b) for a, b in zip(result.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        )


def test_the_call_and_the_row_have_the_same_defaults() -> None:
    row = UVCSettings()
    call = {name: parameter.default for name, parameter in signature(compress).parameters.items()}
    assert (call["alpha"], call["temperature"], call["kd_norm"]) == (0.1, 1.0, "batch")
    shared = ("alpha", "temperature", "kd_norm", "weight_decay", "preset", "v_layout")
    assert {name: call[name] for name in shared} == row.model_dump(include=set(shared))
    assert call["epochs"] == (row.search_epochs, row.epochs) == (30, 120)
    assert (call["learning_rate"], call["finetune_learning_rate"]) == (row.search_learning_rate, row.learning_rate)


def test_compress_refuses() -> None:
    with pytest.raises(ValueError, match="train_loader is empty"):
        compress(vit(), 0.5, [], epochs=(1, 1))
    with pytest.raises(ValueError, match="the teacher has 7 classes, the model 5"):
        compress(vit(), 0.5, loader(), teacher=vit(num_classes=7), epochs=(1, 1))
    with pytest.raises(ValueError, match="budget must be"):
        compress(vit(), 0.0, loader(), epochs=(1, 1))
    with pytest.raises(ValueError, match="val_loader is empty"):
        compress(vit(), 0.5, loader(1), val_loader=[], epochs=(1, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": (-1, 1)}, r"epochs must be \(search, fine-tuning\) of at least 0 each, not \(-1, 1\)"),
        ({"epochs": (1, -2)}, r"of at least 0 each, not \(1, -2\)"),
        ({"epochs": (1, 1, 1)}, r"epochs must be a pair \(search, fine-tuning\), not \(1, 1, 1\)"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, not -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite and at least 0, not nan"),
        ({"finetune_learning_rate": -1.0}, r"finetune_learning_rate must be finite and at least 0, not -1\.0"),
        ({"weight_decay": -0.1}, r"weight_decay must be finite and at least 0, not -0\.1"),
        ({"budget": 0.14}, r"budget 0\.14 is below 0\.143042, the smallest surviving model that every search can reach"),
        ({"budget": 0.3, "prune": False}, r"budget 0\.3 is below 0\.353328, .*: one whole block"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_trains(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("atlas.methods.uvc.compression.weight_step", lambda *_: pytest.fail("something was trained"))
    with pytest.raises(ValueError, match=message):
        compress(vit(), **{"budget": 0.5, "train_loader": loader(1), "epochs": (1, 1), **options})
    with pytest.raises(TypeError, match="epochs must be a whole number, not 0.5"):
        compress(vit(), 0.5, loader(1), epochs=(0.5, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="epochs is 3; a pair"):
        compress(vit(), 0.5, loader(1), epochs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"skip": False}, {"v_layout": "uniform"}])
def test_the_smallest_budget_that_is_named_can_be_reached(options: dict[str, Any]) -> None:
    result = compress(vit(), 0.143042, loader(1), epochs=(0, 0), **options)
    assert result.plan.keep.sum() == 1
    assert result.r_phys <= 0.143042


def test_a_loss_that_is_not_finite_stops_and_names_the_step() -> None:
    bad = loader(3)
    bad[1][0][0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1"):
        compress(vit(), 0.5, bad, epochs=(1, 1), warmup_epochs=0)


def test_the_teacher_is_evaluated_whatever_its_mode() -> None:
    noisy = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 5)).train()
    first = compress(vit(), 0.5, loader(), teacher=noisy, epochs=(2, 1))
    second = compress(vit(), 0.5, loader(), teacher=noisy, epochs=(2, 1))
    assert [row["loss"] for row in first.log] == [row["loss"] for row in second.log]
    assert noisy.training


def test_the_warm_up_starts_with_one_step_of_it() -> None:
    """The rate of step t is (t + 1)/warm-up of the base: the first step learns, and the last of the warm-up learns fully."""
    assert [cosine_rate(step, 10, 0.8, warmup=4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert cosine_rate(7, 10, 0.8, warmup=4, floor=0.2) == pytest.approx(0.5)
    assert cosine_rate(10, 10, 0.8, warmup=4, floor=0.2) == pytest.approx(0.2)
    assert cosine_rate(0, 10, 0.8) == 0.8


def distilled(*, two_heads: bool) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 4, "num_classes": 5}
    model: Any = create_model("deit_tiny_distilled_patch16_224", **sizes)
    model.set_distilled_training(two_heads)
    return model.train()


def kinds(model: Any) -> tuple[type, type]:
    """What a model returns in training and in evaluation."""
    images = torch.randn(2, 1, 8, 8)
    return type(model.train()(images)), type(model.eval()(images))


@pytest.mark.parametrize(("two_heads", "expected"), [(False, (Tensor, Tensor)), (True, (tuple, Tensor))])
def test_a_distilled_model_comes_back_in_the_mode_of_the_given_one(two_heads: bool, expected: tuple[type, type]) -> None:
    model = distilled(two_heads=two_heads)
    head = model.head_dist.weight.detach().clone()
    result = compress(model, 0.5, loader(), val_loader=loader(1), epochs=(3, 1), learning_rate=1e-2)
    assert kinds(result.model) == kinds(model) == expected
    assert model.distilled_training == two_heads
    assert torch.equal(model.head_dist.weight, head)
    assert not torch.equal(result.model.head_dist.weight, head)  # the teacher taught it, whatever the given model does


@pytest.mark.parametrize(("two_heads", "expected"), [(False, (Tensor, Tensor)), (True, (tuple, Tensor))])
def test_baselines_and_export_of_distilled_models(two_heads: bool, expected: tuple[type, type]) -> None:
    """Criteria that look at the loss take what the model predicts with: the mean of its two heads."""
    model = distilled(two_heads=two_heads)
    shape, batches = ViTShape.from_timm(model), loader(2)
    taylor = taylor_scores(model, batches, functional.cross_entropy)
    predicted = taylor_scores(distilled(two_heads=False), batches, functional.cross_entropy)
    assert torch.allclose(taylor.dims, predicted.dims)
    plans = [
        one_shot_plan(shape, taylor, 0.5),
        uniform_plan(shape, unit_scores(model), 0.5),
        saliency_plan(model, *batches[0], functional.cross_entropy, 0.5),
    ]
    for plan in plans:
        assert kinds(export(model.train(), plan)) == expected


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_resnet26d_224"])
def test_patches_that_come_from_another_network_are_refused_before_the_search(name: str) -> None:
    model = create_model(name, img_size=64, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    never = iter([])
    with pytest.raises(UnsupportedArchitectureError, match="patch_embed: HybridEmbed"):
        ViTShape.from_timm(model)
    with pytest.raises(UnsupportedArchitectureError, match="patch_embed: HybridEmbed"):
        compress(model, 0.5, [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))], val_loader=never, epochs=(1, 1))


def test_what_cannot_be_cut_exactly_is_found_before_the_search() -> None:
    """A hook that depends on what is removed: the smaller model computes something else than the masked one."""
    model = vit()

    def centre(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] - inputs[0].mean(-1, keepdim=True),)

    for block in model.blocks:
        block.attn.proj.register_forward_pre_hook(centre)
    steps: list[int] = []
    model.head.register_forward_hook(lambda module, inputs, output: steps.append(1) if module.training else None)
    with pytest.raises(ExportError, match="differs from the masked one"):
        compress(model, 0.5, loader(), epochs=(2, 1))
    assert not steps


def test_a_caller_may_have_another_default_type() -> None:
    model, batches = vit(), loader()
    torch.set_default_dtype(torch.float64)
    try:
        result = compress(model, 0.6, batches, epochs=(2, 1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in result.model.parameters()} == {torch.float32}


X, Y = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.arange(16) % 5


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ((X, Y + 5), "val_loader's labels must be from 0 to 4"),
        ((X, Y - 20), "val_loader's labels must be from 0 to 4"),
        ((X[:, :, :4], Y), "cannot take val_loader's inputs of the shape"),
        ((X.double(), Y), "val_loader's inputs"),
        ((X, functional.one_hot(Y, 5).float()), "val_loader's labels are shares"),
        ([(X, Y[:-1])], "val_loader's labels has 15 entries for 16 inputs"),
        ((X, Y[:, None]), "val_loader's labels is"),
        ([], "val_loader is empty"),
    ],
)
def test_validation_data_are_looked_at_before_anything_is_trained(
    validation: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*given: Any) -> None:
        raise AssertionError("the search began")

    monkeypatch.setattr("atlas.methods.uvc.compression.UVCController.step", trained)
    with pytest.raises((TypeError, ValueError), match=words):
        compress(vit(), 0.5, (X, Y), val_loader=validation, epochs=(2, 1), progress=False)


def test_later_labels_of_validation_are_looked_at_too() -> None:
    with pytest.raises(ValueError, match="val_loader's labels must be from 0 to 4"):
        compress(vit(), 0.5, (X, Y), val_loader=[(X, Y), (X, Y + 1)], epochs=(0, 0), progress=False)


def test_a_seed_gives_one_plan_with_drop_path_too_and_leaves_the_callers_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = vit(drop_path_rate=0.3, proj_drop_rate=0.1)
    torch.set_rng_state(before)
    first = compress(model, 0.6, loader(), epochs=(3, 1), seed=4, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    second = compress(model, 0.6, loader(), epochs=(3, 1), seed=4, progress=False)
    assert first.plan == second.plan
    assert [row["loss"] for row in first.log] == [row["loss"] for row in second.log]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_compression_trains_whether_or_not_its_caller_takes_gradients(around: Any) -> None:
    plain = compress(vit(), 0.6, loader(), val_loader=loader(1), epochs=(2, 1), progress=False)
    with around():
        other = compress(vit(), 0.6, loader(), val_loader=loader(1), epochs=(2, 1), progress=False)
    assert [row["loss"] for row in other.log] == [row["loss"] for row in plain.log]
    other.model(torch.randn(2, 1, 8, 8)).sum().backward()


def test_a_loader_that_shuffles_follows_the_seed_and_draws_nothing_from_the_caller() -> None:
    def shuffled() -> Any:
        return DataLoader(TensorDataset(X, Y), 4, shuffle=True)

    first = compress(vit(drop_path_rate=0.3), 0.6, shuffled(), val_loader=shuffled(), epochs=(2, 1), seed=4, progress=False)
    model = vit(drop_path_rate=0.3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = compress(model, 0.6, shuffled(), val_loader=shuffled(), epochs=(2, 1), seed=4, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["loss"] for row in first.log] == [row["loss"] for row in second.log]


def test_a_teacher_gives_one_tensor() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1)[:, :5], x.flatten(1)[:, :5]

    with pytest.raises(TypeError, match="the teacher returns a tuple"):
        compress(vit(), 0.6, loader(), teacher=Two(), epochs=(1, 0), progress=False)
