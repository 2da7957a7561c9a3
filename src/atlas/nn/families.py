"""The transformers among timm's entrypoints, in families that are built alike, and a small model of each.

A family is what decides how a method acts: the classes of the model, of what makes its tokens, of its blocks, of their attentions
and feed-forwards, and which optional parts these have. Sizes do not matter, so one small model stands for all entrypoints of a
family. Looking at an entrypoint builds it without memory for its weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atlas.nn.anatomy import CONTAINERS, attention_modules, told_apart, transformer_blocks

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
STAGES = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
SIZES: dict[str, dict[str, Any]] = {
    "CrossVit": {"embed_dim": (16, 32), "depth": ((1, 2, 0),), "num_heads": (2, 2)},
    "Hiera": {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)},
    "HieraDet": {"embed_dim": 16, "num_heads": 2, "stages": (1, 2, 2, 1), "global_att_blocks": (4,)},
    "MobileNetV5": {},
    "MobileNetV5Encoder": {},
    "SwinTransformer": STAGES,
    "SwinTransformerV2": STAGES,
    "SwinTransformerV2Cr": STAGES,
    "TNT": {"embed_dim": 32, "depth": 2, "inner_dim": 8, "num_heads_inner": 2, "num_heads_outer": 2},
    "Twins": {"embed_dims": (16,) * 4, "num_heads": (2,) * 4, "depths": (2, 2, 1, 1)},
    "VisionTransformerSAM": VIT | {"window_size": 4, "global_attn_indexes": (1,)},
}
"""Arguments that make the model of a class small; of all others :data:`VIT` does."""
PATCHES = {"VisionTransformerSAM": 6}
"""Patches along a side, where four will not do: a window must not fit all of them."""


class Look(NamedTuple):
    """What a look at an entrypoint finds.

    Attributes
    ----------
    model : str
        Class of the model.
    family : str
        Everything that decides how a method acts, in words; empty where the model has no blocks with attention.
    patch : int
        Side of a patch; 0 where images keep their own size in small models too.
    weights : int
        Parameters of the full model.
    """

    model: str
    family: str
    patch: int
    weights: int


def look(entrypoint: str) -> Look:
    """Build a timm model without memory for its weights, and say of which family it is."""
    model = _created(entrypoint, {}, "meta")
    weights = sum(parameter.numel() for parameter in model.parameters())
    kind = type(model).__name__
    try:
        blocks = list(transformer_blocks(model).values())
    except TypeError:
        return Look(kind, "", 0, weights)
    parts = [_described(block) for block in blocks]
    if not any(attends for attends, _ in parts):
        return Look(kind, "", 0, weights)
    stem = getattr(model, "patch_embed", None)
    flags = [name for name in ("rope_mixed", "attn_pool", "fc_norm") if _used(getattr(model, name, None))]
    words = [kind, *flags, *([type(stem).__name__] if stem is not None else []), *sorted({words for _, words in parts})]
    inner = getattr(getattr(model, "encoder", None), "patch_embed", stem)
    size = getattr(inner, "patch_size", 0)
    return Look(kind, " · ".join(words), int(size[0] if isinstance(size, tuple | list) else size or 0), weights)


def _used(part: Any) -> bool:
    return part is not None and part is not False and not isinstance(part, nn.Identity)


def _described(block: Any) -> tuple[bool, str]:
    """Whether a block attends, and its classes and optional parts in words."""
    attentions = (
        attention_modules(block)
        or [
            (name, part)
            for name, part in block.named_modules()
            if "Att" in type(part).__name__ and not isinstance(block, CONTAINERS)
        ][:1]
    )
    if not attentions:
        return False, type(block).__name__
    words = [type(block).__name__, *sorted({_attention_words(attention) for _, attention in attentions})]
    mlp = getattr(block, "mlp", None)
    if mlp is not None:
        words.append(type(mlp).__name__ + (" with norm" if _used(getattr(mlp, "norm", None)) else ""))
    return True, ", ".join(words)


def _attention_words(attention: Any) -> str:
    """Class of an attention and its optional parts, those that change how it computes."""
    parts = [name for name in ("gate", "norm", "rope", "v_norm") if _used(getattr(attention, name, None))]
    if getattr(attention, "_parameters", {}).get("q_bias") is not None:
        parts.append("own biases")
    if getattr(attention, "qkv", 0) is None:
        parts.append("separate projections")
    if getattr(attention, "num_kv_heads", None) not in (None, getattr(attention, "num_heads", None)):
        parts.append("shared values")
    if getattr(attention, "use_rel_pos", False) or _used(getattr(attention, "rel_pos", None)):
        parts.append("relative positions")
    if getattr(attention, "relative_position_bias_table", None) is not None and "beit" in type(attention).__module__:
        parts.append("relative positions")
    if getattr(attention, "use_mask_unit_attn", False):
        parts.append("mask units")
    if getattr(attention, "sr_ratio", 1) > 1:
        parts.append("reduced")
    return told_apart(type(attention)) + (f" ({', '.join(parts)})" if parts else "")


def _created(entrypoint: str, options: dict[str, Any], device: str) -> Any:
    from timm.models import create_model

    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        return create_model(entrypoint, pretrained=False, **options)


def looks() -> Iterator[tuple[str, Look]]:
    """Look at every entrypoint of the installed timm: minutes."""
    from timm.models import list_models

    for entrypoint in sorted(list_models()):
        yield entrypoint, look(entrypoint)


def small_model(entrypoint: str, found: Look, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    """Return a small model of an entrypoint's family, in evaluation mode, and images (2, channels, side, side) for it.

    Parameters
    ----------
    entrypoint : str
        A name that timm knows.
    found : Look
        What :func:`look` says of it.
    dtype : torch.dtype
        Of weights and images.

    Every parameter matters: none is 0 or nearly so, as gains, biases and scales of residual branches are in a new model.
    """
    kind = found.model
    options: dict[str, Any] = dict(SIZES.get(kind, VIT))
    if "GeGluMlp" in found.family:  # the convolutions before its blocks must be narrow too
        from timm.models.vitamin import VitCfg

        options["embed_cfg"] = VitCfg(embed_dim=(16, 16, 32), depths=(1, 1, 2), stem_width=16)
    sized = kind not in ("CrossVit", "Hiera", "HieraDet", "MobileNetV5", "MobileNetV5Encoder")
    side = int(options.get("img_size", (found.patch or 16) * PATCHES.get(kind, 4)))
    if "HybridEmbed" in found.family:  # patches of what convolutions have reduced already
        side = 128
    if sized and not kind.startswith(("NaFlexVit", "Qwen3", "Gemma4")):
        options["img_size"] = side
    if "AttentionRope (separate projections" in found.family:
        options["num_kv_heads"] = (2, 1) if "shared values" in found.family else (2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _created(entrypoint, options, "cpu").eval()
    if not sized:
        side = int(model.pretrained_cfg["input_size"][-1]) if kind in ("CrossVit", "Hiera") else 64
    random = torch.Generator().manual_seed(3)
    stir(model, random)
    channels = int(getattr(model, "in_chans", 3) or 3)
    return model.to(dtype), torch.randn(2, channels, side, side, generator=random).to(dtype)


@torch.no_grad()
def stir(model: nn.Module, random: torch.Generator) -> None:
    """Give every parameter a value that matters."""
    for path, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim >= 2:
            parameter.copy_(0.5 * noise if "rel" in path or "bias" in path else noise / parameter[0].numel() ** 0.5)
        elif "gamma" in path or ".ls" in path:
            parameter.fill_(0.5)
        elif path.endswith(("weight", "bias")):
            parameter.copy_(path.endswith("weight") + 0.2 * noise)
