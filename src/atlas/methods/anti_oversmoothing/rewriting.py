"""Changing what timm's attentions compute, in place and all or nothing: the values that they mix, or their output."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from atlas.nn.vit import plain_attentions, projection_widths, refuse_masks, transformer_blocks

PROBE_TOKENS = 5


class RewrittenQKV(nn.Linear):
    """A projection to queries, keys and values that also rewrites the values, with a ``scale`` (heads,) that subclasses name.

    ``value_dim`` is the width of a head's values: the last heads · value_dim of what is projected.
    """

    scale = ""
    if TYPE_CHECKING:
        value_dim: int

    @classmethod
    def of(cls, qkv: nn.Linear, heads: int, value_dim: int, init: float) -> Self:
        """Turn a linear layer into this kind, in place: weight, bias, hooks and mode stay, the scale is added."""
        rewritten: Any = qkv
        scale = nn.Parameter(qkv.weight.new_full((heads,), init))
        rewritten.__class__ = cls
        rewritten.register_parameter(cls.scale, scale)
        rewritten.value_dim = value_dim
        return rewritten  # type: ignore[no-any-return]

    def plain(self) -> None:
        """Undo :meth:`of`."""
        delattr(self, self.scale)
        del self.value_dim
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def narrowed(self, weight: Tensor, bias: Tensor | None, heads: Tensor, value_dim: int) -> Self:
        """The same rewriting for some of the heads, with a projection (out, in), (out,) and a width of values of their own."""
        small: Any = copy.deepcopy(self)
        small.weight = nn.Parameter(weight.detach().clone(), self.weight.requires_grad)
        small.bias = None if bias is None else nn.Parameter(bias.detach().clone(), self.bias.requires_grad)
        small.out_features, small.value_dim = len(weight), value_dim
        scale = getattr(self, self.scale)
        setattr(small, self.scale, nn.Parameter(scale.detach()[heads.to(scale.device)], scale.requires_grad))
        return small  # type: ignore[no-any-return]


class RewrittenOutput(nn.Dropout):
    """The last module of an attention, which also rewrites its output, (…, tokens, dim)."""


def rewrite_qkv(
    model: nn.Module, blocks: Sequence[int] | None, kind: type[RewrittenQKV], init: float, *, averages: bool = False
) -> None:
    """Turn the ``qkv`` of blocks into a kind of :class:`RewrittenQKV`, in place; all of them or, on an exception, none.

    ``averages`` says that the kind averages over all tokens, so that masked calls must be refused.

    Raises
    ------
    TypeError
        Names the blocks whose attention is not plain softmax attention, or whose ``qkv`` is no plain linear layer.
    ValueError
        A layer is rewritten already or shared by blocks, ``init`` is not finite, or ``blocks`` is empty or out of range.
    RuntimeError
        A trial shows that an attention bypasses its ``qkv``.
    """
    require_finite(init=init)
    attentions = plain_attentions(model, chosen_blocks(model, blocks))
    for path, attention in attentions:
        if isinstance(attention.qkv, RewrittenQKV):
            raise ValueError(f"{path}.qkv is a {type(attention.qkv).__name__}: its values are already rewritten")
        if type(attention.qkv) is not nn.Linear:
            raise TypeError(
                f"{path}.qkv is a {type(attention.qkv).__name__}, not a plain nn.Linear: rewrite it first, then wrap it"
            )
    require_separate([(f"{path}.qkv", attention.qkv) for path, attention in attentions])
    with ExitStack() as undo:
        for path, attention in attentions:
            value_dim = projection_widths(attention)[2] // attention.num_heads
            rewritten = kind.of(attention.qkv, attention.num_heads, value_dim, init)
            undo.callback(rewritten.plain)
            require_effect(path, attention, "qkv", value_dim * attention.num_heads)
        undo.pop_all()
    if averages:
        guard_means(attentions)


def rewrite_output(
    model: nn.Module, blocks: Sequence[int] | None, make: Callable[[float, Tensor], RewrittenOutput], *, averages: bool = False
) -> None:
    """Replace the ``proj_drop`` of blocks by ``make(dropout probability, a (dim, …) tensor like the weights)``, in place.

    Hooks on the dropout go to its replacement. Errors, and ``averages``, as for :func:`rewrite_qkv`.
    """
    attentions = plain_attentions(model, chosen_blocks(model, blocks))
    for path, attention in attentions:
        dropout = attention.proj_drop
        if isinstance(dropout, RewrittenOutput):
            raise ValueError(f"{path}.proj_drop is a {type(dropout).__name__}: the output is already scaled")
        if type(dropout) not in (nn.Dropout, nn.Identity):
            raise TypeError(f"{path}.proj_drop is a {type(dropout).__name__}, where nn.Dropout or nn.Identity was expected")
    require_separate(attentions)
    with ExitStack() as undo:
        for path, attention in attentions:
            dropout = attention.proj_drop
            replacement = make(dropout.p if isinstance(dropout, nn.Dropout) else 0.0, attention.proj.weight)
            replacement.train(dropout.training)
            move_hooks(dropout, replacement)
            undo.callback(setattr, attention, "proj_drop", dropout)
            attention.proj_drop = replacement
            require_effect(path, attention, "proj_drop", attention.proj.out_features)
        undo.pop_all()
    if averages:
        guard_means(attentions)


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let the hooks of a module act on its replacement; their handles still remove them."""
    for name in HOOKS:
        setattr(new, name, getattr(old, name))


