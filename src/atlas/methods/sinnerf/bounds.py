"""Where a scene is: the map from the world to the cube [−1, 1]³ in which voxel fields live, and which part of a ray matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from atlas.methods.sinnerf.cameras import Camera, numbers

PARALLEL = 1e-9


class Bounds(Protocol):
    """A region of the world, which becomes the cube of a field."""

    def normalise(self, points: Tensor) -> Tensor:
        """Map world points (…, 3) to the cube: (…, 3) in [−1, 1]."""
        ...

    def clip(self, rays: Tensor) -> Tensor:
        """Rays (n, 8) with [near, far] cut to the region; one that misses it keeps one of length 0 and sees nothing."""
        ...


@dataclass(frozen=True)
class Box:
    """An axis-aligned box, for scenes around an object.

    Raises
    ------
    ValueError
        A corner is not below the opposite one.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not (len(self.low) == len(self.high) == 3 and all(a < b for a, b in zip(self.low, self.high, strict=True))):
            raise ValueError(f"a box needs three lower and three higher bounds, not {self.low} and {self.high}")

    def normalise(self, points: Tensor) -> Tensor:
        """Map world points (…, 3) to the cube: (…, 3) in [−1, 1]."""
        low, high = points.new_tensor(self.low), points.new_tensor(self.high)
        return (points - low) * (2 / (high - low)) - 1

    def clip(self, rays: Tensor) -> Tensor:
        """Rays (n, 8) with [near, far] cut to the box (the slab test)."""
        low, high = rays.new_tensor(self.low), rays.new_tensor(self.high)
        origins, directions = rays[:, :3], rays[:, 3:6]
        safe = torch.where(directions.abs() < PARALLEL, torch.full_like(directions, PARALLEL), directions)
        first, second = (low - origins) / safe, (high - origins) / safe
        near = torch.minimum(first, second).amax(-1).maximum(rays[:, 6])
        far = torch.maximum(first, second).amin(-1).minimum(rays[:, 7])
        missed = far <= near
        near = torch.where(missed, rays[:, 6], near)
        far = torch.where(missed, near, far)
        return torch.cat([rays[:, :6], near[:, None], far[:, None]], dim=-1)


@dataclass(frozen=True, eq=False)
class Frustum:
    """What a camera sees between two depths, for forward-facing scenes: coordinates are (column, row, disparity).

    Attributes
    ----------
    camera : Camera
        The reference camera.
    near, far : float
        z-depths.
    pad : tuple
        Pixels beyond the left, right, upper and lower border: the largest parallax of unseen poses. Points farther out are moved
        to the border.
    """

    camera: Camera
    near: float
    far: float
    pad: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def normalise(self, points: Tensor) -> Tensor:
        """Map world points (…, 3) to the cube: (…, 3) in [−1, 1]."""
        transform = points.new_tensor(np.asarray(self.camera.K @ self.camera.w2c[:3]))
        image = points @ transform[:, :3].T + transform[:, 3]
        depth = image[..., 2:].clamp(min=0.5 * self.near)
        left, right, up, down = self.pad
        low = points.new_tensor([-left, -up, 1 / self.far])
        high = points.new_tensor([self.camera.width - 1 + right, self.camera.height - 1 + down, 1 / self.near])
        local = torch.cat([image[..., :2], torch.ones_like(depth)], dim=-1) / depth
        return ((local - low) * (2 / (high - low)) - 1).clamp(-1, 1)

    def clip(self, rays: Tensor) -> Tensor:
        """Return rays (n, 8) as they are: a frustum has no ray that misses it."""
        return rays


def as_bounds(bounds: Bounds | ArrayLike | None) -> Bounds | None:
    """Bounds as such; a (2, 3) array is a box of its lower and upper corner, ``None`` is all of space.

    Raises
    ------
    ValueError
        The array has another shape, or an empty box.
    """
    if bounds is None or (hasattr(bounds, "normalise") and hasattr(bounds, "clip")):
        return bounds  # type: ignore[return-value]
    corners = numbers(bounds, "bounds")
    if corners.shape != (2, 3):
        raise ValueError(f"bounds must be (2, 3), the lower and the upper corner, not {corners.shape}")
    low, high = (tuple(map(float, corner)) for corner in corners)
    return Box(low, high)  # type: ignore[arg-type]


class Bounded(nn.Module):
    """A field of [−1, 1]³ as a field of the world.

    Parameters
    ----------
    field : nn.Module
        ``field(x, d) -> (rgb, σ)`` on normalised points; directions are passed on as they are.
    bounds : Bounds, optional
        The map; without one the field gets world points.
    """

    def __init__(self, field: nn.Module, bounds: Bounds | None) -> None:
        super().__init__()
        self.field, self.bounds = field, bounds

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (…, 3) and densities (…) at world points x (…, 3), seen along directions d (…, 3)."""
        return self.field(self._local(x), d)

    def density(self, x: Tensor) -> Tensor:
        """Densities alone, (…), at world points x (…, 3)."""
        own = getattr(self.field, "density", None)
        return self.field(self._local(x), torch.ones_like(x))[1] if own is None else own(self._local(x))

    def _local(self, x: Tensor) -> Tensor:
        """The field's own coordinates (…, 3) of world points (…, 3)."""
        return x if self.bounds is None else self.bounds.normalise(x)
