"""Every optimizer on every judged problem, from the same starts and with the same data order; what it reached and how.

Losses that are not finite, or above ten times the start's, count as ten times the start's, so that a diverged run is finite and
bad; its best loss is then that of the start.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from atlas.harness.files import write_text
from atlas.harness.seeds import generator, pick_device
from atlas.l2o import Adam, Curves, Ensemble, Optimizee, Policy, best_log_loss, optimization_stability, rollout
from atlas.l2o.drop_in import DropIn
from atlas.nn.timing import interleaved_seconds, median_ratio
from atlas.tasks.learned_optimization.data import Arena, load_arena

if TYPE_CHECKING:
    from atlas.harness.run import Run

CAP, FLOOR = 10.0, 1e-10
TIMING_ROUNDS, TIMING_PARAMETERS = 15, (1 << 14)


@dataclass
class Outcome:
    """What an optimizer did on one problem: R replicates of n runs over E epochs, losses capped.

    Attributes
    ----------
    train : Tensor
        (R, n, E): mean mini-batch loss of each epoch.
    val, accuracy : Tensor
        (R, n, E + 1): on the whole validation split, from the start on. Without accuracy these are zeros.
    test, test_accuracy : Tensor
        (R, n): on the whole test split, of the parameters with the smallest validation loss.
    final_train : Tensor
        (R, n): loss of the whole training split at the end.
    finite : Tensor
        (R, n) of bool.
    """

    train: Tensor
    val: Tensor
    accuracy: Tensor
    test: Tensor
    test_accuracy: Tensor
    final_train: Tensor
    finite: Tensor

    def replicate(self, index: int) -> Outcome:
        """The outcome of one replicate, as replicates of which there is one."""
        return Outcome(*(getattr(self, name)[index : index + 1] for name in self.__dataclass_fields__))

    @property
    def best_log_val(self) -> Tensor:
        """(R, n): log of the smallest validation loss of every run."""
        return torch.as_tensor(best_log_loss(self.val.numpy()))

    @property
    def best_log_train(self) -> Tensor:
        """(R, n): log of the smallest mean mini-batch loss of an epoch, of every run."""
        return torch.as_tensor(best_log_loss(self.train.numpy()))

    @property
    def stability(self) -> Tensor:
        """(R, n): optimization stability of the validation losses of every run, the start left out."""
        return torch.as_tensor(optimization_stability(self.val[..., 1:].numpy()))


@dataclass
class Evaluation:
    """The outcomes of a row on every problem, by name."""

    arena: Arena
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def home(self) -> Outcome:
        """The outcome on the problem with the meta-training architecture."""
        return next(iter(self.outcomes.values()))

    def transfer(self) -> list[Outcome]:
        """The outcomes on the networks after the first, in the protocol's order."""
        return [self.outcomes[name] for name in self.arena.protocol.transfer]

    def functions(self) -> list[Outcome]:
        """The outcomes on test functions, in the protocol's order."""
        return [self.outcomes[name] for name, problem in self.arena.protocol.problems.items() if problem.is_function]


def evaluate(run: Run) -> dict[str, float]:
    """Judge a trained row; also leaves ``curves.csv`` and ``evaluations.csv`` beside the metrics."""
    arena = load_arena(run)
    competitor = run.build()[0]
    policies = [policy.to(arena.device).eval() for policy in competitor.policies()]
    evaluation = competitor.select(judge(run, arena, policies))
    write_text(run.results / "curves.csv", curves_table(evaluation))
    write_text(run.results / "evaluations.csv", evaluations_table(evaluation))
    held, ratio = step_cost(policies[0], pick_device(run.resources.device))
    values = {**measures(evaluation), "state_bytes": held, "step_ratio": ratio}
    return {**values, **competitor.evaluate(evaluation)}


def judge(run: Run, arena: Arena, policies: list[Policy]) -> Evaluation:
    """Run every policy on every problem; rows of the same seed see the same starts and the same order of the data."""
    protocol = arena.protocol
    evaluation = Evaluation(arena)
    alike = len({type(policy) for policy in policies}) == 1 and len(policies) > 1
    teams: list[tuple[Policy, int]] = [(Ensemble(policies), len(policies))] if alike else [(policy, 1) for policy in policies]
    for name, problem in arena.problems.items():
        every = arena.steps_per_epoch(name)
        outcomes = []
        for policy, size in teams:
            curves = rollout(
                policy,
                problem,
                n=protocol.inits,
                copies=size,
                steps=protocol.epochs * every,
                every=every,
                start=True,
                gen=generator(run.seed, "judged", name),
                warmup_steps=protocol.warmup_steps,
                warmup_lr=protocol.warmup_lr,
            )
            outcomes.append(outcome(curves, problem, every, size))
        columns = {key: torch.cat([getattr(part, key) for part in outcomes]) for key in Outcome.__dataclass_fields__}
        evaluation.outcomes[name] = Outcome(**columns)
    return evaluation


