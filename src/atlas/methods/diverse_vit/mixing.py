"""MixUp and CutMix whose targets are known patch by patch (Chen et al., CVPR 2022, Sec. 3.1; after TransMix and TokenLabelling).

The partner of an image is its mirror in the batch. A patch's weight is the share of its pixels that come from the image itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from atlas.methods.diverse_vit.settings import MixSettings
from atlas.nn.examples import as_tensor
from atlas.nn.kinds import require_whole

DEFAULT = MixSettings()


@dataclass(frozen=True)
class MixTarget:
    """Soft labels of a mixed batch, without ever forming (batch, patches, classes).

    Attributes
    ----------
    y1, y2 : Tensor
        (batch,) classes of the images and of their partners.
    lam : float
        Share of the image itself.
    patch_lam : Tensor
        (patches,) share in each patch, in row-major order.
    smoothing : float
        Label smoothing ε: the on-value is 1 − ε + ε/K, the off-value ε/K.
    num_classes : int
        K.
    """

    y1: Tensor
    y2: Tensor
    lam: float
    patch_lam: Tensor
    smoothing: float
    num_classes: int

    def dense(self) -> tuple[Tensor, Tensor]:
        """The same as probabilities: (batch, K) and (batch, patches, K)."""
        off = self.smoothing / self.num_classes
        first, second = (
            functional.one_hot(labels, self.num_classes).to(self.patch_lam.dtype) * (1 - self.smoothing) + off
            for labels in (self.y1, self.y2)
        )
        shares = self.patch_lam[None, :, None]
        patches = shares * first[:, None] + (1 - shares) * second[:, None]
        return self.lam * first + (1 - self.lam) * second, patches

    def image_loss(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy of (batch, K) logits.

        Raises
        ------
        ValueError
            The logits are not of the target's images and classes; see :meth:`require_fit`.
        """
        return self._cross_entropy(logits, torch.tensor(self.lam, dtype=logits.dtype, device=logits.device)).mean()

    def patch_loss(self, logits: Tensor) -> Tensor:
        """Sum over patches of the mean cross-entropy of (batch, patches, K) logits.

        Raises
        ------
        ValueError
            The logits have not as many patches as the target: another image size than was mixed, or patch dropout. Or they are
            not of its images and classes; see :meth:`require_fit`.
        """
        if logits.shape[1] != len(self.patch_lam):
            raise ValueError(f"the model has {logits.shape[1]} patch tokens, the target {len(self.patch_lam)} patches")
        return self._cross_entropy(logits, self.patch_lam.to(logits)).mean(0).sum()

    def require_fit(self, logits: Tensor) -> None:
        """Refuse logits (batch, …, K) of another number of images or classes than the target's.

        Raises
        ------
        ValueError
            They are; says of how many.
        """
        for axis, what, own in ((0, "images", len(self.y1)), (-1, "classes", self.num_classes)):
            if logits.shape[axis] != own:
                raise ValueError(f"the model's logits are of {logits.shape[axis]} {what}, the target {own}")

    def _cross_entropy(self, logits: Tensor, shares: Tensor) -> Tensor:
        """logsumexp(z) − (1 − ε)(λ z_y1 + (1 − λ) z_y2) − ε mean z, for (batch, …, K) logits and (…) shares."""
        self.require_fit(logits)
        extra = (1,) * (logits.ndim - 2)

        def picked(labels: Tensor) -> Tensor:
            """Logits (batch, …) of the labels (batch,)."""
            index = labels.view(-1, *extra, 1).expand(*logits.shape[:-1], 1)
            return logits.gather(-1, index)[..., 0]

        chosen = shares * picked(self.y1) + (1 - shares) * picked(self.y2)
        return logits.logsumexp(-1) - (1 - self.smoothing) * chosen - self.smoothing * logits.mean(-1)


