"""What a row of this task is: something that ends in trained policies.

To add one, subclass :class:`Competitor`, and name it as the ``plugin`` of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_tensors, write_text
from atlas.harness.plugin import Plugin
from atlas.harness.resume import training
from atlas.harness.seeds import generator
from atlas.l2o import ANALYTIC, MetaConfig, MetaTrainer, Policy, TunedLR, analytic, tune
from atlas.nn.work import work
from atlas.tasks.learned_optimization.data import Arena
from atlas.tasks.learned_optimization.entry import TUNING

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.learned_optimization.evaluate import Evaluation


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
    """An analytic optimizer whose step size is found on the meta-training problem."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Find the step size, unless the settings fix it; leaves ``tuning.csv``."""
        if self.settings.lr is not None:
            return {"lr": self.settings.lr, "on_edge": 0}
        found = tune_on(self.run, arena, self.run.recipe[0], self.options)
        write_table(self.run, found)
        return {"lr": found.lr, "on_edge": int(found.on_edge)}

    @property
    def options(self) -> dict[str, Any]:
        """What the optimizer takes besides a step size."""
        return self.settings.model_dump(exclude={"lr"})

    def policies(self) -> Sequence[Policy]:
        """The optimizer with the step size that was found."""
        return [analytic(self.run.recipe[0], training_summary(self.run)["lr"], **self.options)]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The step size."""
        return {"tuned_lr": training_summary(self.run)["lr"]}


def tune_on(run: Run, arena: Arena, name: str, options: Mapping[str, Any], factories: Mapping[str, Any] = ANALYTIC) -> TunedLR:
    """Find the step size of an optimizer on the meta-training problem, as the protocol says."""
    settings = arena.protocol.tuning
    every = arena.steps_per_epoch()
    with work(TUNING):
        return tune(
            lambda lr: factories[name](lr, **options),
            arena.train,
            settings.grid,
            steps=settings.epochs * every,
            every=every,
            seeds=settings.seeds,
            gen=generator(run.seed, "tuning"),
            criterion=settings.criterion,
            extend=run.limit is None,
        )


def write_table(run: Run, found: TunedLR, name: str = "tuning.csv") -> None:
    """Leave the scores of a grid beside the run's metrics."""
    rows = [f"{lr:g},{score:.6g}" for lr, score in found.table.items()]
    write_text(run.results / name, "\n".join(["lr,score", *rows]) + "\n")


class Learned(Competitor):
    """A policy meta-trained plainly: the sum of losses over windows, no teachers. Override :meth:`fresh`.

    The settings have the fields of :class:`~atlas.l2o.MetaConfig` under ``meta``.
    """

    def fresh(self) -> Policy:
        """An untrained policy; the process's generator is seeded."""
        raise NotImplementedError

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Meta-train, window by window; goes on where it was interrupted."""
        torch.manual_seed(generator(self.run.seed, "policy").initial_seed() % 2**63)
        policy = self.fresh().to(arena.device)
        cfg = MetaConfig(**self.settings.meta.model_dump())
        trainer = MetaTrainer(policy, arena.train, cfg, generator(self.run.seed, "meta"))
        loop = training(self.run, cfg.windows, parts={"trainer": trainer})
        for _ in loop:
            row = trainer.window()
            loop.log(**{name: value for name, value in row.items() if name != "window"})
        store_policies(self.run, [policy])
        return {"windows": cfg.windows, "skipped": trainer.skipped}

    def policies(self) -> Sequence[Policy]:
        """The trained policy."""
        return restore_policies(self.run, [self.fresh()])


def store_policies(run: Run, policies: Sequence[Policy]) -> None:
    """Write the numbers of replicates as the run's weights."""
    write_tensors(
        run.weights, {f"{r}.{name}": value for r, one in enumerate(policies) for name, value in one.state_dict().items()}
    )


def restore_policies(run: Run, policies: Sequence[Policy]) -> Sequence[Policy]:
    """Fill fresh policies with a run's weights."""
    numbers = read_tensors(run.weights)
    for r, policy in enumerate(policies):
        prefix = f"{r}."
        policy.load_state_dict({name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)})
    return policies
