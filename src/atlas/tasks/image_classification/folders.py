"""Folders or tars of images too many for memory: ImageNet's pipeline, by timm's transforms.

An image's augmentation is seeded by (seed, epoch, index), whichever worker loads it, so that training which starts again in the
middle of an epoch sees the same pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from atlas.datasets.splits import stratified_split
from atlas.datasets.tars import Images, image_files
from atlas.errors import UserError
from atlas.harness.seeds import derive_seed, generator
from atlas.nn.precision import weight_type
from atlas.nn.ranks import here
from atlas.tasks.image_classification.protocol import Protocol
from atlas.tasks.image_classification.resampling import on_tensors

if TYPE_CHECKING:
    from atlas.harness.run import Run

Batches = Iterator[tuple[Tensor, Tensor]]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block with every global generator seeded, and leave them as they were.

    A process that only loads images draws nothing else, and need not leave them so: that would be a tenth of its time.
    """
    if get_worker_info() is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def keep_one_bit(augment: Any) -> None:
    """Let RandAugment's posterisation keep at least one bit: at full magnitude timm asks for none, which Pillow refuses."""
    for operation in getattr(augment, "ops", ()):
        if operation.name.startswith("Posterize"):
            operation.level_fn = partial(_at_least_one_bit, operation.level_fn)


def _at_least_one_bit(level_fn: Callable[..., tuple[int, ...]], level: float, hints: Any) -> tuple[int]:
    return (max(1, level_fn(level, hints)[0]),)


