"""Captured scenes: the stereo pair, Blender's, LLFF's and DTU's layouts, as :class:`~.scene.Scene` objects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atlas.errors import UserError
from atlas.tasks.novel_view_synthesis.protocol import SceneSettings
from atlas.tasks.novel_view_synthesis.scene import Array, Scene, Views, angular_distance

STEREO = "stereo.safetensors"
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
DTU_SCALE = 1 / 200
DTU_DEPTHS = 192
LLFF_NEAR = 0.75


def read_image(path: Path, height: int, width: int, resample: str = "lanczos") -> Array:
    """(height, width, 3) float32 in [0, 1]; transparency is composed onto white, after resizing with premultiplied colours."""
    from PIL import Image

    method = {"lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}[resample]
    with Image.open(path) as image:
        if image.mode not in ("RGBA", "LA", "P"):
            opaque = image.convert("RGB")
            opaque = opaque if opaque.size == (width, height) else opaque.resize((width, height), method)
            return np.asarray(opaque, dtype=np.float32) / 255
        pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    premultiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)
    if premultiplied.shape[:2] != (height, width):
        planes = [Image.fromarray(premultiplied[..., k]).resize((width, height), method) for k in range(4)]
        premultiplied = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return np.clip(premultiplied[..., :3] + 1 - premultiplied[..., 3:], 0, 1)


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


def blender_views(folder: Path, split: str, settings: SceneSettings, chosen: list[int] | None = None) -> tuple[Views, list[int]]:
    """Views of a split, ordered by their number, and those numbers."""
    path = folder / f"transforms_{split}.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; which scene of {folder.parent} is meant?")
    content = json.loads(path.read_text())
    frames = {int(frame["file_path"].rpartition("_")[2]): frame for frame in content["frames"]}
    numbers = sorted(frames) if chosen is None else chosen
    height, width = settings.height, settings.width
    focal = 0.5 * width / math.tan(0.5 * content["camera_angle_x"])
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    images = [read_image(folder / f"{frames[number]['file_path']}.png", height, width) for number in numbers]
    rgb = np.stack(images) if images else np.zeros((0, height, width, 3), np.float32)
    poses = np.array([frames[number]["transform_matrix"] for number in numbers], dtype=np.float64).reshape(-1, 4, 4)
    return Views(rgb, np.tile(matrix, (len(numbers), 1, 1)), poses), numbers


def blender_scene(folder: Path, settings: SceneSettings) -> Scene:
    """A training view to learn from; views of the test split, or of the training split where there is no other, are held out."""
    views, numbers = blender_views(folder, "train", settings)
    if settings.reference not in numbers:
        raise UserError(f"{folder.name} has no training view {settings.reference}")
    place = numbers.index(settings.reference)
    reference = views.pick([place])
    if settings.test_split == "train":
        others, names = views, numbers
    else:
        others, names = blender_views(folder, "test", settings)
    if settings.test_views:
        wanted = [names.index(number) for number in settings.test_views if number in names]
    else:
        distance = angular_distance(reference.poses[0], others.poses, settings.near)
        wanted = list(np.flatnonzero(distance <= (settings.test_degrees or math.inf)))
    wanted = [index for index in wanted if settings.test_split == "test" or names[index] != settings.reference]
    if not wanted:
        raise UserError(f"{folder.name} has no test view within {settings.test_degrees} degrees of view {settings.reference}")
    held = {names[index] for index in wanted} if settings.test_split == "train" else set()
    kept = [index for index, number in enumerate(numbers) if number not in held]
    return Scene(
        reference, others.pick(wanted), views.pick(kept), settings.near, settings.far, white_background=True, depth_source="none"
    )


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
    """Poses recentred and scaled so that the nearest depth is 4/3; every so-manieth view is held out."""
    rows = np.load(folder / "poses_bounds.npy", allow_pickle=False)
    packed, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    turned = np.concatenate([packed[..., 1:2], -packed[..., :1], packed[..., 2:4]], axis=-1)  # (down, right, back) before
    scale = LLFF_NEAR * bounds.min()
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = turned
    poses[:, :3, 3] /= scale
    poses = np.linalg.inv(average_pose(poses)) @ poses
    height, width = settings.height, settings.width
    focal = float(packed[0, 2, 4]) * width / float(packed[0, 1, 4])
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    files = sorted(path for path in _largest(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) != len(rows):
        raise UserError(f"{folder.name}: {len(files)} images and {len(rows)} poses do not fit")
    middle = int(np.linalg.norm(poses[:, :3, 3], axis=-1).argmin())
    reference = settings.reference if settings.reference >= 0 else (middle - 1) % len(rows)
    tests = [index for index in range(len(rows)) if index % settings.test_every == 0 and index != reference]
    rest = [index for index in range(len(rows)) if index not in tests]
    rgb = np.stack([read_image(path, height, width) for path in files])
    views = Views(rgb, np.tile(matrix, (len(rows), 1, 1)), poses)
    near, far = 0.9 * bounds.min() / scale, bounds.max() / scale
    picked = views.pick([reference]), views.pick(tests), views.pick(rest)
    return Scene(*picked, float(near), float(far), white_background=False, depth_source="none")


def _largest(folder: Path) -> Path:
    """The folder of images at full size, else the least reduced one (``images_4`` before ``images_8``)."""
    found = sorted(folder.glob("images*"), key=lambda path: int(path.name.partition("_")[2] or 1))
    if not found:
        raise UserError(f"{folder} has no images*/")
    return found[0]


def read_pfm(path: Path) -> Array:
    """A grey PFM file, top row first."""
    with path.open("rb") as stream:
        if stream.readline().strip() != b"Pf":
            raise UserError(f"{path} is not a grey PFM file")
        width, height = map(int, stream.readline().split())
        order = "<" if float(stream.readline()) < 0 else ">"
        values = np.frombuffer(stream.read(), dtype=f"{order}f4", count=width * height)
    return values.reshape(height, width)[::-1].astype(np.float64)


def _dtu_camera(path: Path, height: int, width: int) -> tuple[Array, Array, float, float]:
    """Intrinsics, OpenGL pose, and depth bounds, in units of 200 mm."""
    words = path.read_text().split()
    extrinsic = np.array(words[1:17], dtype=np.float64).reshape(4, 4)
    matrix = np.array(words[18:27], dtype=np.float64).reshape(3, 3)
    first, interval = float(words[27]), float(words[28])
    matrix[0] *= width / 160  # the files describe images of 160 × 128
    matrix[1] *= height / 128
    extrinsic[:3, 3] *= DTU_SCALE
    return matrix, np.linalg.inv(extrinsic) @ FLIP, first * DTU_SCALE, (first + DTU_DEPTHS * interval) * DTU_SCALE


def dtu_scene(folder: Path, settings: SceneSettings) -> Scene:
    """View 2 with its depth map to learn from; of its source views every second one is held out, the others lend their poses."""
    lines = (folder / "Cameras/pair.txt").read_text().split("\n")
    pairs = {int(lines[place]): [int(view) for view in lines[place + 1].split()[1::2]] for place in range(1, len(lines) - 1, 2)}
    if settings.reference not in pairs:
        raise UserError(f"dtu: pair.txt has no view {settings.reference}")
    sources = pairs[settings.reference]
    order = [settings.reference, *sources]
    height, width = settings.height, settings.width
    cameras = [_dtu_camera(folder / f"Cameras/train/{view:08d}_cam.txt", height, width) for view in order]
    place = folder / f"Rectified/{settings.name}_train"
    rgb = [read_image(place / f"rect_{view + 1:03d}_3_r5000.png", height, width, "bilinear") for view in order]
    small = read_pfm(folder / f"Depths/{settings.name}_train/depth_map_{settings.reference:04d}.pfm") * DTU_SCALE
    rows, cols = np.arange(height) * small.shape[0] // height, np.arange(width) * small.shape[1] // width
    views = Views(np.stack(rgb), np.stack([camera[0] for camera in cameras]), np.stack([camera[1] for camera in cameras]))
    reference = views.pick([0])
    reference.depth = small[rows[:, None], cols][None]
    held, lent = list(range(2, len(order), 2)), list(range(1, len(order), 2))
    near, far = cameras[0][2:]
    source = "multiview" if settings.depth == "given" else "none"
    return Scene(reference, views.pick(held), views.pick(lent), near, far, white_background=True, depth_source=source)
