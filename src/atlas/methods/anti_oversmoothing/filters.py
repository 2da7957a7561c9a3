"""Self-attention as a filter over tokens (Wang et al., ICLR 2022, Sec. 2), and AttnScale's formula as written (Sec. 3).

With J = 11ᵀ/n, DC[X] = J X is the mean over tokens and HC[X] = (I − J) X the rest. The matrix forms here materialise
n × n maps: they are the definition, for reading and for checking; models use :mod:`.scaling`.
"""

from __future__ import annotations

import math

from torch import Tensor

from atlas.nn.diagnostics import dc, hc

__all__ = ["attnscale_filter", "dc", "hc", "hf_gain_bound"]


def attnscale_filter(maps: Tensor, omega: Tensor) -> Tensor:
    """Return the filter Â = J + (1 + ω)(A − J), whose rows still sum to 1.

    Parameters
    ----------
    maps : Tensor
        Attention maps A, (batch, heads, tokens, tokens).
    omega : Tensor
        (heads,).
    """
    mean = 1 / maps.shape[-1]
    return mean + (1 + omega[:, None, None]) * (maps - mean)


def hf_gain_bound(alpha: float, tokens: int) -> float:
    """Upper bound on the high-frequency gain ‖P A P‖₂ of softmax attention whose logits lie in [−α, α].

    √((n − 1)(e^{2α} − 1)/(e^{2α} + n − 1)): 0 for uniform attention (α = 0), √(n − 1) in the limit. For two tokens the largest
    gain is tanh α, and this bound is its square root.

    Raises
    ------
    ValueError
        ``alpha`` is negative or there is no token.
    """
    if alpha < 0 or tokens < 1:
        raise ValueError(f"needs alpha ≥ 0 and tokens ≥ 1, not alpha {alpha} and tokens {tokens}")
    if alpha > 350:  # e^{2α} overflows; the limit is √(n − 1)
        return math.sqrt(tokens - 1)
    peak = math.exp(2 * alpha)
    return math.sqrt((tokens - 1) * (peak - 1) / (peak + tokens - 1))
