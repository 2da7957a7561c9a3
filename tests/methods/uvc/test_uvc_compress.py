"""Distillation, and compression as one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.uvc import ViTShape, compress, kd_loss, kd_term


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


def test_compress_refuses() -> None:
    with pytest.raises(ValueError, match="train_loader is empty"):
        compress(vit(), 0.5, [], epochs=(1, 1))
    with pytest.raises(ValueError, match="the teacher has 7 classes, the model 5"):
        compress(vit(), 0.5, loader(), teacher=vit(num_classes=7), epochs=(1, 1))
    with pytest.raises(ValueError, match="budget must be"):
        compress(vit(), 0.0, loader(), epochs=(1, 1))
    with pytest.raises(ValueError, match="val_loader is empty"):
        compress(vit(), 0.5, loader(1), val_loader=[], epochs=(1, 0))


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
