"""Changing what timm's attentions compute, in place and all or nothing: the values that they mix, their maps, or their output."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.anatomy import Site, anatomy_of, attention_sites, call_arguments, fused_biases, sample_call, transformer_blocks
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_sequence, require_whole
from atlas.nn.masks import Seen, seen_tokens

torch.fx.wrap("seen_tokens")  # one node of a traced graph: a mask that is an input is known only when the graph runs

NARROW = 192
"""Layers with at most so many inputs are narrow: on a grid, where tokens are many, their weights are scaled instead of values."""


class Rewritten:
    """A part of an attention that was changed in place; ``seen`` says whom its means are over, where a mask hides tokens."""

    scales: ClassVar[tuple[str, ...]] = ()
    seen: Seen | None = None


class RewrittenLinear(Rewritten, nn.Linear):
    """A linear layer that became one of this kind: its weight, bias, hooks and mode stayed, and scales were added."""

    @classmethod
    def of(cls, layer: nn.Linear, scales: dict[str, tuple[int, float]], **extras: Any) -> Self:
        """Turn a linear layer into this kind, in place; ``scales`` gives the length and the first value of each.

        ``extras`` become attributes, outside the module's own bookkeeping.
        """
        rewritten: Any = layer
        made = {name: nn.Parameter(layer.weight.new_full((length,), first)) for name, (length, first) in scales.items()}
        rewritten.__class__ = cls
        for name, scale in made.items():
            rewritten.register_parameter(name, scale)
        rewritten.__dict__.update(extras, extras=tuple(extras))
        return rewritten  # type: ignore[no-any-return]

    def plain(self) -> None:
        """Make this layer the plain linear layer again that it was before :meth:`of`."""
        for name in self.scales:
            delattr(self, name)
        for name in (*self.__dict__["extras"], "extras", "seen"):
            self.__dict__.pop(name, None)
        self.__class__ = nn.Linear  # type: ignore[assignment]


class RewrittenQKV(RewrittenLinear):
    """A projection to queries, keys and values that also rewrites the values, with a scale (heads,) that subclasses name.

    ``value_dim`` is the width of a head's values: the last heads · value_dim of what is projected. ``joined`` is the
    attention whose biases the projection adds, where that would otherwise add them around it. ``axes`` are those of the
    tokens; with ``unit``, the tokens of each mask unit are so many, and interleaved with the other units'. ``narrow`` says that a
    pass over the weights costs less than one over the values. ``over_channels`` says that the maps of a head are of its channels
    on its channels (cross-covariance attention).
    """

    joined: Any = None
    axes: tuple[int, ...] = (-2,)
    unit = 0
    narrow = False
    over_channels = False
    if TYPE_CHECKING:
        value_dim: int

    def project(self, x: Tensor) -> Tensor:
        """What the layer projects (…, tokens, dim) to, before values are rewritten."""
        if self.joined is not None:
            return self.joined.project(x, self.weight)  # type: ignore[no-any-return]
        return functional.linear(x, self.weight, self.bias)

    def narrowed(self, weight: Tensor, bias: Tensor | None, heads: Tensor, value_dim: int) -> Self:
        """The same rewriting for some of the heads, with a projection (out, in), (out,) and a width of values of their own."""
        small: Any = copy.deepcopy(self, {id(self.joined): None})
        small.weight = nn.Parameter(weight.detach().clone(), self.weight.requires_grad)
        small.bias = None if bias is None else nn.Parameter(bias.detach().clone(), self.bias.requires_grad)
        small.out_features, small.value_dim = len(weight), value_dim
        for name in self.scales:
            scale = getattr(self, name)
            setattr(small, name, nn.Parameter(scale.detach()[heads.to(scale.device)], scale.requires_grad))
        return small  # type: ignore[no-any-return]


def token_axes(site: Site) -> tuple[int, ...]:
    """Axes of the tokens in what an attention's layers make."""
    return (-3, -2) if site.anatomy.tokens == "grid" else (-2,)


class RewrittenOutput(Rewritten, nn.Dropout):
    """The last module of an attention, which also rewrites its output, (…, tokens, dim)."""


