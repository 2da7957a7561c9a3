"""Captured scenes: the stereo pair, Blender's, LLFF's and DTU's layouts, as :class:`~.scene.Scene` objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.llff import POSES, read_llff
from atlas.datasets.posed import PosedPicture, opened, read_header, rigid_pose, same_shape
from atlas.datasets.transforms import read_transforms
from atlas.errors import UserError
from atlas.tasks.novel_view_synthesis.protocol import SceneSettings
from atlas.tasks.novel_view_synthesis.scene import Array, Scene, Views, angular_distance

STEREO = "stereo.safetensors"
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
DTU_SCALE = 1 / 200
DTU_DEPTHS = 192
DTU_SIZE = (128, 160)
"""Rows and columns of the images that DTU's camera files describe, whatever the size of the pictures beside them."""
LLFF_NEAR = 0.75
DEEP_WHITE = 65535


def read_image(path: Path, height: int, width: int, resample: str = "lanczos", background: float = 1.0) -> Array:
    """Read a picture at a given size.

    Parameters
    ----------
    path : Path
        A picture in colours, in grey (also of 16 bits, whose white is 65 535) or of a palette.
    height, width : int
        Size to which it is brought, whatever its own shape.
    resample : {"lanczos", "bilinear"}
        How.
    background : float
        Grey onto which what is transparent is composed, after resizing with premultiplied colours.

    Returns
    -------
    array
        (height, width, 3) float32 in [0, 1].

    Raises
    ------
    DatasetLayoutError
        There is no such picture, or it is damaged or of another kind.
    """
    from PIL import Image

    method = {"lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}[resample]

    def resized(image: Image.Image) -> Array:
        return np.asarray(image if image.size == (width, height) else image.resize((width, height), method), dtype=np.float32)

    with opened(path) as image:
        image.load()
        mode, transparent = image.mode, image.has_transparency_data
        deep = mode == "I" or mode.startswith("I;16")
        if mode == "F" or (deep and transparent):
            raise DatasetLayoutError(f"{path} is a picture of the kind {mode}, which is not read; store it in 8 bits per colour")
        if not deep:
            image = image.convert("RGBA" if transparent else "RGB")
        pixels = np.asarray(image)
    if deep:
        grey = resized(Image.fromarray(pixels.astype(np.float32) / DEEP_WHITE))
        return np.clip(np.repeat(grey[..., None], 3, axis=-1), 0, 1)
    if not transparent:
        return resized(Image.fromarray(pixels)) / 255
    colours = pixels.astype(np.float32) / 255
    premultiplied = np.concatenate([colours[..., :3] * colours[..., 3:], colours[..., 3:]], axis=-1)
    planes = np.stack([resized(Image.fromarray(premultiplied[..., k])) for k in range(4)], axis=-1)
    return np.clip(planes[..., :3] + background * (1 - planes[..., 3:]), 0, 1)


def load_views(pictures: Sequence[PosedPicture], settings: SceneSettings, background: float) -> Views:
    """Pictures brought to the settings' size, with intrinsics that follow: also where that squashes them."""
    height, width = settings.height, settings.width
    return Views(
        np.stack([read_image(picture.path, height, width, background=background) for picture in pictures]),
        np.stack([picture.resized_intrinsics(height, width) for picture in pictures]),
        np.stack([picture.pose for picture in pictures]),
    )


def block_mean(image: Array, factor: int) -> Array:
    """Means over blocks of ``factor`` × ``factor`` pixels; what does not fill a block is cut off."""
    height, width = (size // factor for size in image.shape[:2])
    cut = image[: height * factor, : width * factor]
    return cut.reshape(height, factor, width, factor, *image.shape[2:]).mean((1, 3))


def block_median(values: Array, factor: int) -> Array:
    """Medians over the finite values of blocks; +inf where fewer than half of a block is finite."""
    height, width = (size // factor for size in values.shape)
    blocks = values[: height * factor, : width * factor].reshape(height, factor, width, factor).swapaxes(1, 2)
    blocks = blocks.reshape(height, width, factor**2).astype(np.float64)
    finite = np.isfinite(blocks)
    enough = finite.sum(-1) * 2 >= factor**2
    ordered = np.where(finite, blocks, np.nan)
    return np.where(enough, np.nanmedian(np.where(enough[..., None], ordered, 0.0), axis=-1), np.inf)


def stereo_scene(folder: Path, calibration: Mapping[str, Any], settings: SceneSettings) -> Scene:
    """The left image with its measured depth to learn from; the right image is held out."""
    from safetensors.numpy import load_file

    arrays, k = load_file(folder / STEREO), settings.downsample
    left, right = (block_mean(arrays[side].astype(np.float32) / 255, k) for side in ("left", "right"))
    disparity = block_median(arrays["disparity"], k)
    total = np.where(np.isfinite(disparity), disparity + calibration["doffs"], np.inf)
    depth = np.where(np.isfinite(total), calibration["focal"] * calibration["baseline"] / total, 0.0)
    shift = (k - 1) / 2
    matrix = np.array(
        [
            [calibration["focal"] / k, 0, (calibration["cx"] - shift) / k],
            [0, calibration["focal"] / k, (calibration["cy"] - shift) / k],
            [0, 0, 1],
        ]
    )
    other = matrix.copy()
    other[0, 2] += calibration["doffs"] / k
    moved = np.eye(4)
    moved[0, 3] = calibration["baseline"]
    nothing = Views(np.zeros((0, *left.shape), np.float32), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)))
    return Scene(
        reference=Views(left[None], matrix[None], np.eye(4)[None], depth[None]),
        test=Views(right[None], other[None], moved[None]),
        train=nothing,
        near=settings.near,
        far=settings.far,
        white_background=False,
        depth_source="measured",
    )


def blender_views(folder: Path, split: str, settings: SceneSettings) -> tuple[Views, list[int]]:
    """Views of a split, ordered by their number, and those numbers."""
    path = folder / f"transforms_{split}.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; which scene of {folder.parent} is meant?")
    pictures = read_transforms(path)
    return load_views(pictures, settings, background=1.0), [picture.number for picture in pictures]


