"""A scene as the task's methods see it: plain arrays, written once by the stage ``scene`` and read by every run of its seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.harness.files import read_tensors, write_json, write_tensors

Array = NDArray[Any]

TENSORS, FACTS = "scene.safetensors", "scene.json"
SOURCES = {"none": 0, "measured": 1, "exact": 2, "multiview": 3}
"""Where a reference's depth comes from, as the table prints it: ``multiview`` is made from other views of the scene."""


@dataclass
class Views:
    """Posed images of one size.

    Attributes
    ----------
    rgb : array
        (n, height, width, 3) float32 in [0, 1].
    intrinsics, poses : array
        (n, 3, 3) in pixels, integer pixel centres; (n, 4, 4) camera to world, OpenGL.
    depth : array, optional
        (n, height, width) z-depth, 0 where unknown or background.
    """

    rgb: Array
    intrinsics: Array
    poses: Array
    depth: Array | None = None

    def __len__(self) -> int:
        return len(self.poses)

    def pick(self, chosen: Array | list[int]) -> Views:
        """Return some of the views, by their indices."""
        chosen = np.asarray(chosen, dtype=np.int64)
        depth = None if self.depth is None else self.depth[chosen]
        return Views(self.rgb[chosen], self.intrinsics[chosen], self.poses[chosen], depth)

    def strided(self, stride: int) -> Views:
        """Every ``stride``-th row and column; pixel centres stay integers."""
        intrinsics = self.intrinsics.copy()
        intrinsics[:, :2] /= stride
        depth = None if self.depth is None else self.depth[:, ::stride, ::stride]
        return Views(self.rgb[:, ::stride, ::stride], intrinsics, self.poses, depth)


@dataclass
class Scene:
    """Everything about one scene.

    Attributes
    ----------
    reference, test, train : Views
        One view to learn from; the views held out; and, where a capture has them, further views: only a teacher and an upper
        bound look at their images.
    near, far : float
        z-depths that bound the rays.
    white_background : bool
        Whether what is empty is white.
    depth_source : str
        A key of :data:`SOURCES`.
    covisible : array, optional
        (tests, height, width) bool: pixels that the warped reference reaches.
    """

    reference: Views
    test: Views
    train: Views
    near: float
    far: float
    white_background: bool
    depth_source: str
    covisible: Array | None = None

    def distance(self) -> Array:
        """(tests) how far each test camera is from the reference's, in degrees; see :func:`angular_distance`."""
        return angular_distance(self.reference.poses[0], self.test.poses, self.near)


def angular_distance(pose: Array, others: Array, near: float) -> Array:
    """Angle between optical axes in degrees; between parallel axes the parallax at ``near`` takes its place."""
    axes = others[:, :3, 2] @ pose[:3, 2]
    angles = np.degrees(np.arccos(np.clip(axes, -1, 1)))
    parallax = np.degrees(np.arctan(np.linalg.norm(others[:, :3, 3] - pose[:3, 3], axis=-1) / near))
    return np.where(angles < 0.1, parallax, angles)


def save_scene(scene: Scene, folder: Path) -> None:
    """Write a scene into a checkpoint folder; colours of ``train`` are kept as uint8."""
    import torch

    tensors: dict[str, Any] = {}
    for name in ("reference", "test", "train"):
        views: Views = getattr(scene, name)
        rgb = (views.rgb * 255 + 0.5).astype(np.uint8) if name == "train" else views.rgb.astype(np.float32)
        tensors |= {f"{name}.rgb": rgb, f"{name}.intrinsics": views.intrinsics, f"{name}.poses": views.poses}
        if views.depth is not None:
            tensors[f"{name}.depth"] = views.depth.astype(np.float64)
    if scene.covisible is not None:
        tensors["covisible"] = scene.covisible.astype(np.uint8)
    write_tensors(folder / TENSORS, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()})
    facts = {
        "near": scene.near,
        "far": scene.far,
        "white_background": scene.white_background,
        "depth_source": scene.depth_source,
    }
    write_json(folder / FACTS, facts)


def load_scene(folder: Path) -> Scene:
    """Read a scene from the checkpoint folder of the stage that made it."""
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(folder / TENSORS).items()}
    facts = json.loads((folder / FACTS).read_text())

    def views(name: str) -> Views:
        rgb = arrays[f"{name}.rgb"]
        rgb = rgb.astype(np.float32) / 255 if rgb.dtype == np.uint8 else rgb
        return Views(rgb, arrays[f"{name}.intrinsics"], arrays[f"{name}.poses"], arrays.get(f"{name}.depth"))

    covisible = arrays["covisible"].astype(bool) if "covisible" in arrays else None
    return Scene(views("reference"), views("test"), views("train"), covisible=covisible, **facts)
