"""Plugs SinNeRF, its ablation, its baselines and the stages they stand on into novel view synthesis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from atlas.harness.registry import Amount, Amounts, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.novel_view_synthesis.entry import ray_amount

if TYPE_CHECKING:
    from atlas.methods.sinnerf.baselines import DepthImageRendering
    from atlas.methods.sinnerf.ingredients import AllViews, FieldReconstruction

PAPER = paper(
    "sinnerf",
    title="SinNeRF: Training Neural Radiance Fields on Complex Scenes from a Single Image",
    citation="D. Xu, Y. Jiang, P. Wang, Z. Fan, H. Shi, Z. Wang, ECCV 2022",
    url="https://arxiv.org/abs/2204.00928",
)
TASK = "novel-view-synthesis"
SCENE = {"scene": "scene"}
ENCODED = {"scene": "scene", "encoder": "encoder"}
Coefficient = Annotated[float, Ge(0)]
Weight = Coefficient | tuple[Coefficient, ...]


class FieldMethod(Settings):
    """A radiance field on the colours of the reference; a weight is one number, or one for each stage of the schedule."""

    rgb: Weight = 1.0
    warped: bool = False
    consistency_every: Annotated[int, Gt(0)] = 10


class DepthMethod(FieldMethod):
    """With the reference's depth: smooth-L1 (``depth``), and DS-NeRF's own likelihood of the ray's end (``ray_termination``)."""

    depth: Weight = 8.0
    ray_termination: Weight = 0.0


class DietMethod(FieldMethod):
    """DietNeRF: features of unseen views should be those of the reference, every tenth step."""

    consistency: Weight = 0.1


class GeometryMethod(FieldMethod):
    """Geometry pseudo-labels: ``depth`` also of a pool of warped views, ``side`` on a patch of an unseen view."""

    depth: Weight = 8.0
    side: Weight = 8.0
    rgb_warp: Weight = 0.0
    cycle: Weight = 0.0
    warped: bool = True


class SinNerfMethod(GeometryMethod):
    """All terms, with the weights of the released two-stage schedule."""

    smooth: Weight = 0.0
    vit: Weight = (10.0, 0.0)
    adv: Weight = (0.0, 0.01)


class EncoderSettings(Settings):
    """The frozen encoder: DINO's ViT-S/16 through timm, the small substitute that is distilled on the spot, or a descriptor.

    ``pretrained`` false leaves DINO's weights random, for rehearsals.
    """

    kind: Literal["dino", "tiny_dino", "descriptor"] = "dino"
    pretrained: bool = True
    steps: Annotated[int, Gt(0)] = 800


def _field(run: Run, settings: FieldMethod) -> FieldReconstruction:
    from atlas.methods.sinnerf.ingredients import FieldReconstruction

    encoder = None
    if "encoder" in run.needs:
        from atlas.methods.sinnerf.stages import read_encoder

        encoder = read_encoder(run.needed("encoder"))
    return FieldReconstruction(run.protocol_model(), settings, run.seed, encoder)


TEACHER = "teacher"
"""Loop of the field that renders the depth of the reference."""


def _teacher_amounts(run: Run) -> Amounts:
    """The teacher's steps; like the row of all views it draws single rays only."""
    protocol = run.protocol_model()
    return {TEACHER: ray_amount(run, protocol.teacher_steps, protocol.rays.reference + protocol.rays.warped)}


def _all_views_amounts(run: Run) -> Amounts:
    protocol = run.protocol_model()
    steps = sum(stage.steps for stage in protocol.stages)
    return {TRAIN: ray_amount(run, steps, protocol.rays.reference + protocol.rays.warped)}


def _encoder_amounts(run: Run) -> Amounts:
    """Steps of the distillation, if there is one."""
    return {TRAIN: Amount(run.settings_model("encoder").steps, 1, 1)}


def _make_scene(run: Run) -> Mapping[str, Any]:
    from atlas.methods.sinnerf.stages import make_scene

    return make_scene(run)


