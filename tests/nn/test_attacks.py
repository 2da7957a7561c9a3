"""PGD: the ball, the box, brute force on linear models, an independent library, and what it leaves untouched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.split_mix import PGD as SplitMixPGD
from atlas.nn.attacks import PGD, attacking, margin_loss


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
    for wrong in (x * 255, x - 0.5, x * math.nan, x / 0):
        for attack in ATTACKS.values():
            with pytest.raises(ValueError, match="outside the bounds"):
                attack(convnet(), wrong, y)


Attack = Callable[..., Tensor]
ATTACKS: dict[str, Attack] = {
    "linf": PGD(0.05, 0.02, 3),
    "l2": PGD(0.5, 0.2, 3, norm="l2"),
    "margin": PGD(0.05, 0.02, 3, loss=margin_loss),
    "per sample": PGD(0.05, 0.02, 3, loss=lambda logits, y: functional.cross_entropy(logits, y, reduction="none")),
    "still": PGD(0.05, 0.02, 3, random_start=False, bn_mode="eval"),
    "federated": SplitMixPGD(0.05, 3),
    "start": SplitMixPGD(0.05, 0),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@every_attack
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_loops_change_nothing(mode: Callable[[], object], attack: Attack) -> None:
    model, (x, y) = convnet().eval(), images()
    expected = attack(model, x, y, generator=random_source())
    with mode():  # type: ignore[attr-defined]
        inside = x.clone(), y.clone(), torch.full_like(x, 0.01)  # inference tensors in inference mode
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = attack(model, *inside[:2], generator=random_source())
        attack(model, *inside[:2], delta0=inside[2])
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, inference)
        assert model(found).shape == (8, 5)
    assert torch.equal(found, expected)
    assert torch.equal(attack(model, *inside[:2], generator=random_source()), expected)  # made inside, used outside
    assert not found.requires_grad
    assert not found.is_inference()
    assert torch.is_grad_enabled()


@every_attack
def test_inputs_that_ask_for_gradients_get_none(attack: Attack) -> None:
    model, (x, y) = convnet().eval(), images()
    expected = attack(model, x, y, generator=random_source())
    leaf = x.clone().requires_grad_()
    for given in (leaf, leaf * 1):
        found = attack(model, given, y, generator=random_source())
        assert torch.equal(found, expected)
        assert not found.requires_grad
    assert leaf.grad is None
    assert leaf.requires_grad


@every_attack
def test_frozen_models_are_attacked_alike(attack: Attack) -> None:
    model, (x, y) = convnet().eval(), images()
    expected = attack(model, x, y, generator=random_source())
    model.requires_grad_(False)
    assert torch.equal(attack(model, x, y, generator=random_source()), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@every_attack
def test_a_model_in_training_is_left_in_training(attack: Attack) -> None:
    model, (x, y) = convnet().train(), images()
    model[1].eval()  # its statistics are those of the past: nothing may move them
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = copy.deepcopy(model.state_dict())
    attack(model, x, y)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and bool((parameter.grad == 3).all()) for parameter in model.parameters())


def test_statistics_survive_an_attack_in_evaluation_mode() -> None:
    model, (x, y) = convnet().train(), images()
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        PGD(0.05, 0.02, 3, bn_mode="eval")(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@every_attack
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_in_ball_and_box(dtype: torch.dtype, attack: Attack) -> None:
    model, (x, y) = convnet().eval().to(dtype), images(64)
    x = x.to(dtype)
    x[0], x[1] = 0, 1
    found = attack(model, x, y, generator=random_source())
    assert found.dtype == dtype
    change = (found.double() - x.double()).flatten(1)
    lengths = change.norm(dim=1) if getattr(attack, "norm", "linf") == "l2" else change.abs().amax(1)
    eps = attack.eps  # type: ignore[attr-defined]
    assert (lengths <= eps * (1 + 1e-6)).all()
    assert float(lengths.min()) > 0.5 * eps
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_half_precision_goes_inwards(dtype: torch.dtype) -> None:
    """Every answer is the number nearest to x ± ε among those of half precision that are no further from x."""
    x = (2 * torch.rand(2000, 1, generator=random_source()) - 1).to(dtype)
    x[:3, 0] = torch.tensor([0.0, 1.0, -1.0])
    eps, weight = 0.0307, torch.ones(1, 1, dtype=dtype)
    for sign in (1, -1):
        attack = PGD(eps, eps, 1, random_start=False, bounds=(-2.0, 2.0), loss=lambda outputs, y: outputs[:, 0])
        found = attack(lambda inputs, sign=sign: inputs @ (sign * weight), x, torch.zeros(2000))
        target = x.double() + sign * eps
        gap = (target - found.double()) * sign
        assert float(gap.min()) >= -1e-7  # the target is x + ε in single precision
        assert bool((gap <= torch.finfo(dtype).eps * target.abs().clamp(min=x.abs().double())).all())


def test_gradients_of_large_batches_do_not_vanish_in_half_precision() -> None:
    """Averaged over a batch, gradients of float16 fall below its smallest number: the attack then stands still."""
    model = nn.Linear(4, 2, dtype=torch.float16)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-4] * 4, [-1e-4] * 4]))
    x, y = torch.full((4096, 4), 0.5, dtype=torch.float16), torch.zeros(4096, dtype=torch.long)
    found = PGD(0.25, 0.25, 1, random_start=False)(model, x, y)
    assert bool((found == 0.25).all())


@every_attack
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_of_whole_numbers_are_refused(dtype: torch.dtype, attack: Attack) -> None:
    x, y = images()
    with pytest.raises(TypeError, match=f"inputs are {dtype}; an attack moves floating-point numbers"):
        attack(convnet(), (255 * x).to(dtype), y)


@pytest.mark.parametrize(
    "attack", [ATTACKS["linf"], ATTACKS["margin"], ATTACKS["federated"]], ids=["linf", "margin", "federated"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:5], r"labels of the shape \(5,\) do not fit outputs of the shape \(8, 5\): \(8,\) would"),
        (lambda y: y[:, None], r"labels of the shape \(8, 1\) do not fit outputs of the shape \(8, 5\): \(8,\) would"),
        (lambda y: functional.one_hot(y, 5), r"labels of the shape \(8, 5\) do not fit"),
        (lambda y: y + 1, r"labels lie in \[1, 5\], outside the 5 classes 0 … 4"),
        (lambda y: y - 1, r"labels lie in \[-1, 3\], outside the 5 classes 0 … 4"),
        (lambda y: y.float(), "labels are torch.float32: class indices are whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(attack: Attack, change: Callable[[Tensor], Tensor], message: str) -> None:
    model, (x, _) = convnet().train(), images()
    y = torch.arange(8) % 5
    with pytest.raises(ValueError, match=message):
        attack(model, x, change(y))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_labels_of_every_whole_type(dtype: torch.dtype) -> None:
    model, (x, _) = convnet().eval(), images()
    y = torch.arange(8) % 2
    for attack in ATTACKS.values():
        found, expected = (attack(model, x, labels, generator=random_source()) for labels in (y.to(dtype), y))
        assert torch.equal(found, expected)


def test_probabilities_of_classes_are_labels_too() -> None:
    model, (x, y) = convnet().eval(), images()
    attack = PGD(0.05, 0.02, 2, random_start=False)
    soft = functional.one_hot(y, 5).double().requires_grad_()
    torch.testing.assert_close(attack(model, x, soft), attack(model, x, y), rtol=0, atol=1e-12)
    assert soft.grad is None


def test_other_losses_take_what_they_like() -> None:
    x, _ = images()
    away = PGD(0.05, 0.02, 5, random_start=False, loss=lambda outputs, y: (outputs["pixels"] - y).square().sum())

    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"pixels": x}

    x = 0.4 + 0.2 * x
    torch.testing.assert_close(away(Pixels(), x, x - 0.5), x + 0.05)
    torch.testing.assert_close(away(Pixels(), x, torch.zeros_like(x, dtype=torch.long)), x + 0.05)


@every_attack
def test_a_function_is_a_model(attack: Attack) -> None:
    model, (x, y) = convnet().eval(), images()
    if getattr(attack, "bn_mode", "keep") != "keep":
        with pytest.raises(TypeError, match="a function has no mode: bn_mode must be keep, not 'eval'"):
            attack(lambda inputs: model(inputs), x, y)
        return
    found, expected = (attack(f, x, y, generator=random_source()) for f in (lambda inputs: model(inputs), model))
    assert torch.equal(found, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_models_that_let_no_gradient_through_are_named_as_such(guard: Callable[[], object]) -> None:
    model, (x, y) = convnet().eval(), images()

    def closed(inputs: Tensor) -> Tensor:
        with guard():  # type: ignore[attr-defined]
            return model(inputs)

    with pytest.raises(ValueError, match="no gradient reaches the inputs"):
        PGD(0.05, 0.02, 1)(closed, x, y)


def test_models_made_in_inference_mode_are_refused() -> None:
    x, y = images()
    with torch.inference_mode():
        model = convnet().eval()
        buffers = convnet().eval()
    with pytest.raises(ValueError, match=r"0\.weight was made under inference_mode, .* build or load the model outside"):
        PGD(0.05, 0.02, 1)(model, x, y)
    outside = convnet().eval()
    outside[1].running_mean = buffers[1].running_mean
    with pytest.raises(ValueError, match=r"1\.running_mean was made under inference_mode"), torch.inference_mode():
        PGD(0.05, 0.02, 1)(outside, x, y)


def test_an_empty_batch_stays_empty() -> None:
    x, y = images()
    assert PGD(0.05, 0.02, 2)(convnet().eval(), x[:0], y[:0]).shape == (0, 3, 6, 6)


def test_attacks_of_other_libraries_leave_gradients_alone() -> None:
    """What AutoAttack's FAB does: a backward pass that would reach the weights."""
    model, (x, _) = convnet().train(), images()
    with torch.inference_mode(), attacking(model, "eval"):
        leaf = x.clone().requires_grad_()
        model(leaf).sum().backward()
        assert leaf.grad is not None
        assert not model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training


