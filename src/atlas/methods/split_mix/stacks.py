"""Stacks of networks of one shape, and three ways to run them that give the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from atlas.methods.split_mix.grouped import GroupedConv2d, GroupedLinear, GroupedNet
from atlas.methods.split_mix.norms import KNOWN_STATISTICS, BatchNorm, ConditionalNorm, NormSpec, conditioned, dual_norms
from atlas.methods.split_mix.settings import Execution
from atlas.methods.split_mix.widths import Role

TensorDict = dict[str, Tensor]


@dataclass(frozen=True)
class ParamStack:
    """Parameters and buffers of G networks of one shape, stacked.

    Attributes
    ----------
    template : nn.Module
        One such network; its own weights mean nothing.
    tensors : dict
        Name to (G, …), as in the template's ``state_dict``.
    roles : mapping
        What its layers are; needed only where networks share an input.
    scale : float
        Width by which hidden layers are divided in training (``rescale_layer``); 1 leaves them.
    """

    template: nn.Module
    tensors: TensorDict
    roles: Mapping[str, Role] = field(default_factory=dict)
    scale: float = 1.0

    @classmethod
    def of(cls, modules: Sequence[nn.Module], roles: Mapping[str, Role] | None = None, scale: float = 1.0) -> ParamStack:
        """Stack copies of the weights of modules.

        Raises
        ------
        TypeError
            Their tensors differ in names or shapes.
        """
        states = [module.state_dict() for module in modules]
        shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in states]
        if any(shape != shapes[0] for shape in shapes):
            raise TypeError("networks of a stack must have the same tensors, of the same shapes")
        tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        return cls(copy.deepcopy(modules[0]), tensors, roles or {}, scale)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def trainable(self) -> list[str]:
        """Names of the parameters; the other tensors are running statistics."""
        return [name for name, _ in self.template.named_parameters()]

    @property
    def norm_names(self) -> list[str]:
        """Names of all tensors of normalisation layers, told by the layers' type."""
        return norm_names(self.template)

    def gather(self, index: Sequence[int] | Tensor) -> ParamStack:
        """Copy the networks of an index (n,), in its order, to a stack of (n, …); an index may come more than once."""
        where = torch.as_tensor(index, device=next(iter(self.tensors.values())).device)
        return self.replaced({name: tensor[where] for name, tensor in self.tensors.items()})

    def replaced(self, tensors: TensorDict) -> ParamStack:
        """The same networks with other tensors."""
        return ParamStack(self.template, tensors, self.roles, self.scale)

    def module(self, index: int) -> nn.Module:
        """Return one of the networks as a module of its own."""
        made = copy.deepcopy(self.template)
        made.load_state_dict({name: tensor[index] for name, tensor in self.tensors.items()})
        return made


def norm_names(template: nn.Module) -> list[str]:
    """Names of all tensors of normalisation layers, told by the layers' type and not by their names."""
    names: list[str] = []
    for prefix, module in template.named_modules():
        if isinstance(module, BatchNorm):
            statistics = (name for name in KNOWN_STATISTICS if getattr(module, name) is not None)
            names += [f"{prefix}.{name}" for name in ("weight", "bias", *statistics)]
    return names


