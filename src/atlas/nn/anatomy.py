"""How timm builds its attentions over tokens: which layer makes the values, how they lie in it, what comes last.

One row of :data:`ANATOMIES` for each class, by the class's full name: two classes that share a short name (there are seven that
are called ``Attention``) are told apart, and no model of timm is imported for a look. What has no row is not read and not
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

PROBE_TOKENS = 5


def _incoming(attention: Any) -> int:
    """Width of all heads together, where the output projection takes nothing else."""
    return int(attention.proj.in_features)


def _last_part(block: Any) -> int:
    """Width of the values where the feed-forward's neurons come out of the same layer."""
    return int(block.in_split[-1])


@dataclass(frozen=True)
class Anatomy:
    """Where one class of attention has its parts.

    Attributes
    ----------
    arguments : tuple of str
        Names of the arguments of a call, in order.
    joint : str
        The linear layer whose last channels are the values, head by head; empty or absent from a module where ``values`` is used.
    values : str
        The layer that makes values alone.
    projections : tuple of str
        Layers that make queries and keys where ``values`` is used.
    width : callable
        Width of the values of all heads in the output of ``joint``.
    projection : str
        The linear layer from the heads' outputs back to tokens.
    output : str
        The dropout at the end, or the layer at the end where the output of attention has no dropout of its own.
    mixing : str
        The linear layer over heads that mixes maps after the softmax (talking heads), whose rows then no longer sum to 1.
    softmaxes : int
        Softmax maps per head; of two, the second is subtracted from the first (differential attention).
    tokens : str
        How tokens lie in a call and in what ``joint`` or ``values`` makes of it. "sequence": (batch, tokens, channels). "map": a
        call takes (batch, height, width, channels) and flattens it. "grid": tokens are the last two axes but one, (…, height,
        width, channels). "units": (batch, tokens, channels), where the tokens of mask unit u are those at u, u + units, u + 2 ·
        units …
    windows : bool
        The first axis of a call is windows that a block cuts a feature map into.
    gives_maps : bool
        Without fused attention, every map goes through ``attn_drop``.
    square : bool
        Maps are of tokens on the same tokens, not on fewer.
    over_tokens : bool
        Maps are of tokens; else of channels on channels, and only the output has a mean over tokens.
    """

    arguments: tuple[str, ...] = ("x",)
    joint: str = "qkv"
    values: str = ""
    projections: tuple[str, ...] = ()
    width: Callable[[Any], int] = _incoming
    projection: str = "proj"
    output: str = "proj_drop"
    mixing: str = ""
    softmaxes: int = 1
    tokens: Literal["sequence", "map", "grid", "units"] = "sequence"
    windows: bool = False
    gives_maps: bool = True
    square: bool = True
    over_tokens: bool = True


MASKED = ("x", "attn_mask", "is_causal")
ROTARY = ("x", "rope", "attn_mask", "is_causal")
APART = ("q_proj", "k_proj")
WINDOWS = Anatomy(("x", "mask"), windows=True)
PARALLEL = Anatomy(MASKED, joint="in_proj", width=_last_part, projection="attn_out_proj", output="attn_out_proj")

