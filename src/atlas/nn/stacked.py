"""Models of one shape and with weights of their own, run as one: the seeds of a row, side by side.

A small network spends more time on starting operations than on arithmetic. :class:`Stack` joins M models: images (M, batch, …)
pass as M · batch images, and where weights meet them a batched operation takes the place of M. Linear layers, layer norms, patch
embeddings and residual scales have such an operation here; any other layer without parts of its own runs under ``torch.vmap``.

The models stay what they are: their weights are views of the joint ones, so that whatever reads or writes the one sees the
other, and hooks that are put on a model see its share of a joint pass. Nothing is shared between models but the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerScale
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.modes import mode_of

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""By how much logits of a joint pass may differ from the models' own, relative to the largest: rounding, and nothing else."""


class Unstackable(TypeError):
    """The models cannot be run as one; says which part of them is the reason."""


class Stack:
    """Joins models of equal shape.

    Between :meth:`join` and :meth:`part` the models' parameters are views of ``weights``. Make it before hooks are put on the
    models: those that were there belong to every pass, the joint one too; later ones are called as :meth:`watch` says.

    Parameters
    ----------
    models : sequence of nn.Module
        They differ in nothing but the values of their parameters.

    Attributes
    ----------
    weights : dict
        Name of a parameter to the joint one (M, …), a leaf; filled by :meth:`join`.

    Raises
    ------
    Unstackable
        The models differ in their parameters, share some between layers, have buffers or dropout, or read a parameter in a way
        that is not known.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self.weights: dict[str, nn.Parameter] = {}
        self.joint = copy.deepcopy(self.models[0])
        self._known = [_hook_numbers(model) for model in self.models]
        self._spread: list[tuple[nn.Module, str, str]] = []
        self._paths: list[Any] = []
        self._handles: list[Any] = []
        self._random: list[torch.Generator] = []
        self._batch = 0
        _require_alike(self.models)

    @property
    def size(self) -> int:
        """Number of models in the stack."""
        return len(self.models)

    @property
    def draws(self) -> bool:
        """Whether a training pass draws random numbers, for stochastic depth."""
        return any(isinstance(module, DropPath) and module.drop_prob for module in self.joint.modules())

    @property
    def rows(self) -> list[int]:
        """Whose weights the rows of a joint parameter hold.

        A single model stands there twice: products of one matrix are computed by other kernels than those of several, and the
        numbers of a model must not depend on which others are there.
        """
        return list(range(self.size)) if self.size > 1 else [0, 0]

    def some(self, indices: Sequence[int]) -> Stack:
        """A stack of some of the models, as if it had been made when this one was; to be called before :meth:`join`."""
        chosen = copy.copy(self)
        chosen.models = [self.models[index] for index in indices]
        chosen._known = [self._known[index] for index in indices]
        chosen.joint = copy.deepcopy(self.joint)
        chosen.weights, chosen._spread, chosen._paths, chosen._handles = {}, [], [], []
        return chosen

    def join(self, random: Sequence[torch.Generator] = ()) -> None:
        """Stack the models' parameters, and make theirs views of the stacked ones.

        Parameters
        ----------
        random : sequence of torch.Generator
            One for each model, on its device: what stochastic depth draws from. Each model draws what it would by itself.
        """
        named = [dict(model.named_parameters()) for model in self.models]
        for name, first in named[0].items():
            whole = torch.stack([named[index][name].detach() for index in self.rows])
            self.weights[name] = nn.Parameter(whole, first.requires_grad)
            for index, own in enumerate(named):
                own[name].data = whole[index]
        self._random = list(random)
        device = next(iter(self.weights.values())).device
        for path, module in self.joint.named_modules():
            self._stack_module(path, module, device)

    def part(self) -> None:
        """Give the models parameters of their own again."""
        for model in self.models:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __call__(self, images: Tensor) -> Tensor:
        """Run all models: (M, batch, …) → (M, batch, classes)."""
        self._batch, rows = images.shape[1], len(self.rows)
        images = images if rows == self.size else images.expand(rows, *images.shape[1:])
        for module, attribute, name in self._spread:
            whole = self.weights[name]
            each = whole.expand(rows, self._batch, *whole.shape[2:])
            object.__setattr__(module, attribute, each.flatten(0, 1))
        made: Tensor = self.joint(images.flatten(0, 1)).unflatten(0, (rows, self._batch))
        return made[: self.size]

    def check(self, images: Tensor) -> None:
        """Compare a joint pass on (M, batch, …) with the models' own.

        Raises
        ------
        Unstackable
            Their logits differ by more than rounding.
        """
        with _evaluating([self.joint, *self.models]):
            together = self(images).detach()
            for model, own, logits in zip(self.models, images, together, strict=True):
                with torch.no_grad():
                    expected = model(own)
                bound = TOLERANCE.get(expected.dtype, 1e-2) * (1 + expected.abs().max())
                if not bool((logits - expected).abs().max() <= bound):
                    raise Unstackable(f"{type(model).__name__}: joint and single passes disagree")

    def watch(self) -> None:
        """Let hooks that were put on the models since the stack was made see their model's share of joint passes.

        Raises
        ------
        Unstackable
            From a joint pass: a hook wants to change what passes, where it can only look.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        parts = [dict(model.named_modules()) for model in self.models]
        for path, module in self.joint.named_modules():
            own = [modules[path] for modules in parts]
            fresh = [
                [(number, hook) for number, hook in _hooks(own_model, before).items() if number not in known]
                for own_model, known in zip(own, self._known, strict=True)
                for before in (True, False)
            ]
            if any(fresh[0::2]):
                self._handles.append(module.register_forward_pre_hook(partial(self._before, own, fresh[0::2]), with_kwargs=True))
            if any(fresh[1::2]):
                self._handles.append(module.register_forward_hook(partial(self._after, own, fresh[1::2]), with_kwargs=True))

    def _before(self, modules: list[nn.Module], hooks: list[list[Any]], joint: nn.Module, inputs: Any, options: Any) -> None:
        for module, own, given, named in zip(modules, hooks, self.shares(inputs), self.shares(options), strict=True):
            for number, hook in own:
                with_options = number in module._forward_pre_hooks_with_kwargs
                _only_look(module, hook(module, given, named) if with_options else hook(module, given))

    def _after(
        self, modules: list[nn.Module], hooks: list[list[Any]], joint: nn.Module, inputs: Any, options: Any, output: Any
    ) -> None:
        shared = zip(modules, hooks, self.shares(inputs), self.shares(options), self.shares(output), strict=True)
        for module, own, given, named, made in shared:
            for number, hook in own:
                with_options = number in module._forward_hooks_with_kwargs
                _only_look(module, hook(module, given, named, made) if with_options else hook(module, given, made))

    def shares(self, value: Any) -> list[Any]:
        """Split something of a joint pass: every tensor (M · batch, …) in it becomes each model's (batch, …)."""
        if isinstance(value, Tensor):
            rows = len(self.rows)
            if value.ndim and value.shape[0] == rows * self._batch:
                return list(value.unflatten(0, (rows, self._batch)).unbind(0))[: self.size]  # together: one gradient for all
            return [value] * self.size
        if isinstance(value, tuple):
            return list(zip(*map(self.shares, value), strict=True)) if value else [()] * self.size
        if isinstance(value, Mapping):
            return [dict(zip(value, parts, strict=True)) for parts in self.shares(tuple(value.values()))]
        return [value] * self.size

    def _stack_module(self, path: str, module: Any, device: torch.device) -> None:
        """Let one part of the joint model use the stacked weights."""
        if isinstance(module, nn.Dropout) and module.p:
            raise Unstackable(f"{path} ({type(module).__name__}) has dropout of {module.p}")
        if isinstance(module, DropPath) and module.drop_prob:
            if len(self._random) != self.size:
                raise Unstackable(f"{path} has stochastic depth, and there is no generator for each model")
            module.forward = partial(self._drop_path, module)  # type: ignore[method-assign]
        if getattr(module, "fused_attn", False) and device.type == "cpu":
            module.fused_attn = False  # on CPUs products of batches of small matrices take less time than one fused call
        names = {name: f"{path}.{name}".strip(".") for name, value in module._parameters.items() if value is not None}
        if not names:
            return
        own = {name: self.weights[full] for name, full in names.items()}
        rule = _RULES.get(type(module))
        if rule is not None and (rule is not _patches or _is_patch_embedding(module)):
            module.forward = partial(rule, module, own, len(self.rows))
        elif not list(module.children()):
            module.forward = partial(_mapped, module, own, len(self.rows))
        else:
            for name, full in names.items():
                if self.weights[full].shape[1:2] != (1,):
                    raise Unstackable(f"{full} of {type(module).__name__} is not the same for every image of a batch")
                self._spread.append((module, name, full))
        for name in names:
            del module._parameters[name]

    def _drop_path(self, module: Any, x: Tensor) -> Tensor:
        """What timm's DropPath does, each model's images with its own draws."""
        if not module.training:
            return x
        keep = 1 - module.drop_prob
        shape = (x.shape[0] // len(self.rows), *(1,) * (x.ndim - 1))
        drawn = [x.new_empty(shape).bernoulli_(keep, generator=random) for random in self._random]
        kept = torch.cat([drawn[index] for index in self.rows])
        return x * (kept.div_(keep) if keep > 0 and module.scale_by_keep else kept)


def _linear(module: nn.Module, own: Mapping[str, Tensor], size: int, x: Tensor) -> Tensor:
    """A linear layer: (M · batch, …, in) → (M · batch, …, out)."""
    return _product(x.reshape(size, -1, x.shape[-1]), own).view(*x.shape[:-1], -1)


def _product(rows: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """(M, rows, in) times the transposed weights (M, out, in …), plus biases where there are any."""
    weight = own["weight"].flatten(2).mT
    return torch.baddbmm(own["bias"][:, None], rows, weight) if "bias" in own else rows @ weight


def _layer_norm(module: Any, own: Mapping[str, Tensor], size: int, x: Tensor) -> Tensor:
    """A layer norm over the last axis of (M · batch, …, dim)."""
    normal = functional.layer_norm(x, module.normalized_shape, eps=module.eps).reshape(size, -1, x.shape[-1])
    scale = own["weight"][:, None]
    return (torch.addcmul(own["bias"][:, None], normal, scale) if "bias" in own else normal * scale).view(x.shape)


def _patches(module: Any, own: Mapping[str, Tensor], size: int, x: Tensor) -> Tensor:
    """A convolution whose windows do not overlap: (M · batch, channels, height, width) → (M · batch, out, rows, columns)."""
    high, wide = module.kernel_size
    rows, columns = x.shape[-2] // high, x.shape[-1] // wide
    cut = x[..., : rows * high, : columns * wide].unflatten(-1, (columns, wide)).unflatten(-3, (rows, high))
    windows = cut.permute(0, 2, 4, 1, 3, 5).reshape(size, -1, x.shape[1] * high * wide)
    return _product(windows, own).view(len(x), rows, columns, -1).permute(0, 3, 1, 2)


def _is_patch_embedding(module: Any) -> bool:
    plain = module.padding == (0, 0) and module.dilation == (1, 1) and module.groups == 1
    return plain and module.kernel_size == module.stride


def _scale(module: Any, own: Mapping[str, Tensor], size: int, x: Tensor) -> Tensor:
    """Residual scales of (M · batch, …, dim)."""
    return (x.reshape(size, -1, x.shape[-1]) * own["gamma"][:, None]).view(x.shape)


def _mapped(module: Any, own: Mapping[str, Tensor], size: int, x: Tensor) -> Tensor:
    """Any other layer, by ``torch.vmap`` over models."""
    names = list(own)

    def one(values: tuple[Tensor, ...], part: Tensor) -> Any:
        module.__dict__.update(zip(names, values, strict=True))
        return type(module).forward(module, part)

    try:
        return torch.vmap(one)(tuple(own.values()), x.unflatten(0, (size, -1))).flatten(0, 1)  # type: ignore[no-any-return]
    finally:
        for name in names:
            module.__dict__.pop(name, None)


_RULES: dict[type, Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    TimmLayerNorm: _layer_norm,
    nn.Conv2d: _patches,
    LayerScale: _scale,
}
"""Layer to its batched form; exact classes only, since what inherits from one may compute something else."""


def _require_alike(models: Sequence[nn.Module]) -> None:
    """Refuse models that differ in more than values, share parameters between layers, or have buffers."""
    shapes = [
        {name: (value.shape, value.dtype, value.requires_grad) for name, value in each.named_parameters()} for each in models
    ]
    for model, own in zip(models, shapes, strict=True):
        if own != shapes[0] or type(model) is not type(models[0]):
            raise Unstackable("the models have different parameters")
        if len(own) != len(list(model.named_parameters(remove_duplicate=False))):
            raise Unstackable(f"layers of {type(model).__name__} share parameters")
        for name, _ in model.named_buffers():
            raise Unstackable(f"{type(model).__name__} has a buffer, {name}")


def _hooks(module: nn.Module, before: bool) -> dict[int, Any]:
    return dict(module._forward_pre_hooks if before else module._forward_hooks)


def _hook_numbers(model: nn.Module) -> set[int]:
    """Numbers of all hooks on the passes of a model's parts."""
    return {number for module in model.modules() for before in (True, False) for number in _hooks(module, before)}


def _only_look(module: nn.Module, result: Any) -> None:
    if result is not None:
        raise Unstackable(f"a hook on {type(module).__name__} changes what passes")


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put models into evaluation mode for a while."""
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(mode_of(model, "eval"))
        yield
