"""Instrumentation of timm vision transformers: attention modules, features and attention maps, layer by layer.

Everything reads the model through hooks, so the fused attention path stays as it is and no ``state_dict`` key changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
        Names every block whose attention is of another kind (differential, talking heads, parallel scaling…), and every ``qkv``
        or ``proj`` that is not a linear layer itself but a wrapper around one (an adapter for fine-tuning, for example).
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
            if not isinstance(attention, supported):
                foreign.append(f"{path} ({_told_apart(type(attention), supported)})")
                continue
            layers = {f"{path}.{part}": getattr(attention, part, None) for part in ("qkv", "proj")}
            foreign += [f"{at} ({type(layer).__name__})" for at, layer in layers.items() if not isinstance(layer, nn.Linear)]
            found.append((path, attention))
    if foreign:
        kinds = " or ".join(kind.__name__ for kind in supported)
        raise TypeError(f"no plain softmax attention in {', '.join(foreign)}; supported: {kinds} with nn.Linear as qkv and proj")
    return found


def _told_apart(kind: type, others: tuple[type, ...]) -> str:
    """Name of a class, with its module's where one of the others has the same name (BEiT's attention is an ``Attention``)."""
    if kind.__name__ not in {other.__name__ for other in others}:
        return kind.__name__
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def call_arguments(attention: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of one call of a plain timm attention by name, however they were passed."""
    names = ("x", "shared_rel_pos") if hasattr(attention, "rel_pos") else ("x", "attn_mask", "is_causal")
    return dict(zip(names, inputs, strict=False)) | dict(options)


def refuse_masks(attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A forward pre-hook (with keyword arguments) of an attention, for methods that average over all of its tokens.

    Raises
    ------
    NotImplementedError
        The call is masked or causal: the mean over tokens would mix in what some queries must not see.
    """
    arguments = call_arguments(attention, inputs, options)
    _require_unmasked(arguments.get("attn_mask"), arguments.get("is_causal", False))


@torch.fx.wrap  # one node of a traced graph: a mask that is an input of the model is known only when the graph runs
def _require_unmasked(mask: Tensor | None, causal: bool) -> None:
    if causal or mask is not None:
        raise NotImplementedError(
            "attention with a mask or causal attention: this method averages over all tokens and would mix in padding or future "
            "ones; call the model without attn_mask and is_causal"
        )


def logit_bias(attention: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor | None:
    """What this call of a plain timm attention adds to its logits, asked for just before the call; ``None`` if nothing.

    Either the attention's own relative position bias, or the one that all blocks share, or the attention mask, with −∞ where it
    hides. Where the network behind a bias has dropout, this is the very draw that the call will make.

    Returns
    -------
    Tensor or None
        Broadcasts to (batch, heads, tokens, tokens).
    """
    arguments = call_arguments(attention, inputs, options)
    own = getattr(attention, "rel_pos", None)
    if own is not None:
        device = attention.qkv.weight.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return own.get_bias()
    mask = arguments.get("attn_mask")
    if arguments.get("is_causal", False):
        count = arguments["x"].shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=arguments["x"].device).tril()
    if mask is None:
        return arguments.get("shared_rel_pos")
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


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

    Raises
    ------
    TypeError
        What goes into or comes out of a block is no such tensor: the model is not a timm VisionTransformer.
    """
    blocks = transformer_blocks(model)
    first: list[Tensor] = []
    handle = blocks[0].register_forward_pre_hook(lambda module, inputs: first.extend(inputs[:1]))
    try:
        with captured(dict(blocks.named_children()), lambda module, inputs, output: output) as outputs:
            model(images)
    finally:
        handle.remove()
    features = [*first[:1], *outputs.values()]
    if len(features) != len(blocks) + 1 or not all(isinstance(feature, Tensor) and feature.ndim == 3 for feature in features):
        raise TypeError(
            f"the blocks of {type(model).__name__} do not pass on (batch, tokens, dim): expected a timm VisionTransformer"
        )
    return [at_least_float32(feature) for feature in features]


def projection_widths(attention: Any) -> tuple[int, int, int]:
    """Widths of queries, keys and values in the output of ``attention.qkv``; values may be narrower than the others."""
    total, values = int(attention.qkv.out_features), int(attention.proj.in_features)
    return (total - values) // 2, (total - values) // 2, values


def softmax_map(attention: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
    """Recompute the softmax map of a plain timm attention from the output of its ``qkv``.

    Parameters
    ----------
    qkv : Tensor
        (batch, tokens, queries + keys + values), each heads · its width.
    bias : Tensor or None
        What the same call added to the logits, from :func:`logit_bias`.

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
        return (logits if bias is None else logits + bias).softmax(-1)


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> Iterator[tuple[int, Any, Tensor]]:
    """Yield (block index, attention module, map) one attention at a time, so that only one map is in memory.

    The maps are those of the model's own pass, with the relative position biases and masks that it used. The projections of
    queries and keys of all layers are kept, the N² maps of all images are not.

    Raises
    ------
    TypeError
        A block has no plain softmax attention, or one that computes its queries and keys without calling its ``qkv``.
    """
    modules = dict(plain_attentions(model))
    biases: dict[str, Tensor | None] = {}

    def keep(name: str) -> Callable[..., None]:
        def before(attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            biases[name] = logit_bias(attention, inputs, options)

        return before

    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with captured({name: module.qkv for name, module in modules.items()}, lambda module, inputs, output: output) as outputs:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, attention in modules.items():
        if name not in outputs or name not in biases:
            raise TypeError(
                f"{name} ({type(attention).__name__}) was not called, or bypasses its qkv module: its maps are unknown"
            )
        yield int(name.split(".")[1]), attention, softmax_map(attention, outputs.pop(name), biases.pop(name))
