"""Rays that miss the box in which a field lives see nothing but the background."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atlas.methods.sinnerf import (
    Camera,
    CoarseFine,
    LossWeights,
    OrbitGaussian,
    RGBDView,
    Sampler,
    SinNeRF,
    Stage,
    all_rays,
    composite,
    render_rays,
)

CAMERA = Camera(np.array([[20.0, 0, 9.5], [0, 20, 9.5], [0, 0, 1]]), np.eye(4), 20, 20)


class Fog(nn.Module):
    """A constant density and a grey that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return self.grey.expand_as(x), torch.full_like(x[..., 0], 1e-3)


def scene(field: nn.Module | None = None, **options: Any) -> SinNeRF:
    """Fog in a box that the middle of the picture looks through."""
    return SinNeRF(
        field or Fog(),
        bounds=[[-0.2, -0.2, -3], [0.2, 0.2, -1]],
        near=1,
        far=4,
        pose_prior=OrbitGaussian(5, (0, 0, -2)),
        stages=[Stage(2, 1, 0.1, LossWeights(depth=0, side=0))],
        **options,
    )


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
@pytest.mark.parametrize("last", ["interval", "opaque"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("white", [False, True])
def test_the_background_is_seen_beside_the_box(spacing: str, last: str, pair: bool, white: bool) -> None:
    sampler = Sampler.chosen(Sampler(), coarse=8, fine=8 if pair else 0, spacing=spacing, last=last)
    model = scene(CoarseFine(Fog(), Fog()) if pair else None, white_background=white, sampler=sampler)
    seen = model.render(CAMERA)
    hit = model.clip(all_rays(CAMERA, 1, 4))
    hits = (hit[:, 7] > hit[:, 6]).reshape(20, 20).numpy()
    assert 0 < hits.sum() < 400
    assert (seen.opacity[~hits] == 0).all()
    assert (seen.depth[~hits] == 0).all()
    assert (seen.rgb[~hits] == float(white)).all()
    assert (seen.opacity[hits] > (0.999 if last == "opaque" else 0)).all()


def test_the_default_of_a_black_scene_sees_nothing_beside_the_box() -> None:
    seen = scene().render(CAMERA)
    assert (seen.opacity[0, 0], seen.depth[0, 0]) == (0, 0)
    assert seen.opacity[9, 9] == pytest.approx(1)


def test_rays_that_hit_are_closed_as_ever() -> None:
    rays = torch.tensor([[0.0, 0, 0, 0, 0, -1, 1, 3], [0.0, 0, 0, 0.3, 0, -1, 1, 2], [0.0, 0, 0, 1, 0, -1, 1, 1]])
    sampler = Sampler(coarse=8, fine=0, last="opaque")
    seen = render_rays(Fog(), rays, sampler)
    t = rays[:, 6:7] + (rays[:, 7:] - rays[:, 6:7]) * torch.linspace(0, 1, 8)
    rgb, sigma = Fog()(t.unsqueeze(-1).expand(3, 8, 3), t)
    closed = composite(sigma, rgb, t, rays[:, 3:6].norm(dim=-1), last_delta=1e10)
    assert all(torch.equal(found[:2], expected[:2]) for found, expected in zip(seen, closed, strict=True))
    assert float(seen.opacity[2]) == 0


def test_training_beside_the_box_moves_nothing() -> None:
    model = scene(sampler=Sampler(coarse=8, fine=0, last="opaque"))
    aside = Camera(CAMERA.K, np.array([[1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), 20, 20)
    assert (
        model.start(RGBDView(np.ones((20, 20, 3)), None, aside)).step(0)["rgb"] == 2
    )  # reference rays and patch, all of them black
    assert model.field.grey.item() == 0.5
