"""Registration of the task feature-acquisition."""

from __future__ import annotations

from atlas.harness.registry import Amount, Amounts, Metric, Task, task
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.tasks.feature_acquisition.protocol import Protocol

NAME = "feature-acquisition"

METRICS = (
    Metric("accuracy", "accuracy", "higher", ".1%"),
    Metric("frac_steady", "features acquired", "lower", ".1%", cost=True),
    Metric("cost_fraction", "cost acquired", "lower", ".1%", cost=True),
    Metric("n_features", "features / step", "lower", ".1f", cost=True),
    Metric("sensor_on", "sensors on", "lower", ".1%", cost=True),
    Metric("f1", "F1", "higher", ".3f", table=False),
    Metric("iou", "IoU", "higher", ".3f", table=False),
    Metric("nll", "NLL", "lower", ".3f"),
    Metric("long_accuracy", "accuracy, long sequences", "higher", ".1%"),
    Metric("recovery_f1", "recovery of the truth, F1", "higher", ".3f", optional=True),
    Metric("context_drift", "selection depends on context", "neither", ".3f"),
    Metric("drift_margin", "… beyond chance", "neither", ".3f", table=False),
    Metric("frac_total", "features acquired, first step included", "lower", ".1%", table=False, cost=True),
    Metric("frac_official", "features acquired, official count", "lower", ".1%", table=False, cost=True),
    Metric("parameters", "parameters", "lower", ",.0f"),
    Metric("step_flops", "FLOPs / step", "lower", ",.0f"),
)


def training_amounts(run: Run) -> Amounts:
    """Steps and sequences in each; a rehearsal does not validate, since only the data tell on how many sequences."""
    protocol = run.protocol_model()
    return {TRAIN: Amount(protocol.steps, protocol.batch_size, protocol.batch_size)}


def stackable(run: Run) -> bool:
    """Whether seeds can be trained at once: always, as far as the protocol is concerned."""
    return True


def tested(run: Run) -> str:
    """How many sequences a run is tested on; recordings are as long as they are."""
    stream = run.protocol_model().stream
    return "" if stream.kind == "recordings" else f"{stream.test_sequences:,} test sequences"


def altered(run: Run) -> str:
    """Whether sequences are put together from pieces of recordings."""
    kinds = {
        "sessions": "windows of recordings joined to sessions",
        "handover": "recordings dealt out to devices of which one is worn",
    }
    return kinds.get(run.protocol_model().stream.kind, "") if run.data else ""


task(
    Task(
        name=NAME,
        title="Choosing what to measure next",
        question="How few features need a model acquire per step, decided before it sees any, and what accuracy does that cost?",
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        evaluate="evaluate:evaluate",
        baseline="vanilla",
        tested="entry:tested",
        altered="entry:altered",
        together="stacking:train_together",
        stackable="entry:stackable",
        amounts="entry:training_amounts",
        smallest={
            "steps": 4,
            "batch_size": 4,
            "hidden": 6,
            "log_every": 1,
            "keep_best_every": 2,
            "stream": {
                "train_sequences": 16,
                "validation_sequences": 6,
                "test_sequences": 12,
                "steps": 12,
                "long_sequences": 2,
                "long_steps": 24,
            },
        },
        rehearsal={
            "batch_size": 1,
            "keep_best_every": 0,
            "stream": {"train_sequences": 1, "validation_sequences": 1, "test_sequences": 1, "long_sequences": 1},
        },
    )
)
