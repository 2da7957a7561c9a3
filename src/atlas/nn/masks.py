"""Means over the tokens that a query may see.

A mask that splits tokens into groups (padding, the regions of a shifted window), each of which attends within itself, leaves
means that attention keeps: A m = m where m is each token's group mean. Any other mask does not: over a causal one, the mean
would be of tokens that the query must not see.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

HIDDEN = -100.0
"""A logit that is lowered this far is hidden: timm's shifted windows use this number, and e^−100 is nothing in any precision."""


class Seen(NamedTuple):
    """Which tokens are averaged for which.

    Attributes
    ----------
    chosen : Tensor
        (masks, groups, tokens) float32, 0 or 1: each row says which tokens one group has. Batches are a multiple of ``masks``.
    members : Tensor or None
        (masks, tokens, groups) float32: one-hot, the group whose mean a token gets; ``None`` for a single group.
    """

    chosen: Tensor
    members: Tensor | None


@torch.compiler.disable  # it asks for values of the mask, once for each mask
def seen_tokens(mask: Tensor | None, causal: bool) -> Seen | None:
    """Return the groups into which a call's mask splits the tokens; ``None`` where every token sees all.

    Parameters
    ----------
    mask : Tensor or None
        Broadcasts to (batch, heads, queries, tokens), or (windows, queries, tokens) as in windows: true, or more than −100, where
        a query sees a token.

    Raises
    ------
    NotImplementedError
        Causal attention, or a mask that differs between heads or does not split the tokens into groups.
    """
    if causal:
        raise NotImplementedError(
            "attention under a mask of the future (causal): this method averages over tokens and would mix in padding or future "
            "ones; call the model without is_causal"
        )
    if mask is None:
        return None
    if mask.is_inference():  # nothing tells whether it has changed
        return _seen(mask)
    version, seen = _KNOWN.get(mask, (-1, None))
    if version != mask._version:
        seen = _seen(mask)
        _KNOWN[mask] = mask._version, seen
    return seen


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""What was found of masks that still exist: all layers share one, or a window keeps its own for ever."""


def _seen(mask: Tensor) -> Seen | None:
    visible = (mask if mask.dtype == torch.bool else mask > HIDDEN).detach()
    if visible.ndim == 4:
        if visible.shape[1] > 1 and bool((visible != visible[:, :1]).any()):
            raise NotImplementedError("an attention mask that differs between heads: means over tokens would differ too")
        visible = visible[:, 0]
    if bool(visible.all()):
        return None
    return _groups(visible if visible.ndim == 3 else visible[None])


def _groups(visible: Tensor) -> Seen:
    """The groups of (masks, queries, tokens): one, of the tokens that are no padding, or those that attend within themselves."""
    some = visible.any(1, keepdim=True)
    if bool(((visible == some).all(-1) | ~visible.any(-1)).all()):
        return Seen(some.float(), None)
    first = visible.int().argmax(-1)  # of the tokens that a query sees: it stands for its group
    alike = visible == visible.gather(1, first[..., None].expand_as(visible))
    if not bool((alike & (visible == (first[:, :, None] == first[:, None, :]))).all()):
        raise NotImplementedError(
            "an attention mask that does not split the tokens into groups: this method averages over tokens and would mix in "
            "padding or future ones"
        )
    leads = first == torch.arange(first.shape[1], device=first.device)
    rank = (leads.cumsum(-1) - 1).gather(1, first)
    members = torch.nn.functional.one_hot(rank, int(leads.sum(-1).max()))
    return Seen(members.transpose(1, 2).float(), members.float())


def token_mean(tokens: Tensor, seen: Seen | None = None, axes: tuple[int, ...] = (-2,)) -> Tensor:
    """Mean over the token axis (−2) or axes, kept; accumulated in float32 under mixed precision, in the dtype of ``tokens``.

    Parameters
    ----------
    tokens : Tensor
        (…, tokens, dim); with ``seen``, (batch, tokens, dim).
    seen : Seen, optional
        Over whom. Then the result is (batch, 1, dim) for a single group, and (batch, tokens, dim) for several.
    """
    half = tokens.dtype in (torch.float16, torch.bfloat16)
    if seen is None:
        return tokens.mean(axes, keepdim=True, dtype=torch.float32).to(tokens.dtype) if half else tokens.mean(axes, keepdim=True)
    wide = tokens.float() if half else tokens
    with torch.autocast(tokens.device.type, enabled=False):
        chosen = seen.chosen.to(wide.dtype)
        means = chosen @ wide.unflatten(0, (-1, len(chosen))) / chosen.sum(-1, keepdim=True).clamp_min(1)
        if seen.members is not None:
            means = seen.members.to(wide.dtype) @ means
    return means.flatten(0, 1).to(tokens.dtype)