def test_operations_of_an_attack_can_be_counted() -> None:
    """Each step costs a forward pass and a backward pass to the input, and none for the weights."""
    from torch.utils.flop_counter import FlopCounterMode

    model, (x, y) = convnet().eval(), images()
    with FlopCounterMode(display=False) as counter:
        PGD(0.05, 0.02, 3)(model, x, y)
    per_image = 2 * (6 * 27 * 36 + 24 * 5)
    assert counter.get_total_flops() == 3 * 2 * per_image * len(x)


def test_arrays_are_attacked_as_tensors_are() -> None:
    x, y = images()
    model = convnet().eval()
    attack = PGD(0.1, 0.05, 1, random_start=False)
    assert torch.equal(attack(model, x.numpy(), y.numpy()), attack(model, x, y))  # type: ignore[arg-type]


def test_what_is_no_tensor_is_refused_by_name() -> None:
    x, y = images()
    model = convnet().eval()
    attack = PGD(0.1, 0.05, 1)
    with pytest.raises(TypeError, match="labels is a str; a tensor or a NumPy array is needed"):
        attack(model, x, "labels.csv")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs is a NoneType; a tensor or a NumPy array is needed"):
        attack(model, None, y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the model returns a tuple, not logits"):
        attack(lambda inputs: (model(inputs), None), x, y)
    with pytest.raises(ValueError, match=r"steps must be a whole number of at least 1, not 2\.5"):
        PGD(0.1, 0.05, 2.5)  # type: ignore[arg-type]
