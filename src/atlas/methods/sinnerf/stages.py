"""Stages that other runs build upon: the scene with its depth, and the frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas.datasets import get_dataset
from atlas.errors import AtlasError
from atlas.harness.files import write_json, write_tensors
from atlas.harness.registry import Amount, Amounts
from atlas.harness.resume import training
from atlas.harness.seeds import derive_seed, generator, pick_device
from atlas.methods.sinnerf.encoders import Descriptor, EfficientNetLite0, FrozenEncoder, TimmDino
from atlas.methods.sinnerf.plugin import AllViews, camera_of, view_of
from atlas.methods.sinnerf.scene_model import RenderResult
from atlas.methods.sinnerf.tiny_dino import SelfDistiller, TinyDino, nearest_neighbour_accuracy
from atlas.methods.sinnerf.warping import forward_warp
from atlas.nn.work import TRAIN
from atlas.settings import Settings, merge
from atlas.tasks.novel_view_synthesis.analytic import analytic_scene
from atlas.tasks.novel_view_synthesis.captures import blender_scene, dtu_scene, llff_scene, stereo_scene
from atlas.tasks.novel_view_synthesis.entry import ray_amount
from atlas.tasks.novel_view_synthesis.metrics import psnr
from atlas.tasks.novel_view_synthesis.scene import Scene, save_scene
from atlas.tasks.novel_view_synthesis.training import save_depth, save_picture, shown_views

if TYPE_CHECKING:
    from atlas.harness.run import Run

TEACHER = "teacher"
"""Loop of the field that renders the depth of the reference."""
OPAQUE_ENOUGH = 0.5
"""Opacity above which the teacher's depth is that of a surface."""
CROPS = 300
"""Crops of photographs on which the distilled encoder is judged."""
SKIMAGE_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
SKLEARN_PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def make_scene(run: Run) -> dict[str, Any]:
    """Read or generate the scene, give its reference a depth, and see what a warp of it reaches in the test views."""
    settings = run.protocol_model().scene
    scene = _read(run)
    tests = len(scene.test) if settings.test_limit is None else min(settings.test_limit, len(scene.test))
    scene.test = scene.test.pick(np.linspace(0, len(scene.test) - 1, tests).round().astype(int)).strided(settings.test_stride)
    summary: dict[str, Any] = {}
    if settings.depth == "none":
        scene.reference.depth, scene.depth_source = None, "none"
    elif scene.reference.depth is None:
        summary = _teach(run, scene)
    view = view_of(scene.reference, 0)
    if view.depth is not None:
        cameras = [camera_of(scene.test, index) for index in range(len(scene.test))]
        warps = [forward_warp(view.rgb, view.depth, view.camera, camera) for camera in cameras]
        scene.covisible = np.stack([warp.valid for warp in warps])
        reached = [psnr(warp.rgb, scene.test.rgb[index], warp.valid) for index, warp in enumerate(warps)]
        summary |= {"covered": float(scene.covisible.mean()), "covered_psnr": float(np.mean(reached))}
    save_scene(scene, run.checkpoint)
    save_picture(run, "reference.png", view.rgb)
    for index in shown_views(scene, run.protocol_model().shown):
        save_picture(run, f"view{index}.png", scene.test.rgb[index])
        if scene.test.depth is not None:
            save_depth(run, f"depth{index}.png", scene.test.depth[index], scene)
    return summary


def teacher_amounts(run: Run) -> Amounts:
    """The teacher's steps; like the row of all views it draws single rays only."""
    protocol = run.protocol_model()
    return {TEACHER: ray_amount(run, protocol.teacher_steps, protocol.rays.reference + protocol.rays.warped)}


def _read(run: Run) -> Scene:
    """The protocol's scene: generated from the run's seed, or read from its data."""
    settings = run.protocol_model().scene.of_seed(run.seed)
    if settings.kind == "analytic":
        return analytic_scene(run.seed)
    if settings.kind == "stereo":
        return stereo_scene(run.data_folder, get_dataset(run.data).facts, settings)
    if settings.kind == "dtu":
        return dtu_scene(run.data_folder, settings)
    read = {"blender": blender_scene, "llff": llff_scene}[settings.kind]
    return read(run.data_folder / settings.name, settings)


