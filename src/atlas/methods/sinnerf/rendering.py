"""Volume rendering: samples along rays, their weights, and what they add up to (Mildenhall et al., ECCV 2020, Eq. 3–5).

A sample's opacity is α = 1 − exp(−σ·Δ·‖d‖), its weight w = α·Π(1 − α before it); colour, depth and opacity are sums over w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.sinnerf.fields import default_noise
from atlas.methods.sinnerf.settings import Sampler

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``field(x, d) -> (rgb, σ)``: points (…, 3) and un-normalised directions (…, 3) to colours (…, 3) and densities (…)."""

PDF_FLOOR = 1e-5


class Composite(NamedTuple):
    """What rays see: ``rgb`` (n, 3), ``depth`` (n) = Σ w·t, ``weights`` (n, samples), ``opacity`` (n) = Σ w."""

    rgb: Tensor
    depth: Tensor
    weights: Tensor
    opacity: Tensor


class RenderedLevel(NamedTuple):
    """One level of a rendering: what its rays see, and where they were sampled, ``t`` (n, samples)."""

    seen: Composite
    t: Tensor


def composite(
    sigma: Tensor,
    rgb: Tensor,
    t: Tensor,
    dir_norm: Tensor | float,
    *,
    last_delta: Tensor | float,
    background: Tensor | float | None = None,
) -> Composite:
    """Add samples up along rays; pure and differentiable.

    Parameters
    ----------
    sigma : Tensor
        (n, samples) densities per unit length; negative values count as 0.
    rgb : Tensor
        (n, samples, 3) colours.
    t : Tensor
        (n, samples) ascending ray parameters.
    dir_norm : Tensor or float
        (n) or (n, 1) lengths of the directions, which turn parameters into lengths.
    last_delta : Tensor or float
        Parameter length of the last interval, a number or (n): 1e10 makes it opaque whatever its density.
    background : Tensor or float, optional
        Colour behind the samples: a number or (3,); ``None`` is black.

    Returns
    -------
    Composite
        The depth is not divided by the opacity.
    """
    norm = torch.as_tensor(dir_norm, dtype=t.dtype, device=t.device)
    norm = norm.unsqueeze(-1) if norm.ndim == t.ndim - 1 and norm.ndim else norm
    last = torch.as_tensor(last_delta, dtype=t.dtype, device=t.device)
    last = last.unsqueeze(-1) if last.ndim == t.ndim - 1 and last.ndim else last
    deltas = torch.cat([t[..., 1:] - t[..., :-1], last.expand_as(t[..., :1])], dim=-1) * norm
    optical = functional.relu(sigma) * deltas
    before = torch.cat([torch.zeros_like(optical[..., :1]), optical[..., :-1].cumsum(-1)], dim=-1)
    weights = -torch.expm1(-optical) * torch.exp(-before)
    opacity = weights.sum(-1)
    colour = (weights.unsqueeze(-1) * rgb).sum(-2)
    if background is not None:
        behind = torch.as_tensor(background, dtype=colour.dtype, device=colour.device)
        colour = colour + (1 - opacity).unsqueeze(-1) * behind
    return Composite(colour, (weights * t).sum(-1), weights, opacity)


def sample_stratified(
    near: Tensor,
    far: Tensor,
    samples: int,
    *,
    spacing: Literal["linear", "disparity"] = "linear",
    generator: torch.Generator | None = None,
    jitter: bool = True,
) -> Tensor:
    """One sample per bin of [near, far]; bins are bounded by the midpoints of equally spaced samples.

    Parameters
    ----------
    near, far : Tensor
        (n) bounds.
    spacing : {"linear", "disparity"}
        Equal steps in t, or in 1/t.
    jitter : bool
        Draw within the bins; otherwise return the equally spaced samples.

    Returns
    -------
    Tensor
        (n, samples), ascending where ``near`` is below ``far``.

    Raises
    ------
    ValueError
        The bounds are of other shapes than (n), there is no sample, or the spacing is neither.
    """
    if near.ndim != 1 or near.shape != far.shape:
        raise ValueError(f"near and far must be (n) both, not {tuple(near.shape)} and {tuple(far.shape)}")
    _some(samples)
    if spacing not in ("linear", "disparity"):
        raise ValueError(f"there is no spacing {spacing}; choose from linear, disparity")
    steps = torch.linspace(0, 1, samples, dtype=near.dtype, device=near.device)
    near, far = near.unsqueeze(-1), far.unsqueeze(-1)
    if spacing == "linear":
        t = near + (far - near) * steps
    else:
        t = 1 / (1 / near + (1 / far - 1 / near) * steps)
    if not jitter:
        return t
    middle = 0.5 * (t[:, 1:] + t[:, :-1])
    lower, upper = torch.cat([t[:, :1], middle], -1), torch.cat([middle, t[:, -1:]], -1)
    drawn = torch.rand(t.shape, generator=generator, dtype=t.dtype, device=_home(generator, t)).to(t.device)
    return lower + (upper - lower) * drawn


