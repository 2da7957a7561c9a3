"""SinNeRF and the baselines that share its renderer as reconstructions of the task novel-view-synthesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.registry import Amount, Amounts
from atlas.harness.seeds import derive_seed
from atlas.methods.sinnerf.bounds import Bounds, Box, Frustum
from atlas.methods.sinnerf.cameras import Array, Camera, RGBDView, all_rays
from atlas.methods.sinnerf.encoders import Descriptor, EfficientNetLite0, SemanticEncoder, TimmDino
from atlas.methods.sinnerf.fields import make_field
from atlas.methods.sinnerf.model import SinNeRF
from atlas.methods.sinnerf.orbit import cameras_around
from atlas.methods.sinnerf.poses import OrbitGaussian, PoseList, PosePrior, TranslationGaussian
from atlas.methods.sinnerf.rendering import CoarseFine, render_levels
from atlas.methods.sinnerf.settings import Budget, LossWeights, Options, Sampler, Shape, SinNeRFSettings, Stage
from atlas.methods.sinnerf.supervision import derive
from atlas.methods.sinnerf.tiny_dino import TinyDino, TinyViT
from atlas.nn.work import ENCODING, TRAIN
from atlas.settings import Settings
from atlas.tasks.novel_view_synthesis.entry import ray_amount
from atlas.tasks.novel_view_synthesis.protocol import BoundsSettings, PoseSettings, Protocol
from atlas.tasks.novel_view_synthesis.reconstruction import Reconstruction, Rendering
from atlas.tasks.novel_view_synthesis.scene import Scene, Views

if TYPE_CHECKING:
    from atlas.harness.run import Run


def camera_of(views: Views, index: int) -> Camera:
    """Return the camera of the view with an index."""
    height, width = views.rgb.shape[1:3]
    return Camera(views.intrinsics[index], views.poses[index], height, width)


def view_of(views: Views, index: int) -> RGBDView:
    """The view of that number, with its depth where it has one."""
    return RGBDView(views.rgb[index], None if views.depth is None else views.depth[index], camera_of(views, index))


def prior_of(settings: PoseSettings, scene: Scene) -> PosePrior:
    """Where unseen views are imagined; test poses are never among them."""
    if settings.kind == "translation":
        return TranslationGaussian(settings.sigma, settings.widening)
    if settings.kind == "poses":
        return PoseList(list(scene.train.poses))
    if settings.kind == "turntable":
        return OrbitGaussian(settings.degrees[:2], settings.center, "turntable", settings.widening)
    return OrbitGaussian(settings.degrees, settings.center, "world", settings.widening)


def bounds_of(settings: BoundsSettings, scene: Scene) -> Bounds | None:
    """The part of the world that becomes the field's cube."""
    if settings.kind == "box":
        return Box(settings.low, settings.high)
    return Frustum(camera_of(scene.reference, 0), scene.near, scene.far, settings.pad) if settings.kind == "frustum" else None


def stage_weights(settings: SinNeRFSettings, stages: int) -> list[LossWeights]:
    """The weights of every stage; a setting is one number, or one for each.

    Raises
    ------
    ValueError
        A list of weights has another length than the schedule.
    """
    by_stage: list[dict[str, float]] = [{} for _ in range(stages)]
    for name in LossWeights.model_fields:
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,) * stages
        if len(values) != stages:
            raise ValueError(f"{name} has {len(values)} values for {stages} stages")
        for weights, weight in zip(by_stage, values, strict=True):
            weights[name] = weight
    return [LossWeights(**weights) for weights in by_stage]


def read_encoder(run: Run) -> SemanticEncoder:
    """The frozen encoder that the stage of this run made ready."""
    kind = run.settings_model("encoder").kind
    if kind == "descriptor":
        return Descriptor()
    encoder: TimmDino | EfficientNetLite0 | TinyDino
    if kind == "dino":
        encoder = TimmDino(pretrained=False)
    else:
        encoder = EfficientNetLite0(pretrained=False) if kind == "efficientnet_lite0" else TinyDino(TinyViT())
    encoder.model.load_state_dict(read_tensors(run.weights))
    return encoder


