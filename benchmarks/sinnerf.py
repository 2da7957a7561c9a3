"""Cost of SinNeRF: a training step, a rendering and a warp, each beside a straightforward implementation, in the same run.

The straightforward step renders reference rays, warped rays and patches one after the other and loops over the twelve components
of the field; ours renders one batch and samples all planes and all lines with one call each. The straightforward warp loops over
pixels with a z-buffer. The paper's step is rendered kind by kind, once for the field and once more for the discriminator, as the
official trainer does; ours renders one batch and reuses the detached patch. Both give the same numbers, which is checked first.

    python benchmarks/sinnerf.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from timing import interleaved, show
from torch import Tensor
from torch.nn import functional

from atlas.methods.sinnerf import (
    Camera,
    CoarseFine,
    NeRFNetwork,
    Sampler,
    VectorMatrixField,
    all_rays,
    forward_warp,
    render_levels,
)
from atlas.methods.sinnerf.bounds import Bounded, Box
from atlas.tasks.novel_view_synthesis.analytic import analytic_scene, intrinsics, look_at

BOX = Box((-1.4, -1.4, -0.85), (1.4, 1.4, 0.55))


class LoopedField(VectorMatrixField):
    """The same field, component by component."""

    def components(self, x: Tensor) -> Tensor:
        axes = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
        found = []
        for plane, (a, b, c) in enumerate(axes):
            across = x[:, [a, b]].view(1, -1, 1, 2)
            along = torch.stack([torch.zeros_like(x[:, c]), x[:, c]], dim=-1).view(1, -1, 1, 2)
            rows = []
            for component in range(self.planes.shape[1]):
                options = {"align_corners": True, "padding_mode": "border"}
                p = functional.grid_sample(self.planes[plane, component][None, None], across, **options)
                line = functional.grid_sample(self.lines[plane, component][None, None], along, **options)
                rows.append((p * line).flatten())
            found.append(torch.stack(rows))
        return torch.stack(found)


def looped_warp(rgb: np.ndarray, depth: np.ndarray, src: Camera, dst: Camera) -> np.ndarray:
    """A z-buffer over pixels, one by one; returns the depths."""
    seen = np.zeros((dst.height, dst.width))
    for row in range(src.height):
        for col in range(src.width):
            if depth[row, col] > 0:
                u, v, z = dst.project(src.origin + depth[row, col] * src.directions(row, col))
                i, j = round(float(v)), round(float(u))
                if z > 0 and 0 <= i < dst.height and 0 <= j < dst.width and (seen[i, j] == 0 or z < seen[i, j]):
                    seen[i, j] = z
    return seen


def rays_of_the_demo(count: int) -> tuple[Tensor, Tensor]:
    """Rays of two analytic views, with their colours."""
    scene = analytic_scene(0)
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 48 * 48, (2, count)))
    views = (scene.reference, 0), (scene.test, 2)
    rays, colours = [], []
    for chosen, (view, index) in zip(pixels, views, strict=True):
        camera = Camera(view.intrinsics[index], view.poses[index], 48, 48)
        rays.append(BOX.clip(all_rays(camera, 2, 6)[chosen]))
        colours.append(torch.from_numpy(view.rgb[index].reshape(-1, 3))[chosen])
    return torch.stack(rays), torch.stack(colours)


def demo_step(rounds: int) -> None:
    """The demo's step: 384 + 384 rays of 32 samples, forward, backward and Adam; and a rendering of 200 × 200 pixels."""
    rays, colours = rays_of_the_demo(384)
    torch.manual_seed(0)
    ours, plain = VectorMatrixField(), LoopedField()
    plain.load_state_dict(ours.state_dict())
    sampler = Sampler(coarse=32, fine=0, background=1.0)

    def step(field: VectorMatrixField, batched: bool) -> Callable[[], Tensor]:
        optimizer, world = torch.optim.Adam(field.parameters(), lr=1e-4), Bounded(field, BOX)
        parts = [(rays.flatten(0, 1), colours.flatten(0, 1))] if batched else list(zip(rays, colours, strict=True))

        def run() -> Tensor:
            optimizer.zero_grad()
            seen = [(render_levels(world, part, sampler)[-1].seen.rgb, wanted) for part, wanted in parts]
            loss = torch.stack([((image - wanted) ** 2).mean() for image, wanted in seen]).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    first, second = step(ours, True), step(plain, False)
    torch.testing.assert_close(first(), second())
    show("training step, vm 48, 384 + 384 rays × 32", interleaved({"here": first, "straightforward": second}, rounds), "here")
    camera = Camera(intrinsics(200), look_at(0, 32), 200, 200)
    grid = BOX.clip(all_rays(camera, 2, 6))

    @torch.no_grad()
    def render(field: VectorMatrixField) -> None:
        for part in grid.split(8192):
            render_levels(Bounded(field, BOX), part, sampler)

    seconds = interleaved({"here": lambda: render(ours), "straightforward": lambda: render(plain)}, max(3, rounds // 3), 1)
    show("rendering, 200 × 200 pixels × 32", seconds, "here")


def warps(rounds: int) -> None:
    """A warp of 378 × 504 pixels."""
    random = np.random.default_rng(0)
    matrix = np.array([[400.0, 0, 251.5], [0, 400, 188.5], [0, 0, 1]])
    source = Camera(matrix, np.eye(4), 378, 504)
    pose = np.eye(4)
    pose[:3, 3] = (0.1, 0.02, -0.05)
    target = Camera(matrix, pose, 378, 504)
    rgb, depth = random.random((378, 504, 3)), 2 + random.random((378, 504))
    np.testing.assert_allclose(forward_warp(rgb, depth, source, target).depth, looped_warp(rgb, depth, source, target))
    runs = {
        "here": lambda: forward_warp(rgb, depth, source, target),
        "loop over pixels": lambda: looped_warp(rgb, depth, source, target),
    }
    show("forward warp, 378 × 504", interleaved(runs, max(3, rounds // 5), 0), "here")


def paper_step(rounds: int) -> None:
    """The paper's step with the discriminator on: 256 rays of 64 + 64 samples through two networks of 8 × 256."""
    torch.manual_seed(0)
    pair = CoarseFine(NeRFNetwork(), NeRFNetwork())
    rays, colours = rays_of_the_demo(128)
    sampler = Sampler(coarse=64, fine=64, background=1.0)
    kinds = list(zip(rays.flatten(0, 1).split(64), colours.flatten(0, 1).split(64), strict=True))

    def loss(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        errors = [
            ((level.seen.rgb - wanted) ** 2).mean() for part, wanted in parts for level in render_levels(pair, part, sampler)
        ]
        return torch.stack(errors).mean()

    def ours() -> Tensor:
        pair.zero_grad()
        total = loss([(rays.flatten(0, 1), colours.flatten(0, 1))])
        total.backward()
        return total.detach()

    def official() -> Tensor:
        pair.zero_grad()
        total = loss(kinds)
        total.backward()
        loss(kinds)  # everything again for the discriminator's turn
        return total.detach()

    torch.testing.assert_close(ours(), official())
    runs = {"here": ours, "kind by kind, twice": official}
    show("paper's step, 256 rays × (64 + 128), 8 × 256", interleaved(runs, max(3, rounds // 5), 1), "here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 5 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    demo_step(rounds)
    warps(rounds)
    paper_step(rounds)


if __name__ == "__main__":
    main()
