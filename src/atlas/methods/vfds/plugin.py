"""Sweeps of selective GRUs as learners of feature acquisition: VFDS, its relaxations, static selection and attention."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atlas.harness.registry import Amount, Amounts
from atlas.harness.run import Run
from atlas.harness.seeds import derive_seed
from atlas.methods.vfds.fitting import Front, Point, rollout_loss, training_loss
from atlas.methods.vfds.groups import FeatureGroups
from atlas.methods.vfds.losses import lambda_at
from atlas.methods.vfds.model import Policy, Rollout, SelectiveGRU
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

        def loss(x: Tensor, y: Tensor, step: int) -> Losses:
            return self.loss(bench, sweep, x, y, step)

        yield SweepPhase("train", sweep, loss, watched=self.headline, member=Member(self, bench, sweep))

    def loss(self, bench: Bench, sweep: Sweep, x: Tensor, y: Tensor, step: int) -> Losses:
        """Losses (M,) of one training step on x (B, T, D) and y (B, T[, C]); λ rises to its value in the warm-up."""
        cost = sweep.template.groups.cost.to(x)
        noise = bench.noise("train", step, x.shape[0], x.shape[1], len(cost))
        return self.estimate(sweep, x, y, cost, self.lams_at(bench, step, x), noise)

    def lams_at(self, bench: Bench, step: int, like: Tensor) -> Tensor:
        """λ of every model (M,) at a step."""
        protocol = bench.protocol
        return like.new_tensor([lambda_at(step, protocol.steps, value, protocol.warmup) for value in self.weights])

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
        """Make the models and load their weights, (M, …) by name."""
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


class Member(NamedTuple):
    """One seed of a row while several are trained at once."""

    learner: SweepLearner
    bench: Bench
    sweep: Sweep


@dataclass
class SweepPhase(Phase):
    """The phase of a sweep; with those of other seeds it is one phase of a larger sweep, each seed on its own batch and noise."""

    member: Member = field(kw_only=True)

    def joined(self, phases: Sequence[Phase]) -> JointSweeps | None:
        """All sweeps as one, where their models are of one kind, and learn from one trajectory."""
        members = [phase.member for phase in phases if isinstance(phase, SweepPhase)]
        if len(members) < len(phases) or self.member.sweep.template.arm:
            return None
        try:
            return JointSweeps(members)
        except ValueError:  # gates that open by chance, as often as each seed's own target
            return None


class JointSweeps:
    """Sweeps of several seeds as one :class:`~.sweep.Sweep`: see :class:`~atlas.tasks.feature_acquisition.learner.JointPhase`."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        sweeps = [member.sweep for member in members]
        if sum(sweep.size for sweep in sweeps) == 1:
            # products of one matrix are computed by other kernels than those of several, and no number must depend on how many
            # seeds there are
            sweeps.append(copy.deepcopy(sweeps[0]))
        self.spare = len(sweeps) - len(members)
        self.sweep = Sweep.joined(sweeps)
        self.module: nn.Module = self.sweep

    def losses(self, batches: Sequence[tuple[Tensor, Tensor]], step: int) -> list[Losses]:
        """Losses (M,) of every seed on its batch, x (B, T, D) and y (B, T[, C])."""
        template, sizes = self.sweep.template, [member.sweep.size for member in self.members]
        count = template.groups.n_groups
        values = [x.expand(size, *x.shape) for (x, _), size in zip(batches, sizes, strict=True)]
        noise = [
            member.bench.noise("train", step, x.shape[0], x.shape[1], count)[:, None].expand(-1, size, -1, -1)
            for member, (x, _), size in zip(self.members, batches, sizes, strict=True)
        ]
        copies = 1 + self.spare
        rollout = self.sweep(torch.cat(values * copies), noise=torch.cat(noise * copies, 1), gates="relaxed")
        made = (rollout.logits, rollout.gates, rollout.gate_logits, rollout.hidden)
        parts = zip(*(part.split(sizes * copies)[: len(sizes)] for part in made), strict=True)
        found = []
        for (learner, bench, own_sweep), own, (x, y) in zip(self.members, parts, batches, strict=True):
            lam, cost = learner.lams_at(bench, step, x), own_sweep.template.groups.cost.to(x)
            found.append(Losses(*rollout_loss(template, Rollout(*own), y, lam=lam, cost=cost, **learner.loss_options)))
        return found


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