@method(
    "scene",
    paper=PAPER,
    task=TASK,
    title="scene",
    summary="Images, poses and the reference's depth; where there is none, a field trained on the other views renders it.",
    role="stage",
    metrics=(),
    amounts=_teacher_amounts,
    train=_make_scene,
)
def scene(run: Run, settings: Settings) -> Settings:
    """The protocol says it all."""
    return settings


def _make_encoder(run: Run) -> Mapping[str, Any]:
    from atlas.methods.sinnerf.stages import make_encoder

    return make_encoder(run)


@method(
    "encoder",
    paper=PAPER,
    task=TASK,
    title="encoder",
    summary="The frozen encoder of global structure: DINO's weights, or a substitute that says so.",
    role="stage",
    settings=EncoderSettings,
    metrics=(),
    train=_make_encoder,
    smallest={"steps": 2},
    rehearsal={"pretrained": False},
    amounts=_encoder_amounts,
)
def encoder(run: Run, settings: EncoderSettings) -> EncoderSettings:
    """The settings are all there is."""
    return settings


@method(
    "nerf1",
    paper=PAPER,
    task=TASK,
    title="NeRF, one view",
    summary="A radiance field on the colours of the reference alone.",
    role="baseline",
    settings=FieldMethod,
    needs=SCENE,
)
def nerf1(run: Run, settings: FieldMethod) -> FieldReconstruction:
    """Colours only."""
    return _field(run, settings)


@method(
    "dsnerf",
    paper=PAPER,
    task=TASK,
    title="DS-NeRF, one view",
    summary="Colours and depth of the reference, with SinNeRF's own depth loss, so that the contrast is the pseudo-views.",
    role="baseline",
    settings=DepthMethod,
    needs=SCENE,
)
def dsnerf(run: Run, settings: DepthMethod) -> FieldReconstruction:
    """Deng et al., Depth-supervised NeRF, CVPR 2022."""
    return _field(run, settings)


@method(
    "dietnerf",
    paper=PAPER,
    task=TASK,
    title="DietNeRF, one view",
    summary="Colours of the reference, and a frozen encoder's features of whole unseen views.",
    role="baseline",
    settings=DietMethod,
    needs=ENCODED,
)
def dietnerf(run: Run, settings: DietMethod) -> FieldReconstruction:
    """Jain et al., Putting NeRF on a Diet, ICCV 2021."""
    return _field(run, settings)


@method(
    "dibr",
    paper=PAPER,
    task=TASK,
    title="depth warp",
    summary="The reference warped by its depth, with holes filled: nothing is learned.",
    role="baseline",
    needs=SCENE,
)
def dibr(run: Run, settings: Settings) -> DepthImageRendering:
    """Depth-image-based rendering."""
    from atlas.methods.sinnerf.baselines import DepthImageRendering

    return DepthImageRendering()


@method(
    "all-views",
    paper=PAPER,
    task=TASK,
    title="NeRF, all views",
    summary="The same field on every view that is not held out: an upper bound.",
    role="baseline",
    settings=FieldMethod,
    amounts=_all_views_amounts,
    needs=SCENE,
)
def all_views(run: Run, settings: FieldMethod) -> AllViews:
    """The oracle."""
    from atlas.methods.sinnerf.ingredients import AllViews

    return AllViews(run.protocol_model(), settings, run.seed)


@method(
    "sinnerf-geom",
    paper=PAPER,
    task=TASK,
    title="SinNeRF, geometry only",
    summary="Geometry pseudo-labels without semantic ones.",
    role="ablation",
    settings=GeometryMethod,
    needs=SCENE,
)
def sinnerf_geom(run: Run, settings: GeometryMethod) -> FieldReconstruction:
    """Warped depth at unseen poses."""
    return _field(run, settings)


@method(
    "sinnerf",
    paper=PAPER,
    task=TASK,
    title="SinNeRF",
    summary="Geometry and semantic pseudo-labels at unseen poses.",
    settings=SinNerfMethod,
    needs=ENCODED,
)
def sinnerf(run: Run, settings: SinNerfMethod) -> FieldReconstruction:
    """Warped depth, smoothness, a discriminator of patches and a frozen encoder."""
    return _field(run, settings)
