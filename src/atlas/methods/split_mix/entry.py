"""Plugs Split-Mix, its robust form, and the federations that it is compared with into federated learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import field_validator, model_validator

from atlas.harness.registry import Metric, method, paper
from atlas.harness.run import Run
from atlas.settings import Settings
from atlas.tasks.federated_learning.entry import ATTACKED_METRICS, KNOB_METRICS, WIDTH_METRICS

if TYPE_CHECKING:
    from atlas.methods.split_mix.ingredient import TrainedFederation

PAPER = paper(
    "split-mix",
    title="Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization",
    citation="J. Hong, H. Wang, Z. Wang, J. Zhou, ICLR 2022",
    url="https://arxiv.org/abs/2203.09747",
)
TASK = "federated-learning"
Width = Annotated[float, Gt(0), Le(1)]
Fraction = Annotated[float, Ge(0), Le(1)]
NARROWEST = 0.125


class RateSettings(Settings):
    """A learning rate and milestones of the row's own, where they differ from the protocol's (the authors tuned per method)."""

    learning_rate: Annotated[float, Gt(0)] | None = None
    milestones: tuple[Fraction, ...] = ()


class FederatedSettings(RateSettings):
    """Everything that some row can set; rows offer what means something to them."""

    atom: Width = 0.125
    width: Width = 1.0
    rescale_init: bool = True
    norm: Literal["bn", "dual_bn"] = "bn"
    statistics: Literal["batch", "post", "tracked", "local"] = "batch"
    adversarial: bool = False
    lam: Fraction = 0.5


class SplitMixSettings(RateSettings):
    """``atom`` is the width of a base network; ``statistics`` the mode of batch norm (appendix A.3).

    ``batch``: of each batch, in testing too. ``post``: as ``batch``, and measured on every client's training data afterwards.
    ``tracked``: running, averaged over clients. ``local``: all of batch norm stays on its client.
    """

    atom: Width = 0.125
    rescale_init: bool = True
    statistics: Literal["batch", "post", "tracked", "local"] = "batch"

    @field_validator("atom")
    @classmethod
    def _divides(cls, atom: float) -> float:
        if abs(NARROWEST / atom - round(NARROWEST / atom)) > 1e-9:
            raise ValueError(f"must divide {NARROWEST}, the narrowest width that is asked for")
        return atom


class FedAvgSettings(RateSettings):
    """``width`` of the one network that all clients train, whatever their budgets."""

    width: Width = 1.0
    statistics: Literal["batch", "tracked", "local"] = "batch"


class RobustSettings(RateSettings):
    """``lam`` is the weight of the attacked loss in training; batch norm keeps running statistics, averaged or local."""

    lam: Fraction = 0.5
    statistics: Literal["tracked", "local"] = "tracked"


class RobustSplitMixSettings(RobustSettings):
    """As above; ``atom`` is the width of a base network."""

    atom: Width = 0.125


class FixedRobustSettings(RobustSettings):
    """One network of ``width`` trained for one trade-off ``lam``."""

    width: Width = 1.0


def _federation(kind: Any, settings: RateSettings, **fixed: Any) -> TrainedFederation:
    from atlas.methods.split_mix.ingredient import TrainedFederation

    return TrainedFederation(kind, FederatedSettings(**{**settings.model_dump(), **fixed}))


@method(
    "split-mix",
    paper=PAPER,
    task=TASK,
    title="Split-Mix",
    summary="Narrow base networks, as many per client as its budget holds, averaged one by one and mixed into any width.",
    settings=SplitMixSettings,
    extra_metrics=WIDTH_METRICS,
)
def split_mix(run: Run, settings: SplitMixSettings) -> TrainedFederation:
    """The paper's method for widths."""
    return _federation("split-mix", settings)


@method(
    "sheterofl",
    paper=PAPER,
    task=TASK,
    title="Slimmable HeteroFL",
    summary="One network; every client trains all prefixes up to its budget at every step, and uploads the widest.",
    role="baseline",
    settings=RateSettings,
    extra_metrics=WIDTH_METRICS,
)
def sheterofl(run: Run, settings: RateSettings) -> TrainedFederation:
    """The paper's main competitor."""
    return _federation("sheterofl", settings)


