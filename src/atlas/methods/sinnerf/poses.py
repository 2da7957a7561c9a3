"""Where the pseudo-labels are looked at: strided patches of pixels, and poses around the reference (paper, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from atlas.methods.sinnerf.cameras import Array, Camera, checked_pose, numbers
from atlas.nn.kinds import require_kind, require_sequence

Axes = Literal["world", "turntable"]
START_SPREAD = 0.3
"""Share of the final spread with which a widening prior starts."""


def strided_patch(
    h: int, w: int, patch: int | tuple[int, int], stride: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Rows and columns of a patch of ``patch`` pixels, ``stride`` apart, at a uniformly drawn place of an h × w image.

    Returns
    -------
    rows, cols : Tensor
        (p) and (q) int64, ascending: ``r₀ + stride·{0 … p−1}``. Every place at which the patch fits is as likely as any other,
        the last included.

    Raises
    ------
    ValueError
        The patch does not fit, or ``patch`` or ``stride`` is less than 1.
    """
    p, q = (patch, patch) if isinstance(patch, int) else patch
    if min(p, q, stride) < 1:
        raise ValueError(f"patch and stride must be at least 1, not {patch} and {stride}")
    free_rows, free_cols = h - (p - 1) * stride, w - (q - 1) * stride
    if free_rows < 1 or free_cols < 1:
        raise ValueError(f"a patch of {p} × {q} pixels at stride {stride} is larger than the image of {h} × {w}")
    first_row = int(torch.randint(free_rows, (1,), generator=generator))
    first_col = int(torch.randint(free_cols, (1,), generator=generator))
    return first_row + stride * torch.arange(p), first_col + stride * torch.arange(q)


class PosePrior(Protocol):
    """Says where unseen views are imagined: draws cameras around the reference."""

    def sample(self, ref: Camera, progress: float, rng: np.random.Generator | torch.Generator) -> Camera:
        """A camera near ``ref``, when ``progress`` in [0, 1] of the training is done."""
        ...


def _normal(rng: np.random.Generator | torch.Generator, count: int) -> Array:
    """Standard normal numbers (count) of either library's generator."""
    if isinstance(rng, torch.Generator):
        return torch.randn(count, generator=rng, dtype=torch.float64, device=rng.device).cpu().numpy()
    return np.asarray(rng.standard_normal(count))


def _spread(widening: bool, progress: float) -> float:
    """Share of the final spread when ``progress`` in [0, 1] of the training is done."""
    return START_SPREAD + (1 - START_SPREAD) * min(max(progress, 0.0), 1.0) if widening else 1.0


