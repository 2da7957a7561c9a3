"""What a step is supervised with: rays of the reference, rays of warped views, and patches of both."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atlas.methods.sinnerf.cameras import Camera, RGBDView, all_rays
from atlas.methods.sinnerf.poses import PosePrior
from atlas.methods.sinnerf.settings import Budget
from atlas.methods.sinnerf.warping import forward_warp


def derive(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A generator of its own for every purpose and step, so that no draw depends on how many others there were."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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
        """Flat indices (reference_rays,) of random pixels, with replacement."""
        count = budget.reference_rays
        wanted = round(budget.foreground * count) if len(self.coloured) else 0
        anywhere = torch.randint(self.height * self.width, (count - wanted,), generator=generator)
        if not wanted:
            return anywhere.to(self.rgb.device)
        chosen = self.coloured[torch.randint(len(self.coloured), (wanted,), generator=generator)]
        return torch.cat([anywhere, chosen]).to(self.rgb.device)

    def flat(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Flat indices (p·q) of a patch of rows (p) and columns (q), row by row."""
        return (rows[:, None] * self.width + cols).reshape(-1).to(self.rgb.device)

    def image(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Colours (1, 3, p, q) of a patch of rows (p) and columns (q)."""
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
    warped = forward_warp(view.rgb, view.depth, view.camera, target, crack_filter=True)
    device = reference.rgb.device
    return Warped(
        target,
        torch.from_numpy(warped.depth.reshape(-1).astype(np.float32)).to(device),
        torch.from_numpy(warped.rgb.reshape(-1, 3)).to(device),
        torch.from_numpy(warped.valid.reshape(-1)).to(device),
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
            warp_reference(reference, prior.sample(reference.camera, 1.0, derive(seed, "pool", index))) for index in range(count)
        ]
        known = [view.valid.nonzero().flatten() for view in self.views]
        self.pixel = torch.cat(known)
        self.view = torch.cat([torch.full_like(pixels, index) for index, pixels in enumerate(known)])
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
