"""What can be chosen in Diverse-ViT: how batches are mixed, and the terms of the training loss."""

from __future__ import annotations

from typing import Annotated, Any, Self

from annotated_types import Ge, Gt
from pydantic import FiniteFloat, model_validator

from atlas.settings import Count, DataclassSettings, Fraction, Natural, Settings

Coefficient = Annotated[FiniteFloat, Ge(0)]
Concentration = Annotated[FiniteFloat, Gt(0)]
"""Parameter α of a symmetric distribution Beta(α, α)."""

COEFFICIENTS = ("mix_weight", "emb_cos", "emb_contrast", "attn_cos", "weight_orth")


class MixSettings(Settings):
    """MixUp or CutMix of each batch with its mirror.

    Attributes
    ----------
    mixup_alpha, cutmix_alpha : float
        Parameters of the Beta distributions of λ, the share of the image itself.
    switch_prob : float
        Probability of CutMix; MixUp otherwise.
    prob : float
        Probability of mixing a batch at all.
    """

    mixup_alpha: Concentration = 0.8
    cutmix_alpha: Concentration = 1.0
    switch_prob: Fraction = 0.5
    prob: Fraction = 1.0


class DiversityConfig(DataclassSettings):
    """Coefficients and variants; the defaults are those of the released training scripts for DeiT-S at 12 and 24 layers.

    A frozen dataclass: ``DiversityConfig(1, 0.25)`` gives the first two, ``dataclasses.replace(config, emb_cos=0)`` changes one.

    Attributes
    ----------
    mix_weight : float
        Weight w of each patch token beside the class token in the base loss; 0 leaves patch tokens out of it. (The official code
        takes any value for 1.)
    emb_cos, emb_contrast, attn_cos, weight_orth : float
        Coefficients of the four regularisers; 0 leaves one out.
    emb_cos_abs, detach_first : bool
        Variants of the embedding terms, see :mod:`.terms`.
    attn_block : int
        Block whose attention map is regularised.
    orth_steps, orth_exact : int, bool
        How the weight term is estimated, see :func:`.terms.cond_orth`.

    Raises
    ------
    TypeError
        A name is no field's.
    ValueError
        A coefficient is negative or not finite, ``attn_block`` is negative, or ``orth_steps`` is less than 1.
    """

    mix_weight: Coefficient = 1.0
    emb_cos: Coefficient = 0.5
    emb_contrast: Coefficient = 0.5
    attn_cos: Coefficient = 1e-4
    weight_orth: Coefficient = 5e-4
    emb_cos_abs: bool = False
    detach_first: bool = False
    attn_block: Count = 0
    orth_steps: Natural = 1
    orth_exact: bool = False

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
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
            There is no such preset, and the known ones are named; or a value is not allowed.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name}; choose from {', '.join(PRESETS)}")
        return cls.chosen(**{**PRESETS[name], **changes})


class DiverseSettings(DiversityConfig, MixSettings):
    """The loss and the mixing of its batches; labels are smoothed as the protocol says.

    With ``mix`` false the batches are the protocol's own; they have no patch labels, so ``mix_weight`` must be 0.
    """

    mix: bool = True

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        """Refuse a mixing term on batches without patch labels."""
        if not self.mix and self.mix_weight:
            raise ValueError("mix_weight needs the patch labels of mixed batches: set it to 0, or mix to true")
        return self


def _only(*kept: str) -> dict[str, float]:
    """A coefficient of 0 for all terms but some, which keep the released one."""
    return {name: 0.0 for name in COEFFICIENTS if name not in kept}


PRESETS: dict[str, dict[str, Any]] = {
    "deit-s-12": {},
    "deit-s-24": {},
    "none": _only(),
    "mixing": _only("mix_weight"),
    "embedding": _only("mix_weight", "emb_cos", "emb_contrast"),
    "diverse-patch": {**_only("mix_weight", "emb_cos", "emb_contrast"), "detach_first": True},
    "attention": _only("attn_cos"),
    "weight": _only("weight_orth"),
}
"""Named combinations, as changes of the defaults of :class:`DiversityConfig`."""
