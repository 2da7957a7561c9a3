"""Rows of novel view synthesis: SinNeRF, its ablation, its baselines, and the stages that they stand on."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import method, paper
from atlas.methods.sinnerf.settings import EncoderSettings, SinNeRFSettings

PAPER = paper(
    "sinnerf",
    title="SinNeRF: Training Neural Radiance Fields on Complex Scenes from a Single Image",
    citation="D. Xu, Y. Jiang, P. Wang, Z. Fan, H. Shi, Z. Wang, ECCV 2022",
    url="https://arxiv.org/abs/2204.00928",
)
SCENE = {"scene": "scene"}
ENCODED = {"scene": "scene", "encoder": "encoder"}
row = partial(method, paper=PAPER, task="novel-view-synthesis")
stage = partial(row, role="stage", metrics=())
field = partial(row, settings=SinNeRFSettings, plugin="plugin:FieldReconstruction", amounts="plugin:field_amounts", needs=SCENE)

stage(
    "scene",
    title="scene",
    summary="Images, poses and the reference's depth; where there is none, a field trained on the other views renders it.",
    train="stages:make_scene",
    amounts="stages:teacher_amounts",
)
stage(
    "encoder",
    title="encoder",
    summary="The frozen encoder of global structure: DINO's weights, or a substitute that says so.",
    settings=EncoderSettings,
    smallest={"steps": 2},
    rehearsal={"pretrained": False},
    train="stages:make_encoder",
    amounts="stages:encoder_amounts",
)
field(
    "nerf1",
    title="NeRF, one view",
    summary="A radiance field on the colours of the reference alone.",
    role="baseline",
    preset={"depth": 0, "side": 0},
)
field(
    "dsnerf",  # Deng et al., Depth-supervised NeRF, CVPR 2022
    title="DS-NeRF, one view",
    summary="Colours and depth of the reference, with SinNeRF's own depth loss, so that the contrast is the pseudo-views.",
    role="baseline",
    preset={"side": 0},
)
field(
    "dietnerf",  # Jain et al., Putting NeRF on a Diet, ICCV 2021
    title="DietNeRF, one view",
    summary="Colours of the reference, and a frozen encoder's features of whole unseen views.",
    role="baseline",
    preset={"depth": 0, "side": 0, "consistency": 0.1},
    needs=ENCODED,
)
row(
    "dibr",
    title="depth warp",
    summary="The reference warped by its depth, with holes filled: nothing is learned.",
    role="baseline",
    plugin="baselines:DepthImageRendering",
    needs=SCENE,
)
row(
    "all-views",
    title="NeRF, all views",
    summary="The same field on every view that is not held out: an upper bound.",
    role="baseline",
    plugin="plugin:AllViews",
    needs=SCENE,
    amounts="plugin:all_views_amounts",
)
field(
    "sinnerf-geom",
    title="SinNeRF, geometry only",
    summary="Geometry pseudo-labels without semantic ones.",
    role="ablation",
    options={"warped": True},
)
field(
    "sinnerf",  # the weights of the released two-stage schedule
    title="SinNeRF",
    summary="Geometry and semantic pseudo-labels at unseen poses.",
    options={"warped": True},
    preset={"vit": (10.0, 0.0), "adv": (0.0, 0.01)},
    needs=ENCODED,
)