ANATOMIES: dict[str, Anatomy] = {
    "timm.layers.attention.Attention": Anatomy(MASKED),
    "timm.layers.attention.AttentionRope": Anatomy(ROTARY, values="v_proj", projections=APART),
    "timm.layers.diff_attention.DiffAttention": Anatomy(MASKED, softmaxes=2),
    "timm.models.beit.Attention": Anatomy(("x", "shared_rel_pos_bias")),
    "timm.models.cait.TalkingHeadAttn": Anatomy(mixing="proj_w"),
    "timm.models.convit.GPSA": Anatomy(joint="", values="v", projections=("qk",)),
    "timm.models.convit.MHSA": Anatomy(),
    "timm.models.eva.EvaAttention": Anatomy(ROTARY, values="v_proj", projections=APART),
    "timm.models.hiera.MaskUnitAttention": Anatomy(output="proj", tokens="units", gives_maps=False),
    "timm.models.hieradet_sam2.MultiScaleAttention": Anatomy(output="proj", tokens="grid", gives_maps=False),
    "timm.models.swin_transformer.WindowAttention": WINDOWS,
    "timm.models.swin_transformer_v2.WindowAttention": WINDOWS,
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": WINDOWS,
    "timm.models.tnt.Attention": Anatomy(joint="", values="v", projections=("qk",)),
    "timm.models.twins.GlobalSubSampleAttn": Anatomy(("x", "size"), joint="kv", projections=("q",), square=False),
    "timm.models.twins.LocallyGroupedAttn": Anatomy(("x", "size"), tokens="grid"),
    "timm.models.vision_transformer.DiffParallelScalingBlock": Anatomy(
        MASKED, joint="in_proj", width=_last_part, projection="out_proj", output="out_proj", softmaxes=2
    ),
    "timm.models.vision_transformer.ParallelScalingBlock": PARALLEL,
    "timm.models.vision_transformer_relpos.RelPosAttention": Anatomy(("x", "shared_rel_pos")),
    "timm.models.vision_transformer_sam.Attention": Anatomy(tokens="map"),
    "timm.models.xcit.XCA": Anatomy(over_tokens=False),
}


def anatomy_of(kind: type) -> Anatomy | None:
    """The anatomy of a class or of the nearest class that it inherits from; ``None`` if it is not known."""
    if kind not in _FOUND:
        names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
        _FOUND[kind] = next((ANATOMIES[name] for name in names if name in ANATOMIES), None)
    return _FOUND[kind]


_FOUND: dict[type, Anatomy | None] = {}


