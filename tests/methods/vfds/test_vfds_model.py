"""The selective GRU: identity with nn.GRU, foresight, groups, padding, streaming, sweeps, and the fused pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atlas.methods.vfds import (
    FeatureGroups,
    FixedMask,
    Random,
    Rollout,
    SelectiveGRU,
    Sweep,
    arm_loss,
    fit,
    replace_rnn,
    selection_loss,
)
from atlas.methods.vfds.recurrence import gated_rollout, library_rollout, ungated_rollout
from atlas.methods.vfds.rollout import Gating, Layer, plain_rollout

B, T, D, H, C = 3, 7, 5, 6, 4


def make(seed: int = 0, features: int = D, dtype: torch.dtype = torch.float32, **options: Any) -> SelectiveGRU:
    torch.manual_seed(seed)
    return SelectiveGRU(features, H, C, **options).to(dtype)


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("policy", ["none", "open", "masked"])
def test_with_all_gates_open_it_is_a_gru(layers: int, policy: str) -> None:
    torch.manual_seed(0)
    gru, head = nn.GRU(D, H, num_layers=layers, batch_first=True), nn.Linear(H, C)
    chosen = {"none": "none", "open": "dynamic", "masked": FixedMask(torch.ones(D))}[policy]
    model = replace_rnn(gru, output=head, policy=chosen)
    if policy == "open":
        model.selector.bias.data.fill_(50.0)
        model.selector.weight.data.zero_()
    x = draw(B, T, D)
    rollout = model(x, gates="threshold")
    assert (rollout.logits - head(gru(x)[0])).abs().max() < 1e-6
    assert (rollout.hidden - gru(x)[0]).abs().max() < 1e-6
    assert rollout.gates.min() == 1
    if policy == "open":
        soft = model(x, noise=uniform(T, B, D))
        assert (soft.logits - head(gru(x)[0])).abs().max() < 1e-6


@pytest.mark.parametrize("append_mask", [False, True])
def test_frozen_weights_stay_frozen_and_gates_learn(append_mask: bool) -> None:
    torch.manual_seed(0)
    gru, head = nn.GRU(D, H, batch_first=True).requires_grad_(False), nn.Linear(H, C)
    head.bias.requires_grad_(False)
    model = replace_rnn(gru, output=head, append_mask=append_mask)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert wanted == {"output.weight", *(f"selector.{name}" for name, _ in model.selector.named_parameters())}
    model(draw(B, T, D), noise=uniform(T, B, D)).logits.square().mean().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == wanted


def test_lengths_are_a_tensor() -> None:
    with pytest.raises(TypeError, match=rf"lengths is a list; a tensor of shape \({B},\) is needed"):
        replace_rnn(nn.GRU(D, H))(draw(B, T, D), lengths=[1] * B)  # type: ignore[arg-type]


def test_replacing_copies_and_refuses() -> None:
    gru = nn.GRU(D, H)
    model = replace_rnn(gru)
    assert torch.equal(model.weight_ih_l0, gru.weight_ih_l0)
    x = draw(B, T, D)
    assert (replace_rnn(gru, policy="none")(x).logits - gru(x.transpose(0, 1))[0].transpose(0, 1)).abs().max() < 1e-6
    assert replace_rnn(gru, 3)(x).logits.shape == (B, T, 3)
    with_mask = replace_rnn(gru, policy="none", append_mask=True)
    assert (with_mask(x).logits - replace_rnn(gru, policy="none")(x).logits).abs().max() < 1e-6
    for wrong in (nn.GRU(D, H, bidirectional=True), nn.GRU(D, H, bias=False), nn.GRU(D, H, 2, dropout=0.1)):
        with pytest.raises(ValueError, match="one direction"):
            replace_rnn(wrong)
    with pytest.raises(ValueError, match="the head takes"):
        replace_rnn(gru, output=nn.Linear(H + 1, C))


def test_closed_gates_ignore_the_data() -> None:
    model = make()
    model.selector.bias.data.fill_(-50.0)
    x, other = draw(B, T, D), draw(B, T, D, seed=9)
    other[:, 0] = x[:, 0]
    assert torch.equal(model(x, gates="threshold").logits, model(other, gates="threshold").logits)
    assert model(x, gates="threshold").gates[:, 1:].sum() == 0


@pytest.mark.parametrize("relaxation", ["concrete", "st", "st-concrete"])
@pytest.mark.parametrize("fused", [True, False])
def test_foresight(relaxation: Any, fused: bool) -> None:
    model = make(relaxation=relaxation, temperature=0.5, fused=fused)
    x = draw(B, T, D).requires_grad_()
    rollout = model(x, noise=uniform(T, B, D))
    for step in range(1, T):
        of_gate = torch.autograd.grad(rollout.gates[:, step].sum(), x, retain_graph=True)[0]
        assert of_gate[:, step:].abs().max() == 0
        assert of_gate[:, :step].abs().max() > 0
        of_output = torch.autograd.grad(rollout.logits[:, step].sum(), x, retain_graph=True)[0]
        assert step == T - 1 or of_output[:, step + 1 :].abs().max() == 0


@pytest.mark.parametrize("policy", ["dynamic", "static", FixedMask(torch.tensor([1, 0, 1, 0, 0])), Random(0.5)])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("gates", ["sample", "threshold"])
def test_what_is_not_acquired_changes_nothing(policy: Any, fused: bool, gates: Any) -> None:
    model, noise = make(policy=policy, fused=fused), uniform(T, B, D)
    x = draw(B, T, D)
    rollout = model(x, noise=noise, gates=gates)
    absent = rollout.gates == 0
    assert absent.any()
    assert not absent[:, 0].any()
    for replacement in (math.nan, 1e6):
        again = model(torch.where(absent, replacement, x), noise=noise, gates=gates)
        assert torch.equal(again.logits, rollout.logits)
        assert torch.equal(again.gates, rollout.gates)


def test_gates_of_the_modes() -> None:
    noise, x = uniform(T, B, D), draw(B, T, D)
    concrete, straight, arm = (make(relaxation=name) for name in ("concrete", "st", "arm"))
    soft = concrete(x, noise=noise).gates[:, 1:]
    assert ((soft > 0) & (soft < 1)).any()
    first = concrete(x, noise=noise, gates="sample")
    probability = torch.sigmoid(first.gate_logits)
    assert torch.equal(first.gates[:, 1:], (noise.transpose(0, 1) > 1 - probability).float()[:, 1:])
    for model in (straight, arm):  # the other direction of the comparison
        sampled = model(x, noise=noise, gates="sample")
        assert torch.equal(sampled.gates[:, 1:], (noise.transpose(0, 1) < torch.sigmoid(sampled.gate_logits)).float()[:, 1:])
    decided = concrete(x, gates="threshold")
    assert torch.equal(decided.gates[:, 1:], (decided.gate_logits > 0).float()[:, 1:])
    assert decided.gates[:, 0].min() == 1
    assert decided.gate_logits[:, 0].abs().max() == 0


def test_attention_multiplies_its_input_after_the_first_step() -> None:
    model = make(policy="attention", attention_threshold=0.75)
    model.selector.weight.data.zero_()
    model.selector.bias.data = torch.tensor([3.0, 0.0, 3.0, 0.0, 1.0])
    x = draw(B, T, D)
    kept = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    plain = make(policy="none")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("selector")})
    hard = model(x, gates="threshold")
    assert torch.equal(hard.gates[:, 1:], kept.expand(B, T - 1, D))
    inputs = torch.cat([x[:, :1], 4 * kept * x[:, 1:]], 1)
    assert (hard.logits - plain(inputs).logits).abs().max() < 1e-6
    soft = model(x)
    weights = torch.sigmoid(model.selector.bias)
    inputs = torch.cat([x[:, :1], 4 * weights * x[:, 1:]], 1)
    assert (soft.logits - plain(inputs).logits).abs().max() < 1e-6


def test_logit_scale_and_first_step() -> None:
    x = draw(B, T, D)
    one, five = make(), make(logit_scale=5.0)
    start = one(x, gates="threshold").gate_logits[:, 1]
    assert torch.allclose(five(x, gates="threshold").gate_logits[:, 1], 5 * start, atol=1e-5)
    assert make(first_step="none")(x, gates="threshold").gates[:, 0].max() == 0
    mask = torch.tensor([True, False, False, True, False])
    assert torch.equal(make(first_step=mask)(x, gates="threshold").gates[:, 0], mask.float().expand(B, D))
    free = make(first_step="policy")
    free.selector.bias.data = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert torch.equal(free(x, gates="threshold").gates[0, 0], torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))


@pytest.mark.parametrize("policy", ["dynamic", "static", "attention"])
def test_group_gates(policy: Any) -> None:
    noise, x, y = uniform(T, B, D), draw(B, T, D), torch.randint(C, (B, T), generator=torch.Generator().manual_seed(3))
    plain, grouped = make(policy=policy), make(policy=policy, groups=FeatureGroups(torch.arange(D), torch.ones(D)))
    assert torch.equal(plain(x, noise=noise).logits, grouped(x, noise=noise).logits)

    groups = FeatureGroups(torch.tensor([0, 1, 0, 2, 1]), torch.tensor([1.0, 3.0, 0.5]))
    model = make(policy=policy, groups=groups, temperature=0.5)
    noise = uniform(T, B, 3)
    rollout = model(x, noise=noise)
    assert rollout.gates.shape == (B, T, 3)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = make(policy=policy, groups=FeatureGroups(groups.groups[order], groups.cost), temperature=0.5)
    turned.load_state_dict({**model.state_dict(), "weight_ih_l0": model.weight_ih_l0[:, order]})
    again = turned(x[..., order], noise=noise)
    losses = [selection_loss(found, y, cost=groups.cost, lam=1.0).total for found in (rollout, again)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-6)
    # all features of a group share its gate: closing one group silences exactly its features
    closed = make(policy=FixedMask(torch.tensor([1, 0, 1])), groups=groups)
    silent = torch.where(torch.tensor([False, True, False, False, True]), math.nan, x)
    silent[:, 0] = x[:, 0]
    assert torch.equal(closed(silent, gates="threshold").logits, closed(x, gates="threshold").logits)


@pytest.mark.parametrize("policy", ["dynamic", "static", "attention"])
def test_sequences_of_a_batch_are_independent(policy: Any) -> None:
    model, x, noise = (
        make(policy=policy, dtype=torch.double),
        draw(B, T, D, dtype=torch.double),
        uniform(T, B, D, dtype=torch.double),
    )
    together = model(x, noise=noise)
    for index in range(B):
        alone = model(x[index : index + 1], noise=noise[:, index : index + 1])
        assert torch.allclose(alone.logits[0], together.logits[index], atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"n_layers": 2}, {"policy": "static"}, {"policy": "attention"}, {"policy": "none"},
                                     {"append_mask": True}, {"groups": FeatureGroups([0, 1, 1, 2, 0], [1.0, 1.0, 2.0])},
                                     {"first_step": "policy"}, {"policy": FixedMask(torch.tensor([1, 0, 0, 1, 0]))}])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_streaming_repeats_the_forward_pass(options: dict[str, Any], batch: int) -> None:
    model, x = make(**options), draw(batch, T, D)
    whole = model(x, gates="threshold")
    policy = model.stream(batch)
    for step in range(T):
        wanted = policy.request()
        assert torch.equal(wanted, whole.gates[:, step] > 0)
        assert torch.equal(policy.request(), wanted)
        values = torch.where(model.groups.expand(wanted), x[:, step], math.nan)
        assert (policy.observe(values) - whole.logits[:, step]).abs().max() < 1e-5
    policy.reset()
    assert torch.equal(policy.request(), whole.gates[:, 0] > 0)


def test_streaming_refuses_values_that_were_not_asked_for_in_time() -> None:
    model = make()
    policy = model.stream()
    values = draw(1, D)
    with pytest.raises(RuntimeError, match="request"):
        policy.observe(values)
    policy.request()
    with pytest.raises(ValueError, match="a requested value is NaN"):
        policy.observe(torch.full_like(values, math.nan))
    with pytest.raises(ValueError, match="shape"):
        policy.observe(draw(2, D))
    policy.observe(values)
    with pytest.raises(RuntimeError):
        policy.observe(values)
    for wrong in ({"batch": 0}, {"gates": "relaxed"}):
        with pytest.raises(ValueError):
            model.stream(**wrong)
    sampled = [model.stream(4, "sample", torch.Generator().manual_seed(5)) for _ in range(2)]
    for _ in range(3):
        first, second = (stream.request() for stream in sampled)
        assert torch.equal(first, second)
        for stream in sampled:
            stream.observe(draw(4, D))


def test_padding_equals_truncation() -> None:
    model = make(temperature=0.5)
    x, noise = draw(B, T, D), uniform(T, B, D)
    y = torch.randint(C, (B, T), generator=torch.Generator().manual_seed(3))
    short = 4
    cut = selection_loss(model(x[:, :short], noise=noise[:short]), y[:, :short], cost=model.groups.cost, lam=1.0)
    padded = x.clone()
    padded[:, short:] = math.nan
    lengths = torch.full((B,), short)
    for norm in ("steady", "official"):
        cut = selection_loss(
            model(x[:, :short], noise=noise[:short]), y[:, :short], cost=model.groups.cost, lam=1.0, cost_norm=norm
        )
        whole = selection_loss(model(padded, lengths=lengths, noise=noise), y, cost=model.groups.cost, lam=1.0, cost_norm=norm)
        for name in ("total", "task", "cost_fraction"):
            assert float(getattr(cut, name)) == pytest.approx(float(getattr(whole, name)), abs=1e-6)
    lengths = torch.tensor([4, 7, 1])
    padded = torch.where(torch.arange(T)[:, None] < lengths[:, None, None], x, math.nan)
    rollout = model(padded, lengths=lengths, noise=noise, gates="sample")
    assert rollout.gates[0, 4:].sum() == 0
    assert rollout.logits.isfinite().all()
    with pytest.raises(ValueError, match="lengths"):
        model(x, lengths=torch.tensor([0, 1, 2]))


def test_a_single_feature_is_not_squeezed_away() -> None:
    model = make(features=1)
    assert model(draw(B, T, 1), noise=uniform(T, B, 1)).gates.shape == (B, T, 1)
    assert model(draw(B, 1, 1)).logits.shape == (B, 1, C)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("slope", ["relaxed", "sigmoid", "none"])
def test_fused_gradients_are_autograds(layers: int, hard: bool, slope: Any) -> None:
    if slope != "relaxed" and not hard:
        pytest.skip("soft gates have the slope of the relaxation")
    make_double = {"dtype": torch.double}
    weights = []
    for index in range(layers):
        columns = D if index == 0 else H
        shapes = ((3 * H, columns), (3 * H, H), (3 * H,), (3 * H,))
        weights.append(Layer(*(0.5 * draw(*shape, seed=10 * index + k, **make_double) for k, shape in enumerate(shapes))))
    index = torch.tensor([0, 1, 1, 2, 0])
    selector = (draw(3, H, seed=50, **make_double), draw(3, seed=51, **make_double))
    x, offset = draw(T, B, D, **make_double), draw(T, B, 3, seed=52, **make_double)
    gating = Gating(hard, slope, 0.7, 1.3, 0.1, 1.5, index, torch.ones(3, dtype=torch.double))
    leaves = [tensor.requires_grad_() for tensor in (x, *selector, *(part for layer in weights for part in layer))]
    mixing = [draw(T, B, size, seed=60 + size, **make_double) for size in (H, 3, 3)]
    found = []
    for run in (gated_rollout, plain_rollout):
        out = run(x, offset, selector, weights, gating)
        loss = sum((part * mix).sum() for part, mix in zip(out, mixing, strict=True) if part.requires_grad)
        found.append([*out, *torch.autograd.grad(loss, leaves)])
    for fused, plain in zip(*found, strict=True):
        assert (fused - plain).abs().max() < 1e-12
    if not hard:

        def of_leaves(*parts: Tensor) -> tuple[Tensor, ...]:
            layers_ = [Layer(*parts[3 + 4 * k : 7 + 4 * k]) for k in range(layers)]
            return gated_rollout(parts[0], offset, parts[1:3], layers_, gating)

        assert torch.autograd.gradcheck(of_leaves, leaves, fast_mode=True)


@pytest.mark.parametrize("policy", ["dynamic", "static", "attention", "none"])
def test_a_sweep_is_its_models(policy: Any) -> None:
    models = [make(seed, policy=policy, dtype=torch.double) for seed in range(3)]
    sweep = Sweep(models)
    x, noise = draw(B, T, D, dtype=torch.double), uniform(T, B, D, dtype=torch.double)
    y = torch.randint(C, (B, T), generator=torch.Generator().manual_seed(3))
    lams = torch.tensor([0.1, 1.0, 2.0])
    loss = selection_loss(sweep(x, noise=noise), y, cost=torch.ones(D), lam=lams)
    assert loss.total.shape == (3,)
    loss.total.sum().backward()
    for index in range(3):
        alone = make(index, policy=policy, dtype=torch.double)
        single = selection_loss(alone(x, noise=noise), y, cost=torch.ones(D), lam=float(lams[index]))
        single.total.backward()
        assert float(single.total) == pytest.approx(float(loss.total[index]), abs=1e-12)
        for (name, stacked), own in zip(sweep.named_parameters(), alone.parameters(), strict=True):
            assert (stacked.grad[index] - own.grad).abs().max() < 1e-12, name
        assert torch.equal(sweep.model(index)(x, noise=noise).logits, alone(x, noise=noise).logits)
    with pytest.raises(ValueError, match="same shapes"):
        Sweep([make(), make(features=D + 1)])
    with pytest.raises(ValueError, match="at least one"):
        Sweep([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"relaxation": "hard"}, "no relaxation hard"),
        ({"policy": "greedy"}, "no policy greedy"),
        ({"policy": Random(1.5)}, r"\[0, 1\]"),
        ({"policy": FixedMask(torch.ones(2))}, "must have shape"),
        ({"first_step": "some"}, "no first_step some"),
        ({"first_step": torch.ones(2, dtype=torch.bool)}, "first_step must have shape"),
        ({"groups": FeatureGroups([0], [1.0])}, "1 features"),
        ({"attention_threshold": 1.0}, "attention_threshold"),
        ({"n_layers": 0}, "n_layers"),
        ({"logit_scale": math.nan}, "logit_scale"),
    ],
)
def test_models_refuse_what_they_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_forward_refuses_what_does_not_fit() -> None:
    model = make()
    for x in (draw(B, T, D + 1), draw(B, D), draw(B, 0, D)):
        with pytest.raises(ValueError):
            model(x)
    with pytest.raises(ValueError, match="noise must have shape"):
        model(draw(B, T, D), noise=uniform(T, B, D + 1))
    with pytest.raises(ValueError, match="no soft gates"):
        model(draw(B, T, D), gates="soft")  # type: ignore[arg-type]
    for relaxation in ("arm", "arm-unbiased"):
        with pytest.raises(ValueError, match="no relaxed gates"):
            make(relaxation=relaxation)(draw(B, T, D))


def test_noise_comes_from_the_generator() -> None:
    model, x = make(), draw(B, T, D)
    runs = [model(x, gates="sample", generator=torch.Generator().manual_seed(seed)).gates for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert isinstance(model(x), Rollout)


def test_the_library_s_gru_is_the_same_and_is_told_whether_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN refuses a backward pass of a GRU that was called as if for evaluation."""
    told = []
    gru = torch.gru

    def watched(*args: Any, train: bool, **options: Any) -> Any:
        told.append(train)
        return gru(*args, train=train, **options)

    monkeypatch.setattr(torch, "gru", watched)
    model = make(policy="none", n_layers=2, dtype=torch.double)
    inputs = draw(T, B, D, dtype=torch.double).requires_grad_()
    own, theirs = ungated_rollout(inputs, model.layers), library_rollout(inputs, model.layers)
    torch.testing.assert_close(own, theirs)
    first, second = (torch.autograd.grad(out.square().sum(), inputs)[0] for out in (own, theirs))
    torch.testing.assert_close(first, second)
    with torch.no_grad():
        library_rollout(inputs, model.layers)
    assert told == [True, False]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("options", [{}, {"published": True}, {"unbiased": True}, {"detach_policy_input": True}])
