"""What a row of this task is: something that ends in trained policies.

To add one, subclass :class:`Competitor`, and name it as the ``plugin`` of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from atlas.datasets import get_dataset
from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_tensors, write_text
from atlas.harness.plugin import Plugin
from atlas.harness.registry import Amount, Amounts
from atlas.harness.resume import training
from atlas.harness.seeds import generator
from atlas.l2o import MetaTrainer, Policy, TunedLR, analytic, tune
from atlas.l2o.optimizees import EVALUATION_CHUNK
from atlas.nn.work import TRAIN, VALIDATION, work
from atlas.tasks.learned_optimization.data import Arena

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.learned_optimization.evaluate import Evaluation

TUNING = "tuning"
"""Kind of work: looking for a step size."""


class Competitor(Plugin):
    """Base of the plug-ins of learned optimization.

    It trains policies on the meta-training problem, and makes them again from what training left.

    Several policies are replicates: trained alike from other seeds, judged each, and averaged.
    """

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Train on ``arena.train``, leave files in the run's checkpoint, and return a summary of plain values."""
        raise NotImplementedError

    def policies(self) -> Sequence[Policy]:
        """The trained policies, from the files that :meth:`train` left."""
        raise NotImplementedError

    def select(self, evaluation: Evaluation) -> Evaluation:
        """Choose among the policies that were judged; all of them by default."""
        return evaluation

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Values of the row's extra metrics, from what it did on every problem."""
        return {}


class Tuned(Competitor):
    """A hand-made optimizer whose step size is found on the meta-training problem.

    The settings have the fields of :class:`~atlas.l2o.settings.StepSizeSettings`; all but ``lr`` go to the optimizer.

    Parameters
    ----------
    rule : str
        Which one, a key of :data:`atlas.l2o.ANALYTIC`; subclasses that override :meth:`optimizer` need none.
    """

    def __init__(self, run: Run, settings: Any, rule: str = "") -> None:
        super().__init__(run, settings)
        self.rule = rule

    def optimizer(self, lr: Any, tuning_steps: int | None = None) -> Policy:
        """Make the optimizer with some step size, a number or a tensor of (instances, 1).

        While the step size is looked for, ``tuning_steps`` says in how many updates, for optimizers with a schedule.
        """
        return analytic(self.rule, lr, **self.settings.model_dump(exclude={"lr"}))

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Find the step size, unless the settings fix it; leaves ``tuning.csv`` with the scores of the grid."""
        if self.settings.lr is not None:
            return {"lr": self.settings.lr, "on_edge": 0}
        steps = arena.protocol.tuning.epochs * arena.steps_per_epoch()
        tuned = tune_on(self.run, arena, lambda lr: self.optimizer(lr, steps))
        rows = [f"{lr:g},{score:.6g}" for lr, score in tuned.table.items()]
        write_text(self.run.results / "tuning.csv", "\n".join(["lr,score", *rows]) + "\n")
        return {"lr": tuned.lr, "on_edge": int(tuned.on_edge)}

    def policies(self) -> Sequence[Policy]:
        """The optimizer with the step size that was found."""
        return [self.optimizer(training_summary(self.run)["lr"])]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The step size that was found, as the row's extra metric."""
        return {"tuned_lr": training_summary(self.run)["lr"]}


def tune_on(run: Run, arena: Arena, make: Callable[[torch.Tensor], Policy]) -> TunedLR:
    """Find an optimizer's step size on the meta-training problem, as the protocol says.

    ``make`` returns the optimizer for step sizes of (instances, 1), one for each instance.
    """
    settings = arena.protocol.tuning
    every = arena.steps_per_epoch()
    with work(TUNING):
        return tune(
            make,
            arena.train,
            settings.grid,
            steps=settings.epochs * every,
            every=every,
            seeds=settings.seeds,
            gen=generator(run.seed, "tuning"),
            criterion=settings.criterion,
            extend=run.limit is None,
        )


def tuning_amounts(run: Run) -> Amounts:
    """Tuning: updates while a step size is looked for, and optimizees side by side, the grid times the seeds.

    Validation: how often, the held-out examples of all these optimizees, and those in a forward pass.
    """
    tuning = run.protocol_model().tuning
    together = len(tuning.grid) * tuning.seeds
    trained, held = meta_examples(run)
    looks, seen = (tuning.epochs, held) if tuning.criterion == "best-val" else (1, trained)
    return {
        TUNING: Amount(tuning.epochs * epoch_steps(run), together, together),
        VALIDATION: Amount(looks, together * seen, together * min(seen, EVALUATION_CHUNK)),
    }


