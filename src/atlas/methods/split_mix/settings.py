"""What can be chosen in Split-Mix, in the federations that it is compared with, and in a client's training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Lt
from pydantic import field_validator, model_validator

from atlas.settings import Fraction, Natural, NonNegative, Positive, Settings, Share

Method = Literal["split-mix", "fedavg", "heterofl", "sheterofl"]
"""Which federation: the paper's, or one of those that it is compared with."""
LossName = Literal["ce", "masked_ce"]
"""Cross-entropy, or the same with the logits of classes that a minibatch lacks set to 0."""
Execution = Literal["auto", "grouped", "vmap", "sequential"]
"""How the networks of a stack run; ``auto`` takes grouped layers where they give each network's numbers, else ``vmap``."""
NARROWEST = 0.125
"""The narrowest width that the task asks for."""


class TradeOffSettings(Settings):
    """``lam`` λ is the weight of the attacked loss in adversarial training; the clean loss weighs 1 − λ."""

    lam: Fraction = 0.5


class LocalSettings(TradeOffSettings):
    """How a client trains in a round: ``epochs`` of SGD at the rate ``lr`` of the round, from its start without momentum.

    ``temperature`` τ makes the loss τ·CE(z/τ, y).
    """

    lr: NonNegative = 0.1
    epochs: Natural = 1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: NonNegative = 5e-4
    loss: LossName = "ce"
    temperature: Positive = 1.0


class AtomSettings(Settings):
    """Settings of methods with base networks; ``atom`` is the width of one, as a share of the whole network's."""

    atom: Share = 0.125


class WidthSettings(Settings):
    """``width`` of the one network that all clients train, whatever their budgets."""

    width: Share = 1.0


class RateSettings(Settings):
    """A learning rate and milestones of the row's own, where they differ from the protocol's (the authors tuned per method)."""

    learning_rate: Positive | None = None
    milestones: tuple[Fraction, ...] = ()


class FederatedSettings(RateSettings, AtomSettings, WidthSettings, TradeOffSettings):
    """Everything in which federations differ; the rows offer what means something to them, and fix the rest.

    ``rescale_init`` starts hidden layers at the scale of the full-width network (appendix of the paper). ``norm`` is one batch
    norm, or one for clean and one for attacked inputs, or these with a scale and a shift that depend on λ. ``statistics`` is its
    mode (appendix A.3). ``batch``: of each batch, in testing too. ``post``: as ``batch``, and measured on every client's training
    data afterwards. ``tracked``: running, averaged over clients. ``local``: all of batch norm stays on its client.
    """

    rescale_init: bool = True
    norm: Literal["bn", "dual_bn", "film_bn"] = "bn"
    statistics: Literal["batch", "post", "tracked", "local"] = "batch"
    adversarial: bool = False


class BasesSettings(AtomSettings):
    """Base networks that are mixed into every width that the task asks for."""

    @field_validator("atom")
    @classmethod
    def _divides(cls, atom: float) -> float:
        if abs(NARROWEST / atom - round(NARROWEST / atom)) > 1e-9:
            raise ValueError(f"must divide {NARROWEST}, the narrowest width that is asked for")
        return atom


class SplitMixSettings(RateSettings, BasesSettings):
    """Of Split-Mix; :class:`FederatedSettings` explains."""

    rescale_init: bool = FederatedSettings().rescale_init
    statistics: Literal["batch", "post", "tracked", "local"] = "batch"


class FedAvgSettings(RateSettings, WidthSettings):
    """Of FedAvg; :class:`FederatedSettings` explains."""

    statistics: Literal["batch", "tracked", "local"] = "batch"


class RobustSettings(RateSettings, TradeOffSettings):
    """Of adversarial training; batch norm keeps running statistics, since attacks see it in evaluation mode."""

    statistics: Literal["tracked", "local"] = "tracked"


class RobustSplitMixSettings(RobustSettings, BasesSettings):
    """Of the joint model of widths and robustness."""


class FixedRobustSettings(RobustSettings, WidthSettings):
    """Of one network that is trained for one trade-off."""


class OnceForAllSettings(RateSettings, WidthSettings):
    """Of one network for all trade-offs of the protocol's attack; batch norm keeps running statistics."""

    statistics: Literal["tracked", "local"] = "tracked"


class NetworkSettings(AtomSettings):
    """A network, and the ``shape`` of its images: channels, height and width; nothing is trained."""

    network: Literal["mlp", "digit-cnn", "small-cnn", "preresnet18", "alexnet"] = "digit-cnn"
    shape: tuple[int, ...] = (3, 28, 28)

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.network != "mlp" and len(self.shape) != 3:
            raise ValueError(f"shape must be channels, height and width, not {list(self.shape)}")
        return self
