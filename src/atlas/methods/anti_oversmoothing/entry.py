"""Plugs AttnScale, FeatScale, their controls and the theory stage into image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from atlas.harness.registry import Metric, Settings, method, paper
from atlas.harness.study import Run

if TYPE_CHECKING:
    from atlas.tasks.image_classification.ingredients import Ingredient

PAPER = paper(
    "anti-oversmoothing",
    title="Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis: From Theory to Practice",
    citation="P. Wang, W. Zheng, T. Chen, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.05962",
)
TASK = "image-classification"


class ScaleSettings(Settings):
    """Settings that every scaling shares; the paper has none.

    ``lr_multiplier`` speeds the scales up against the other weights: in a training of a few hundred steps they would
    otherwise hardly leave 0.
    """

    lr_multiplier: Annotated[float, Gt(0)] = 1.0


class FeatScaleSettings(ScaleSettings):
    """``gain`` 1 is the paper's formula; 2 is what the authors' released models were trained with."""

    gain: Literal[1, 2] = 1


class LayerScaleSettings(Settings):
    """``init`` of the residual scales: CaiT uses 0.1 up to 18 layers, 1e-5 at 24, 1e-6 beyond (Table 1 there)."""

    init: Annotated[float, Gt(0)] = 0.1


@method(
    "attnscale",
    paper=PAPER,
    task=TASK,
    title="AttnScale",
    summary="One scalar per head amplifies the high-pass part of its attention matrix.",
    settings=ScaleSettings,
    conflicts=("head-gain",),
)
def attnscale(run: Run, settings: ScaleSettings) -> Ingredient:
    """Â = J + (1 + ω)(A − J)."""
    from atlas.methods.anti_oversmoothing import apply_attnscale
    from atlas.methods.anti_oversmoothing.ingredient import Rewrite

    return Rewrite(apply_attnscale, settings.lr_multiplier)


@method(
    "featscale",
    paper=PAPER,
    task=TASK,
    title="FeatScale",
    summary="Two vectors per layer re-weight the mean and the mean-free part of the attention output.",
    settings=FeatScaleSettings,
    conflicts=("output-gain",),
)
def featscale(run: Run, settings: FeatScaleSettings) -> Ingredient:
    """SA' = SA + s·DC[SA] + t·HC[SA]."""
    from functools import partial

    from atlas.methods.anti_oversmoothing import apply_featscale
    from atlas.methods.anti_oversmoothing.ingredient import Rewrite

    return Rewrite(partial(apply_featscale, gain=float(settings.gain)), settings.lr_multiplier)


@method(
    "head-gain",
    paper=PAPER,
    task=TASK,
    title="head gain",
    summary="Control for AttnScale: the same scalar per head scales its whole output, without regard to frequency.",
    role="baseline",
    settings=ScaleSettings,
    conflicts=("attnscale",),
)
def head_gain(run: Run, settings: ScaleSettings) -> Ingredient:
    """O_h ← (1 + g_h)·O_h."""
    from atlas.methods.anti_oversmoothing import apply_head_gain
    from atlas.methods.anti_oversmoothing.ingredient import Rewrite

    return Rewrite(apply_head_gain, settings.lr_multiplier)


@method(
    "output-gain",
    paper=PAPER,
    task=TASK,
    title="output gain",
    summary="Control for FeatScale: one vector per layer scales the attention output, without regard to frequency.",
    role="baseline",
    settings=ScaleSettings,
    conflicts=("featscale",),
)
def output_gain(run: Run, settings: ScaleSettings) -> Ingredient:
    """SA' = (1 + t)·SA: FeatScale with s tied to t."""
    from atlas.methods.anti_oversmoothing import apply_output_gain
    from atlas.methods.anti_oversmoothing.ingredient import Rewrite

    return Rewrite(apply_output_gain, settings.lr_multiplier)


@method(
    "layerscale",
    paper=PAPER,
    task=TASK,
    title="LayerScale",
    summary="CaiT's learnable scales on both residual branches, the strongest cheap baseline in depth.",
    role="baseline",
    settings=LayerScaleSettings,
)
def layerscale(run: Run, settings: LayerScaleSettings) -> Ingredient:
    """H. Touvron et al., Going deeper with Image Transformers, ICCV 2021, Eq. 4."""
    from functools import partial

    from atlas.methods.anti_oversmoothing import apply_layerscale
    from atlas.methods.anti_oversmoothing.ingredient import Rewrite

    return Rewrite(partial(apply_layerscale, init=settings.init))


OMEGAS = (0.0, 0.5, 1.0, 2.0)


class StackSettings(Settings):
    """Random, untrained stacks of attention layers: the setting of the paper's theory.

    ``stack`` says what surrounds attention; every run follows ``repeats`` stacks for each of AttnScale's ω in 0, 0.5, 1, 2.
    """

    stack: Literal["attention", "residual", "residual-mlp"] = "residual"
    depth: Annotated[int, Ge(8)] = 24
    tokens: Annotated[int, Ge(2)] = 64
    width: Annotated[int, Ge(1)] = 64
    heads: Annotated[int, Ge(1)] = 4
    query_key_gain: Annotated[float, Gt(0)] = 1.5
    repeats: Annotated[int, Ge(1)] = 16


def _train_stack(run: Run) -> Mapping[str, Any]:
    from atlas.methods.anti_oversmoothing.stage import run_stacks

    return run_stacks(run)


def _evaluate_stack(run: Run) -> Mapping[str, float]:
    from atlas.harness.execute import training_summary

    return training_summary(run)


@method(
    "random-stack",
    paper=PAPER,
    task=TASK,
    title="random stack",
    summary="High frequencies through untrained stacks of attention layers, layer by layer.",
    settings=StackSettings,
    metrics=(
        Metric("hf_gain_w1", "HF/DC at the end, ω = 1 ÷ ω = 0", "neither", ".3g"),
        Metric("hf_kept_8", "left after 8 layers, ω = 0", "neither", ".3g"),
        Metric("hf_dc_ratio_input", "HF/DC at the input", "neither", ".3g"),
        *(Metric(f"hf_dc_ratio_w{omega:g}", f"HF/DC at the end, ω = {omega:g}", "neither", ".3g") for omega in OMEGAS),
    ),
    train=_train_stack,
    evaluate=_evaluate_stack,
)
def random_stack(run: Run, settings: StackSettings) -> StackSettings:
    """Nothing is trained: the settings are all there is."""
    return settings
