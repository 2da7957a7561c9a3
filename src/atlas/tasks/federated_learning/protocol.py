"""The protocol of federated learning: data over clients, budgets, rounds, attack. Defaults are Split-Mix's for Digits-5.

J. Hong, H. Wang, Z. Wang, J. Zhou, *Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization*, ICLR 2022,
Sec. 4 and appendix.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import field_validator, model_validator

from atlas.datasets.splits import TestSplit
from atlas.settings import Fraction, Natural, Positive, Settings

WIDTHS = (0.125, 0.25, 0.5, 1.0)
"""Widths at which models are asked for."""

FEWEST_CLIENTS = 4
"""So that the budgets 8-4-2-1 are all there, and each as often."""
DomainName = Literal["identity", "inverted", "blended", "noisy-transpose", "blurred", "tinted"]


class Data(Settings):
    """Who has which data.

    ``partition``: ``feature`` gives every domain to clients of its own, in equal contiguous shares trimmed to the smallest
    domain; ``class`` gives every client a few classes; ``iid`` splits evenly. ``domains`` makes domains of a single dataset by
    changing its images; datasets of several domains have their own. ``clients`` counts all of them, domain by domain; ``fewest``
    takes as few as the partition allows instead, for rehearsals.

    ``train_fraction`` keeps that share of the training images: of every class, the same for all runs, where there is one
    dataset. Where there is no official test split, ``test_fraction`` of every class is one: the same for all seeds
    (``test_split: shared``), or drawn by each (``per-seed``). ``validation_fraction`` of every client's share is held out: for
    curves, for the choice of the best round, for tuning.
    """

    partition: Literal["feature", "class", "iid"] = "feature"
    domains: tuple[DomainName, ...] = ()
    clients: Natural = 50
    fewest: bool = False
    classes_per_client: Natural = 3
    min_per_share: Natural = 16
    train_parts: Annotated[int, Ge(1), Le(10)] = 10
    train_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.5
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.3
    test_split: TestSplit = "shared"
    crop_padding: Annotated[int, Ge(0)] = 0
    flip: bool = False
    rotation_degrees: Annotated[float, Ge(0)] = 0.0


class Attack(Settings):
    """PGD in ℓ∞: radius in the inputs' units, steps in training and in testing; step size 1.25 ε / steps at most ε + 4/255.

    ``lams`` are the trade-offs at which a model with a robustness knob is tested, ``widths`` the widths that are attacked.
    """

    eps: Annotated[float, Ge(0)] = 8 / 255
    train_steps: Natural = 7
    test_steps: Natural = 7
    lams: Annotated[tuple[Fraction, ...], MinLen(2)] = (0.0, 0.2, 0.5, 0.8, 1.0)
    widths: Annotated[tuple[float, ...], MinLen(1)] = WIDTHS

    @field_validator("lams")
    @classmethod
    def _ends(cls, lams: tuple[float, ...]) -> tuple[float, ...]:
        if not {0.0, 0.5, 1.0} <= set(lams):
            raise ValueError("must hold 0, 0.5 and 1: the metrics are read there")
        return lams


class Protocol(Settings):
    """What every row of a table shares; methods may have a learning rate of their own.

    ``hidden`` are the sizes of the ``mlp`` at width 1. ``schedule``: ``constant``, half a ``cosine`` over the rounds, or × 0.1 at
    ``milestones`` (fractions of the rounds).
    ``budget_order`` ``by-domain`` gives ascending budgets to clients in order, so that poor clients share domains; ``spread``
    gives every domain all budgets. ``select_best`` keeps the round with the best validation score of the widest model.
    """

    network: Literal["mlp", "digit-cnn", "small-cnn", "preresnet18", "alexnet"] = "digit-cnn"
    hidden: Annotated[tuple[Natural, ...], MinLen(1)] = (256, 128)
    data: Data = Data()
    budgets: str = "8-4-2-1"
    budget_order: Literal["by-domain", "spread"] = "by-domain"
    rounds: Natural = 300
    epochs: Natural = 1
    batch_size: Natural = 32
    drop_last: bool = False
    learning_rate: Positive = 0.1
    schedule: Literal["constant", "cosine", "milestones"] = "cosine"
    milestones: tuple[Fraction, ...] = ()
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    loss: Literal["ce", "masked_ce"] = "ce"
    clients_per_round: Natural | None = None
    attack: Attack | None = None
    select_best: bool = True
    validate_every: Natural = 5
    test_batch_size: Annotated[int, Ge(2)] = 128
    stack_limit: Natural | None = None

    def trained(self, images: float) -> float:
        """How many of a client's images make minibatches: a remainder of one has no batch statistics, and is left out."""
        rest = images % self.batch_size
        return images - rest if self.drop_last or rest <= 1 else images

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.schedule == "milestones" and not self.milestones:
            raise ValueError("schedule milestones needs milestones, for example [0.5, 0.75]")
        if self.clients_per_round is not None and self.clients_per_round > self.data.clients:
            raise ValueError(f"clients_per_round {self.clients_per_round} exceeds the {self.data.clients} clients")
        made = len(self.data.domains) if self.data.partition == "feature" and not self.data.fewest else 0
        if made and self.data.clients % made:
            raise ValueError(f"{self.data.clients} clients cannot share {made} domains evenly")
        return self