def blender_scene(folder: Path, settings: SceneSettings) -> Scene:
    """A training view to learn from; views of the test split, or of the training split where there is no other, are held out."""
    views, numbers = blender_views(folder, "train", settings)
    if settings.reference not in numbers:
        raise UserError(f"{folder.name} has no training view {settings.reference}; it has {_listed(numbers)}")
    position = numbers.index(settings.reference)
    reference = views.pick([position])
    if settings.test_split == "train":
        others, names = views, numbers
    else:
        others, names = blender_views(folder, "test", settings)
    wanted = _held_out(folder, settings, reference.poses[0], others, names)
    held = {names[index] for index in wanted} if settings.test_split == "train" else set()
    kept = [index for index, number in enumerate(numbers) if number not in held]
    return Scene(
        reference, others.pick(wanted), views.pick(kept), settings.near, settings.far, white_background=True, depth_source="none"
    )


def _held_out(folder: Path, settings: SceneSettings, pose: Array, others: Views, names: list[int]) -> list[int]:
    """Places of the test views among the views of their split; the reference is never one of them."""
    if settings.test_views:
        missing = sorted(set(settings.test_views) - set(names))
        if missing:
            raise UserError(f"{folder.name} has no view {missing[0]} in its {settings.test_split} split; it has {_listed(names)}")
        wanted, which = [names.index(number) for number in settings.test_views], f"of test_views {list(settings.test_views)}"
    else:
        most = settings.test_degrees or math.inf
        wanted = list(np.flatnonzero(angular_distance(pose, others.poses, settings.near) <= most))
        which = f"within test_degrees {most:g} of view {settings.reference}"
    wanted = [index for index in wanted if settings.test_split == "test" or names[index] != settings.reference]
    if not wanted:
        raise UserError(f"{folder.name} has no test view {which} but the reference itself")
    return wanted


def _listed(numbers: Sequence[int]) -> str:
    return f"{len(numbers)} views, numbered from {numbers[0]} to {numbers[-1]}"


def average_pose(poses: Array) -> Array:
    """(4, 4) mean pose: mean position and viewing direction, up as near to the mean up as it can be."""
    back = poses[:, :3, 2].mean(0)
    back /= np.linalg.norm(back)
    right = np.cross(poses[:, :3, 1].mean(0), back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, poses[:, :3, 3].mean(0)], axis=1)
    return pose


def llff_scene(folder: Path, settings: SceneSettings) -> Scene:
    """Poses recentred and scaled so that the nearest depth is 4/3; every ``test_every``-th view is held out."""
    if not (folder / POSES).is_file():
        raise UserError(f"{folder / POSES} does not exist; which scene of {folder.parent} is meant?")
    pictures, bounds = read_llff(folder)
    count = len(pictures)
    if settings.reference >= count:
        raise UserError(f"{folder.name} has no view {settings.reference}; it has {count} views, numbered from 0 to {count - 1}")
    views = load_views(pictures, settings, background=0.0)
    scale = LLFF_NEAR * bounds.min()
    views.poses[:, :3, 3] /= scale
    views.poses = np.linalg.inv(average_pose(views.poses)) @ views.poses
    middle = int(np.linalg.norm(views.poses[:, :3, 3], axis=-1).argmin())
    reference = settings.reference if settings.reference >= 0 else (middle - 1) % count
    tests = [index for index in range(count) if index % settings.test_every == 0 and index != reference]
    rest = [index for index in range(count) if index not in tests]
    if not tests:
        raise UserError(
            f"{folder.name} has {count} views, of which test_every {settings.test_every} holds out none but the reference"
        )
    near, far = 0.9 * bounds.min() / scale, bounds.max() / scale
    picked = views.pick([reference]), views.pick(tests), views.pick(rest)
    return Scene(*picked, float(near), float(far), white_background=False, depth_source="none")


