"""DynamicViT: tokens of a vision transformer that are dropped on the way, picture by picture, by small predictors.

Y. Rao, W. Zhao, B. Liu, J. Lu, J. Zhou, C.-J. Hsieh, *DynamicViT: Efficient Vision Transformers with Dynamic Token
Sparsification*, NeurIPS 2021, arXiv 2106.02034. In training all tokens stay in the tensors, and those that are dropped
are masked out of attention, so that decisions have gradients. In evaluation they are gone: every picture keeps as many, the
ones that its predictors find most worth keeping.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.errors import InfeasibleBudgetError, UnsupportedArchitectureError
from atlas.nn.draws import UniformDraws
from atlas.nn.ranks import ALONE, Ranks
from atlas.nn.vit import at_least_float32

EPSILON = 1e-6
"""Of the masked softmax, as in the authors' code: a row whose kept entries all underflow becomes uniform instead of 0/0."""
TINY = 1e-20


def masked_softmax(logits: Tensor, decision: Tensor) -> Tensor:
    """Attention over the kept tokens and a token's own, Sec. 3.3: exp(P_ij) G_ij / Σ_k exp(P_ik) G_ik.

    Parameters
    ----------
    logits : Tensor
        (batch, heads, n, n).
    decision : Tensor
        (batch, n): 1 where a token is kept, 0 where not. Its gradient is that of G_ij, also where it is 0.

    Returns
    -------
    Tensor
        Maps like ``logits``, with rows that sum to 1, at least float32.
    """
    count = logits.shape[-1]
    logits = at_least_float32(logits)
    own = torch.eye(count, device=logits.device, dtype=logits.dtype)
    kept = decision[:, None, None, :].to(logits.dtype)
    kept = kept + (1 - kept) * own
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp() * kept
    return (weights + EPSILON / count) / (weights.sum(-1, keepdim=True) + EPSILON)


class SelectiveAttention(Attention):
    """timm's attention, which may be told which tokens are kept."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over tokens, (batch, n, dim) → the same; ``attn_mask`` is the decision on them, (batch, n), if there is one."""
        if attn_mask is None:
            return super().forward(x, is_causal=is_causal)
        batch, tokens, _ = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        maps = masked_softmax(query * self.scale @ key.mT, attn_mask).to(value.dtype)
        out = (self.attn_drop(maps) @ value).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class TokenSelector(nn.Module):
    """Says of every patch whether it stays: a predictor of (local, global) features, and its draws (Sec. 3.2).

    Parameters
    ----------
    dim : int
        Width of tokens, a multiple of 4.
    keep_ratio : float
        Share of all patches that stays after this place.
    patches : int
        All patches of a picture.
    """

    def __init__(self, dim: int, keep_ratio: float, patches: int) -> None:
        super().__init__()
        self.keep_ratio, self.count = keep_ratio, kept_patches(patches, keep_ratio)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.predict = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )
        self.noise = UniformDraws()

    def forward(self, patches: Tensor, kept: Tensor) -> Tensor:
        """Log-probabilities (batch, n, 2) of keeping and of dropping, from (batch, n, dim) and who is still there, (batch, n)."""
        local, shared = self.embed(patches).chunk(2, -1)
        weights = kept[..., None].to(shared.dtype)
        mean = (shared * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        return at_least_float32(self.predict(torch.cat((local, mean.expand_as(local)), -1))).log_softmax(-1)

    def decide(self, patches: Tensor, kept: Tensor) -> Tensor:
        """Draw who stays of those who are there: (batch, n) of 0 and 1, with the gradient of Gumbel-softmax passed through."""
        logits = self(patches, kept)
        uniform = self.noise(logits).clamp(TINY, 1 - 1e-7)
        soft = (logits - torch.log(-torch.log(uniform))).softmax(-1)[..., 0]
        return ((soft > 0.5).to(soft) + (soft - soft.detach())) * kept

    def best(self, patches: Tensor) -> Tensor:
        """Indices (batch, count) of the patches most worth keeping, in their order."""
        worth = self(patches, patches.new_ones(patches.shape[:2]))[..., 0]
        return worth.topk(min(self.count, worth.shape[1]), sorted=False).indices.sort(-1).values


class SelectiveBlocks(nn.Sequential):
    """The blocks of a transformer, some with a :class:`TokenSelector` named ``selector`` in front.

    Attributes
    ----------
    prefix : int
        Tokens in front of the patches, which are never dropped.
    decisions : list of Tensor
        Of the last training pass: (batch, patches) of each place, 1 where a patch was kept.
    """

    def __init__(self, blocks: Sequence[nn.Module], prefix: int) -> None:
        super().__init__(*blocks)
        self.prefix = prefix
        self.decisions: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Pass tokens (batch, n, dim) on: all of them in training, in evaluation ever fewer."""
        if self.training:
            return self._masked(x)
        for block in self:
            selector = getattr(block, "selector", None)
            if selector is not None:
                patches = x[:, self.prefix :]
                index = selector.best(patches)[..., None].expand(-1, -1, x.shape[-1])
                x = torch.cat((x[:, : self.prefix], patches.gather(1, index)), 1)
            x = block(x)
        return x

    def _masked(self, x: Tensor) -> Tensor:
        self.decisions = []
        prefix = x.new_ones(len(x), self.prefix, dtype=torch.float32)
        kept = x.new_ones(len(x), x.shape[1] - self.prefix, dtype=torch.float32)
        for block in self:
            selector = getattr(block, "selector", None)
            if selector is not None:
                kept = selector.decide(x[:, self.prefix :], kept)
                self.decisions.append(kept)
            x = block(x, attn_mask=torch.cat((prefix, kept), 1)) if self.decisions else block(x)
        return x


def default_places(depth: int) -> tuple[int, ...]:
    """Blocks in front of which tokens are dropped, by the paper's choice of 3, 6 and 9 of 12: at the quarters of the depth."""
    return tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)} & set(range(depth))))


