"""Fields that begin without any density: noise lets them learn, and without it a fit says that nothing is learned."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atlas.methods.sinnerf import (
    Budget,
    Camera,
    CoarseFine,
    LossWeights,
    Options,
    OrbitGaussian,
    RGBDView,
    Sampler,
    SinNeRF,
    Stage,
    make_field,
)

CAMERA = Camera(np.array([[12.0, 0, 5.5], [0, 12, 5.5], [0, 0, 1]]), np.eye(4), 12, 12)
VIEW = RGBDView(np.full((12, 12, 3), 0.3), np.full((12, 12), 2.0), CAMERA)
ONE_LEVEL = Sampler(coarse=8, fine=0)


def field(name: str = "mlp3x64", *, dead: bool = False) -> nn.Module:
    """A field of the seed 0; a dead one has negative densities everywhere."""
    torch.manual_seed(0)
    made = make_field(name)
    if dead:
        nn.init.zeros_(made.sigma.weight)  # type: ignore[union-attr,arg-type]
        nn.init.constant_(made.sigma.bias, -0.1)  # type: ignore[union-attr,arg-type]
    return made


def model(of: nn.Module, sampler: Sampler | None = ONE_LEVEL, **weights: float) -> SinNeRF:
    return SinNeRF(
        of,
        bounds=[[-1, -1, -3], [1, 1, -1]],
        near=1,
        far=3,
        pose_prior=OrbitGaussian(5, (0, 0, -2)),
        stages=[Stage(3, 1, 1e-3, LossWeights(**{"depth": 1, "side": 0, **weights}))],
        white_background=True,
        sampler=sampler,
        options=Options(budget=Budget(reference_rays=32, warped_rays=0, pool=0, reference_patch=False)),
    )


def learns(one: SinNeRF) -> bool:
    before = [parameter.clone() for parameter in one.field.parameters()]
    one.fit(VIEW, progress=False)
    return not all(map(torch.equal, before, one.field.parameters()))


@pytest.mark.parametrize("name", ["mlp3x64", "mlp8x256"])
@pytest.mark.parametrize("sampler", [None, ONE_LEVEL])
def test_a_field_without_density_learns_by_default(name: str, sampler: Sampler | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learns(model(field(name, dead=True), sampler))
    pair = CoarseFine(field(name, dead=True), field(name, dead=True))
    assert learns(model(pair, sampler and Sampler(coarse=8, fine=8)))
    assert all(bool(one.sigma.weight.any()) for one in (pair.coarse, pair.fine))  # type: ignore[union-attr,operator]


def test_views_are_rendered_without_noise() -> None:
    seen = [
        model(field(), sampler).render(CAMERA).rgb for sampler in (ONE_LEVEL, ONE_LEVEL, Sampler(coarse=8, fine=0, noise_std=0))
    ]
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])


QUIET_DEFAULT_NOISY: list[dict[str, Any]] = [{"noise_std": 0}, {}, {"noise_std": 1}]


@pytest.mark.parametrize("name", ["vm", "grid", "hash"])
def test_fields_that_cannot_lack_density_have_no_noise_by_default(name: str) -> None:
    quiet, default, noisy = (model(field(name), Sampler(coarse=8, fine=0, **options)) for options in QUIET_DEFAULT_NOISY)
    for one in (quiet, default, noisy):
        one.fit(VIEW, progress=False)
    trained = [list(one.field.parameters()) for one in (quiet, default, noisy)]
    assert all(map(torch.equal, trained[0], trained[1]))
    assert not all(map(torch.equal, trained[0], trained[2]))


@pytest.mark.parametrize(
    ("of", "named"),
    [
        (lambda: field(dead=True), "the field"),
        (lambda: CoarseFine(field(), field(dead=True)), "the fine field"),
        (lambda: CoarseFine(field(dead=True), field()), "the coarse field"),
    ],
)
def test_a_fit_that_trains_nothing_says_so_once(of: Any, named: str) -> None:
    made = of()
    sampler = Sampler(coarse=8, fine=8 if isinstance(made, CoarseFine) else 0, noise_std=0)
    with pytest.warns(UserWarning, match="no gradient") as caught:
        model(made, sampler).fit(VIEW, progress=False)
    told = [str(one.message) for one in caught]
    assert len(told) == 1
    assert told[0].startswith(f"step 1: no gradient reaches {named}")
    assert "noise_std=1" in told[0]
    assert "seed" in told[0]
    assert caught[0].filename == __file__


def test_a_fit_that_trains_says_nothing() -> None:
    """Nor one with nothing left to learn: an empty field before a white picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learns(model(field("vm")))
        assert learns(model(CoarseFine(field("vm"), field("vm"))))  # one level: the fine field is never asked
        white = RGBDView(np.ones((12, 12, 3)), None, CAMERA)
        empty = model(field(dead=True), Sampler(coarse=8, fine=0, noise_std=0), depth=0)
        assert empty.fit(white, progress=False).losses["rgb"] == [0, 0, 0]
