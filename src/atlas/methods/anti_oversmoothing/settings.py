"""What can be chosen in AttnScale, FeatScale, their controls and the theory's random stacks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge
from pydantic import model_validator

from atlas.settings import Natural, Positive, Settings


class ScaleSettings(Settings):
    """Settings that every scaling shares; the paper has none.

    ``lr_multiplier`` speeds the scales up against the other weights: in a training of a few hundred steps they would
    otherwise hardly leave 0.
    """

    lr_multiplier: Positive = 1.0


class FeatScaleSettings(ScaleSettings):
    """``gain`` 1 is the paper's formula; 2 is what the authors' released models were trained with."""

    gain: Literal[1, 2] = 1


class LayerScaleSettings(ScaleSettings):
    """``init`` of the residual scales: CaiT uses 0.1 up to 18 layers, 1e-5 at 24, 1e-6 beyond (Table 1 there)."""

    init: Positive = 0.1


class StackSettings(Settings):
    """A random, untrained stack of attention layers: the setting of the paper's theory.

    ``stack`` says what surrounds attention: nothing, a residual connection, or residual connections and MLPs; all normalise their
    input. ``depth`` layers of ``heads`` heads act on ``tokens`` tokens of ``width`` channels. ``query_key_gain`` multiplies the
    weights of queries and of keys: it says how far attention is from uniform.
    """

    stack: Literal["attention", "residual", "residual-mlp"] = "residual"
    depth: Natural = 24
    tokens: Annotated[int, Ge(2)] = 64
    width: Natural = 64
    heads: Natural = 4
    query_key_gain: Positive = 1.5

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class StackStudySettings(StackSettings):
    """``repeats`` random stacks are followed for each of AttnScale's ω in :data:`OMEGAS`, through at least eight layers."""

    depth: Annotated[int, Ge(8)] = 24
    repeats: Natural = 16


OMEGAS = (0.0, 0.5, 1.0, 2.0)
"""Values of AttnScale's ω that the random stacks are tried with."""