def meta_examples(run: Run) -> tuple[float, float]:
    """How many examples the meta-training side trains on, and holds out for validation; a rehearsal has a mini-batch of each."""
    protocol = run.protocol_model()
    if run.limit is not None:
        return (protocol.train.batch_size,) * 2
    images = cast(int, get_dataset(run.data).facts["train"])
    own = images if protocol.data.shared else protocol.data.meta_fraction * images
    held = protocol.data.validation_fraction * own
    return own - held, held


def epoch_steps(run: Run) -> float:
    """Updates of an epoch of the meta-training problem."""
    protocol = run.protocol_model()
    whole = max(1.0, meta_examples(run)[0] // protocol.train.batch_size)
    return min(whole, protocol.epoch_steps or whole, protocol.train.steps_per_epoch or whole)


class MetaTrained(Competitor):
    """A policy that is meta-trained plainly: the sum of losses over windows, no teachers.

    The settings have a :class:`~atlas.l2o.MetaConfig` under ``meta``. Override :meth:`start`, and :meth:`summary` where there is
    more to tell. Several seeds of such a row can be trained at once (:mod:`.stacking`).
    """

    purpose = "meta"
    """Names the stream of random numbers of meta-training."""

    def start(self) -> Policy:
        """The policy before it is meta-trained."""
        raise NotImplementedError

    def summary(self, trainer: MetaTrainer) -> Mapping[str, Any]:
        """What the training returns, once it has ended."""
        return {"windows": self.settings.meta.windows, "skipped": trainer.skipped}

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Meta-train, window by window; goes on where it was interrupted."""
        return MetaFitting(self, arena).carry_out()


class MetaFitting:
    """The meta-training of a row of :class:`MetaTrained`, restored to wherever an earlier process stopped.

    Attributes
    ----------
    trainer : MetaTrainer
        Takes a window at a time.
    loop : TrainingLoop
        Over the windows that are left.
    """

    def __init__(self, competitor: MetaTrained, arena: Arena) -> None:
        self.competitor = competitor
        run, settings = competitor.run, competitor.settings.meta
        self.policy = competitor.start().to(arena.device)
        self.trainer = MetaTrainer(self.policy, arena.train, settings, generator(run.seed, competitor.purpose))
        self.loop = training(run, settings.windows, parts={"trainer": self.trainer})

    def carry_out(self) -> Mapping[str, Any]:
        """Take all windows that are left; returns what :meth:`end` does."""
        for _ in self.loop:
            self.log(self.trainer.window())
        return self.end()

    def log(self, row: Mapping[str, float]) -> None:
        """Add a window to the run's curves."""
        self.loop.log(**{name: value for name, value in row.items() if name != "window"})

    def end(self) -> Mapping[str, Any]:
        """Leave the policy's numbers as the run's weights; returns the summary."""
        store_policies(self.competitor.run, [self.policy])
        return self.competitor.summary(self.trainer)


class Learned(MetaTrained):
    """A network that starts from random numbers. Override :meth:`fresh`."""

    def fresh(self) -> Policy:
        """An untrained policy; the process's generator is seeded."""
        raise NotImplementedError

    def start(self) -> Policy:
        """A fresh policy, from the run's seed."""
        torch.manual_seed(generator(self.run.seed, "policy").initial_seed() % 2**63)
        return self.fresh()

    def policies(self) -> Sequence[Policy]:
        """The trained policy, as the one replicate."""
        return restore_policies(self.run, [self.fresh()])


def meta_training_amounts(run: Run) -> Amounts:
    """Windows of a plain meta-training, and optimizees side by side in each."""
    meta = run.settings_model(run.recipe[0]).meta
    return {TRAIN: window_amount(meta.windows, meta.unroll, meta.instances)}


def window_amount(windows: int, unroll: int, together: int) -> Amount:
    """Windows of a meta-training, and updates in each of all optimizees side by side, one update after the other."""
    return Amount(windows, unroll * together, together)


def store_policies(run: Run, policies: Sequence[Policy]) -> None:
    """Write the numbers of replicates as the run's weights, each under the number of its replicate."""
    numbers = {
        f"{replicate}.{name}": value for replicate, policy in enumerate(policies) for name, value in policy.state_dict().items()
    }
    write_tensors(run.weights, numbers)


def restore_policies(run: Run, policies: Sequence[Policy]) -> Sequence[Policy]:
    """Fill fresh policies with a run's weights, and return them."""
    numbers = read_tensors(run.weights)
    for replicate, policy in enumerate(policies):
        prefix = f"{replicate}."
        policy.load_state_dict({name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)})
    return policies