def rewrite_values(
    model: nn.Module,
    blocks: Sequence[int] | None,
    kind: type[RewrittenQKV],
    init: float,
    *,
    mixing: type[RewrittenLinear] | None = None,
    averages: bool = False,
) -> None:
    """Turn the layers that make values into a kind of :class:`RewrittenQKV`, in place; all or, on an exception, none.

    ``mixing`` is the kind that the layer over heads becomes instead where maps are mixed after the softmax. ``averages`` says
    that the kinds average over tokens, so that they must know of masks.

    Raises
    ------
    TypeError
        Names the blocks whose attention is of an unknown kind, or whose layer is no plain linear layer.
    ValueError
        A layer is rewritten already or shared by blocks, ``init`` is not finite, or ``blocks`` is empty or out of range.
    RuntimeError
        A trial shows that an attention bypasses the layer.
    """
    require_finite(init=init)
    sites = attention_sites(model, chosen_blocks(model, blocks))
    named = [(site, site.anatomy.mixing if mixing is not None and site.anatomy.mixing else site.values_name) for site in sites]
    layers = [(f"{site.path}.{name}", getattr(site.module, name)) for site, name in named]
    for path, layer in layers:
        if isinstance(layer, RewrittenLinear):
            raise ValueError(f"{path} is a {type(layer).__name__}: its values are already rewritten")
        if type(layer) is not nn.Linear:
            raise TypeError(f"{path} is a {type(layer).__name__}, not a plain nn.Linear: rewrite it first, then wrap it")
    require_separate(layers)
    with ExitStack() as undo:
        for (site, name), (_, layer) in zip(named, layers, strict=True):
            if mixing is not None and name == site.anatomy.mixing:
                undo.callback(mixing.of(layer, {mixing.scales[0]: (site.heads, init)}).plain)
                require_effect(site, name, site.heads)
            else:
                _rewrite_layer(site, layer, kind, init, undo)
                require_effect(site, name, site.value_width)
        undo.pop_all()
    if averages:
        tell_masks(sites)


