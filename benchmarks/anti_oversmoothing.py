"""Cost of AttnScale and FeatScale beside the plain block and the textbook form, in the same run.

Theory. A plain block at n = 197, C = 384 spends 24·n·C² + 4·n²·C ≈ 0.76 GFLOP; rewriting V adds O(n·C) = 3 passes over a
quarter of the projection: well below 1 % of the arithmetic, a few per cent of the memory traffic. The textbook form
materialises h·n² maps and passes over them several times, forward and backward, and cannot use fused attention.

    python benchmarks/anti_oversmoothing.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import interleaved, show
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from atlas.methods.anti_oversmoothing.filters import attnscale_filter
from atlas.methods.anti_oversmoothing.scaling import FeatScale, ScaledQKV


class TextbookAttention(nn.Module):
    """AttnScale as the formula is written: every map is materialised and filtered."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.plain = attention
        self.omega = nn.Parameter(torch.zeros(attention.num_heads))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.plain.qkv(x).reshape(batch, tokens, 3, self.plain.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        maps = (query * self.plain.scale @ key.transpose(-2, -1)).softmax(-1)
        mixed = attnscale_filter(maps, self.omega) @ value
        return self.plain.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def blocks(width: int, heads: int) -> dict[str, nn.Module]:
    """The same block four times."""
    made: dict[str, nn.Module] = {}
    for name in ("plain, fused", "AttnScale, fused", "FeatScale, fused", "AttnScale, textbook"):
        torch.manual_seed(0)
        made[name] = Block(width, heads, qkv_bias=True)
    ScaledQKV.of(made["AttnScale, fused"].attn.qkv, {"omega": (heads, 0.1)}, value_dim=width // heads)
    attention = made["FeatScale, fused"].attn
    attention.proj_drop = FeatScale(0.0, attention.proj.weight, 0.1, 0.1, 1.0)
    made["AttnScale, textbook"].attn = TextbookAttention(made["AttnScale, textbook"].attn)
    return made


def step(module: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """One forward and backward pass and an SGD step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        module(inputs).square().mean().backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 5 if parser.parse_args().quick else 25
    torch.set_num_threads(1)
    for width, heads, batch in ((384, 6, 4), (192, 3, 8)):
        made = blocks(width, heads)
        inputs = torch.randn(batch, 197, width)
        steps = {name: step(module, inputs) for name, module in made.items()}
        show(f"training step of one block, batch {batch}, 197 tokens, width {width}", interleaved(steps, rounds), "plain, fused")
        attentions = {name: step(module.attn, inputs) for name, module in made.items()}
        show("training step of its attention alone", interleaved(attentions, rounds), "plain, fused")


if __name__ == "__main__":
    main()