def outcome(curves: Curves, problem: Optimizee, every: int, replicates: int) -> Outcome:
    """What replicates did on a problem, from their curves."""
    losses = curves.measured
    start = losses["val_loss"][0].cpu()

    def capped(values: Tensor) -> Tensor:
        values = values.cpu().double()
        highest = CAP * start
        return torch.where(values.isfinite(), values, highest).minimum(highest).clamp(min=FLOOR)

    epochs = curves.stream.reshape(-1, every, curves.stream.shape[1]).mean(1)
    zeros = torch.zeros_like(losses["val_loss"])
    test = problem.evaluate(curves.best, "test")
    final = problem.evaluate(curves.theta, "train")["loss"]
    finite = (losses["val_loss"].isfinite().all(0) & curves.stream.isfinite().all(0)).cpu()

    def by_replicate(values: Tensor) -> Tensor:
        return values.T.reshape(replicates, -1, len(values)).contiguous()

    return Outcome(
        train=by_replicate(capped(epochs)),
        val=by_replicate(capped(losses["val_loss"])),
        accuracy=by_replicate(losses.get("val_accuracy", zeros).cpu()),
        test=capped(test["loss"]).reshape(replicates, -1),
        test_accuracy=test.get("accuracy", zeros[0]).cpu().reshape(replicates, -1),
        final_train=capped(final).reshape(replicates, -1),
        finite=finite.reshape(replicates, -1),
    )


def measures(evaluation: Evaluation) -> dict[str, float]:
    """The task's metrics, but for costs: means over replicates and starts."""
    home, transfer = evaluation.home, evaluation.transfer()

    def average(tensors: list[Tensor]) -> float:
        return float(torch.stack([tensor.double().mean() for tensor in tensors]).mean()) if tensors else float("nan")

    return {
        "best_log_val": average([home.best_log_val]),
        "best_log_train": average([home.best_log_train]),
        "final_log_train": average([home.final_train.log()]),
        "trajectory_loss": average([home.train]),
        "log_test": average([home.test.log()]),
        "test_accuracy": average([home.test_accuracy]),
        "stability": average([home.stability]),
        "transfer_log_val": average([result.best_log_val for result in transfer]),
        "transfer_log_train": average([result.best_log_train for result in transfer]),
        "transfer_trajectory_loss": average([result.train for result in transfer]),
        "transfer1_log_val": average([transfer[0].best_log_val]),
        "transfer2_log_val": average([transfer[1].best_log_val]),
        "functions_log_loss": average([result.best_log_val for result in evaluation.functions()]),
        "diverged": average([1 - result.finite.double() for result in evaluation.outcomes.values()]),
    }


def curves_table(evaluation: Evaluation) -> str:
    """CSV of problem, epoch, step, and the median and quartiles over replicates and starts of training and validation loss."""
    stream = io.StringIO()
    stream.write("problem,epoch,step,train,train_low,train_high,val,val_low,val_high,accuracy\n")
    levels = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    for name, result in evaluation.outcomes.items():
        every = evaluation.arena.steps_per_epoch(name)
        train = torch.quantile(result.train.flatten(0, 1), levels, dim=0)
        val = torch.quantile(result.val.flatten(0, 1), levels, dim=0)
        accuracy = result.accuracy.mean((0, 1))
        for epoch in range(val.shape[1]):
            shown = ["", "", ""] if epoch == 0 else [f"{value:.5g}" for value in train[:, epoch - 1].tolist()]
            shown += [f"{value:.5g}" for value in [*val[:, epoch].tolist(), float(accuracy[epoch])]]
            stream.write(f"{name},{epoch},{epoch * every},{','.join(shown)}\n")
    return stream.getvalue()


def evaluations_table(evaluation: Evaluation) -> str:
    """CSV of problem, replicate, init, and what each single run reached."""
    stream = io.StringIO()
    stream.write("problem,replicate,init,best_log_val,best_log_train,log_test,stability\n")
    for name, result in evaluation.outcomes.items():
        columns = torch.stack([result.best_log_val, result.best_log_train, result.test.log(), result.stability], dim=-1)
        for replicate, runs in enumerate(columns.tolist()):
            for init, values in enumerate(runs):
                stream.write(f"{name},{replicate},{init},{','.join(f'{value:.5g}' for value in values)}\n")
    return stream.getvalue()


def step_cost(policy: Policy, device: torch.device) -> tuple[float, float]:
    """:func:`state_bytes`, and time of one update relative to Adam's as a policy: median of interleaved ratios."""
    theta = torch.zeros(1, TIMING_PARAMETERS, device=device)
    gradient = torch.ones_like(theta)
    steps = [partial(each.step, gradient, each.init_state(theta)) for each in (policy, Adam(lr=1e-3))]
    ratio = median_ratio(*interleaved_seconds(steps, TIMING_ROUNDS, device=device))
    return state_bytes(policy, device), ratio


def state_bytes(policy: Policy, device: torch.device) -> float:
    """Bytes that the policy keeps per parameter from step to step, as the optimizer that a user gets of it.

    As a policy an equation keeps all that its rule might look at; as an optimizer it keeps what it does look at.
    """
    weight = torch.nn.Parameter(torch.zeros(TIMING_PARAMETERS, device=device))
    optimizer = cast(DropIn, policy.optimizer([weight]))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return optimizer.state_bytes_per_parameter()
