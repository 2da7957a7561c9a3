"""The loop that serves every method, and the evaluation on held-out views."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from atlas.errors import AtlasError, UserError
from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_bytes, write_tensors, write_text
from atlas.harness.resume import training
from atlas.harness.seeds import pick_device
from atlas.tasks.novel_view_synthesis import metrics
from atlas.tasks.novel_view_synthesis.reconstruction import FLIGHT, FLIGHT_PAUSE, Reconstruction, Rendering
from atlas.tasks.novel_view_synthesis.scene import SOURCES, Scene, load_scene

if TYPE_CHECKING:
    from atlas.harness.run import Run

VIEWS = "views.csv"
FLIGHT_FRAMES, FLIGHT_COLOURS = 16, 32
"""Of a run's film: its frames, and the colours of all of them together."""
VALUES = ("psnr", "ssim", "psnr_covisible", "psnr_hole", "lpips", "depth_mae")


def train(run: Run) -> Mapping[str, Any]:
    """Fit a method to the reference view of its scene; resumable."""
    reconstruction: Reconstruction = run.build()[0]
    scene = load_scene(run.needed("scene").checkpoint)
    try:
        reconstruction.start(scene, pick_device(run.resources.device))
    except ValueError as error:  # the scene and the protocol do not fit: depth beyond far, patches larger than the image
        raise UserError(f"{run.cell}: {error}") from error
    began, seconds = time.process_time(), 0.0
    if reconstruction.total:
        loop = training(run, reconstruction.total, reconstruction.parts())
        every = run.protocol_model().log_every
        for index in loop:
            terms = _stepped(run, reconstruction, index)
            if (index + 1) % every == 0 or index + 1 == reconstruction.total:
                loop.log(**{name: float(value) for name, value in terms.items()})
        seconds = time.process_time() - began
    write_tensors(run.weights, reconstruction.tensors())
    return {**reconstruction.facts(), "cpu_seconds": seconds}


def _stepped(run: Run, reconstruction: Reconstruction, index: int) -> Mapping[str, Any]:
    try:
        return reconstruction.step(index)
    except FloatingPointError as error:
        raise AtlasError(f"{run.cell}: step {index + 1}: {error}") from error


def evaluate(run: Run) -> dict[str, float]:
    """Render every test view; leaves ``views.csv`` (one row per view), pictures of some and a film beside the metrics."""
    scene = load_scene(run.needed("scene").checkpoint)
    reconstruction: Reconstruction = run.build()[0]
    reconstruction.start(scene, pick_device(run.resources.device))
    reconstruction.load(read_tensors(run.weights))
    shown = shown_views(scene, run.protocol_model().shown)
    began = time.process_time()
    rows = []
    for index, distance in enumerate(scene.distance()):
        height, width = scene.test.rgb.shape[1:3]
        seen = reconstruction.render(scene.test.intrinsics[index], scene.test.poses[index], height, width)
        rows.append({"view": index, "degrees": float(distance), **compare(scene, index, seen)})
        if index in shown:
            save_picture(run, f"view{index}.png", seen.rgb)
            save_depth(run, f"depth{index}.png", surface(seen), scene)
    seconds = (time.process_time() - began) / len(rows)
    table = pd.DataFrame(rows)
    write_text(run.results / VIEWS, table.to_csv(index=False, float_format="%.6g"))
    if filmed(run):
        save_film(run, reconstruction.flight(FLIGHT_FRAMES))
    trained = training_summary(run)
    return {
        **{name: float(table[name].mean()) for name in VALUES},
        "depth_source": float(SOURCES[scene.depth_source]),
        "parameters": float(trained["parameters"]),
        "rays": float(trained["rays"]),
        "train_cpu_seconds": float(trained["cpu_seconds"]),
        "render_cpu_seconds": seconds,
    }


def filmed(run: Run) -> bool:
    """Whether a run leaves a film: the first seed of what a paper proposes, its ablations, and what they are compared with."""
    return run.first and run.limit is None and (run.role in ("method", "ablation") or run.method == run.task_entry.baseline)


def save_film(run: Run, images: Sequence[np.ndarray]) -> None:
    """Write images (height, width, 3) in [0, 1] as ``flight.gif``, an animation without end; without any, nothing.

    All frames share one palette, chosen from all of them, so that nothing flickers and the same images give the same bytes.
    """
    from PIL import Image

    if not images:
        return
    frames = [(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8) for image in images]
    height, width = frames[0].shape[:2]
    sheet = Image.fromarray(np.concatenate(frames, axis=1)).quantize(FLIGHT_COLOURS, dither=Image.Dither.NONE)
    first, *rest = [sheet.crop((index * width, 0, (index + 1) * width, height)) for index in range(len(frames))]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=FLIGHT_PAUSE, loop=0)
    write_bytes(run.results / FLIGHT, buffer.getvalue())


def compare(scene: Scene, index: int, seen: Rendering) -> dict[str, float]:
    """Every metric of one test view; ``nan`` where there is nothing to measure it with."""
    truth = scene.test.rgb[index]
    reached = None if scene.covisible is None else scene.covisible[index]
    return {
        "psnr": metrics.psnr(seen.rgb, truth),
        "ssim": metrics.ssim(seen.rgb, truth),
        "psnr_covisible": math.nan if reached is None else metrics.psnr(seen.rgb, truth, reached),
        "psnr_hole": math.nan if reached is None else metrics.psnr(seen.rgb, truth, ~reached),
        "lpips": metrics.lpips(seen.rgb, truth),
        "depth_mae": metrics.depth_error(seen.depth, None if scene.test.depth is None else scene.test.depth[index]),
    }


def shown_views(scene: Scene, count: int) -> list[int]:
    """Test views whose renderings are kept: spread from the nearest to the farthest, the farthest always."""
    order = np.argsort(scene.distance(), kind="stable")
    places = np.linspace(len(order) - 1, 0, min(count, len(order))).round().astype(int)
    return sorted(int(order[position]) for position in places)


def surface(seen: Rendering) -> np.ndarray:
    """Where the surface is that is seen, (height, width); 0 where less than half of a ray's light comes from one."""
    return np.where(seen.opacity > 0.5, seen.depth / np.maximum(seen.opacity, 1e-6), 0.0)


def save_picture(run: Run, name: str, image: np.ndarray) -> None:
    """Write an image (height, width[, 3]) in [0, 1] as PNG beside the run's metrics."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    write_bytes(run.results / name, buffer.getvalue())


def save_depth(run: Run, name: str, depth: np.ndarray, scene: Scene) -> None:
    """Write a depth map as a grey PNG: near is bright, far dark, and what is empty black."""
    closeness = (1 / np.maximum(depth, 1e-6) - 1 / scene.far) / (1 / scene.near - 1 / scene.far)
    save_picture(run, name, np.where(depth > 0.5 * scene.near, 0.1 + 0.9 * np.clip(closeness, 0, 1), 0.0))
