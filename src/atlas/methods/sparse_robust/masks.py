"""Which weights exist: masks, and how a density is shared out over layers.

A layer here is a weight tensor of 2 or 4 dimensions: convolutions, the first and 1 × 1 shortcuts included, and linear layers.
Biases and the scales and shifts of normalisations are never pruned.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from atlas.methods.sparse_robust.selecting import count
from atlas.methods.sparse_robust.settings import Scheme, SparseSettings
from atlas.nn.examples import as_tensor, require_numbers
from atlas.nn.kinds import require_kind

Masks = dict[str, Tensor]
"""Parameter name to a bool tensor of the parameter's shape, on its device: where a weight exists."""

DEFAULT = SparseSettings()
SCHEMES = get_args(Scheme)
BISECTIONS = 200


def prunable(model: nn.Module, exclude: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Return the model's weights of 2 or 4 dimensions by name, in the model's order.

    Parameters
    ----------
    exclude : collection of str
        Names of parameters, or of modules whose parameters to leave out.

    Raises
    ------
    KeyError
        ``exclude`` names something that the model does not have.
    ValueError
        Nothing is left.
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    known = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_modules()}
    for name in exclude:
        if name not in known:
            raise KeyError(f"exclude names {name}, which the model does not have")
    left_out = tuple(f"{name}." for name in exclude)
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim in (2, 4) and name not in exclude and not name.startswith(left_out)
    }
    if not weights:
        raise ValueError("there is no weight of 2 or 4 dimensions to prune")
    return weights


def require_density(density: float) -> None:
    """Raise a ``ValueError`` for a density outside (0, 1], and a ``TypeError`` for what is no number."""
    require_numbers(density=density)
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], not {density}")


def layer_densities(
    shapes: Mapping[str, tuple[int, ...]], density: float, scheme: Scheme = DEFAULT.scheme, power: float = 1.0
) -> dict[str, float]:
    """Share a density out over layers, so that the densities weighted by size have the asked mean.

    Parameters
    ----------
    shapes : mapping
        Layer's name to the shape of its weight.
    density : float
        Share of all weights to keep, in (0, 1].
    scheme : {"uniform", "erk", "igq"}
        The same for all; Erdős–Rényi-kernel (U. Evci et al., *Rigging the Lottery*, ICML 2020): proportional to
        (Σ dimensions ÷ Π dimensions)^``power``, capped at 1; ideal-gas quotas (A. Vysogorets, J. Kempe, *Connectivity Matters*,
        2021): 1 ÷ (1 + F·size), so that large layers lose most.

    Raises
    ------
    ValueError
        The density is outside (0, 1], the scheme does not exist, ``power`` is not finite, or there is no layer, or one without
        weights.
    """
    require_kind(Mapping, "a mapping of names to shapes", shapes=shapes)
    require_density(density)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}")
    if not shapes:
        raise ValueError("there is no layer to share a density out over")
    require_numbers(power=power)
    if not math.isfinite(power):
        raise ValueError(f"power must be a finite number, not {power}")
    if empty := [name for name, shape in shapes.items() if math.prod(shape) < 1]:
        raise ValueError(f"{empty[0]} has no weights: its shape is {tuple(shapes[empty[0]])}")
    if scheme == "erk":
        return _erk(shapes, density, power)
    if scheme == "igq":
        return _igq({name: math.prod(shape) for name, shape in shapes.items()}, density)
    return dict.fromkeys(shapes, density)


def _erk(shapes: Mapping[str, tuple[int, ...]], density: float, power: float) -> dict[str, float]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: (sum(shape) / sizes[name]) ** power for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(raw):
        free = [name for name in raw if name not in dense]
        wanted = density * sum(sizes[name] for name in free) - (1 - density) * sum(sizes[name] for name in dense)
        factor = wanted / sum(raw[name] * sizes[name] for name in free)
        largest = max(raw[name] for name in free)
        if factor * largest <= 1:
            return {name: 1.0 if name in dense else factor * raw[name] for name in raw}
        dense |= {name for name in free if raw[name] == largest}
    return dict.fromkeys(raw, 1.0)


def _igq(sizes: Mapping[str, int], density: float) -> dict[str, float]:
    if density == 1:
        return dict.fromkeys(sizes, 1.0)
    wanted = density * sum(sizes.values())
    # Σ size ÷ (1 + F·size) falls from Σ size to 0 as F grows; with F·max(size) = (1 − d) ÷ d it is at least wanted
    low = math.log((1 - density) / density / max(sizes.values()))
    high = math.log((1 - density) / density / min(sizes.values()))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        kept = sum(size / (1 + math.exp(middle) * size) for size in sizes.values())
        low, high = (middle, high) if kept > wanted else (low, middle)
    factor = math.exp((low + high) / 2)
    return {name: 1 / (1 + factor * size) for name, size in sizes.items()}


def random_masks(
    model: nn.Module,
    density: float,
    scheme: Scheme = DEFAULT.scheme,
    generator: torch.Generator | None = None,
    power: float = 1.0,
) -> Masks:
    """Draw masks uniformly, with exactly N − ⌊(1 − d)·N⌋ weights in a layer of size N and density d.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the draw, on any device; the global one of each parameter's device if left out.

    Raises
    ------
    ValueError
        As :func:`layer_densities`; or the model has nothing to prune.
    """
    require_density(density)
    if generator is not None:
        require_kind(torch.Generator, "a torch.Generator", generator=generator)
    weights = prunable(model)
    densities = layer_densities({name: tuple(weight.shape) for name, weight in weights.items()}, density, scheme, power)
    masks = {}
    for name, weight in weights.items():
        device = weight.device if generator is None else generator.device
        order = torch.randperm(weight.numel(), generator=generator, device=device).to(weight.device)
        mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[order[: int((1 - densities[name]) * weight.numel())]] = False
        masks[name] = mask.view(weight.shape)
    return masks


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Return the masks as bool tensors on the parameters' devices.

    Raises
    ------
    TypeError
        The masks are no mapping, or one is no tensor or array.
    KeyError
        A mask is named after no parameter of the model.
    ValueError
        A mask has another shape than its parameter; or there is no mask.
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    require_kind(Mapping, "a mapping of names of parameters to masks", masks=masks)
    if not masks:
        raise ValueError("there are no masks")
    parameters = dict(model.named_parameters())
    checked = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise KeyError(f"there is a mask for {name}, which is no parameter of the model")
        mask = as_tensor(mask, f"the mask of {name}")
        if mask.shape != parameters[name].shape:
            raise ValueError(f"the mask of {name} has the shape {tuple(mask.shape)}, not {tuple(parameters[name].shape)}")
        checked[name] = mask.detach().to(device=parameters[name].device, dtype=torch.bool).clone()
    return checked


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Share of the entries of masked tensors, of any shapes (…), that exist, in [0, 1]."""
    require_kind(Mapping, "a mapping of names of parameters to masks", masks=masks)
    total = sum(mask.numel() for mask in masks.values())
    return float(sum(count(mask) for mask in masks.values())) / total
