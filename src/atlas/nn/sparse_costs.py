"""Multiply-accumulates of sparse networks, and floating-point operations of their adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from atlas.nn.kinds import require_kind, require_sequence
from atlas.nn.modes import mode_of

COUNTED = (_ConvNd, nn.Linear)


@dataclass(frozen=True)
class FlopsReport:
    """Cost of one forward pass of one example: of convolutions, linear layers and projections of attention, by existing weights.

    Attributes
    ----------
    per_layer : dict
        Parameter name to the multiply-accumulates of its existing weights.
    dense_per_layer : dict
        The same with every weight.
    outputs : dict
        Parameter name to the number of outputs of its layer.
    """

    per_layer: dict[str, int]
    dense_per_layer: dict[str, int]
    outputs: dict[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the existing weights."""
        return sum(self.per_layer.values())

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense network."""
        return sum(self.dense_per_layer.values())

    @property
    def sparse(self) -> float:
        """Floating-point operations of the existing weights: two per multiply-accumulate."""
        return 2.0 * self.macs

    @property
    def dense(self) -> float:
        """Floating-point operations of the dense network."""
        return 2.0 * self.dense_macs

    @property
    def ratio(self) -> float:
        """Cost relative to the dense network's."""
        return self.macs / self.dense_macs


def flops(model: nn.Module, input_shape: tuple[int, ...], masks: Mapping[str, Tensor] | None = None) -> FlopsReport:
    """Count the cost of a forward pass, layer by layer.

    Convolutions of any dimension, linear layers and the projections of ``nn.MultiheadAttention`` count, wherever the layer's
    input has its examples; products without weights, as of queries and keys, do not.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one example, without the batch.
    masks : mapping, optional
        Parameter name to where its weights exist; layers without a mask are dense.

    Raises
    ------
    KeyError
        A mask is named after no counted weight.
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    require_sequence("the shape of one example", input_shape=input_shape)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    dense: dict[str, int] = {}
    outputs: dict[str, int] = {}

    def add(weight: Tensor, macs: int, made: int) -> None:
        name = names[id(weight)]
        dense[name] = dense.get(name, 0) + macs
        outputs[name] = outputs.get(name, 0) + made

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen = inputs[0] if getattr(module, "transposed", False) else output  # the batch is one example
        add(module.weight, module.weight.numel() * (seen.numel() // module.weight.shape[0]), output.numel())

    def count_attention(module: nn.MultiheadAttention, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:
        asked = [*inputs[:3], *(named[name] for name in ("query", "key", "value")[len(inputs) :])]
        tokens = [tensor.numel() // tensor.shape[-1] for tensor in asked]
        width = module.embed_dim
        if module.in_proj_weight is None:
            for weight, seen in zip((module.q_proj_weight, module.k_proj_weight, module.v_proj_weight), tokens, strict=True):
                add(weight, weight.numel() * seen, width * seen)
        else:
            add(module.in_proj_weight, width * width * sum(tokens), width * sum(tokens))  # a third for each of the three
        add(module.out_proj.weight, width * width * tokens[0], width * tokens[0])

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, COUNTED)]
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            hooks.append(module.register_forward_hook(count_attention, with_kwargs=True))
    like = next(model.parameters())
    try:
        with torch.no_grad(), mode_of(model, "eval"):
            model(torch.zeros(1, *input_shape, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    sparse = dict(dense)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, mask in (masks or {}).items():
        if name not in dense:
            raise KeyError(
                f"there is a mask for {name}, which is no weight of a convolution, linear layer or attention that was used"
            )
        sparse[name] = dense[name] * int(mask.count_nonzero()) // sizes[name]
    return FlopsReport(sparse, dense, outputs)


@dataclass(frozen=True)
class EpochCost:
    """What one epoch of training did.

    Attributes
    ----------
    examples : int
        Training examples seen.
    flops : float
        Floating-point operations of a forward pass of one of them, with the weights that existed.
    dense_flops : float
        The same of the dense network.
    grown_examples : int
        Examples in the batches whose dense gradient decided where to grow: one batch per topology update.
    attack_steps : int, optional
        Steps of the attack, where they differ from the rest of the training; 0 for standard training.
    """

    examples: int
    flops: float
    dense_flops: float = 0.0
    grown_examples: int = 0
    attack_steps: int | None = None


def training_flops(
    log: Iterable[EpochCost | Mapping[str, Any]], attack_steps: int, convention: Literal["exact", "paper"] = "exact"
) -> float:
    """Floating-point operations of a whole (adversarial) training.

    With F of a forward pass, ``exact`` charges an attack step 2F (no gradient of the weights) and the update 3F: (2K + 3)·F
    per example, with the weights that existed in that epoch, and F_dense − F more where a dense gradient was needed.
    ``paper`` charges 3F for each of K + 1 passes, with the weights that existed at the END of the adversarial training, as
    the paper's table does.

    Parameters
    ----------
    log : iterable of EpochCost, or of mappings of its fields
        Every epoch, those of a standard first stage included.
    attack_steps : int
        Steps K of the attack.

    Raises
    ------
    ValueError
        The convention does not exist, or ``attack_steps`` is below 0.
    """
    if convention not in ("exact", "paper"):
        raise ValueError(f"convention must be exact or paper, not {convention!r}")
    if attack_steps < 0:
        raise ValueError(f"attack_steps must be at least 0, not {attack_steps}")
    epochs = [epoch if isinstance(epoch, EpochCost) else EpochCost(**epoch) for epoch in log]
    total = 0.0
    for epoch in epochs:
        steps = attack_steps if epoch.attack_steps is None else epoch.attack_steps
        if convention == "exact":
            total += (2 * steps + 3) * epoch.flops * epoch.examples
            total += max(0.0, epoch.dense_flops - epoch.flops) * epoch.grown_examples
        else:
            cost = epochs[-1].flops if epoch.attack_steps is None else epoch.flops
            total += 3 * (steps + 1) * cost * epoch.examples
    return total
