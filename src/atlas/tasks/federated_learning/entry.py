"""Registration of the task federated-learning; its rows come from the methods' folders."""

from __future__ import annotations

import math

from atlas.harness.registry import Amount, Amounts, Metric, Task, task
from atlas.harness.run import Run
from atlas.nn.work import AVERAGING, TRAIN, VALIDATION
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


def training_amounts(run: Run) -> Amounts:
    """Training: minibatches of a client over all rounds, images of all clients in each, and of those whose networks are stacked.

    Validation: how often, images of all clients, and those of a batch. Averaging: rounds, and clients in each. Where the size of
    a dataset is not known before it is there, only what is in memory at once is.
    """
    from atlas.datasets import get_dataset

    protocol: Protocol = run.protocol_model()
    if protocol.data.fewest:
        return _rehearsed_amounts(run, protocol)
    if not run.data:
        return {}
    data, dataset = protocol.data, get_dataset(run.data)
    clients = protocol.clients_per_round or data.clients
    at_once = min(clients, protocol.stack_limit or clients) * protocol.batch_size
    parts = data.train_parts / 10 if "domains" in dataset.facts else 1
    share = parts * data.train_fraction * dataset.training_examples(data.test_fraction) / data.clients
    held = data.validation_fraction * share
    images = protocol.trained(share - held)
    minibatches = max(1, -(-images // protocol.batch_size))
    looks = math.ceil(protocol.rounds / protocol.validate_every)
    return {
        TRAIN: Amount(protocol.rounds * protocol.epochs * minibatches, clients * images / minibatches, at_once),
        VALIDATION: Amount(looks, data.clients * held, min(protocol.test_batch_size, held)),
        AVERAGING: Amount(protocol.rounds, clients, min(clients, protocol.stack_limit or clients)),
    }


def _rehearsed_amounts(run: Run, protocol: Protocol) -> Amounts:
    """The one round of a rehearsal, which has counted its images."""
    from atlas.harness.execute import training_summary

    counted = training_summary(run)
    images, held, clients = (counted.get(name, math.nan) for name in ("images", "validation_images", "clients"))
    together = protocol.stack_limit or clients
    return {
        TRAIN: Amount(1, images, min(images, together * protocol.batch_size)),
        VALIDATION: Amount(1, held, protocol.test_batch_size),
        AVERAGING: Amount(1, clients, min(clients, together)),
    }


def tested(run: Run) -> str:
    """How many images a run is tested on, and as how many domains."""
    from atlas.datasets import get_dataset

    data = run.protocol_model().data
    images = get_dataset(run.data).test_examples(data.test_fraction) if run.data else None
    made = f" in each of {len(data.domains)} domains" if data.domains else ""
    return f"{images:,} test images{made}" if images else ""


def altered(run: Run) -> str:
    """Whether domains are made by changing images."""
    domains = run.protocol_model().data.domains
    return f"domains made of the images: {', '.join(domains)}" if domains else ""


task(
    Task(
        name=NAME,
        title="Federated learning over clients of unequal capacity",
        question="Which models of every size and robustness can clients with different data and budgets train together?",
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        evaluate="evaluate:evaluate",
        baseline="fedavg-w0125",
        tested="entry:tested",
        altered="entry:altered",
        smallest={"rounds": 3, "epochs": 1, "validate_every": 2},
        rehearsal={
            "epochs": 1,
            "batch_size": 2,
            "test_batch_size": 2,
            "clients_per_round": None,
            "stack_limit": 2,
            "data": {"fewest": True, "train_fraction": 1, "validation_fraction": 0.5, "min_per_share": 1},
        },
        amounts="entry:training_amounts",
    )
)