class PatchMixup:
    """Mixes a batch with its mirror by CutMix or MixUp.

    Parameters
    ----------
    num_classes : int
        K, at least 1.
    patch_size : int or (int, int)
        Height and width of the model's patches.
    mixup_alpha, cutmix_alpha, switch_prob, prob : float
        What :class:`.settings.MixSettings` says.
    smoothing : float
        Label smoothing.
    generator : torch.Generator, optional
        Draws everything.

    Raises
    ------
    TypeError
        Classes or patches are no whole numbers.
    ValueError
        A parameter is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        patch_size: int | tuple[int, int],
        mixup_alpha: float = DEFAULT.mixup_alpha,
        cutmix_alpha: float = DEFAULT.cutmix_alpha,
        switch_prob: float = DEFAULT.switch_prob,
        prob: float = DEFAULT.prob,
        smoothing: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing must be in [0, 1], not {smoothing}")
        require_whole(num_classes=num_classes)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.patch_size = _sides(patch_size)
        self.settings = MixSettings.chosen(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, switch_prob=switch_prob, prob=prob)
        self.smoothing, self.generator = smoothing, generator

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, MixTarget]:
        """Mix a batch.

        Parameters
        ----------
        images : Tensor
            (batch, channels, height, width), floating-point.
        labels : Tensor
            (batch,) whole numbers from 0 to K − 1; on an accelerator the check waits for the one of the pixels, and for no more.

        Returns
        -------
        (Tensor, MixTarget)
            New images; the given ones are left as they are.

        Raises
        ------
        TypeError
            Images are no floating-point tensor or array of four axes, or labels no whole numbers.
        ValueError
            The batch is odd, the image is no multiple of the patch, pixels are not finite, or a label is no class; names it.
        """
        images, labels = as_tensor(images, "images"), as_tensor(labels, "labels")
        self._check(images)
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (len(images),):
            raise TypeError(f"labels must be whole numbers ({len(images)},), not {labels.dtype} of shape {tuple(labels.shape)}")
        labels = labels.long()
        self._check_values(images, labels)
        shares = self._shares(*images.shape[-2:])
        mixed = shares.to(images) * images + (1 - shares).to(images) * images.flip(0)
        patches = patch_shares(shares, self.patch_size).to(images.device, torch.promote_types(images.dtype, torch.float32))
        return mixed, MixTarget(labels, labels.flip(0), float(shares.mean()), patches, self.smoothing, self.num_classes)

    def _shares(self, height: int, width: int) -> Tensor:
        """Share of each pixel that comes from the image itself: a box of zeros, a constant, or ones. (height, width), float64."""
        settings, random = self.settings, self._random()
        if random.random() >= settings.prob:
            return torch.ones(height, width, dtype=torch.float64)
        if random.random() < settings.switch_prob:
            return keep_mask(height, width, random.beta(settings.cutmix_alpha, settings.cutmix_alpha), random)
        return torch.full((height, width), random.beta(settings.mixup_alpha, settings.mixup_alpha), dtype=torch.float64)

    def _random(self) -> np.random.Generator:
        """A generator of Beta draws; torch has none that takes a generator of its own."""
        device = self.generator.device if self.generator is not None else None
        return np.random.default_rng(int(torch.randint(2**62, (), generator=self.generator, device=device)))

    def _check(self, images: Tensor) -> None:
        """Refuse (batch, channels, height, width) images that cannot be mixed patch by patch with their mirror."""
        if not images.is_floating_point() or images.ndim != 4:
            given = f"{images.dtype} of shape {tuple(images.shape)}"
            raise TypeError(f"images must be floating-point (batch, channels, height, width), not {given}")
        count, _, height, width = images.shape
        rows, columns = self.patch_size
        if count % 2:
            raise ValueError(f"the batch must be even to be mixed with its mirror, not {count}")
        if height % rows or width % columns:
            raise ValueError(f"images of {height} × {width} are no multiple of patches of {rows} × {columns}")

    def _check_values(self, images: Tensor, labels: Tensor) -> None:
        """Refuse pixels (batch, …) that are not finite and labels (batch,) that are no classes; waits for a device once."""
        finite, known = images.isfinite().all(), ((labels >= 0) & (labels < self.num_classes)).all()
        if bool(finite & known.to(finite.device)):
            return
        if not bool(finite):
            raise ValueError("the images hold NaN or infinity")
        wrong = next(label for label in labels.tolist() if not 0 <= label < self.num_classes)
        raise ValueError(f"labels must be from 0 to {self.num_classes - 1}, not {wrong}")


def _sides(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch from either or both, at least 1 each; raises as :class:`PatchMixup` does."""
    sides = tuple(patch_size) if isinstance(patch_size, tuple | list) else (patch_size, patch_size)
    if len(sides) != 2:
        raise ValueError(f"patch_size must be one number or (height, width), not {patch_size}")
    for side in sides:
        require_whole(patch_size=side)
    if min(sides) < 1:
        raise ValueError(f"patch_size must be at least 1 pixel each way, not {patch_size}")
    return sides[0], sides[1]


def keep_mask(height: int, width: int, lam: float, random: np.random.Generator) -> Tensor:
    """1 outside a random box of about (1 − λ) of the area, clipped to the image; 0 inside. (height, width), float64."""
    mask = torch.ones(height, width, dtype=torch.float64)
    spans = []
    for size in (height, width):
        half = int(size * math.sqrt(1 - lam)) // 2
        centre = int(random.integers(size))
        spans.append(slice(max(0, centre - half), min(size, centre + half)))
    mask[spans[0], spans[1]] = 0
    return mask


def patch_shares(keep: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Mean of (height, width) shares over each patch, row by row: (patches,)."""
    return functional.avg_pool2d(keep[None, None], patch_size).flatten()
