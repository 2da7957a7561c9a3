"""One step's terms, from what its rays saw."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from atlas.methods.sinnerf.cameras import Camera
from atlas.methods.sinnerf.losses import masked_mean, masked_smooth_l1, ray_termination, smoothness
from atlas.methods.sinnerf.rendering import Composite, RenderedLevel
from atlas.methods.sinnerf.settings import LossWeights, Shape
from atlas.methods.sinnerf.supervision import Reference


@dataclass
class RayGroup:
    """Rays of one kind within a step's batch, and what is known about them.

    Attributes
    ----------
    rays : Tensor
        (n, 8): origin, direction, near, far.
    rgb, depth, valid : Tensor, optional
        Colours (n, 3) and depths (n), and where the depths are known (n).
    size : (int, int), optional
        Rows and columns, where the rays are a patch, row by row.
    camera : Camera, optional
        Where an unseen patch is looked at from.
    levels : list of RenderedLevel
        What the rays saw, once they are rendered.
    """

    rays: Tensor
    rgb: Tensor | None = None
    depth: Tensor | None = None
    valid: Tensor | None = None
    size: tuple[int, int] | None = None
    camera: Camera | None = None
    levels: list[RenderedLevel] = field(default_factory=list)

    def image(self, seen: Composite) -> Tensor:
        """The rendered colours (p·q, 3) of a patch as an image, (1, 3, p, q)."""
        assert self.size is not None
        return seen.rgb.T.reshape(1, 3, *self.size)

    def split_off(self, levels: list[RenderedLevel], first: int) -> None:
        """Take this group's rays out of the batch's levels."""
        part = slice(first, first + len(self.rays))
        self.levels = [RenderedLevel(Composite(*(values[part] for values in level.seen)), level.t[part]) for level in levels]


class Terms:
    """Adds weighted terms up by name.

    Raises
    ------
    FloatingPointError
        From :meth:`total`, when a term is not finite: names it.
    """

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar to the term of that name, unless its weight is 0."""
        if getattr(self.weights, name):
            self.values[name] = self.values[name] + value if name in self.values else value

    def total(self) -> Tensor:
        """The weighted sum of all terms, a scalar: what a step minimises."""
        total = sum((getattr(self.weights, name) * value for name, value in self.values.items()), start=torch.zeros(()))
        assert isinstance(total, Tensor)
        if not torch.isfinite(total.detach()):
            wrong = [name for name, value in self.values.items() if not torch.isfinite(value.detach())]
            raise FloatingPointError(f"the loss is not finite: {', '.join(wrong) or 'only its sum'}")
        return total


def photometric(terms: Terms, group: RayGroup) -> None:
    """Mean squared error of the colours, at every level."""
    assert group.rgb is not None
    for level in group.levels:
        terms.add("rgb", torch.mean((level.seen.rgb - group.rgb) ** 2))


def reference_depth(terms: Terms, group: RayGroup, shape: Shape, white_background: bool) -> None:
    """Depth of random reference rays or of the reference patch, and emptiness where a white scene has no depth."""
    assert group.depth is not None
    assert group.valid is not None
    patch = group.size is not None
    for level in group.levels:
        seen = level.seen
        if patch and shape.patch_depth == "whole":
            terms.add("depth", torch.mean((seen.depth - torch.where(group.valid, group.depth, 0.0)) ** 2))
        else:
            terms.add("depth", masked_smooth_l1(seen.depth, group.depth, group.valid, shape.beta))
        if white_background and shape.empty and shape.empty_by == "opacity":
            terms.add("depth", shape.empty * masked_mean(seen.opacity, ~group.valid))
        elif white_background and shape.empty and patch:
            nothing = torch.zeros_like(group.depth)
            terms.add("depth", shape.empty * masked_smooth_l1(seen.depth, nothing, ~group.valid, shape.beta))
        if terms.weights.ray_termination:
            deltas = torch.cat([level.t.diff(dim=-1), level.t[:, -1:] - level.t[:, -2:-1]], dim=-1)
            terms.add(
                "ray_termination",
                ray_termination(level.seen.weights, level.t, group.depth, group.valid, shape.depth_std, deltas),
            )


def warped_rays(terms: Terms, group: RayGroup, shape: Shape) -> None:
    """Depth, and on demand colour, of rays of the pool."""
    assert group.depth is not None
    assert group.rgb is not None
    for level in group.levels:
        terms.add("depth", masked_smooth_l1(level.seen.depth, group.depth, beta=shape.beta))
        terms.add("rgb_warp", torch.mean((level.seen.rgb - group.rgb) ** 2))


def unseen_geometry(terms: Terms, group: RayGroup, reference: Reference, shape: Shape) -> None:
    """Depth of the unseen patch, where the reference warps to; and its consistency with the reference."""
    for level in group.levels:
        if group.depth is not None and group.valid is not None:
            terms.add("side", masked_smooth_l1(level.seen.depth, group.depth, group.valid, shape.beta))
            if terms.weights.rgb_warp and group.rgb is not None:
                error = ((level.seen.rgb - group.rgb) ** 2).mean(-1)
                terms.add("rgb_warp", masked_mean(error, group.valid))
        if terms.weights.cycle:
            terms.add("cycle", in_front_of_reference(level.seen.depth, group.rays, reference))


def in_front_of_reference(depth: Tensor, rays: Tensor, reference: Reference) -> Tensor:
    """How far points at depths (n,) of rays (n, 8) stand in front of the reference's surfaces, in scene units.

    A scalar: the mean over the points that lie in the reference's frame.

    A point that lies behind a surface is hidden from the reference and contradicts nothing.
    """
    transform = rays.new_tensor(reference.camera.w2c[:3])
    intrinsics = rays.new_tensor(reference.camera.K)
    points = rays[:, :3] + depth.unsqueeze(-1) * rays[:, 3:6]
    local = points @ transform[:, :3].T + transform[:, 3]
    distance = local[:, 2]
    with torch.no_grad():
        image = (local / distance.clamp(min=1e-6).unsqueeze(-1)) @ intrinsics.T
        col, row = image[:, 0].round().long(), image[:, 1].round().long()
        inside = (distance > 0) & (col >= 0) & (col < reference.width) & (row >= 0) & (row < reference.height)
        flat = torch.where(inside, row * reference.width + col, torch.zeros_like(row))
        known = inside & reference.valid[flat]
    return masked_mean(torch.relu(reference.depth[flat] - distance), known)


def smooth_patches(terms: Terms, groups: list[RayGroup], shape: Shape, near: float) -> None:
    """Edge-aware smoothness of both patches at every level; the guide is the finest rendering, which it does not move."""
    if not terms.weights.smooth:
        return
    for group in groups:
        assert group.size is not None
        guide = group.image(group.levels[-1].seen).detach()
        for level in group.levels:
            depth = level.seen.depth.reshape(1, *group.size)
            terms.add(
                "smooth", smoothness(1 / depth.clamp(min=near) if shape.smooth_inverse else depth, guide, shape.smooth_order)
            )
