"""What changes with the width of a network, told from networks of two widths; any user's factory will do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.split_mix.networks import TOLERANCE, WidthFactory
from atlas.methods.split_mix.norms import NormSpec
from atlas.nn.examples import require_numbers


def base_count(width: float, atom: float) -> int:
    """Number of whole atoms in a width: ⌊R / r⌋, safe against rounding."""
    return math.floor(width / atom + TOLERANCE)


def checked_width(width: float, atom: float, max_width: float) -> int:
    """Return how many base networks a requested width has.

    Raises
    ------
    ValueError
        The width holds no atom, or is above ``max_width``.

    Warns
    -----
    UserWarning
        The width is not a multiple of the atom; it is rounded down.
    """
    require_numbers(width=width)
    if not width <= max_width + TOLERANCE:
        raise ValueError(f"width {width:g} is above the widest, {max_width:g}")
    count = base_count(width, atom)
    if count < 1:
        raise ValueError(f"width {width:g} holds no base network of width {atom:g}")
    if abs(count * atom - width) > TOLERANCE:
        warnings.warn(f"width {width:g} is not a multiple of {atom:g}; {count * atom:g} is used", stacklevel=3)
    return count


def blank(factory: WidthFactory, width: float, norm: NormSpec) -> nn.Module:
    """Return a network of a width whose weights mean nothing, without moving the generator of the process."""
    with torch.random.fork_rng(devices=[]):
        return factory(width, norm=norm)


@dataclass(frozen=True)
class Role:
    """What a convolution or linear layer is to its network: it reads the image, or it classifies, or neither."""

    reads_image: bool
    classifies: bool


def layer_roles(narrow: nn.Module, wide: nn.Module) -> dict[str, Role]:
    """Tell roles of all convolutions and linear layers by what does not grow from ``narrow`` to ``wide``.

    Raises
    ------
    TypeError
        The networks do not have the same layers.
    """
    wider = dict(wide.named_modules())
    roles = {}
    for name, module in narrow.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        other = wider.get(name)
        if other is None or type(other) is not type(module):
            raise TypeError(f"networks of two widths differ in their layer {name}")
        roles[name] = Role(_ins(module) == _ins(other), _outs(module) == _outs(other))
    return roles


def _ins(layer: Any) -> int:
    return layer.weight.shape[1] * getattr(layer, "groups", 1)  # a depthwise convolution reads one channel each of many


def _outs(layer: Any) -> int:
    return layer.weight.shape[0]


@torch.no_grad()
def rescale_as_slice(base: nn.Module, wide: nn.Module) -> None:
    """Make a base network look like a slice of the wide one: hidden layers shrink by √(fan-in ratio), in place.

    A layer that draws from U(±1/√fan_in) then has the bound of the full-width network. Layers that read the image, and biases
    that are zero, stay. Hong et al., ICLR 2022, appendix.
    """
    wider = dict(wide.named_modules())
    for name, module in base.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            factor = math.sqrt(module.weight[0].numel() / wider[name].weight[0].numel())
            for parameter in module.parameters(recurse=False):
                parameter.mul_(factor)


class Slicer:
    """Prefixes of the tensors of a network: what a sub-network of a width is, in (Slimmable) HeteroFL.

    Parameters
    ----------
    shapes : mapping
        Tensor name to its shape in the full network.
    grows : mapping
        Tensor name to one flag per dimension: whether it grows with the width. Other dimensions are kept whole.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], grows: Mapping[str, tuple[bool, ...]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.grows = {name: tuple(flags) for name, flags in grows.items()}

    @classmethod
    def from_factory(cls, factory: WidthFactory, *, norm: NormSpec = NormSpec(), narrow: float = 0.125) -> Slicer:
        """Tell what grows from networks of width ``narrow`` and 1."""
        wide = blank(factory, 1.0, norm).state_dict()
        small = wide if narrow == 1 else blank(factory, narrow, norm).state_dict()
        if wide.keys() != small.keys():
            raise TypeError("networks of two widths hold different tensors")
        grows = {name: tuple(a != b for a, b in zip(wide[name].shape, small[name].shape, strict=True)) for name in wide}
        return cls({name: tuple(tensor.shape) for name, tensor in wide.items()}, grows)

    def slices(self, name: str, width: float) -> tuple[slice, ...]:
        """Index of the prefix: ⌈width · size⌉ of every dimension that grows."""
        sizes = zip(self.shapes[name], self.grows[name], strict=True)
        return tuple(slice(0, math.ceil(width * size - TOLERANCE * size) if grows else size) for size, grows in sizes)

    def prefix(self, tensors: Mapping[str, Tensor], width: float) -> dict[str, Tensor]:
        """Views of the prefixes of all tensors, which have any shapes (…), for one width."""
        return {name: tensor[self.slices(name, width)] for name, tensor in tensors.items()}
