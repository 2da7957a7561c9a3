"""Registration of the task federated-learning; its rows come from the methods' folders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from atlas.harness.registry import Amount, Metric, Task, task
from atlas.harness.study import Run
from atlas.tasks.federated_learning.protocol import WIDTHS, Protocol

NAME = "federated-learning"

METRICS = (
    Metric("accuracy", "accuracy", "higher", ".1%"),
    Metric("worst_accuracy", "worst client", "higher", ".1%"),
    Metric("parameters", "parameters", "lower", ",.0f"),
    Metric("forward_macs", "MACs / image", "lower", ".3g"),
    Metric("upload_mebibytes", "upload / client / round, MiB", "lower", ".3g"),
    Metric("train_macs", "training MACs, all clients", "lower", ".3g"),
    Metric("over_budget", "clients over budget", "lower", ".0%"),
    Metric("rounds_to_95", "rounds to 95 %", "lower", ".0f", table=False),
    Metric("curve_area", "mean validation accuracy over rounds", "higher", ".1%", table=False),
)
"""``accuracy`` is the mean over clients of the accuracy of the widest model that a row serves (at λ = ½ where it has a knob)."""

WIDTH_METRICS = (
    *(Metric(f"accuracy_w{round(1000 * width):04d}", f"accuracy ×{width:g}", "higher", ".1%") for width in WIDTHS),
    Metric("width_gain", "accuracy ×1 − ×0.125", "neither", ".1%", table=False),
    Metric("width_worst_step", "worst step to the next width", "higher", ".1%", table=False),
    Metric("width_shortfall", "accuracy ×1 − best narrower", "higher", ".1%", table=False),
)
"""Of methods that serve several widths."""

ATTACKED_METRICS = (Metric("robust_accuracy", "accuracy under attack", "higher", ".1%"),)
"""Of methods that train with attacks."""

KNOB_METRICS = (
    Metric("accuracy_lam0", "accuracy, λ = 0", "higher", ".1%", table=False),
    Metric("accuracy_lam1", "accuracy, λ = 1", "higher", ".1%", table=False),
    Metric("robust_lam0", "under attack, λ = 0", "higher", ".1%", table=False),
    Metric("robust_lam1", "under attack, λ = 1", "higher", ".1%", table=False),
    Metric("robust_gain", "robust accuracy, λ = 1 − λ = 0", "higher", ".1%", table=False),
    Metric("clean_cost", "accuracy, λ = 0 − λ = 1", "neither", ".1%", table=False),
)
"""Of methods whose model has a robustness knob."""


def _train(run: Run) -> Mapping[str, Any]:
    from atlas.tasks.federated_learning.training import train

    return train(run)


def _evaluate(run: Run) -> Mapping[str, float]:
    from atlas.tasks.federated_learning.evaluate import evaluate

    return evaluate(run)


def _amount(run: Run) -> Amount:
    """Minibatches of a client over all rounds, images of all clients in each, and of those whose networks are stacked at once.

    A loop's step is a round; where the size of a dataset is not known before it is there, nothing is. A rehearsal has trained one
    round on images that it has counted.
    """
    from atlas.datasets import get_dataset
    from atlas.harness.execute import training_summary

    protocol = run.protocol_model()
    facts = get_dataset(run.data).facts if run.data else {}
    if protocol.data.fewest:
        images = training_summary(run).get("images", math.nan)
        return Amount(1, images, min(images, (protocol.stack_limit or images) * protocol.batch_size))
    if "train" not in facts:
        return Amount(math.nan, math.nan, math.nan)
    clients = protocol.clients_per_round or protocol.data.clients
    known = protocol.data.train_fraction * cast(int, facts["train"])
    share = known * (protocol.data.train_parts / 10 if "domains" in facts else 1) / protocol.data.clients
    steps = max(1.0, share * (1 - protocol.data.validation_fraction) // protocol.batch_size)
    batch = clients * protocol.batch_size
    stacked = min(clients, protocol.stack_limit or clients)
    return Amount(protocol.rounds * protocol.epochs * steps, batch, stacked * protocol.batch_size)


task(
    Task(
        name=NAME,
        title="Federated learning over clients of unequal capacity",
        question="Which models of every size and robustness can clients with different data and budgets train together?",
        protocol=Protocol,
        metrics=METRICS,
        train=_train,
        evaluate=_evaluate,
        baseline="fedavg-w0125",
        smallest={"rounds": 3, "epochs": 1, "validate_every": 2},
        rehearsal={
            "epochs": 1,
            "batch_size": 2,
            "test_batch_size": 2,
            "clients_per_round": None,
            "stack_limit": 2,
            "data": {"fewest": True, "train_fraction": 1, "validation_fraction": 0.5, "min_per_share": 1},
        },
        amount=_amount,
    )
)
