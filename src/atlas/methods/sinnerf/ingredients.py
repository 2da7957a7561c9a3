"""SinNeRF and the baselines that share its renderer as reconstructions of the task novel-view-synthesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas.errors import UserError
from atlas.harness.seeds import derive_seed
from atlas.methods.sinnerf.bounds import Bounds, Box, Frustum
from atlas.methods.sinnerf.cameras import Array, Camera, RGBDView, all_rays
from atlas.methods.sinnerf.encoders import SemanticEncoder
from atlas.methods.sinnerf.fields import make_field
from atlas.methods.sinnerf.losses import LossWeights, Stage
from atlas.methods.sinnerf.model import SinNeRF
from atlas.methods.sinnerf.objective import Shape
from atlas.methods.sinnerf.poses import OrbitGaussian, PoseList, PosePrior, TranslationGaussian
from atlas.methods.sinnerf.rendering import CoarseFine, Sampler, render_levels
from atlas.methods.sinnerf.supervision import Budget, derive
from atlas.methods.sinnerf.trainer import Options
from atlas.tasks.novel_view_synthesis.protocol import BoundsSettings, PoseSettings, Protocol
from atlas.tasks.novel_view_synthesis.reconstruction import Reconstruction, Rendering
from atlas.tasks.novel_view_synthesis.scene import Scene, Views

if TYPE_CHECKING:
    from atlas.methods.sinnerf.entry import FieldMethod


def camera_of(views: Views, index: int) -> Camera:
    """A view's camera."""
    height, width = views.rgb.shape[1:3]
    return Camera(views.intrinsics[index], views.poses[index], height, width)


def view_of(views: Views, index: int) -> RGBDView:
    """A view with its depth, where it has one."""
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


def weights_of(settings: FieldMethod, stages: int) -> list[LossWeights]:
    """The weights of every stage; a setting is one number, or one for each.

    Raises
    ------
    ValueError
        A list of weights has another length than the schedule.
    """
    found = [LossWeights(depth=0, side=0)] * stages
    for one in fields(LossWeights):
        value = getattr(settings, one.name, None)
        if value is None:
            continue
        values = (value,) * stages if isinstance(value, int | float) else tuple(value)
        if len(values) != stages:
            raise ValueError(f"{one.name} has {len(values)} values for {stages} stages")
        found = [replace(weights, **{one.name: float(weight)}) for weights, weight in zip(found, values, strict=True)]
    return found


class FieldReconstruction(Reconstruction):
    """A radiance field, trained by some of SinNeRF's terms: what sets the rows of the table apart is their weights alone.

    Parameters
    ----------
    protocol : Protocol
        What all rows share.
    settings : FieldMethod
        The weights of this one.
    seed : int
        The run's; rows of one seed start from the same field.
    encoder : SemanticEncoder, optional
        For the terms that need one.
    """

    def __init__(self, protocol: Protocol, settings: FieldMethod, seed: int, encoder: SemanticEncoder | None = None) -> None:
        self.protocol, self.settings, self.seed, self.encoder = protocol, settings, seed, encoder

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
        weights = weights_of(self.settings, len(protocol.stages))
        stages = [Stage(one.steps, one.stride, one.lr, weight) for one, weight in zip(protocol.stages, weights, strict=True)]
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
            seed=self.seed,
            sampler=self._sampler(),
            options=self._options(),
        )

    def _field(self) -> torch.nn.Module:
        settings = self.protocol.field
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "field"))
            made = [make_field(settings.name, **settings.options) for _ in range(2 if settings.pair else 1)]
        return CoarseFine(*made) if settings.pair else made[0]

    def _sampler(self) -> Sampler:
        one = self.protocol.sampler
        return Sampler(one.coarse, one.fine, one.spacing, one.last, None, one.noise_std)

    def _options(self) -> Options:
        protocol = self.protocol
        rays = protocol.rays
        return Options(
            budget=Budget(
                rays.reference,
                rays.warped if self.settings.warped else 0,
                rays.patch,
                rays.reference_patch,
                rays.pool,
                rays.unseen,
                rays.foreground,
            ),
            shape=Shape(
                beta=protocol.beta,
                patch_depth="whole" if protocol.scene.depth == "teacher" else "known",
                empty=protocol.empty,
                empty_by=protocol.empty_by,
            ),
            decay=protocol.decay,
            restart=protocol.restart,
            discriminator=protocol.discriminator,
            consistency_every=self.settings.consistency_every,
        )

    def parts(self) -> dict[str, Any]:
        """The training's state."""
        return {"fitting": self.fitting}

    def step(self, index: int) -> Mapping[str, torch.Tensor]:
        """One step; its terms."""
        return self.fitting.step(index)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The field's parameters."""
        return dict(self.model.field.state_dict())

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up a field's parameters."""
        self.model.field.load_state_dict(tensors)

    def render(self, intrinsics: Array, pose: Array, height: int, width: int) -> Rendering:
        """Render a view with the protocol's number of test samples."""
        model = self.model
        trained, model.sampler = model.sampler, replace(model.sampler, coarse=self.protocol.sampler.test_coarse)
        try:
            seen = model.render(Camera(intrinsics, pose, height, width), chunk=self.protocol.chunk)
        finally:
            model.sampler = trained
        return Rendering(seen.rgb, seen.depth, seen.opacity)

    def facts(self) -> dict[str, float]:
        """Parameters, and rays rendered in all steps."""
        count = sum(parameter.numel() for parameter in self.model.field.parameters())
        return {"parameters": float(count), "rays": float(self.rays())}

    def rays(self) -> int:
        """Rays rendered in all steps."""
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


class AllViews(FieldReconstruction):
    """The same field on every view that is not held out: an upper bound, and the teacher that renders depth.

    Each step takes as many rays as the other rows take of reference and warped views.
    """

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
        """Field and optimiser."""
        return {"field": self.model.field, "optimizer": self.optimizer}

    def step(self, index: int) -> Mapping[str, torch.Tensor]:
        """One step on random rays of random views; the learning rate falls to a tenth."""
        count = self.protocol.rays.reference + self.protocol.rays.warped
        generator = derive(self.seed, "all-views", index)
        view = torch.randint(len(self.views), (count,), generator=generator)
        pixel = torch.randint(self.colours.shape[1], (count,), generator=generator)
        rays = torch.empty(count, 8)
        for place in view.unique().tolist():
            chosen = view == place
            rays[chosen] = self.views[place][pixel[chosen]]
        wanted = self.colours[view, pixel].to(self.device)
        clipped = self.model.clip(rays.to(self.device))
        levels = render_levels(self.model.world_field, clipped, self.model.sampler, derive(self.seed, "jitter", index))
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
        """Rays rendered in all steps."""
        return self.total * (self.protocol.rays.reference + self.protocol.rays.warped)
