"""Gates on whole blocks: sampled keep weights, and the wrapper that applies them.

A block's output is k·block(x) + (1 − k)·x, exact at k = 0 and k = 1; there is one draw per block and forward pass, shared by the
batch.
"""

from __future__ import annotations

from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from atlas.methods.uvc.settings import Gate, UVCSettings

DEFAULTS = UVCSettings()
TEMPERATURE = 0.5
EPSILON = 0.1
"""ε of the gates ``softl0``; in a search, at its start."""
HANDLE = "_uvc_gates"
GATES = get_args(Gate)


def require_gate(gate: str) -> None:
    """Raise a ``ValueError`` where there is no such gate."""
    if gate not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}, not {gate!r}")


def sample_gates(
    logits: Tensor,
    gate: Gate = DEFAULTS.gate,
    *,
    temperature: float = TEMPERATURE,
    epsilon: float = EPSILON,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw keep weights of blocks.

    Parameters
    ----------
    logits : Tensor
        (L, 2): skip, keep.
    gate : {"gumbel_soft", "gumbel_hard", "softl0"}
        Softmax of the logits with Gumbel noise; the same rounded, with its gradient passed straight through; or, without
        noise, g²/(g² + ε) of the keep logit.
    temperature, epsilon : float
        τ of the softmax, ε of ``softl0``.
    generator : torch.Generator, optional
        On the CPU: the draws do not depend on the device.

    Returns
    -------
    Tensor
        (L,) in [0, 1], differentiable in ``logits``.

    Raises
    ------
    ValueError
        There is no such gate.
    """
    require_gate(gate)
    if gate == "softl0":
        square = logits[:, 1].square()
        return square / (square + epsilon)
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float32).clamp_(1e-20, 1 - 1e-7)
    noise = -torch.log(-torch.log(uniform.to(logits)))
    soft = ((logits + noise) / temperature).softmax(-1)[:, 1]
    if gate == "gumbel_hard":
        return (soft > 0.5).to(soft) + (soft - soft.detach())
    return soft


def gate_slope(logits: Tensor, keep: Tensor, gate: Gate, *, temperature: float = TEMPERATURE, epsilon: float = EPSILON) -> Tensor:
    """(L, 2): ∂k/∂logits of a draw, in closed form; ``gumbel_hard`` has the slope of the soft draw that ``keep`` must be then."""
    if gate == "softl0":
        slope = 2 * epsilon * logits[:, 1] / (logits[:, 1].square() + epsilon).square()
        return torch.stack((torch.zeros_like(slope), slope), -1)
    slope = keep * (1 - keep) / temperature
    return torch.stack((-slope, slope), -1)


class GateSource(Protocol):
    """What decides about the gates of a model, for example :class:`.controller.UVCController`."""

    def draw(self) -> None:
        """Draw the gates of the next forward pass."""

    def drawn(self) -> Tensor:
        """Return the keep weights of this forward pass, (L,) in [0, 1]."""

    def decision(self) -> list[bool]:
        """Return which of the L blocks stay."""


class GatedBlock(nn.Module):
    """A block with a gate: a weighted draw in training; kept or skipped in evaluation, without computing what is skipped."""

    def __init__(self, block: nn.Module, controller: GateSource, index: int) -> None:
        super().__init__()
        self.block = block
        self.controller = controller
        self.index = index
        self.training = block.training

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Pass (batch, tokens, dim) through the block, or part of it, or around it."""
        if not self.training:
            return self.block(x, *args, **kwargs) if self.controller.decision()[self.index] else x
        keep = self.controller.drawn()[self.index].to(x.dtype)
        return keep * self.block(x, *args, **kwargs) + (1 - keep) * x


class _Draw:
    """A hook that draws gates before every pass in training; a copy of the model has a copy of the controller with it."""

    def __init__(self, controller: GateSource) -> None:
        self.controller = controller

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self.controller.draw()


def apply_gates(model: Any, controller: GateSource) -> Any:
    """Put a gate around every block of a timm VisionTransformer, in place; :func:`remove_gates` takes them off.

    A copy of the model, an average of weights for example, has a controller of its own, which stays as it was when copied.

    Raises
    ------
    RuntimeError
        The model has gates already.
    """
    if is_gated(model):
        raise RuntimeError("the model has gates already; remove_gates first")
    for index, block in enumerate(model.blocks):
        model.blocks[index] = GatedBlock(block, controller, index)
    setattr(model, HANDLE, model.register_forward_pre_hook(_Draw(controller)))
    return model


def remove_gates(model: Any) -> Any:
    """Take the gates off, in place; the blocks are the very modules that they were."""
    for index, block in enumerate(model.blocks):
        if isinstance(block, GatedBlock):
            model.blocks[index] = block.block
    handle = getattr(model, HANDLE, None)
    if handle is not None:
        handle.remove()
        delattr(model, HANDLE)
    return model


def is_gated(model: Any) -> bool:
    """Return whether some block of a timm VisionTransformer has a gate around it."""
    return any(isinstance(block, GatedBlock) for block in getattr(model, "blocks", ()))
