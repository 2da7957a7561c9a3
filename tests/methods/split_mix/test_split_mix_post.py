"""Statistics after training reach the norms that act, all of them, and a model in which a pass fails is as before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atlas.methods.split_mix import BatchNorm, DualNorm, NormSpec, post_statistics, set_norm_mode, set_robustness
from atlas.methods.split_mix.norms import ConditionalNorm

IMAGES = [torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def dual(stats: str = "batch", kind: str = "dual_bn") -> nn.Sequential:
    lams = (0.0, 0.5, 1.0) if kind == "film_bn" else ()
    norm = NormSpec(kind, stats, lams=lams).layer(4)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten()).eval()


def norm_of(net: nn.Sequential) -> DualNorm:
    norm = net[1]
    assert isinstance(norm, DualNorm)
    return norm


def expected(net: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Means over the batches of the means and unbiased variances that reach the norm."""
    with torch.no_grad():
        seen = [net[0](batch).transpose(0, 1).flatten(1) for batch in IMAGES]
    return torch.stack([own.mean(1) for own in seen]).mean(0), torch.stack([own.var(1) for own in seen]).mean(0)


def has_statistics(norm: BatchNorm, net: nn.Sequential) -> bool:
    mean, var = expected(net)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return torch.allclose(norm.running_mean, mean, atol=1e-5) and torch.allclose(norm.running_var, var, atol=1e-5)


@pytest.mark.parametrize("mode", ["clean", "noise"])
@pytest.mark.parametrize("stats", ["batch", "tracked"])
def test_the_norm_that_does_not_act_is_left_alone(mode: str, stats: str) -> None:
    net = dual(stats)
    norm = norm_of(net)
    acts, idle = (norm.clean, norm.noise) if mode == "clean" else (norm.noise, norm.clean)
    if idle.running_mean is not None:
        idle.running_mean.fill_(3.0)
    set_robustness(net, 0.5)
    set_norm_mode(net, mode)  # type: ignore[arg-type]
    post_statistics(net, IMAGES, 2)
    assert has_statistics(acts, net)
    if stats == "tracked":
        assert idle.running_mean is not None
        assert idle.running_var is not None
        assert torch.equal(idle.running_mean, torch.full((4,), 3.0))
        assert torch.equal(idle.running_var, torch.ones(4))
    else:
        assert idle.running_mean is None
        assert idle.running_var is None


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_both_norms_of_a_mixture_have_statistics(lam: float) -> None:
    net = dual()
    set_robustness(net, lam)
    assert post_statistics(net, IMAGES, 2) is net
    assert has_statistics(norm_of(net).clean, net)
    assert has_statistics(norm_of(net).noise, net)
    assert (norm_of(net).mode, norm_of(net).lam) == ("mix", lam)
    assert not any(module.training for module in net.modules())
    single = net(IMAGES[0][:1])  # nothing depends on the batch any more
    assert torch.allclose(single, net(IMAGES[0])[:1], atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_a_conditional_norm_uses_one_of_the_two(lam: float) -> None:
    net = dual(kind="film_bn")
    norm = net[1]
    assert isinstance(norm, ConditionalNorm)
    set_robustness(net, lam)
    post_statistics(net, IMAGES, 2)
    acts, idle = (norm.clean, norm.noise) if lam == 0 else (norm.noise, norm.clean)
    assert has_statistics(acts, net)
    assert idle.running_mean is None


@pytest.mark.parametrize("mode", ["clean", "mix"])
def test_a_pass_that_fails_changes_nothing(mode: str) -> None:
    net = dual("tracked")
    net[0].train()
    norm = norm_of(net)
    norm.mode, norm.lam = mode, 0.5  # type: ignore[assignment]
    for each in (norm.clean, norm.noise):
        each.running_mean.fill_(3.0)  # type: ignore[union-attr]
    training = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError):
        post_statistics(net, [IMAGES[0], torch.rand(8, 3, 6, 6)])
    assert [module.training for module in net.modules()] == training
    for each in (norm.clean, norm.noise):
        assert each.momentum == 0.1
        assert torch.equal(each.running_mean, torch.full((4,), 3.0))  # type: ignore[arg-type]
        assert torch.equal(each.running_var, torch.ones(4))  # type: ignore[arg-type]