@method(
    "heterofl",
    paper=PAPER,
    task=TASK,
    title="HeteroFL",
    summary="One network; every client trains the prefix that its budget holds (Diao et al., ICLR 2021).",
    role="baseline",
    settings=RateSettings,
    extra_metrics=WIDTH_METRICS,
)
def heterofl(run: Run, settings: RateSettings) -> TrainedFederation:
    """One width per client."""
    return _federation("heterofl", settings)


@method(
    "fedavg",
    paper=PAPER,
    task=TASK,
    title="FedAvg",
    summary="One network of one width, trained by all clients whatever their budgets (McMahan et al., AISTATS 2017).",
    role="baseline",
    settings=FedAvgSettings,
)
def fedavg(run: Run, settings: FedAvgSettings) -> TrainedFederation:
    """Only the narrowest width respects every budget."""
    return _federation("fedavg", settings, rescale_init=False)


@method(
    "fedavg-at",
    paper=PAPER,
    task=TASK,
    title="FedAvg + adversarial training",
    summary="FedAvg on (1 − λ)·clean + λ·attacked loss with one batch norm: a training per trade-off.",
    role="baseline",
    settings=FixedRobustSettings,
    extra_metrics=ATTACKED_METRICS,
)
def fedavg_at(run: Run, settings: FixedRobustSettings) -> TrainedFederation:
    """The per-λ reference."""
    return _federation("fedavg", settings, adversarial=True, rescale_init=False)


@method(
    "fedavg-dat",
    paper=PAPER,
    task=TASK,
    title="FedAvg + dual norms",
    summary="One network of full width with a batch norm for clean and one for attacked inputs: a robustness knob alone.",
    role="ablation",
    settings=RobustSettings,
    extra_metrics=(*ATTACKED_METRICS, *KNOB_METRICS),
)
def fedavg_dat(run: Run, settings: RobustSettings) -> TrainedFederation:
    """Split-Mix with one base network of full width, which every client trains."""
    return _federation("split-mix", settings, atom=1.0, norm="dual_bn", adversarial=True, rescale_init=False)


@method(
    "split-mix-dat",
    paper=PAPER,
    task=TASK,
    title="Split-Mix + dual norms",
    summary="Base networks with dual batch norms: one training, every width and every robustness.",
    settings=RobustSplitMixSettings,
    extra_metrics=(*WIDTH_METRICS, *ATTACKED_METRICS, *KNOB_METRICS),
)
def split_mix_dat(run: Run, settings: RobustSplitMixSettings) -> TrainedFederation:
    """The joint model of widths and robustness."""
    return _federation("split-mix", settings, norm="dual_bn", adversarial=True)


class NetworkSettings(Settings):
    """A network and the shape of its images; nothing is trained."""

    network: Literal["mlp", "digit-cnn", "preresnet18", "alexnet"] = "digit-cnn"
    shape: tuple[int, ...] = (3, 28, 28)
    atom: Width = 0.125

    @model_validator(mode="after")
    def _sized(self) -> NetworkSettings:
        if self.network != "mlp" and len(self.shape) != 3:
            raise ValueError(f"shape must be channels, height and width, not {list(self.shape)}")
        return self


def _train_nothing(run: Run) -> Mapping[str, Any]:
    return {}


def _measure(run: Run) -> Mapping[str, float]:
    from atlas.methods.split_mix.ingredient import network_costs

    settings = run.settings_model(run.recipe[0])
    return network_costs(settings.network, settings.shape, settings.atom)


@method(
    "mixed-network",
    paper=PAPER,
    task=TASK,
    title="mixed network",
    summary="What a mixed network of width 1 costs beside the ordinary one; counted, not trained.",
    settings=NetworkSettings,
    metrics=(
        Metric("parameters_ratio", "parameters ÷ ordinary", "lower", ".3f"),
        Metric("macs_ratio", "MACs ÷ ordinary", "lower", ".3f"),
        Metric("parameters", "parameters", "lower", ",.0f"),
        Metric("forward_macs", "MACs / image", "lower", ",.0f"),
        Metric("wide_parameters", "parameters, ordinary", "lower", ",.0f"),
        Metric("wide_macs", "MACs / image, ordinary", "lower", ",.0f"),
        Metric("base_parameters", "parameters, one base", "lower", ",.0f", table=False),
        Metric("base_macs", "MACs / image, one base", "lower", ",.0f", table=False),
    ),
    train=_train_nothing,
    evaluate=_measure,
)
def mixed_network(run: Run, settings: NetworkSettings) -> NetworkSettings:
    """Nothing is trained: the settings are all there is."""
    return settings