def train_transform(protocol: Protocol, *, tensors: bool = False) -> Callable[[Any], Tensor]:
    """Timm's training transform of a picture to a tensor (3, side, side).

    With ``tensors``, it is for float images in [0, 1] that keep their size and scale.
    """
    from timm.data import create_transform

    settings, backbone = protocol.data, protocol.backbone
    if tensors:
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.random_erasing import RandomErasing
        from torchvision.transforms import v2

        steps: list[Any] = []
        if settings.rand_augment:
            hints = {"translate_const": int(backbone.img_size * 0.45), "img_mean": (128, 128, 128)}
            augment = rand_augment_transform(settings.rand_augment, hints)
            keep_one_bit(augment)
            steps += [v2.ToPILImage(), augment, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        if settings.random_erasing:
            steps.append(RandomErasing(settings.random_erasing, mode="pixel", device="cpu"))
        return v2.Compose(steps)
    transform = create_transform(
        backbone.img_size,
        is_training=True,
        auto_augment=settings.rand_augment or None,
        re_prob=settings.random_erasing,
        re_mode="pixel",
        interpolation="bicubic",
        hflip=0.5 if settings.flip else 0.0,
        color_jitter=0.4,
    )
    for step in transform.transforms:
        keep_one_bit(step)
    return _resampled(transform, protocol)


def test_transform(protocol: Protocol) -> Callable[[Any], Tensor]:
    """Resize the shorter side to 256/224 of the input size, crop the centre, normalise: a picture to (3, side, side)."""
    from timm.data import create_transform

    transform = create_transform(protocol.backbone.img_size, is_training=False, interpolation="bicubic", crop_pct=224 / 256)
    return _resampled(transform, protocol)


def _resampled(transform: Any, protocol: Protocol) -> Callable[[Any], Tensor]:
    """A transform of timm, computed as the protocol says."""
    if protocol.data.resampling == "opencv":
        return require_opencv().on_arrays(transform)  # type: ignore[no-any-return]
    return on_tensors(transform) if protocol.data.resampling == "torch" else transform  # type: ignore[no-any-return]


def require_opencv() -> Any:
    """Return the module of the pipeline by OpenCV.

    Raises
    ------
    UserError
        OpenCV is not installed.
    """
    try:
        from atlas.tasks.image_classification import opencv
    except ImportError:
        raise UserError("data.resampling: opencv needs OpenCV: pip install opencv-python-headless, or set it to torch") from None
    return opencv


def picture_of(file: IO[bytes]) -> Any:
    """Return the picture of Pillow in a file; it is decoded when its pixels are asked for, and the file must be open then."""
    from PIL import Image

    image = Image.open(file)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy what is RGB already


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Images of one split; the key of a training image is (epoch, position, index)."""

    def __init__(
        self,
        images: Images,
        chosen: Sequence[int] | np.ndarray,
        transform: Callable[[Any], Tensor],
        seed: int,
        decode: Callable[[IO[bytes]], Any] = picture_of,
    ) -> None:
        self.images, self.indices, self.transform, self.seed, self.decode = images, chosen, transform, seed, decode

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        epoch, position, index = key if isinstance(key, tuple) else (-1, 0, key)
        own = int(self.indices[index])
        random_draws = seeded(derive_seed(self.seed, "augment", epoch, position))
        with self.images.open(own) as file, random_draws:
            return self.transform(self.decode(file)), int(self.images.labels[own])


class FolderImages:
    """``train/<class>/*`` and ``val/<class>/*`` under the dataset's folder, or in two tars; ``val`` is the test split."""

    def __init__(self, run: Run, protocol: Protocol, device: torch.device) -> None:
        self.seed, self.protocol, self.device = run.seed, protocol, device
        self.dtype = weight_type(protocol.precision)
        train, test = (image_files(run.data_folder, split) for split in ("train", "val"))
        self.classes = len(train.classes)
        kept, held = stratified_split(train.labels, protocol.data.validation_fraction)
        self.samples: dict[str, tuple[Images, np.ndarray]] = {
            "train": (train, kept),
            "validation": (train, held),
            "test": (test, np.arange(len(test))),
        }
        self._decode = require_opencv().decode if protocol.data.resampling == "opencv" else picture_of
        self._keys: list[Any] = []
        self._loader: DataLoader[tuple[Tensor, int]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete batches; with repeated augmentation an epoch has as many images, each ``repeats`` times."""
        return self.size("train") // self.protocol.batch_size

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.samples[split][1])

    def train_batches(self, epoch: int, first: int = 0, *, whole: bool = False) -> Batches:
        """Shuffled and augmented batches of an epoch, from batch ``first`` on."""
        size, repeats = self.protocol.batch_size, self.protocol.data.repeats
        share = None if whole else here().share(size, self.protocol.micro_batch)
        order = torch.randperm(self.size("train"), generator=generator(self.seed, "order", epoch))
        repeated = order.repeat_interleave(repeats)[: self.steps_per_epoch * size]
        keys = [(epoch, position, index) for position, index in enumerate(repeated.tolist())]
        own = range(size) if share is None else share.places.tolist()
        chosen = [keys[begin + offset] for begin in range(first * size, len(keys), size) for offset in own]
        if self._loader is None or self._loader.batch_size != len(own):
            dataset = _Transformed(*self.samples["train"], train_transform(self.protocol), self.seed, self._decode)
            self._loader = self._loader_of(dataset, self._keys, len(own), persistent=True)
        self._keys[:] = chosen
        yield from self._on_device(self._loader)

    def batches(self, split: str) -> Batches:
        """Batches of a split in its own order."""
        dataset = _Transformed(*self.samples[split], test_transform(self.protocol), self.seed, self._decode)
        own = list(range(len(dataset)))[here().slice(len(dataset))]
        yield from self._on_device(self._loader_of(dataset, own, self.protocol.evaluation_batch_size))

    def _loader_of(
        self, dataset: _Transformed, keys: list[Any], size: int, *, persistent: bool = False
    ) -> DataLoader[tuple[Tensor, int]]:
        """Return what loads images by their keys; a persistent one keeps its processes from epoch to epoch."""
        workers = self.protocol.data.workers
        return DataLoader(
            dataset,
            batch_size=size,
            sampler=keys,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=persistent and workers > 0,
            # by default it draws from the generator of stochastic depth whenever an epoch is begun, or gone on with
            generator=torch.Generator(),
        )

    def _on_device(self, loader: DataLoader[tuple[Tensor, int]]) -> Batches:
        for images, labels in loader:
            yield images.to(self.device, self.dtype, non_blocking=True), labels.to(self.device, non_blocking=True)

    def chosen(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, 3, side, side) of a split by their n indices, without augmentation, and their labels (n,)."""
        dataset = _Transformed(*self.samples[split], test_transform(self.protocol), self.seed, self._decode)
        images, labels = zip(*(dataset[index] for index in indices), strict=True)
        return torch.stack(images).to(self.device, self.dtype), torch.tensor(labels, device=self.device)

    def example(self, count: int) -> Tensor:
        """The first ``count`` test images, (count, 3, side, side)."""
        return self.chosen("test", range(min(count, self.size("test"))))[0]