def _teach(run: Run, scene: Scene) -> dict[str, Any]:
    """Train the protocol's field on all views but the tests, and render the reference's depth: D/A where A > ½, else 0."""
    protocol = run.protocol_model()
    only_stage = merge(run.protocol["stages"][0], {"steps": protocol.teacher_steps})
    taught = replace(run, seed=derive_seed(run.seed, "teacher"), protocol=merge(run.protocol, {"stages": [only_stage]}))
    teacher = AllViews(taught, Settings())
    teacher.start(scene, pick_device(run.resources.device))
    loop = training(run, teacher.total, teacher.parts(), phase=TEACHER)
    for index in loop:
        try:
            terms = teacher.step(index)
        except FloatingPointError as error:
            raise AtlasError(f"{run.cell}: teacher, step {index + 1}: {error}") from error
        if (index + 1) % protocol.log_every == 0:
            loop.log(loss=float(terms["loss"]))
    seen = _strided_rendering(teacher, scene, protocol.teacher_stride)
    enough = OPAQUE_ENOUGH if run.limit is None else 0.0  # a rehearsed teacher has hardly begun
    depth = np.where(seen.opacity > enough, seen.surface_depth, 0.0)
    scene.reference.depth, scene.depth_source = depth[None].astype(np.float64), "multiview"
    quality = []
    for index in range(len(scene.test)):
        height, width = scene.test.rgb.shape[1:3]
        rendered = teacher.render(scene.test.intrinsics[index], scene.test.poses[index], height, width)
        quality.append(psnr(rendered.rgb, scene.test.rgb[index]))
    opacity = torch.from_numpy(np.ascontiguousarray(seen.opacity))
    write_tensors(run.weights, {**teacher.tensors(), "reference_opacity": opacity})
    return {"teacher_psnr": float(np.mean(quality)), "teacher_views": len(scene.train)}


def _strided_rendering(teacher: AllViews, scene: Scene, stride: int) -> RenderResult:
    """The reference as the teacher renders it: only each ``stride``-th row and column, which are repeated to full size."""
    small = scene.reference.strided(stride)
    seen = teacher.model.render(camera_of(small, 0), chunk=teacher.protocol.chunk)
    height, width = scene.reference.rgb.shape[1:3]
    return RenderResult(*(values.repeat(stride, 0).repeat(stride, 1)[:height, :width] for values in seen))


def make_encoder(run: Run) -> dict[str, Any]:
    """Get the frozen encoder ready: read the weights of DINO or of a substitute, or distil the small substitute."""
    settings = run.settings_model("encoder")
    if settings.kind == "dino":
        encoder = TimmDino(pretrained=settings.pretrained)
        write_tensors(run.weights, encoder.model.state_dict())
        return {"encoder_dim": encoder.dim}
    if settings.kind == "descriptor":
        write_tensors(run.weights, {"dim": torch.tensor(Descriptor.dim)})
        return {"encoder_dim": Descriptor.dim}
    if settings.kind == "efficientnet_lite0":
        return _read_lite0(run)
    return _distil(run)


def _read_lite0(run: Run) -> dict[str, Any]:
    """Read the weights that the package brings; they are judged on the photographs, as the distilled encoder is."""
    pretrained = run.settings_model("encoder").pretrained
    encoder = EfficientNetLite0(pretrained=pretrained)
    write_tensors(run.weights, encoder.model.state_dict())
    if not pretrained:
        return {"encoder_dim": encoder.dim}
    return _judged(run, SelfDistiller(photographs()), {"accuracy": encoder})


def _distil(run: Run) -> dict[str, Any]:
    """Train the small substitute on the photographs."""
    settings = run.settings_model("encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(run.seed, "tiny-dino"))
        distiller = SelfDistiller(photographs())
        untrained = TinyDino(distiller.student)
    loop = training(run, settings.steps, {"distiller": distiller, "optimizer": distiller.optimizer})
    for index in loop:
        loss = distiller.step(generator(run.seed, "distil", index))
        if (index + 1) % 10 == 0 or index + 1 == settings.steps:
            loop.log(loss=loss)
    encoder = distiller.encoder()
    write_tensors(run.weights, encoder.model.state_dict())
    return _judged(run, distiller, {"accuracy": encoder, "accuracy_untrained": untrained})


def _judged(run: Run, distiller: SelfDistiller, encoders: Mapping[str, FrozenEncoder]) -> dict[str, Any]:
    """How well encoders tell the photographs apart by their crops, by the names under which ``encoder.json`` says it."""
    known: dict[str, Any] = {"encoder_dim": next(iter(encoders.values())).dim}
    for name, encoder in encoders.items():
        known[name] = nearest_neighbour_accuracy(encoder, distiller, CROPS, generator(run.seed, "crops"))
    write_json(run.results / "encoder.json", known)
    return known


def encoder_amounts(run: Run) -> Amounts:
    """Return how much the encoder's self-distillation trains, in steps."""
    return {TRAIN: Amount(run.settings_model("encoder").steps, 1, 1)}


def photographs() -> list[torch.Tensor]:
    """Nine photographs that the libraries bundle, (3, h, w) in [0, 1], at a quarter of their size; none is of a demo scene."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    images = [getattr(skimage.data, name)() for name in SKIMAGE_PHOTOGRAPHS]
    images += [load_sample_image(name) for name in SKLEARN_PHOTOGRAPHS]
    reduced = []
    for image in images:
        tensor = torch.from_numpy(np.array(image[..., :3])).permute(2, 0, 1).float() / 255
        factor = max(1, min(tensor.shape[1:]) // 128)
        reduced.append(torch.nn.functional.avg_pool2d(tensor, factor))
    return reduced
