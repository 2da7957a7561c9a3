"""Plugs Robust Bird, Flying Bird, Flying Bird+ and the static baselines into adversarial robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from atlas.harness.registry import Amounts, Metric, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.adversarial_robustness.entry import training_amounts

if TYPE_CHECKING:
    from atlas.tasks.adversarial_robustness.topology import Topology

PAPER = paper(
    "sparse-robust",
    title="Sparsity Winning Twice: Better Robust Generalization from More Efficient Training",
    citation="T. Chen, Z. Zhang, P. Wang, S. Balachandra, H. Ma, Z. Wang, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2202.09844",
)
TASK = "adversarial-robustness"

Fraction = Annotated[float, Ge(0), Le(1)]
Density = Annotated[float, Gt(0), Le(1)]
Natural = Annotated[int, Ge(1)]


class SparseSettings(Settings):
    """``density`` is the share of the weights that exist; ``scheme`` shares it out over layers."""

    density: Density = 0.2
    scheme: Literal["igq", "erk", "uniform"] = "igq"


class ScoreSettings(Settings):
    """``batches`` of clean training images to score on; ``rounds`` of SynFlow; one threshold for all layers, or one each."""

    density: Density = 0.2
    scope: Literal["global", "layer"] = "global"
    batches: Natural = 10
    rounds: Natural = 100


class RobustBirdSettings(Settings):
    """Stage 1 trains as ``stage`` says until masks of the last ``queue`` epochs differ by at most ``threshold``.

    ``stage_milestones`` are the decays of stage 1 and ``milestones`` those of adversarial training, where they differ from the
    protocol's: the authors use (50, 150) for both, and (100, 150) for every other row.
    """

    density: Density = 0.2
    threshold: Fraction = 0.08
    queue: Annotated[int, Ge(2)] = 5
    max_epochs: Natural = 200
    stage: Literal["standard", "fast", "pgd"] = "standard"
    stage_milestones: tuple[Natural, ...] | None = (50, 150)
    milestones: tuple[Natural, ...] | None = None


class DynamicSettings(SparseSettings):
    """The topology changes every ``interval`` steps in the first half of the epochs, then every ``late_interval``.

    ``average_from`` is the epoch (from 0) from which weights are averaged; the last network is then the average.
    """

    interval: Natural = 900
    late_interval: Natural = 1200
    rate: Fraction = 0.5
    rate_end: Fraction = 0.005
    growth: Literal["gradient", "random"] = "gradient"
    average_from: Annotated[int, Ge(0)] | None = None


class PlusSettings(DynamicSettings):
    """From ``start_epoch`` on the density follows the latest ``window`` changes of the robust gap and of the validation loss."""

    start_epoch: Annotated[int, Ge(0)] = 100
    window: Natural = 4
    threshold: Fraction = 0.5
    prune_extra: Fraction = 0.4
    grow_extra: Fraction = 0.05


SMALL_BIRD = {"max_epochs": 3, "queue": 2, "threshold": 0.5, "stage_milestones": [2]}
SMALL_FLIGHT = {"interval": 1, "late_interval": 1}
REHEARSED_BIRD = {"max_epochs": 1}
REHEARSED_FLIGHT = {"interval": 1, "late_interval": 1}
EARLY_BIRD = "early-bird"
"""Loop of Robust Bird's first stage."""


def _bird_amounts(run: Run) -> Amounts:
    """The first stage ends when its masks have settled, and nothing is known of that beforehand: it is left out."""
    amounts = training_amounts(run)
    return {**amounts, EARLY_BIRD: amounts[TRAIN]._replace(steps=0)}


@method(
    "robust-bird",
    paper=PAPER,
    task=TASK,
    title="Robust Bird",
    summary="A static mask that settles early in cheap standard training, then adversarial training under it.",
    settings=RobustBirdSettings,
    smallest=SMALL_BIRD,
    rehearsal=REHEARSED_BIRD,
    amounts=_bird_amounts,
)
def robust_bird(run: Run, settings: RobustBirdSettings) -> Topology:
    """Early robust tickets."""
    from atlas.methods.sparse_robust.ingredients import RobustBird

    return RobustBird(settings)


