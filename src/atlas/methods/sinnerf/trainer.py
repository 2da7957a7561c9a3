"""The training of a field on one view: every step in full, and the state between steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.sinnerf import objective
from atlas.methods.sinnerf.bounds import Box
from atlas.methods.sinnerf.cameras import Camera, RGBDView, pixel_rays
from atlas.methods.sinnerf.discriminator import PatchDiscriminator, diff_augment, hinge_discriminator, hinge_generator
from atlas.methods.sinnerf.losses import cosine_distance
from atlas.methods.sinnerf.objective import RayGroup, Terms
from atlas.methods.sinnerf.poses import strided_patch
from atlas.methods.sinnerf.rendering import CoarseFine, render_levels
from atlas.methods.sinnerf.scene_model import SceneModel
from atlas.methods.sinnerf.settings import LossWeights, Stage
from atlas.methods.sinnerf.supervision import Reference, Warped, WarpPool, derive, warp_reference
from atlas.nn.apart import apart
from atlas.nn.kinds import require_kind
from atlas.nn.precision import forget_casts
from atlas.nn.work import ENCODING

UNITS = {"millimetres": 1000.0, "centimetres": 100.0}
"""Units in which depth is often given, in metres."""
HELD = 0.5
"""Share of the depth's points that a box must hold."""
MILESTONES = (0.25, 0.5)
"""Shares of a stage after which the learning rate is halved: epochs 500 and 1000 of 2000."""


DISCRIMINATORS: dict[str, Callable[[], PatchDiscriminator]] = {
    "patch": PatchDiscriminator,
    "narrow": lambda: PatchDiscriminator((64, 128)),
    "whole": PatchDiscriminator.whole_patch,
}
SMALLEST_PATCH = {"patch": 16, "narrow": 16, "whole": 64}
"""Rows and columns that leave the discriminator one logit."""


