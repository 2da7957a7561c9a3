"""SinNeRF as a library: fit a radiance field to one posed image with depth, and render any pose."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from atlas.methods.sinnerf.cameras import Camera, RGBDView
from atlas.methods.sinnerf.orbit import save_image
from atlas.methods.sinnerf.scene_model import SceneModel
from atlas.methods.sinnerf.trainer import Fitting
from atlas.nn.bars import track


class FitResult(NamedTuple):
    """What a fit did: unweighted ``losses`` by term (``nan`` at steps without it), number of ``steps``, CPU seconds."""

    losses: dict[str, list[float]]
    steps: int
    cpu_s: float


class SinNeRF(SceneModel):
    """One radiance field from one posed RGB image and its depth; :class:`.scene_model.SceneModel` explains the parameters.

    Examples
    --------
    >>> model = SinNeRF(make_field("vm"), bounds=[[-1, -1, -1], [1, 1, 1]], near=2, far=6,
    ...                 pose_prior=OrbitGaussian(10), stages=[Stage(200, 2, 0.03, LossWeights())])  # doctest: +SKIP
    >>> model.fit(RGBDView(rgb, depth, camera))  # doctest: +SKIP
    >>> model.render(other_camera).rgb  # doctest: +SKIP
    """

    @torch.inference_mode(False)
    def start(self, view: RGBDView) -> Fitting:
        """A training to be stepped by the caller, for loops that save states; :meth:`fit` is the ordinary way."""
        return Fitting(self, view)

    def fit(
        self,
        view: RGBDView,
        *,
        callback: Callable[[int, dict[str, float]], object] | None = None,
        time_limit_s: float | None = None,
        preview: Path | str | None = None,
        preview_every: int = 100,
        preview_camera: Camera | None = None,
        progress: bool | None = None,
    ) -> FitResult:
        """Train on one view; warns, once, of a field without density that no step would move.

        Parameters
        ----------
        callback : callable, optional
            Called after every step with (steps done, terms).
        time_limit_s : float, optional
            Stop after the step during which so many seconds of wall time have passed.
        preview : Path, optional
            PNG that is written anew every ``preview_every`` steps and at the end: what the field shows from ``preview_camera``,
            by default from the view's own camera.
        progress : bool, optional
            Whether to draw a bar; by default on a terminal.

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
        done, told = 0, False
        for index in track(range(fitting.total), "fit", fitting.total, progress):
            terms = {name: float(value) for name, value in fitting.step(index).items()}
            for name in terms.keys() | losses.keys():
                losses.setdefault(name, [float("nan")] * done).append(terms.get(name, float("nan")))
            done = index + 1
            if not told and terms["loss"] and (unmoved := fitting.unmoved()):
                told = True
                warnings.warn(
                    f"step {done}: no gradient reaches {' and '.join(unmoved)}: there is no density where the rays pass, and "
                    "nothing is learned; train with Sampler(noise_std=1), or initialise from another seed",
                    stacklevel=2,
                )
            if callback is not None:
                callback(done, terms)
            if preview is not None and (done % preview_every == 0 or done == fitting.total):
                save_image(preview, self.render(preview_camera or view.camera).rgb)
            if time_limit_s is not None and time.monotonic() - began >= time_limit_s:
                break
        return FitResult(losses, done, time.process_time() - cpu)