class FieldReconstruction(Reconstruction):
    """A radiance field, trained by some of SinNeRF's terms: what sets the rows of the table apart is their weights alone.

    Rows of one seed start from the same field.

    Parameters
    ----------
    run : Run
        Its protocol is what all rows share.
    settings : SinNeRFSettings
        The weights of this one.
    warped : bool
        Whether rays of the pool of warped views are drawn.
    """

    settings: SinNeRFSettings

    def __init__(self, run: Run, settings: SinNeRFSettings, *, warped: bool = False) -> None:
        super().__init__(run, settings)
        self.protocol: Protocol = run.protocol_model()
        self.warped = warped
        self.encoder = read_encoder(run.needed("encoder")) if "encoder" in run.needs else None

    def start(self, scene: Scene, device: torch.device) -> None:
        """Build the field, and the training on the reference view."""
        self.scene = scene
        self.model = self.make_model(scene, device)
        self.view = view_of(scene.reference, 0)
        self.fitting = self.model.start(self.view)
        self.total = self.fitting.total

    def make_model(self, scene: Scene, device: torch.device) -> SinNeRF:
        """The field under the protocol, with this row's terms."""
        protocol = self.protocol
        weights = stage_weights(self.settings, len(protocol.stages))
        stages = [
            Stage(planned.steps, planned.stride, planned.lr, weight)
            for planned, weight in zip(protocol.stages, weights, strict=True)
        ]
        if isinstance(self.encoder, torch.nn.Module):
            self.encoder.to(device)
        return SinNeRF(
            self._field().to(device),
            bounds=bounds_of(protocol.bounds, scene),
            near=scene.near,
            far=scene.far,
            pose_prior=prior_of(protocol.poses, scene),
            stages=stages,
            encoder=self.encoder,
            white_background=scene.white_background,
            seed=self.run.seed,
            sampler=self._sampler(),
            options=self._options(),
        )

    def _field(self) -> torch.nn.Module:
        """The protocol's field, or pair of fields, initialised from the run's seed."""
        settings = self.protocol.field
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.run.seed, "field"))
            made = [make_field(settings.name, **settings.options) for _ in range(2 if settings.pair else 1)]
        return CoarseFine(*made) if settings.pair else made[0]

    def _sampler(self) -> Sampler:
        """How rays are sampled in training, as the protocol says."""
        return Sampler(**self.protocol.sampler.model_dump(exclude={"test_coarse"}))

    def _options(self) -> Options:
        """The protocol's options, and the row's own."""
        protocol, rays = self.protocol, self.protocol.rays
        return Options(
            budget=Budget(
                reference_rays=rays.reference,
                warped_rays=rays.warped if self.warped else 0,
                **rays.model_dump(exclude={"reference", "warped"}),
            ),
            shape=Shape(
                patch_depth="whole" if protocol.scene.depth == "teacher" else "known",
                **protocol.model_dump(include={"beta", "empty", "empty_by"}),
            ),
            consistency_every=self.settings.consistency_every,
            **protocol.model_dump(include={"decay", "restart", "discriminator"}),
        )

    def parts(self) -> dict[str, Any]:
        """The training, which changes from step to step."""
        return {"fitting": self.fitting}

    def step(self, index: int) -> Mapping[str, torch.Tensor]:
        """Do one step; returns its terms, the total among them, as scalars by name."""
        return self.fitting.step(index)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The field's parameters by name, of any shapes (…): all that rendering needs."""
        return dict(self.model.field.state_dict())

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up the parameters of a trained field, by name, of any shapes (…)."""
        self.model.field.load_state_dict(tensors)

    def render(self, intrinsics: Array, pose: Array, height: int, width: int) -> Rendering:
        """Render a view with the protocol's number of test samples."""
        model = self.model
        trained, model.sampler = model.sampler, Sampler.chosen(model.sampler, coarse=self.protocol.sampler.test_coarse)
        try:
            seen = model.render(Camera(intrinsics, pose, height, width), chunk=self.protocol.chunk)
        finally:
            model.sampler = trained
        return Rendering(seen.rgb, seen.depth, seen.opacity)

    def flight(self, frames: int) -> list[Array]:
        """What the field shows on a path around the reference, at the resolution of the test views."""
        camera = camera_of(self.scene.reference.strided(self.protocol.scene.test_stride), 0)
        path = cameras_around(camera, self.model.pose_prior, self.scene.near, frames=frames)
        return [self.render(camera.K, camera.c2w, camera.height, camera.width).rgb for camera in path]

    def facts(self) -> dict[str, float]:
        """Costs: number of the field's parameters, and of rays that all steps together render."""
        count = sum(parameter.numel() for parameter in self.model.field.parameters())
        return {"parameters": float(count), "rays": float(self.rays())}

    def rays(self) -> int:
        """Number of rays that all steps together render."""
        budget, view = self.model.options.budget, self.view
        total = 0
        for stage in self.model.stages:
            weights = stage.weights
            size = budget.patch_size(view.camera.height, view.camera.width, stage.stride)
            patches = budget.reference_patch + weights.need_unseen_patch
            warped = budget.warped_rays if self.fitting.pool is not None and (weights.depth or weights.rgb_warp) else 0
            total += stage.steps * (budget.reference_rays + warped + patches * size[0] * size[1])
            if weights.consistency:
                total += -(-stage.steps // self.model.options.consistency_every) * size[0] * size[1]
        return total


def field_amounts(run: Run) -> Amounts:
    """Steps, samples along the rays of a mean step and of the fullest one; and steps that look at images with the encoder.

    A rehearsal takes the first step of the first stage, which has all of that stage's terms, DietNeRF's unseen view too. The
    discriminator of a later stage is not in it: it costs less than a thousandth of the field.
    """
    protocol, settings = run.protocol_model(), run.settings_model(run.recipe[0])
    whole = run.limit is None
    stages = protocol.stages if whole else protocol.stages[:1]
    every = settings.consistency_every if whole else 1
    steps = sum(stage.steps for stage in stages)
    total, most, encoded = 0.0, 0, 0.0
    for stage, weights in zip(stages, stage_weights(settings, len(protocol.stages)), strict=False):
        in_every_step, of_whole_view = _rays(run, weights)
        total += stage.steps * (in_every_step + of_whole_view / every)
        most = max(most, in_every_step + of_whole_view)
        encoded += stage.steps / every if of_whole_view else stage.steps * bool(weights.vit)
    mean, fullest = (ray_amount(run, steps, rays) for rays in (total / steps, most))
    return {TRAIN: mean._replace(at_once=fullest.batch), ENCODING: Amount(encoded, 1, 1)}


def _rays(run: Run, weights: LossWeights) -> tuple[int, int]:
    """Rays of every step of a stage with these weights, and further ones of the steps that look at a whole unseen view."""
    rays = run.protocol_model().rays
    patch = rays.patch[0] * rays.patch[1]
    draws_warped = run.method_entries[0].options.get("warped") and rays.pool and (weights.depth or weights.rgb_warp)
    patches = rays.reference_patch + weights.need_unseen_patch
    return rays.reference + (rays.warped if draws_warped else 0) + patches * patch, patch * bool(weights.consistency)


class AllViews(FieldReconstruction):
    """The same field on every view that is not held out: an upper bound, and the teacher that renders depth.

    Each step takes as many rays as the other rows take of reference and warped views. Their colours are all that it learns from,
    so there is nothing to set.
    """

    def __init__(self, run: Run, settings: Settings) -> None:
        super().__init__(run, SinNeRFSettings(depth=0, side=0))

    def start(self, scene: Scene, device: torch.device) -> None:
        """Build the field and keep all views but the tests.

        Raises
        ------
        UserError
            The scene has no views but the reference and the tests.
        """
        if not len(scene.train):
            raise UserError("the scene has no further views to learn from: only captures of many views can have such a row")
        self.scene, self.device = scene, device
        self.model = self.make_model(scene, device)
        cameras = [camera_of(scene.train, index) for index in range(len(scene.train))]
        self.views: Sequence[torch.Tensor] = [all_rays(camera, scene.near, scene.far) for camera in cameras]
        self.colours = torch.from_numpy(np.ascontiguousarray(scene.train.rgb)).flatten(1, 2)
        self.optimizer = torch.optim.Adam(self.model.field.parameters(), lr=self.model.stages[0].lr)
        self.total = sum(stage.steps for stage in self.model.stages)

    def parts(self) -> dict[str, Any]:
        """Field and optimiser, which change from step to step."""
        return {"field": self.model.field, "optimizer": self.optimizer}

    def step(self, index: int) -> Mapping[str, torch.Tensor]:
        """One step on random rays of random views; the learning rate falls to a tenth. Returns scalar losses by name."""
        count = self.protocol.rays.reference + self.protocol.rays.warped
        generator = derive(self.run.seed, "all-views", index)
        view = torch.randint(len(self.views), (count,), generator=generator)
        pixel = torch.randint(self.colours.shape[1], (count,), generator=generator)
        rays = torch.empty(count, 8)
        for number in view.unique().tolist():
            chosen = view == number
            rays[chosen] = self.views[number][pixel[chosen]]
        wanted = self.colours[view, pixel].to(self.device)
        clipped = self.model.clip(rays.to(self.device))
        levels = render_levels(self.model.world_field, clipped, self.model.sampler, derive(self.run.seed, "jitter", index))
        loss = torch.stack([torch.mean((level.seen.rgb - wanted) ** 2) for level in levels]).sum()
        if not torch.isfinite(loss.detach()):
            raise FloatingPointError("the loss is not finite: rgb")
        for group in self.optimizer.param_groups:
            group["lr"] = self.model.stages[0].lr * 0.1 ** (index / self.total)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "rgb": loss.detach()}

    def rays(self) -> int:
        """Number of rays that all steps together render."""
        return self.total * (self.protocol.rays.reference + self.protocol.rays.warped)


def all_views_amounts(run: Run) -> Amounts:
    """Steps of the schedule, and the single rays that :class:`AllViews` draws in each."""
    protocol = run.protocol_model()
    steps = sum(stage.steps for stage in protocol.stages)
    return {TRAIN: ray_amount(run, steps, protocol.rays.reference + protocol.rays.warped)}
