"""Rows of feature acquisition: VFDS, its gradient estimators, and the selections that it is compared with."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import Metric, method, paper
from atlas.methods.vfds.settings import AttentionSettings, LassoSettings, SelectionSettings

PAPER = paper(
    "vfds",
    title="VFDS: Variational Foresight Dynamic Selection in Bayesian Neural Networks for Efficient Human Activity Recognition",
    citation="R. Ardywibowo, S. Boluki, Z. Wang, B. Mortazavi, S. Huang, X. Qian, AISTATS 2022",
    url="https://arxiv.org/abs/2204.00130",
)
row = partial(method, paper=PAPER, task="feature-acquisition")
baseline = partial(row, role="baseline")
sweep = partial(
    row,
    plugin="plugin:Selecting",
    settings=SelectionSettings,
    extra_metrics=(
        Metric("matched_accuracy", "accuracy at VFDS's cost", "higher", ".1%"),
        Metric("matched_fraction", "features for VFDS's accuracy", "lower", ".1%", cost=True),
    ),
    rehearsal={"lams": (1.0,), "lam": 1.0},
    amounts="plugin:sweep_amounts",
)
estimator = partial(sweep, role="ablation")
ARM = {"relaxation": "arm", "logit_scale": 5.0}

baseline(
    "vanilla",
    title="All features",
    summary="A GRU that acquires every feature at every step.",
    plugin="plugin:SweepLearner",
    stacks=True,
)
baseline(
    "first-step",
    title="First step only",
    summary="Nothing is acquired after the first step: what the stickiness of labels gives for free.",
    plugin="baselines:Masked",
    stacks=True,
)
sweep(
    "vfds",
    title="VFDS",
    summary="The state after each step decides what the next one acquires; gates are trained as binary concrete variables.",
    stacks=True,
)
estimator(
    "vfds-st",
    title="VFDS, straight-through",
    summary="VFDS with hard gates in training and the straight-through gradient.",
    preset={"relaxation": "st"},
    stacks=True,
)
estimator(
    "vfds-arm",
    title="VFDS, ARM aligned",
    summary="VFDS with hard gates and the antithetic pair's gradient on the logits that made the gates.",
    preset=ARM,
)
estimator(
    "vfds-arm-unbiased",
    title="VFDS, ARM unbiased",
    summary="VFDS with hard gates and a score-function pair that is unbiased for all parameters at a discount of 1.",
    preset={**ARM, "relaxation": "arm-unbiased"},
)
estimator(
    "vfds-arm-published",
    title="VFDS, ARM as published",
    summary="VFDS with the ARM gradient of the official code, defects included.",
    preset={**ARM, "published": True},
)
sweep(
    "static",
    title="Static selection",
    summary="One free concrete logit per gate, the same at every step; its front over λ is read at VFDS's cost.",
    role="baseline",
    plugin="plugin:Static",
    stacks=True,
    needs={"target": "vfds"},
)
baseline(
    "static-top-k",
    title="Static top-k, refit",
    summary="The gates with the largest static logits, as many as VFDS opens, and a new GRU on them.",
    plugin="baselines:StaticTopK",
    stacks=True,
    needs={"target": "vfds", "static": "static"},
)
baseline(
    "attention",
    title="Attention",
    summary="Deterministic soft weights of the features, trained without a cost and thresholded in use.",
    plugin="baselines:Attention",
    stacks=True,
    settings=AttentionSettings,
)
baseline(
    "random",
    title="Random gates",
    summary="Gates open by chance, as often as VFDS's, in training and in use.",
    plugin="baselines:RandomGates",
    needs={"target": "vfds"},
)
baseline(
    "mi-top-k",
    title="Mutual information top-k",
    summary="The features with most mutual information with the label, as many as VFDS acquires.",
    plugin="baselines:MutualInformation",
    stacks=True,
    needs={"target": "vfds"},
)
baseline(
    "group-lasso",
    title="Group lasso, refit",
    summary="Columns of the input weights that a swept proximal penalty leaves, cut to VFDS's cost, and a new GRU on them.",
    plugin="baselines:GroupLasso",
    stacks=True,
    settings=LassoSettings,
    needs={"target": "vfds"},
    smallest={"penalties": (0.3, 3.0)},
    amounts="baselines:lasso_amounts",
)
baseline(
    "oracle",
    title="Oracle",
    summary="The exact Bayesian filter of the synthetic stream, which sees the beacons and the block that it expects to matter.",
    train="stages:train_oracle",
    evaluate="stages:evaluate_oracle",
)
