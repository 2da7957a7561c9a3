"""Registration of the task adversarial-robustness and of its dense baselines."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, cast

from annotated_types import Gt

from atlas.harness.registry import Amount, Amounts, Metric, Task, method, task
from atlas.harness.run import Run
from atlas.nn.work import TRAIN, VALIDATION
from atlas.settings import Settings
from atlas.tasks.adversarial_robustness.protocol import Protocol

NAME = "adversarial-robustness"

METRICS = (
    Metric("ra_final", "RA, last", "higher", ".1%"),
    Metric("ra_best", "RA, best", "higher", ".1%"),
    Metric("robust_overfitting", "RA best − last", "lower", ".1%"),
    Metric("robust_gap", "RA train − test", "lower", ".1%"),
    Metric("sa_final", "SA, last", "higher", ".1%"),
    Metric("sa_best", "SA, best", "higher", ".1%"),
    Metric("sa_difference", "SA best − last", "neither", ".1%", table=False),
    Metric("train_ra_final", "RA on training images, last", "neither", ".1%", table=False),
    Metric("cw_ra_final", "RA under C&W∞, last", "higher", ".1%", table=False),
    Metric("cw_ra_best", "RA under C&W∞, best", "higher", ".1%", table=False),
    Metric("strong_ra_final", "RA, all attacks, last", "higher", ".1%"),
    Metric("strong_ra_best", "RA, all attacks, best", "higher", ".1%", table=False),
    Metric("density", "density", "neither", ".3f"),
    Metric("parameters", "weights", "lower", ",.0f"),
    Metric("forward_flops", "FLOPs / image", "lower", ".3g"),
    Metric("train_flops", "training FLOPs", "lower", ".3g"),
    Metric("train_flops_paper", "training FLOPs, the paper's count", "lower", ".3g", table=False),
    Metric("monitor_flops", "FLOPs of watching validation", "lower", ".3g", table=False),
    Metric("best_epoch", "best epoch", "neither", ".0f", table=False),
    Metric("stage_epochs", "epochs before adversarial training", "neither", ".0f", table=False),
)


def training_amounts(run: Run) -> Amounts:
    """Training steps and images in each; and passes of images over the network when validation and test images are attacked.

    An attack of K steps is 2K passes, two more measure.
    """
    from atlas.datasets import get_dataset

    protocol: Protocol = run.protocol_model()
    if not run.data:
        return {}
    dataset, data, epochs = get_dataset(run.data), protocol.data, protocol.epochs
    images = data.train_size or dataset.training_examples(data.test_fraction) - data.validation_size
    watched = min(data.validation_size, protocol.monitor_images or math.inf)
    held_out = cast(float, dataset.facts.get("test", math.nan))
    tested = min(held_out, protocol.test_images or math.inf) if protocol.test_every else 0
    passes = protocol.attack.monitor_passes
    tests = len(protocol.tested_epochs())
    return {
        TRAIN: Amount(epochs * -(-images // protocol.batch_size), protocol.batch_size, protocol.batch_size),
        VALIDATION: Amount(epochs, passes * (watched + tested * tests / epochs), protocol.evaluation_batch_size),
    }


def tested(run: Run) -> str:
    """How many images a run is attacked on."""
    from atlas.datasets import get_dataset

    protocol: Protocol = run.protocol_model()
    images = get_dataset(run.data).test_examples(protocol.data.test_fraction) if run.data else None
    return f"{min(images, protocol.test_images or images):,} test images" if images else ""


def altered(run: Run) -> str:
    """Whether training labels are wrong on purpose."""
    share = run.protocol_model().data.label_noise
    return f"{share:.0%} of the training labels drawn anew" if share else ""


task(
    Task(
        name=NAME,
        title="Adversarial robustness",
        question=(
            "How much of the robustness that adversarial training gives on its training images is left on others, "
            "and does a sparse network keep more of it, at which cost?"
        ),
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        ranks=True,
        evaluate="evaluate:evaluate",
        baseline="dense",
        tested="entry:tested",
        altered="entry:altered",
        smallest={
            "network": {"widths": [12, 12]},
            "data": {"train_size": 48, "validation_size": 24, "test_fraction": 0.95},
            "attack": {"train_steps": 1, "monitor_steps": 1, "steps": 1},
            "strong": {"images": 20, "margin_steps": 1, "autoattack": False},
            "epochs": 3,
            "milestones": [2],
            "batch_size": 24,
            "test_every": 2,
        },
        rehearsal={
            "data": {"train_size": 1, "validation_size": 1},
            "attack": {"monitor_steps": 1, "steps": 1},
            "strong": {"images": 1, "margin_steps": 1, "autoattack": False},
            "epochs": 1,
            "batch_size": 1,
            "evaluation_batch_size": 1,
            "test_every": 0,
            "test_images": 1,
        },
        amounts="entry:training_amounts",
    )
)


class SmallDenseSettings(Settings):
    """``scale`` multiplies every width; 0.448 leaves a fifth of PreAct-ResNet-18's parameters."""

    scale: Annotated[float, Gt(0)] = 0.448


row = partial(method, task=NAME, role="baseline")
row("dense", title="dense", summary="Every weight exists; its best epoch is early stopping.", plugin="topology:Topology")
row(
    "small-dense",
    title="small dense",
    summary="A narrower dense network with as many weights as the sparse ones.",
    plugin="topology:SmallDense",
    settings=SmallDenseSettings,
)
