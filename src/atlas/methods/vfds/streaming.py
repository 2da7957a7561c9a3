"""The deployment loop: ask which sensors to read, read those, hand the values in, take the prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from atlas.methods.vfds.rollout import Layer, gate
from atlas.nn.examples import as_tensor
from atlas.nn.sequences import first_place


class StreamingPolicy:
    """A model in use, one step at a time; made by :meth:`.model.SelectiveGRU.stream`.

    >>> policy = model.stream()                                                             # doctest: +SKIP
    >>> wanted = policy.request()      # (1, G) booleans, before any sensor is read          # doctest: +SKIP
    >>> logits = policy.observe(read_sensors(wanted))   # (1, D); what was not asked may be NaN  # doctest: +SKIP

    With a batch of one, columns of the input weights are gathered for what was acquired, so that a step costs O(H · k) instead of
    O(H · D) for k acquired features.
    """

    def __init__(
        self,
        model: Any,  # a SelectiveGRU, whose module imports this one
        batch: int = 1,
        gates: Literal["sample", "threshold"] = "threshold",
        generator: torch.Generator | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        if gates not in ("sample", "threshold"):
            raise ValueError(f"a stream takes sample or threshold gates, not {gates}")
        self.model, self.batch, self.generator = model, batch, generator
        self.gates: Literal["sample", "threshold"] = gates
        self._first, *self._others = model.layers
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next step is the first. Weights that the model has got since are taken over."""
        self._gating = replace(self.model.gating(self.gates), first=None)
        self._columns = self._first.weight_ih.detach().T.contiguous()  # (D, 3H): a feature's weights lie together
        size = self._columns.new_zeros(self.batch, self.model.hidden)
        self._states = [size.clone() for _ in self.model.layers]
        self._steps = 0
        self._asked: Tensor | None = None

    @torch.inference_mode()
    def request(self) -> Tensor:
        """Which gates to open at this step: (B, G) booleans. Asking again before observing gives the same answer."""
        if self._asked is None:
            self._asked = self._decide()
        return self._asked.clone()

    def _decide(self) -> Tensor:
        model = self.model
        count = model.groups.n_groups
        if self._steps == 0 and model.first is not None:
            return model.first.expand(self.batch, count).clone()
        like = self._states[-1].unsqueeze(1)  # (B, 1, ·): one step
        noise = model._noise(None, like, self.gates, self.generator)
        offset = model.offset(noise, like)
        if not model.adaptive:
            opened = model._blind_gates(offset, self._gating)[0][0]
        else:
            logits = model.logit_scale * model.selector(self._states[-1])
            opened = gate(logits, offset[0], self._gating)
        return opened > 0

    @torch.inference_mode()
    def observe(self, values: Tensor) -> Tensor:
        """Take the acquired values of this step and return the prediction for it.

        Parameters
        ----------
        values : Tensor
            (B, D) standardised features; those that were not requested are not looked at and may be NaN or infinite.

        Returns
        -------
        Tensor
            (B, C) logits.

        Raises
        ------
        RuntimeError
            Nothing was requested for this step.
        ValueError
            A requested value is NaN or infinite, or shapes do not fit.
        """
        if self._asked is None:
            raise RuntimeError("observe() before request(): ask what to acquire first")
        values = as_tensor(values, "values")
        if values.shape != (self.batch, self.model.n_features):
            raise ValueError(f"values must have shape {(self.batch, self.model.n_features)}, not {tuple(values.shape)}")
        opened = self.model.groups.expand(self._asked)
        wrong = opened & ~values.isfinite()
        if bool(wrong.any()):
            first = list(first_place(wrong))
            raise ValueError(f"a requested value is NaN or infinite; there are {int(wrong.sum())}, the first at {first}")
        gain = 1.0 if self._steps == 0 and self.model.first is not None else self._gating.gain
        below = self._from_input(values.to(self._columns), opened, gain)
        self._states[0] = below = _advance(below, self._states[0], self._first)
        for index, layer in enumerate(self._others, start=1):
            self._states[index] = below = _advance(below @ layer.weight_ih.T + layer.bias_ih, self._states[index], layer)
        self._steps += 1
        self._asked = None
        return self.model.output(below)

    def _from_input(self, values: Tensor, opened: Tensor, gain: float) -> Tensor:
        """Pre-activations from the acquired features, (B, 3H)."""
        if self.batch == 1:
            chosen = opened[0].nonzero().squeeze(-1)
            acquired = gain * values[0, chosen]
            rows = self._columns[chosen]
            if self.model.append_mask:
                acquired = torch.cat([acquired, torch.ones_like(acquired)])
                rows = torch.cat([rows, self._columns[chosen + self.model.n_features]])
            return torch.addmv(self._first.bias_ih, rows.T, acquired)[None]
        inputs = gain * torch.where(opened, values, 0)
        if self.model.append_mask:
            inputs = torch.cat([inputs, opened.to(inputs)], -1)
        return torch.addmm(self._first.bias_ih, inputs, self._columns)


def _advance(from_input: Tensor, state: Tensor, layer: Layer) -> Tensor:
    """PyTorch's GRU cell on pre-activations from the input (B, 3H) and the state (B, H): the next state (B, H)."""
    from_state = torch.addmm(layer.bias_hh, state, layer.weight_hh.T)
    reset_i, update_i, new_i = from_input.chunk(3, -1)
    reset_h, update_h, new_h = from_state.chunk(3, -1)
    new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_h) * new_h)
    return torch.lerp(new, state, torch.sigmoid(update_i + update_h))
