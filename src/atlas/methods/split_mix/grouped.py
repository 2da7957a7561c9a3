"""Many networks of one shape run as one: a convolution with groups, a batched matrix product, one long batch norm.

Activations of G networks lie side by side on the channel axis, network by network, so that pointwise operations, pooling,
flattening, residual sums and batch normalisation act on all of them as they are. Layers with weights are replaced by layers
with one more dimension of weights in front; names do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from atlas.methods.split_mix.norms import BatchNorm, NormSpec
from atlas.methods.split_mix.widths import Role


class GroupedConv2d(nn.Module):
    """``groups`` convolutions side by side: weight (groups, out, in, k, k).

    With ``inputs`` < ``groups``, consecutive networks share an input, and a layer that reads it is dense over them.
    """

    def __init__(self, layer: nn.Conv2d, groups: int, inputs: int) -> None:
        super().__init__()
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise TypeError(f"grouped execution knows zero padding by numbers, not {layer.padding_mode} {layer.padding}")
        self.inputs = inputs * layer.groups
        if inputs != groups and layer.groups != 1:
            raise TypeError("a layer that reads the image cannot have groups of its own")
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.weight = nn.Parameter(layer.weight.detach().expand(groups, *layer.weight.shape).clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().expand(groups, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs·in, h, w) to (batch, groups·out, h', w')."""
        bias = None if self.bias is None else self.bias.flatten()
        return functional.conv2d(x, self.weight.flatten(0, 1), bias, self.stride, self.padding, self.dilation, self.inputs)


class GroupedLinear(nn.Module):
    """``groups`` linear layers side by side: weight (groups, out, in); (batch, inputs·in) to (batch, groups·out)."""

    def __init__(self, layer: nn.Linear, groups: int, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(layer.weight.detach().expand(groups, *layer.weight.shape).clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().expand(groups, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs·in) to (batch, groups·out) by one batched product; where all share the input, by an ordinary one."""
        weight = self.weight.reshape(self.inputs, -1, self.weight.shape[-1])
        bias = None if self.bias is None else self.bias.reshape(self.inputs, 1, -1)
        if self.inputs == 1:
            return functional.linear(x, weight[0], None if bias is None else bias.flatten())
        separate = x.reshape(len(x), self.inputs, -1).transpose(0, 1)
        if bias is None:
            out = torch.bmm(separate, weight.transpose(1, 2))
        else:
            out = torch.baddbmm(bias, separate, weight.transpose(1, 2))
        return out.transpose(0, 1).flatten(1)


class GroupedNorm(nn.Module):
    """One batch norm over the channels of all networks; parameters and buffers (groups, channels)."""

    def __init__(self, layer: nn.Module, groups: int) -> None:
        super().__init__()
        self.eps, self.momentum = layer.eps, layer.momentum
        for name in ("weight", "bias"):
            setattr(self, name, nn.Parameter(getattr(layer, name).detach().expand(groups, -1).clone()))
        for name in ("running_mean", "running_var"):
            buffer = getattr(layer, name)
            self.register_buffer(name, None if buffer is None else buffer.expand(groups, -1).clone())

    forward = BatchNorm.forward
    normalise = BatchNorm.normalise


KNOWN_NORMS = (BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def group_layers(template: nn.Module, groups: int, inputs: int, roles: Mapping[str, Role]) -> nn.Module:
    """Return a copy of ``template`` with every layer replaced by its grouped form.

    Raises
    ------
    TypeError
        A module holds weights of its own and is none that has a grouped form; names it.
    """
    net = copy.deepcopy(template)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            reads_image = roles[name].reads_image if name in roles else False
            kind = GroupedConv2d if isinstance(module, nn.Conv2d) else GroupedLinear
            _replace(net, name, kind(module, groups, inputs if reads_image else groups))  # type: ignore[arg-type]
        elif isinstance(module, KNOWN_NORMS):
            if getattr(module, "num_batches_tracked", None) is not None or module.weight is None:
                raise TypeError(f"{name} is a {type(module).__name__} that counts batches or has no weights: use NormSpec.layer")
            _replace(net, name, GroupedNorm(module, groups))
        elif module._parameters or module._buffers:
            raise TypeError(f"{name or 'the network'} ({type(module).__name__}) holds weights and has no grouped form")
    return net


def _replace(net: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    if not name:
        raise TypeError("a single layer is no network: wrap it in nn.Sequential")
    setattr(net.get_submodule(owner), last, layer.train(net.training))


class GroupedNet(nn.Module):
    """G networks of one shape as one network.

    Parameters
    ----------
    template : nn.Module
        One of them.
    groups : int
        Their number G.
    inputs : int
        Number of different inputs, 1 … G: ``inputs`` runs of G / inputs consecutive networks each share one.
    roles : mapping
        What the layers are (:func:`~atlas.methods.split_mix.widths.layer_roles`): those that read the image differ.
    """

    def __init__(self, template: nn.Module, groups: int, inputs: int, roles: Mapping[str, Role]) -> None:
        super().__init__()
        if groups % inputs:
            raise ValueError(f"{groups} networks cannot share {inputs} inputs evenly")
        self.groups, self.inputs = groups, inputs
        self.net = group_layers(template, groups, inputs, roles)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, channels, …) to logits (batch, groups, classes)."""
        return self.net(x.flatten(1, 2)).unflatten(1, (self.groups, -1))

    def call(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run with stacked tensors in place of the network's own; ``x``: (inputs, batch, channels, …)."""
        out = functional_call(self.net, dict(tensors), (x.transpose(0, 1).flatten(1, 2),))
        return out.unflatten(1, (self.groups, -1)).transpose(0, 1)


def norm_like(layer: Any, channels: int) -> BatchNorm:
    """Return an untrained norm with the options of ``layer`` and another number of channels."""
    stats = "batch" if layer.running_mean is None else "tracked"
    made = BatchNorm(channels, NormSpec(stats=stats, eps=layer.eps, momentum=layer.momentum))  # type: ignore[arg-type]
    return made.to(layer.weight.device, layer.weight.dtype)