def read_pfm(path: Path) -> Array:
    """A grey PFM file, top row first.

    Raises
    ------
    DatasetLayoutError
        There is no such file, or it is of another kind or shorter than its header says.
    """
    if not path.is_file():
        raise DatasetLayoutError(f"{path} does not exist; is the copy complete?")
    with path.open("rb") as stream:
        if stream.readline().strip() != b"Pf":
            raise DatasetLayoutError(f"{path} is not a grey PFM file")
        try:
            width, height = map(int, stream.readline().split())
            order = "<" if float(stream.readline()) < 0 else ">"
            values = np.frombuffer(stream.read(), dtype=f"{order}f4", count=width * height)
        except ValueError:
            raise DatasetLayoutError(f"{path} is shorter than its header says, or has none; is it damaged?") from None
    return values.reshape(height, width)[::-1].astype(np.float64)


def _dtu_camera(path: Path, height: int, width: int) -> tuple[Array, Array, float, float]:
    """Intrinsics, OpenGL pose, and depth bounds, in units of 200 mm."""
    try:
        words = path.read_text().split()
        extrinsic = np.array(words[1:17], dtype=np.float64).reshape(4, 4)
        matrix = np.array(words[18:27], dtype=np.float64).reshape(3, 3)
        first, interval = float(words[27]), float(words[28])
    except (OSError, ValueError, IndexError):
        raise DatasetLayoutError(
            f"{path} is missing, or holds no extrinsic, intrinsic and depth range as MVSNet writes them"
        ) from None
    if not (first > 0 and interval > 0):
        raise DatasetLayoutError(f"{path}: nearest depth {first} and interval {interval} must be positive")
    matrix[0] *= width / DTU_SIZE[1]
    matrix[1] *= height / DTU_SIZE[0]
    pose = rigid_pose(np.linalg.inv(rigid_pose(extrinsic, f"{path}: extrinsic")) @ FLIP, f"{path}: extrinsic")
    pose[:3, 3] *= DTU_SCALE
    return matrix, pose, first * DTU_SCALE, (first + DTU_DEPTHS * interval) * DTU_SCALE


def _dtu_sources(path: Path, view: int) -> list[int]:
    """The views that MVSNet matches with a view, best first."""
    try:
        lines = path.read_text().split("\n")
        pairs = {int(lines[line]): [int(word) for word in lines[line + 1].split()[1::2]] for line in range(1, len(lines) - 1, 2)}
    except (OSError, ValueError):
        raise DatasetLayoutError(
            f"{path} is missing, or does not alternate views and their sources as MVSNet writes them"
        ) from None
    if len(pairs.get(view, ())) < 2:
        raise UserError(f"dtu: {path} has no view {view} with two sources or more")
    return pairs[view]


def _dtu_depth(path: Path, height: int, width: int) -> Array:
    """(height, width) z-depth in units of 200 mm, every pixel of the smaller map repeated."""
    small = read_pfm(path) * DTU_SCALE
    if small.shape[0] * DTU_SIZE[1] != small.shape[1] * DTU_SIZE[0]:
        raise DatasetLayoutError(f"{path} has {small.shape[0]} × {small.shape[1]} pixels, which is not the shape of {DTU_SIZE}")
    rows, cols = np.arange(height) * small.shape[0] // height, np.arange(width) * small.shape[1] // width
    return small[rows[:, None], cols]


def dtu_scene(folder: Path, settings: SceneSettings) -> Scene:
    """View 2 with its depth map to learn from; of its source views every second one is held out, the others lend their poses."""
    height, width = settings.height, settings.width
    order = [settings.reference, *_dtu_sources(folder / "Cameras/pair.txt", settings.reference)]
    cameras = [_dtu_camera(folder / f"Cameras/train/{view:08d}_cam.txt", height, width) for view in order]
    folder_of_scan = folder / f"Rectified/{settings.name}_train"
    if not folder_of_scan.is_dir():
        raise UserError(f"{folder_of_scan} does not exist; which scan of {folder} is meant?")
    files = [folder_of_scan / f"rect_{view + 1:03d}_3_r5000.png" for view in order]
    for file in files:
        header = read_header(file)
        if not same_shape(*DTU_SIZE, header):
            raise DatasetLayoutError(f"{file} has {header.height} × {header.width} pixels, which is not the shape of {DTU_SIZE}")
    rgb = [read_image(file, height, width, "bilinear") for file in files]
    views = Views(np.stack(rgb), np.stack([camera[0] for camera in cameras]), np.stack([camera[1] for camera in cameras]))
    reference = views.pick([0])
    reference.depth = _dtu_depth(folder / f"Depths/{settings.name}_train/depth_map_{settings.reference:04d}.pfm", height, width)[
        None
    ]
    held, lent = list(range(2, len(order), 2)), list(range(1, len(order), 2))
    near, far = cameras[0][2:]
    source = "multiview" if settings.depth == "given" else "none"
    return Scene(reference, views.pick(held), views.pick(lent), near, far, white_background=True, depth_source=source)