@method(
    "flying-bird",
    paper=PAPER,
    task=TASK,
    title="Flying Bird",
    summary="Prunes the smallest weights and grows where gradients are largest, at constant density.",
    settings=DynamicSettings,
    smallest=SMALL_FLIGHT,
    rehearsal=REHEARSED_FLIGHT,
)
def flying_bird(run: Run, settings: DynamicSettings) -> Topology:
    """Dynamic sparsity."""
    from atlas.methods.sparse_robust.ingredients import Flying

    return Flying(settings)


@method(
    "flying-bird-plus",
    paper=PAPER,
    task=TASK,
    title="Flying Bird+",
    summary="Flying Bird whose density falls while the robust gap grows, and rises while the validation loss does not fall.",
    settings=PlusSettings,
    smallest={**SMALL_FLIGHT, "start_epoch": 1},
    rehearsal=REHEARSED_FLIGHT,
)
def flying_bird_plus(run: Run, settings: PlusSettings) -> Topology:
    """Dynamic sparsity of adaptive density."""
    from atlas.methods.sparse_robust.ingredients import Flying

    return Flying(settings, settings)


@method(
    "static-random",
    paper=PAPER,
    task=TASK,
    title="random mask",
    summary="A random mask that stays, at the quotas of Flying Bird.",
    role="baseline",
    settings=SparseSettings,
)
def static_random(run: Run, settings: SparseSettings) -> Topology:
    """Sparse without being dynamic."""
    from atlas.methods.sparse_robust.ingredients import RandomTopology

    return RandomTopology(settings)


@method(
    "omp",
    paper=PAPER,
    task=TASK,
    title="one-shot magnitude",
    summary="The magnitude mask of the adversarially trained dense network, trained again from the initialisation.",
    role="baseline",
    settings=SparseSettings,
    needs={"dense": "dense"},
)
def omp(run: Run, settings: SparseSettings) -> Topology:
    """A mask that costs a dense training."""
    from atlas.methods.sparse_robust.ingredients import TrainedMagnitudeTopology

    return TrainedMagnitudeTopology(settings)


SCORES = {
    "magnitude": ("magnitude at init", "The largest initial weights stay."),
    "snip": ("SNIP", "Weights stay whose removal would change the clean loss most, at initialisation."),
    "grasp": ("GraSP", "Weights stay whose removal would hurt the gradient's norm most, at initialisation."),
    "synflow": ("SynFlow", "Weights stay that carry most of the synaptic flow, at initialisation, in rounds."),
}


def _register_score(name: str, title: str, summary: str) -> None:
    @method(
        name,
        paper=PAPER,
        task=TASK,
        title=title,
        summary=summary,
        role="baseline",
        settings=ScoreSettings,
        smallest={"rounds": 2, "batches": 1},
        rehearsal={"rounds": 1, "batches": 1},
    )
    def scored(run: Run, settings: ScoreSettings) -> Topology:
        from atlas.methods.sparse_robust.ingredients import ScoredTopology

        return ScoredTopology(name, settings)


for _name, (_title, _summary) in SCORES.items():
    _register_score(_name, _title, _summary)


def _train_table(run: Run) -> Mapping[str, Any]:
    from atlas.methods.sparse_robust.stages import cost_table

    return cost_table(run)


def _evaluate_table(run: Run) -> Mapping[str, float]:
    from atlas.harness.execute import training_summary

    return training_summary(run)


@method(
    "cost-table",
    paper=PAPER,
    task=TASK,
    title="cost as printed",
    summary="The paper's inference costs of PreAct-ResNet-18, recomputed from shapes; nothing is trained.",
    settings=SparseSettings,
    metrics=(
        Metric("printed_cifar10", "as printed, CIFAR-10", "neither", ".4g"),
        Metric("printed_cifar100", "as printed, CIFAR-100", "neither", ".4g"),
        Metric("printed_tiny", "as printed, Tiny-ImageNet", "neither", ".5g"),
        Metric("ratio_cifar10", "true cost ÷ dense, CIFAR-10", "neither", ".3f"),
        Metric("ratio_cifar100", "true cost ÷ dense, CIFAR-100", "neither", ".3f"),
        Metric("ratio_tiny", "true cost ÷ dense, Tiny-ImageNet", "neither", ".3f"),
    ),
    train=_train_table,
    evaluate=_evaluate_table,
)
def cost_table(run: Run, settings: SparseSettings) -> SparseSettings:
    """Nothing is trained: the settings are all there is."""
    return settings
