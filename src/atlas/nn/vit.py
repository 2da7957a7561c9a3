"""Instrumentation of timm's vision transformers: features and attention maps, layer by layer.

Everything reads the model through hooks, so the fused attention path stays as it is and no ``state_dict`` key changes.
:mod:`atlas.nn.anatomy` knows where the parts of an attention are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from atlas.nn.anatomy import (
    Site,
    anatomy_of,
    attention_modules,
    attention_sites,
    call_arguments,
    prefix_tokens,
    transformer_blocks,
)
from atlas.nn.watching import Watch


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor (…) of half precision in float32, in which sums over tokens are safe; other types as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def captured(modules: dict[str, nn.Module], take: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> Iterator[dict[str, Any]]:
    """Collect ``take(module, inputs, output)`` of every module's forward pass while the block runs, by name."""
    store: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            store[name] = take(module, inputs, output)

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield store
    finally:
        for handle in handles:
            handle.remove()


def as_tokens(features: Any, maps: bool) -> Tensor | None:
    """(batch, tokens, dim) as it is, with ``maps`` (batch, height, width, dim) as tokens, ``None`` for anything else."""
    if not isinstance(features, Tensor) or features.ndim not in ((3, 4) if maps else (3,)):
        return None
    return features if features.ndim == 3 else features.flatten(1, 2)


@torch.no_grad()
def block_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Token features through the depth: the input of the first block, then the output of every block, before the final norm.

    Parameters
    ----------
    images : Tensor
        (batch, channels, height, width).

    Returns
    -------
    list of Tensor
        depth + 1 tensors of (batch, tokens, dim), prefix tokens included, at least float32. In a transformer of stages the number
        of tokens and dim differ between stages.

    Raises
    ------
    TypeError
        What goes into or comes out of a block is no such tensor: the model is not a vision transformer of timm.
    """
    blocks = transformer_blocks(model)
    first: list[Any] = []
    handle = next(iter(blocks.values())).register_forward_pre_hook(lambda module, inputs: first.extend(inputs[:1]))
    try:
        with captured(blocks, lambda module, inputs, output: output) as outputs:
            model(images)
    finally:
        handle.remove()
    known = [part for block in blocks.values() for _, part in attention_modules(block)]
    maps = bool(known) and all(anatomy_of(type(part)) is not None for part in known)
    features = [as_tokens(feature, maps) for feature in (*first[:1], *outputs.values())]
    kept = [at_least_float32(feature) for feature in features if feature is not None]
    if len(kept) != len(blocks) + 1:
        raise TypeError(
            f"the blocks of {type(model).__name__} do not pass on (batch, tokens, dim): expected a timm VisionTransformer"
        )
    return kept


PLAIN = ("timm.layers.attention.Attention", "timm.models.vision_transformer_relpos.RelPosAttention")
"""Attentions whose maps are recomputed from the output of their ``qkv``: nothing but a bias comes between."""


def is_plain(attention: Any) -> bool:
    """Whether an attention is one of :data:`PLAIN`."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in PLAIN for kind in type(attention).__mro__)


