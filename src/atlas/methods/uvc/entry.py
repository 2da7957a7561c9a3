"""Plugs UVC, its ablations and its baselines into image classification: all act after training, on a recipe's dense model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import model_validator

from atlas.harness.registry import RECIPE_BEFORE, Amounts, Metric, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.image_classification.entry import training_amount

if TYPE_CHECKING:
    from atlas.tasks.image_classification.ingredients import Ingredient

PAPER = paper(
    "uvc",
    title="Unified Visual Transformer Compression",
    citation="S. Yu, T. Chen, J. Shen, H. Yuan, J. Tan, S. Yang, J. Liu, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.08243",
)
TASK = "image-classification"
Budget = Annotated[float, Gt(0), Le(1)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(0)]

METRICS = (
    Metric("acc_pre_ft", "top-1 before fine-tuning", "higher", ".1%"),
    Metric("r_phys", "MACs left", "lower", ".3f", cost=True),
    Metric("r_paper", "MACs left, paper's formula", "lower", ".3f", table=False),
    Metric("budget_error", "MACs left − budget", "neither", ".4f", table=False),
    Metric("budget_met", "budget met within 0.01", "higher", ".0f", table=False),
    Metric("macs", "MACs / image", "lower", ".3g", table=False),
    Metric("blocks_kept", "blocks kept", "neither", ".0f"),
    Metric("heads_kept", "heads kept", "neither", ".0f"),
    Metric("neurons_kept", "neurons kept", "neither", ".0f"),
    Metric("latency_ms_b1", "ms / image", "lower", ".2f", measured=True, table=False),
    Metric("latency_ms_b64", "ms / 64 images", "lower", ".2f", measured=True, table=False),
    Metric("latency_ratio_b1", "time ÷ dense, batch 1", "lower", ".2f", measured=True, table=False),
    Metric("latency_ratio_b64", "time ÷ dense, batch 64", "lower", ".2f", measured=True, table=False),
    Metric("search_seconds", "search, seconds", "lower", ".1f", measured=True, table=False),
)


class DistillSettings(Settings):
    """What every row of this paper shares: training from the dense model, which is also the teacher.

    ``epochs`` are those of the second stage; rows that decide without a search add the epochs that a search would take. The
    learning rate is 5e-5 · batch / 512 at the default batch of 1,024, as in the released log; cosine to ``min_learning_rate``.
    ``alpha`` weighs distillation against the labels, at ``temperature``; ``kd_norm`` "elements" is the released code's, which
    divides by the number of classes too.
    """

    epochs: Annotated[int, Ge(1)] = 120
    learning_rate: Positive = 1e-4
    min_learning_rate: Annotated[float, Ge(0)] = 1e-5
    warmup_epochs: Annotated[float, Ge(0)] = 5
    weight_decay: Annotated[float, Ge(0)] = 0.05
    clip_norm: Positive | None = 1.0
    alpha: Share = 0.1
    temperature: Positive = 1.0
    kd_norm: Literal["batch", "elements"] = "batch"
    hard: bool = False

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs before the export, and after it."""
        return 0, self.epochs


class BudgetSettings(DistillSettings):
    """``budget`` is the share of multiply-accumulates left. ``v_layout``: see ``atlas.methods.uvc.export``."""

    budget: Budget = 0.5
    v_layout: Literal["padded", "uniform"] = "padded"


class SearchSettings(BudgetSettings):
    """The search: epochs, of which the first pass one half through every gate; constants of the controller by ``preset``.

    ``pace`` speeds the controller up in searches of few steps.
    """

    search_epochs: Annotated[int, Ge(1)] = 30
    search_warmup_epochs: Count = 5
    search_learning_rate: Positive = 1e-4
    preset: Literal["normalised", "reference"] = "normalised"
    gate: Literal["gumbel_soft", "gumbel_hard", "softl0"] = "gumbel_soft"
    pace: Positive = 1.0

    @model_validator(mode="after")
    def _some_search(self) -> SearchSettings:
        if self.search_warmup_epochs >= self.search_epochs:
            raise ValueError(
                f"search_warmup_epochs {self.search_warmup_epochs} leaves nothing of search_epochs {self.search_epochs}"
            )
        return self

    @property
    def stages(self) -> tuple[int, int]:
        """The search, and the second stage."""
        return self.search_epochs, self.epochs


