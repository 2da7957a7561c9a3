"""AttnScale and FeatScale as the paper writes them, with explicit maps and means: the check of the forms that are computed.

An N × N map per head and layer is formed, changed and used, where :mod:`.scaling` forms none. Nothing is shared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from atlas.nn.anatomy import Site, attention_sites, call_arguments


def uniform_maps(maps: Tensor, mask: Tensor | None) -> Tensor:
    """J, the map of a query that attends alike to all that it may see: (batch or 1, 1, queries, tokens)."""
    if mask is None:
        return torch.full_like(maps[:1, :1], 1 / maps.shape[-1])
    seen = (mask if mask.dtype == torch.bool else mask > -100).to(maps)
    seen = seen.unflatten(0, (-1, 1)) if seen.ndim == 3 else seen
    repeats = len(maps) // len(seen) if seen.ndim == 4 else 1
    return (seen / seen.sum(-1, keepdim=True).clamp_min(1)).repeat(repeats, 1, 1, 1)


def scaled_maps(maps: Tensor, omega: Tensor, mask: Tensor | None = None) -> Tensor:
    """Â = J + (1 + ω)(A − J) for maps (…, heads or multiples, queries, tokens) and ω (heads,)."""
    uniform = uniform_maps(maps.flatten(0, -4), mask)
    each = omega.to(maps).repeat_interleave(maps.shape[-3] // len(omega))[:, None, None]
    return uniform + (1 + each) * (maps - uniform)


class _Softmax(TorchFunctionMode):
    """Changes what the softmax of tensors returns, where nothing else gets to see the maps."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self.change(result) if func is torch.Tensor.softmax else result


@contextmanager
def textbook_attnscale(model: nn.Module, omegas: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a plain model attend by Â while the block runs; ``omegas`` are those of its attentions, (heads of values,), by path."""
    with ExitStack() as undo:
        for site in attention_sites(model):
            if site.path in omegas:
                _attend_by(site, omegas[site.path], undo)
        yield


def _attend_by(site: Site, omega: Tensor, undo: ExitStack) -> None:
    """Change the maps of one attention, until ``undo``."""
    attention, call = site.module, {}

    def before(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        arguments = call_arguments(site.anatomy, inputs, options)
        call["mask"] = arguments.get("attn_mask", arguments.get("mask"))

    def change(maps: Tensor) -> Tensor:
        if site.anatomy.tokens == "units" and maps.ndim == 5:  # (batch, heads, units, …)
            return scaled_maps(maps.transpose(1, 2), omega).transpose(1, 2)
        by_head = maps.unflatten(0, (-1, site.heads)) if maps.ndim == 3 else maps
        return scaled_maps(by_head, omega, call["mask"]).view_as(maps)

    if hasattr(attention, "fused_attn"):
        undo.callback(setattr, attention, "fused_attn", attention.fused_attn)
        attention.fused_attn = False
    hooks: list[RemovableHandle] = [attention.register_forward_pre_hook(before, with_kwargs=True)]
    if site.anatomy.gives_maps:
        hooks.append(attention.attn_drop.register_forward_hook(lambda module, inputs, output: change(output)))
    else:
        forward = attention.forward

        def inside(*inputs: Any, **options: Any) -> Any:
            with _Softmax(change):
                return forward(*inputs, **options)

        attention.forward = inside
        undo.callback(delattr, attention, "forward")
    for hook in hooks:
        undo.callback(hook.remove)


def scaled_features(features: Tensor, s: Tensor, t: Tensor, axes: tuple[int, ...], mask: Tensor | None = None) -> Tensor:
    """SA + s ⊙ DC[SA] + t ⊙ HC[SA] for features (…, dim) with means over axes, s and t (dim,).

    Under a mask of padding, (batch, …, queries, tokens), the means are over the tokens that it leaves.
    """
    if mask is None:
        mean = features.mean(axes, keepdim=True)
    else:
        valid = (mask if mask.dtype == torch.bool else mask > -100)[:, 0].any(1).to(features)[..., None]
        mean = (features * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return features + s.to(features) * mean + t.to(features) * (features - mean)


@contextmanager
def textbook_featscale(model: nn.Module, scales: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let a plain model re-weight the output of its attentions while the block runs; ``scales`` are s and t, (dim,), by path."""
    with ExitStack() as undo:
        for site in attention_sites(model):
            if site.path in scales:
                for hook in _reweight(model, site, *scales[site.path]):
                    undo.callback(hook.remove)
        yield


def _reweight(model: nn.Module, site: Site, s: Tensor, t: Tensor) -> list[RemovableHandle]:
    """Change the output of one attention."""
    call: dict[str, Any] = {}

    def before(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        call["mask"] = call_arguments(site.anatomy, inputs, options).get("attn_mask")

    remember = site.module.register_forward_pre_hook(before, with_kwargs=True)
    if site.anatomy.windows:  # the module after the windows are a feature map again: a norm in v2, drop-path in v1
        block: Any = model.get_submodule(site.block)
        after = block.drop_path1 if "swin_transformer.Swin" in f"{type(block).__module__}.{type(block).__name__}" else block.norm1
        return [remember, after.register_forward_pre_hook(lambda module, inputs: scaled_features(inputs[0], s, t, (1, 2)))]
    if not hasattr(site.module, "in_split"):
        axes = (1,) if site.anatomy.tokens in ("sequence", "units") or site.anatomy.arguments == ("x", "size") else (1, 2)
        return [
            remember,
            site.module.register_forward_hook(lambda module, inputs, output: scaled_features(output, s, t, axes, call["mask"])),
        ]
    width = int(site.module.in_split[-1])

    def both(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        attended = output if layer.in_features == width else inputs[0][..., :width] @ layer.weight[:, :width].T
        return output - attended + scaled_features(attended, s, t, (1,), call["mask"])

    return [remember, site.projection.register_forward_hook(both)]
