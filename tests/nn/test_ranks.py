"""What ranks hold of a batch, and what they draw for it."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from atlas.nn.augmentation import random_crops, random_flips, random_rotations
from atlas.nn.draws import UniformDraws
from atlas.nn.rank_noise import Noise
from atlas.nn.ranks import ALONE, Share, here, merged, mirrored


@pytest.mark.parametrize(
    ("total", "group", "size"), [(8, 8, 2), (96, 32, 2), (96, 32, 4), (40, 16, 4), (6, 6, 3), (9, 9, 3), (16, 4, 2)]
)
def test_every_image_is_held_once_and_with_its_mirror(total: int, group: int, size: int) -> None:
    shares = [mirrored(total, group, rank, size) for rank in range(size)]
    assert sorted(place for share in shares for place in share) == list(range(total))
    for share in shares:
        begin = 0
        for first in range(0, total, group):
            count = min(group, total - first)
            own = share[begin : begin + count // size]
            begin += count // size
            assert set(own) <= set(range(first, first + count))
            if len(own) % 2 == 0:
                assert [2 * first + count - 1 - place for place in own] == own[::-1]


def test_shares_of_several_pieces_make_a_batch_that_is_its_own_mirror() -> None:
    own = mirrored(96, 32, 1, 4)
    order = merged([8, 8, 8])
    batch = [own[place] for place in order]
    assert sorted(batch) == sorted(own)
    for place, partner in zip(batch, batch[::-1], strict=True):
        piece = place // 32
        assert partner == 2 * 32 * piece + 31 - place


def test_shares_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="10 images do not divide by 4 ranks"):
        mirrored(10, 10, 0, 4)


def test_a_process_by_itself_holds_everything() -> None:
    assert here() is ALONE
    value = torch.ones(3)
    assert ALONE.mean(value) is value
    assert ALONE.share(8) is None
    assert ALONE.slice(5) == slice(0, 5)


def shares_of(total: int, size: int) -> list[Share]:
    return [Share(torch.tensor(mirrored(total, total, rank, size)), total) for rank in range(size)]


@pytest.mark.parametrize(
    "change",
    [
        lambda *a, **k: random_flips(*a, **k),
        lambda x, r, s: random_crops(x, 2, r, s),
        lambda x, r, s: random_rotations(x, 30, r, s),
    ],
)
def test_augmentation_of_a_share_is_that_of_the_batch(change) -> None:  # type: ignore[no-untyped-def]
    images = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = change(images, torch.Generator().manual_seed(2), None)
    assert not torch.equal(whole, images)
    for share in shares_of(8, 2):
        own = change(images[share.places], torch.Generator().manual_seed(2), share)
        assert torch.equal(own, whole[share.places])


class Noisy(nn.Module):
    """Two layers with stochastic depth, one of which is used twice, and maybe dropout or other draws."""

    def __init__(self, dropout: float, draws: bool) -> None:
        super().__init__()
        self.first, self.second, self.dropout = DropPath(0.5), DropPath(0.3), nn.Dropout(dropout)
        self.draws = UniformDraws() if draws else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(2 * x)
        if self.draws is not None:
            x = x * self.draws(x)
        return self.dropout(x + self.second(3 * x) + self.first(5 * x))


@pytest.mark.parametrize(("dropout", "draws"), [(0.0, False), (0.4, False), (0.0, True)])
def test_noise_of_a_share_is_that_of_the_batch(dropout: float, draws: bool) -> None:
    model, size, pieces = Noisy(dropout, draws), 2, 3
    images = torch.rand(pieces * 8, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    whole = [torch.cat([model(piece) for piece in images.split(8)]) for _ in range(2)]
    expected = torch.rand(())
    for rank in range(size):
        torch.manual_seed(3)
        noise = Noise(model)
        shares = [Share(torch.tensor(mirrored(8, 8, rank, size)), 8)] * pieces
        for turn in range(2):
            assert noise.merges == (turn == 1 and not dropout and not draws)
            groups = [shares] if noise.merges else [[share] for share in shares]
            begin = 0
            for group in groups:
                order = merged([len(share.places) for share in group])
                held = torch.cat([8 * (begin + index) + share.places for index, share in enumerate(group)])[torch.tensor(order)]
                begin += len(group)
                with noise.drawn_for(group, order, torch.device("cpu")):
                    assert torch.equal(model(images[held]), whole[turn][held])
        assert torch.equal(torch.rand(()), expected), "the generators of all ranks stay alike"
    assert "forward" not in model.first.__dict__