class StructuredSettings(BudgetSettings):
    """``criterion``: one-shot magnitude, Taylor, gradual magnitude, or the S²ViTE-like saliency, one share for every layer.

    ``batches`` feed the Taylor and saliency criteria. Gradual pruning reaches the budget in ``jumps`` over the first
    ``ramp`` of the epochs.
    """

    criterion: Literal["magnitude", "taylor", "gradual", "saliency"] = "magnitude"
    batches: Annotated[int, Ge(1)] = 10
    jumps: Annotated[int, Ge(1)] = 20
    ramp: Annotated[float, Gt(0), Lt(1)] = 0.4

    @property
    def stages(self) -> tuple[int, int]:
        """The ramp of gradual pruning, at least an epoch, and the rest; other criteria decide at once."""
        if self.criterion != "gradual":
            return super().stages
        first = max(1, round(self.ramp * self.epochs))
        return first, max(1, self.epochs - first)


class BlindSettings(BudgetSettings):
    """Whole blocks go, chosen without looking: evenly spaced ones stay, or the first ones.

    ``from_scratch`` trains the shallower model from the recipe's initial weights instead of the trained ones.
    """

    order: Literal["spaced", "first"] = "spaced"
    from_scratch: bool = False


class UnstructuredSettings(DistillSettings):
    """Single weights go: the share ``sparsity`` of all linear and convolutional weights but the classifier's.

    Criteria and schedule as in :class:`StructuredSettings`. Computation and latency stay as they were.
    """

    sparsity: Annotated[float, Ge(0), Lt(1)] = 0.5
    criterion: Literal["magnitude", "taylor", "gradual"] = "magnitude"
    batches: Annotated[int, Ge(1)] = 10
    jumps: Annotated[int, Ge(1)] = 20
    ramp: Annotated[float, Gt(0), Lt(1)] = 0.4


SEARCH_PHASE = "search"
"""Loop before the export."""
SHORT = {"epochs": 2, "warmup_epochs": 0}
SHORT_SEARCH = {**SHORT, "search_epochs": 3, "search_warmup_epochs": 1}
ONE_STEP = {"epochs": 1, "warmup_epochs": 0}
ONE_SEARCH = {**ONE_STEP, "search_epochs": 1, "search_warmup_epochs": 0}


def _amounts(run: Run) -> Amounts:
    """Epochs before and after the export; every image of a batch is in memory at once, whatever the protocol's micro-batch."""
    (settings,) = (one for one in map(run.settings_model, run.recipe) if isinstance(one, DistillSettings))
    before, after = (training_amount(run, epochs) for epochs in settings.stages)
    return {name: amount._replace(at_once=amount.batch) for name, amount in ((SEARCH_PHASE, before), (TRAIN, after))}


def _options(short: Mapping[str, Any] = SHORT, rehearsal: Mapping[str, Any] = ONE_STEP) -> dict[str, Any]:
    """What all rows share: they act after training, on the dense model of their recipe."""
    return {
        "paper": PAPER,
        "task": TASK,
        "phase": "after",
        "needs": {"dense": RECIPE_BEFORE},
        "extra_metrics": METRICS,
        "smallest": short,
        "rehearsal": rehearsal,
        "amounts": _amounts,
    }


@method(
    "uvc",
    title="UVC",
    summary="Heads, dims, neurons and blocks go together, learned with the weights under a budget.",
    settings=SearchSettings,
    **_options(SHORT_SEARCH, ONE_SEARCH),
)
def uvc(run: Run, settings: SearchSettings) -> Ingredient:
    """Search, export, fine-tune."""
    from atlas.methods.uvc.ingredient import Searched

    return Searched(settings)


@method(
    "prune-only",
    title="UVC, pruning only",
    summary="The same search without gates: every block stays.",
    role="ablation",
    settings=SearchSettings,
    **_options(SHORT_SEARCH, ONE_SEARCH),
)
def prune_only(run: Run, settings: SearchSettings) -> Ingredient:
    """Counts and multipliers alone."""
    from atlas.methods.uvc.ingredient import Searched

    return Searched(settings, skip=False)


@method(
    "skip-only",
    title="UVC, skipping only",
    summary="The same search with gates alone: blocks stay whole or go.",
    role="ablation",
    settings=SearchSettings,
    **_options(SHORT_SEARCH, ONE_SEARCH),
)
def skip_only(run: Run, settings: SearchSettings) -> Ingredient:
    """Gates and the price of the budget alone."""
    from atlas.methods.uvc.ingredient import Searched

    return Searched(settings, prune=False)


@method(
    "dense-kd",
    title="dense, distilled on",
    summary="The dense model trained for as long as the compressed ones, with the same teacher: the fair upper reference.",
    role="baseline",
    settings=DistillSettings,
    **_options(),
)
def dense_kd(run: Run, settings: DistillSettings) -> Ingredient:
    """Nothing is removed."""
    from atlas.methods.uvc.baselines import Dense

    return Dense(settings)


