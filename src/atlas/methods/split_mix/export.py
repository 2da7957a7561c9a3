"""Base networks merged into one ordinary network whose logits are their mean (Hong et al., ICLR 2022, Sec. 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atlas.methods.split_mix.grouped import KNOWN_NORMS, norm_like
from atlas.methods.split_mix.norms import KNOWN_STATISTICS
from atlas.methods.split_mix.widths import Role

MergedForm = Literal["grouped", "dense"]
Form = Literal["auto", "ensemble", "grouped", "dense"]


class Ensemble(nn.Module):
    """The mean of the logits of networks, run one after the other."""

    def __init__(self, bases: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bases = nn.ModuleList(bases)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) to mean logits (batch, classes)."""
        return torch.stack([base(x) for base in self.bases]).mean(0)


class BlockLinear(nn.Module):
    """A linear layer whose weight is block-diagonal: weight (groups, out, in); (batch, groups·in) to (batch, groups·out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = None if layers[0].bias is None else nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (batch, groups·in) by every block in one batched product, to (batch, groups·out)."""
        groups, _, size = self.weight.shape
        blocks = x.reshape(len(x), groups, size).transpose(0, 1)
        out = torch.bmm(blocks, self.weight.transpose(1, 2))
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.transpose(0, 1).flatten(1)


def merge_bases(bases: Sequence[nn.Module], roles: Mapping[str, Role], form: MergedForm) -> nn.Module:
    """Return one network, in evaluation mode, that computes the mean logits of ``bases`` in one pass.

    Layers that read the image become one dense layer; hidden convolutions get groups, hidden linear layers blocks; the
    classifier is one dense layer over all features, also where it is a convolution.

    Parameters
    ----------
    form : {"grouped", "dense"}
        ``dense`` writes the zero blocks out, for runtimes that know no groups: n times the cost.

    Raises
    ------
    TypeError
        A module holds weights of its own and is none that can be merged.
    """
    net = copy.deepcopy(bases[0])
    for name, module in list(net.named_modules()):
        layers = [base.get_submodule(name) for base in bases]
        if isinstance(module, nn.Conv2d | nn.Linear):
            _put(net, name, _merged_layer(layers, roles[name], form))
        elif isinstance(module, KNOWN_NORMS):
            _put(net, name, _merged_norm(layers))
        elif module._parameters or module._buffers:
            raise TypeError(f"{name or 'the network'} ({type(module).__name__}) holds weights and cannot be merged: use ensemble")
    return net.eval()


def _put(net: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(net.get_submodule(owner), last, layer)


@torch.no_grad()
def _merged_layer(layers: Sequence[Any], role: Role, form: str) -> nn.Module:
    first, count = layers[0], len(layers)
    weights = [layer.weight for layer in layers]
    biases = None if first.bias is None else [layer.bias for layer in layers]
    if role.classifies:
        return _merged_classifier(layers, role)
    bias = None if biases is None else torch.cat(biases)
    if isinstance(first, nn.Linear):
        if role.reads_image:
            return _linear(torch.cat(weights), bias)
        return BlockLinear(layers) if form == "grouped" else _linear(torch.block_diag(*weights), bias)  # type: ignore[arg-type]
    if not isinstance(first, nn.Conv2d):
        raise TypeError(f"{type(first).__name__} cannot be merged")
    if role.reads_image:
        return _conv(first, torch.cat(weights), bias, first.groups)
    if form == "grouped":
        return _conv(first, torch.cat(weights), bias, count * first.groups)
    if first.groups != 1:
        raise TypeError("a convolution with groups of its own has no dense form here")
    return _conv(first, _blocks(weights), bias, 1)


def _merged_classifier(layers: Sequence[Any], role: Role) -> nn.Module:
    """Mean of the outputs of classifiers: dense over the features of all networks, which lie side by side, or over one image."""
    first, count = layers[0], len(layers)
    own = [_blocks(layer.weight.chunk(first.groups)) if isinstance(first, nn.Conv2d) else layer.weight for layer in layers]
    weight = torch.stack(own).mean(0) if role.reads_image else torch.cat(own, 1) / count
    bias = None if first.bias is None else torch.stack([layer.bias for layer in layers]).mean(0)
    return _conv(first, weight, bias, 1) if isinstance(first, nn.Conv2d) else _linear(weight, bias)


def _blocks(weights: Sequence[Tensor]) -> Tensor:
    """Convolution kernels (out, in, k, k) as one kernel with zeros between different networks."""
    out, size = weights[0].shape[:2]
    dense = weights[0].new_zeros(len(weights) * out, len(weights) * size, *weights[0].shape[2:])
    for index, weight in enumerate(weights):
        dense[index * out : (index + 1) * out, index * size : (index + 1) * size] = weight
    return dense


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    shape, like = (weight.shape[1], weight.shape[0]), {"device": weight.device, "dtype": weight.dtype}
    return _filled(nn.utils.skip_init(nn.Linear, *shape, bias=bias is not None, **like), weight, bias)


def _conv(like: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    made = nn.utils.skip_init(
        nn.Conv2d,
        weight.shape[1] * groups,
        weight.shape[0],
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        groups,
        bias is not None,
        like.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    return _filled(made, weight, bias)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


@torch.no_grad()
def _merged_norm(layers: Sequence[nn.Module]) -> nn.Module:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(layer, name) for layer in layers])

    made = norm_like(layers[0], len(joined("weight")))
    for name in ("weight", "bias", *KNOWN_STATISTICS):
        target = getattr(made, name)
        if target is not None:
            target.copy_(joined(name))
    return made
