"""Registration of the task learned-optimization and of its analytic field."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import Metric, Task, method, task
from atlas.harness.run import Run
from atlas.l2o.settings import AdaGradSettings, AdamSettings, MomentumSettings, RMSpropSettings, StepSizeSettings
from atlas.settings import Settings
from atlas.tasks.learned_optimization.protocol import Protocol

NAME = "learned-optimization"

METRICS = (
    Metric("best_log_val", "best log val. loss", "lower", ".3f"),
    Metric("best_log_train", "best log train loss", "lower", ".3f"),
    Metric("final_log_train", "final log train loss", "lower", ".3f"),
    Metric("trajectory_loss", "mean loss on the way", "lower", ".3f"),
    Metric("log_test", "log test loss", "lower", ".3f"),
    Metric("test_accuracy", "test accuracy", "higher", ".1%"),
    Metric("stability", "jumpiness", "lower", ".3f"),
    Metric("transfer_log_val", "best log val. loss, transfer", "lower", ".3f"),
    Metric("transfer_log_train", "best log train loss, transfer", "lower", ".3f"),
    Metric("transfer_trajectory_loss", "mean loss on the way, transfer", "lower", ".3f", table=False),
    Metric("transfer1_log_val", "best log val. loss, first transfer", "lower", ".3f", table=False),
    Metric("transfer2_log_val", "best log val. loss, second transfer", "lower", ".3f", table=False),
    Metric("functions_log_loss", "best log loss, functions", "lower", ".3f", table=False),
    Metric("diverged", "diverged", "lower", ".1%"),
    Metric("state_bytes", "state bytes / parameter", "lower", ".1f"),
    Metric("step_ratio", "step time ÷ Adam's", "lower", ".2f", measured=True, cost=True),
)
TUNED_LR = Metric("tuned_lr", "step size", "neither", ".3g", table=False)
"""Of rows whose step size is tuned."""


SMALL = ("mlp", "convnet", "quadratic", "rosenbrock")
"""Families of optimizees whose updates are so small that the operations cost more than their arithmetic."""


def stackable(run: Run) -> bool:
    """Whether seeds can be trained at once: where the meta-training problem is small; deep networks fill a machine alone."""
    return run.protocol_model().train.family in SMALL


def tested(run: Run) -> str:
    """From how many starts a run's optimizer is judged."""
    return f"{run.protocol_model().inits} starts of each problem" if run.data else ""


task(
    Task(
        name=NAME,
        title="Learned optimization",
        question="Does a learned optimizer train networks that it was not trained on better than tuned hand-made ones?",
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        evaluate="evaluate:evaluate",
        baseline="adam",
        tested="entry:tested",
        together="stacking:train_together",
        stackable="entry:stackable",
        smallest={"epochs": 2, "epoch_steps": 2, "inits": 2, "tuning": {"epochs": 1, "seeds": 1, "grid": [0.01, 0.02, 0.05]}},
        rehearsal={
            "epochs": 1,
            "epoch_steps": 1,
            "inits": 1,
            "warmup_steps": 1,
            "tuning": {"epochs": 1, "seeds": 1, "grid": [0.01]},
            "data": {"shared": True, "validation_fraction": 0.5},  # stand-ins have two examples of a class
        },
        amounts="competitors:tuning_amounts",
    )
)

tuned = partial(
    method,
    task=NAME,
    role="baseline",
    plugin="competitors:Tuned",
    traits=("hand-made",),
    extra_metrics=(TUNED_LR,),
    combines=False,
)
FIELD: tuple[tuple[str, str, str, type[Settings]], ...] = (
    ("sgd", "SGD", "−η g.", StepSizeSettings),
    ("momentum", "Momentum", "Heavy ball.", MomentumSettings),
    ("nesterov", "Nesterov", "Heavy ball that looks ahead.", MomentumSettings),
    ("adam", "Adam", "Bias-corrected moments.", AdamSettings),
    ("amsgrad", "AMSGrad", "Adam with the largest second moment so far.", AdamSettings),
    ("rmsprop", "RMSprop", "The gradient over its root mean square.", RMSpropSettings),
    ("adagrad", "AdaGrad", "The gradient over the root of its sum of squares.", AdaGradSettings),
    ("powersign", "PowerSign", "The gradient, larger where it agrees with its mean.", MomentumSettings),
    (
        "addsign",
        "AddSign",
        "The gradient, doubled where it agrees with its mean and dropped where it does not.",
        MomentumSettings,
    ),
)
for _rule, _title, _summary, _settings in FIELD:
    tuned(
        _rule,
        title=_title,
        summary=f"{_summary} Step size tuned on the meta-training problem.",
        settings=_settings,
        options={"rule": _rule},
    )
