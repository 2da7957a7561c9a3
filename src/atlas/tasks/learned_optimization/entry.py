"""Registration of the task learned-optimization and of its analytic field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

from annotated_types import Ge, Gt, Lt

from atlas.harness.registry import Amount, Amounts, Metric, Task, method, task
from atlas.harness.run import Run
from atlas.settings import Settings
from atlas.tasks.learned_optimization.protocol import Protocol

if TYPE_CHECKING:
    pass

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


TUNING = "tuning"
"""Looking for a step size."""


def tuning_amounts(run: Run) -> Amounts:
    """Updates while a step size is tuned, and optimizees side by side: the grid times the seeds."""
    from atlas.datasets import get_dataset

    protocol = run.protocol_model()
    images = cast(int, get_dataset(run.data).facts["train"])
    share = 1.0 if protocol.data.shared else protocol.data.meta_fraction
    epoch = max(1.0, share * (1 - protocol.data.validation_fraction) * images // protocol.train.batch_size)
    together = len(protocol.tuning.grid) * protocol.tuning.seeds
    return {TUNING: Amount(protocol.tuning.epochs * min(epoch, protocol.epoch_steps or epoch), together, together)}


def window_amount(windows: int, unroll: int, together: int) -> Amount:
    """Windows of a meta-training, and updates in each of all optimizees side by side, one update after the other."""
    return Amount(windows, unroll * together, together)


SMALLEST = {"epochs": 2, "epoch_steps": 2, "inits": 2, "tuning": {"epochs": 1, "seeds": 1, "grid": [0.01, 0.02, 0.05]}}
ONE_STEP = {
    "epochs": 1,
    "epoch_steps": 1,
    "inits": 1,
    "warmup_steps": 1,
    "tuning": {"epochs": 1, "seeds": 1, "grid": [0.01]},
    "data": {"shared": True, "validation_fraction": 0.5},  # stand-ins have two examples of a class
}


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
        smallest=SMALLEST,
        rehearsal=ONE_STEP,
        amounts="entry:tuning_amounts",
    )
)

Rate = Annotated[float, Ge(0), Lt(1)]


class Plain(Settings):
    """``lr`` fixes the step size; without it, it is tuned on the meta-training problem."""

    lr: Annotated[float, Gt(0)] | None = None


class WithBeta(Plain):
    """``beta`` is the decay of the mean of gradients."""

    beta: Rate = 0.9


class WithBetas(Plain):
    """``betas`` are the decays of the moments; ε stands outside the root."""

    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Annotated[float, Ge(0)] = 1e-8


class WithRho(Plain):
    """``rho`` is the decay of the mean square; ε stands inside the root."""

    rho: Rate = 0.9
    eps: Annotated[float, Ge(0)] = 1e-10


class WithEps(Plain):
    """ε stands outside the root."""

    eps: Annotated[float, Ge(0)] = 1e-10


FIELD: tuple[tuple[str, str, str, type[Settings]], ...] = (
    ("sgd", "SGD", "−η g.", Plain),
    ("momentum", "Momentum", "Heavy ball.", WithBeta),
    ("nesterov", "Nesterov", "Heavy ball that looks ahead.", WithBeta),
    ("adam", "Adam", "Bias-corrected moments.", WithBetas),
    ("amsgrad", "AMSGrad", "Adam with the largest second moment so far.", WithBetas),
    ("rmsprop", "RMSprop", "The gradient over its root mean square.", WithRho),
    ("adagrad", "AdaGrad", "The gradient over the root of its sum of squares.", WithEps),
    ("powersign", "PowerSign", "The gradient, larger where it agrees with its mean.", WithBeta),
    ("addsign", "AddSign", "The gradient, doubled where it agrees with its mean and dropped where it does not.", WithBeta),
)


for _name, _title, _summary, _settings in FIELD:
    method(
        _name,
        task=NAME,
        title=_title,
        summary=f"{_summary} Step size tuned on the meta-training problem.",
        role="baseline",
        plugin="competitors:Tuned",
        settings=_settings,
        extra_metrics=(Metric("tuned_lr", "step size", "neither", ".3g", table=False),),
        combines=False,
    )