class TrainScale:
    """A forward hook that divides the output of hidden layers by the width, in training only (``rescale_layer``)."""

    def __init__(self, width: float) -> None:
        self.width = width

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Divide the output (batch, …) in training; nothing in evaluation."""
        return output / self.width if module.training else None


def require_batch_statistics(norm: NormSpec) -> None:
    """Refuse ``rescale_layer`` beside running statistics.

    Raises
    ------
    ValueError
        The norms keep running statistics, of the divided outputs in training, and are asked to normalise undivided ones.
    """
    if norm.tracked:
        raise ValueError(f"rescale_layer needs batch statistics: with {norm.stats} ones training and testing would differ")


def scale_in_training(model: nn.Module, width: float, classifiers: set[str]) -> nn.Module:
    """Hook every convolution and linear layer but the classifiers with :class:`TrainScale`, in place."""
    kinds = (nn.Conv2d, nn.Linear, GroupedConv2d, GroupedLinear)
    for name, module in model.named_modules():
        if isinstance(module, kinds) and name not in classifiers and width != 1:
            module.register_forward_hook(TrainScale(width))
    return model


def check_execution(execution: str) -> None:
    """Refuse a way to run a stack that there is not."""
    if execution not in get_args(Execution):
        raise ValueError(f"execution must be one of {', '.join(get_args(Execution))}, not {execution!r}")


class Runner:
    """Runs G networks on their inputs: with grouped layers, by ``vmap``, or one after the other.

    Parameters
    ----------
    stack : ParamStack
        Names and shapes of the networks; which tensors run is said at each call.
    groups, inputs : int
        Number of networks, and of different inputs: each for a run of ``groups / inputs`` networks.
    execution : {"auto", "grouped", "vmap", "sequential"}
        ``auto`` takes grouped layers where the network has them, else ``vmap``. Operations without weights are not looked at
        here: :func:`.trials.settled_execution` tells whether grouped layers give the right numbers.

    Attributes
    ----------
    module : nn.Module
        The module that runs; its mode (training, norms) is the mode of all networks.
    """

    def __init__(self, stack: ParamStack, groups: int, inputs: int, execution: Execution = "auto") -> None:
        check_execution(execution)
        self.groups, self.inputs = groups, inputs
        self.execution: Execution = execution
        if execution in ("auto", "grouped"):
            try:
                self.grouped = GroupedNet(stack.template, groups, inputs, stack.roles)
                self.module: nn.Module = self.grouped.net
                self.execution = "grouped"
            except TypeError:
                if execution == "grouped":
                    raise
                self.execution = "vmap"
        if self.execution != "grouped":
            self.module = copy.deepcopy(stack.template)
        if stack.scale != 1:
            classifiers = {name for name, role in stack.roles.items() if role.classifies}
            scale_in_training(self.module, stack.scale, classifiers)
        norms = dual_norms(self.module)
        self.dual = bool(norms)
        self.lams: tuple[float, ...] = next((norm.lams for norm in norms if isinstance(norm, ConditionalNorm)), ())
        self._condition: tuple[Tensor, int, bool] | None = None

    @contextmanager
    def conditioned(self, choices: Tensor, zeros: int, training: bool) -> Iterator[None]:
        """Within the block samples have the trade-offs ``choices``, (G, batch): see :func:`.norms.conditioned`."""
        self._condition = choices, zeros, training
        try:
            yield
        finally:
            self._condition = None

    def __call__(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Stacked tensors (G, …) and inputs (inputs, batch, …) to logits (G, batch, classes)."""
        if self._condition is not None:
            return self._under(tensors, x, *self._condition)
        if self.execution == "grouped":
            return self.grouped.call(tensors, x)
        x = x.repeat_interleave(self.groups // self.inputs, 0)
        if self.execution == "vmap":
            one = vmap(lambda own, images: functional_call(self.module, own, (images,)), randomness="different")
            return one(dict(tensors), x)
        own = ({name: tensor[index] for name, tensor in tensors.items()} for index in range(self.groups))
        return torch.stack([functional_call(self.module, mine, (images,)) for mine, images in zip(own, x, strict=True)])

    def _under(self, tensors: Mapping[str, Tensor], x: Tensor, choices: Tensor, zeros: int, training: bool) -> Tensor:
        """:meth:`__call__` with a trade-off for every sample of every network; not by ``vmap``, which cannot tell them apart."""
        if self.execution == "grouped":
            with conditioned(self.module, choices.T, zeros, training):
                return self.grouped.call(tensors, x)
        x = x.repeat_interleave(self.groups // self.inputs, 0)
        outputs = []
        for index, (images, own) in enumerate(zip(x, choices, strict=True)):
            mine = {name: tensor[index] for name, tensor in tensors.items()}
            with conditioned(self.module, own, zeros, training):
                outputs.append(functional_call(self.module, mine, (images,)))
        return torch.stack(outputs)
