"""What can be chosen in As-ViT: measures, search, growth, the ranking study, the networks and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from annotated_types import Ge, Lt
from pydantic import Field, model_validator

from atlas.settings import Natural, Positive, Settings

Average = Literal["mean", "median"]
PositionEmbedding = Literal["none", "absolute"]

PROXIES = {
    "length": "length",
    "ntk": "−κ of the kernel",
    "merge_product": "K₂K₃K₄",
    "parameters": "parameters",
    "macs": "MACs",
    "curvature": "−curvature",
    "synflow": "SynFlow",
    "grad_norm": "gradient norm",
}
"""Measures of untrained networks, each oriented so that larger should mean more accurate, and their labels."""
REHEARSED = 4
"""Topologies of a rehearsed ranking study."""


class MeasureSettings(Settings):
    """How untrained networks are measured (Sec. 3.1): draws of the weights, points of the circle, images of the kernel.

    ``average`` reduces the draws; one outlier of the condition number dominates the authors' mean.
    """

    repeats: Natural = 5
    points: Annotated[int, Ge(3)] = 10
    images: Annotated[int, Ge(2)] = 16
    average: Average = "mean"


class SpaceSettings(MeasureSettings):
    """The search space, and the small network in which topologies are measured.

    ``choices`` replaces groups of the published space, for example ``{K1: [2, 3, 4]}`` for a stem of stride 2. ``width`` and
    ``stride`` are the stem's; no stage is wider than ``max_width``.
    """

    width: Natural = 32
    stride: Natural = 4
    max_width: Natural = 1024
    choices: dict[str, tuple[Natural, ...]] = Field(default_factory=dict)


class SearchSettings(SpaceSettings):
    """REINFORCE with the authors' settings, and random search of as many trials (Sec. 3.2).

    ``learning_rate`` is Adam's on the policy's logits. Rewards are relative to the range over ``window`` trials, their baseline
    an average of ``momentum``; ``relative`` scales the measures by their first values before the authors' 1e-6 is added to their
    range. ``check_repeats`` draws of fresh weights compare what the searches found.
    """

    steps: Natural = 500
    learning_rate: Positive = 0.08
    window: Annotated[int, Ge(2)] = 20
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    relative: bool = False
    check_repeats: Natural = 5


class GrowthSettings(MeasureSettings):
    """Growth of the searched topology into a family (Sec. 3.3), and of others of the same size to compare it with.

    ``width0`` and its growth by ``ratios`` are the widths that are measured; the network has ``width_scale`` times as much.
    Candidates of more than ``limit`` parameters are dropped; growth stops once a member has ``target`` parameters, or after
    ``max_steps``. Baselines are within ``tolerance`` of the last member's size, where ``attempts`` draws find such a one.
    ``window`` and ``swin_depths`` describe the manual design.
    """

    width0: Natural = 8
    width_scale: Natural = 4
    ratios: tuple[Positive, ...] = (0.05, 0.10, 0.15, 0.20)
    limit: Natural = 110_000_000
    target: Natural = 80_000_000
    max_steps: Natural = 24
    tolerance: Positive = 0.05
    attempts: Natural = 200
    window: Natural = 7
    swin_depths: tuple[Natural, Natural, Natural, Natural] = (2, 2, 18, 2)


class DesignCostSettings(Settings):
    """Whose design is counted: the published search of ``trials``, and growth, at the published sizes.

    ``repeats``, ``points`` and ``images`` are those of a measure; images have ``channels`` and ``pixels`` a side. Growth ends at
    ``target`` parameters. ``card`` is the one whose hours are told. Training is on ``training_images``, for one epoch.
    """

    trials: Natural = 500
    repeats: Natural = 5
    points: Annotated[int, Ge(3)] = 10
    images: Annotated[int, Ge(2)] = 16
    pixels: Natural = 224
    channels: Natural = 3
    target: Natural = 80_000_000
    card: str = "V100-32GB"
    training_images: Natural = 1_281_167


class RankingSettings(SpaceSettings):
    """Measures of untrained networks against the accuracy of trained ones, over topologies drawn uniformly.

    ``proxy_images`` are the images of the gradient norm; ``draws`` of the bootstrap. ``law_topologies`` further topologies at
    ``law_size`` pixels say how closely length follows the product of the merge kernels.
    """

    topologies: Annotated[int, Ge(4)] = 80
    proxy_images: Natural = 64
    draws: Natural = 2000
    law_topologies: Annotated[int, Ge(3)] = 30
    law_size: Natural = 64


class ModelSettings(Settings):
    """A trained network of the family; ``pos_embed`` adds a learned position embedding after the stem."""

    pos_embed: PositionEmbedding = "none"


class DetectorSettings(Settings):
    """A network as the body of a detector.

    ``architecture`` is the authors' string of topology, depths and width; empty is the published Large. ``stride`` is the stem's.
    Windows of attention keep the side that they have at ``reference`` pixels. ``weights`` is a file, from the checkout's root,
    that a training of a classifier of that architecture left, ``{seed}`` standing for the run's seed; empty begins at the
    published initialisation.
    """

    architecture: str = ""
    reference: Natural = 224
    stride: Natural = 4
    weights: str = ""


class DetectorDesignSettings(Settings):
    """Search and growth on a detector's pictures, at its protocol's size: settings of the two stages of classification."""

    search: SearchSettings = SearchSettings()
    growth: GrowthSettings = GrowthSettings()


class RetokenizeSettings(Settings):
    """``phases``: (progress of training at which it begins, stride of the stem in pixels).

    The default is the paper's: of 300 epochs, 80 at stride 16 and 52 at stride 8.
    """

    phases: tuple[tuple[float, Natural], ...] = ((0.0, 16), (0.267, 8), (0.44, 4))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        require_order(self.phases)
        return self


def require_order(phases: Sequence[tuple[float, int]]) -> None:
    """Refuse phases, (progress at which it begins, stride) each, that do not begin one after the other, from 0 to below 1."""
    begins = [begin for begin, _ in phases]
    if not begins or begins[0] != 0 or begins[-1] >= 1 or any(later <= before for before, later in pairwise(begins)):
        raise ValueError(f"phases {list(phases)} must begin at progress 0 and then at increasing progress below 1")
