"""Optimizees: what is optimized while an optimizer is trained or judged. Pure functions of flattened parameters.

An optimizee says how parameters start, how mini-batches are drawn, and what the loss is; instances (same architecture, other
starts and data order) run side by side along the first axis.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from atlas.l2o.policies import Layout
from atlas.l2o.state import map_state
from atlas.nn.examples import gathered, in_type_of
from atlas.nn.kinds import require_callable, require_kind, require_whole

Batch = Any
"""A tensor, or a mapping, tuple or list of tensors."""
EVALUATION_CHUNK = 1024
LossFunction = Callable[[Tensor, Tensor], Tensor]


class Optimizee(ABC):
    """Base of every optimizee. To write one: override :meth:`init`, :meth:`sample`, :meth:`loss` and :meth:`evaluate`.

    Attributes
    ----------
    name : str
        What curves are labelled with.
    shapes : tuple of (str, Size)
        Name and shape of each tensor, in the order of ``named_parameters``.
    """

    name: str
    shapes: tuple[tuple[str, torch.Size], ...]

    @cached_property
    def layout(self) -> Layout:
        """How the parameters divide into tensors."""
        return Layout.of(shape for _, shape in self.shapes)

    @property
    def P(self) -> int:
        """Number of scalar parameters of one instance."""
        return self.layout.parameters

    def tensor_index(self) -> Tensor:
        """(P,) of int64: the tensor to which each coordinate belongs."""
        return self.layout.tensor_index()

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """The tensors of flattened parameters (…, P), by name: each (…, *shape)."""
        parts = theta.split(self.layout.sizes, dim=-1)
        return {name: part.reshape(*theta.shape[:-1], *shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}

    @abstractmethod
    def init(self, n: int, gen: torch.Generator) -> Tensor:
        """Draw the starts of n instances, (n, P)."""

    @abstractmethod
    def sample(self, n: int, gen: torch.Generator, split: str = "train") -> Batch:
        """One mini-batch for each of n instances: leaves (n, batch, …)."""

    def stream(self, n: int, steps: int, gen: torch.Generator, split: str = "train") -> Iterator[Batch]:
        """Mini-batches of ``steps`` steps for n instances; drawn without replacement where there are examples."""
        for _ in range(steps):
            yield self.sample(n, gen, split)

    @abstractmethod
    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """Loss of one instance: (P,) and leaves (batch, …) to a scalar. Made of what ``vmap`` can batch."""

    def losses(self, theta: Tensor, batch: Batch) -> Tensor:
        """(n,): the losses of n instances, (n, P) and leaves (n, batch, …)."""
        return vmap(self.loss)(theta, batch)

    def gradients(self, theta: Tensor, batch: Batch, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Return losses (n,) and gradients (n, P).

        Detached from everything, unless ``create_graph`` asks for a graph through the gradient (second order).
        """
        if create_graph:
            losses = self.losses(theta, batch)
            (gradient,) = torch.autograd.grad(losses.sum(), theta, create_graph=True)
            return losses, gradient
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            losses = self.losses(leaf, batch)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient

    @abstractmethod
    def evaluate(self, theta: Tensor, split: str = "val") -> dict[str, Tensor]:
        """Whole-split measures of n instances, ``loss`` (n,) and where it has a meaning ``accuracy`` (n,); (n, P) given."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples in splits, and the size of mini-batches.

    Attributes
    ----------
    splits : mapping
        Name (``train``, ``val``, …) to (inputs (count, …), labels (count,)) as tensors. NumPy arrays, a dataset of pairs or a
        loader become such tensors.
    batch_size : int
        Examples per mini-batch.
    """

    splits: Mapping[str, Any]
    batch_size: int

    def __post_init__(self) -> None:
        require_kind(Mapping, "a mapping of names of splits to data", splits=self.splits)
        require_whole(batch_size=self.batch_size)
        object.__setattr__(self, "splits", {name: gathered(data, f"the split {name}") for name, data in self.splits.items()})
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        for name, (inputs, labels) in self.splits.items():
            if len(inputs) != len(labels):
                raise ValueError(f"the split {name} has {len(inputs)} inputs and {len(labels)} labels")
        if self.batch_size > len(self["train"][0]):
            raise ValueError(f"batch_size {self.batch_size} exceeds the {len(self['train'][0])} training examples")

    def __getitem__(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the inputs (count, …) and labels (count,) of a split, or raise a ValueError that lists the splits."""
        if split not in self.splits:
            raise ValueError(f"there is no split {split}; choose from {', '.join(self.splits)}")
        return self.splits[split]

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on another device."""
        return replace(self, splits={name: (x.to(device), y.to(device)) for name, (x, y) in self.splits.items()})

    @property
    def steps_per_epoch(self) -> int:
        """Complete mini-batches of the training split."""
        return len(self["train"][0]) // self.batch_size

    def indices(self, n: int, steps: int, gen: torch.Generator, split: str) -> Tensor:
        """(n, steps, batch): positions drawn without replacement per instance, reshuffled when a pass is over."""
        count = len(self[split][0])
        size = min(self.batch_size, count)
        per_pass = count // size
        passes = -(-steps // per_pass)
        orders = [
            torch.cat([torch.randperm(count, generator=gen)[: per_pass * size] for _ in range(passes)])[: steps * size]
            for _ in range(n)
        ]
        return torch.stack(orders).reshape(n, steps, size)


class DataOptimizee(Optimizee):
    """An optimizee on labelled examples: everything but the model. Labels' accuracy is measured by the largest output."""

    def __init__(self, name: str, data: Examples, loss_fn: LossFunction) -> None:
        self.name, self.data, self.loss_fn = name, data, loss_fn

    @abstractmethod
    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(n, batch, classes) for (n, P) and (n, batch, …)."""

    def sample(self, n: int, gen: torch.Generator, split: str = "train") -> Batch:
        """(inputs (n, batch, …), labels (n, batch)), without replacement within a mini-batch."""
        return next(iter(self.stream(n, 1, gen, split)))

    def stream(self, n: int, steps: int, gen: torch.Generator, split: str = "train") -> Iterator[Batch]:
        """Mini-batches without replacement within a pass over the split."""
        inputs, labels = self.data[split]
        for index in self.data.indices(n, steps, gen, split).to(inputs.device).unbind(1):
            yield inputs[index], labels[index]

    def losses(self, theta: Tensor, batch: Batch) -> Tensor:
        """Losses (n,) of n instances, ``theta`` being (n, P)."""
        inputs, labels = batch
        return self.criterion(self.outputs(theta, inputs), labels)

    def criterion(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(n,): the loss function for n instances, outputs (n, batch, classes) and labels (n, batch)."""
        if self.loss_fn is not functional.cross_entropy:
            return vmap(self.loss_fn)(outputs, labels)
        each = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
        return each.reshape(labels.shape).mean(1)

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """Loss of one instance, a tensor without axes, ``theta`` being (P,)."""
        inputs, labels = batch
        return self.loss_fn(self.outputs(theta[None], inputs[None])[0], labels)

    @torch.no_grad()
    def evaluate(self, theta: Tensor, split: str = "val") -> dict[str, Tensor]:
        """Mean loss and accuracy (n,) over the whole split for ``theta`` (n, P), in double precision sums."""
        inputs, labels = self.data[split]
        loss = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
        correct = torch.zeros_like(loss)
        for x, y in zip(inputs.split(EVALUATION_CHUNK), labels.split(EVALUATION_CHUNK), strict=True):
            many = map_state(lambda leaf: leaf.expand(len(theta), *leaf.shape), (x, y))
            outputs = self.outputs(theta, many[0])
            loss += self.criterion(outputs, many[1]).double() * len(x)
            correct += (outputs.argmax(-1) == y).double().sum(1)
        return {"loss": loss / len(labels), "accuracy": correct / len(labels)}


class ModuleOptimizee(DataOptimizee):
    """Any module as an optimizee; see :func:`module_optimizee`."""

    def __init__(
        self, name: str, module: nn.Module, loss_fn: LossFunction, data: Examples, init: str, vectorize: bool = True
    ) -> None:
        super().__init__(name, data, loss_fn)
        self.module = module
        self.initialise = initialiser(init)
        self.vectorize = vectorize
        self.shapes = tuple((key, value.shape) for key, value in module.named_parameters())
        if any(True for _ in module.buffers()):
            raise ValueError(
                f"{name} has buffers, which pure functions cannot update; use track_running_stats=False or GroupNorm"
            )

    def init(self, n: int, gen: torch.Generator) -> Tensor:
        """Starts (n, P) of n instances by the module's own initialisation, or the one that was asked for."""
        return torch.stack([self.initialise(self.module, gen) for _ in range(n)]).to(self.data["train"][0].device)

    def _one(self, theta: Tensor, inputs: Tensor) -> Tensor:
        return functional_call(self.module, self.views(theta), (inputs,))

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """The module's outputs (n, batch, classes) for n instances; one after the other where it cannot be vectorised."""
        if len(theta) > 1 and self.vectorize:
            return vmap(self._one)(theta, inputs)
        return torch.stack([self._one(own_theta, x) for own_theta, x in zip(theta, inputs, strict=True)])


def module_optimizee(
    module: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    init: str = "default",
    *,
    batch_size: int = 128,
    name: str | None = None,
    vectorize: bool = True,
) -> Optimizee:
    """Make an optimizee of a module.

    Parameters
    ----------
    module : nn.Module
        Takes inputs (batch, …). It may hold no buffers: a pure function cannot update them.
    loss_fn : callable
        (outputs, labels) to a scalar.
    data : Examples, mapping, pair, Dataset or DataLoader
        Splits; a plain mapping takes ``batch_size``. Each split is a pair (inputs, labels) of tensors or NumPy arrays, a dataset
        of pairs, or a loader, passed over once. One of these without a name is the split ``train``.
    init : str
        ``default``: the module's own ``reset_parameters``. ``normal:σ``: every scalar N(0, σ²). ``glorot``: Glorot-uniform
        weights, zero biases.
    vectorize : bool
        Run instances through ``vmap``; false for modules that it cannot batch.

    Raises
    ------
    TypeError
        An argument is of another type, or inputs of another than the module's weights; says what would be right.
    ValueError
        The module has buffers; ``init`` is none of these.
    """
    require_kind(nn.Module, "an nn.Module", module=module)
    require_callable("a function of outputs and labels", loss_fn=loss_fn)
    require_kind(str, "default, glorot or normal:σ", init=init)
    if not isinstance(data, Examples):
        data = Examples(data if isinstance(data, Mapping) else {"train": data}, batch_size)
    data = _fitting(module, loss_fn, data)
    return ModuleOptimizee(name or type(module).__name__.lower(), module, loss_fn, data, init, vectorize)


def _fitting(module: nn.Module, loss_fn: LossFunction, data: Examples) -> Examples:
    """The examples, with whole labels as the cross-entropy reads them; inputs of another type than the weights are refused.

    Whole numbers are let through, as an embedding reads them; bytes are none of these.
    """
    splits = {}
    for name, (inputs, labels) in data.splits.items():
        if inputs.is_floating_point() or inputs.dtype == torch.uint8:
            in_type_of(module, inputs, f"the split {name}'s inputs")
        if loss_fn is functional.cross_entropy and labels.ndim == 1:
            if labels.is_floating_point():
                raise TypeError(f"the split {name}'s labels are {labels.dtype}; class numbers ({len(labels)},) are needed")
            labels = labels.long()
        splits[name] = (inputs, labels)
    return replace(data, splits=splits)


def require_problem(**values: Any) -> None:
    """Refuse, by their names, what is no optimizee.

    Raises
    ------
    TypeError
        One is of another type; says how a module becomes one.
    """
    require_kind(Optimizee, "an Optimizee, such as module_optimizee(…),", **values)


def initialiser(init: str) -> Callable[[nn.Module, torch.Generator], Tensor]:
    """Return the function (module, generator) → (P,) of an initialisation by name; see :func:`module_optimizee`."""
    if init == "default":
        return _own_init
    if init == "glorot":
        return _glorot_init
    if init.startswith("normal:"):
        try:
            deviation = float(init.removeprefix("normal:"))
        except ValueError:
            raise ValueError(f"init {init!r} must be normal: and a standard deviation, such as normal:0.01") from None
        return lambda module, gen: deviation * torch.randn(sum(p.numel() for p in module.parameters()), generator=gen)
    raise ValueError(f"there is no initialisation {init}; choose from default, glorot, normal:<standard deviation>")


def flatten(parameters: Sequence[Tensor] | Iterator[Tensor]) -> Tensor:
    """(P,): parameters in their order, flattened and detached."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def _own_init(module: nn.Module, gen: torch.Generator) -> Tensor:
    fresh = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=gen)))
        whole = getattr(fresh, "init_weights", None)  # timm's models initialise themselves as a whole
        resets = [whole] if whole else [getattr(part, "reset_parameters", None) for part in fresh.modules()]
        for reset in resets:
            if reset is not None:
                reset()
    return flatten(fresh.parameters())


@torch.no_grad()
def _glorot_init(module: nn.Module, gen: torch.Generator) -> Tensor:
    fresh = copy.deepcopy(module)
    for parameter in fresh.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=gen)
    for part in fresh.modules():
        bias = getattr(part, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()
    return flatten(fresh.parameters())
