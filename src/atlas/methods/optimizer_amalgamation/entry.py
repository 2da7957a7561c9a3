"""Rows of learned optimization: the pool's oracle, choice policies, amalgamated students, and learned baselines."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import Metric, method, paper
from atlas.methods.optimizer_amalgamation.settings import (
    ChoiceSettings,
    L2ODMSettings,
    L2OScaleSettings,
    PoolSettings,
    StudentSettings,
    TaughtSettings,
)

PAPER = paper(
    "optimizer-amalgamation",
    title="Optimizer Amalgamation",
    citation="T. Huang, T. Chen, S. Liu, S. Chang, L. Amini, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.06474",
)
BEST_REPLICATE = Metric("best_replicate", "best replicate's log val. loss", "lower", ".3f", table=False)
EVAL_SD = Metric("eval_sd", "sd between evaluations", "lower", ".3f", table=False)
WINDOWS = Metric("windows", "meta-training windows", "lower", ".0f", cost=True)
META_SD = (
    Metric("meta_sd", "sd between replicates", "lower", ".3f", table=False, optional=True),
    Metric("meta_sd_train", "sd between replicates, train", "lower", ".3f", table=False, optional=True),
)

STAGE = {"depth": [1, 2], "validation_depth": [1, 1], "imitation": [0.1, 0.1], "resets": [1, 1], "unroll": 2, "fixed": False}
SHORT = {**STAGE, "min_periods": 0, "chances": 0, "max_repeats": 1, "validation_resets": 1}
FEW_UPDATES = 10
"""Of a rehearsal's window: in the first one the memories of cells are zeros, whose gradients nobody asks for."""
ONE_WINDOW = {
    "depth": [1],
    "validation_depth": [1],
    "imitation": [0.1],
    "resets": [1],
    "unroll": FEW_UPDATES,
    "fixed": True,
    "validation_resets": 1,
    "warmup": 1,
    "cold_start": False,
}

row = partial(method, paper=PAPER, task="learned-optimization")
choice = partial(
    row,
    role="ablation",
    settings=ChoiceSettings,
    plugin="plugin:TrainedChoice",
    needs={"teachers": "oracle"},
    extra_metrics=(EVAL_SD, BEST_REPLICATE, WINDOWS),
    smallest={"schedule": SHORT, "trainer": {"longest": 2}},
    rehearsal={"schedule": ONE_WINDOW},
    amounts="plugin:curriculum_amounts",
)
student = partial(
    row,
    settings=StudentSettings,
    plugin="plugin:TrainedStudent",
    extra_metrics=(EVAL_SD, *META_SD, BEST_REPLICATE, WINDOWS),
    smallest={"schedule": SHORT, "trainer": {"longest": 2}, "replicates": 2},
    rehearsal={"schedule": ONE_WINDOW, "replicates": 1},
    amounts="plugin:curriculum_amounts",
)
taught = partial(student, settings=TaughtSettings, needs={"teachers": "oracle"})
plain = partial(
    row,
    role="baseline",
    preset={"meta": {"depth": 5}},
    smallest={"meta": {"windows": 4, "depth": 2, "unroll": 2}},
    rehearsal={"meta": {"windows": 1}},
    amounts="atlas.tasks.learned_optimization.competitors:meta_training_amounts",
    stacks=True,
)

row(
    "oracle",
    title="Oracle of the pool",
    summary="Of the tuned teachers, the one with the smallest validation loss on each problem.",
    role="baseline",
    settings=PoolSettings,
    plugin="plugin:Oracle",
    traits=("hand-made",),
    extra_metrics=(BEST_REPLICATE,),
    combines=False,
)
choice(
    "choice-policy",
    title="Choice policy",
    summary="A small network that weighs the updates of the small pool; the teacher of the optimal-choice student.",
)
choice(
    "choice-policy-large",
    title="Choice policy, large pool",
    summary="A small network that weighs the updates of the large pool.",
    preset={"pool": "large"},
)
student(
    "amalgamated-choice",
    title="Amalgamated, choice",
    summary="Optimal choice: the student imitates a choice policy over the small pool.",
    needs={"choice": "choice-policy"},
)
student(
    "amalgamated-choice-large",
    title="Amalgamated, choice, large pool",
    summary="Optimal choice over the large pool.",
    needs={"choice": "choice-policy-large"},
)
taught(
    "amalgamated-mean",
    title="Amalgamated, mean",
    summary="The student imitates all teachers of the pool alike.",
)
taught(
    "amalgamated-minmax",
    title="Amalgamated, min-max",
    summary="The student imitates the farthest teacher of the pool at every step.",
    options={"method": "minmax"},
)
taught(
    "amalgamated-noisy",
    title="Amalgamated, min-max, noise",
    summary="Min-max with noise on the student's weights while it is meta-trained, for stability.",
    options={"method": "minmax"},
    preset={"noise": "random"},
)
student(
    "untaught",
    title="RNNprop, curriculum",
    summary="The same student with the same curriculum, without teachers.",
    role="baseline",
)
student(
    "rnnprop",
    title="RNNprop",
    summary="The same student, without teachers or curriculum.",
    role="baseline",
)
student(
    "stronger",
    title="Stronger baseline",
    summary=(
        "RNNprop with a curriculum and imitation of one teacher, Adam, in a share of the meta-steps (Chen et al., NeurIPS 2020)."
    ),
    role="baseline",
    needs={"teachers": "oracle"},
    options={"members": ("adam_ema",)},
)
plain(
    "l2o-dm",
    title="L2O-DM",
    summary="Learning to learn by gradient descent by gradient descent (Andrychowicz et al., NeurIPS 2016).",
    settings=L2ODMSettings,
    plugin="baselines:PlainL2ODM",
)
plain(
    "l2o-scale",
    title="L2O-Scale",
    summary="Recurrences over coordinates, tensors and the network (Wichrowska et al., ICML 2017).",
    settings=L2OScaleSettings,
    plugin="baselines:PlainL2OScale",
)
