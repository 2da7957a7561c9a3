"""What can be chosen in VFDS, its gradient estimators and its baselines."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import FiniteFloat, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from atlas.settings import Fraction, NonNegative, Positive, Settings

Relaxation = Literal["concrete", "st", "st-concrete", "arm", "arm-unbiased"]
"""How gradients reach the policy: by relaxed gates, straight through hard ones, or from pairs of trajectories."""
CostNorm = Literal["steady", "official"]
"""Which steps the cost is a mean over: those after the first, or all, the first (which costs nothing) included."""
PAIRED: tuple[Relaxation, ...] = ("arm", "arm-unbiased")
"""Estimators that learn from pairs of trajectories with hard gates."""


def _number_or_lambda(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Say in one line what κ may be, where a number and the word would each complain for itself."""
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("must be a finite number of at least 0, or lambda") from None


GateWeight = Annotated[Annotated[FiniteFloat, Ge(0)] | Literal["lambda"], WrapValidator(_number_or_lambda)]
"""κ: what an open gate weighs beside a step's task loss; ``lambda`` stands for λ."""


class SelectionSettings(Settings):
    """One gradient estimator, and the λ (nats per whole cost) that a row sweeps over; the table shows ``lam``.

    ``temperature`` is τ of the relaxations and ``logit_scale`` s multiplies the selector's logits; the official code has 0.05 and
    1, but s = 5 for ARM on UCI HAR and ExtraSensory. ``entropy_weight`` η rewards undecided gates; with ``cost_norm: official``
    the cost is a mean over all steps, the first included. Both are of the relaxations that are no ARM.

    The rest is of ARM. ``gamma`` discounts later losses in the return of the policy. ``published`` is the official gradient, in
    which ``kappa`` weighs every open gate, and the cost's gradient goes through σ(α) into the recurrence where ``cost_path`` is
    true: as it is on UCI HAR. On ExtraSensory ``cost_path`` is false; on Opportunity too, and there ``kappa`` is ``lambda`` and
    ``logit_scale`` 1.
    """

    lams: Annotated[tuple[NonNegative, ...], MinLen(1)] = (0.1, 0.3, 1.0, 3.0, 10.0)
    lam: NonNegative = 1.0
    relaxation: Relaxation = "concrete"
    temperature: Positive = 0.05
    logit_scale: Positive = 1.0
    gamma: Fraction = 0.0
    entropy_weight: NonNegative = 0.0
    cost_norm: CostNorm = "steady"
    published: bool = False
    kappa: GateWeight = 1.0
    cost_path: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lam not in self.lams:
            raise ValueError(f"lam {self.lam} is not one of lams {list(self.lams)}")
        if self.published and self.relaxation != "arm":
            raise ValueError(f"published is a form of arm, not of {self.relaxation}")
        return self

    @property
    def model_options(self) -> dict[str, Any]:
        """What the model is told of them: options of :class:`.model.SelectiveGRU`."""
        return self.model_dump(include={"relaxation", "temperature", "logit_scale"})

    @property
    def loss_options(self) -> dict[str, Any]:
        """What the loss is told of them: options of :func:`.losses.arm_loss` for ARM, else of :func:`.losses.selection_loss`."""
        paired, soft = {"gamma", "published", "kappa", "cost_path"}, {"entropy_weight", "cost_norm"}
        return self.model_dump(include=paired if self.relaxation in PAIRED else soft)


class AttentionSettings(Settings):
    """``threshold`` is the weight above which a feature is kept in use."""

    threshold: Annotated[float, Gt(0), Lt(1)] = 0.5


class LassoSettings(Settings):
    """``penalties`` μ of the proximal step that are swept: a step at the learning rate η shortens a column by η μ."""

    penalties: Annotated[tuple[Positive, ...], MinLen(1)] = (0.3, 1.0, 3.0)
