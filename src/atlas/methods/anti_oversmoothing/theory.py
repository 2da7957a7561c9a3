"""High frequencies through random stacks of attention: what the paper proves, to be seen without training.

Attention alone drives ‖HC‖/‖DC‖ to 0 exponentially (Wang et al., ICLR 2022, Sec. 2); residual connections and MLPs only
slow it down; AttnScale's ω raises what is left.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from atlas.methods.anti_oversmoothing.scaling import attnscale_sdpa
from atlas.nn.diagnostics import hf_dc_ratio

Stack = Literal["attention", "residual", "residual-mlp"]
INPUT_MEAN = 0.5


def random_stack_ratios(
    *,
    omega: float,
    stack: Stack = "residual",
    depth: int = 24,
    tokens: int = 64,
    width: int = 64,
    heads: int = 4,
    query_key_gain: float = 1.5,
    generator: torch.Generator,
) -> Tensor:
    """Follow ‖HC‖_F/‖DC‖_F of random tokens through a random stack.

    Parameters
    ----------
    omega : float
        AttnScale's ω in every head and layer.
    stack : {"attention", "residual", "residual-mlp"}
        Attention alone; with a residual connection; with residual connections and MLPs. All normalise their input.
    depth, tokens, width, heads : int
        Sizes.
    query_key_gain : float
        Factor on the weights of queries and of keys: how far attention is from uniform.
    generator : torch.Generator
        Draws input and weights, the same for every ω and stack.

    Returns
    -------
    Tensor
        (depth + 1,) ratios in float64: of the input, and after every layer.

    Raises
    ------
    ValueError
        ``width`` is not a multiple of ``heads``.
    """
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(1, tokens, width) + INPUT_MEAN * draw(1, 1, width)
    scale = torch.full((heads,), omega, dtype=torch.float64)
    ratios = [hf_dc_ratio(x)]
    for _ in range(depth):
        qkv, proj = draw(3, width, width) / math.sqrt(width), draw(width, width) / math.sqrt(width)
        up, down = draw(width, 4 * width) / math.sqrt(width), draw(4 * width, width) / math.sqrt(4 * width)
        normed = functional.layer_norm(x, (width,))
        gains = (query_key_gain, query_key_gain, 1.0)
        query, key, value = (
            (normed @ (gain * weight)).unflatten(-1, (heads, -1)).transpose(1, 2) for gain, weight in zip(gains, qkv, strict=True)
        )
        attended = attnscale_sdpa(query, key, value, scale).transpose(1, 2).flatten(-2) @ proj
        x = attended if stack == "attention" else x + attended
        if stack == "residual-mlp":
            x = x + functional.gelu(functional.layer_norm(x, (width,)) @ up) @ down
        ratios.append(hf_dc_ratio(x))
    return torch.stack(ratios)