class MapTap:
    """Remembers what one attention was called with, and gives the map that this call used.

    Of a plain attention it keeps the output of ``qkv`` and the bias of the logits. Any other is called once more, up to its map
    and without fused attention, on what it was called with: rotations, biases, windows, masks and mixed heads are those of the
    call.

    Parameters
    ----------
    site : Site
        The attention.
    wanted : callable, optional
        Whether the present call is to be remembered; every call by default.
    """

    def __init__(self, site: Site, wanted: Callable[[], bool] = lambda: True) -> None:
        self.site = site
        self.wanted = wanted
        self.plain = is_plain(site.module)
        self.seen: dict[str, Any] = {}
        self.handles: list[RemovableHandle] = [site.module.register_forward_pre_hook(Watch(self._before), with_kwargs=True)]
        if self.plain:
            self.handles.append(site.module.qkv.register_forward_hook(Watch(self._projected)))

    def remove(self) -> None:
        """Remove the hooks from the model, which then computes as before."""
        for handle in self.handles:
            handle.remove()

    def _before(self, attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self.wanted():
            self.seen = {"bias": logit_bias(self.site, inputs, options)} if self.plain else {"call": (inputs, dict(options))}

    def _projected(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.wanted():
            self.seen["qkv"] = output

    @property
    def ready(self) -> bool:
        """Whether a call was remembered that the map follows from."""
        return {"qkv", "bias"} <= self.seen.keys() if self.plain else "call" in self.seen

    @property
    def differentiable(self) -> bool:
        """Whether what was remembered has a gradient, where the weights want one."""
        if not self.site.values.weight.requires_grad:
            return True
        return not self.plain or bool(self.seen["qkv"].requires_grad)  # a second call makes gradients of its own

    def take(self) -> Tensor:
        """Return the map of the call that was remembered, and forget it. See :func:`softmax_map` for its shape."""
        seen, self.seen = self.seen, {}
        if self.plain:
            return softmax_map(self.site, seen["qkv"], seen["bias"])
        return repeated_map(self.site, *seen["call"])


def require_maps(sites: list[Site]) -> None:
    """Refuse attentions whose maps nothing but they themselves gets to see, or are not of tokens on the same tokens.

    Raises
    ------
    TypeError
        Names them.
    """
    reasons = {
        "over_tokens": "they are of channels on channels",
        "gives_maps": "they are computed and used in one step",
        "square": "they are of tokens on fewer tokens",
    }
    for flag, reason in reasons.items():
        hidden = [f"{site.path} ({type(site.module).__name__})" for site in sites if not getattr(site.anatomy, flag)]
        if hidden:
            raise TypeError(f"no maps to read in {', '.join(hidden)}: {reason}")


class _MapFound(Exception):
    """Ends the second call of an attention where its map is known."""


def repeated_map(site: Site, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """Call an attention again, without fused attention, up to its map.

    Returns
    -------
    Tensor
        (batch or windows, heads, queries, tokens), before attention dropout; at least float32. Rows sum to 1, but for talking
        heads and differential attention, whose maps are as the values meet them.

    Raises
    ------
    TypeError
        The attention does not show its map.
    """
    attention: Any = site.module
    received: list[Tensor] = []

    def take(module: nn.Module, given: tuple[Any, ...]) -> None:
        received.append(given[0])
        raise _MapFound

    mixing = getattr(attention, site.anatomy.mixing) if site.anatomy.mixing else None
    arguments = call_arguments(site.anatomy, inputs, dict(options))
    arguments["x"] = arguments["x"].to(site.values.weight.dtype)
    with _set_aside(attention), torch.autocast(arguments["x"].device.type, enabled=False):
        (mixing if mixing is not None else attention.attn_drop).register_forward_pre_hook(take)
        with suppress(_MapFound):
            attention.forward(**arguments)
    if not received:
        raise TypeError(f"{site.path} ({type(attention).__name__}) shows no map: what it attends to is not known")
    maps: Tensor = at_least_float32(received[0])
    if mixing is not None:
        bias = None if mixing.bias is None else mixing.bias.to(maps)
        maps = functional.linear(maps, mixing.weight.to(maps), bias).permute(0, 3, 1, 2)
    maps = maps.unflatten(0, (-1, site.heads)) if maps.ndim == 3 else maps.flatten(0, -4)
    if site.anatomy.softmaxes == 2:
        first, second = maps.unflatten(1, (-1, 2)).unbind(2)
        maps = first - attention._compute_lambda().to(maps) * second
    return maps


@contextmanager
def _set_aside(attention: Any) -> Iterator[None]:
    """Let an attention run once more for itself: without its parts' hooks, and without fused attention."""
    parts: list[Any] = list(attention.modules())
    kept = [(part, part._forward_hooks, part._forward_pre_hooks) for part in parts]
    fused = getattr(attention, "fused_attn", None)
    for part in parts:
        part._forward_hooks, part._forward_pre_hooks = OrderedDict(), OrderedDict()
    if fused is not None:
        attention.fused_attn = False
    try:
        yield
    finally:
        for part, hooks, pre_hooks in kept:
            part._forward_hooks, part._forward_pre_hooks = hooks, pre_hooks
        if fused is not None:
            attention.fused_attn = fused


def logit_bias(site: Site, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor | None:
    """What this call of a plain timm attention adds to its logits, asked for just before the call; ``None`` if nothing.

    Either the attention's own relative position bias, or the one that all blocks share, or the attention mask, with −∞ where it
    hides. Where the network behind a bias has dropout, this is the very draw that the call will make.

    Returns
    -------
    Tensor or None
        Broadcasts to (batch, heads, tokens, tokens).
    """
    attention = site.module
    arguments = call_arguments(site.anatomy, inputs, dict(options))
    own = getattr(attention, "rel_pos", None)
    if own is not None:
        device = attention.qkv.weight.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return own.get_bias()  # type: ignore[no-any-return]
    mask = arguments.get("attn_mask")
    if arguments.get("is_causal", False):
        count = arguments["x"].shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=arguments["x"].device).tril()
    if mask is None:
        return arguments.get("shared_rel_pos")
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


def softmax_map(site: Site, qkv: Tensor, bias: Tensor | None) -> Tensor:
    """Recompute the softmax map of a plain timm attention from the output of its ``qkv``.

    Parameters
    ----------
    qkv : Tensor
        (batch, tokens, queries + keys + values), each heads · its width; values may be narrower than the others.
    bias : Tensor or None
        What the same call added to the logits, from :func:`logit_bias`.

    Returns
    -------
    Tensor
        (batch, heads, tokens, tokens), rows sum to 1; at least float32, before attention dropout.
    """
    attention = site.module
    batch, tokens, width = qkv.shape
    query, key = qkv[..., : width - site.value_width].reshape(batch, tokens, 2, site.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    with torch.autocast(qkv.device.type, enabled=False):
        logits = (at_least_float32(query) * attention.scale) @ at_least_float32(key).transpose(-2, -1)
        return (logits if bias is None else logits + bias).softmax(-1)


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> Iterator[tuple[int, Site, Tensor]]:
    """Yield (block index, attention, map) one attention at a time, so that only one map is in memory.

    The maps are those of the model's own pass, with the position biases, rotations and masks that it used. What all layers were
    called with is kept, the N² maps of all images are not.

    Raises
    ------
    TypeError
        A block has no attention of a known kind, or one that was not called, or that computes its queries and keys without
        calling its ``qkv``.
    """
    order = {path: index for index, path in enumerate(transformer_blocks(model))}
    sites = attention_sites(model)
    require_maps(sites)
    taps = [MapTap(site) for site in sites]
    try:
        model(images)
    finally:
        for tap in taps:
            tap.remove()
    for tap in taps:
        if not tap.ready:
            raise TypeError(
                f"{tap.site.path} ({type(tap.site.module).__name__}) was not called, or bypasses its qkv module: "
                "its maps are unknown"
            )
        yield order[tap.site.block], tap.site, tap.take()


__all__ = [
    "MapTap",
    "as_tokens",
    "at_least_float32",
    "attention_maps",
    "block_features",
    "captured",
    "logit_bias",
    "prefix_tokens",
    "repeated_map",
    "softmax_map",
]
