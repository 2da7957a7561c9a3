"""Sweeps of selective GRUs as learners of feature acquisition: VFDS, its relaxations, static selection and attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atlas.harness.seeds import derive_seed
from atlas.methods.vfds.fitting import Front, Point
from atlas.methods.vfds.groups import FeatureGroups
from atlas.methods.vfds.losses import arm_loss, lambda_at, selection_loss
from atlas.methods.vfds.model import Policy, SelectiveGRU
from atlas.methods.vfds.sweep import Sweep
from atlas.tasks.feature_acquisition.evaluate import Evaluation, evaluate_points
from atlas.tasks.feature_acquisition.learner import Bench, Learner, Losses, Mode, Phase, Prediction

if TYPE_CHECKING:
    from atlas.methods.vfds.entry import SelectionSettings


def make_model(bench: Bench, policy: Policy, **options: Any) -> SelectiveGRU:
    """A model of the protocol's size; models of one seed start from the same recurrence."""
    layout, protocol = bench.streams.layout, bench.protocol
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(bench.run.seed, "init"))
        return SelectiveGRU(
            layout.features,
            protocol.hidden,
            len(layout.classes),
            n_layers=protocol.layers,
            groups=FeatureGroups(layout.groups, layout.cost, layout.names),
            policy=policy,
            **options,
        )


class SweepLearner(Learner):
    """Models of one policy side by side, one per λ (or a single one).

    Parameters
    ----------
    policy : str, FixedMask or Random
        Of :class:`.model.SelectiveGRU`.
    lams : sequence of float
        λ of every model; the one that equals ``lam`` is the headline.
    """

    def __init__(self, policy: Policy, lams: Sequence[float] = (0.0,), lam: float | None = None, **options: Any) -> None:
        self.policy, self.options = policy, options
        self.points = self.weights = tuple(lams)
        self.headline = 0 if lam is None else self.points.index(lam)
        self.modes: tuple[Mode, ...] = ("threshold", "sample") if policy in ("dynamic", "static") else ("threshold",)
        self.sweep: Sweep | None = None

    def start(self, bench: Bench, count: int | None = None) -> Sweep:
        """Make the models."""
        self.sweep = Sweep([make_model(bench, self.policy, **self.options) for _ in range(count or len(self.points))])
        return self.sweep.to(bench.device)

    @property
    def trained(self) -> Sweep:
        """The models."""
        assert self.sweep is not None
        return self.sweep

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """One phase for all λ."""
        sweep = self.start(bench)
        yield Phase("train", sweep, lambda x, y, step: self.loss(bench, sweep, x, y, step), watched=self.headline)

    def loss(self, bench: Bench, sweep: Sweep, x: Tensor, y: Tensor, step: int) -> Losses:
        """Loss on relaxed gates; λ warms up."""
        protocol = bench.protocol
        template = sweep.template
        cost = template.groups.cost.to(x)
        noise = bench.noise("train", step, x.shape[0], x.shape[1], len(cost))
        lam = x.new_tensor([lambda_at(step, protocol.steps, value, protocol.warmup) for value in self.weights])
        return Losses(*self.estimate(sweep, x, y, cost, lam, noise))

    def estimate(self, sweep: Sweep, x: Tensor, y: Tensor, cost: Tensor, lam: Tensor, noise: Tensor) -> Losses:
        """The loss with a gradient estimator."""
        return Losses(*selection_loss(sweep(x, noise=noise), y, cost=cost, lam=lam))

    def predict(self, x: Tensor, mode: Mode, random: torch.Generator) -> Prediction:
        """Hard gates of all models."""
        rollout = self.trained(x, gates=mode, generator=random)
        return Prediction(rollout.logits, rollout.gates)

    def state(self) -> Mapping[str, Tensor]:
        """The stacked weights."""
        return self.trained.state_dict()

    def restore(self, bench: Bench, state: Mapping[str, Tensor]) -> None:
        """Make the models and load the weights."""
        count = len(next(iter(state.values())))
        self.start(bench, count).load_state_dict(dict(state))

    def parameters(self) -> int:
        """Parameters of one model."""
        return sum(parameter[0].numel() for parameter in self.trained.parameters())

    def step_flops(self, features: float) -> float:
        """Products with the columns of the acquired features, the recurrence, the selector and the head."""
        model = self.trained.template
        hidden, selector = model.hidden, model.groups.n_groups if model.adaptive else 0
        deeper = (model.n_layers - 1) * 6 * hidden
        macs = hidden * (3 * features + 3 * hidden + deeper + selector + model.n_outputs)
        return 2 * macs


class Selecting(SweepLearner):
    """VFDS and static selection with one of the gradient estimators."""

    def __init__(self, policy: Policy, settings: SelectionSettings) -> None:
        super().__init__(
            policy,
            settings.lams,
            settings.lam,
            relaxation=settings.relaxation,
            temperature=settings.temperature,
            logit_scale=settings.logit_scale,
        )
        self.settings = settings

    def estimate(self, sweep: Sweep, x: Tensor, y: Tensor, cost: Tensor, lam: Tensor, noise: Tensor) -> Losses:
        """Relaxed gates, or pairs of trajectories."""
        settings = self.settings
        if not sweep.template.arm:
            rollout = sweep(x, noise=noise)
            norm, weight = settings.cost_norm, settings.entropy_weight
            return Losses(*selection_loss(rollout, y, cost=cost, lam=lam, cost_norm=norm, entropy_weight=weight))
        return Losses(*arm_loss(sweep, x, y, lam=lam, cost=cost, noise=noise, **settings.arm_options()))

    def extra(self, evaluation: Evaluation) -> dict[str, float]:
        """VFDS at its own cost: what static selection is compared with."""
        if self.policy != "dynamic":
            return {}
        found = evaluation.headline
        return {"matched_accuracy": found["accuracy"], "matched_fraction": found["frac_steady"]}


class Static(Selecting):
    """Static selection, and where its front passes VFDS's headline."""

    TOLERANCE = 0.01
    """Accuracy that a static point may lack and still count as matching VFDS (claim ``vfds.synth-cost-ratio``)."""

    def extra(self, evaluation: Evaluation) -> dict[str, float]:
        """Accuracy interpolated at VFDS's fraction, and the smallest fraction that reaches VFDS's accuracy (1 if none does)."""
        target = evaluate_points(evaluation.bench.run.needed("target"), evaluation.bench).headline
        points = [
            Point(lam, 0, found["frac_steady"], found["accuracy"])
            for lam, found in zip(self.points, evaluation.points, strict=True)
        ]
        front = Front(tuple(points))
        cheapest = front.cheapest(target["accuracy"] - self.TOLERANCE)
        return {
            "matched_accuracy": front.interpolate(target["frac_steady"]),
            "matched_fraction": 1.0 if cheapest is None else cheapest,
        }
