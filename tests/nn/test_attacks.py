"""PGD: the ball, the box, brute force on linear models, an independent library, and what it leaves untouched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.attacks import PGD, margin_loss


def random_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(features: int, classes: int, seed: int = 0) -> nn.Linear:
    model = nn.Linear(features, classes, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random_source(seed), dtype=torch.float64))
    return model


def convnet(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
        ).double()


def images(count: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = random_source(seed)
    return torch.rand(count, 3, 6, 6, generator=source, dtype=torch.float64), torch.randint(5, (count,), generator=source)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 0.05, 0.02), ("l2", 0.5, 0.2)])
def test_stays_in_ball_and_box(norm: str, eps: float, step: float, random_start: bool) -> None:
    model, (x, y) = convnet().eval(), images()
    x[0], x[1] = 0.0, 1.0
    found = PGD(eps, step, 7, norm=norm, random_start=random_start)(model, x, y, generator=random_source())
    change = (found - x).flatten(1)
    lengths = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (lengths <= eps + 1e-7).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    clean, attacked = (functional.cross_entropy(model(batch), y) for batch in (x, found))
    assert attacked > clean


def test_a_ball_of_radius_zero_is_the_input() -> None:
    x, y = images()
    for norm in ("linf", "l2"):
        assert torch.equal(PGD(0, 0.1, 3, norm=norm)(convnet().eval(), x, y), x)


def test_two_class_linear_model_by_hand() -> None:
    """With two classes the gradient's sign is constant: δ = ε·sign(w_other − w_y), clipped to the box."""
    model = linear(6, 2)
    x = torch.rand(20, 6, generator=random_source(2), dtype=torch.float64)
    y = torch.randint(2, (20,), generator=random_source(3))
    eps, step = 0.1, 0.03
    found = PGD(eps, step, math.ceil(eps / step), random_start=False)(model, x, y)
    weights = model.weight.detach()
    expected = (x + eps * torch.sign(weights[1 - y] - weights[y])).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert functional.cross_entropy(model(found), y) >= functional.cross_entropy(model(x), y)


def test_worst_corner_of_the_cube_by_brute_force() -> None:
    """On a linear two-class model no corner of the cube has a higher loss than PGD's answer, sample by sample."""
    model = linear(5, 2, seed=4)
    x = 0.4 + 0.2 * torch.rand(6, 5, generator=random_source(5), dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    corners = 0.2 * (2.0 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5).double() - 1)
    losses = torch.stack([functional.cross_entropy(model(x + corner), y, reduction="none") for corner in corners])
    found = PGD(0.2, 0.05, 10, random_start=False)(model, x, y)
    attacked = functional.cross_entropy(model(found), y, reduction="none")
    torch.testing.assert_close(attacked, losses.amax(0), rtol=0, atol=1e-12)


def test_worst_point_of_the_ball_by_hand() -> None:
    """In ℓ2 the worst point of a linear two-class model lies along w_other − w_y."""
    model = linear(5, 2, seed=4)
    x = 0.4 + 0.2 * torch.rand(6, 5, generator=random_source(5), dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    found = PGD(0.2, 0.05, 60, norm="l2", random_start=False)(model, x, y)
    direction = model.weight.detach()[1 - y] - model.weight.detach()[y]
    expected = x + 0.2 * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_equals_foolbox(steps: int) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, (x, y) = convnet().eval(), images()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.02, steps=steps, random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=0.05)
    ours = PGD(0.05, 0.02, steps, random_start=False)(model, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_equals_foolbox_in_l2() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, (x, y) = convnet().eval(), images()
    x = 0.3 + 0.4 * x  # away from the box: foolbox clips to it after the ball, we before
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.1, steps=5, random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=0.25)
    ours = PGD(0.25, 0.1, 5, norm="l2", random_start=False)(model, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("mode", "attack_updates"), [("train", 4), ("eval", 0), ("keep", 4)])
def test_batch_statistics_and_modes(mode: str, attack_updates: int) -> None:
    model, (x, y) = convnet().train(), images()
    model[2].eval()  # a module with a mode of its own keeps it
    PGD(0.05, 0.02, 4, bn_mode=mode)(model, x, y)
    assert int(model[1].num_batches_tracked) == attack_updates
    assert [module.training for module in model] == [True, True, False, True, True, True]
    functional.cross_entropy(model(x), y)
    assert int(model[1].num_batches_tracked) == attack_updates + 1


def test_leaves_parameters_alone() -> None:
    model, (x, y) = convnet(), images()
    model[0].bias.requires_grad_(False)
    functional.cross_entropy(model(x), y).backward()
    asked = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    given = x.clone()
    with torch.no_grad():
        PGD(0.05, 0.02, 3)(model, x, y)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert torch.equal(x, given)
    assert x.grad is None

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convnet()

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    broken = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        PGD(0.05, 0.02, 3, bn_mode="eval")(broken, x, y)
    assert all(parameter.requires_grad for parameter in broken.parameters())
    assert all(module.training for module in broken.modules())


def test_random_start_is_seeded_and_uniform() -> None:
    model, (x, y) = convnet().eval(), images()
    attack = PGD(0.1, 1e-9, 1)
    first, again, other = (attack(model, x, y, generator=random_source(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    middle = 0.5 + 0 * x
    change = attack(model, middle, y, generator=random_source()) - middle
    assert change.abs().max() > 0.099
    assert abs(float(change.mean())) < 0.01
    assert float(change.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_start_can_be_given() -> None:
    model, (x, y) = convnet().eval(), images()
    delta0 = torch.full_like(x, 0.04)
    found = PGD(0.05, 1e-12, 1)(model, x, y, delta0=delta0)
    torch.testing.assert_close(found, (x + delta0).clamp(0, 1), rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="delta0 has the shape"):
        PGD(0.05, 0.02, 1)(model, x, y, delta0=delta0[:1])


def test_margin_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    assert float(margin_loss(logits, torch.tensor([0, 0]))) == pytest.approx((2 + -4) / 2)
    model, (x, y) = convnet().eval(), images()
    attacked = PGD(0.05, 0.02, 5, loss=margin_loss)(model, x, y)
    assert margin_loss(model(attacked), y) > margin_loss(model(x), y)


def test_whole_numbers_are_class_indices() -> None:
    model, (x, y) = convnet().eval(), images()
    attack = PGD(0.05, 0.02, 2, random_start=False)
    assert torch.equal(attack(model, x, y.int()), attack(model, x, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"step": 0}, "step"),
        ({"steps": 0}, "steps"),
        ({"norm": "l1"}, "norm"),
        ({"bn_mode": "off"}, "bn_mode"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_refuses_what_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**{"eps": 0.1, "step": 0.1, "steps": 1, **options})


def test_refuses_inputs_outside_the_box() -> None:
    x, y = images()
    for wrong in (x * 255, x - 0.5, x * math.nan):
        with pytest.raises(ValueError, match="outside the bounds"):
            PGD(0.1, 0.1, 1)(convnet(), wrong, y)


def test_operations_of_an_attack_can_be_counted() -> None:
    """Each step costs a forward pass and a backward pass to the input, and none for the weights."""
    from torch.utils.flop_counter import FlopCounterMode

    model, (x, y) = convnet().eval(), images()
    with FlopCounterMode(display=False) as counter:
        PGD(0.05, 0.02, 3)(model, x, y)
    per_image = 2 * (6 * 27 * 36 + 24 * 5)
    assert counter.get_total_flops() == 3 * 2 * per_image * len(x)
