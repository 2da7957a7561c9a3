"""Optimizers in Adam's place: copies, saved states, options of groups, complex and low-precision parameters."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atlas.l2o import ANALYTIC, L2ODM, LearnedOptimizer, Policy, analytic, load_policy, rnnprop, save_policy
from atlas.methods.anti_oversmoothing import param_groups
from atlas.methods.optimizer_amalgamation import AmalgamatedOptimizer, ChoicePolicy, L2OScale, Student, make_pool, teacher
from atlas.methods.optimizer_amalgamation.teachers import TEACHERS
from atlas.methods.symbolic_l2o import (
    ExpressionRule,
    InterpolationRule,
    PolynomialRule,
    SymbolicOptimizer,
    SymbolicPolicy,
    TanhTemplate,
    parse,
)

Make = Callable[[Any], torch.optim.Optimizer]
EQUATION = "-tanh(2 * m_0) - 0.1 * g_1 + 0.05 * ema0.9_3 * n_0"
FEATURES = ("m", "g", "n", "ema0.9")


def seeded(policy: Callable[[], Policy]) -> Policy:
    torch.manual_seed(7)
    return policy()


def spread(policy: Policy) -> Policy:
    """Numbers other than the zeros with which L2O-Scale starts and does not move."""
    with torch.no_grad():
        for number in policy.parameters():
            number.add_(torch.full_like(number, 0.05))
    return policy


POLICIES: dict[str, Callable[[], Policy]] = {
    **{name: lambda name=name: analytic(name, 0.01) for name in ANALYTIC},
    **{name: lambda name=name: teacher(name, 0.01) for name in TEACHERS},
    "rnnprop": lambda: rnnprop("rp-small", lr=0.03),
    "l2o-dm": lambda: L2ODM((5,)),
    "student": lambda: Student((6, 6)),
    "choice": lambda: ChoicePolicy(make_pool("small"), (5,)),
    "scale": lambda: spread(L2OScale()),
    "expression": lambda: SymbolicPolicy(ExpressionRule("-tanh(2 * m_0) - 0.1 * g_1", lags=3)),
    "template": lambda: SymbolicPolicy(TanhTemplate(lags=3)),
    "interpolation": lambda: SymbolicPolicy(InterpolationRule()),
    "polynomial": lambda: SymbolicPolicy(PolynomialRule(lags=2)),
}
OPTIMIZERS: dict[str, Make] = {
    "equation": lambda p: SymbolicOptimizer(p, EQUATION, features=FEATURES),
    "equation, foreach": lambda p: SymbolicOptimizer(p, EQUATION, features=FEATURES, foreach=True),
    "polynomial equation": lambda p: SymbolicOptimizer(p, PolynomialRule(lags=2)),
    "amalgamated": lambda p: AmalgamatedOptimizer(p, seeded(POLICIES["student"]), warmup_steps=2),
    "amalgamated choice": lambda p: AmalgamatedOptimizer(p, seeded(POLICIES["choice"]), warmup_steps=1),
    **{f"policy {name}": lambda p, make=make: LearnedOptimizer(p, seeded(make)) for name, make in POLICIES.items()},
}
FEW: dict[str, Make] = {
    name: OPTIMIZERS[name] for name in ("equation", "equation, foreach", "amalgamated", "policy rnnprop", "policy scale")
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
few = pytest.mark.parametrize("make", FEW.values(), ids=FEW.keys())


def saved_whole(pair: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "torch.save": saved_whole,
}
copied = pytest.mark.parametrize("twin", COPIES.values(), ids=COPIES.keys())


class Trainee(nn.Module):
    """Holds its optimizer, as some training frameworks have it."""

    def __init__(self, make: Make, two_groups: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        groups = [{"params": list(self.first.parameters()), "lr": 0.02}, {"params": list(self.second.parameters())}]
        self.optimizer = make(groups if two_groups else list(self.parameters()))

    def fit(self, *seeds: int) -> None:
        for seed in seeds:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
            self.optimizer.zero_grad()
            self.second(self.first(x).tanh()).square().mean().backward()
            self.optimizer.step()

    def numbers(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])


def go_on_alike(one: Trainee, other: Trainee) -> None:
    before = one.numbers()
    assert torch.equal(before, other.numbers())
    one.fit(5, 6, 7)
    other.fit(5, 6, 7)
    assert torch.equal(one.numbers(), other.numbers())
    assert not torch.equal(before, one.numbers())


@every
@copied
def test_a_copy_goes_on_as_the_original_does(make: Make, twin: Callable[[Any], Any]) -> None:
    trainee = Trainee(make, two_groups=True)
    trainee.fit(1, 2)
    go_on_alike(trainee, twin(trainee))


@few
@copied
def test_copies_at_other_times_go_on_too(make: Make, twin: Callable[[Any], Any]) -> None:
    """Before the first step, of a copy, after a state was loaded, and after a group was added."""
    go_on_alike(Trainee(make), twin(Trainee(make)))
    trainee, loaded = Trainee(make), Trainee(make)
    trainee.fit(1, 2)
    loaded.load_state_dict(trainee.state_dict())
    loaded.optimizer.load_state_dict(trainee.optimizer.state_dict())
    again = twin(twin(loaded))
    go_on_alike(trainee, again)
    for one in (trainee, again):
        torch.manual_seed(3)
        one.third = nn.Linear(2, 2)
        one.second = nn.Sequential(one.second, one.third)
        one.optimizer.add_param_group({"params": list(one.third.parameters()), "lr": 0.05})
        assert set(one.optimizer.param_groups[1]) == set(one.optimizer.param_groups[0])
    go_on_alike(trainee, twin(again))


@every
def test_a_saved_state_goes_on_as_the_original_does(make: Make) -> None:
    trainee, other = Trainee(make, two_groups=True), Trainee(make, two_groups=True)
    trainee.fit(1, 2)
    buffer = io.BytesIO()
    torch.save((trainee.state_dict(), trainee.optimizer.state_dict()), buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    other.load_state_dict(weights)
    other.optimizer.load_state_dict(state)
    trainee.fit(3)
    other.fit(3)
    assert torch.equal(trainee.numbers(), other.numbers())


def test_a_copy_is_apart_from_the_original_and_from_its_scheduler() -> None:
    trainee = Trainee(FEW["equation"])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(trainee.optimizer, 0.5)
    trainee.fit(1)
    scheduler.step()
    other = copy.deepcopy(trainee)
    kept = trainee.numbers()
    other.fit(2)
    assert torch.equal(trainee.numbers(), kept)
    assert "step" not in vars(other.optimizer)
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_can_be_copied_and_pickled(name: str) -> None:
    policy = POLICIES[name]()
    gen = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, 1, 6, generator=gen)
    for twin in COPIES.values():
        updates = []
        for one in (policy, twin(policy)):
            state = one.init_state(gradients[0])
            for g in gradients:
                update, state = one.step(g, state)
            updates.append(update)
        assert torch.equal(*updates)


def test_expressions_of_any_depth_can_be_copied_and_pickled() -> None:
    deep = sum((0.1 * parse(f"m_{lag}") for lag in range(200)), start=parse("g_0"))
    for expression in (parse("-tanh(2 * m_0) - pow(g_1, 0.5)"), deep):
        for twin in COPIES.values():
            assert str(twin(expression)) == str(expression)
        assert copy.copy(expression) == expression
    module = parse("2 * x + 1").module()
    assert torch.equal(pickle.loads(pickle.dumps(module))({"x": torch.ones(2)}), torch.full((2,), 3.0))


def test_a_loaded_student_can_make_optimizers_in_another_process(tmp_path: Any) -> None:
    from atlas.methods.optimizer_amalgamation import load

    save_policy(tmp_path / "student.safetensors", Student((4,)))
    maker = pickle.loads(pickle.dumps(load(tmp_path / "student.safetensors", warmup_steps=0)))
    assert isinstance(maker([nn.Parameter(torch.ones(2))]), AmalgamatedOptimizer)
    save_policy(tmp_path / "policy.safetensors", rnnprop("rp-small"))
    assert load_policy(tmp_path / "policy.safetensors").describe() == rnnprop("rp-small").describe()


# states of others


def stepped(make: Make, shapes: tuple[tuple[int, ...], ...] = ((3, 2), (4,))) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = make(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


STRANGERS: dict[str, tuple[Make, Make, str]] = {
    "terms": (lambda p: SymbolicOptimizer(p, "-m_0"), lambda p: SymbolicOptimizer(p, "-m_0 - 0.1 * g_0"), r"neg\(m_0\)"),
    "constants": (lambda p: SymbolicOptimizer(p, "-2 * m_0"), lambda p: SymbolicOptimizer(p, "-3 * m_0"), r"\(-2.0\) \* m_0"),
    "lags": (lambda p: SymbolicOptimizer(p, "-m_0 - m_3"), lambda p: SymbolicOptimizer(p, "-m_0 - m_5"), "m_3.*m_5"),
    "features": (lambda p: SymbolicOptimizer(p, "-m_0"), lambda p: SymbolicOptimizer(p, "-g_0"), "m_0.*g_0"),
    "sizes": (
        lambda p: LearnedOptimizer(p, seeded(lambda: rnnprop("rp-small"))),
        lambda p: LearnedOptimizer(p, seeded(rnnprop)),
        r"hidden=\[7\].*hidden=\[20, 20\]",
    ),
    "kind": (lambda p: LearnedOptimizer(p, analytic("adam", 0.1)), OPTIMIZERS["policy rnnprop"], "Adam.*RNNprop"),
    "settings": (
        lambda p: LearnedOptimizer(p, analytic("adam", 0.1, betas=(0.5, 0.9))),
        lambda p: LearnedOptimizer(p, analytic("adam", 0.1)),
        r"betas=\(0.5, 0.9\).*betas=\(0.9, 0.999\)",
    ),
    "numbers": (
        lambda p: LearnedOptimizer(p, rnnprop("rp-small")),
        lambda p: LearnedOptimizer(p, rnnprop("rp-small")),
        "numbers [0-9a-f]+;.*numbers [0-9a-f]+",
    ),
    "members": (
        lambda p: LearnedOptimizer(p, seeded(lambda: ChoicePolicy(make_pool("small"), (5,)))),
        lambda p: LearnedOptimizer(p, seeded(lambda: ChoicePolicy([analytic("adam", 1.0), analytic("sgd", 1.0)], (5,)))),
        r"AdamEma\(\).*SGD\(\)",
    ),
    "equation or policy": (OPTIMIZERS["equation"], OPTIMIZERS["amalgamated"], "was saved by .*tanh.*Student"),
    "rules of policies": (
        lambda p: LearnedOptimizer(p, SymbolicPolicy(ExpressionRule("-m_0"))),
        lambda p: LearnedOptimizer(p, SymbolicPolicy(ExpressionRule("-g_0"))),
        "m_0.*g_0",
    ),
}


@pytest.mark.parametrize(("first", "second", "message"), STRANGERS.values(), ids=STRANGERS.keys())
def test_the_state_of_another_rule_is_refused_and_changes_nothing(first: Make, second: Make, message: str) -> None:
    optimizer = stepped(second)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        optimizer.load_state_dict(stepped(first).state_dict())
    assert "\n" not in str(caught.value)
    assert str(optimizer.state_dict()) == str(before)


@few
def test_states_that_do_not_fit_are_refused(make: Make) -> None:
    """Of parameters of other sizes or numbers, of torch's optimizers, and of another rule where a tool dropped its name."""
    optimizer = stepped(make)
    with pytest.raises(ValueError, match=r"tensor \(3, 2\).*does not fit"):
        optimizer.load_state_dict(stepped(make, ((5, 2), (4,))).state_dict())
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters; here are groups of \[2\]"):
        optimizer.load_state_dict(stepped(make, ((3, 2),)).state_dict())
    with pytest.raises(ValueError, match="is not an option of the groups"):
        optimizer.load_state_dict(stepped(torch.optim.AdamW).state_dict())
    foreign = stepped(lambda p: SymbolicOptimizer(p, "-mom_0", features=("mom",))).state_dict()
    del foreign["rule"]
    with pytest.raises(ValueError, match=r"does not fit|not an option"):
        optimizer.load_state_dict(foreign)


