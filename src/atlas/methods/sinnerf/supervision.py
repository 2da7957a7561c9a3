"""What a step is supervised with: rays of the reference, rays of warped views, and patches of both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atlas.methods.sinnerf.cameras import Camera, RGBDView, all_rays
from atlas.methods.sinnerf.poses import PosePrior
from atlas.methods.sinnerf.warping import WarpResult, forward_warp


def derive(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A generator of its own for every purpose and step, so that no draw depends on how many others there were."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Budget:
    """Rays of a step, and where unseen views are taken from; the defaults are the paper's for Blender scenes.

    Attributes
    ----------
    reference_rays, warped_rays : int
        Random rays of the reference, and of the pool of warped views.
    patch : int or (int, int), optional
        Rows and columns of the patches; by default the largest square that fits, 64 at most.
    reference_patch : bool
        Whether a patch of the reference is rendered, too.
    pool : int
        Number of warped views, drawn once.
    unseen : {"fresh", "pool"}
        Poses of unseen patches: drawn at every step, or those of the pool.
    foreground : float
        Share of the reference rays that is drawn from pixels which are not white.
    """

    reference_rays: int = 4096
    warped_rays: int = 4096
    patch: int | tuple[int, int] | None = None
    reference_patch: bool = True
    pool: int = 125
    unseen: Literal["fresh", "pool"] = "fresh"
    foreground: float = 0.0

    def patch_size(self, height: int, width: int, stride: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image.

        Raises
        ------
        ValueError
            The patch is larger than the image at this stride.
        """
        if self.patch is None:
            fits = (min(height, width) - 1) // stride + 1
            size = (min(64, fits),) * 2
            if fits < 2:
                raise ValueError(
                    f"even a patch of 2 × 2 pixels at stride {stride} is larger than the image of {height} × {width}"
                )
        else:
            size = (self.patch, self.patch) if isinstance(self.patch, int) else self.patch
            if (size[0] - 1) * stride + 1 > height or (size[1] - 1) * stride + 1 > width:
                raise ValueError(
                    f"a patch of {size[0]} × {size[1]} pixels at stride {stride} is larger than the image of {height} × {width}"
                )
        return size


class Reference:
    """The view as tensors: ``rays`` (n, 8), ``rgb`` (n, 3), ``depth`` (n), ``valid`` (n), n = height·width, row by row."""

    def __init__(self, view: RGBDView, near: float, far: float, device: torch.device) -> None:
        self.view, self.camera = view, view.camera
        self.height, self.width = view.camera.height, view.camera.width
        self.rays = all_rays(view.camera, near, far).to(device)
        self.rgb = torch.from_numpy(view.rgb.reshape(-1, 3).copy()).to(device)
        depth = np.zeros(view.valid.shape) if view.depth is None else view.depth
        self.depth = torch.from_numpy(depth.reshape(-1).astype(np.float32)).to(device)
        self.valid = torch.from_numpy(view.valid.reshape(-1).copy()).to(device)
        self.coloured = (self.rgb < 1).any(-1).nonzero().flatten().cpu()

    def draw(self, budget: Budget, generator: torch.Generator) -> Tensor:
        """Flat indices of random pixels, with replacement."""
        count = budget.reference_rays
        wanted = round(budget.foreground * count) if len(self.coloured) else 0
        anywhere = torch.randint(self.height * self.width, (count - wanted,), generator=generator)
        if not wanted:
            return anywhere.to(self.rgb.device)
        chosen = self.coloured[torch.randint(len(self.coloured), (wanted,), generator=generator)]
        return torch.cat([anywhere, chosen]).to(self.rgb.device)

    def flat(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Flat indices of a patch, row by row."""
        return (rows[:, None] * self.width + cols).reshape(-1).to(self.rgb.device)

    def image(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Colours of a patch, (1, 3, p, q)."""
        return self.rgb[self.flat(rows, cols)].T.reshape(1, 3, len(rows), len(cols))


class Warped(NamedTuple):
    """A warped view: its camera, depths (n) and colours (n, 3) of all pixels, and which of them are known (n)."""

    camera: Camera
    depth: Tensor
    rgb: Tensor
    valid: Tensor


def warp_reference(reference: Reference, camera: Camera) -> Warped:
    """Warp the reference to another pose, with its own intrinsics and without cracks."""
    view = reference.view
    assert view.depth is not None
    target = view.camera.moved(camera.c2w)
    found: WarpResult = forward_warp(view.rgb, view.depth, view.camera, target, crack_filter=True)
    device = reference.rgb.device
    return Warped(
        target,
        torch.from_numpy(found.depth.reshape(-1).astype(np.float32)).to(device),
        torch.from_numpy(found.rgb.reshape(-1, 3)).to(device),
        torch.from_numpy(found.valid.reshape(-1)).to(device),
    )


class WarpPool:
    """Warped views of fixed poses, and their known pixels in one list to draw from.

    Parameters
    ----------
    reference : Reference
        What is warped.
    prior : PosePrior
        Gives ``count`` poses at the end of its schedule.

    Raises
    ------
    ValueError
        No warped view sees anything of the reference.
    """

    def __init__(self, reference: Reference, prior: PosePrior, count: int, near: float, far: float, seed: int) -> None:
        self.reference, self.near, self.far = reference, near, far
        device = reference.rgb.device
        self.views = [
            warp_reference(reference, prior.sample(reference.camera, 1.0, derive(seed, "pool", place))) for place in range(count)
        ]
        found = [view.valid.nonzero().flatten() for view in self.views]
        self.pixel = torch.cat(found)
        self.view = torch.cat([torch.full_like(pixels, place) for place, pixels in enumerate(found)])
        if not len(self.pixel):
            raise ValueError("no unseen pose sees anything of the reference; are depth and pose prior in the same units?")
        self.depth = torch.cat([view.depth[view.valid] for view in self.views])
        self.rgb = torch.cat([view.rgb[view.valid] for view in self.views])
        flipped = torch.from_numpy(reference.camera.c2w[:3, :3].copy())
        self.local = (reference.rays[:, 3:6].double().cpu() @ flipped).float().to(device)
        poses = np.stack([view.camera.c2w for view in self.views])
        self.rotation = torch.from_numpy(poses[:, :3, :3].astype(np.float32)).to(device)
        self.origin = torch.from_numpy(poses[:, :3, 3].astype(np.float32)).to(device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random known pixels of the pool: rays (count, 8), depths (count), colours (count, 3)."""
        chosen = torch.randint(len(self.pixel), (count,), generator=generator).to(self.pixel.device)
        view = self.view[chosen]
        directions = torch.einsum("nij,nj->ni", self.rotation[view], self.local[self.pixel[chosen]])
        limits = directions.new_tensor([self.near, self.far]).expand(count, 2)
        rays = torch.cat([self.origin[view], directions, limits], dim=-1)
        return rays, self.depth[chosen], self.rgb[chosen]
