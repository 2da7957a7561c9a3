"""The gated GRU through time as one fused forward and backward pass; :mod:`.rollout` says what it computes.

Shapes are (T, B, ·), or (T, M, B, ·) for M models at once, whose weights then have a leading M: small models cost their
overhead, and share it. The pass stores the gradients of the pre-activations of all steps and forms each weight's gradient by one
matrix product, instead of T accumulations; the matrices that act on the state (recurrent and selector) are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.methods.vfds.rollout import Gating, Layer, admit, spread


def _affine(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Bias + left @ right, for one model or several."""
    return torch.addmm(bias, left, right) if left.ndim == 2 else torch.baddbmm(bias.unsqueeze(-2), left, right)


def _gate(levels: Tensor, gating: Gating) -> Tensor:
    return (levels > 0).to(levels.dtype) if gating.hard else torch.sigmoid(levels / gating.temperature)


def gated_rollout(
    x: Tensor, offset: Tensor, selector: tuple[Tensor, Tensor], layers: Sequence[Layer], gating: Gating
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused rollout under a policy that reads the state.

    Parameters
    ----------
    x : Tensor
        (T, B, D), or (T, 1 | M, B, D) for M models.
    offset : Tensor
        Noise ν in logit space, (T, B, G) or (T, 1 | M, B, G).
    selector : pair of Tensor
        W_s (G, H) and b_s (G,), with a leading M for M models; so are the layers' weights.

    Returns
    -------
    hidden, gates, logits : Tensor
        (T, [M,] B, H), (T, [M,] B, G), (T, [M,] B, G); logits are 0 where the first step is given.
    """
    flat = [tensor for layer in layers for tensor in layer]
    return _GatedRollout.apply(gating, x, offset, *selector, *flat)


class _Tape:
    """What the forward pass of one layer leaves for the backward pass, over all steps."""

    def __init__(self, x: Tensor, models: tuple[int, ...], batch: int, size: int, width: int) -> None:
        shape = (x.shape[0], *models, batch)
        self.state = x.new_zeros(x.shape[0] + 1, *models, batch, size)  # h_{−1} … h_{T−1}
        self.active = x.new_empty(*shape, 3 * size)  # reset, update, new
        self.recurrent = x.new_empty(*shape, size)  # W_hn h + b_hn
        self.inputs = x.new_empty(*shape, width)


class _GatedRollout(torch.autograd.Function):
    """Forward and backward of :func:`gated_rollout`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, gating: Gating, x: Tensor, offset: Tensor, selector: Tensor, selector_bias: Tensor, *flat: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layers = [Layer(*flat[index : index + 4]) for index in range(0, len(flat), 4)]
        steps, batch, count = x.shape[0], x.shape[-2], selector.shape[-2]
        models, size = tuple(selector.shape[:-2]), selector.shape[-1]
        tapes = [_Tape(x, models, batch, size, layer.weight_ih.shape[-1]) for layer in layers]
        joint, joint_bias = _joint(layers[-1], selector, selector_bias, gating.scale)
        gates = x.new_empty(steps, *models, batch, count)
        logits = torch.zeros_like(gates)
        inner = [(layer.weight_ih.mT.contiguous(), layer.weight_hh.mT.contiguous()) for layer in layers]
        for step in range(steps):
            from_state = [
                _affine(layer.bias_hh, tape.state[step], inner[index][1])
                for index, (layer, tape) in enumerate(zip(layers[:-1], tapes, strict=False))
            ]
            both = _affine(joint_bias, tapes[-1].state[step], joint)
            from_state.append(both[..., : 3 * size])
            given = step == 0 and gating.first is not None
            if given:
                gates[0] = cast(Tensor, gating.first)
            else:
                logits[step] = both[..., 3 * size :]
                gates[step] = _gate(logits[step] + offset[step] + gating.level, gating)
            below = admit(x[step], spread(gates[step], gating), gating.hard)
            if gating.gain != 1 and not given:
                below = below * gating.gain
            for index, (layer, tape) in enumerate(zip(layers, tapes, strict=True)):
                below = _advance(tape, step, below, from_state[index], layer.bias_ih, inner[index][0])
        ctx.gating, ctx.count = gating, count
        ctx.save_for_backward(
            x, offset, selector, selector_bias, gates, logits, *flat, *(part for tape in tapes for part in vars(tape).values())
        )
        return tapes[-1].state[1:].clone(), gates, logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor, d_gates: Tensor, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        return _Backward(ctx, d_hidden, d_gates, d_logits).gradients()


def _joint(top: Layer, selector: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Recurrent and selector weights as one matrix (H, 3H + G) and one bias."""
    weight = torch.cat([top.weight_hh, scale * selector], -2)
    return weight.mT.contiguous(), torch.cat([top.bias_hh, scale * bias], -1)


def _advance(tape: _Tape, step: int, below: Tensor, from_state: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """One GRU cell, written to the tape; returns the new state."""
    tape.inputs[step] = below
    from_input = _affine(bias, tape.inputs[step], weight)
    return _cell(from_input, from_state, tape.active[step], tape.recurrent[step], tape.state[step], tape.state[step + 1])


def _cell(from_input: Tensor, from_state: Tensor, active: Tensor, recurrent: Tensor, state: Tensor, out: Tensor) -> Tensor:
    """PyTorch's GRU cell, written to ``active``, ``recurrent`` and ``out``."""
    size = state.shape[-1]
    torch.sigmoid(from_input[..., : 2 * size] + from_state[..., : 2 * size], out=active[..., : 2 * size])
    recurrent.copy_(from_state[..., 2 * size :])
    new = active[..., 2 * size :]
    torch.tanh(torch.addcmul(from_input[..., 2 * size :], active[..., :size], recurrent), out=new)
    return torch.lerp(new, state, active[..., size : 2 * size], out=out)


class _Backward:
    """Back-propagation through time on the tapes.

    Gradients of pre-activations are kept as (new, reset, update, recurrent new[, logits]) so that those of the input
    (the first three) and those of the state (all but the first) are slices of one buffer.
    """

    def __init__(self, ctx: Any, d_hidden: Tensor, d_gates: Tensor, d_logits: Tensor) -> None:
        self.gating: Gating = ctx.gating
        self.needs = ctx.needs_input_grad
        saved = ctx.saved_tensors
        self.x, self.offset, self.selector, self.selector_bias, self.gates, self.logits = saved[:6]
        n_layers = (len(saved) - 6) // 8
        self.layers = [Layer(*saved[6 + 4 * index : 10 + 4 * index]) for index in range(n_layers)]
        tapes = saved[6 + 4 * n_layers :]
        self.tapes = [tapes[4 * index : 4 * index + 4] for index in range(n_layers)]
        self.size = self.selector.shape[-1]
        self.d_hidden, self.d_gates, self.d_logits = d_hidden, d_gates, d_logits

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of all arguments of the forward pass."""
        d_inputs = self.through_time()
        d_x = None
        if self.needs[1]:
            d_x = d_inputs * spread(self.gates, self.gating)
            d_x = d_x.sum(1, keepdim=True) if d_x.ndim > 3 and self.x.shape[1] == 1 else d_x
        out: list[Tensor | None] = []
        size, top = self.size, len(self.layers) - 1
        for index, (state, _, _, inputs) in enumerate(self.tapes):
            buffer = self.buffers[index]
            by_input, by_state = buffer[..., : 3 * size], buffer[..., size : 4 * size]
            d_ih = _outer(by_input, inputs)
            d_hh = _outer(buffer[..., size:] if index == top else by_state, state[:-1])
            b_ih, b_hh = _total(by_input), _total(buffer[..., size:])
            if index == top:
                scale = self.gating.scale
                d_selector, d_bias = scale * d_hh[..., 3 * size :, :], scale * b_hh[..., 3 * size :]
                d_hh, b_hh = d_hh[..., : 3 * size, :], b_hh[..., : 3 * size]
            turned = torch.cat([d_ih[..., size:, :], d_ih[..., :size, :]], -2)
            out += [turned, d_hh, torch.cat([b_ih[..., size:], b_ih[..., :size]], -1), b_hh]
        return (None, d_x, None, d_selector, d_bias, *out)

    def slopes(self) -> Tensor | None:
        """Derivative of every gate by its logit, (T, [M,] B, G); 0 where the first step is given."""
        gating = self.gating
        if gating.slope == "none":
            return None
        if gating.slope == "sigmoid":
            soft, temperature = torch.sigmoid(self.logits), 1.0
        elif gating.hard:
            soft, temperature = torch.sigmoid((self.logits + self.offset + gating.level) / gating.temperature), gating.temperature
        else:
            soft, temperature = self.gates, gating.temperature
        slopes = soft * (1 - soft) / temperature
        if gating.first is not None:
            slopes[0] = 0
        return slopes

    def through_time(self) -> Tensor:
        """Fill the buffers from the last step to the first; returns the gradient of the gated inputs (T, [M,] B, D)."""
        size, top, gating = self.size, len(self.layers) - 1, self.gating
        steps, slopes = len(self.x), self.slopes()
        local = [_local(tape, size) for tape in self.tapes]
        extra = [self.gates.shape[-1] if index == top else 0 for index in range(top + 1)]
        lead = self.gates.shape[:-1]
        self.buffers = [self.x.new_zeros(*lead, 4 * size + more) for more in extra]
        d_inputs = torch.empty_like(self.tapes[0][3])
        into = [
            torch.cat([layer.weight_ih[..., 2 * size :, :], layer.weight_ih[..., : 2 * size, :]], -2) for layer in self.layers
        ]
        back = [layer.weight_hh for layer in self.layers]
        back[top] = torch.cat([back[top], gating.scale * self.selector], -2)
        carried = [torch.zeros_like(self.tapes[0][0][0]) for _ in self.layers]
        for step in range(steps - 1, -1, -1):
            d_state = self.d_hidden[step]
            kept = []
            for index in range(top, -1, -1):
                d_state = carried[index] + d_state
                buffer = self.buffers[index][step]
                _preactivations(buffer, d_state, [part[step] for part in local[index]], size)
                kept.append(d_state * local[index][4][step])
                d_state = torch.matmul(buffer[..., : 3 * size], into[index])
            given = step == 0 and gating.first is not None
            if gating.gain != 1 and not given:
                d_state = d_state * gating.gain
            d_inputs[step] = d_state
            if not given:
                self._gate_gradient(step, d_state, slopes)
            for index, part in zip(range(top, -1, -1), kept, strict=True):
                carried[index] = part + torch.matmul(self.buffers[index][step][..., size:], back[index])
        return d_inputs

    def _gate_gradient(self, step: int, d_inputs: Tensor, slopes: Tensor | None) -> None:
        """Write the gradient of the logits of one step into the buffer."""
        target = self.buffers[-1][step][..., 4 * self.size :]
        if slopes is None:
            target.copy_(self.d_logits[step])
            return
        d_gates = d_inputs * self.x[step]
        if self.gating.index is not None:
            d_gates = torch.zeros_like(self.d_gates[step]).index_add_(-1, self.gating.index, d_gates)
        torch.addcmul(self.d_logits[step], d_gates + self.d_gates[step], slopes[step], out=target)


def _local(tape: Sequence[Tensor], size: int) -> list[Tensor]:
    """Derivatives that do not depend on what comes from later steps, of all steps at once."""
    state, active, recurrent = tape[:3]
    reset, update, new = active[..., :size], active[..., size : 2 * size], active[..., 2 * size :]
    of_new = (1 - update) * (1 - new * new)
    of_update = (state[:-1] - new) * update * (1 - update)
    of_reset = recurrent * reset * (1 - reset)
    return [of_new, of_reset, of_update, reset, update]


def _preactivations(buffer: Tensor, d_state: Tensor, local: Sequence[Tensor], size: int) -> None:
    """Gradients (new, reset, update, recurrent new) of one cell."""
    of_new, of_reset, of_update, reset, _ = local
    d_new = torch.mul(d_state, of_new, out=buffer[..., :size])
    torch.mul(d_new, of_reset, out=buffer[..., size : 2 * size])
    torch.mul(d_state, of_update, out=buffer[..., 2 * size : 3 * size])
    torch.mul(d_new, reset, out=buffer[..., 3 * size : 4 * size])


def _outer(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Σ over steps and batch of gradient ⊗ inputs, one matrix product: (T, [M,] B, P), (T, [M,] B, Q) to ([M,] P, Q)."""
    if gradient.ndim == 3:
        return gradient.flatten(0, 1).mT @ inputs.flatten(0, 1)
    return gradient.transpose(0, 1).flatten(1, 2).mT @ inputs.transpose(0, 1).flatten(1, 2)


def _total(gradient: Tensor) -> Tensor:
    return gradient.sum((0, -2))


def ungated_rollout(inputs: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Stacked GRU layers on inputs that are gated already (policies that do not read the state).

    Parameters
    ----------
    inputs : Tensor
        (T, B, D), or (T, M, B, D) for M models.

    Returns
    -------
    Tensor
        Hidden states of the top layer, (T, [M,] B, H).
    """
    if inputs.is_cuda and inputs.ndim == 3:
        flat = [tensor for layer in layers for tensor in layer]
        start = inputs.new_zeros(len(layers), inputs.shape[1], layers[0].weight_hh.shape[-1])
        return torch.gru(inputs, start, flat, True, len(layers), 0.0, False, False, False)[0]
    for layer in layers:
        from_input = inputs @ layer.weight_ih.mT + layer.bias_ih.unsqueeze(-2)
        inputs = _Recurrence.apply(from_input, layer.weight_hh, layer.bias_hh)
    return inputs


class _Recurrence(torch.autograd.Function):
    """One GRU layer on its pre-activations from the input, (T, [M,] B, 3H)."""

    @staticmethod
    def forward(ctx: Any, from_input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        steps, size = from_input.shape[0], weight.shape[-1]
        state = from_input.new_zeros(steps + 1, *from_input.shape[1:-1], size)
        active = torch.empty_like(from_input)
        recurrent = torch.empty_like(state[1:])
        turned = weight.mT.contiguous()
        for step in range(steps):
            from_state = _affine(bias, state[step], turned)
            _cell(from_input[step], from_state, active[step], recurrent[step], state[step], state[step + 1])
        ctx.save_for_backward(state, active, recurrent, weight)
        return state[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, active, recurrent, weight = ctx.saved_tensors
        size = weight.shape[-1]
        local = _local((state, active, recurrent), size)
        buffer = state.new_empty(*active.shape[:-1], 4 * size)
        carried = torch.zeros_like(state[0])
        for step in range(len(active) - 1, -1, -1):
            d_state = carried + d_hidden[step]
            _preactivations(buffer[step], d_state, [part[step] for part in local], size)
            carried = torch.addcmul(torch.matmul(buffer[step][..., size:], weight), d_state, local[4][step])
        by_state = buffer[..., size:]
        d_input = torch.cat([buffer[..., size : 3 * size], buffer[..., :size]], -1)
        return d_input, _outer(by_state, state[:-1]), _total(by_state)