class Fitting:
    """A training in progress. ``step(index)`` does one step; ``state_dict`` and ``load_state_dict`` carry it over interruptions.

    Every draw of a step follows from (seed, purpose, step), so that a training which starts again goes on as if nothing had
    happened.

    Parameters
    ----------
    model : SceneModel
        What is trained, and how.
    view : RGBDView
        What it learns from.

    Raises
    ------
    ValueError
        A term needs depth and the view has none, or none between near and far, or most of it outside the box; or needs the
        reference patch and there is none; or a patch is larger than the image, or smaller than the discriminator needs.
    """

    def __init__(self, model: SceneModel, view: RGBDView) -> None:
        require_kind(RGBDView, "an RGBDView(rgb, depth, camera)", view=view)
        self.model, self.options, self.seed = model, model.options, model.seed
        self.device = model.device
        self.reference = Reference(view, model.near, model.far, self.device)
        self.bounds = [0]
        for stage in model.stages:
            self._check(stage, view)
            self.bounds.append(self.bounds[-1] + stage.steps)
        self.pool: WarpPool | None = None
        budget = self.options.budget
        warps = any(stage.weights.depth or stage.weights.rgb_warp for stage in model.stages) and budget.warped_rays
        from_pool = budget.unseen == "pool" and any(stage.weights.need_unseen_patch for stage in model.stages)
        if (warps or from_pool) and budget.pool and view.depth is not None:
            self.pool = WarpPool(self.reference, model.pose_prior, budget.pool, model.near, model.far, self.seed)
        self.stage = -1
        self.discriminator: nn.Module | None = None
        self.features: Tensor | None = None

    @property
    def total(self) -> int:
        """Number of steps of all stages."""
        return self.bounds[-1]

    def _check(self, stage: Stage, view: RGBDView) -> None:
        """Refuse a stage whose terms need what the view or the patches have not."""
        if stage.weights.need_depth:
            self._check_depth(view)
            self._check_emptiness(stage.weights)
        if self._needs_patch(stage.weights) or stage.weights.consistency:
            size = self.options.budget.patch_size(view.camera.height, view.camera.width, stage.stride)
            smallest = SMALLEST_PATCH[self.options.discriminator]
            if stage.weights.adv and min(size) < smallest:
                raise ValueError(f"the discriminator needs patches of {smallest} × {smallest} pixels, not {size[0]} × {size[1]}")

    def _check_depth(self, view: RGBDView) -> None:
        """Refuse a view without depth between near and far."""
        near, far = self.model.near, self.model.far
        if view.depth is None or not view.valid.any():
            raise ValueError(
                "the view has no valid depth, which the weights ask for (depth, side, rgb_warp, cycle, ray_termination)"
            )
        known = view.depth[view.valid]
        if not ((known >= near) & (known <= far)).any():
            middle = float(np.median(known))
            units = next((name for name, factor in UNITS.items() if near <= middle / factor <= far), "")
            hint = f"it looks like {units}: divide it by {UNITS[units]:g}" if units else "are they in one unit?"
            raise ValueError(
                f"no depth of the view lies between near {near:g} and far {far:g}: it is from {known.min():.4g} to "
                f"{known.max():.4g}; {hint}"
            )
        self._check_box(view)

    def _check_box(self, view: RGBDView) -> None:
        """Refuse a box that most of the depth lies outside of: what is there could never be learned."""
        box = self.model.bounds
        if not isinstance(box, Box) or view.depth is None:
            return
        rows, cols = np.nonzero(view.valid & (view.depth >= self.model.near) & (view.depth <= self.model.far))
        points = view.camera.origin + view.camera.directions(rows, cols) * view.depth[rows, cols, None]
        inside = ((points >= np.array(box.low)) & (points <= np.array(box.high))).all(-1).mean()
        if inside < HELD:
            low, high = (np.percentile(points, share, axis=0).round(2).tolist() for share in (1, 99))
            raise ValueError(
                f"the box {[list(box.low), list(box.high)]} holds {inside:.0%} of the points that the depth shows; "
                f"98 % of them lie in {[low, high]}"
            )

    def _check_emptiness(self, weights: LossWeights) -> None:
        """Refuse emptiness by depth without the patch that it is a term of."""
        shape, patch = self.options.shape, self.options.budget.reference_patch
        if self.model.white_background and weights.depth and shape.empty and shape.empty_by == "depth" and not patch:
            raise ValueError(
                "emptiness by depth is a term of the reference patch, which the budget leaves out: render it, or take "
                "emptiness by opacity or with weight 0"
            )

    def _needs_patch(self, weights: LossWeights) -> bool:
        """Whether a patch is rendered, of the reference or of an unseen pose."""
        return weights.need_unseen_patch or self.options.budget.reference_patch

    def enter(self, stage: int) -> None:
        """Begin a stage: optimiser and discriminator are made anew, at first and where ``restart`` says so."""
        self.stage = stage
        weights = self.model.stages[stage].weights
        if not hasattr(self, "optimizer") or self.options.restart:
            self.optimizer = torch.optim.Adam(self.model.field.parameters(), lr=self.model.stages[stage].lr)
            self.discriminator = None
        if weights.adv and self.discriminator is None:
            self._begin_critic(stage)
        self.features = None

    def _begin_critic(self, stage: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "discriminator", stage).initial_seed() % 2**63)
            made = DISCRIMINATORS[self.options.discriminator]()
        self.discriminator = made.to(self.device)
        self.critic = torch.optim.Adam(made.parameters(), lr=self.options.discriminator_lr * self.model.stages[stage].lr)

    def learning_rate(self, index: int) -> float:
        """Learning rate of the field at a step of the whole training."""
        stage = self.model.stages[self.stage]
        if self.options.decay == "exponential":
            return stage.lr * 0.1 ** (index / max(1, self.total))
        done = (index - self.bounds[self.stage]) / max(1, stage.steps)
        halvings = sum(done >= milestone for milestone in MILESTONES) if self.options.decay == "halve" else 0
        return stage.lr * 0.5**halvings

    @torch.inference_mode(False)
    @torch.enable_grad()
    def step(self, index: int) -> dict[str, Tensor]:
        """One step: the field first, then the discriminator. Returns the unweighted terms and the total as scalars.

        Raises
        ------
        FloatingPointError
            A term is not finite; the message names it.
        """
        current = next(stage for stage in range(len(self.model.stages)) if index < self.bounds[stage + 1])
        if current != self.stage:
            self.enter(current)
        stage = self.model.stages[current]
        groups, rows, cols = self._groups(index, stage)
        self._render(index, groups)
        terms = self._terms(index, stage, groups)
        total = terms.total()
        rate = self.learning_rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        forget_casts()
        values = {name: value.detach() for name, value in terms.values.items()}
        if stage.weights.adv:
            values["discriminator"] = self._criticise(index, groups["unseen"], rows, cols, rate)
        return {"loss": total.detach(), **values}

    def unmoved(self) -> list[str]:
        """Which fields the last step asked, and gave gradients of nothing but zeros: "the field", or those of a pair."""
        field = self.model.field
        fields = {"the field": field}
        if isinstance(field, CoarseFine):
            fields = {"the coarse field": field.coarse, "the fine field": field.fine}
        unmoved = []
        for name, each in fields.items():
            gradients = [parameter.grad for parameter in each.parameters() if parameter.grad is not None]
            if gradients and not any(bool(gradient.any()) for gradient in gradients):
                unmoved.append(name)
        return unmoved

    def _groups(self, index: int, stage: Stage) -> tuple[dict[str, RayGroup], Tensor, Tensor]:
        """The rays of a step by kind, and the rows and columns of its patches."""
        reference, budget, weights = self.reference, self.options.budget, stage.weights
        groups = {"random": self._reference_group(reference.draw(budget, derive(self.seed, "pixels", index)))}
        if self.pool is not None and budget.warped_rays and (weights.depth or weights.rgb_warp):
            rays, depth, rgb = self.pool.draw(budget.warped_rays, derive(self.seed, "warped", index))
            groups["warped"] = RayGroup(rays, rgb, depth)
        rows = cols = torch.zeros(0, dtype=torch.int64)
        if self._needs_patch(weights):
            size = budget.patch_size(reference.height, reference.width, stage.stride)
            rows, cols = strided_patch(reference.height, reference.width, size, stage.stride, derive(self.seed, "patches", index))
            if budget.reference_patch:
                groups["patch"] = self._reference_group(reference.flat(rows, cols), size)
        if weights.need_unseen_patch:
            groups["unseen"] = self._unseen_group(index, rows, cols)
        if weights.consistency and index % self.options.consistency_every == 0:
            groups["whole"] = self._whole_group(index, budget.patch_size(reference.height, reference.width, stage.stride))
        return groups, rows, cols

    def _reference_group(self, flat: Tensor, size: tuple[int, int] | None = None) -> RayGroup:
        """Pixels of the reference by their flat indices (n): single ones, or a patch of ``size`` = (p, q)."""
        reference = self.reference
        return RayGroup(reference.rays[flat], reference.rgb[flat], reference.depth[flat], reference.valid[flat], size)

    def _unseen_camera(self, index: int) -> Camera:
        """The reference's camera at the unseen pose of a step."""
        sampled = self.model.pose_prior.sample(
            self.reference.camera, index / max(1, self.total), derive(self.seed, "poses", index)
        )
        return self.reference.camera.moved(sampled.c2w)

    def _unseen_group(self, index: int, rows: Tensor, cols: Tensor) -> RayGroup:
        """The patch of an unseen pose at the reference patch's place, with the depth that is warped there."""
        warped: Warped | None = None
        if self.options.budget.unseen == "pool" and self.pool is not None:
            chosen = int(torch.randint(len(self.pool.views), (1,), generator=derive(self.seed, "poses", index)))
            warped = self.pool.views[chosen]
            camera = warped.camera
        else:
            camera = self._unseen_camera(index)
            if self.model.stages[self.stage].weights.side:
                warped = warp_reference(self.reference, camera)
        row, col = torch.meshgrid(rows, cols, indexing="ij")
        rays = pixel_rays(camera, row.numpy(), col.numpy(), self.model.near, self.model.far).to(self.device)
        size = (len(rows), len(cols))
        if warped is None:
            return RayGroup(rays, size=size, camera=camera)
        flat = self.reference.flat(rows, cols)
        return RayGroup(rays, warped.rgb[flat], warped.depth[flat], warped.valid[flat], size, camera)

    def _whole_group(self, index: int, size: tuple[int, int]) -> RayGroup:
        """A whole unseen view at low resolution, for DietNeRF's term."""
        camera = self._unseen_camera(index).resized(*size)
        rows, cols = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        rays = pixel_rays(camera, rows.numpy(), cols.numpy(), self.model.near, self.model.far)
        return RayGroup(rays.to(self.device), size=size, camera=camera)

    def _render(self, index: int, groups: Mapping[str, RayGroup]) -> None:
        """Render all rays of the step in one batch."""
        rays = self.model.clip(torch.cat([group.rays for group in groups.values()]))
        generator = derive(self.seed, "jitter", index)
        levels = render_levels(self.model.world_field, rays, self.model.sampler, generator)
        first = 0
        for group in groups.values():
            group.split_off(levels, first)
            first += len(group.rays)

    def _terms(self, index: int, stage: Stage, groups: Mapping[str, RayGroup]) -> Terms:
        """All terms of a step, of what its rays saw."""
        terms, shape, model = Terms(stage.weights), self.options.shape, self.model
        for name in ("random", "patch"):
            if name in groups:
                objective.photometric(terms, groups[name])
                objective.reference_depth(terms, groups[name], shape, model.white_background)
        if "warped" in groups:
            objective.warped_rays(terms, groups["warped"], shape)
        if "unseen" in groups:
            unseen = groups["unseen"]
            objective.unseen_geometry(terms, unseen, self.reference, shape)
            objective.smooth_patches(terms, [groups[name] for name in ("patch", "unseen") if name in groups], shape, model.near)
            if stage.weights.vit:
                for level in unseen.levels:
                    seen = self._encode(unseen.image(level.seen))
                    terms.add("vit", functional.mse_loss(seen, self._reference_features(index, stage)))
            if stage.weights.adv:
                assert self.discriminator is not None
                self.discriminator.requires_grad_(False)
                fake = diff_augment(
                    unseen.image(unseen.levels[-1].seen), derive(self.seed, "augment", index), self.options.augment
                )
                terms.add("adv", hinge_generator(self.discriminator(fake)))
                self.discriminator.requires_grad_(True)
        if "whole" in groups:
            whole = groups["whole"]
            wanted = self._whole_features(whole.size)
            for level in whole.levels:
                terms.add("consistency", cosine_distance(self._encode(whole.image(level.seen)), wanted))
        return terms

    def _encode(self, image: Tensor) -> Tensor:
        """The frozen encoder's features (b, dim) of images (b, 3, h, w)."""
        assert self.model.encoder is not None
        return apart(ENCODING, self.model.encoder, image)

    def _reference_features(self, index: int, stage: Stage) -> Tensor:
        """Features of a random real patch of the reference, kept for about twenty steps."""
        generator = derive(self.seed, "features", index)
        if self.features is None or float(torch.rand(1, generator=generator)) < self.options.refresh:
            reference = self.reference
            size = self.options.budget.patch_size(reference.height, reference.width, stage.stride)
            rows, cols = strided_patch(reference.height, reference.width, size, stage.stride, generator)
            with torch.no_grad():
                self.features = self._encode(reference.image(rows, cols))
        return self.features

    def _whole_features(self, size: tuple[int, int] | None) -> Tensor:
        """Features of the whole reference at low resolution; computed anew, since it is cheap beside a rendering."""
        image = self.reference.rgb.T.reshape(1, 3, self.reference.height, self.reference.width)
        with torch.no_grad():
            return self._encode(functional.interpolate(image, size=size, mode="area"))

    def _criticise(self, index: int, unseen: RayGroup, rows: Tensor, cols: Tensor, rate: float) -> Tensor:
        """One step of the discriminator, on an independent real patch and the patch that was just rendered."""
        assert self.discriminator is not None
        reference, stage = self.reference, self.model.stages[self.stage]
        generator = derive(self.seed, "real", index)
        real_rows, real_cols = strided_patch(reference.height, reference.width, (len(rows), len(cols)), stage.stride, generator)
        real = diff_augment(reference.image(real_rows, real_cols), generator, self.options.augment)
        fake = diff_augment(unseen.image(unseen.levels[-1].seen).detach(), generator, self.options.augment)
        loss = hinge_discriminator(self.discriminator(real), self.discriminator(fake))
        for group in self.critic.param_groups:
            group["lr"] = self.options.discriminator_lr * rate
        self.critic.zero_grad(set_to_none=True)
        loss.backward()
        self.critic.step()
        forget_casts()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything that changes from step to step, as tensors and plain values."""
        state: dict[str, Any] = {"stage": self.stage, "field": self.model.field.state_dict()}
        if self.stage >= 0:
            state |= {"optimizer": self.optimizer.state_dict(), "features": self.features}
        if self.discriminator is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "critic": self.critic.state_dict()}
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that :meth:`state_dict` returned, and that stays as it is."""
        self.model.field.load_state_dict(state["field"])
        if state["stage"] < 0:
            return
        self.enter(state["stage"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.features = None if state["features"] is None else state["features"].to(self.device)
        if "discriminator" in state:
            if self.discriminator is None:  # kept from an earlier stage, by a schedule without restarts
                self._begin_critic(self.stage)
            assert self.discriminator is not None
            self.discriminator.load_state_dict(state["discriminator"])
            self.critic.load_state_dict(copy.deepcopy(state["critic"]))
