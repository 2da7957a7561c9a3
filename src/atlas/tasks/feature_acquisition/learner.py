"""What a method gives the task: one or several models trained side by side, and their decisions on sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple
from typing import Protocol as Protocol_

import torch
from torch import Tensor, nn

from atlas.harness.plugin import Plugin
from atlas.harness.seeds import generator
from atlas.tasks.feature_acquisition.protocol import Protocol
from atlas.tasks.feature_acquisition.streams import Streams

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.feature_acquisition.evaluate import Evaluation

Mode = Literal["threshold", "sample"]


@dataclass(frozen=True)
class Bench:
    """Where a learner works: the run, the task's protocol, the streams on the run's device."""

    run: Run
    protocol: Protocol
    streams: Streams
    device: torch.device

    def noise(self, purpose: str, step: int, batch: int, steps: int, gates: int) -> Tensor:
        """Uniform gate noise (T, B, G) in [1e−6, 1 − 1e−6] of one training step, apart from the order of the data."""
        drawn = torch.rand(steps, batch, gates, generator=generator(self.run.seed, "gates", purpose, step))
        return drawn.clamp_(1e-6, 1 - 1e-6).to(self.device)


class Losses(NamedTuple):
    """Loss of every model of a phase, (M,) each: what is minimised, the task's part, the fraction of the cost."""

    total: Tensor
    task: Tensor
    cost_fraction: Tensor


@dataclass
class Phase:
    """One training loop over M models side by side.

    Attributes
    ----------
    name : str
        Its curves are ``history.csv`` for ``train``, else ``<name>.csv``.
    module : nn.Module
        Every parameter has a leading dimension of M.
    loss : callable
        ``loss(x, y, step)`` with x: (B, T, D).
    after_step : callable, optional
        ``after_step(step)``, after the optimiser's.
    watched : int
        Model whose loss goes into the curves.
    keep_best : bool
        Whether the weights that are best on validation data may be kept, as the protocol says; :meth:`Learner.predict` must then
        decide by this phase's models.
    """

    name: str
    module: nn.Module
    loss: Callable[[Tensor, Tensor, int], Losses]
    after_step: Callable[[int], None] | None = None
    watched: int = 0
    keep_best: bool = True

    def joined(self, phases: Sequence[Phase]) -> JointPhase | None:
        """Return phases of several seeds, this one's among them, as one; ``None`` if each must go by itself."""
        return None


class JointPhase(Protocol_):
    """The same phase of several seeds, as one module; the modules of each phase are views of it.

    Attributes
    ----------
    module : nn.Module
        The phases' models, one after the other: every parameter has a leading dimension of all of them.
    """

    module: nn.Module

    def losses(self, batches: Sequence[tuple[Tensor, Tensor]], step: int) -> list[Losses]:
        """Losses of every phase on its own batch of sequences (B, T, D) and labels (B, T)."""
        ...


class Prediction(NamedTuple):
    """Decisions of M models: logits (M, B, T, C) and gates (M, B, T, G), 0 or 1 (attention: what is kept)."""

    logits: Tensor
    gates: Tensor


class Learner(Plugin):
    """Base of the plug-ins of feature acquisition.

    A learner has one or several operating points (for example a λ each), of which one is the headline whose numbers the table
    shows; all of them make the front of accuracy against cost.

    Attributes
    ----------
    points : sequence of float
        The knob's value at every operating point.
    weights : sequence of float
        What a unit of cost weighs at every point when modes are compared on validation data: λ, or 0.
    headline : int
        Index of the point that the table shows.
    modes : tuple
        How hard gates may be decided; with several the validation data choose, for every point.
    """

    points: Sequence[float] = (0.0,)
    weights: Sequence[float] = (0.0,)
    headline: int = 0
    modes: tuple[Mode, ...] = ("threshold",)

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Yield the training loops in order; the task runs each before it asks for the next."""
        raise NotImplementedError

    def predict(self, x: Tensor, mode: Mode, random: torch.Generator) -> Prediction:
        """Decide on sequences x: (B, T, D) with hard gates."""
        raise NotImplementedError

    def state(self) -> Mapping[str, Tensor]:
        """Everything that :meth:`restore` needs: tensors of any shapes (…), by name."""
        raise NotImplementedError

    def restore(self, bench: Bench, state: Mapping[str, Tensor]) -> None:
        """Become the trained learner again from what :meth:`state` returned, tensors of any shapes (…)."""
        raise NotImplementedError

    def parameters(self) -> int:
        """Number of parameters of one model."""
        raise NotImplementedError

    def step_flops(self, features: float) -> float:
        """Floating-point operations of one step of one model that acquires that many features, two per multiply-accumulate."""
        raise NotImplementedError

    def extra(self, evaluation: Evaluation) -> dict[str, float]:
        """Return values of the method's ``extra_metrics``, by name."""
        return {}
