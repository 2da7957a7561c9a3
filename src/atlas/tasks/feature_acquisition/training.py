"""The training loop of every method of the task, and the choice of the gates' mode on validation data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import AtlasError
from atlas.harness.files import write_tensors
from atlas.harness.resume import training
from atlas.harness.seeds import generator, pick_device
from atlas.tasks.feature_acquisition.learner import Bench, Learner, Losses, Mode, Phase, Prediction
from atlas.tasks.feature_acquisition.optimizers import StackedOptimizer
from atlas.tasks.feature_acquisition.scores import objective, score
from atlas.tasks.feature_acquisition.streams import Sequences, load_streams

if TYPE_CHECKING:
    from atlas.harness.run import Run


def make_bench(run: Run) -> Bench:
    """The protocol and the streams of a run, on its device."""
    protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    return Bench(run, protocol, load_streams(run, protocol.stream).to(device), device)


@torch.inference_mode()
def decide(learner: Learner, bench: Bench, split: str, mode: Mode) -> Prediction:
    """Decisions of all operating points on a split, on the CPU; samples are the same whenever they are drawn."""
    x, size = bench.streams.splits[split].x, bench.protocol.evaluation_batch_size
    random = generator(bench.run.seed, "decide", split, mode)
    parts = [learner.predict(x[first : first + size], mode, random) for first in range(0, len(x), size)]
    return Prediction(*(torch.cat([part.cpu() for part in pieces], 1) for pieces in zip(*parts, strict=True)))


def train(run: Run) -> dict[str, Any]:
    """Train a learner phase by phase and write its state.

    Returns
    -------
    dict
        ``modes``: the mode of every operating point, chosen on validation data by the lowest task loss plus weighted cost;
        ``validation_accuracy`` and ``validation_frac_steady`` of the headline point.
    """
    bench = make_bench(run)
    learner: Learner = run.build()[0]
    for phase in learner.phases(bench):
        fit_phase(bench, phase, learner)
    return finish(bench, learner)


def finish(bench: Bench, learner: Learner) -> dict[str, Any]:
    """Write a trained learner's state, and return what :func:`train` does."""
    write_tensors(bench.run.weights, learner.state())
    chosen, best = choose_modes(learner, bench)
    headline = best[learner.headline]
    return {
        "modes": ",".join(chosen),
        "validation_accuracy": headline["accuracy"],
        "validation_frac_steady": headline["frac_steady"],
    }


def choose_modes(learner: Learner, bench: Bench) -> tuple[list[Mode], list[dict[str, float]]]:
    """The mode with the lowest validation objective for every operating point, and the scores that it has there."""
    split = bench.streams.splits["validation"]
    predictions = {mode: decide(learner, bench, "validation", mode) for mode in learner.modes}
    chosen: list[Mode] = []
    best: list[dict[str, float]] = []
    for point, weight in enumerate(learner.weights):
        values = {mode: objective(made, point, split, bench.streams.layout, weight) for mode, made in predictions.items()}
        mode = min(learner.modes, key=lambda candidate: values[candidate])
        chosen.append(mode)
        best.append(score(predictions[mode], point, split, bench.streams.layout))
    return chosen, best


def fit_phase(bench: Bench, phase: Phase, learner: Learner) -> None:
    """Run one loop to its end, from wherever an earlier process stopped."""
    fitting = PhaseFitting(bench, phase, learner)
    for step in fitting.loop:
        x, y = bench.streams.batch(bench.protocol.batch_size, step, phase.name)
        losses = phase.loss(x, y, step)
        fitting.optimizer.zero_grad()
        losses.total.sum().backward()
        fitting.optimizer.step()
        fitting.end_step(step, losses)
    fitting.end()


class PhaseFitting:
    """One phase of a run while it trains: its optimiser and its loop, restored to wherever an earlier process stopped."""

    def __init__(self, bench: Bench, phase: Phase, learner: Learner) -> None:
        self.bench, self.phase, self.learner = bench, phase, learner
        protocol = bench.protocol
        module = phase.module.to(bench.device)
        self.optimizer = StackedOptimizer(module, protocol)
        self.best = _Best(module) if protocol.keep_best_every and phase.keep_best else None
        parts: dict[str, Any] = {"model": module, "optimizer": self.optimizer}
        self.loop = training(bench.run, protocol.steps, parts | ({"best": self.best} if self.best else {}), phase=phase.name)

    def end_step(self, step: int, losses: Losses) -> None:
        """Do what follows the optimiser's step."""
        protocol, best = self.bench.protocol, self.best
        if self.phase.after_step is not None:
            self.phase.after_step(step)
        if best is not None and ((step + 1) % protocol.keep_best_every == 0 or step + 1 == protocol.steps):
            best.consider(_validation_objective(self.learner, self.bench))
        if (step + 1) % protocol.log_every == 0 or step + 1 == protocol.steps:
            values = {name: float(value.detach()[self.phase.watched]) for name, value in losses._asdict().items()}
            if not bool(torch.isfinite(losses.total).all()):
                raise AtlasError(f"{self.bench.run.cell}: the loss is not finite at step {step + 1}: {losses.total.tolist()}")
            self.loop.log(loss=values["total"], task_loss=values["task"], cost_fraction=values["cost_fraction"])

    def end(self) -> None:
        """Put the weights back that were best on validation data, where the protocol keeps them."""
        if self.best is not None:
            self.best.restore()


def _validation_objective(learner: Learner, bench: Bench) -> Tensor:
    """Task loss plus weighted cost of every point, in the mode that the official code validates with (samples, if any)."""
    made = decide(learner, bench, "validation", learner.modes[-1])
    split: Sequences = bench.streams.splits["validation"]
    values = [objective(made, point, split, bench.streams.layout, weight) for point, weight in enumerate(learner.weights)]
    return torch.tensor(values[: len(made.logits)])


class _Best:
    """The weights with the lowest validation objective, for each model by itself; a part of the resume state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tensors = [parameter.detach().clone() for parameter in module.parameters()]
        self.value = torch.full((len(self.tensors[0]),), float("inf"))

    def consider(self, value: Tensor) -> None:
        """Keep the present weights of the models that are better than ever."""
        better = value < self.value
        self.value = torch.where(better, value, self.value)
        for kept, parameter in zip(self.tensors, self.module.parameters(), strict=True):
            kept[better.to(kept.device)] = parameter.detach()[better.to(kept.device)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back."""
        for kept, parameter in zip(self.tensors, self.module.parameters(), strict=True):
            parameter.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": self.tensors, "value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]
        for own, saved in zip(self.tensors, state["tensors"], strict=True):
            own.copy_(saved)
