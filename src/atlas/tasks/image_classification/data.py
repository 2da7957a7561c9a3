"""Batches of the splits: small datasets in memory, large ones from folders of images.

The order of an epoch and every augmentation are functions of (seed, epoch, position), so that training which starts again in
the middle of an epoch sees the same batches, and that several ranks see the images of one: each loads its own share of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from atlas.datasets import get_dataset
from atlas.datasets.images import IMAGES
from atlas.datasets.splits import balanced_order, stratified_split
from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.seeds import generator, split_seed
from atlas.nn.augmentation import random_crops, random_flips
from atlas.nn.precision import weight_type
from atlas.nn.ranks import Share, here
from atlas.tasks.image_classification.protocol import Protocol as Settings

if TYPE_CHECKING:
    from atlas.harness.run import Run

Batches = Iterator[tuple[Tensor, Tensor]]


class ImageData(Protocol):
    """What the training loop and the evaluation ask of a dataset; images arrive normalised, on the run's device.

    One of several ranks gets its own share of every batch, and its own part of a split.
    """

    classes: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch; the last, incomplete one is left out."""
        ...

    def train_batches(self, epoch: int, first: int = 0, *, whole: bool = False) -> Batches:
        """Training batches of an epoch, from batch ``first`` on; ``whole`` ones whatever the number of ranks."""
        ...

    def batches(self, split: str) -> Batches:
        """Batches of the validation or test split, in their own order, without augmentation; for ranks, of their part of it."""
        ...

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        ...

    def chosen(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, channels, height, width) of a split by their n indices, without augmentation, and their labels (n,)."""
        ...

    def example(self, count: int) -> Tensor:
        """The first ``count`` test images, (count, channels, height, width)."""
        ...


def load_data(run: Run, protocol: Settings, device: torch.device) -> ImageData:
    """Return the data of a run.

    Raises
    ------
    UserError
        The dataset has other images than the protocol's backbone takes, or fewer than a batch.
    """
    if (run.data_folder / IMAGES).is_file():
        return MemoryImages(run, protocol, device)
    from atlas.tasks.image_classification.folders import FolderImages

    return FolderImages(run, protocol, device)


class MemoryImages:
    """A dataset that fits in memory, kept as uint8 on the device."""

    def __init__(self, run: Run, protocol: Settings, device: torch.device) -> None:
        self.seed, self.protocol, self.device = run.seed, protocol, device
        self.dtype = weight_type(protocol.precision)
        facts = get_dataset(run.data).facts
        self.classes = int(facts["classes"])  # type: ignore[call-overload]
        arrays = read_tensors(run.data_folder / IMAGES)
        splits = self._splits(arrays)
        self._check(run, splits["train"][0])
        top = float(facts["top"])  # type: ignore[arg-type]
        pixels = self._enlarged(splits["train"][0]).double() / top
        self.mean = pixels.mean((0, 2, 3)).float().view(1, -1, 1, 1).to(device)
        self.std = pixels.std((0, 2, 3)).float().view(1, -1, 1, 1).to(device)
        self.top = top
        self.splits = {name: (images.to(device), labels.to(device)) for name, (images, labels) in splits.items()}

    def _splits(self, arrays: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        settings = self.protocol.data
        images, labels = arrays["train_images"], arrays["train_labels"]
        if "test_images" in arrays:
            test = arrays["test_images"], arrays["test_labels"]
        else:
            kept, held = stratified_split(labels.numpy(), settings.test_fraction, split_seed(settings.test_split, self.seed))
            test = images[held], labels[held]
            images, labels = images[kept], labels[kept]
        kept, held = stratified_split(labels.numpy(), settings.validation_fraction)
        if settings.train_size is not None:
            kept = kept[np.sort(balanced_order(labels[kept].numpy())[: settings.train_size])]
        return {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held]), "test": test}

    def _check(self, run: Run, images: Tensor) -> None:
        backbone, factor = self.protocol.backbone, self.protocol.data.upsample
        wanted = backbone.in_chans, backbone.img_size, backbone.img_size
        shape = images.shape[1], *(factor * side for side in images.shape[2:])
        if wanted != shape:
            raise UserError(f"{run.cell}: {run.data} has images of {shape}, the protocol's backbone takes {wanted}")
        size = self.protocol.data.train_size
        if size is not None and len(images) < size:
            raise UserError(f"{run.cell}: data.train_size {size} exceeds the {len(images)} images that are not held out")
        if len(images) < self.protocol.batch_size:
            raise UserError(f"{run.cell}: batch_size {self.protocol.batch_size} exceeds the {len(images)} training images")

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete batches; ``repeats`` shows every image that often per epoch."""
        return len(self.splits["train"][0]) * self.protocol.data.repeats // self.protocol.batch_size

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.splits[split][0])

    def normalised(self, images: Tensor) -> Tensor:
        """Enlarge uint8 images (n, channels, height, width) as asked, and normalise them per channel.

        They then have zero mean and unit variance over the training split.
        """
        return ((self._enlarged(images).float() / self.top - self.mean) / self.std).to(self.dtype)

    def _enlarged(self, images: Tensor) -> Tensor:
        factor = self.protocol.data.upsample
        if factor == 1:
            return images
        return torch.nn.functional.interpolate(images.float(), scale_factor=factor, mode="bilinear", align_corners=False)

    def chosen(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, channels, height, width) of a split by their n indices, without augmentation, and their labels (n,)."""
        images, labels = self.splits[split]
        index = torch.as_tensor(indices, device=self.device)
        return self.normalised(images[index]), labels[index]

    def train_batches(self, epoch: int, first: int = 0, *, whole: bool = False) -> Batches:
        """Shuffled and augmented batches of an epoch, from batch ``first`` on."""
        images, labels = self.splits["train"]
        share = None if whole else here().share(self.protocol.batch_size, self.protocol.micro_batch)
        size, repeats = self.protocol.batch_size, self.protocol.data.repeats
        order = torch.cat(
            [torch.randperm(len(images), generator=generator(self.seed, "order", epoch, turn)) for turn in range(repeats)]
        ).to(self.device)
        for index in range(first, self.steps_per_epoch):
            chosen = order[index * size : (index + 1) * size]
            if share is not None:
                chosen = chosen[share.places.to(self.device)]
            batch = self.normalised(images[chosen])
            yield self._augmented(batch, generator(self.seed, "augment", epoch, index), share), labels[chosen]

    def _augmented(self, images: Tensor, random: torch.Generator, share: Share | None) -> Tensor:
        settings = self.protocol.data
        if settings.flip:
            images = random_flips(images, random, share)
        if settings.crop_padding:
            images = random_crops(images, settings.crop_padding, random, share)
        if settings.rand_augment or settings.random_erasing:
            images = self._transformed(images, random, share)
        return images

    def _transformed(self, images: Tensor, random: torch.Generator, share: Share | None) -> Tensor:
        """RandAugment and random erasing by timm, image by image."""
        from atlas.tasks.image_classification.folders import seeded, train_transform

        transform = train_transform(self.protocol, tensors=True)
        pixels = (images * self.std + self.mean).clamp(0, 1)
        drawn = torch.randint(2**62, (len(images) if share is None else share.total,), generator=random)
        seeds = (drawn if share is None else drawn[share.places]).tolist()
        changed = []
        for image, seed in zip(pixels.cpu(), seeds, strict=True):
            with seeded(seed):
                changed.append(transform(image))
        return (torch.stack(changed).to(self.device) - self.mean) / self.std

    def batches(self, split: str) -> Batches:
        """Yield batches of this rank's part of a split, in its own order: images (batch, …) and labels (batch,)."""
        images, labels = self.splits[split]
        part = here().slice(len(images))
        images, labels = images[part], labels[part]
        size = self.protocol.evaluation_batch_size
        for first in range(0, len(images), size):
            yield self.normalised(images[first : first + size]), labels[first : first + size]

    def example(self, count: int) -> Tensor:
        """The first ``count`` test images, (count, channels, height, width)."""
        return self.normalised(self.splits["test"][0][:count])
