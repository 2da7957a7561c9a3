"""Rows of image classification: AttnScale, FeatScale, their controls, and the theory's random stacks."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import REPORTED, Metric, method, paper
from atlas.methods.anti_oversmoothing.settings import (
    OMEGAS,
    FeatScaleSettings,
    LayerScaleSettings,
    ScaleSettings,
    StackStudySettings,
)

PAPER = paper(
    "anti-oversmoothing",
    title="Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis: From Theory to Practice",
    citation="P. Wang, W. Zheng, T. Chen, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.05962",
)
row = partial(method, paper=PAPER, task="image-classification")
scaling = partial(row, settings=ScaleSettings, traits=("timm-blocks",), stacks=True)

scaling(
    "attnscale",
    title="AttnScale",
    summary="One scalar per head amplifies the high-pass part of its attention matrix.",
    plugin="plugin:AttnScale",
    conflicts=("head-gain",),
)
scaling(
    "featscale",
    title="FeatScale",
    summary="Two vectors per layer re-weight the mean and the mean-free part of the attention output.",
    plugin="plugin:FeatScale",
    settings=FeatScaleSettings,
    conflicts=("output-gain",),
)
scaling(
    "head-gain",
    title="head gain",
    summary="Control for AttnScale: the same scalar per head scales its whole output, without regard to frequency.",
    role="baseline",
    plugin="plugin:HeadGain",
    conflicts=("attnscale",),
)
scaling(
    "output-gain",
    title="output gain",
    summary="Control for FeatScale: one vector per layer scales the attention output, without regard to frequency.",
    role="baseline",
    plugin="plugin:OutputGain",
    conflicts=("featscale",),
)
scaling(
    "layerscale",
    title="LayerScale",
    summary="CaiT's learnable scales on both residual branches, the strongest cheap baseline in depth.",
    role="baseline",
    plugin="plugin:LayerScale",
    settings=LayerScaleSettings,
)
row(
    "random-stack",
    title="random stack",
    summary="High frequencies through untrained stacks of attention layers, layer by layer.",
    settings=StackStudySettings,
    metrics=(
        Metric("hf_gain_w1", "HF/DC at the end, ω = 1 ÷ ω = 0", "neither", ".3g"),
        Metric("hf_kept_8", "left after 8 layers, ω = 0", "neither", ".3g"),
        Metric("hf_dc_ratio_input", "HF/DC at the input", "neither", ".3g"),
        *(Metric(f"hf_dc_ratio_w{omega:g}", f"HF/DC at the end, ω = {omega:g}", "neither", ".3g") for omega in OMEGAS),
    ),
    train="stages:follow_random_stacks",
    evaluate=REPORTED,
)
