"""The protocol of novel view synthesis: scene, field, sampling, schedule. Defaults are the paper's for Blender scenes.

D. Xu et al., *SinNeRF*, ECCV 2022; what the paper leaves open is as in its released configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Len
from pydantic import Field, model_validator

from atlas.settings import Count, Fraction, Natural, Positive, Settings

Triple = tuple[float, float, float]


def _unset(value: object) -> bool:
    """Whether a setting is left out of what determines a run's numbers: it came later, and without it nothing changes."""
    return not value


class SceneSettings(Settings):
    """Where the scene comes from.

    Attributes
    ----------
    kind : str
        ``analytic`` (generated from the run's seed), ``stereo``, ``blender``, ``llff`` or ``dtu``.
    name : str
        Folder of the scene in the data set, or DTU's scan.
    height, width : int
        Size to which images are brought, whatever their own shape, with intrinsics that follow; for ``stereo`` it follows from
        ``downsample``.
    reference : int
        The view to learn from, by its number: at the end of its file's name, or else its place in the file, from 0 (Blender), its
        place by name (LLFF), its id (DTU); for LLFF −1 means the neighbour of the pose nearest to the centre.
    references : tuple of int
        Several views to learn from, one for each seed in turn: seeds are then replicates of the view too. Empty: ``reference``.
    test_split, test_views, test_degrees, test_every : …
        What is held out: numbers of a split; or, with ``test_degrees``, views of the split within so many degrees of the
        reference; or every ``test_every``-th view (LLFF). DTU holds out every second source view.
    test_stride, test_limit : …
        Render every ``test_stride``-th row and column of the test views; of at most ``test_limit`` views.
    depth : {"given", "teacher", "none"}
        The reference's depth: of the data set; rendered by a field that is trained on all views but the test views; or none.
        What is given is compared where it is known; what is rendered, as a whole on patches, 0 being empty.
    near, far : float, optional
        z-depths that bound the rays, where the data set does not say them.
    """

    kind: Literal["analytic", "stereo", "blender", "llff", "dtu"] = "blender"
    name: str = "lego"
    height: Natural = 400
    width: Natural = 400
    downsample: Natural = 6
    reference: Annotated[int, Ge(-1)] = 20
    references: tuple[Annotated[int, Ge(-1)], ...] = Field(default=(), exclude_if=_unset)
    test_split: Literal["train", "test"] = "test"
    test_views: tuple[int, ...] = ()
    test_degrees: Positive | None = 30.0
    test_every: Natural = 8
    test_stride: Natural = 1
    test_limit: Natural | None = None
    depth: Literal["given", "teacher", "none"] = "teacher"
    near: Positive = 2.0
    far: Positive = 6.0

    @model_validator(mode="after")
    def _consistent(self) -> SceneSettings:
        if self.near >= self.far:
            raise ValueError(f"near {self.near} must be below far {self.far}")
        if self.depth == "teacher" and self.kind in ("analytic", "stereo", "dtu"):
            raise ValueError(f"{self.kind} scenes bring their depth; set depth to given")
        if self.depth == "given" and self.kind in ("blender", "llff"):
            raise ValueError(f"{self.kind} scenes bring no depth; set depth to teacher or none")
        if self.references and self.kind in ("analytic", "stereo"):
            raise ValueError(f"{self.kind} scenes have one view to learn from; leave references out")
        return self

    def of_seed(self, seed: int) -> SceneSettings:
        """The same with the reference of a seed, where there are several."""
        if not self.references:
            return self
        return self.model_copy(update={"reference": self.references[seed % len(self.references)]})


class FieldSettings(Settings):
    """The radiance field, by name, with options of its own; ``pair`` trains a coarse and a fine copy."""

    name: Literal["mlp8x256", "mlp3x64", "vm", "grid", "hash"] = "mlp8x256"
    options: dict[str, Any] = Field(default_factory=dict)
    pair: bool = True


class BoundsSettings(Settings):
    """What becomes the field's cube: a ``box``, the reference's ``frustum`` padded in pixels, or ``none``."""

    kind: Literal["none", "box", "frustum"] = "none"
    low: Triple = (-1.5, -1.5, -1.5)
    high: Triple = (1.5, 1.5, 1.5)
    pad: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class SamplerSettings(Settings):
    """Samples along rays; ``test_coarse`` are taken when views are rendered for the table."""

    coarse: Natural = 64
    fine: Count = 64
    test_coarse: Natural = 64
    spacing: Literal["linear", "disparity"] = "linear"
    last: Literal["interval", "opaque"] = "interval"
    noise_std: Annotated[float, Ge(0)] = 1.0

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        least = min(self.coarse, self.test_coarse)
        if self.fine and least < 3:
            raise ValueError(f"fine samples are drawn between at least 3 coarse ones, not {least}")
        return self


class PoseSettings(Settings):
    """Where unseen views are imagined: ``orbit`` (world axes), ``turntable``, ``translation``, or the capture's own ``poses``.

    ``degrees`` are standard deviations: the official angle of 20 is a standard deviation of 10.
    """

    kind: Literal["orbit", "turntable", "translation", "poses"] = "orbit"
    degrees: Annotated[tuple[float, ...], Len(2, 3)] = (10.0, 10.0, 10.0)
    center: Triple = (0.0, 0.0, 0.0)
    sigma: Triple = (0.1, 0.1, 0.1)
    widening: bool = True


class StageSettings(Settings):
    """A stage of the schedule: steps, stride of the patches, learning rate."""

    steps: Natural
    stride: Natural
    lr: Positive


class RaySettings(Settings):
    """Rays of a step; ``patch`` is (rows, columns), ``pool`` the number of warped views."""

    reference: Natural = 4096
    warped: Count = 4096
    pool: Natural = 125
    patch: tuple[int, int] = (64, 64)
    reference_patch: bool = True
    unseen: Literal["fresh", "pool"] = "pool"
    foreground: Fraction = 0.9


class Protocol(Settings):
    """What every row of a table shares.

    Attributes
    ----------
    beta : float
        Where smooth-L1 turns from square to linear, in scene units.
    empty, empty_by : …
        Weight and form of emptiness where a white scene's reference has no depth: ``opacity`` of all its rays, or ``depth`` on
        its patch alone, which the paper's configuration has on Blender scenes only.
    teacher_steps, teacher_stride : int
        Steps of the teacher that renders depth; it renders every ``teacher_stride``-th row and column of the reference.
    shown : int
        Number of test views whose renderings are kept as pictures.
    chunk : int
        Rays rendered at once.
    """

    scene: SceneSettings = SceneSettings()
    field: FieldSettings = FieldSettings()
    bounds: BoundsSettings = BoundsSettings()
    sampler: SamplerSettings = SamplerSettings()
    poses: PoseSettings = PoseSettings()
    rays: RaySettings = RaySettings()
    stages: Annotated[tuple[StageSettings, ...], Len(1)] = (
        StageSettings(steps=62500, stride=6, lr=2e-4),
        StageSettings(steps=62500, stride=4, lr=5e-5),
    )
    decay: Literal["halve", "exponential", "constant"] = "halve"
    restart: bool = True
    beta: Positive = 1.0
    empty: Annotated[float, Ge(0)] = 2.0
    empty_by: Literal["opacity", "depth"] = "depth"
    discriminator: Literal["patch", "narrow", "whole"] = "patch"
    teacher_steps: Natural = 50000
    teacher_stride: Natural = 1
    shown: Natural = 2
    chunk: Natural = 16384
    log_every: Natural = 100