@method(
    "uniform-mag",
    title="uniform magnitude",
    summary="The same share of the smallest neurons and dims goes everywhere, at once.",
    role="baseline",
    settings=BudgetSettings,
    **_options(),
)
def uniform_mag(run: Run, settings: BudgetSettings) -> Ingredient:
    """One-shot magnitude pruning, layer by layer."""
    from atlas.methods.uvc.baselines import Uniform

    return Uniform(settings)


@method(
    "structured",
    title="structured pruning",
    summary="Heads, dims and neurons go by one criterion: magnitude, Taylor, gradual magnitude, or saliency by layer.",
    role="baseline",
    settings=StructuredSettings,
    **_options({**SHORT, "batches": 1, "jumps": 1}),
)
def structured(run: Run, settings: StructuredSettings) -> Ingredient:
    """Classical criteria on the units that UVC prunes."""
    from atlas.methods.uvc.baselines import Gradual, Structured

    return Gradual(settings) if settings.criterion == "gradual" else Structured(settings)


@method(
    "blind-skip",
    title="blind skipping",
    summary="Evenly spaced or the first blocks stay; also as a shallower model trained from scratch.",
    role="baseline",
    settings=BlindSettings,
    **_options(),
)
def blind_skip(run: Run, settings: BlindSettings) -> Ingredient:
    """What learning where to skip must beat."""
    from atlas.methods.uvc.baselines import Blind

    return Blind(settings)


@method(
    "unstructured",
    title="unstructured pruning",
    summary="Single weights go by magnitude, Taylor or gradual magnitude: sparsity, not computation.",
    role="baseline",
    settings=UnstructuredSettings,
    **{
        **_options({**SHORT, "batches": 1, "jumps": 1}),
        "extra_metrics": (*METRICS, Metric("weights_kept", "weights kept", "lower", ".2f", cost=True)),
    },
)
def unstructured(run: Run, settings: UnstructuredSettings) -> Ingredient:
    """Masks on single weights."""
    from atlas.methods.uvc.baselines import Unstructured

    return Unstructured(settings)


class LatencySettings(Settings):
    """A ViT of random weights (DeiT-Tiny at 224 pixels by default), exported under several plans and timed beside the dense one.

    ``budget`` is that of the pruned plans; ``blocks`` stay in the plan that only skips. ``rounds`` are interleaved forward passes
    of ``batch`` images, after ``warmup`` ones.
    """

    img_size: Annotated[int, Gt(0)] = 224
    patch_size: Annotated[int, Gt(0)] = 16
    embed_dim: Annotated[int, Gt(0)] = 192
    depth: Annotated[int, Ge(2)] = 12
    num_heads: Annotated[int, Gt(0)] = 3
    budget: Budget = 0.5
    blocks: Annotated[int, Ge(1)] = 6
    batch: Annotated[int, Ge(1)] = 4
    rounds: Annotated[int, Ge(2)] = 20
    warmup: Annotated[int, Ge(1)] = 3

    @model_validator(mode="after")
    def _some_blocks_go(self) -> LatencySettings:
        if self.blocks >= self.depth:
            raise ValueError(f"blocks {self.blocks} must be less than depth {self.depth}")
        return self


def _train_latency(run: Run) -> Mapping[str, Any]:
    from atlas.methods.uvc.stage import measure

    return measure(run)


def _evaluate_latency(run: Run) -> Mapping[str, float]:
    from atlas.harness.execute import training_summary

    return training_summary(run)


PLANS = {"uvc": "blocks, heads and neurons", "ragged": "dims and neurons", "skip": "blocks alone"}


@method(
    "compression-latency",
    paper=PAPER,
    task=TASK,
    title="latency of exported plans",
    summary="Measured time of exported models of random weights beside the dense one, against what the formula says.",
    settings=LatencySettings,
    metrics=(
        *(Metric(f"r_phys_{plan}", f"MACs left: {kind}", "neither", ".3f") for plan, kind in PLANS.items()),
        *(
            Metric(f"latency_ratio_{plan}", f"time ÷ dense: {kind}", "lower", ".2f", measured=True)
            for plan, kind in PLANS.items()
        ),
        *(
            Metric(f"latency_excess_{plan}", f"time ÷ dense − MACs left: {kind}", "lower", ".2f", measured=True, table=False)
            for plan, kind in PLANS.items()
        ),
    ),
    smallest={"img_size": 32, "embed_dim": 24, "depth": 3, "blocks": 1, "rounds": 2, "warmup": 1, "batch": 1},
    rehearsal={"rounds": 2, "warmup": 1},
    train=_train_latency,
    evaluate=_evaluate_latency,
)
def compression_latency(run: Run, settings: LatencySettings) -> LatencySettings:
    """Nothing is trained: the settings are all there is."""
    return settings