class Site(NamedTuple):
    """One attention over tokens of a model.

    Attributes
    ----------
    path : str
        Its path in the model.
    block : str
        The path of its block; its own where the block itself attends.
    module : nn.Module
        The attention.
    anatomy : Anatomy
        How it is built.
    """

    path: str
    block: str
    module: Any
    anatomy: Anatomy

    @property
    def values_name(self) -> str:
        """Name of the layer whose last channels are the values."""
        joint = self.anatomy.joint
        return joint if joint and getattr(self.module, joint, None) is not None else self.anatomy.values

    @property
    def values(self) -> Any:
        """The layer whose last channels are the values, or ``None``."""
        return getattr(self.module, self.values_name, None)

    @property
    def projection_name(self) -> str:
        """Name of the linear layer back to tokens."""
        name = self.anatomy.projection
        return name if getattr(self.module, name, None) is not None else "out_proj"

    @property
    def projection(self) -> Any:
        """The linear layer back to tokens, or ``None``."""
        return getattr(self.module, self.projection_name, None)

    @property
    def output_name(self) -> str:
        """Name of what comes last in the attention."""
        return self.anatomy.output if self.anatomy.output != self.anatomy.projection else self.projection_name

    @property
    def value_width(self) -> int:
        """Width of the values of all heads together."""
        joint = self.values_name == self.anatomy.joint
        return self.anatomy.width(self.module) if joint else int(self.values.out_features)

    @property
    def heads(self) -> int:
        """How many heads have maps of their own."""
        return int(getattr(self.module, "num_heads", 0) or self.module.heads)

    @property
    def value_heads(self) -> int:
        """How many heads have values of their own: fewer than there are maps in grouped-query attention."""
        return int(getattr(self.module, "num_kv_heads", self.heads))

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_q, W_k and W_v, (out, in) each."""
        weight = self.values.weight
        if self.values_name != self.anatomy.joint or self.anatomy.joint == "kv":
            others = [getattr(self.module, name).weight for name in self.anatomy.projections]
            if self.values_name == "kv":
                return others[0], *weight.chunk(2)
            query, key = others[0].chunk(2) if len(others) == 1 else others
            return query, key, weight
        if self.anatomy.joint == "in_proj":
            _, query, key, value = weight.split(self.module.in_split)
        else:
            half = (len(weight) - self.value_width) // 2
            query, key, value = weight.split((half, half, self.value_width))
        return query, key, value


def fused_biases(attention: Any) -> bool:
    """Whether an attention has biases of queries and values of its own, which it adds around its ``qkv``."""
    return attention._parameters.get("q_bias") is not None


def sample_call(site: Site) -> tuple[Any, ...]:
    """Arguments of a small call of an attention, random and the same every time; made on the CPU."""
    attention, weight = site.module, site.values.weight
    width = int(weight.shape[1])
    random = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=random, device="cpu").to(weight)

    if "size" in site.anatomy.arguments:
        side = int(getattr(attention, "ws", 0) or 2 * attention.sr_ratio)
        return tokens(1, side * side), (side, side)
    if site.anatomy.tokens == "grid":
        return (tokens(1, 4, 4),)
    if site.anatomy.tokens == "map":
        rope = getattr(attention, "rope", None)
        return (tokens(1, 2, 3) if rope is None else tokens(1, len(rope.get_embed()), 1),)
    if site.anatomy.tokens == "units":
        return (tokens(1, 2 * attention.q_stride * max(1, attention.window_size)),)
    return (tokens(1, _sample_tokens(attention)),)


def _sample_tokens(attention: Any) -> int:
    """How many tokens a call may have."""
    relative = getattr(attention, "rel_pos", None)
    if relative is not None:
        return int(relative.get_bias().shape[-1])
    index = getattr(attention, "relative_position_index", None)
    if index is not None:
        return len(index)
    if hasattr(attention, "rel_indices"):  # of a square of patches
        return 4
    window = getattr(attention, "window_size", None)
    return int(window[0] * window[1]) if window is not None else PROBE_TOKENS


def transformer_blocks(model: Any) -> dict[str, nn.Module]:
    """Return the blocks of a vision transformer by their paths, in the order in which they act.

    They stand in ``model.blocks``, or one after another in those of its stages, or in those of the encoder that a classifier
    wraps.

    Raises
    ------
    TypeError
        There are none: the model is not a vision transformer of timm.
    """
    blocks = dict(_blocks(model, ""))
    if not blocks:
        raise TypeError(
            f"{type(model).__name__} has no blocks: expected a timm VisionTransformer, or another transformer of timm"
        )
    return blocks


CONTAINERS = (nn.Sequential, nn.ModuleList)
BRANCHED = ("timm.models.crossvit.MultiScaleBlock", "timm.models.tnt.Block")
"""Blocks that pass on several sequences of tokens."""
MERGING = ("timm.models.hiera.HieraBlock", "timm.models.hieradet_sam2.MultiScaleBlock")
"""Blocks of which some merge tokens."""


def _blocks(model: Any, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    own = getattr(model, "blocks", None)
    if isinstance(own, CONTAINERS):
        for name, block in own.named_children():
            if isinstance(block, nn.ModuleList):  # a stage of its own
                yield from ((f"{prefix}blocks.{name}.{inner}", part) for inner, part in block.named_children())
            else:
                yield f"{prefix}blocks.{name}", block
        return
    for stages in ("layers", "stages"):
        if isinstance(parts := getattr(model, stages, None), CONTAINERS):
            pairs = [pair for name, stage in parts.named_children() for pair in _blocks(stage, f"{prefix}{stages}.{name}.")]
            if any(anatomy_of(type(getattr(block, "attn", None))) is not None for _, block in pairs):
                yield from pairs
    if isinstance(getattr(model, "encoder", None), nn.Module):
        yield from _blocks(model.encoder, f"{prefix}encoder.")


def require_one_sequence(model: nn.Module) -> None:
    """Refuse models whose blocks pass on more than one sequence of tokens.

    Raises
    ------
    TypeError
        Names the first such block.
    """
    for path, block in transformer_blocks(model).items():
        if f"{type(block).__module__}.{type(block).__qualname__}" in BRANCHED:
            raise TypeError(
                f"{path} ({type(block).__name__}) passes on several sequences of tokens: expected a timm VisionTransformer"
            )


def require_same_tokens(model: nn.Module) -> None:
    """Refuse models whose last block has other tokens than the first: their blocks stand in stages, or merge tokens.

    Raises
    ------
    TypeError
        Says so.
    """
    for path, block in transformer_blocks(model).items():
        if path.count(".") != 1 or f"{type(block).__module__}.{type(block).__qualname__}" in MERGING:
            raise TypeError(
                f"the blocks of {type(model).__name__} merge tokens, or stand in stages or in an encoder of their own: "
                "its last tokens are not the patches of the first, expected a timm VisionTransformer"
            )


def attention_modules(block: Any) -> list[tuple[str, Any]]:
    """Return the attention modules of one block with their names inside it.

    One, or several in parallel, nested or branched blocks; under the empty name the block itself, where it attends by itself.
    Attention of the class token alone over all others (class attention, the fusion of branches) is none of them: it has no map
    of tokens on tokens.
    """
    attention = getattr(block, "attn", None)
    if isinstance(attention, nn.Module):
        return [("attn", attention)]
    parallel = getattr(block, "attns", None)  # timm's ParallelThingsBlock
    if isinstance(parallel, nn.ModuleList):
        return [(f"attns.{index}.attn", branch.attn) for index, branch in enumerate(parallel)]
    if isinstance(getattr(block, "attn_in", None), nn.Module):  # transformer in transformer
        return [("attn_in", block.attn_in), ("attn_out", block.attn_out)]
    if isinstance(getattr(block, "blocks", None), nn.ModuleList):  # branches of several scales
        return [(f"blocks.{i}.{j}.attn", inner.attn) for i, branch in enumerate(block.blocks) for j, inner in enumerate(branch)]
    return [("", block)] if anatomy_of(type(block)) is not None else []


def attention_sites(model: nn.Module, blocks: list[int] | None = None) -> list[Site]:
    """Return the attentions over tokens of some blocks (default all), each with its anatomy.

    Raises
    ------
    TypeError
        Names every block whose attention is of an unknown kind, and every projection that is not a linear layer itself but a
        wrapper around one (an adapter for fine-tuning, for example).
    """
    sites: list[Site] = []
    foreign: list[str] = []
    for index, (path, block) in enumerate(transformer_blocks(model).items()):
        if blocks is not None and index not in blocks:
            continue
        attentions = attention_modules(block)
        if not attentions:
            foreign.append(f"{path} ({told_apart(type(block))})")
        for name, attention in attentions:
            at = f"{path}.{name}" if name else path
            anatomy = anatomy_of(type(attention))
            if anatomy is None:
                foreign.append(f"{at} ({told_apart(type(attention))})")
                continue
            site = Site(at, path, attention, anatomy)
            layers = {f"{at}.{site.values_name}": site.values, f"{at}.{site.projection_name}": site.projection}
            foreign += [
                f"{where} ({type(layer).__name__})" for where, layer in layers.items() if not isinstance(layer, nn.Linear)
            ]
            sites.append(site)
    if foreign:
        cure = "`atlas list backbones` says which models are supported"
        if any("GatedBlock" in one for one in foreign):
            cure = "the model has UVC's gates: call remove_gates(model) first"
        raise TypeError(
            f"no softmax attention over tokens of a known kind, with nn.Linear as its layers, in {', '.join(foreign)}; {cure}"
        )
    return sites


def told_apart(kind: type) -> str:
    """Name of a class, with its module's where it alone does not say which: several attentions are called ``Attention``."""
    if kind.__name__ not in ("Attention", "WindowAttention"):
        return kind.__name__
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def call_arguments(anatomy: Anatomy, inputs: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of one call of an attention by name, however they were passed."""
    return dict(zip(anatomy.arguments, inputs, strict=False)) | dict(options)


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens of the blocks are not patches: class, distillation and register tokens.

    The class token of CaiT and XCiT joins after the blocks, in layers of its own.
    """
    joins_later = hasattr(model, "blocks_token_only") or hasattr(model, "cls_attn_blocks")
    return 0 if joins_later else int(getattr(model, "num_prefix_tokens", 0))