def test_a_pair_s_gradients_are_autograds(layers: int, options: dict[str, Any]) -> None:
    """The fused pass goes back through one trajectory of the pair where the estimator differentiates only that."""
    made = [make(dtype=torch.float64, relaxation="arm", n_layers=layers, fused=fused) for fused in (True, False)]
    made[1].load_state_dict(made[0].state_dict())
    gradients = []
    for model in made:
        x, noise = (uniform(*shape, dtype=torch.float64) for shape in ((B, T, D), (T, B, D)))
        y = torch.arange(B * T).view(B, T) % C
        x.requires_grad_()
        loss = arm_loss(model, x, y, lam=0.7, noise=noise, lengths=torch.arange(B) % T + 1, **options)
        loss.total.backward()
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    for fused, plain in zip(*gradients, strict=True):
        assert plain is not None
        assert (fused - plain).abs().max() < 1e-12


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"policy": "attention"}, {"first_step": "none"}, {"logit_scale": 5.0}])
def test_models_of_a_sweep_differ_in_their_weights_alone(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="differ in their weights alone"):
        Sweep([make(temperature=0.05), make(**{"temperature": 0.05, **change})])


def test_a_sweep_leaves_its_models_as_they_are() -> None:
    models = [make(seed) for seed in range(2)]
    before = {name: value.clone() for name, value in models[0].state_dict().items()}
    sweep = Sweep(models)
    assert torch.equal(sweep.model(1).output.weight, models[1].output.weight)
    assert all(torch.equal(before[name], value) for name, value in models[0].state_dict().items())


def test_a_stream_that_begins_anew_has_the_weights_that_the_model_has() -> None:
    model, other, x = make(0), make(1), draw(1, T, D)
    policy = model.stream()
    model.load_state_dict(other.state_dict())
    policy.reset()
    whole = other(x, gates="threshold").logits
    for step in range(T):
        policy.request()
        assert (policy.observe(x[:, step]) - whole[:, step]).abs().max() < 1e-5


def test_a_sweep_refuses_models_whose_features_cost_otherwise() -> None:
    one, other = (make(features=2, groups=FeatureGroups([0, 1], cost), relaxation="arm") for cost in ([1.0, 3.0], [3.0, 1.0]))
    with pytest.raises(ValueError, match="differ"):
        Sweep([one, other])
    Sweep([one, one])


def test_fit_trains_whether_or_not_its_caller_takes_gradients() -> None:
    x, y = draw(8, T, D), torch.randint(0, C, (8, T), generator=torch.Generator().manual_seed(0))
    plain = fit(make(), (x, y), lam=0.1, steps=2, progress=False)
    for around in (torch.no_grad(), torch.inference_mode()):
        model = make()
        with around:
            assert fit(model, (x, y), lam=0.1, steps=2, progress=False) == plain