def require_separate(modules: list[tuple[str, nn.Module]]) -> None:
    """Refuse modules that stand at several paths of the model: they cannot have one scale for each.

    Raises
    ------
    ValueError
        Names the first two paths of one module.
    """
    paths: dict[int, str] = {}
    for path, module in modules:
        first = paths.setdefault(id(module), path)
        if first != path:
            raise ValueError(f"{path} is the same module as {first}: layers that blocks share cannot be scaled one by one")


def guard_means(attentions: list[tuple[str, Any]]) -> None:
    """Let attentions refuse masked and causal calls from now on."""
    for _, attention in attentions:
        if refuse_masks not in attention._forward_pre_hooks.values():
            attention.register_forward_pre_hook(refuse_masks, with_kwargs=True)


def chosen_blocks(model: nn.Module, blocks: Sequence[int] | None) -> list[int] | None:
    """Validate a choice of blocks.

    Raises
    ------
    ValueError
        It is empty, or names a block that the model does not have.
    """
    if blocks is None:
        return None
    depth = len(transformer_blocks(model))
    chosen = list(blocks)
    if not chosen or not all(0 <= index < depth for index in chosen):
        raise ValueError(f"blocks must name some of 0 … {depth - 1}, not {chosen}")
    return chosen


def require_finite(**values: float) -> None:
    """Raise a ``ValueError`` that names the first value which is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")


@torch.no_grad()
def require_effect(path: str, attention: Any, part: str, width: int) -> None:
    """Check that all of an attention's output comes through one of its parts, whatever the weights and their precision.

    On random tokens, the last ``width`` channels of what the part returns are made NaN: then all that the attention returns must
    be NaN. Hooks are not called meanwhile.

    Raises
    ------
    RuntimeError
        The attention computes around the part, which to change would have no effect.
    """
    relative, weight = getattr(attention, "rel_pos", None), attention.qkv.weight

    def spoil(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        spoilt = output.clone()
        spoilt[..., -width:] = torch.nan
        return spoilt

    with _without_hooks(attention):
        count = PROBE_TOKENS if relative is None else relative.get_bias().shape[-1]
        tokens = torch.randn(1, count, weight.shape[1], generator=torch.Generator().manual_seed(0), device="cpu").to(weight)
        getattr(attention, part).register_forward_hook(spoil)
        output = attention.forward(tokens)
    if not bool(output.isnan().all()):
        raise RuntimeError(f"{path} ({type(attention).__name__}) bypasses its {part} module: to change it would have no effect")


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Set aside, for a while, the forward hooks of a module and of its parts; and its training mode."""
    parts: list[Any] = list(module.modules())
    kept = [(part, part._forward_hooks, part._forward_pre_hooks, part.training) for part in parts]
    for part in parts:
        part._forward_hooks, part._forward_pre_hooks, part.training = OrderedDict(), OrderedDict(), False
    try:
        yield
    finally:
        for part, hooks, pre_hooks, training in kept:
            part._forward_hooks, part._forward_pre_hooks, part.training = hooks, pre_hooks, training
