"""High frequencies through random stacks of attention: what the paper proves, to be seen without training.

Attention alone drives ‖HC‖/‖DC‖ to 0 exponentially (Wang et al., ICLR 2022, Sec. 2); residual connections and MLPs only
slow it down; AttnScale's ω raises what is left.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from atlas.methods.anti_oversmoothing.scaling import attnscale_sdpa
from atlas.methods.anti_oversmoothing.settings import StackSettings
from atlas.nn.diagnostics import hf_dc_ratio

INPUT_MEAN = 0.5


def random_stack_ratios(
    settings: StackSettings | None = None, /, *, omega: float, generator: torch.Generator, **changes: Any
) -> Tensor:
    """Follow ‖HC‖_F/‖DC‖_F of random tokens through a random stack.

    Parameters
    ----------
    settings : StackSettings, optional
        The stack's shape.
    omega : float
        AttnScale's ω in every head and layer.
    generator : torch.Generator
        Draws input and weights, the same for every ω and kind of stack.
    **changes
        Single settings of :class:`.settings.StackSettings`: ``stack``, ``depth``, ``tokens``, ``width``, ``heads``,
        ``query_key_gain``.

    Returns
    -------
    Tensor
        (depth + 1,) ratios in float64: of the input, and after every layer.

    Raises
    ------
    ValueError
        A setting is not allowed; ``width`` is not a multiple of ``heads``.
    """
    shape = StackSettings.chosen(settings, **changes)
    width, heads, gain = shape.width, shape.heads, shape.query_key_gain

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(1, shape.tokens, width) + INPUT_MEAN * draw(1, 1, width)
    scale = torch.full((heads,), omega, dtype=torch.float64)
    ratios = [hf_dc_ratio(x)]
    for _ in range(shape.depth):
        qkv, proj = draw(3, width, width) / math.sqrt(width), draw(width, width) / math.sqrt(width)
        up, down = draw(width, 4 * width) / math.sqrt(width), draw(4 * width, width) / math.sqrt(4 * width)
        normed = functional.layer_norm(x, (width,))
        gains = (gain, gain, 1.0)
        query, key, value = (
            (normed @ (factor * weight)).unflatten(-1, (heads, -1)).transpose(1, 2)
            for factor, weight in zip(gains, qkv, strict=True)
        )
        attended = attnscale_sdpa(query, key, value, scale).transpose(1, 2).flatten(-2) @ proj
        x = attended if shape.stack == "attention" else x + attended
        if shape.stack == "residual-mlp":
            x = x + functional.gelu(functional.layer_norm(x, (width,)) @ up) @ down
        ratios.append(hf_dc_ratio(x))
    return torch.stack(ratios)
