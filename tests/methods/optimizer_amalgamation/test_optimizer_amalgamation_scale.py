"""L2O-Scale: its cell, its averages and rates by hand, what it shares within and between tensors."""

from __future__ import annotations

import math

import pytest
import torch

from atlas.l2o import Layout, Replicas, load_policy, save_policy
from atlas.methods.optimizer_amalgamation import L2OScale
from atlas.methods.optimizer_amalgamation.scale import GRUCell

T64 = torch.float64
LAYOUT = Layout.of([(2, 2), (2,)])


def policy(seed: int = 0, heads: bool = True) -> L2OScale:
    torch.manual_seed(seed)
    made = L2OScale((4, 3, 2)).double()
    if heads:
        with torch.no_grad():
            for layer in (made.rate, made.direction, made.shortcut, made.gradient_decay):
                layer.weight.normal_(std=0.3)
    return made


def gradient(seed: int = 0, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=T64)


def test_cell_is_torchs() -> None:
    ours, theirs = GRUCell(3, 4).double(), torch.nn.GRUCell(3, 4).double()
    theirs.load_state_dict(ours.state_dict())
    x, h = torch.randn(5, 3, dtype=T64), torch.randn(5, 4, dtype=T64)
    assert torch.allclose(ours(x.T, h.T).T, theirs(x, h))


def test_starts_still_with_the_usual_decay() -> None:
    made, g = policy(heads=False), gradient()
    state = made.init_state(g, LAYOUT)
    update, new = made.step(g, state)
    assert bool((update == 0).all())
    for k in range(4):
        assert torch.allclose(new["gradients"][:, k], (1 - 0.9 ** (0.5**k)) * g)
        assert torch.allclose(new["squares"][:, k], (1 - 0.999 ** (0.5**k)) * g**2)
    assert torch.allclose(new["log_rate"], torch.full_like(g, math.log(1e-3)))
    with torch.no_grad():
        made.direction.bias.fill_(1.0)
    assert torch.allclose(made.step(g, state)[0], torch.full_like(g, -(1e-3 + 0.01)))


def test_relative_rates_have_mean_zero_per_tensor() -> None:
    made, g = policy(), gradient()
    _, new = made.step(g, made.init_state(g, LAYOUT))
    assert torch.allclose(new["relative"][:, :4].mean(1), torch.zeros(2, dtype=T64), atol=1e-12)
    assert torch.allclose(new["relative"][:, 4:].mean(1), torch.zeros(2, dtype=T64), atol=1e-12)


def test_coordinates_of_a_tensor_may_change_places_and_instances_do_not_mix() -> None:
    made = policy()
    order = torch.tensor([2, 0, 3, 1, 5, 4])
    plain, moved = (made.init_state(gradient(), LAYOUT) for _ in range(2))
    alone = made.init_state(gradient()[:1], LAYOUT)
    for step in range(3):
        g = gradient(step)
        (first, plain), (second, moved) = made.step(g, plain), made.step(g[:, order], moved)
        only, alone = made.step(g[:1], alone)
        assert torch.allclose(first[:, order], second)
        assert torch.allclose(first[:1], only)
    assert bool((first != 0).all())


def test_tensors_hear_of_each_other_one_step_later() -> None:
    made, g = policy(), gradient()
    other = g.clone()
    other[:, 4:] += 1
    state = made.init_state(g, LAYOUT)
    (first, one), (second, two) = made.step(g, state), made.step(other, state)
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.allclose(made.step(g, one)[0][:, :4], made.step(g, two)[0][:, :4])


def test_replicates_and_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = [policy(0), policy(1)]
    g = torch.stack([gradient(0), gradient(1)])
    together = Replicas(made)
    updates, _ = together.step(g, together.init_state(g, LAYOUT))
    for row, one in enumerate(made):
        assert torch.allclose(updates[row], one.step(g[row], one.init_state(g[row], LAYOUT))[0])
    save_policy(tmp_path / "scale.safetensors", made[0].float())
    again = load_policy(tmp_path / "scale.safetensors", {"L2OScale": L2OScale})
    state = again.init_state(g[0].float(), LAYOUT)
    assert torch.equal(again.step(g[0].float(), state)[0], made[0].step(g[0].float(), state)[0])
    with pytest.raises(ValueError, match="lr must be positive"):
        L2OScale(lr=0.0)