@few
def test_a_state_without_the_name_of_its_rule_is_loaded_where_it_fits(make: Make) -> None:
    """Older states have neither it nor every option of the groups; the defaults stand in."""
    optimizer = stepped(make)
    state = copy.deepcopy(optimizer.state_dict())
    del state["rule"]
    for group in state["param_groups"]:
        group.pop("betas", None)
        del group["weight_decay"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["weight_decay"] == 0
    optimizer.step()


def test_the_scale_of_a_policy_may_differ_since_a_state_brings_its_own() -> None:
    first = stepped(lambda p: LearnedOptimizer(p, analytic("adam", 0.1)))
    second = stepped(lambda p: LearnedOptimizer(p, analytic("adam", 0.01)))
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.data.fill_(1.0)
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
    pairs = zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True)
    assert all(torch.allclose(one, other) for one, other in pairs)


# options of groups


def moved(make: Make, steps: int = 3, **options: Any) -> Tensor:
    weight = nn.Parameter(torch.linspace(1, 2, 5))
    optimizer = make([{"params": [weight], **options}])
    for step in range(steps):
        weight.grad = torch.linspace(-1, 1, 5) + step
        optimizer.step()
    return weight.detach()


@few
def test_a_groups_options_act_on_its_parameters(make: Make) -> None:
    plain = moved(make, 1)
    start = torch.linspace(1, 2, 5)
    rate = moved(make, 0).new_tensor(make([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"])
    assert torch.allclose(moved(make, 1, lr=float(rate) / 2) - start, (plain - start) / 2, atol=1e-6)
    decayed = moved(make, 1, weight_decay=0.5)
    assert torch.allclose(decayed, plain - rate * 0.5 * start, atol=1e-6)  # decoupled
    assert torch.equal(moved(make, weight_decay=0.0), moved(make))


@pytest.mark.parametrize("foreach", [False, True])
def test_a_groups_betas_are_those_of_an_optimizer_with_these_betas(foreach: bool) -> None:
    def make(betas: tuple[float, float] = (0.95, 0.95)) -> Make:
        return lambda p: SymbolicOptimizer(p, "-m_0 - 0.3 * g_1", betas=betas, foreach=foreach)

    assert torch.equal(moved(make(), betas=(0.2, 0.5)), moved(make((0.2, 0.5))))
    assert not torch.equal(moved(make(), betas=(0.2, 0.5)), moved(make()))
    ours = moved(lambda p: SymbolicOptimizer(p, "-m_0", clamp=None, foreach=foreach), 4, betas=(0.2, 0.5), lr=0.1)
    theirs = moved(lambda p: torch.optim.Adam(p, eps=1e-12), 4, betas=(0.2, 0.5), lr=0.1)
    assert torch.allclose(ours, theirs, atol=1e-6)


@few
def test_an_unknown_option_is_refused_by_name(make: Make) -> None:
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    message = r"momentum is not an option of the groups of \w+Optimizer; choose from lr, weight_decay"
    with pytest.raises(ValueError, match=message):
        make([{"params": [weight], "momentum": 0.9}])
    optimizer = make([weight])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [other], "momentum": 0.9})
    assert len(optimizer.param_groups) == 1
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["momentum"] = 0.9
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    for option, value in (("lr", -0.1), ("weight_decay", -1.0), ("lr", float("nan"))):
        with pytest.raises(ValueError, match=f"{option} must not be negative"):
            optimizer.add_param_group({"params": [other], option: value})


def test_betas_of_groups_are_checked_and_a_policy_has_none() -> None:
    weight = nn.Parameter(torch.ones(2))
    for betas, message in (((0.9, 1.0), r"betas\[1\] must be in \[0, 1\)"), ((0.9,), "betas must be two decay rates")):
        with pytest.raises(ValueError, match=message):
            SymbolicOptimizer([{"params": [weight], "betas": betas}], "-m_0")
    with pytest.raises(ValueError, match="betas is not an option of the groups of LearnedOptimizer"):
        LearnedOptimizer([{"params": [weight], "betas": (0.9, 0.9)}], rnnprop("rp-small"))


@few
def test_groups_of_a_treated_transformer_are_taken(make: Make) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    groups = param_groups(model, lr=1e-2, weight_decay=0.5)
    optimizer = make(groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    before = model.head.weight.detach().clone()
    plain = copy.deepcopy((model, optimizer))
    plain[1].param_groups[0]["weight_decay"] = 0.0
    for one, other in zip(plain[0].parameters(), model.parameters(), strict=True):
        one.grad = other.grad  # a copy of a parameter has no gradient
    for one in (optimizer, plain[1]):
        one.step()
    assert torch.allclose(plain[0].head.weight - model.head.weight, 1e-2 * 0.5 * before, atol=1e-6)


@few
@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR", "CosineAnnealingLR", "ReduceLROnPlateau"])
def test_schedulers_act_and_their_notes_are_loaded(make: Make, name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "LambdaLR": {"lr_lambda": lambda step: 0.0},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 10, "cycle_momentum": False},
        "CosineAnnealingLR": {"T_max": 4},
        "ReduceLROnPlateau": {"patience": 0},
    }
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight])
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options[name])
    rate = optimizer.param_groups[0]["lr"]
    weight.grad = torch.ones(3)
    optimizer.step()
    moved = not torch.equal(weight.detach(), torch.ones(3))
    assert moved == (rate > 0)
    for loss in (1.0, 2.0):
        scheduler.step(loss) if name == "ReduceLROnPlateau" else scheduler.step()
    assert optimizer.param_groups[0]["lr"] != rate or rate == 0
    other = make([nn.Parameter(torch.ones(3))])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_cycle_of_momentum_moves_the_first_beta() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SymbolicOptimizer([weight], "-m_0")
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    weight.grad = torch.ones(3)
    optimizer.step()
    first = optimizer.param_groups[0]["betas"]
    scheduler.step()
    assert optimizer.param_groups[0]["betas"][0] < first[0]
    optimizer.step()


