"""A rendered orbit: cameras around a point, and an animated image of what they see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from atlas.methods.sinnerf.cameras import Array, Camera
from atlas.methods.sinnerf.poses import OrbitGaussian, PosePrior, TranslationGaussian
from atlas.nn.kinds import require_kind, require_sequence, require_whole, told

ENDINGS = (".gif", ".webp", ".png", ".mp4")


def orbit_cameras(
    camera: Camera, *, frames: int = 48, degrees: float = 20.0, center: Sequence[float] = (0.0, 0.0, 0.0), tilt: float = 0.3
) -> list[Camera]:
    """Cameras that swing ``degrees`` to either side of a camera about the vertical axis through ``center``, and return.

    ``tilt`` times as much they swing up and down, a quarter of a turn later.
    """
    require_kind(Camera, "a Camera", camera=camera)
    require_whole(frames=frames)
    orbit = OrbitGaussian((degrees, degrees), (center[0], center[1], center[2]), axes="turntable")
    phases = [2 * math.pi * frame / frames for frame in range(frames)]
    swing = math.radians(degrees)
    return [orbit.at(camera, (swing * math.sin(phase), tilt * swing * math.sin(2 * phase))) for phase in phases]


def sway_cameras(camera: Camera, *, frames: int = 48, radius: tuple[float, float] = (0.1, 0.05)) -> list[Camera]:
    """Cameras on an ellipse in the image plane (right, up; scene units), for forward-facing scenes."""
    require_kind(Camera, "a Camera", camera=camera)
    require_whole(frames=frames)
    cameras = []
    for frame in range(frames):
        phase = 2 * math.pi * frame / frames
        pose = np.array(camera.c2w)
        pose[:3, 3] += pose[:3, :3] @ np.array([radius[0] * math.sin(phase), radius[1] * math.sin(2 * phase), 0.0])
        cameras.append(camera.moved(pose))
    return cameras


def cameras_around(camera: Camera, prior: PosePrior, near: float, *, frames: int = 48) -> list[Camera]:
    """Cameras on a closed path about as far from a camera as its unseen views are imagined.

    They orbit where ``prior`` does, by a standard deviation of its turn about the vertical axis; elsewhere they sway, by a
    standard deviation of its shifts, or by a twentieth of ``near`` (scene units) where the prior is a list of poses.
    """
    if isinstance(prior, OrbitGaussian):
        turn = prior.spreads[0 if prior.axes == "turntable" else 2]
        return orbit_cameras(camera, frames=frames, degrees=turn, center=prior.center)
    shifts = prior.sigma if isinstance(prior, TranslationGaussian) else (near / 20, near / 40)
    return sway_cameras(camera, frames=frames, radius=(shifts[0], shifts[1]))


def save_animation(path: Path | str, images: Iterable[Array], *, frames_per_second: float = 24.0) -> None:
    """Write images (height, width, 3) in [0, 1] as an animation without end: the ending says ``.gif``, ``.webp`` or ``.png``.

    ``.mp4`` is written too where imageio has its video plug-in (``pip install imageio[ffmpeg]``).

    Raises
    ------
    ValueError
        There is no image, or the ending is another: nothing is written.
    ImportError
        An ``.mp4`` is asked for, and there is nothing that writes one.
    """
    from PIL import Image

    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: the ending of an animation is one of {', '.join(ENDINGS)}")
    write = _film_writer(path) if ending == ".mp4" else None  # what is missing is said before anything is rendered
    require_sequence("a sequence of images (height, width, 3)", images=images)
    frames = [Image.fromarray(as_bytes(image)) for image in images]
    if not frames:
        raise ValueError("an animation needs an image")
    if write is not None:
        write(path, [evened(np.asarray(frame)) for frame in frames], fps=frames_per_second, macro_block_size=2)
        return
    pause = round(1000 / frames_per_second)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pause, loop=0)


def evened(image: Array) -> Array:
    """An image with an even number of rows and columns, as films need: the last of an odd number stands twice."""
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


def _film_writer(path: Path | str) -> Callable[..., object]:
    """What writes films; an error that names the package where there is nothing that does."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401 - imageio's error does not say what is missing
    except ImportError:
        remedy = "pip install imageio[ffmpeg], or write .gif"
        raise ImportError(f"{path}: films need imageio with its video plug-in, imageio-ffmpeg: {remedy}") from None
    return imageio.mimwrite


def save_image(path: Path | str, image: Array) -> None:
    """Write an image (height, width, 3) in [0, 1], whole or not at all: a viewer may look at it while it is written anew."""
    from PIL import Image

    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    Image.fromarray(as_bytes(image)).save(partial, "PNG")
    partial.replace(path)


def as_bytes(image: Array) -> Array:
    """An image in [0, 1] as bytes; what lies outside is clipped."""
    if np.shape(image)[2:] != (3,) or not np.issubdtype(np.asarray(image).dtype, np.floating):
        raise TypeError(f"an image must be floating-point numbers (height, width, 3) in [0, 1], not {told(image)}")
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
