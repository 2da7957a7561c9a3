"""SinNeRF as a library: fit a radiance field to one posed image with depth, and render any pose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from atlas.methods.sinnerf.bounds import Bounded, Bounds, as_bounds
from atlas.methods.sinnerf.cameras import Array, Camera, RGBDView, all_rays
from atlas.methods.sinnerf.encoders import SemanticEncoder
from atlas.methods.sinnerf.losses import Stage
from atlas.methods.sinnerf.poses import PosePrior
from atlas.methods.sinnerf.rendering import CoarseFine, Sampler, render_rays
from atlas.methods.sinnerf.trainer import Fitting, Options


class FitResult(NamedTuple):
    """What a fit did: unweighted ``losses`` by term (``nan`` at steps without it), number of ``steps``, CPU seconds."""

    losses: dict[str, list[float]]
    steps: int
    cpu_s: float


class RenderResult(NamedTuple):
    """A rendered view: ``rgb`` (height, width, 3), not clipped; ``depth`` and ``opacity`` (height, width). Depth is Σ w·t."""

    rgb: Array
    depth: Array
    opacity: Array

    @property
    def surface_depth(self) -> Array:
        """The depth over the opacity: where the surface is that is seen at all."""
        return self.depth / np.maximum(self.opacity, 1e-6)


class SinNeRF:
    """One radiance field from one posed RGB image and its depth.

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
    ValueError
        ``near`` is not positive or not below ``far``; there is no stage; a stage has no step or no positive learning rate; or a
        term needs an encoder and there is none.

    Examples
    --------
    >>> model = SinNeRF(make_field("vm"), bounds=[[-1, -1, -1], [1, 1, 1]], near=2, far=6,
    ...                 pose_prior=OrbitGaussian(10), stages=[Stage(200, 2, 0.03, LossWeights())])  # doctest: +SKIP
    >>> model.fit(RGBDView(rgb, depth, camera))  # doctest: +SKIP
    >>> model.render(other_camera).rgb  # doctest: +SKIP
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
        if not 0 < near < far < np.inf:
            raise ValueError(f"near and far must satisfy 0 < near < far, not {near} and {far}")
        stages = tuple(Stage(*stage) for stage in stages)
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
        self.sampler = replace(sampler, background=1.0) if white_background else sampler
        self.options = options or Options()
        parameter = next(iter(field.parameters()), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        if isinstance(field, CoarseFine):
            self.world_field: nn.Module = CoarseFine(Bounded(field.coarse, self.bounds), Bounded(field.fine, self.bounds))
        else:
            self.world_field = Bounded(field, self.bounds)

    def clip(self, rays: Tensor) -> Tensor:
        """Rays (n, 8) cut to the bounds."""
        return rays if self.bounds is None else self.bounds.clip(rays)

    def start(self, view: RGBDView) -> Fitting:
        """A training to be stepped by the caller, for loops that save states; :meth:`fit` is the ordinary way."""
        return Fitting(self, view)

    def fit(
        self,
        view: RGBDView,
        *,
        callback: Callable[[int, dict[str, float]], object] | None = None,
        time_limit_s: float | None = None,
    ) -> FitResult:
        """Train on one view.

        Parameters
        ----------
        callback : callable, optional
            Called after every step with (steps done, terms).
        time_limit_s : float, optional
            Stop after the step during which so many seconds of wall time have passed.

        Raises
        ------
        ValueError
            A term needs depth and the view has none, or none between near and far; or a patch is larger than the image.
        FloatingPointError
            A term is not finite; the message names it.
        """
        fitting = self.start(view)
        began, cpu = time.monotonic(), time.process_time()
        losses: dict[str, list[float]] = {}
        done = 0
        for index in range(fitting.total):
            terms = {name: float(value) for name, value in fitting.step(index).items()}
            for name in terms.keys() | losses.keys():
                losses.setdefault(name, [float("nan")] * done).append(terms.get(name, float("nan")))
            done = index + 1
            if callback is not None:
                callback(done, terms)
            if time_limit_s is not None and time.monotonic() - began >= time_limit_s:
                break
        return FitResult(losses, done, time.process_time() - cpu)

    @torch.no_grad()
    def render(self, camera: Camera, *, chunk: int = 32768) -> RenderResult:
        """Render a view, deterministically; ``chunk`` rays at a time.

        Raises
        ------
        ValueError
            ``chunk`` is less than 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        parts = []
        for rays in all_rays(camera, self.near, self.far).split(chunk):
            seen = render_rays(self.world_field, self.clip(rays.to(self.device)), self.sampler)
            parts.append(torch.cat([seen.rgb, seen.depth[:, None], seen.opacity[:, None]], dim=-1).cpu())
        image = torch.cat(parts).reshape(camera.height, camera.width, 5).numpy()
        return RenderResult(image[..., :3], image[..., 3], image[..., 4])