# complex and low-precision parameters


def run(make: Make, parameters: list[Tensor], gradients: list[Tensor], steps: int = 3) -> list[Tensor]:
    leaves = [nn.Parameter(parameter.clone()) for parameter in parameters]
    optimizer = make(leaves)
    for step in range(1, steps + 1):
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = (gradient * step).clone()
        optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    return [leaf.detach() for leaf in leaves]


@every
def test_complex_parameters_are_stepped_as_pairs_of_real_ones(make: Make) -> None:
    """Beside a real one in the same group, of any number of axes, transposed, and of double precision."""
    gen = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(4, 3, dtype=torch.complex64, generator=gen),
        torch.randn(3, 2, dtype=torch.complex64, generator=gen).T,
        torch.randn(2, generator=gen),
        torch.randn((), dtype=torch.complex64, generator=gen),
    ]
    gradients = [torch.randn(part.shape, dtype=part.dtype, generator=gen) for part in parts]
    wide = [part.to(torch.complex128 if part.is_complex() else torch.float64) for part in parts]

    def real(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.view_as_real(one) if one.is_complex() else one for one in tensors]

    for start in (parts, wide):
        slopes = [slope.to(one.dtype) for slope, one in zip(gradients, start, strict=True)]
        whole, halves = run(make, start, slopes), run(make, real(start), real(slopes))
        for one, other in zip(real(whole), halves, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


@few
def test_conjugate_gradients_are_stepped_and_conjugate_views_refused(make: Make) -> None:
    start, slope = torch.tensor([1 + 2j, -1 - 0.5j]), torch.tensor([0.5 - 1j, 0.25 + 2j])
    lazy = slope.resolve_conj().conj()
    assert lazy.is_conj()
    steps = []
    for gradient in (lazy, lazy.resolve_conj()):
        leaf = nn.Parameter(start.clone())
        leaf.grad = gradient
        make([leaf]).step()
        steps.append(leaf.detach())
    assert torch.equal(*steps)
    optimizer = make([leaf])
    with pytest.raises(ValueError, match="conjugate view cannot be a parameter"):
        optimizer.add_param_group({"params": [nn.Parameter(start.conj())]})
    assert len(optimizer.param_groups) == 1


@few
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex32], ids=str)
def test_low_precision_parameters_follow_those_in_single_precision(make: Make, dtype: torch.dtype) -> None:
    """State and computation stay in float32; only what is stored of a parameter is rounded."""
    warnings.filterwarnings("ignore", "ComplexHalf")
    wide = torch.complex64 if dtype.is_complex else torch.float32
    start, slope = torch.tensor([1.0, -2.0, 0.5]).to(wide), torch.tensor([0.25, -1.0, 2.0]).to(wide)
    if dtype.is_complex:
        start, slope = start + 1j, slope - 0.5j
    low = run(make, [start.to(dtype)], [slope.to(dtype)])[0]
    assert low.dtype == dtype
    high = run(make, [start], [slope])[0]
    assert torch.allclose(low.to(wide), high, atol=4e-2 if dtype == torch.bfloat16 else 5e-3)
    assert not torch.allclose(low.to(wide), start, atol=5e-3)


