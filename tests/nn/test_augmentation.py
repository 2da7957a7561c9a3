"""Crops, flips and rotations of batches."""

from __future__ import annotations

import pytest
import torch

from atlas.nn.augmentation import random_crops, random_flips, random_rotations


def random_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 20, pixels: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, pixels, pixels, generator=random_source(1))


def test_crops_are_windows_of_the_padded_image() -> None:
    given = images()
    found = random_crops(given, 2, random_source())
    padded = torch.nn.functional.pad(given, (2,) * 4)
    for before, after in zip(padded, found, strict=True):
        windows = [before[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        assert sum(torch.equal(after, window) for window in windows) == 1
    assert torch.equal(found, random_crops(given, 2, random_source()))


def test_flips_mirror_some() -> None:
    given = images()
    found = random_flips(given, random_source())
    mirrored = [torch.equal(after, before.flip(-1)) for before, after in zip(given, found, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(given, found, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 20


def test_rotations_stay_within_their_angle() -> None:
    given = torch.zeros(200, 1, 33, 33)
    given[:, :, 16, 28] = 1.0  # 12 pixels to the right of the middle
    assert torch.equal(random_rotations(given, 0.0, random_source()), given)
    places = random_rotations(given, 15.0, random_source()).nonzero()[:, 2:] - 16
    angles = torch.atan2(places[:, 0].double(), places[:, 1].double()).rad2deg()
    assert angles.abs().max() == pytest.approx(15, abs=4)
    assert angles.min() < -8
    assert angles.max() > 8
