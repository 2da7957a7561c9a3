"""Rows of federated learning: Split-Mix, its robust form, and the federations that they are compared with."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import REPORTED, Metric, method, paper
from atlas.methods.split_mix.settings import (
    FedAvgSettings,
    FixedRobustSettings,
    NetworkSettings,
    OnceForAllSettings,
    RateSettings,
    RobustSettings,
    RobustSplitMixSettings,
    SplitMixSettings,
)
from atlas.tasks.federated_learning.entry import ATTACKED_METRICS, KNOB_METRICS, WIDTH_METRICS

PAPER = paper(
    "split-mix",
    title="Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization",
    citation="J. Hong, H. Wang, Z. Wang, J. Zhou, ICLR 2022",
    url="https://arxiv.org/abs/2203.09747",
)
row = partial(method, paper=PAPER, task="federated-learning")
federation = partial(row, plugin="plugin:TrainedFederation")
DUAL = {"method": "split-mix", "norm": "dual_bn", "adversarial": True}

federation(
    "split-mix",
    title="Split-Mix",
    summary="Narrow base networks, as many per client as its budget holds, averaged one by one and mixed into any width.",
    settings=SplitMixSettings,
    options={"method": "split-mix"},
    extra_metrics=WIDTH_METRICS,
)
federation(
    "sheterofl",
    title="Slimmable HeteroFL",
    summary="One network; every client trains all prefixes up to its budget at every step, and uploads the widest.",
    role="baseline",
    settings=RateSettings,
    options={"method": "sheterofl"},
    extra_metrics=WIDTH_METRICS,
)
federation(
    "heterofl",
    title="HeteroFL",
    summary="One network; every client trains the prefix that its budget holds (Diao et al., ICLR 2021).",
    role="baseline",
    settings=RateSettings,
    options={"method": "heterofl"},
    extra_metrics=WIDTH_METRICS,
)
federation(
    "fedavg",
    title="FedAvg",
    summary="One network of one width, trained by all clients whatever their budgets (McMahan et al., AISTATS 2017).",
    role="baseline",
    settings=FedAvgSettings,
    options={"method": "fedavg", "rescale_init": False},
)
federation(
    "fedavg-at",
    title="FedAvg + adversarial training",
    summary="FedAvg on (1 − λ)·clean + λ·attacked loss with one batch norm: a training per trade-off.",
    role="baseline",
    settings=FixedRobustSettings,
    options={"method": "fedavg", "adversarial": True, "rescale_init": False},
    extra_metrics=ATTACKED_METRICS,
)
federation(
    "fedavg-oat",
    title="FedAvg + once-for-all training",
    summary="One network that is told λ, drawn anew for every sample: a knob by conditioning (Wang et al., NeurIPS 2020).",
    role="baseline",
    settings=OnceForAllSettings,
    options={"method": "fedavg", "adversarial": True, "rescale_init": False, "norm": "film_bn"},
    extra_metrics=(*ATTACKED_METRICS, *KNOB_METRICS),
)
federation(  # Split-Mix with one base network of full width, which every client trains
    "fedavg-dat",
    title="FedAvg + dual norms",
    summary="One network of full width with a batch norm for clean and one for attacked inputs: a robustness knob alone.",
    role="ablation",
    settings=RobustSettings,
    options={**DUAL, "atom": 1.0, "rescale_init": False},
    extra_metrics=(*ATTACKED_METRICS, *KNOB_METRICS),
)
federation(
    "split-mix-dat",
    title="Split-Mix + dual norms",
    summary="Base networks with dual batch norms: one training, every width and every robustness.",
    settings=RobustSplitMixSettings,
    options=DUAL,
    extra_metrics=(*WIDTH_METRICS, *ATTACKED_METRICS, *KNOB_METRICS),
)
row(
    "mixed-network",
    title="mixed network",
    summary="What a mixed network of width 1 costs beside the ordinary one; counted, not trained.",
    settings=NetworkSettings,
    metrics=(
        Metric("parameters_ratio", "parameters ÷ ordinary", "lower", ".3f"),
        Metric("macs_ratio", "MACs ÷ ordinary", "lower", ".3f"),
        Metric("parameters", "parameters", "lower", ",.0f"),
        Metric("forward_macs", "MACs / image", "lower", ",.0f"),
        Metric("wide_parameters", "parameters, ordinary", "lower", ",.0f"),
        Metric("wide_macs", "MACs / image, ordinary", "lower", ",.0f"),
        Metric("base_parameters", "parameters, one base", "lower", ",.0f", table=False),
        Metric("base_macs", "MACs / image, one base", "lower", ",.0f", table=False),
    ),
    train="stages:count_networks",
    evaluate=REPORTED,
)
