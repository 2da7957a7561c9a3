"""Plugs VFDS, its gradient estimators and its baselines into feature acquisition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import FiniteFloat, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from atlas.harness.registry import Amount, Amounts, Metric, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.feature_acquisition.entry import training_amounts

PAPER = paper(
    "vfds",
    title=("VFDS: Variational Foresight Dynamic Selection in Bayesian Neural Networks for Efficient Human Activity Recognition"),
    citation="R. Ardywibowo, S. Boluki, Z. Wang, B. Mortazavi, S. Huang, X. Qian, AISTATS 2022",
    url="https://arxiv.org/abs/2204.00130",
)
TASK = "feature-acquisition"
MATCHED = (
    Metric("matched_accuracy", "accuracy at VFDS's cost", "higher", ".1%"),
    Metric("matched_fraction", "features for VFDS's accuracy", "lower", ".1%", cost=True),
)
Lambda = Annotated[float, Ge(0)]
Relaxation = Literal["concrete", "st", "st-concrete", "arm", "arm-unbiased"]


def _kappa(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """One line for both kinds of κ, where each would complain for itself."""
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("must be a finite number of at least 0, or lambda") from None


Kappa = Annotated[Annotated[FiniteFloat, Ge(0)] | Literal["lambda"], WrapValidator(_kappa)]


class SelectionSettings(Settings):
    """A sweep over λ with one gradient estimator; the row shows ``lam``.

    ``gamma`` discounts later losses in the return of ARM's policy. ``published`` is the official ARM gradient, in which ``kappa``
    weighs every open gate: a number, or ``lambda`` for λ. ``cost_norm: official`` divides by all steps, the first included.
    """

    lams: Annotated[tuple[Lambda, ...], MinLen(1)] = (0.1, 0.3, 1.0, 3.0, 10.0)
    lam: Lambda = 1.0
    relaxation: Relaxation = "concrete"
    temperature: Annotated[float, Gt(0)] = 0.05
    logit_scale: Annotated[float, Gt(0)] = 1.0
    gamma: Annotated[float, Ge(0), Le(1)] = 0.0
    entropy_weight: Annotated[float, Ge(0)] = 0.0
    cost_norm: Literal["steady", "official"] = "steady"
    published: bool = False
    kappa: Kappa = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> SelectionSettings:
        if self.lam not in self.lams:
            raise ValueError(f"lam {self.lam} is not one of lams {list(self.lams)}")
        if self.published and self.relaxation != "arm":
            raise ValueError(f"published is a form of arm, not of {self.relaxation}")
        return self

    def arm_options(self) -> dict[str, Any]:
        """Options of :func:`.losses.arm_loss`."""
        return {"gamma": self.gamma, "published": self.published, "kappa": self.kappa}


class StraightThroughSettings(SelectionSettings):
    """The straight-through estimator."""

    relaxation: Relaxation = "st"


class ArmSettings(SelectionSettings):
    """ARM, aligned; the official code scales the logits by 5."""

    relaxation: Relaxation = "arm"
    logit_scale: Annotated[float, Gt(0)] = 5.0


class UnbiasedSettings(ArmSettings):
    """The unbiased pair of trajectories."""

    relaxation: Relaxation = "arm-unbiased"


class PublishedSettings(ArmSettings):
    """ARM with the gradient of the official code, as it is on UCI HAR.

    On ExtraSensory ``cost_path``, the cost's gradient through σ(α) into the recurrence, is false; on Opportunity too, and there
    ``kappa`` is ``lambda`` and ``logit_scale`` 1.
    """

    published: bool = True
    cost_path: bool = True

    def arm_options(self) -> dict[str, Any]:
        """Options of :func:`.losses.arm_loss`."""
        return {**super().arm_options(), "cost_path": self.cost_path}


class AttentionSettings(Settings):
    """``threshold``: weight above which a feature is kept in use."""

    threshold: Annotated[float, Gt(0), Lt(1)] = 0.5


class LassoSettings(Settings):
    """Penalties of the proximal step that are swept."""

    penalties: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (0.3, 1.0, 3.0)


def _options(**more: Any) -> dict[str, Any]:
    return {"paper": PAPER, "task": TASK, **more}


SHRINK = "shrink"
"""Loop in which the group lasso finds its mask."""


def _sweep_amounts(run: Run) -> Amounts:
    """Every λ of a sweep sees every sequence; a rehearsal takes one λ, and its cost is scaled by their number."""
    protocol, settings = run.protocol_model(), next(iter(run.settings.values()))
    batch = protocol.batch_size * len(settings["lams"])
    return {TRAIN: Amount(protocol.steps, batch, batch)}


def _lasso_amounts(run: Run) -> Amounts:
    """The task's loop, twice: under the penalties, all of which a rehearsal takes, and on what they leave."""
    amounts = training_amounts(run)
    return {**amounts, SHRINK: amounts[TRAIN]}


SWEEP: dict[str, Any] = {"amounts": _sweep_amounts, "rehearsal": {"lams": (1.0,), "lam": 1.0}, "extra_metrics": MATCHED}
"""What all rows with a sweep over λ share."""


@method(
    "vanilla",
    title="All features",
    summary="A GRU that acquires every feature at every step.",
    role="baseline",
    **_options(),
)
def vanilla(run: Run, settings: Settings) -> Any:
    """No gates."""
    from atlas.methods.vfds.baselines import Ungated

    return Ungated()


