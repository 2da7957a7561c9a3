"""Patch-wise mixing: shares, targets, sparse and dense cross-entropy, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from atlas.methods.diverse_vit import MixTarget, PatchMixup
from atlas.methods.diverse_vit.mixing import keep_mask, patch_shares


def mixer(**options: Any) -> PatchMixup:
    return PatchMixup(5, 2, generator=torch.Generator().manual_seed(3), **options)


def test_patch_shares() -> None:
    keep = torch.ones(4, 4)
    keep[0:2, 1:3] = 0
    assert patch_shares(keep, (2, 2)).tolist() == [0.5, 0.5, 1, 1]
    assert float(keep.mean()) == 0.75
    assert patch_shares(torch.ones(4, 4), (2, 2)).tolist() == [1] * 4
    assert patch_shares(torch.zeros(4, 4), (2, 2)).tolist() == [0] * 4
    keep = torch.ones(4, 6)
    keep[0:2, 3:6] = 0
    assert patch_shares(keep, (2, 3)).tolist() == [1, 0, 1, 1]  # a box along the grid; rows first, patches need not be square


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_mixing_and_its_targets(switch: float) -> None:
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    mix = mixer(switch_prob=switch)
    for _ in range(5):
        mixed, target = mix(images, labels)
        assert float(target.patch_lam.mean()) == pytest.approx(target.lam, abs=1e-6)
        whole, patches = target.dense()
        assert whole.sum(1).tolist() == pytest.approx([1] * 4)
        assert torch.allclose(patches.sum(-1), torch.ones(4, 16))
        assert torch.allclose(patches.mean(1), whole, atol=1e-6)
        if switch:
            own = functional.avg_pool2d((mixed == images).all(1, keepdim=True).float(), 2).flatten(1)
            assert torch.allclose(own[0], target.patch_lam, atol=1e-6)
        else:
            assert torch.allclose(mixed, target.lam * images + (1 - target.lam) * images.flip(0))


def test_sparse_cross_entropy_is_the_dense_one() -> None:
    _, target = mixer(switch_prob=1.0)(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    logits, whole = torch.randn(4, 16, 5), torch.randn(4, 5)
    dense = target.dense()
    expected = -(dense[1] * logits.log_softmax(-1)).sum(-1).mean(0).sum()
    assert float(target.patch_loss(logits)) == pytest.approx(float(expected), rel=1e-5)
    assert float(target.image_loss(whole)) == pytest.approx(float(functional.cross_entropy(whole, dense[0])), rel=1e-5)
    with pytest.raises(ValueError, match="the model has 3 patch tokens, the target 16 patches"):
        target.patch_loss(logits[:, :3])


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 1, 8, 8), "must be even"), ((4, 1, 7, 8), "no multiple of patches of 2 × 2")]
)
def test_mixing_refuses(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer()(torch.randn(shape), torch.zeros(shape[0], dtype=torch.long))


def test_boxes_cover_what_they_should() -> None:
    random = np.random.default_rng(0)
    assert float(keep_mask(8, 8, 1.0, random).min()) == 1
    for _ in range(50):
        removed = 1 - keep_mask(12, 8, 0.75, random)
        height, width = int(removed.amax(1).sum()), int(removed.amax(0).sum())
        assert float(removed.sum()) == height * width  # a box
        assert 3 <= height <= 6  # half of either side, clipped at most to its half
        assert 2 <= width <= 4


def test_both_kinds_come_up_and_none_without_probability() -> None:
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    mix = mixer()
    spreads = [float(mix(images, labels)[1].patch_lam.std()) for _ in range(40)]
    assert 5 < sum(spread == 0 for spread in spreads) < 35
    mixed, target = mixer(prob=0.0)(images, labels)
    assert torch.equal(mixed, images)
    assert target.lam == 1
    assert target.patch_lam.tolist() == [1] * 16


def test_mixing_follows_from_the_generator_and_keeps_its_input() -> None:
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    before = images.clone()
    first, again = (mixer()(images, labels)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(images, before)


def test_smoothing_gives_on_and_off_values() -> None:
    target = MixTarget(torch.tensor([0]), torch.tensor([1]), 0.25, torch.tensor([1.0, 0.0]), 0.1, 5)
    whole, patches = target.dense()
    assert patches[0, 0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    assert patches[0, 1].tolist() == pytest.approx([0.02, 0.92, 0.02, 0.02, 0.02])
    assert whole[0].tolist() == pytest.approx([0.25 * 0.92 + 0.75 * 0.02, 0.25 * 0.02 + 0.75 * 0.92, 0.02, 0.02, 0.02])


def test_parameters_and_pixels_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mixup_alpha = 0.0: input should be greater than 0"):
        mixer(mixup_alpha=0.0)
    with pytest.raises(ValueError, match="prob = 2: input should be less than or equal to 1"):
        mixer(prob=2)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\], not 2"):
        mixer(smoothing=2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        mixer()(torch.full((2, 1, 8, 8), float("nan")), torch.tensor([0, 1]))


def test_images_that_cannot_be_mixed_are_described() -> None:
    mixing = PatchMixup(5, 2)
    with pytest.raises(TypeError, match=r"not torch\.uint8 of shape \(2, 3, 4, 4\)"):
        mixing._check(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "num_classes must be at least 1, not 0"),
        ((-3, 2), "num_classes must be at least 1, not -3"),
        ((10, 0), "patch_size must be at least 1 pixel each way, not 0"),
        ((10, (4, -1)), r"patch_size must be at least 1 pixel each way, not \(4, -1\)"),
        ((10, (4, 4, 4)), r"patch_size must be one number or \(height, width\), not \(4, 4, 4\)"),
    ],
)
def test_classes_and_patches_are_counted_from_one(arguments: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchMixup(*arguments)


@pytest.mark.parametrize("arguments", [(2.5, 2), (10, 2.5), (10, (2, "2")), (10, None), (True, 2)])
def test_classes_and_patches_are_whole_numbers(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="must be a whole number"):
        PatchMixup(*arguments)


@pytest.mark.parametrize(("labels", "message"), [([0, 5, 1, 2], "from 0 to 4, not 5"), ([0, 1, -2, 9], "from 0 to 4, not -2")])
def test_labels_that_are_no_classes_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer()(torch.rand(4, 1, 8, 8), torch.tensor(labels))


def test_labels_of_every_whole_type_make_the_same_loss() -> None:
    images, labels, logits = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), torch.randn(4, 5)
    expected = mixer()(images, labels)[1].image_loss(logits)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(mixer()(images, labels.to(dtype))[1].image_loss(logits), expected)
    with pytest.raises(TypeError, match=r"whole numbers \(4,\), not torch\.bool"):
        mixer()(images, labels > 1)


@pytest.mark.parametrize(("shape", "message"), [((4, 4), "4 classes, the target 5"), ((2, 5), "2 images, the target 4")])
def test_logits_of_other_sizes_than_the_targets_are_refused(shape: tuple[int, int], message: str) -> None:
    _, target = mixer()(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=message):
        target.image_loss(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        target.patch_loss(torch.zeros(shape[0], 16, shape[1]))
