"""A radiance field of one scene, with what its training needs to know and the rendering of any pose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from atlas.methods.sinnerf.bounds import Bounded, Bounds, Box, Frustum, as_bounds
from atlas.methods.sinnerf.cameras import Array, Camera, all_rays
from atlas.methods.sinnerf.encoders import SemanticEncoder
from atlas.methods.sinnerf.orbit import save_animation
from atlas.methods.sinnerf.poses import PosePrior
from atlas.methods.sinnerf.rendering import CoarseFine, render_rays
from atlas.methods.sinnerf.settings import LossWeights, Options, Sampler, Stage
from atlas.nn.bars import track
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_callable, require_kind, require_sequence, require_whole


class RenderResult(NamedTuple):
    """A rendered view: ``rgb`` (height, width, 3), not clipped; ``depth`` and ``opacity`` (height, width). Depth is Σ w·t."""

    rgb: Array
    depth: Array
    opacity: Array

    @property
    def surface_depth(self) -> Array:
        """The depth over the opacity: where the surface is that is seen at all."""
        return self.depth / np.maximum(self.opacity, 1e-6)


def _checked_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    if isinstance(stages, Stage):
        raise TypeError("stages is one Stage; a sequence of them is needed: [stage]")
    require_sequence("a sequence of Stage(steps, stride, lr, weights)", stages=stages)
    checked = []
    for index, stage in enumerate(stages):
        require_sequence("a Stage(steps, stride, lr, weights)", **{f"stages[{index}]": stage})
        checked.append(Stage(*stage))
        require_whole(steps=checked[-1].steps, stride=checked[-1].stride)
        require_numbers(lr=checked[-1].lr)
        require_kind(LossWeights, "LossWeights(…)", weights=checked[-1].weights)
    return tuple(checked)


class SceneModel:
    """A radiance field, its scene and its schedule, and how it is rendered; :class:`.model.SinNeRF` trains it.

    Parameters
    ----------
    field : nn.Module
        A radiance field (:mod:`.fields`), or a :class:`.rendering.CoarseFine` pair. It is trained in place, on its own device.
    bounds : Bounds or array, optional
        The part of the world that becomes the field's cube [−1, 1]³: a (2, 3) array of corners, a :class:`.bounds.Box` or a
        :class:`.bounds.Frustum`; ``None`` hands world points to the field.
    near, far : float
        z-depths between which rays are sampled.
    pose_prior : PosePrior
        Where unseen views are imagined.
    stages : sequence of Stage
        The schedule.
    encoder : SemanticEncoder, optional
        For the terms ``vit`` and ``consistency``.
    white_background : bool
        Whether what is not opaque is white, and what has no depth is empty.
    seed : int
        Of every draw; the field's initialisation is the caller's.
    sampler : Sampler, optional
        Samples along the rays; by default 64, with 64 more for a pair of fields.
    options : Options, optional
        Rays per step, variants of the terms, decay of the learning rate.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        ``near`` is not positive or not below ``far``; there is no stage; a stage has no step or no positive learning rate; a
        term needs an encoder and there is none; or the field's weights are not float32, as rays are.
    """

    def __init__(
        self,
        field: nn.Module,
        *,
        bounds: Bounds | ArrayLike | None,
        near: float,
        far: float,
        pose_prior: PosePrior,
        stages: Sequence[Stage],
        encoder: SemanticEncoder | None = None,
        white_background: bool = False,
        seed: int = 0,
        sampler: Sampler | None = None,
        options: Options | None = None,
    ) -> None:
        require_kind(nn.Module, "a radiance field, such as make_field('vm'),", field=field)
        require_numbers(near=near, far=far)
        require_whole(seed=seed)
        require_callable("a prior of poses, such as OrbitGaussian(10),", pose_prior=getattr(pose_prior, "sample", pose_prior))
        if options is not None:
            require_kind(Options, "Options(…)", options=options)
        if sampler is not None:
            require_kind(Sampler, "Sampler(…)", sampler=sampler)
            if white_background and sampler.background not in (None, 1.0):
                raise ValueError(f"white_background contradicts Sampler(background={sampler.background:g}): give one of them")
        if encoder is not None:
            require_callable("a SemanticEncoder", encoder=encoder)
        if not 0 < near < far < np.inf:
            raise ValueError(f"near and far must satisfy 0 < near < far, not {near} and {far}")
        stages = _checked_stages(stages)
        if not stages:
            raise ValueError("a schedule needs a stage")
        for stage in stages:
            if stage.steps < 1 or stage.stride < 1 or not stage.lr > 0:
                raise ValueError(f"steps, stride and lr of a stage must be positive, not {stage[:3]}")
            if stage.weights.need_encoder and encoder is None:
                raise ValueError("the terms vit and consistency need an encoder")
        self.field, self.bounds, self.near, self.far = field, as_bounds(bounds), float(near), float(far)
        self.pose_prior, self.stages, self.encoder, self.seed = pose_prior, stages, encoder, seed
        self.white_background = white_background
        if sampler is None:
            sampler = Sampler(fine=64 if isinstance(field, CoarseFine) else 0, last="interval" if white_background else "opaque")
        self.sampler = Sampler.chosen(sampler, background=1.0) if white_background else sampler
        self.options = options or Options()
        parameter = next(iter(field.parameters()), None)
        if parameter is not None and parameter.dtype != torch.float32:
            raise ValueError(f"the field's weights are {parameter.dtype}, and rays are float32: give field.float()")
        self.device = torch.device("cpu") if parameter is None else parameter.device
        if isinstance(field, CoarseFine):
            self.world_field: nn.Module = CoarseFine(Bounded(field.coarse, self.bounds), Bounded(field.fine, self.bounds))
        else:
            self.world_field = Bounded(field, self.bounds)

    def clip(self, rays: Tensor) -> Tensor:
        """Rays (n, 8) cut to the bounds."""
        return rays if self.bounds is None else self.bounds.clip(rays)

    def save(self, path: Path | str) -> None:
        """Write the field's numbers, and what the scene is, to one safetensors file; :meth:`load` reads it."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.field.state_dict().items()}
        save_file(tensors, path, {"scene": json.dumps(self._facts())})

    def load(self, path: Path | str) -> None:
        """Take up what :meth:`save` wrote, into a model made as that one was.

        Raises
        ------
        ValueError
            The file is of another scene (near, far, bounds, background), of another field, or none of these.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("scene", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
        own = self._facts()
        odd = next((name for name in own if facts is None or facts.get(name) != own[name]), None)
        if odd is not None:
            contents = "no scene" if facts is None else f"a scene with {odd} {facts.get(odd)}"
            raise ValueError(f"{path} holds {contents}; this one has {odd} {own[odd]}")
        shapes = {name: tuple(tensor.shape) for name, tensor in self.field.state_dict().items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise ValueError(f"{path} holds another field: make this one with the same make_field")
        self.field.load_state_dict(tensors)

    def _facts(self) -> dict[str, Any]:
        """What makes a field's numbers a scene, as plain values."""
        bounds = self.bounds
        region: list[Any] | None = None
        if isinstance(bounds, Box):
            region = [bounds.low, bounds.high]
        elif isinstance(bounds, Frustum):
            camera = bounds.camera
            region = [camera.K, camera.c2w, camera.height, camera.width, bounds.near, bounds.far, bounds.pad]
        facts = {"near": self.near, "far": self.far, "white_background": self.white_background, "bounds": region}
        return json.loads(json.dumps(facts, default=lambda value: np.asarray(value).tolist()))  # type: ignore[no-any-return]

    def film(self, path: Path | str, cameras: Sequence[Camera], *, progress: bool | None = None) -> None:
        """Render a view for every camera, and write them as an animation; see :mod:`.orbit` for both."""
        seen = track(cameras, "film", len(cameras), progress)
        save_animation(path, (self.render(camera).rgb for camera in seen))

    @torch.no_grad()
    def render(self, camera: Camera, *, chunk: int = 32768) -> RenderResult:
        """Render a view, deterministically; ``chunk`` rays at a time.

        Raises
        ------
        ValueError
            ``chunk`` is less than 1.
        """
        require_kind(Camera, "a Camera", camera=camera)
        require_whole(chunk=chunk)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        parts = []
        for rays in all_rays(camera, self.near, self.far).split(chunk):
            seen = render_rays(self.world_field, self.clip(rays.to(self.device)), self.sampler)
            parts.append(torch.cat([seen.rgb, seen.depth[:, None], seen.opacity[:, None]], dim=-1).cpu())
        image = torch.cat(parts).reshape(camera.height, camera.width, 5).numpy()
        return RenderResult(image[..., :3], image[..., 3], image[..., 4])