@few
def test_sparse_gradients_are_refused(make: Make) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients are not supported"):
        make([weight]).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


@few
def test_a_broken_complex_gradient_waits(make: Make) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = make([weight])
    weight.grad = torch.tensor([1 + 1j, complex(0, float("nan"))])
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.complex64, 4), (torch.float64, 8), (torch.bfloat16, 4)])
def test_bytes_of_state_are_counted_per_real_scalar(dtype: torch.dtype, size: int) -> None:
    weight = nn.Parameter(torch.ones(100, dtype=dtype))
    weight.grad = torch.ones(100, dtype=dtype)
    makers: list[tuple[Make, int]] = [(lambda p: SymbolicOptimizer(p, "-m_0"), 2), (OPTIMIZERS["policy momentum"], 1)]
    for make, moments in makers:
        optimizer: Any = make([weight])
        assert optimizer.state_bytes_per_parameter() == 0
        optimizer.step()
        assert optimizer.state_bytes_per_parameter() == pytest.approx(size * moments, rel=0.02)  # and a counter


@few
@pytest.mark.parametrize("types", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_a_state_is_loaded_by_parameters_of_another_precision(make: Make, types: tuple[torch.dtype, torch.dtype]) -> None:
    """As torch's optimizers do: training goes on in the new precision, from the same state."""
    slopes = [torch.tensor([0.25, -1.0, 2.0]), torch.tensor([1.0, 0.5, -2.0])]
    weights = [nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=dtype)) for dtype in types]
    one, other = (make([weight]) for weight in weights)
    weights[0].grad = slopes[0].to(types[0])
    one.step()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        weights[1].copy_(weights[0])
    for optimizer, weight in zip((one, other), weights, strict=True):
        weight.grad = slopes[1].to(weight)
        optimizer.step()
    assert torch.allclose(weights[1].float(), weights[0].float(), atol=1e-6)
    assert weights[1].dtype == types[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_a_policy_in_double_precision_steps_parameters_of_every_type(dtype: torch.dtype) -> None:
    start = torch.tensor([1.0, -2.0, 0.5]).to(dtype)
    ends = []
    for policy in (seeded(POLICIES["rnnprop"]), seeded(POLICIES["rnnprop"]).double()):
        weight = nn.Parameter(start.clone())
        weight.grad = torch.tensor([0.25, -1.0, 2.0]).to(dtype)
        LearnedOptimizer([weight], policy).step()
        ends.append(weight.detach())
    assert torch.allclose(*ends, atol=1e-5)
    assert not torch.allclose(ends[1], start, atol=1e-3)


@few
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_resumes_as_if_it_had_not_stopped(make: Make, dtype: torch.dtype) -> None:
    """The state is wider than such parameters, and torch's own loading would round it to theirs."""
    random = torch.Generator().manual_seed(5)
    start, *slopes = (torch.randn(40, generator=random).to(dtype) for _ in range(13))

    def made(weight: nn.Parameter) -> Any:
        torch.manual_seed(6)  # a learned optimizer's own weights
        return make([weight])

    ends = []
    for stops in (False, True):
        weight = nn.Parameter(start.clone())
        optimizer = made(weight)
        for step, slope in enumerate(slopes):
            if stops and step == 3:
                state, optimizer = copy.deepcopy(optimizer.state_dict()), made(weight)
                optimizer.load_state_dict(state)
            weight.grad = slope.clone()
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)
