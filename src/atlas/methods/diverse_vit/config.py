"""Coefficients of the training loss, with presets for the published combination and for each level alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

COEFFICIENTS = ("mix_weight", "emb_cos", "emb_contrast", "attn_cos", "weight_orth")


@dataclass(frozen=True)
class DiversityConfig:
    """Coefficients and variants; the defaults are those of the released training scripts.

    Attributes
    ----------
    mix_weight : float
        Weight w of each patch token beside the class token; 0 leaves patch tokens out of the loss. (The official code takes any
        value for 1.)
    emb_cos, emb_contrast, attn_cos, weight_orth : float
        Coefficients of the four regularisers.
    emb_cos_abs, detach_first : bool
        Variants of the embedding terms, see :mod:`.terms`.
    attn_block : int
        Block whose attention map is regularised.
    orth_steps, orth_exact : int, bool
        How the weight term is estimated, see :func:`.terms.cond_orth`.

    Raises
    ------
    ValueError
        A coefficient is negative or not finite, ``attn_block`` is negative, or ``orth_steps`` is less than 1.
    """

    mix_weight: float = 1.0
    emb_cos: float = 0.5
    emb_contrast: float = 0.5
    attn_cos: float = 1e-4
    weight_orth: float = 5e-4
    emb_cos_abs: bool = False
    detach_first: bool = False
    attn_block: int = 0
    orth_steps: int = 1
    orth_exact: bool = False

    def __post_init__(self) -> None:
        for name in COEFFICIENTS:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        if self.attn_block < 0:
            raise ValueError(f"attn_block must not be negative, not {self.attn_block}")
        if self.orth_steps < 1:
            raise ValueError(f"orth_steps must be at least 1, not {self.orth_steps}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DiversityConfig:
        """Return a named combination, with some fields changed.

        Parameters
        ----------
        name : str
            ``deit-s-12``, ``deit-s-24``: what the released scripts train these backbones with. ``mixing``, ``embedding``,
            ``attention``, ``weight``: one level of it, the others off. ``diverse-patch``: the embedding level as in Gong et al.,
            arXiv 2104.12753. ``none``: the base loss alone.
        changes
            Fields over the preset's.

        Raises
        ------
        ValueError
            There is no such preset; the known ones are named.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name}; choose from {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


def _only(*kept: str, **changes: Any) -> dict[str, Any]:
    """The released coefficients of some terms, 0 for the others."""
    released = {field.name: field.default for field in fields(DiversityConfig)}
    return {name: released[name] if name in kept else 0.0 for name in COEFFICIENTS} | changes


EMBEDDING = ("mix_weight", "emb_cos", "emb_contrast")
PRESETS: dict[str, dict[str, Any]] = {
    "deit-s-12": {},
    "deit-s-24": {},
    "none": _only(),
    "mixing": _only("mix_weight"),
    "embedding": _only(*EMBEDDING),
    "diverse-patch": _only(*EMBEDDING, detach_first=True),
    "attention": _only("attn_cos"),
    "weight": _only("weight_orth"),
}
