"""Sweeps of selective GRUs as learners of feature acquisition: VFDS, its relaxations, static selection and attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from atlas.harness.registry import Amount, Amounts
from atlas.harness.run import Run
from atlas.harness.seeds import derive_seed
from atlas.methods.vfds.fitting import Front, Point, training_loss
from atlas.methods.vfds.groups import FeatureGroups
from atlas.methods.vfds.losses import lambda_at
from atlas.methods.vfds.model import Policy, SelectiveGRU
from atlas.methods.vfds.settings import SelectionSettings
from atlas.methods.vfds.sweep import Sweep
from atlas.nn.work import TRAIN
from atlas.tasks.feature_acquisition.evaluate import Evaluation, evaluate_points
from atlas.tasks.feature_acquisition.learner import Bench, Learner, Losses, Mode, Phase, Prediction


def sweep_amounts(run: Run) -> Amounts:
    """Every λ of a sweep sees every sequence; a rehearsal takes one λ, and its cost is scaled by their number."""
    protocol, settings = run.protocol_model(), run.settings_model(run.recipe[0])
    batch = protocol.batch_size * len(settings.lams)
    return {TRAIN: Amount(protocol.steps, batch, batch)}


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
    """Models of one policy side by side, one per operating point (or a single one); without gates, if a subclass has none.

    Attributes
    ----------
    policy : str, FixedMask or Random
        Who decides, as :class:`.model.SelectiveGRU` names it.
    model_options, loss_options : mapping
        What else the models and :func:`.fitting.training_loss` are told.
    """

    policy: Policy = "none"
    model_options: Mapping[str, Any] = {}
    loss_options: Mapping[str, Any] = {}
    sweep: Sweep | None = None

    def start(self, bench: Bench, count: int | None = None) -> Sweep:
        """Make the models, as many as there are operating points if no ``count`` is given, on the bench's device."""
        self.sweep = Sweep([make_model(bench, self.policy, **self.model_options) for _ in range(count or len(self.points))])
        return self.sweep.to(bench.device)

    @property
    def trained(self) -> Sweep:
        """The models with stacked weights, once :meth:`start` has made them."""
        assert self.sweep is not None
        return self.sweep

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Train the models of all λ in one phase, and draw the headline's curves."""
        sweep = self.start(bench)
        yield Phase("train", sweep, lambda x, y, step: self.loss(bench, sweep, x, y, step), watched=self.headline)

    def loss(self, bench: Bench, sweep: Sweep, x: Tensor, y: Tensor, step: int) -> Losses:
        """Losses (M,) of one training step on x (B, T, D) and y (B, T[, C]); λ rises to its value in the warm-up."""
        protocol, cost = bench.protocol, sweep.template.groups.cost.to(x)
        noise = bench.noise("train", step, x.shape[0], x.shape[1], len(cost))
        lam = x.new_tensor([lambda_at(step, protocol.steps, value, protocol.warmup) for value in self.weights])
        return self.estimate(sweep, x, y, cost, lam, noise)

    def estimate(self, sweep: Sweep, x: Tensor, y: Tensor, cost: Tensor, lam: Tensor, noise: Tensor) -> Losses:
        """Losses (M,) with the gradient estimator of the relaxation; cost: (G,), lam: (M,), noise: (T, B, G)."""
        return Losses(*training_loss(sweep, x, y, lam=lam, cost=cost, noise=noise, **self.loss_options))

    def predict(self, x: Tensor, mode: Mode, random: torch.Generator) -> Prediction:
        """Logits (M, B, T, C) and hard gates (M, B, T, G) of all models on x: (B, T, D)."""
        rollout = self.trained(x, gates=mode, generator=random)
        return Prediction(rollout.logits, rollout.gates)

    def state(self) -> Mapping[str, Tensor]:
        """The weights of all models by name, stacked: (M, …) each."""
        return self.trained.state_dict()

    def restore(self, bench: Bench, state: Mapping[str, Tensor]) -> None:
        """Make the models and load the weights."""
        count = len(next(iter(state.values())))
        self.start(bench, count).load_state_dict(dict(state))

    def parameters(self) -> int:
        """Number of parameters of one model."""
        return sum(parameter[0].numel() for parameter in self.trained.parameters())

    def step_flops(self, features: float) -> float:
        """Two per product: with the columns of the acquired features, in the recurrence, in the selector and in the head."""
        model = self.trained.template
        hidden, selector = model.hidden, model.groups.n_groups if model.adaptive else 0
        deeper = (model.n_layers - 1) * 6 * hidden
        macs = hidden * (3 * features + 3 * hidden + deeper + selector + model.n_outputs)
        return 2 * macs


class Selecting(SweepLearner):
    """VFDS with one of the gradient estimators: a model per λ, whose validation data choose how its gates are decided."""

    policy: Policy = "dynamic"
    modes = ("threshold", "sample")

    def __init__(self, run: Run, settings: SelectionSettings) -> None:
        super().__init__(run, settings)
        self.points = self.weights = settings.lams
        self.headline = settings.lams.index(settings.lam)
        self.model_options, self.loss_options = settings.model_options, settings.loss_options

    def extra(self, evaluation: Evaluation) -> dict[str, float]:
        """VFDS at its own cost: what static selection is compared with."""
        headline = evaluation.headline
        return {"matched_accuracy": headline["accuracy"], "matched_fraction": headline["frac_steady"]}


class Static(Selecting):
    """Static selection, and where its front passes VFDS's headline."""

    policy = "static"
    TOLERANCE = 0.01
    """Accuracy that a static point may lack and still count as matching VFDS (claim ``vfds.synth-cost-ratio``)."""

    def extra(self, evaluation: Evaluation) -> dict[str, float]:
        """Accuracy interpolated at VFDS's fraction, and the smallest fraction that reaches VFDS's accuracy (1 if none does)."""
        target = evaluate_points(evaluation.bench.run.needed("target"), evaluation.bench).headline
        scores = zip(self.points, evaluation.points, strict=True)
        front = Front(tuple(Point(lam, 0, own["frac_steady"], own["accuracy"]) for lam, own in scores))
        cheapest = front.cheapest(target["accuracy"] - self.TOLERANCE)
        return {
            "matched_accuracy": front.interpolate(target["frac_steady"]),
            "matched_fraction": 1.0 if cheapest is None else cheapest,
        }
