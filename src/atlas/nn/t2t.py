"""T2T-ViT: a vision transformer whose patches overlap, re-cut twice and mixed by linear attention on the way.

L. Yuan, Y. Chen, T. Wang, W. Yu, Y. Shi, Z. Jiang, F. E. H. Tay, J. Feng, S. Yan, *Tokens-to-Token ViT: Training Vision
Transformers from Scratch on ImageNet*, ICCV 2021, arXiv 2101.11986, Sec. 3; with the Performer as the layers of the
tokens-to-token module. T2T-ViT-14 has 21.5 M parameters and 4.8 G multiply-accumulates at 224 pixels (Table 1 there).

After the tokens-to-token module it is timm's VisionTransformer, with its blocks, so every method on those acts on it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (4, 2, 2)
"""Strides of the three soft splits (Sec. 3.1, Table 1)."""
EPSILON = 1e-8


def soft_split(stride: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a soft split: 7, 4 and 2, or 3, 2 and 1, as in the paper; at stride 1 the latter kernel."""
    return (2 * stride - 1, stride, stride // 2) if stride > 1 else (3, 1, 1)


class Performer(nn.Module):
    """Linear attention with one head by random features that are positive, then a small feed-forward network.

    K. Choromanski et al., *Rethinking Attention with Performers*, ICLR 2021. exp(qᵀk) is replaced by φ(q)ᵀφ(k) with
    φ(x) = exp(W x − ‖x‖² / 2) / √m and fixed random orthogonal W, (m, dim). The first residual connection carries values, since
    the width changes.

    Parameters
    ----------
    incoming, dim : int
        Channels of the tokens that come and that go.
    features : int
        m.
    dropout : float
        Rate after the attention's projection and after the feed-forward network.
    """

    def __init__(self, incoming: int, dim: int, features: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim, self.features = dim, features
        self.norm1 = nn.LayerNorm(incoming)
        self.kqv = nn.Linear(incoming, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Dropout(dropout))
        directions = torch.empty(features, dim)
        nn.init.orthogonal_(directions)
        self.directions = nn.Parameter(directions * math.sqrt(features), requires_grad=False)

    def positive(self, x: Tensor) -> Tensor:
        """Positive random features φ, (batch, tokens, features), of (batch, tokens, dim)."""
        return torch.exp(functional.linear(x, self.directions) - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (batch, tokens, incoming) to (batch, tokens, dim)."""
        keys, queries, values = self.kqv(self.norm1(x)).chunk(3, -1)
        with torch.autocast(x.device.type, enabled=False):  # exponentials and sums over thousands of tokens
            keys, queries = self.positive(keys.float().to(self.directions)), self.positive(queries.float().to(self.directions))
            total = (queries * keys.sum(1, keepdim=True)).sum(-1, keepdim=True)
            mixed = queries @ (keys.transpose(1, 2) @ values.to(keys)) / (total + EPSILON)
        x = values + self.drop(self.proj(mixed.to(values.dtype)))
        return x + self.mlp(self.norm2(x))

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for so many tokens, counted as layers and matrix products are."""
        layers = sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, nn.Linear))
        return tokens * (layers + 4 * self.features * self.dim)


class TokensToTokens(nn.Module):
    """Cuts an image into overlapping patches, three times, with a :class:`Performer` after the first two (Sec. 3.1).

    Stands where timm's patch embedding does: (batch, channels, height, width) to (batch, patches, embed_dim).

    Parameters
    ----------
    img_size, in_chans, embed_dim : int
        Side and channels of the images, width of the tokens.
    token_dim : int
        Width of the tokens inside the module.
    strides : tuple of int
        Of the three soft splits; their product is the side of a patch.
    """

    output_fmt = Format.NLC

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        embed_dim: int = 384,
        token_dim: int = 64,
        strides: tuple[int, int, int] = STRIDES,
    ) -> None:
        super().__init__()
        cuts = [soft_split(stride) for stride in strides]
        sides = [img_size]
        for kernel, stride, padding in cuts:
            sides.append((sides[-1] + 2 * padding - kernel) // stride + 1)
        if sides[-1] < 1:
            raise ValueError(f"img_size {img_size} leaves no patch")
        self.sides = tuple(sides[1:])
        self.img_size = (img_size, img_size)
        self.patch_size = (math.prod(strides), math.prod(strides))
        self.grid_size = (sides[-1], sides[-1])
        self.num_patches = sides[-1] ** 2
        self.in_chans = in_chans
        self.splits = nn.ModuleList(nn.Unfold(kernel, stride=stride, padding=padding) for kernel, stride, padding in cuts)
        self.mixers = nn.ModuleList(
            Performer(width * kernel**2, token_dim, token_dim // 2)
            for width, (kernel, _, _) in zip((in_chans, token_dim), cuts, strict=False)
        )
        self.project = nn.Linear(token_dim * cuts[-1][0] ** 2, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Cut images (batch, channels, height, width), mix, cut, mix, cut and project to (batch, tokens, dim)."""
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels, where the model was built for {self.img_size}")
        tokens = self.splits[0](images).transpose(1, 2)
        for mixer, split, side in zip(self.mixers, list(self.splits)[1:], self.sides, strict=False):
            planes = mixer(tokens).transpose(1, 2).unflatten(-1, (side, side))
            tokens = split(planes).transpose(1, 2)
        return self.project(tokens)  # type: ignore[no-any-return]

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        mixers: list[Any] = list(self.mixers)
        mixing = sum(mixer.macs(side**2) for mixer, side in zip(mixers, self.sides, strict=False))
        return int(mixing) + self.num_patches * self.project.weight.numel()


def sinusoids(tokens: int, dim: int) -> Tensor:
    """Fixed position embedding, (1, tokens, dim): sines at even channels, cosines at odd ones (Vaswani et al., 2017)."""
    rates = 10000 ** (-2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
    table = torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())
    return table[None].float()


class T2TViT(VisionTransformer):
    """T2T-ViT; the defaults are T2T-ViT-14. ``strides`` are those of the soft splits, ``options`` timm's VisionTransformer's.

    The position embedding is fixed: it is a parameter that wants no gradient.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        embed_dim: int = 384,
        depth: int = 14,
        num_heads: int = 6,
        strides: tuple[int, int, int] = STRIDES,
        **options: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "mlp_ratio": 3.0,
            "qkv_bias": False,
            "norm_layer": nn.LayerNorm,
            "global_pool": "token",
        } | options

        def cut(img_size: int, patch_size: int, in_chans: int, embed_dim: int, **unused: Any) -> TokensToTokens:
            return TokensToTokens(img_size, in_chans, embed_dim, strides=strides)

        super().__init__(
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            embed_layer=cut,  # type: ignore[arg-type]
            **settings,
        )
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(sinusoids(self.pos_embed.shape[1], embed_dim), requires_grad=False)


def t2t_vit_14(**options: Any) -> T2TViT:
    """Return T2T-ViT-14: depth 14, width 384, 6 heads; ``options`` as for :class:`T2TViT`."""
    return T2TViT(**options)
