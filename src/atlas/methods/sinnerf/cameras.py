"""Posed pinhole cameras and posed images with depth: what a scene is given as, and how pixels become rays.

Conventions. Pixel (u, v) counts columns and rows from the centre of the top left pixel. ``c2w`` is an OpenGL pose: x right, y up,
looking along −z. A ray's direction is not normalised: its component along the optical axis is one, so that the parameter t of
``o + t·d`` *is* the z-depth (distance along the optical axis, not along the ray).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlas.nn.kinds import require_kind, require_whole

Array = NDArray[Any]

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
"""Between OpenGL cameras (y up, looking along −z) and OpenCV cameras (y down, looking along +z)."""
ROTATION_TOLERANCE = 1e-4
ROUNDING = 1e-5
"""How far colours may leave [0, 1] by rounding in resizing."""


def numbers(values: Any, name: str) -> Array:
    """An array, tensor or nested list as an array of doubles.

    Raises
    ------
    TypeError
        It holds no numbers; a file's name above all.
    """
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(values).__name__}; an array of numbers is needed") from None


def checked_pose(values: Any, name: str) -> Array:
    """A camera-to-world pose (4, 4), or (3, 4), as a new (4, 4) array of doubles.

    Raises
    ------
    TypeError
        It is no array of numbers.
    ValueError
        It has another shape, or holds no rotation.
    """
    pose = np.array(numbers(values, name))
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4):
        raise ValueError(f"{name} must be (4, 4), not {pose.shape}")
    rotation = pose[:3, :3]
    drift = np.abs(rotation @ rotation.T - np.eye(3)).max() if np.isfinite(pose).all() else np.inf
    if not (drift <= ROTATION_TOLERANCE and abs(np.linalg.det(rotation) - 1) <= ROTATION_TOLERANCE):
        raise ValueError(f"{name} holds no rotation: R·Rᵀ is off the identity by {drift:.2g}, or R mirrors")
    return pose


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with a pose.

    Attributes
    ----------
    K : array
        (3, 3) intrinsics in pixels, with integer pixel centres.
    c2w : array
        (4, 4) camera-to-world pose, OpenGL; (3, 4) is completed.
    height, width : int
        Size of the image in pixels.

    Raises
    ------
    TypeError
        Intrinsics or pose are no arrays of numbers, or a size is no whole number.
    ValueError
        A focal length is not positive, K is no upper triangle with a last row of 0, 0, 1, the pose holds no rotation, or a
        shape or size is wrong.
    """

    K: Array
    c2w: Array
    height: int
    width: int

    def __post_init__(self) -> None:
        require_whole(height=self.height, width=self.width)
        intrinsics = np.array(numbers(self.K, "K"))
        if intrinsics.shape != (3, 3):
            raise ValueError(f"K must be (3, 3), not {intrinsics.shape}")
        if not (np.isfinite(intrinsics).all() and intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0):
            raise ValueError(f"focal lengths must be positive and K finite, not {intrinsics.tolist()}")
        if intrinsics[1, 0] != 0 or not np.array_equal(intrinsics[2], (0, 0, 1)):
            raise ValueError(f"K must be upper triangular with the last row 0, 0, 1, not {intrinsics.tolist()}")
        pose = checked_pose(self.c2w, "c2w")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image needs pixels, not {self.height} × {self.width}")
        intrinsics.setflags(write=False)
        pose.setflags(write=False)
        object.__setattr__(self, "K", intrinsics)
        object.__setattr__(self, "c2w", pose)

    @cached_property
    def w2c(self) -> Array:
        """(4, 4) OpenCV world-to-camera transform, ``diag(1, −1, −1, 1)·c2w⁻¹``; the rotation is transposed, not inverted."""
        rotation, origin = self.c2w[:3, :3], self.c2w[:3, 3]
        inverse = np.eye(4)
        inverse[:3, :3] = rotation.T
        inverse[:3, 3] = -rotation.T @ origin
        return FLIP @ inverse

    @property
    def origin(self) -> Array:
        """(3,) centre of projection in the world."""
        return self.c2w[:3, 3]

    def moved(self, c2w: ArrayLike) -> Camera:
        """The same camera at another pose."""
        return Camera(self.K, np.asarray(c2w, dtype=np.float64), self.height, self.width)

    def resized(self, height: int, width: int) -> Camera:
        """The same view sampled with another number of pixels; pixel centres stay integers."""
        scale_x, scale_y = width / self.width, height / self.height
        intrinsics = np.array(self.K)
        intrinsics[0] *= scale_x
        intrinsics[1] *= scale_y
        intrinsics[0, 2] = (self.K[0, 2] + 0.5) * scale_x - 0.5
        intrinsics[1, 2] = (self.K[1, 2] + 0.5) * scale_y - 0.5
        return Camera(intrinsics, self.c2w, height, width)

    def directions(self, rows: ArrayLike, cols: ArrayLike) -> Array:
        """Un-normalised directions in the world of some pixels, (…, 3) float64."""
        rows, cols = np.asarray(rows, dtype=np.float64), np.asarray(cols, dtype=np.float64)
        x = (cols - self.K[0, 2] - self.K[0, 1] * (rows - self.K[1, 2]) / self.K[1, 1]) / self.K[0, 0]
        y = (rows - self.K[1, 2]) / self.K[1, 1]
        local = np.stack(np.broadcast_arrays(x, -y, -np.ones_like(x)), axis=-1)
        return local @ self.c2w[:3, :3].T

    def project(self, points: ArrayLike) -> tuple[Array, Array, Array]:
        """Columns, rows and z-depths (…) of world points (…, 3); a point behind the camera has a negative depth."""
        local = np.asarray(points, dtype=np.float64) @ self.w2c[:3, :3].T + self.w2c[:3, 3]
        depth = local[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            image = (local / depth[..., None]) @ self.K.T
        return image[..., 0], image[..., 1], depth


def pixel_rays(camera: Camera, rows: ArrayLike, cols: ArrayLike, near: float, far: float) -> Tensor:
    """Rays of some pixels.

    Returns
    -------
    Tensor
        (n, 8) float32: origin (3), direction (3) whose parameter is the z-depth, near, far.

    Raises
    ------
    ValueError
        ``near`` is negative or not below ``far``, or one of them is not finite.
    """
    if not 0 <= near < far < math.inf:
        raise ValueError(f"rays begin at near {near} and end at far {far}: near must be 0 or more, and below far")
    directions = camera.directions(np.ravel(rows), np.ravel(cols))
    rays = np.empty((len(directions), 8))
    rays[:, :3], rays[:, 3:6], rays[:, 6], rays[:, 7] = camera.origin, directions, near, far
    return torch.from_numpy(rays.astype(np.float32))


def all_rays(camera: Camera, near: float, far: float) -> Tensor:
    """Rays of every pixel, row by row: (height·width, 8)."""
    rows, cols = np.mgrid[: camera.height, : camera.width]
    return pixel_rays(camera, rows, cols, near, far)


@dataclass(frozen=True, eq=False)
class RGBDView:
    """One posed image, with or without z-depth: all that SinNeRF learns from.

    Attributes
    ----------
    rgb : array
        (height, width, 3) floating-point numbers in [0, 1].
    depth : array, optional
        (height, width) z-depth in scene units; what is not positive, not finite or masked is unknown or background, and
        becomes 0.
    camera : Camera
        Where it was taken, with as many rows and columns.

    Raises
    ------
    TypeError
        Colours or depth are no arrays of numbers, or the camera is no :class:`Camera`.
    ValueError
        The colours are integers, not finite or outside [0, 1]; the depth is in the millimetres of a sensor, or negative where it
        is known at all; or shapes do not fit together.
    """

    rgb: Array
    depth: Array | None
    camera: Camera
    valid: Array = field(init=False)

    def __post_init__(self) -> None:
        require_kind(Camera, "a Camera", camera=self.camera)
        for name in ("rgb", "depth"):
            given = getattr(self, name)
            if isinstance(given, Tensor):
                object.__setattr__(self, name, given.detach().cpu().numpy())
            elif given is not None:
                numbers(given, name)
        rgb = np.ma.asanyarray(self.rgb)
        size = (self.camera.height, self.camera.width)
        if rgb.shape != (*size, 3):
            raise ValueError(f"rgb must be {(*size, 3)}, as the camera's height and width say, not {rgb.shape}")
        if not np.issubdtype(rgb.dtype, np.floating):
            raise ValueError(f"rgb must be floating-point numbers in [0, 1], not {rgb.dtype}; divide bytes by 255")
        rgb = rgb.filled(np.nan)
        if not np.isfinite(rgb).all():
            raise ValueError("rgb is not finite, or masked")
        if rgb.min() < -ROUNDING or rgb.max() > 1 + ROUNDING:
            raise ValueError(f"rgb must lie in [0, 1], not in [{rgb.min():.4g}, {rgb.max():.4g}]; divide bytes by 255, or clip")
        valid = np.zeros(size, dtype=bool)
        if self.depth is not None:
            if np.asanyarray(self.depth).dtype == np.uint16:
                raise ValueError("depth is uint16, as sensors write millimetres: divide it by 1000 for metres (0 stays unknown)")
            depth = np.ma.asanyarray(self.depth, dtype=np.float64).filled(np.nan)
            if depth.shape != size:
                raise ValueError(f"depth must be {size} as rgb, not {depth.shape}")
            known = np.isfinite(depth)
            valid = known & (depth > 0)
            if not valid.any() and depth[known].min(initial=0) < 0:
                raise ValueError(
                    f"depth is nowhere positive, but from {depth[known].min():.4g} to {depth[known].max():.4g}; z-depth grows "
                    "along the optical axis: is its sign turned?"
                )
            object.__setattr__(self, "depth", np.where(valid, depth, 0.0))
        object.__setattr__(self, "rgb", rgb.astype(np.float32))
        object.__setattr__(self, "valid", valid)


def depth_from_disparity(disp: ArrayLike, *, focal_px: float, baseline: float, doffs: float = 0.0) -> Array:
    """Turn a disparity map into z-depth, ``focal·baseline / (disparity + doffs)``.

    Parameters
    ----------
    disp : array
        Disparities in pixels; not finite (or at most −``doffs``) where there is none.
    focal_px, baseline : float
        Focal length in pixels; distance of the two cameras, whose unit is the depth's.
    doffs : float
        Column of the right principal point minus that of the left one, in pixels.

    Returns
    -------
    array
        Depths, 0 where there is no disparity.

    Raises
    ------
    ValueError
        ``focal_px`` or ``baseline`` is not positive.
    """
    if not (focal_px > 0 and baseline > 0):
        raise ValueError(f"focal_px and baseline must be positive, not {focal_px} and {baseline}")
    total = numbers(disp, "disp") + doffs
    known = np.isfinite(total) & (total > 0)
    return np.where(known, focal_px * baseline / np.where(known, total, 1.0), 0.0)


def disparity_from_depth(depth: ArrayLike, *, focal_px: float, baseline: float, doffs: float = 0.0) -> Array:
    """The inverse of :func:`depth_from_disparity`; +inf where the depth is unknown."""
    depth = numbers(depth, "depth")
    known = np.isfinite(depth) & (depth > 0)
    return np.where(known, focal_px * baseline / np.where(known, depth, 1.0) - doffs, np.inf)


def depth_along_axis(ray_length: ArrayLike, camera: Camera) -> Array:
    """Turn lengths along the rays of every pixel, as some renderers write, into z-depth: divide by ‖d‖."""
    rows, cols = np.mgrid[: camera.height, : camera.width]
    require_kind(Camera, "a Camera", camera=camera)
    return numbers(ray_length, "ray_length") / np.linalg.norm(camera.directions(rows, cols), axis=-1)