def sample_pdf(
    bins: Tensor, weights: Tensor, samples: int, *, generator: torch.Generator | None = None, deterministic: bool = False
) -> Tensor:
    """Draw from a piecewise constant density by inverting its distribution function.

    Parameters
    ----------
    bins : Tensor
        (n, b + 1) edges, ascending.
    weights : Tensor
        (n, b) masses; 1e-5 is added to each.
    deterministic : bool
        Take equally spaced quantiles, 0 and 1 included.

    Returns
    -------
    Tensor
        (n, samples), ascending if deterministic.

    Raises
    ------
    ValueError
        There is not one more edge than masses for every ray, or no sample.
    """
    if bins.shape != (*weights.shape[:-1], weights.shape[-1] + 1):
        raise ValueError(f"bins must be (n, b + 1) and weights (n, b), not {tuple(bins.shape)} and {tuple(weights.shape)}")
    _some(samples)
    weights = weights + PDF_FLOOR
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)
    shape = (*cdf.shape[:-1], samples)
    if deterministic:
        u = torch.linspace(0, 1, samples, dtype=cdf.dtype, device=cdf.device).expand(shape).contiguous()
    else:
        u = torch.rand(shape, generator=generator, dtype=cdf.dtype, device=_home(generator, cdf)).to(cdf.device)
    edge = torch.searchsorted(cdf, u, right=True)
    below, above = (edge - 1).clamp(min=0), edge.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(-1, below), cdf.gather(-1, above)
    left, right = bins.gather(-1, below), bins.gather(-1, above)
    span = torch.where(high - low < PDF_FLOOR, torch.ones_like(low), high - low)
    return left + (u - low) / span * (right - left)


def _some(samples: int) -> None:
    """Refuse to take no sample of a ray."""
    if samples < 1:
        raise ValueError(f"a ray needs at least one sample, not {samples}")


def _home(generator: torch.Generator | None, like: Tensor) -> torch.device:
    """Where random numbers are drawn: on the generator's device, or, without one, on the tensor's."""
    return like.device if generator is None else generator.device


class CoarseFine(nn.Module):
    """Two fields for two levels of samples: ``coarse`` proposes where ``fine`` looks."""

    def __init__(self, coarse: nn.Module, fine: nn.Module) -> None:
        super().__init__()
        self.coarse, self.fine = coarse, fine

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (…, 3) and densities (…) of the fine field at points x and directions d, (…, 3) each."""
        return self.fine(x, d)


def render_levels(
    field: Field | nn.Module,
    rays: Tensor,
    sampler: Sampler,
    generator: torch.Generator | None = None,
    *,
    propose_only: bool = False,
) -> list[RenderedLevel]:
    """Render rays with every level: [fine], or [coarse, fine].

    Parameters
    ----------
    field : Field
        A radiance field, or a :class:`CoarseFine` pair.
    rays : Tensor
        (n, 8): origin, un-normalised direction, near, far.
    generator : torch.Generator, optional
        Jitter, density noise and fine samples are drawn from it; without one, rendering is deterministic.
    propose_only : bool
        The coarse level's colours are not wanted: ask its field for densities alone, if it has a method ``density``.
    """
    near, far = rays[:, 6], rays[:, 7]
    t = sample_stratified(near, far, sampler.coarse, spacing=sampler.spacing, generator=generator, jitter=generator is not None)
    coarse, fine = (field.coarse, field.fine) if isinstance(field, CoarseFine) else (field, field)
    first = _shade(coarse, rays, t, sampler, generator, colours=not (propose_only and sampler.fine))
    if not sampler.fine:
        return [RenderedLevel(first, t)]
    middle = 0.5 * (t[:, 1:] + t[:, :-1])
    with torch.no_grad():
        further = sample_pdf(middle, first.weights[:, 1:-1], sampler.fine, generator=generator, deterministic=generator is None)
        union = torch.cat([t, further], dim=-1).sort(dim=-1).values
    return [RenderedLevel(first, t), RenderedLevel(_shade(fine, rays, union, sampler, generator), union)]


def render_rays(field: Field | nn.Module, rays: Tensor, sampler: Sampler, generator: torch.Generator | None = None) -> Composite:
    """Render rays (n, 8) with the finest level; see :func:`render_levels`."""
    return render_levels(field, rays, sampler, generator, propose_only=True)[-1].seen


def _shade(
    field: Field | nn.Module,
    rays: Tensor,
    t: Tensor,
    sampler: Sampler,
    generator: torch.Generator | None,
    colours: bool = True,
) -> Composite:
    """What rays (n, 8) see of a field at parameters t (n, samples); without ``colours`` of its densities alone, if it can."""
    origins, directions = rays[:, None, :3], rays[:, None, 3:6]
    points = origins + t.unsqueeze(-1) * directions
    density = getattr(field, "density", None)
    if colours or density is None:
        rgb, sigma = field(points, directions.expand_as(points))
    else:
        rgb, sigma = torch.zeros_like(points), density(points)
    noise_std = default_noise(field) if sampler.noise_std is None else sampler.noise_std
    if noise_std and generator is not None:
        noise = torch.randn(sigma.shape, generator=generator, device=generator.device, dtype=sigma.dtype)
        sigma = sigma + noise_std * noise.to(sigma.device)
    return composite(
        sigma,
        rgb,
        t,
        rays[:, 3:6].norm(dim=-1),
        last_delta=sampler.last_delta(rays[:, 6], rays[:, 7], t.shape[-1]),
        background=sampler.background,
    )