def rotation(axis: Sequence[float] | Array, radians: float) -> Array:
    """(3, 3) rotation about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(radians) * cross + (1 - math.cos(radians)) * cross @ cross


def turned(camera: Camera, turn: Array, center: Sequence[float] | Array) -> Camera:
    """A camera carried along by a rotation (3, 3) of the world about a point."""
    pose = np.array(camera.c2w)
    pose[:3, :3] = turn @ pose[:3, :3]
    pose[:3, 3] = turn @ (pose[:3, 3] - center) + center
    return camera.moved(pose)


def _check_spread(values: Any, name: str) -> None:
    """Refuse standard deviations that are negative or not finite."""
    spread = numbers(values, name)
    if not (np.isfinite(spread).all() and (spread >= 0).all()):
        raise ValueError(f"{name} must be finite and not negative, not {values}")


@dataclass(frozen=True)
class OrbitGaussian:
    """Rotations about a point: for scenes around an object.

    Attributes
    ----------
    degrees : float or tuple
        Standard deviation per axis. The official code's angle of 20 is a standard deviation of 10.
    center : tuple
        The point.
    axes : {"world", "turntable"}
        ``Rx(a)·Ry(b)·Rz(c)`` in the world; or an elevation about the camera's right axis and an azimuth about the world's z, with
        ``degrees`` = (azimuth, elevation).
    widening : bool
        Start with 0.3 of the spread and end with all of it.

    Raises
    ------
    TypeError
        Spreads or centre are no numbers.
    ValueError
        A spread is negative or not finite, their number does not fit the axes, there are no such axes, or the centre is not three
        finite numbers.
    """

    degrees: float | tuple[float, ...] = 10.0
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axes: Axes = "world"
    widening: bool = True

    def __post_init__(self) -> None:
        require_kind((int, float, tuple, list), "a number, or a tuple of one per axis,", degrees=self.degrees)
        if self.axes not in get_args(Axes):
            raise ValueError(f"there are no axes {self.axes!r}; choose from {', '.join(get_args(Axes))}")
        count = 3 if self.axes == "world" else 2
        if len(self.spreads) != count:
            raise ValueError(f"degrees {self.degrees} do not fit the axes {self.axes}: one number, or {count}, are needed")
        _check_spread(self.degrees, "degrees")
        center = numbers(self.center, "center")
        if center.shape != (3,) or not np.isfinite(center).all():
            raise ValueError(f"center must be 3 finite numbers, not {self.center}")

    @property
    def spreads(self) -> tuple[float, ...]:
        """Standard deviation per axis, in degrees."""
        count = 3 if self.axes == "world" else 2
        return (self.degrees,) * count if isinstance(self.degrees, int | float) else tuple(self.degrees)

    def sample(self, ref: Camera, progress: float, rng: np.random.Generator | torch.Generator) -> Camera:
        """A camera that is turned about the centre by random angles."""
        angles = np.radians(self.spreads) * _normal(rng, len(self.spreads)) * _spread(self.widening, progress)
        return self.at(ref, angles)

    def at(self, ref: Camera, angles: Sequence[float] | Array) -> Camera:
        """The camera at given angles, in radians."""
        if self.axes == "world":
            turn = rotation((1, 0, 0), angles[0]) @ rotation((0, 1, 0), angles[1]) @ rotation((0, 0, 1), angles[2])
        else:
            turn = rotation((0, 0, 1), angles[0]) @ rotation(ref.c2w[:3, 0], -angles[1])
        return turned(ref, turn, np.asarray(self.center))


@dataclass(frozen=True)
class TranslationGaussian:
    """Shifts along the reference camera's own axes (right, up, back), in scene units: for forward-facing scenes.

    Attributes
    ----------
    sigma : tuple
        Standard deviation per axis.
    widening : bool
        Start with 0.3 of the spread and end with all of it.

    Raises
    ------
    TypeError
        Standard deviations are no numbers.
    ValueError
        They are not three, or one is negative or not finite.
    """

    sigma: tuple[float, float, float] = (0.1, 0.1, 0.1)
    widening: bool = True

    def __post_init__(self) -> None:
        if numbers(self.sigma, "sigma").shape != (3,):
            raise ValueError(f"sigma must be 3 finite numbers, not {self.sigma}")
        _check_spread(self.sigma, "sigma")

    def sample(self, ref: Camera, progress: float, rng: np.random.Generator | torch.Generator) -> Camera:
        """A shifted camera with the reference's orientation."""
        pose = np.array(ref.c2w)
        shift = np.asarray(self.sigma) * _normal(rng, 3) * _spread(self.widening, progress)
        pose[:3, 3] += pose[:3, :3] @ shift
        return ref.moved(pose)


@dataclass(frozen=True)
class PoseList:
    """Given poses, all equally likely: for captures whose camera path is known.

    Attributes
    ----------
    poses : sequence
        (4, 4) camera-to-world poses, of which (3, 4) are completed, or cameras.

    Raises
    ------
    TypeError
        There is no sequence, or one is neither an array of numbers nor a camera.
    ValueError
        The list is empty, a pose has another shape, or it holds no rotation.
    """

    poses: Sequence[Any]

    def __post_init__(self) -> None:
        require_sequence("a sequence of poses (4, 4) or cameras", poses=self.poses)
        if not len(self.poses):
            raise ValueError("a list of poses needs a pose")
        for index, pose in enumerate(self.poses):
            if not isinstance(pose, Camera):
                checked_pose(pose, f"poses[{index}]")

    def sample(self, ref: Camera, progress: float, rng: np.random.Generator | torch.Generator) -> Camera:
        """One of the poses; plain poses take the reference's intrinsics."""
        if isinstance(rng, torch.Generator):
            index = int(torch.randint(len(self.poses), (1,), generator=rng))
        else:
            index = int(rng.integers(len(self.poses)))
        chosen = self.poses[index]
        return chosen if isinstance(chosen, Camera) else ref.moved(chosen)