def kept_patches(patches: int, keep_ratio: float) -> int:
    """How many patches stay, of all: the share, rounded down, and at least one."""
    return max(1, int(keep_ratio * patches + 1e-9))


def select_tokens(
    model: Any, keep_ratio: float, places: Sequence[int] | None = None, generator: torch.Generator | None = None
) -> nn.Module:
    """Return a copy of a timm VisionTransformer that drops tokens in front of some of its blocks.

    Parameters
    ----------
    model : VisionTransformer
        With a class token, which alone is read out.
    keep_ratio : float
        ρ in (0, 1]: of all patches, ρ, ρ², … stay at the places.
    places : sequence of int, optional
        Indices of blocks, ascending; by default at the quarters of the depth.
    generator : torch.Generator, optional
        Draws the predictors' initial weights, on the CPU.

    Raises
    ------
    ValueError
        A place is no block, or the places do not ascend; or the ratio is outside (0, 1].
    UnsupportedArchitectureError
        The model pools over tokens, or is no plain timm VisionTransformer of a width that 4 divides; names the part.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], not {keep_ratio}")
    depth = len(_plain_blocks(model))
    places = default_places(depth) if places is None else tuple(places)
    if not places or list(places) != sorted(set(places)) or not 0 <= min(places) <= max(places) < depth:
        raise ValueError(f"places must be ascending indices of the {depth} blocks, not {list(places)}")
    model = copy.deepcopy(model)
    blocks = list(model.blocks)
    dim, like = int(model.embed_dim), model.cls_token
    for index, position in enumerate(places):
        selector = TokenSelector(dim, keep_ratio ** (index + 1), int(model.patch_embed.num_patches))
        for layer in selector.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)
        blocks[position].selector = selector.to(like.device, like.dtype)
    for block in blocks[places[0] :]:
        block.attn.__class__ = SelectiveAttention
    model.blocks = SelectiveBlocks(blocks, int(model.num_prefix_tokens))
    model.blocks.training = model.training
    return model  # type: ignore[no-any-return]


def _plain_blocks(model: Any) -> list[Any]:
    """The blocks of a model whose tokens can be dropped."""
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        raise UnsupportedArchitectureError(f"{type(model).__name__} is not a plain timm VisionTransformer")
    if model.global_pool != "token" or model.cls_token is None or getattr(model, "attn_pool", None) is not None:
        raise UnsupportedArchitectureError(f"global_pool: {model.global_pool} reads out tokens that may be dropped")
    if model.embed_dim % 4:
        raise UnsupportedArchitectureError(f"embed_dim: the predictors need a width that 4 divides, not {model.embed_dim}")
    for index, block in enumerate(model.blocks):
        attention = block.attn
        if (
            type(attention) is not Attention
            or not isinstance(attention.norm, nn.Identity)
            or type(attention.qkv) is not nn.Linear
        ):
            raise UnsupportedArchitectureError(f"blocks.{index}.attn: {type(attention).__name__} is not timm's plain Attention")
    return list(model.blocks)


def selectors_of(model: nn.Module) -> Iterator[TokenSelector]:
    """The selectors of a model, first to last."""
    return (module for module in model.modules() if isinstance(module, TokenSelector))


def selective_macs(shape: ViTShape, keep_ratio: float, places: Sequence[int] | None = None) -> int:
    """Multiply-accumulates per image of a model that drops tokens, its predictors included, without the classifier."""
    places = default_places(shape.depth) if places is None else tuple(places)
    prefix, left, dim = shape.tokens - shape.patches, shape.patches, shape.embed_dim
    predictor = dim**2 + dim * (dim // 2) + (dim // 2) * (dim // 4) + 2 * (dim // 4)
    total = shape.embed_macs
    for layer, (heads, width, neurons) in enumerate(
        zip(*(shape.per_block(name) for name in ("heads", "head_dim", "mlp_dim")), strict=True)
    ):
        if layer in places:
            total += left * predictor
            left = min(left, kept_patches(shape.patches, keep_ratio ** (places.index(layer) + 1)))
        tokens = prefix + left
        total += heads * width * 2 * (2 * tokens * dim + tokens**2) + neurons * shape.neuron_layers * tokens * dim
    return total


def ratio_for_budget(shape: ViTShape, budget: float, places: Sequence[int] | None = None) -> float:
    """Return the largest share of tokens to keep at each place with which a model costs at most ``budget`` of the dense one.

    Raises
    ------
    InfeasibleBudgetError
        Even one patch after the first place costs more; names that minimum.
    """
    low, high = 0.0, 1.0

    def cost(ratio: float) -> float:
        return selective_macs(shape, ratio, places) / shape.full_macs

    if cost(high) <= budget:
        return high
    if cost(TINY) > budget:
        raise InfeasibleBudgetError(
            f"budget {budget:g} is below {cost(TINY):.6f}, which is left with one patch from the first place on"
        )
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def ratio_loss(decisions: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Mean squared distance of the shares of patches that stay, (batch, patches) at each place, from those wanted (Sec. 3.4)."""
    terms = [(kept.mean(1) - ratio).square().mean() for kept, ratio in zip(decisions, ratios, strict=True)]
    return torch.stack(terms).mean()


def token_loss(tokens: Tensor, wanted: Tensor, kept: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean squared distance of the last tokens from the teacher's, over those that are kept (Sec. 3.4): a scalar.

    Parameters
    ----------
    tokens, wanted : Tensor
        (batch, n, dim), of the model and of its teacher.
    kept : Tensor
        (batch, n): 1 where a token is kept, 0 where not.
    ranks : Ranks
        Among whom the batch is shared out. Each keeps another number of tokens, so that the mean of their own means would weigh
        them differently: every rank divides by the mean of these numbers, and the mean of the losses is that of the whole batch.
    """
    weights = kept.detach()[..., None].to(tokens.dtype)
    count = ranks.mean(weights.sum()).clamp_min(1 / ranks.size) * tokens.shape[-1]
    return (weights * (tokens - wanted.detach()).square()).sum() / count