def _rewrite_layer(site: Site, layer: nn.Linear, kind: type[RewrittenQKV], init: float, undo: ExitStack) -> None:
    """Turn one layer into a kind of :class:`RewrittenQKV`, with the biases that its attention adds around it."""
    extras: dict[str, Any] = {"value_dim": site.value_width // site.value_heads, "axes": token_axes(site)}
    if site.anatomy.tokens == "units" and site.module.use_mask_unit_attn:
        extras["unit"] = site.module.q_stride * site.module.window_size
    if site.anatomy.tokens == "grid" and not _cuts_windows(site) and layer.in_features <= NARROW:
        extras["narrow"] = True
    if not site.anatomy.over_tokens:
        extras["over_channels"] = True
    if fused_biases(site.module):
        from atlas.methods.anti_oversmoothing.timm_classes import JOINED, become

        undo.callback(setattr, site.module, "__class__", become(site.module, JOINED))
        extras["joined"] = site.module
    undo.callback(kind.of(layer, {kind.scales[0]: (site.value_heads, init)}, **extras).plain)


def _cuts_windows(site: Site) -> bool:
    """Whether the attention itself cuts a map into windows (Twins), so that the tokens come scattered in memory.

    Without gradients, PyTorch multiplies such tokens by another kernel when the weights ask for none, as scaled ones do: the last
    bits would change at 0.
    """
    return "size" in site.anatomy.arguments


def rewrite_output(
    model: nn.Module, blocks: Sequence[int] | None, make: Callable[[float, Tensor], RewrittenOutput], *, averages: bool = False
) -> None:
    """Replace the dropout at the end of attentions by ``make(dropout probability, a (dim, …) tensor like weights)``, in place.

    Hooks on the dropout go to its replacement. Errors, and ``averages``, as for :func:`rewrite_values`.
    """
    sites = attention_sites(model, chosen_blocks(model, blocks))
    replace_outputs(sites, make)
    if averages:
        tell_masks(sites)


def require_outputs(sites: list[Site]) -> None:
    """Refuse attentions that do not end in a plain dropout, or have it rewritten already.

    Raises
    ------
    TypeError, ValueError
        Names the first.
    """
    for site in sites:
        name = site.output_name
        dropout = getattr(site.module, name, None)
        if isinstance(dropout, Rewritten):
            raise ValueError(f"{site.path}.{name} is a {type(dropout).__name__}: the output is already scaled")
        if type(dropout) not in (nn.Dropout, nn.Identity):
            raise TypeError(f"{site.path}.{name} is a {type(dropout).__name__}, where nn.Dropout or nn.Identity was expected")
    require_separate([(site.path, site.module) for site in sites])


def replace_outputs(sites: list[Site], make: Callable[[float, Tensor], RewrittenOutput]) -> None:
    """Replace the dropout at the end of every one of some attentions or, on an exception, of none. See :func:`rewrite_output`.

    ``make`` is called with the rate of the dropout and the weight (dim, inputs) of the layer before it.
    """
    require_outputs(sites)
    with ExitStack() as undo:
        for site in sites:
            name, dropout = site.output_name, getattr(site.module, site.output_name)
            replacement = make(dropout.p if isinstance(dropout, nn.Dropout) else 0.0, site.projection.weight)
            replacement.train(dropout.training)
            move_hooks(dropout, replacement)
            undo.callback(setattr, site.module, name, dropout)
            setattr(site.module, name, replacement)
            require_effect(site, name, site.projection.out_features)
        undo.pop_all()


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


def tell_masks(sites: list[Site]) -> None:
    """From now on, let every call of attentions tell their rewritten parts which tokens it hides."""
    for site in sites:
        if "attn_mask" in site.anatomy.arguments or "mask" in site.anatomy.arguments:
            attention = site.module
            if tell_mask not in attention._forward_pre_hooks.values():
                attention.register_forward_pre_hook(tell_mask, with_kwargs=True)


def tell_mask(attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A forward pre-hook (with keyword arguments) of an attention: tells its rewritten parts which tokens this call hides.

    Raises
    ------
    NotImplementedError
        The call is causal, or its mask does not split the tokens into groups: means over tokens would mix in what some queries
        must not see.
    """
    anatomy = anatomy_of(type(attention))
    arguments = call_arguments(anatomy, inputs, options) if anatomy is not None else options
    mask, causal = arguments.get("attn_mask", arguments.get("mask")), arguments.get("is_causal", False)
    seen = None if mask is None and causal is False else seen_tokens(mask, causal)
    for part in attention.children():
        if isinstance(part, Rewritten) and part.seen is not seen:
            part.__dict__["seen"] = seen


def chosen_blocks(model: nn.Module, blocks: Sequence[int] | None) -> list[int] | None:
    """Validate a choice of blocks.

    Raises
    ------
    TypeError
        It is no sequence of whole numbers.
    ValueError
        It is empty, or names a block that the model does not have.
    """
    if blocks is None:
        return None
    require_sequence("a list of block numbers", blocks=blocks)
    depth = len(transformer_blocks(model))
    chosen = list(blocks)
    require_whole(**{f"blocks[{place}]": index for place, index in enumerate(chosen)})
    if not chosen or not all(0 <= index < depth for index in chosen):
        raise ValueError(f"blocks must name some of 0 … {depth - 1}, not {chosen}")
    return chosen


def require_finite(**values: float) -> None:
    """Raise an error that names the first value which is no number (``TypeError``) or not finite (``ValueError``)."""
    require_numbers(**values)
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")


@torch.no_grad()
def require_effect(site: Site, part: str, width: int) -> None:
    """Check that all of an attention's output comes through one of its parts, whatever the weights and their precision.

    On random tokens, the last ``width`` channels of what the part returns are made NaN: then all that the attention returns must
    be NaN. Hooks are not called meanwhile.

    Raises
    ------
    RuntimeError
        The attention computes around the part, which to change would have no effect.
    """
    attention = site.module

    def spoil(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        spoilt = output.clone()
        spoilt[..., -width:] = torch.nan
        return spoilt

    with without_hooks(attention):
        getattr(attention, part).register_forward_hook(spoil)
        buffers = dict(attention._buffers)  # what a call may keep for the next one
        output = attention.forward(*sample_call(site))
        attention._buffers.update(buffers)
    if not bool(output.isnan().all()):
        raise RuntimeError(
            f"{site.path} ({type(attention).__name__}) bypasses its {part} module: to change it would have no effect"
        )


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
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
