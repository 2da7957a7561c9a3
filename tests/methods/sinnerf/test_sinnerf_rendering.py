"""Identities of volume rendering, of sampling and of the fields."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atlas.methods.sinnerf import (
    CoarseFine,
    GridField,
    NeRFNetwork,
    Sampler,
    composite,
    make_field,
    positional_encoding,
    render_levels,
    render_rays,
    sample_pdf,
    sample_stratified,
)
from atlas.methods.sinnerf.bounds import Box

DOUBLE = torch.float64


def drawn(n: int = 5, samples: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sigma = 3 * torch.rand(n, samples, generator=generator, dtype=DOUBLE)
    rgb = torch.rand(n, samples, 3, generator=generator, dtype=DOUBLE)
    t = (1 + 4 * torch.rand(n, samples, generator=generator, dtype=DOUBLE)).sort(-1).values
    norm = 1 + torch.rand(n, generator=generator, dtype=DOUBLE)
    return sigma, rgb, t, norm


def test_weights_telescope() -> None:
    sigma, rgb, t, norm = drawn()
    seen = composite(sigma, rgb, t, norm, last_delta=0.3)
    deltas = torch.cat([t.diff(dim=-1), torch.full_like(t[:, :1], 0.3)], -1) * norm[:, None]
    alpha = 1 - torch.exp(-sigma * deltas)
    torch.testing.assert_close(seen.opacity, 1 - (1 - alpha).prod(-1))
    before = torch.cat([torch.ones_like(alpha[:, :1]), (1 - alpha).cumprod(-1)[:, :-1]], -1)
    torch.testing.assert_close(seen.weights, alpha * before)
    torch.testing.assert_close(seen.depth, (alpha * before * t).sum(-1))
    torch.testing.assert_close(seen.rgb, ((alpha * before)[..., None] * rgb).sum(-2))
    assert (seen.weights >= 0).all()
    assert (seen.opacity <= 1 + 1e-6).all()


def test_nothing_is_black_or_background_and_has_no_depth() -> None:
    _, rgb, t, norm = drawn()
    for last in (0.1, 1e10):
        for sigma in (torch.zeros_like(t), -torch.ones_like(t)):
            black = composite(sigma, rgb, t, norm, last_delta=last)
            assert not black.rgb.any()
            assert not black.depth.any()
            white = composite(sigma, rgb, t, norm, last_delta=last, background=1.0)
            torch.testing.assert_close(white.rgb, torch.ones_like(white.rgb))


@pytest.mark.parametrize("density", [1e10, math.inf])
def test_an_opaque_sample_hides_the_rest(density: float) -> None:
    sigma, rgb, t, norm = drawn()
    sigma = sigma * 0
    sigma[:, 4] = density
    sigma[:, 7] = 5.0
    seen = composite(sigma, rgb, t, norm, last_delta=1.0)
    torch.testing.assert_close(seen.weights, nn.functional.one_hot(torch.full((5,), 4), 12).double())
    torch.testing.assert_close(seen.depth, t[:, 4])
    torch.testing.assert_close(seen.rgb, rgb[:, 4])


def test_a_homogeneous_medium_is_exact_for_any_sampling() -> None:
    _, _, t, norm = drawn()
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE)
    sigma = torch.full_like(t, 0.7)
    seen = composite(sigma, colour.expand(*t.shape, 3), t, norm, last_delta=0.25)
    length = (t[:, -1] - t[:, 0] + 0.25) * norm
    expected = 1 - torch.exp(-0.7 * length)
    torch.testing.assert_close(seen.opacity, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen.rgb, expected[:, None] * colour, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("coarse", "fine"), [(8, 0), (8, 4)])
def test_the_last_interval_is_the_mean_one_or_opaque(coarse: int, fine: int) -> None:
    """Of near to far over all samples of the level: (6 − 2) / 8, and / 12 with four fine samples; times ‖d‖ = 2."""
    rays = torch.tensor([[0.0, 0, 0, 0, 0, -2, 2, 6], [0.0, 0, 0, 0, 0, -2, 1, 2]], dtype=DOUBLE)
    length = rays[:, 7] - rays[:, 6]

    def fog(x: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(x, 0.5), torch.full_like(x[..., 0], 0.1)

    levels = render_levels(fog, rays, Sampler(coarse=coarse, fine=fine))
    for level, samples in zip(levels, (coarse, coarse + fine), strict=False):
        seen = 2 * (level.t[:, -1] - level.t[:, 0] + length / samples)
        torch.testing.assert_close(level.seen.opacity, 1 - torch.exp(-0.1 * seen))
        torch.testing.assert_close(level.t[:, -1] - level.t[:, 0], length)  # samples reach from near to far
    closed = render_levels(fog, rays, Sampler(coarse=coarse, fine=fine, last="opaque"))
    for level in closed:
        torch.testing.assert_close(level.seen.opacity, torch.ones(2, dtype=DOUBLE))


def test_splitting_an_interval_changes_nothing() -> None:
    sigma, rgb, t, norm = drawn()
    middle = 0.5 * (t[:, 3:4] + t[:, 4:5])
    finer = composite(
        torch.cat([sigma[:, :4], sigma[:, 3:4], sigma[:, 4:]], -1),
        torch.cat([rgb[:, :4], rgb[:, 3:4], rgb[:, 4:]], -2),
        torch.cat([t[:, :4], middle, t[:, 4:]], -1),
        norm,
        last_delta=0.2,
    )
    plain = composite(sigma, rgb, t, norm, last_delta=0.2)
    torch.testing.assert_close(finer.rgb, plain.rgb)
    torch.testing.assert_close(finer.opacity, plain.opacity)


def test_units_of_length_do_not_matter() -> None:
    sigma, rgb, t, norm = drawn()
    plain = composite(sigma, rgb, t, norm, last_delta=0.2)
    scaled = composite(sigma / 3, rgb, 3 * t, norm, last_delta=0.6)
    torch.testing.assert_close(scaled.rgb, plain.rgb)
    torch.testing.assert_close(scaled.depth, 3 * plain.depth)
    longer = composite(sigma, rgb, t / 3, 3 * norm, last_delta=0.2 / 3)  # a direction three times as long
    torch.testing.assert_close(longer.weights, plain.weights)
    torch.testing.assert_close(longer.depth * 3, plain.depth)


def test_gradients_of_composite() -> None:
    sigma, rgb, t, norm = (value[:2, ..., :5] if value.ndim > 1 else value[:2] for value in drawn())
    sigma, rgb, t = sigma.clone(), drawn()[1][:2, :5].clone(), t.clone()
    for value in (sigma, rgb, t):
        value.requires_grad_()
    for last, background in ((0.3, None), (0.3, 1.0)):
        assert torch.autograd.gradcheck(
            lambda s, c, x, last=last, background=background: composite(s, c, x, norm, last_delta=last, background=background)[
                :2
            ],
            (sigma, rgb, t),
        )


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_stratified_samples_stay_in_their_bins(spacing) -> None:  # type: ignore[no-untyped-def]
    near, far = torch.full((200,), 2.0), torch.full((200,), 6.0)
    regular = sample_stratified(near, far, 16, spacing=spacing, jitter=False)
    jittered = sample_stratified(near, far, 16, spacing=spacing, generator=torch.Generator().manual_seed(0))
    middle = 0.5 * (regular[0, 1:] + regular[0, :-1])
    low, high = torch.cat([regular[0, :1], middle]), torch.cat([middle, regular[0, -1:]])
    assert ((jittered >= low - 1e-6) & (jittered <= high + 1e-6)).all()
    assert (jittered.diff(dim=-1) >= 0).all()
    spaced = regular if spacing == "linear" else 1 / regular
    torch.testing.assert_close(spaced.diff(dim=-1), spaced.diff(dim=-1)[:, :1].expand(200, 15), rtol=1e-3, atol=1e-4)


def test_inverse_distribution() -> None:
    bins = torch.linspace(2, 6, 9, dtype=DOUBLE).expand(3, 9)
    even = sample_pdf(bins, torch.ones(3, 8, dtype=DOUBLE), 17, deterministic=True)
    torch.testing.assert_close(even, torch.linspace(2, 6, 17, dtype=DOUBLE).expand(3, 17))
    peak = torch.zeros(3, 8, dtype=DOUBLE)
    peak[:, 5] = 1
    found = sample_pdf(bins, peak, 1000, generator=torch.Generator().manual_seed(0))
    inside = (found >= bins[:, 5:6]) & (found <= bins[:, 6:7])
    assert inside.double().mean() > 0.999  # up to the floor of 1e-5 per bin
    ordered = sample_pdf(bins, torch.rand(3, 8, dtype=DOUBLE), 50, deterministic=True)
    assert (ordered.diff(dim=-1) >= 0).all()


def test_encoding_has_the_size_and_parity_it_should() -> None:
    x = torch.randn(7, 3)
    assert positional_encoding(x, 10).shape == (7, 63)
    assert positional_encoding(x, 4).shape == (7, 27)
    plus, minus = positional_encoding(x, 3), positional_encoding(-x, 3)
    for power in range(3):
        sine, cosine = slice(3 + 6 * power, 6 + 6 * power), slice(6 + 6 * power, 9 + 6 * power)
        torch.testing.assert_close(plus[:, sine], -minus[:, sine])
        torch.testing.assert_close(plus[:, cosine], minus[:, cosine])
        torch.testing.assert_close(plus[:, sine], torch.sin(2.0**power * x))


def test_the_papers_network_has_its_size() -> None:
    network = NeRFNetwork()
    assert sum(p.numel() for p in network.parameters()) == 595_844
    x, d = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    rgb, sigma = network(x, d)
    assert rgb.shape == (4, 6, 3)
    torch.testing.assert_close(sigma, network.density(x))
    assert rgb.min() > -0.001
    assert rgb.max() < 1.001
    torch.testing.assert_close(network(x, 2 * d)[0], rgb)  # unit directions
    raw = NeRFNetwork(direction="raw")
    raw.load_state_dict(network.state_dict())
    assert not torch.allclose(raw(x, 2 * d)[0], raw(x, d)[0])


@pytest.mark.parametrize("name", ["mlp3x64", "vm", "grid", "hash"])
def test_fields_have_one_protocol(name: str) -> None:
    torch.manual_seed(0)
    field = make_field(name)
    x = (2 * torch.rand(3, 5, 3) - 1).requires_grad_()
    rgb, sigma = field(x, torch.ones(3, 5, 3))
    assert rgb.shape == (3, 5, 3)
    assert sigma.shape == (3, 5)
    assert torch.isfinite(rgb).all()
    (rgb.sum() + sigma.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in field.parameters())
    with pytest.raises(ValueError, match="there is no field"):
        make_field(name + "x")


def test_a_grid_is_linear_between_its_nodes() -> None:
    field = GridField(resolution=3)
    with torch.no_grad():
        field.grid.zero_()
        field.grid[0, 3] = torch.linspace(-0.02, 0.02, 3)[None, None]  # along x
    x = torch.tensor([[-0.5, 0.3, 0.9], [0.25, -1.0, 0.0]])
    expected = nn.functional.softplus(60 * 0.02 * x[:, 0] + 1)
    torch.testing.assert_close(field(x, x)[1], expected)


def test_the_fine_level_looks_where_the_coarse_one_sees() -> None:
    class Wall(nn.Module):
        def forward(self, x: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones_like(x) * 0.5, 200.0 * (x[..., 2] < -4)

        def density(self, x: torch.Tensor) -> torch.Tensor:
            return 200.0 * (x[..., 2] < -4)

    rays = torch.tensor([[0.0, 0, 0, 0, 0, -1, 2, 6]])
    coarse, fine = render_levels(CoarseFine(Wall(), Wall()), rays, Sampler(coarse=16, fine=64))
    assert abs(float(fine.seen.depth) - 4) < abs(float(coarse.seen.depth) - 4) < 0.3
    assert fine.t.shape == (1, 80)
    torch.testing.assert_close(render_rays(CoarseFine(Wall(), Wall()), rays, Sampler(coarse=16, fine=64)).rgb, fine.seen.rgb)
    noisy = Sampler(coarse=16, fine=0, noise_std=1.0)
    assert render_rays(Wall(), rays, noisy).depth == render_rays(Wall(), rays, noisy).depth
    generator = torch.Generator().manual_seed(0)
    assert render_rays(Wall(), rays, noisy, generator).depth != render_rays(Wall(), rays, noisy, generator).depth


def test_rays_are_clipped_to_the_box() -> None:
    box = Box((-1, -1, -1), (1, 1, 1))
    rays = torch.tensor([[0.0, 0, 4, 0, 0, -1, 2, 6], [3.0, 0, 4, 0, 0, -1, 2, 6], [0.0, 0, 0, 0, 0, -1, 0.5, 6]])
    clipped = box.clip(rays)
    torch.testing.assert_close(clipped[:, 6:], torch.tensor([[3.0, 5.0], [2.0, 2.0], [0.5, 1.0]]))
    torch.testing.assert_close(box.normalise(torch.tensor([[1.0, -1, 0]])), torch.tensor([[1.0, -1, 0]]))
    with pytest.raises(ValueError, match="bounds"):
        Box((0, 0, 0), (1, 0, 1))


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_samples_go_from_the_near_bound_to_the_far_one(spacing) -> None:  # type: ignore[no-untyped-def]
    near, far = torch.tensor([2.0, 0.5]), torch.tensor([6.0, 3.0])
    regular = sample_stratified(near, far, 5, spacing=spacing, jitter=False)
    torch.testing.assert_close(regular[:, 0], near)
    torch.testing.assert_close(regular[:, -1], far)
