"""Progressive re-tokenisation."""

from __future__ import annotations

import pytest
import torch

from atlas.methods.as_vit import ProgressiveTokenizer, Topology, build
from atlas.methods.as_vit.layout import count
from atlas.methods.as_vit.network import dilation_for

TOPOLOGY = Topology.parse("4,8,2|2,4,2|3,2,2|4,1,2|16")[0]


def model(side: int = 64, **options: object):  # type: ignore[no-untyped-def]
    return build(TOPOLOGY, width=8, img_size=side, num_classes=5, generator=torch.Generator().manual_seed(0), **options).eval()  # type: ignore[arg-type]


def test_dilations_of_the_published_schedule() -> None:
    assert [dilation_for(4, stride) for stride in (4, 8, 16)] == [1, 2, 5]
    assert [dilation_for(8, stride) for stride in (4, 8, 16)] == [1, 1, 2]


@pytest.mark.parametrize("kernel", [4, 5, 6, 7, 8])
def test_token_counts_are_those_of_the_stride(kernel: int) -> None:
    topology = Topology((kernel, 2, 3, 4), (2, 2, 2, 1), (2, 2, 2, 2), 16)
    network = build(topology, width=8, img_size=64, num_classes=5)
    tokenizer = ProgressiveTokenizer(network)
    images = torch.randn(2, 3, 64, 64)
    for progress, stride in ((0.0, 16), (0.3, 8), (0.5, 4)):
        assert tokenizer.step(progress)
        assert network.stem(images).shape == (2, (64 // stride) ** 2, 8)
        assert network(images).shape == (2, 5)
        assert network.stem.proj.dilation == (dilation_for(kernel, stride),) * 2


def test_phases_change_at_their_boundaries_only() -> None:
    tokenizer = ProgressiveTokenizer(model())
    changes = [epoch for epoch in range(300) if tokenizer.step(epoch / 300)]
    assert changes == [0, 81, 132]  # 0.267 · 300 = 80.1
    with pytest.raises(ValueError, match=r"1\.2 is not in"):
        tokenizer.step(1.2)


@pytest.mark.parametrize("ask", ["step", "stride", "macs"])
def test_a_progress_that_is_none_is_refused_wherever_it_is_asked_for(ask: str) -> None:
    asked = getattr(ProgressiveTokenizer(model()), ask)
    for wrong in (-0.1, 2.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"progress {wrong} is not in \[0, 1\]"):
            asked(wrong)
    with pytest.raises(TypeError, match=r"progress must be a number, not '0\.5'"):
        asked("0.5")


@pytest.mark.parametrize("pos_embed", ["none", "absolute"])
def test_parameters_stay_the_same_objects_and_the_last_phase_is_the_network_itself(pos_embed: str) -> None:
    network = model(pos_embed=pos_embed)
    images = torch.randn(2, 3, 64, 64)
    expected = network(images)
    parameters = dict(network.named_parameters())
    tokenizer = ProgressiveTokenizer(network)
    for progress in (0.0, 0.3, 0.9):
        tokenizer.step(progress)
        now = dict(network.named_parameters())
        assert now.keys() == parameters.keys()
        assert all(now[name] is parameters[name] for name in parameters)
    assert torch.equal(network(images), expected)


def test_coarse_positions_are_averages_of_the_finest() -> None:
    network = model(pos_embed="absolute")
    fine = network.pos_embed.detach().reshape(16, 16, 8)
    ProgressiveTokenizer(network).step(0.3)
    coarse = network._positions(network.pos_embed).detach().reshape(8, 8, 8)
    torch.testing.assert_close(coarse[1, 2], fine[2:4, 4:6].mean((0, 1)))


def test_every_weight_learns_in_every_phase() -> None:
    network = model().train()
    tokenizer = ProgressiveTokenizer(network)
    for progress in (0.0, 0.3, 0.9):
        tokenizer.step(progress)
        network.zero_grad()
        network(torch.randn(2, 3, 64, 64)).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.stem.parameters())


def test_cost_of_the_phases() -> None:
    network = model()
    tokenizer = ProgressiveTokenizer(network)
    costs = [tokenizer.macs(progress) for progress in (0.0, 0.3, 0.9)]
    assert costs == sorted(costs)
    assert costs[2] == count(TOPOLOGY, width=8, img_size=64, num_classes=5).macs
    expected = 0.267 * costs[0] + 0.173 * costs[1] + 0.56 * costs[2]
    assert tokenizer.average_macs() == pytest.approx(expected)


def test_share_of_the_published_schedule_on_the_large_model() -> None:
    from atlas.methods.as_vit import published

    design = published("as-vit-large")
    with torch.device("meta"):
        from atlas.methods.as_vit import HierarchicalViT

        network = HierarchicalViT(design)
    tokenizer = ProgressiveTokenizer(network)
    full = tokenizer.macs(1.0)
    assert tokenizer.macs(0) / full == pytest.approx(0.056, abs=0.001)
    assert tokenizer.macs(0.3) / full == pytest.approx(0.211, abs=0.001)
    assert tokenizer.average_macs() / full == pytest.approx(0.61, abs=0.005)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "begin at progress 0"),
        (((0.1, 8), (0.5, 4)), "begin at progress 0"),
        (((0, 16), (0.5, 8), (0.5, 4)), "increasing progress"),
        (((0, 8), (1.0, 4)), "increasing progress below 1"),
        (((0, 12), (0.5, 4)), "stride 12 does not divide"),
        (((0, 2), (0.5, 4)), "not a multiple"),
        (((0, 16), (0.5, 8)), "the last phase has stride 8"),
    ],
)
def test_refuses_phases_that_do_not_fit(phases: tuple[tuple[float, int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveTokenizer(model(), phases)


def test_refuses_a_kernel_below_the_finest_stride() -> None:
    network = build(Topology((3, 2, 2, 2), (1, 1, 1, 1), (2, 2, 2, 2), 16), width=8, img_size=64, ceil=True)
    with pytest.raises(ValueError, match="kernel 3 is smaller than the finest stride 4"):
        ProgressiveTokenizer(network)


def test_a_phase_is_a_pair() -> None:
    for phases in ([(0.0,)], [(0.0, 4, 4)]):
        with pytest.raises(ValueError, match=r"phases\[0\] must be a pair"):
            ProgressiveTokenizer(model(), phases)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="stride must be a whole number, not 16.5"):
        ProgressiveTokenizer(model(), [(0.0, 16.5), (0.5, 4)])  # type: ignore[list-item]
