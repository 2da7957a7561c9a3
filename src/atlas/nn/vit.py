"""Instrumentation of timm vision transformers: attention modules, features and attention maps, layer by layer.

Everything reads the model through hooks, so the fused attention path stays as it is and no ``state_dict`` key changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def plain_attention_types() -> tuple[type[nn.Module], ...]:
    """Attention classes of timm that call ``attn.qkv`` as a module, attend by softmax, and end with ``attn.proj_drop``.

    Classes, not names: BEiT's attention is called ``Attention`` too, and calls the linear function on the weight instead.
    """
    from timm.models.vision_transformer import Attention
    from timm.models.vision_transformer_relpos import RelPosAttention

    return Attention, RelPosAttention


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision to float32, in which products and sums over tokens are safe; other types as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def transformer_blocks(model: nn.Module) -> nn.Sequential | nn.ModuleList:
    """Return ``model.blocks``.

    Raises
    ------
    TypeError
        The model has no ``blocks``: it is not a timm VisionTransformer.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        raise TypeError(f"{type(model).__name__} has no blocks: expected a timm VisionTransformer")
    return blocks


def attention_modules(block: nn.Module) -> list[tuple[str, Any]]:
    """Return the attention modules of one block with their names inside it: one, or several in parallel blocks."""
    attention = getattr(block, "attn", None)
    if isinstance(attention, nn.Module):
        return [("attn", attention)]
    parallel = getattr(block, "attns", None)  # timm's ParallelThingsBlock
    if isinstance(parallel, nn.ModuleList):
        return [(f"attns.{index}.attn", branch.attn) for index, branch in enumerate(parallel)]
    return []


def plain_attentions(model: nn.Module, blocks: list[int] | None = None) -> list[tuple[str, Any]]:
    """Return (path, module) of the attentions of some blocks (default all), which must be plain softmax attention.

    Raises
    ------
    TypeError
        Names every block whose attention is of another kind (gated, differential, talking heads, parallel scaling…).
    """
    found, foreign = [], []
    supported = plain_attention_types()
    for index, block in enumerate(transformer_blocks(model)):
        if blocks is not None and index not in blocks:
            continue
        attentions = attention_modules(block)
        if not attentions:
            foreign.append(f"blocks.{index} ({type(block).__name__})")
        for name, attention in attentions:
            path = f"blocks.{index}.{name}"
            if isinstance(attention, supported) and isinstance(getattr(attention, "qkv", None), nn.Linear):
                found.append((path, attention))
            else:
                foreign.append(f"{path} ({type(attention).__name__})")
    if foreign:
        raise TypeError(
            f"no plain softmax attention in {', '.join(foreign)}; supported: {', '.join(kind.__name__ for kind in supported)}"
        )
    return found


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


@torch.no_grad()
def block_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Token features through the depth: the input of block 0, then the output of every block, before the final norm.

    Parameters
    ----------
    images : Tensor
        (batch, channels, height, width).

    Returns
    -------
    list of Tensor
        depth + 1 tensors of (batch, tokens, dim), prefix tokens included, at least float32.
    """
    blocks = transformer_blocks(model)
    first: list[Tensor] = []
    handle = blocks[0].register_forward_pre_hook(lambda module, inputs: first.append(inputs[0]))
    try:
        with captured(dict(blocks.named_children()), lambda module, inputs, output: output) as outputs:
            model(images)
    finally:
        handle.remove()
    return [at_least_float32(feature) for feature in (first[0], *outputs.values())]


def projection_widths(attention: Any) -> tuple[int, int, int]:
    """Widths of queries, keys and values in the output of ``attention.qkv``; values may be narrower than the others."""
    total, values = int(attention.qkv.out_features), int(attention.proj.in_features)
    return (total - values) // 2, (total - values) // 2, values


def softmax_map(attention: Any, qkv: Tensor) -> Tensor:
    """Recompute the softmax map of a plain timm attention from the output of its ``qkv``.

    Parameters
    ----------
    qkv : Tensor
        (batch, tokens, queries + keys + values), each heads · its width.

    Returns
    -------
    Tensor
        (batch, heads, tokens, tokens), rows sum to 1; at least float32, before attention dropout.
    """
    batch, tokens, _ = qkv.shape
    heads = attention.num_heads
    inner = sum(projection_widths(attention)[:2])
    query, key = qkv[..., :inner].reshape(batch, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    with torch.autocast(qkv.device.type, enabled=False):
        logits = (at_least_float32(query) * attention.scale) @ at_least_float32(key).transpose(-2, -1)
        bias = getattr(attention, "rel_pos", None)
        if bias is not None:
            logits = logits + bias.get_bias()
        return logits.softmax(-1)


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> Iterator[tuple[int, Any, Tensor]]:
    """Yield (block index, attention module, map) one attention at a time, so that only one map is in memory.

    The projections of queries and keys of all layers are kept, the N² maps are not.
    """
    modules = dict(plain_attentions(model))
    with captured({name: module.qkv for name, module in modules.items()}, lambda module, inputs, output: output) as outputs:
        model(images)
    for name, attention in modules.items():
        yield int(name.split(".")[1]), attention, softmax_map(attention, outputs.pop(name))