@method(
    "first-step",
    title="First step only",
    summary="Nothing is acquired after the first step: what the stickiness of labels gives for free.",
    role="baseline",
    **_options(),
)
def first_step(run: Run, settings: Settings) -> Any:
    """An empty mask."""
    from atlas.methods.vfds.baselines import Masked

    return Masked()


@method(
    "vfds",
    title="VFDS",
    summary="The state after each step decides what the next one acquires; gates are trained as binary concrete variables.",
    settings=SelectionSettings,
    **_options(**SWEEP),
)
def vfds(run: Run, settings: SelectionSettings) -> Any:
    """The main method."""
    from atlas.methods.vfds.ingredient import Selecting

    return Selecting("dynamic", settings)


@method(
    "vfds-st",
    title="VFDS, straight-through",
    summary="VFDS with hard gates in training and the straight-through gradient.",
    role="ablation",
    settings=StraightThroughSettings,
    **_options(**SWEEP),
)
def vfds_st(run: Run, settings: StraightThroughSettings) -> Any:
    """The same policy by another estimator."""
    return vfds(run, settings)


@method(
    "vfds-arm",
    title="VFDS, ARM aligned",
    summary="VFDS with hard gates and the antithetic pair's gradient on the logits that made the gates.",
    role="ablation",
    settings=ArmSettings,
    **_options(**SWEEP),
)
def vfds_arm(run: Run, settings: ArmSettings) -> Any:
    """The recommended form of ARM."""
    return vfds(run, settings)


@method(
    "vfds-arm-unbiased",
    title="VFDS, ARM unbiased",
    summary="VFDS with hard gates and a score-function pair that is unbiased for all parameters at a discount of 1.",
    role="ablation",
    settings=UnbiasedSettings,
    **_options(**SWEEP),
)
def vfds_arm_unbiased(run: Run, settings: UnbiasedSettings) -> Any:
    """The unbiased pair."""
    return vfds(run, settings)


@method(
    "vfds-arm-published",
    title="VFDS, ARM as published",
    summary="VFDS with the ARM gradient of the official code, defects included.",
    role="ablation",
    settings=PublishedSettings,
    **_options(**SWEEP),
)
def vfds_arm_published(run: Run, settings: PublishedSettings) -> Any:
    """For comparison with the official code."""
    return vfds(run, settings)


@method(
    "static",
    title="Static selection",
    summary="One free concrete logit per gate, the same at every step; its front over λ is read at VFDS's cost.",
    role="baseline",
    settings=SelectionSettings,
    needs={"target": "vfds"},
    **_options(**SWEEP),
)
def static(run: Run, settings: SelectionSettings) -> Any:
    """The baseline that honesty asks for."""
    from atlas.methods.vfds.ingredient import Static

    return Static("static", settings)


@method(
    "static-top-k",
    title="Static top-k, refit",
    summary="The gates with the largest static logits, as many as VFDS opens, and a new GRU on them.",
    role="baseline",
    needs={"target": "vfds", "static": "static"},
    **_options(),
)
def static_top_k(run: Run, settings: Settings) -> Any:
    """Static selection at exactly matched cost."""
    from atlas.methods.vfds.baselines import StaticTopK

    return StaticTopK()


@method(
    "attention",
    title="Attention",
    summary="Deterministic soft weights of the features, trained without a cost and thresholded in use.",
    role="baseline",
    settings=AttentionSettings,
    **_options(),
)
def attention(run: Run, settings: AttentionSettings) -> Any:
    """As the official code has it."""
    from atlas.methods.vfds.baselines import Attention

    return Attention(settings.threshold)


@method(
    "random",
    title="Random gates",
    summary="Gates open by chance, as often as VFDS's, in training and in use.",
    role="baseline",
    needs={"target": "vfds"},
    **_options(),
)
def random(run: Run, settings: Settings) -> Any:
    """Chance at matched cost."""
    from atlas.methods.vfds.baselines import RandomGates

    return RandomGates(run)


@method(
    "mi-top-k",
    title="Mutual information top-k",
    summary="The features with most mutual information with the label, as many as VFDS acquires.",
    role="baseline",
    needs={"target": "vfds"},
    **_options(),
)
def mi_top_k(run: Run, settings: Settings) -> Any:
    """A filter method at matched cost."""
    from atlas.methods.vfds.baselines import MutualInformation

    return MutualInformation()


@method(
    "group-lasso",
    title="Group lasso, refit",
    summary="Columns of the input weights that a swept proximal penalty leaves, cut to VFDS's cost, and a new GRU on them.",
    role="baseline",
    settings=LassoSettings,
    needs={"target": "vfds"},
    smallest={"penalties": (0.3, 3.0)},
    amounts=_lasso_amounts,
    **_options(),
)
def group_lasso(run: Run, settings: LassoSettings) -> Any:
    """An embedded method at matched cost."""
    from atlas.methods.vfds.baselines import GroupLasso

    return GroupLasso(settings.penalties)


def _train_oracle(run: Run) -> Mapping[str, Any]:
    from atlas.methods.vfds.baselines import train_oracle

    return train_oracle(run)


def _evaluate_oracle(run: Run) -> Mapping[str, float]:
    from atlas.methods.vfds.baselines import evaluate_oracle

    return evaluate_oracle(run)


@method(
    "oracle",
    title="Oracle",
    summary="The exact Bayesian filter of the synthetic stream, which sees the beacons and the block that it expects to matter.",
    role="baseline",
    train=_train_oracle,
    evaluate=_evaluate_oracle,
    **_options(),
)
def oracle(run: Run, settings: Settings) -> None:
    """It has nothing to build: it is not trained."""
