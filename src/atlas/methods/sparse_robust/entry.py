"""Rows of adversarial robustness: Robust Bird, Flying Bird, Flying Bird+ and static masks."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import REPORTED, Metric, method, paper
from atlas.methods.sparse_robust.settings import (
    DynamicSettings,
    PlusSettings,
    RobustBirdSettings,
    ScoreSettings,
    SparseSettings,
)

PAPER = paper(
    "sparse-robust",
    title="Sparsity Winning Twice: Better Robust Generalization from More Efficient Training",
    citation="T. Chen, Z. Zhang, P. Wang, S. Balachandra, H. Ma, Z. Wang, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2202.09844",
)
row = partial(method, paper=PAPER, task="adversarial-robustness")
baseline = partial(row, role="baseline", settings=SparseSettings)
scored = partial(
    baseline,
    plugin="baselines:ScoredMasks",
    settings=ScoreSettings,
    smallest={"rounds": 2, "batches": 1},
    rehearsal={"rounds": 1, "batches": 1},
)
OFTEN = {"interval": 1, "late_interval": 1}

row(
    "robust-bird",
    title="Robust Bird",
    summary="A static mask that settles early in cheap standard training, then adversarial training under it.",
    plugin="plugin:RobustBird",
    settings=RobustBirdSettings,
    smallest={"max_epochs": 3, "queue": 2, "threshold": 0.5, "stage_milestones": [2]},
    rehearsal={"max_epochs": 1},
    amounts="plugin:bird_amounts",
)
row(
    "flying-bird",
    title="Flying Bird",
    summary="Prunes the smallest weights and grows where gradients are largest, at constant density.",
    plugin="plugin:Flying",
    settings=DynamicSettings,
    smallest=OFTEN,
    rehearsal=OFTEN,
)
row(
    "flying-bird-plus",
    title="Flying Bird+",
    summary="Flying Bird whose density falls while the robust gap grows, and rises while the validation loss does not fall.",
    plugin="plugin:Flying",
    settings=PlusSettings,
    options={"adaptive": True},
    smallest={**OFTEN, "start_epoch": 1},
    rehearsal=OFTEN,
)
baseline(
    "static-random",
    title="random mask",
    summary="A random mask that stays, at the quotas of Flying Bird.",
    plugin="baselines:RandomMasks",
)
baseline(
    "omp",
    title="one-shot magnitude",
    summary="The magnitude mask of the adversarially trained dense network, trained again from the initialisation.",
    plugin="baselines:TrainedMagnitude",
    needs={"dense": "dense"},
)
scored(
    "magnitude",
    title="magnitude at init",
    summary="The largest initial weights stay.",
    options={"criterion": "magnitude"},
)
scored(
    "snip",
    title="SNIP",
    summary="Weights stay whose removal would change the clean loss most, at initialisation.",
    options={"criterion": "snip"},
)
scored(
    "grasp",
    title="GraSP",
    summary="Weights stay whose removal would hurt the gradient's norm most, at initialisation.",
    options={"criterion": "grasp"},
)
scored(
    "synflow",
    title="SynFlow",
    summary="Weights stay that carry most of the synaptic flow, at initialisation, in rounds.",
    options={"criterion": "synflow"},
)
row(
    "cost-table",
    title="cost as printed",
    summary="The paper's inference costs of PreAct-ResNet-18, recomputed from shapes; nothing is trained.",
    settings=SparseSettings,
    metrics=(
        Metric("printed_cifar10", "as printed, CIFAR-10", "neither", ".4g"),
        Metric("printed_cifar100", "as printed, CIFAR-100", "neither", ".4g"),
        Metric("printed_tiny", "as printed, Tiny-ImageNet", "neither", ".5g"),
        Metric("ratio_cifar10", "true cost ÷ dense, CIFAR-10", "neither", ".3f"),
        Metric("ratio_cifar100", "true cost ÷ dense, CIFAR-100", "neither", ".3f"),
        Metric("ratio_tiny", "true cost ÷ dense, Tiny-ImageNet", "neither", ".3f"),
    ),
    train="stages:cost_table",
    evaluate=REPORTED,
)
