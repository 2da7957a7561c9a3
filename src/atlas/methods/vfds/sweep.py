"""Several models of one shape trained at once: a sweep over λ costs little more than one model.

Small recurrent models spend their time on the overhead of many small operations. Stacked parameters turn each into one
batched operation for all models; the models do not influence one another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.vfds.model import FixedMask, Rollout, SelectiveGRU

DIFFERENT = "the models of a sweep must have the same shapes, policy and settings: they differ in their weights alone"


class Sweep(nn.Module):
    """M :class:`.model.SelectiveGRU` with stacked parameters, on the same batches and the same noise.

    Its forward pass takes and returns what theirs does, with a leading M in every tensor of the
    :class:`.model.Rollout`; :func:`.losses.selection_loss` and :func:`.losses.arm_loss` then return (M,) values, and their sum
    has the gradients of all.

    Parameters
    ----------
    models : sequence of SelectiveGRU
        Of equal shape and policy; their weights are copied.

    Raises
    ------
    ValueError
        There is none, or they differ in shape, policy or another setting: temperature, scale of logits, first step.
    """

    def __init__(self, models: Sequence[SelectiveGRU]) -> None:
        super().__init__()
        if not models:
            raise ValueError("a sweep needs at least one model")
        states = [model.state_dict() for model in models]
        shapes = [{name: value.shape for name, value in state.items()} for state in states]
        kinds = [_kind(model) for model in models]
        if any(shape != shapes[0] for shape in shapes) or any(kind != kinds[0] for kind in kinds):
            raise ValueError(DIFFERENT)
        object.__setattr__(self, "template", copy.deepcopy(models[0]))  # how to run, but none of its weights
        trained = {name for name, _ in models[0].named_parameters()}
        for name in states[0]:
            stacked = torch.stack([state[name] for state in states])
            if name in trained:
                self.register_parameter(_key(name), nn.Parameter(stacked))
            else:
                self.register_buffer(_key(name), stacked)
        self.size = len(models)

    template: SelectiveGRU

    @property
    def stacked(self) -> dict[str, Tensor]:
        """Parameters and buffers (M, …) of all models, by the models' own names."""
        return {name: getattr(self, _key(name)) for name in self.template.state_dict()}

    @property
    def selector(self) -> _Stacked:
        """Stacked weight (M, G, H) and bias (M, G) of the selector."""
        return _Stacked(getattr(self, _key("selector.weight")), getattr(self, _key("selector.bias")))

    def forward(self, x: Tensor, **options: Any) -> Rollout:
        """Run all models on x: (B, T, D); see :meth:`.model.SelectiveGRU.forward`."""
        return torch.func.functional_call(self.template, self.stacked, (x,), options)

    @classmethod
    def joined(cls, sweeps: Sequence[Sweep]) -> Sweep:
        """Return one sweep of all models of several; from now on, the parameters of each are views of the joint ones.

        Raises
        ------
        ValueError
            Their models differ in shape, policy or anything else that is no weight.
        """
        first = sweeps[0].template
        if any(_kind(sweep.template) != _kind(first) for sweep in sweeps):
            raise ValueError(DIFFERENT)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        object.__setattr__(made, "template", first)
        ends = torch.tensor([sweep.size for sweep in sweeps]).cumsum(0).tolist()
        made.size = ends[-1]
        for name in first.state_dict():
            whole = torch.cat([sweep.stacked[name].detach() for sweep in sweeps])
            if isinstance(sweeps[0].stacked[name], nn.Parameter):
                made.register_parameter(_key(name), nn.Parameter(whole))
                for sweep, end in zip(sweeps, ends, strict=True):
                    sweep.stacked[name].data = whole[end - sweep.size : end]
            else:
                made.register_buffer(_key(name), whole)
        return made

    def model(self, index: int) -> SelectiveGRU:
        """Return the template with the weights of one model; the next call changes them."""
        self.template.load_state_dict({name: tensor[index].detach() for name, tensor in self.stacked.items()})
        return self.template

    def _apply(self, fn: Any, recurse: bool = True) -> Sweep:
        self.template._apply(fn, recurse)
        return super()._apply(fn, recurse)


class _Stacked:
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias


def _kind(model: SelectiveGRU) -> tuple[Any, ...]:
    """Everything that tells models of different kinds apart."""
    policy = type(model.policy) if isinstance(model.policy, FixedMask) else model.policy
    shapes = {name: tuple(value.shape[-1:]) for name, value in model.state_dict().items()}
    first = None if model.first is None else tuple(model.first.tolist())
    own = (model.n_features, model.hidden, model.n_outputs, model.n_layers, model.relaxation, model.temperature)
    groups = (tuple(model.groups.groups.tolist()), tuple(model.groups.cost.tolist()))
    return (policy, shapes, first, own, groups, model.logit_scale, model.append_mask, model.attention_threshold, model.fused)


def _key(name: str) -> str:
    return name.replace(".", "/")
