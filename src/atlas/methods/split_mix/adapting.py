"""An ordinary network as one of any width: the rule of HeteroFL and of slimmable networks over its layers.

Every hidden channel count is multiplied by the width (Diao et al., ICLR 2021; Yu et al., ICLR 2019); what reads the image keeps
its inputs, what classifies its outputs. Which layers these are is told from one pass of an example through the network.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.split_mix.networks import WidthFactory, initialise, scaled
from atlas.methods.split_mix.norms import BatchNorm, DualNorm, NormSpec
from atlas.methods.split_mix.widths import Role
from atlas.nn.modes import mode_of

CONTRACT = (
    "a network is made by network(width, norm=NormSpec(), generator=None), as MLP is; "
    "by_width(make, example) adapts one that is made without these"
)
NORMS = nn.BatchNorm1d | nn.BatchNorm2d


def takes_width(factory: Any) -> bool:
    """Whether a callable can be told a width and a norm, and so is a :class:`.networks.WidthFactory`."""
    if isinstance(factory, nn.Module) or not callable(factory):
        return False
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return True  # nothing is known of it
    return "norm" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def check_factory(factory: Any) -> WidthFactory:
    """Return a factory of networks of any width.

    Raises
    ------
    TypeError
        It cannot be told a width; says what would be right.
    """
    if not takes_width(factory):
        name = getattr(factory, "__name__", type(factory).__name__)
        raise TypeError(f"{name} makes no networks of a width: {CONTRACT}")
    return factory


def by_width(make: nn.Module | Callable[[], nn.Module], example: Tensor) -> ByWidth:
    """Make networks of any width out of an ordinary one, by the rule of HeteroFL.

    Parameters
    ----------
    make : nn.Module or callable
        The network at full width, or what makes it without arguments. Its layers with weights are ``Conv2d``, ``Linear`` and
        batch norms; its ``forward`` must not write sizes that change with the width: ``x.flatten(1)``, not ``x.view(-1, 400)``.
    example : Tensor
        Inputs (2 or more, …) as the network takes them; only their shape and type matter.

    Returns
    -------
    ByWidth
        ``factory(width, norm=…, generator=…)``, for :class:`.SplitMix` and :class:`.PrefixModel`; a :class:`.FedTrainer` takes
        the ordinary network itself.

    Raises
    ------
    TypeError
        ``make`` is no network and makes none, or a layer has weights whose width no rule knows; names it.
    ValueError
        The network cannot read the example.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> factory = by_width(lambda: resnet18(num_classes=10), torch.rand(2, 3, 64, 64))
    >>> factory(0.25, norm=NormSpec()).fc
    Linear(in_features=128, out_features=10, bias=True)
    """
    return ByWidth(_made(make), example)


class ByWidth:
    """A :class:`.networks.WidthFactory` of copies of one network; see :func:`by_width`."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.network, self.example = network, example[:2].detach()
        for name, module in network.named_modules():
            known = isinstance(module, nn.Conv2d | nn.Linear | BatchNorm | DualNorm | NORMS)
            if not known and (module._parameters or module._buffers):
                kind = type(module).__name__
                raise TypeError(
                    f"{name or 'the network'} ({kind}) holds weights of its own, and by_width knows Conv2d, Linear and batch "
                    f"norms only: {CONTRACT.partition(';')[0]}"
                )
        self.roles = _roles(network, self.example)
        self._tried: set[float] = {1.0}

    def __call__(self, width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> nn.Module:
        """Return a network of a width, initialised from ``generator``; every batch norm is one of ``norm``.

        Raises
        ------
        ValueError
            A channel count times the width is not a whole number; names the layer.
        TypeError
            The network's ``forward`` does not fit its narrower layers.
        """
        network = copy.deepcopy(self.network)
        for name, role in self.roles.items():
            _put(network, name, _resized(network.get_submodule(name), role, width, norm, name))
        initialise(network, generator)
        if width not in self._tried:
            self._try(network, width)
        return network

    def _try(self, network: nn.Module, width: float) -> None:
        remedy = "does its forward write sizes, as x.view(-1, 400) does? x.flatten(1) fits every width"
        try:
            with torch.no_grad(), mode_of(network, "train"):
                logits = network.to(self.example.device)(self.example)
        except (RuntimeError, ValueError) as error:
            raise TypeError(f"the network does not fit the width {width:g}: {str(error).splitlines()[0]}; {remedy}") from error
        if len(logits) != len(self.example):
            raise TypeError(f"the network returns {len(logits)} rows for {len(self.example)} inputs at width {width:g}; {remedy}")
        self._tried.add(width)


def _made(make: Any) -> nn.Module:
    made = make
    if not isinstance(make, nn.Module):
        if not callable(make):
            raise TypeError(f"by_width needs a network or what makes one, not a {type(make).__name__}")
        try:
            made = make()
        except TypeError as error:
            raise TypeError(f"by_width calls what makes the network without arguments: {error}") from None
    if not isinstance(made, nn.Module):
        raise TypeError(f"by_width needs a network or what makes one, and was given a {type(made).__name__}")
    return made


def _roles(network: nn.Module, example: Tensor) -> dict[str, Role]:
    """What every layer with weights is to its network, from one pass: by what its input and its output depend on.

    A layer whose input depends on no weight reads the image; one whose output reaches no other layer classifies.
    """
    own = copy.deepcopy(network).train().requires_grad_(True)
    seen: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[name], outputs[name] = inputs[0], output

        return hook

    layers = {name: module for name, module in own.named_modules() if module._parameters or isinstance(module, NORMS)}
    for name, module in layers.items():
        module.register_forward_hook(watch(name))
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            logits = own(example if example.is_floating_point() else example.float())
    except (RuntimeError, ValueError, IndexError) as error:
        shape = tuple(example.shape)
        raise ValueError(f"the network cannot read an example of the shape {shape}: {str(error).splitlines()[0]}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(
            f"the network returns {getattr(logits, 'shape', type(logits).__name__)}, and not logits (batch, classes)"
        )
    unused = next((name for name in layers if name not in seen), None)
    if unused is not None:
        raise ValueError(f"{unused} takes no part in the network's forward")
    return {
        name: Role(
            not seen[name].requires_grad, not any(_reaches(outputs[name], seen[other]) for other in layers if other != name)
        )
        for name in layers
    }


def _reaches(output: Tensor, later: Tensor) -> bool:
    """Whether a tensor was computed from another one."""
    if not later.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(later.sum(), output, retain_graph=True, allow_unused=True)
    return gradient is not None


def _resized(layer: Any, role: Role, width: float, norm: NormSpec, name: str) -> nn.Module:
    """A layer like another, of another width; weights are drawn later."""

    def hidden(channels: int) -> int:
        return scaled(channels, width, name)

    if isinstance(layer, nn.Linear):
        ins = layer.in_features if role.reads_image else hidden(layer.in_features)
        outs = layer.out_features if role.classifies else hidden(layer.out_features)
        return nn.Linear(ins, outs, layer.bias is not None)
    if isinstance(layer, nn.Conv2d):
        ins = layer.in_channels if role.reads_image else hidden(layer.in_channels)
        outs = layer.out_channels if role.classifies else hidden(layer.out_channels)
        groups = ins if layer.groups == layer.in_channels > 1 else layer.groups
        if ins % groups or outs % groups:
            raise ValueError(f"{name} has {groups} groups, which {ins} and {outs} channels at width {width:g} cannot fill")
        options: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        return nn.Conv2d(ins, outs, groups=groups, bias=layer.bias is not None, **options)
    channels = layer.num_features if isinstance(layer, NORMS) else layer.weight.numel()
    return norm.layer(channels if role.reads_image else hidden(channels))


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    if not name:
        raise TypeError("a single layer is no network: wrap it in nn.Sequential")
    setattr(network.get_submodule(owner), last, layer)
