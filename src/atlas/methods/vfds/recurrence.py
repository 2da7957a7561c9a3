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

from atlas.methods.vfds.rollout import Gating, Layer, project, spread


def _affine(bias: Tensor, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Bias + left @ right, for one model or several."""
    if left.ndim == 2:
        return torch.addmm(bias, left, right, out=out)
    return torch.baddbmm(bias.unsqueeze(-2), left, right, out=out)


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
    """What the forward pass of one layer leaves for the backward pass, over all steps, and its rows as lists of steps."""

    def __init__(self, x: Tensor, models: tuple[int, ...], batch: int, size: int, width: int, extra: int) -> None:
        shape = (x.shape[0], *models, batch)
        self.state = x.new_empty(x.shape[0] + 1, *models, batch, size)  # h_{−1} … h_{T−1}
        self.state[0] = 0
        self.active = x.new_empty(*shape, 3 * size)  # reset, update, new
        self.from_state = x.new_empty(*shape, 3 * size + extra)  # W_h h + b_h, and of the top layer the logits
        self.inputs = x.new_empty(*shape, width)
        self.states, self.opened = self.state.unbind(0), self.inputs.unbind(0)
        self.both = self.from_state.unbind(0)
        self.cells = _cells(self.active, self.from_state[..., : 3 * size], size)

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """The tensors that the backward pass needs."""
        return self.state, self.active, self.from_state, self.inputs


def _cells(active: Tensor, from_state: Tensor, size: int) -> list[tuple[Tensor, ...]]:
    """For every step the slices that :func:`_cell` reads and writes."""
    parts = (
        active[..., : 2 * size],
        active[..., :size],
        active[..., size : 2 * size],
        active[..., 2 * size :],
        from_state[..., : 2 * size],
        from_state[..., 2 * size :],
    )
    return list(zip(*(part.unbind(0) for part in parts), strict=True))


class _GatedRollout(torch.autograd.Function):
    """Forward and backward of :func:`gated_rollout`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, gating: Gating, x: Tensor, offset: Tensor, selector: Tensor, selector_bias: Tensor, *flat: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layers = [Layer(*flat[index : index + 4]) for index in range(0, len(flat), 4)]
        batch, count, size = x.shape[-2], selector.shape[-2], selector.shape[-1]
        models, last = tuple(selector.shape[:-2]), len(layers) - 1
        tapes = [
            _Tape(x, models, batch, size, layer.weight_ih.shape[-1], count if index == last else 0)
            for index, layer in enumerate(layers)
        ]
        inward = [(layer.weight_ih.mT.contiguous(), layer.bias_ih) for layer in layers]
        onward = [(layer.weight_hh.mT.contiguous(), layer.bias_hh) for layer in layers]
        onward[-1] = _joint(layers[-1], selector, selector_bias, gating.scale)
        decide = _Decisions(gating, x, offset, (len(x), *models, batch, count))
        logits = tapes[-1].from_state[..., 3 * size :]
        for step, alpha in enumerate(logits.unbind(0)):
            for tape, (weight, bias) in zip(tapes, onward, strict=True):
                _affine(bias, tape.states[step], weight, out=tape.both[step])
            below = decide.admit(step, alpha, tapes[0].opened[step])
            for index, (tape, (weight, bias)) in enumerate(zip(tapes, inward, strict=True)):
                if index:
                    below = tape.opened[step].copy_(below)
                below = _cell(_affine(bias, below, weight), tape.cells[step], tape.states[step], tape.states[step + 1])
        if gating.first is not None:
            logits[0] = 0
        ctx.gating = gating
        ctx.save_for_backward(
            x, offset, selector, decide.gates, logits, *flat, *(tensor for tape in tapes for tensor in tape.saved)
        )
        return tapes[-1].state[1:].clone(), decide.gates, logits.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor, d_gates: Tensor, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        return _Backward(ctx, d_hidden, d_gates, d_logits).gradients()


class _Decisions:
    """Gates of every step, and the values that they let in."""

    def __init__(self, gating: Gating, x: Tensor, offset: Tensor, shape: tuple[int, ...]) -> None:
        self.gating = gating
        self.gates = x.new_empty(shape)
        self.inverse = 1.0 if gating.hard else 1 / gating.temperature
        self.x, self.rows = x.unbind(0), self.gates.unbind(0)
        self.offset = ((offset + gating.level) * self.inverse).unbind(0)
        self.nothing = x.new_zeros(())

    def admit(self, step: int, alpha: Tensor, out: Tensor) -> Tensor:
        """Decide a step from its logits and write the gated input."""
        gates, gating = self.rows[step], self.gating
        given = step == 0 and gating.first is not None
        if given:
            gates.copy_(cast(Tensor, gating.first))
        else:
            levels = torch.add(self.offset[step], alpha, alpha=self.inverse)
            if gating.hard:
                gates.copy_(levels > 0)
            else:
                torch.sigmoid(levels, out=gates)
        opened = spread(gates, gating)
        if gating.hard:
            out.copy_(torch.where(opened > 0, self.x[step], self.nothing))
        else:
            torch.mul(opened, self.x[step], out=out)
        return out if given or gating.gain == 1 else out.mul_(gating.gain)


def _joint(top: Layer, selector: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Recurrent and selector weights as one matrix (H, 3H + G) and one bias."""
    weight = torch.cat([top.weight_hh, scale * selector], -2)
    return weight.mT.contiguous(), torch.cat([top.bias_hh, scale * bias], -1)


def _cell(from_input: Tensor, slices: tuple[Tensor, ...], state: Tensor, out: Tensor) -> Tensor:
    """PyTorch's GRU cell: ``slices`` of :func:`_cells` take its activations, ``out`` the next state."""
    both, reset, update, new, of_gates, recurrent = slices
    size = state.shape[-1]
    torch.sigmoid(from_input[..., : 2 * size].add_(of_gates), out=both)
    torch.tanh(from_input[..., 2 * size :].addcmul_(reset, recurrent), out=new)
    return torch.lerp(new, state, update, out=out)


class _Backward:
    """Back-propagation through time on the tapes.

    Gradients of pre-activations are kept as (new, reset, update, recurrent new[, logits]) so that those of the input
    (the first three) and those of the state (all but the first) are slices of one buffer.
    """

    def __init__(self, ctx: Any, d_hidden: Tensor, d_gates: Tensor, d_logits: Tensor) -> None:
        self.gating: Gating = ctx.gating
        self.needs = ctx.needs_input_grad
        saved = ctx.saved_tensors
        self.selector = saved[2]
        self.batch, self.rows = saved[0].shape[-2], self.gating.learning
        self.x, self.offset, self.gates, self.logits = map(self.learning, (saved[0], saved[1], saved[3], saved[4]))
        n_layers = (len(saved) - 5) // 8
        self.layers = [Layer(*saved[5 + 4 * index : 9 + 4 * index]) for index in range(n_layers)]
        tapes = saved[5 + 4 * n_layers :]
        self.tapes = [[self.learning(tensor) for tensor in tapes[4 * index : 4 * index + 4]] for index in range(n_layers)]
        self.size = self.selector.shape[-1]
        self.d_hidden, self.d_gates, self.d_logits = map(self.learning, (d_hidden, d_gates, d_logits))
        self.of_inputs = self.needs[1] or self.gating.slope != "none"  # nothing else asks for the gradient of the gated inputs

    def learning(self, tensor: Tensor) -> Tensor:
        """The rows (…, B, ·) of the sequences through which gradients flow."""
        return tensor if self.rows is None else tensor[..., : self.rows, :]

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of all arguments of the forward pass."""
        d_inputs = self.through_time()
        d_x = None
        if self.needs[1]:
            d_x = d_inputs * spread(self.gates, self.gating)
            d_x = torch.nn.functional.pad(d_x, (0, 0, 0, self.batch - d_x.shape[-2]))
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
        slopes = (1 - soft).mul_(soft).mul_(1 / temperature)
        if gating.first is not None:
            slopes[0] = 0
        return slopes

    def through_time(self) -> Tensor:
        """Fill the buffers from the last step to the first; returns the gradient of the gated inputs (T, [M,] B, D)."""
        size, top, gating = self.size, len(self.layers) - 1, self.gating
        extra = [self.gates.shape[-1] if index == top else 0 for index in range(top + 1)]
        self.buffers = [self.x.new_empty(*self.gates.shape[:-1], 4 * size + more) for more in extra]
        if gating.first is not None:
            self.buffers[top][0, ..., 4 * size :] = 0
        inner = [layer.weight_ih for layer in self.layers]
        into = [torch.cat([weight[..., 2 * size :, :], weight[..., : 2 * size, :]], -2) for weight in inner]
        back = [layer.weight_hh for layer in self.layers]
        back[top] = torch.cat([back[top], gating.scale * self.selector], -2)
        unrolled = [_Unrolled(tape, buffer, size) for tape, buffer in zip(self.tapes, self.buffers, strict=True)]
        carried = [torch.zeros_like(self.tapes[0][0][0]) for _ in self.layers]
        d_hidden, d_inputs = self.d_hidden.contiguous().unbind(0), torch.empty_like(self.tapes[0][3])
        rows, decide = d_inputs.unbind(0), _Logits(self)
        for step in range(len(self.x) - 1, -1, -1):
            d_state, kept = d_hidden[step], []
            for index in range(top, -1, -1):
                d_state = carried[index] + d_state
                kept.append(unrolled[index].backward(step, d_state))
                if index or self.of_inputs:
                    out = rows[step] if index == 0 else None
                    d_state = _product(unrolled[index].by_input[step], into[index], out)
            if step or gating.first is None:
                if gating.gain != 1 and self.of_inputs:
                    d_state.mul_(gating.gain)
                decide.backward(step, d_state)
            for index, part in zip(range(top, -1, -1), kept, strict=True):
                carried[index] = _plus_product(part, unrolled[index].by_state[step], back[index])
        return d_inputs


class _Logits:
    """Gradient of the logits, written into the top layer's buffer."""

    def __init__(self, owner: _Backward) -> None:
        self.gating = owner.gating
        slopes = owner.slopes()
        self.slopes = None if slopes is None else slopes.unbind(0)
        self.x, self.d_gates = owner.x.unbind(0), owner.d_gates.unbind(0)
        self.d_logits = owner.d_logits.unbind(0)
        self.targets = owner.buffers[-1][..., 4 * owner.size :].unbind(0)

    def backward(self, step: int, d_inputs: Tensor) -> None:
        """One step, from the gradient of its gated input."""
        if self.slopes is None:
            self.targets[step].copy_(self.d_logits[step])
            return
        if self.gating.index is None:
            d_gates = torch.addcmul(self.d_gates[step], d_inputs, self.x[step])
        else:
            d_gates = self.d_gates[step].index_add(-1, self.gating.index, d_inputs * self.x[step])
        torch.addcmul(self.d_logits[step], d_gates, self.slopes[step], out=self.targets[step])


class _Unrolled:
    """One layer's tape as lists of steps, with the derivatives that do not depend on what comes from later steps."""

    def __init__(self, tape: Sequence[Tensor], buffer: Tensor, size: int) -> None:
        state, active, from_state = tape[:3]
        reset, update, new = active[..., :size], active[..., size : 2 * size], active[..., 2 * size :]
        closed = 1 - update
        of_new = torch.addcmul(closed, closed, new * new, value=-1)
        of_update = (state[:-1] - new).mul_(update).mul_(closed)
        of_reset = (1 - reset).mul_(reset).mul_(from_state[..., 2 * size : 3 * size])
        targets = [buffer[..., index * size : (index + 1) * size] for index in range(4)]
        local = (of_new, of_reset, of_update, reset, update)
        self.rows = list(zip(*(part.unbind(0) for part in (*local, *targets)), strict=True))
        self.by_input, self.by_state = buffer[..., : 3 * size].unbind(0), buffer[..., size:].unbind(0)

    def backward(self, step: int, d_state: Tensor) -> Tensor:
        """Write the gradients (new, reset, update, recurrent new) of one cell; returns what skips the cell."""
        of_new, of_reset, of_update, reset, update, d_new, d_reset, d_update, d_recurrent = self.rows[step]
        torch.mul(d_state, of_new, out=d_new)
        torch.mul(d_new, of_reset, out=d_reset)
        torch.mul(d_state, of_update, out=d_update)
        torch.mul(d_new, reset, out=d_recurrent)
        return d_state * update


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mm(left, right, out=out) if left.ndim == 2 else torch.bmm(left, right, out=out)


def _plus_product(addend: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return addend.addmm_(left, right) if left.ndim == 2 else addend.baddbmm_(left, right)


def _outer(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Σ over steps and batch of gradient ⊗ inputs, one matrix product: (T, [M,] B, P), (T, [M,] B, Q) to ([M,] P, Q)."""
    if gradient.ndim == 3:
        return gradient.flatten(0, 1).mT @ inputs.flatten(0, 1)
    return gradient.transpose(0, 1).flatten(1, 2).mT @ inputs.transpose(0, 1).flatten(1, 2)


def _total(gradient: Tensor) -> Tensor:
    return gradient.sum((0, -2))


def library_rollout(inputs: Tensor, layers: Sequence[Layer]) -> Tensor:
    """As :func:`ungated_rollout` for one model, (T, B, D) to (T, B, H), by torch's own GRU, which is cuDNN's on a GPU.

    cuDNN keeps what a backward pass needs only if it is told that it trains, dropout or not.
    """
    flat = [tensor for layer in layers for tensor in layer]
    start = inputs.new_zeros(len(layers), inputs.shape[1], layers[0].weight_hh.shape[-1])
    trains = torch.is_grad_enabled()
    return torch.gru(
        inputs,
        start,
        flat,
        has_biases=True,
        num_layers=len(layers),
        dropout=0.0,
        train=trains,
        bidirectional=False,
        batch_first=False,
    )[0]


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
        return library_rollout(inputs, layers)
    for layer in layers:
        from_input = project(inputs, layer.weight_ih, layer.bias_ih)
        inputs = _Recurrence.apply(from_input, layer.weight_hh, layer.bias_hh)
    return inputs


class _Recurrence(torch.autograd.Function):
    """One GRU layer on its pre-activations from the input, (T, [M,] B, 3H)."""

    @staticmethod
    def forward(ctx: Any, from_input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        size = weight.shape[-1]
        state = from_input.new_empty(len(from_input) + 1, *from_input.shape[1:-1], size)
        state[0] = 0
        active, from_state = torch.empty_like(from_input), torch.empty_like(from_input)
        turned, states, both = weight.mT.contiguous(), state.unbind(0), from_state.unbind(0)
        cells = _cells(active, from_state, size)
        for step, values in enumerate(from_input.clone().unbind(0)):
            _affine(bias, states[step], turned, out=both[step])
            _cell(values, cells[step], states[step], states[step + 1])
        ctx.save_for_backward(state, active, from_state, weight)
        return state[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, active, from_state, weight = ctx.saved_tensors
        size = weight.shape[-1]
        buffer = state.new_empty(*active.shape[:-1], 4 * size)
        unrolled = _Unrolled((state, active, from_state), buffer, size)
        carried, rows = torch.zeros_like(state[0]), d_hidden.contiguous().unbind(0)
        for step in range(len(active) - 1, -1, -1):
            kept = unrolled.backward(step, carried.add_(rows[step]))
            carried = _plus_product(kept, unrolled.by_state[step], weight)
        by_state = buffer[..., size:]
        d_input = torch.cat([buffer[..., size : 3 * size], buffer[..., :size]], -1)
        return d_input, _outer(by_state, state[:-1]), _total(by_state)
