"""Pictures with boxes and masks, as torchvision's detectors take them, and the truth as pycocotools takes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atlas.datasets import get_dataset
from atlas.datasets.detection import COCO_ANNOTATIONS, COCO_IMAGES, SCENES
from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.seeds import drawing, generator
from atlas.tasks.object_detection.coco import encode, index, read

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.object_detection.protocol import Data, Protocol

Target = dict[str, Tensor]
"""``boxes`` (objects, 4) in pixels, ``labels`` (objects,) from 1, ``masks`` (objects, height, width) of 0 and 1."""


class Pictures(Dataset[tuple[Tensor, Target]]):
    """Pictures of one split; ``truth`` is what pycocotools compares with, ``numbers`` are its ids of the pictures.

    Labels begin at 1, because torchvision's detectors keep 0 for the background; they are the ids of categories.
    """

    numbers: list[int]
    truth: Any

    def picture(self, place: int) -> tuple[Tensor, Target]:
        """A picture (channels, height, width) in [0, 1] and its objects."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, Target]:
        """Return the picture (channels, height, width) at a position and its objects; see :meth:`picture`."""
        return self.picture(place)


class Scenes(Pictures):
    """The embedded scenes of digits."""

    def __init__(self, folder: Path, split: str, limit: int | None = None) -> None:
        arrays = read_tensors(folder / SCENES)
        self.images, self.instances, self.boxes, self.labels = (
            arrays[f"{split}_{name}"][:limit] for name in ("images", "instances", "boxes", "labels")
        )
        self.numbers = list(range(len(self.images)))
        self._truth: Any = None

    def picture(self, place: int) -> tuple[Tensor, Target]:
        """A scene (channels, height, width) in [0, 1] and its n digits.

        Of the digits there are boxes (n, 4), labels (n,) and masks (n, height, width).
        """
        there = self.labels[place] >= 0
        kinds = 1 + torch.arange(int(there.sum()), dtype=torch.uint8)
        masks = (self.instances[place] == kinds.view(-1, 1, 1)).to(torch.uint8)
        boxes, labels = self.boxes[place][there], self.labels[place][there] + 1
        return self.images[place] / 255, {"boxes": boxes, "labels": labels, "masks": masks}

    @property
    def truth(self) -> Any:  # type: ignore[override]
        """Annotations of the scenes in COCO's format."""
        if self._truth is None:
            self._truth = index(self._annotations())
        return self._truth

    def _annotations(self) -> dict[str, Any]:
        height, width = self.images.shape[-2:]
        objects: list[dict[str, Any]] = []
        for place in self.numbers:
            _, target = self.picture(place)
            columns = (target["boxes"].tolist(), target["labels"].tolist(), target["masks"].numpy())
            for box, label, mask in zip(*columns, strict=True):
                left, top, right, bottom = box
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": place,
                        "category_id": label,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode(mask),
                    }
                )
        return {
            "info": {},
            "images": [{"id": place, "height": height, "width": width} for place in self.numbers],
            "annotations": objects,
            "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        }


class CocoPictures(Pictures):
    """COCO's pictures; for training without those that show nothing, and without crowds, whose objects are not told apart."""

    def __init__(self, folder: Path, split: str, limit: int | None = None) -> None:
        self.folder = folder / COCO_IMAGES[split]
        self.truth = read(str(folder / COCO_ANNOTATIONS[split]))
        numbers = sorted(self.truth.getImgIds())
        if split == "train":
            numbers = [number for number in numbers if self._objects(number)]
        self.numbers = numbers[:limit]

    def _objects(self, number: int) -> list[dict[str, Any]]:
        """Objects of a picture that have an extent and are no crowd."""
        found = self.truth.loadAnns(self.truth.getAnnIds(imgIds=[number], iscrowd=False))
        return [one for one in found if min(one["bbox"][2:]) >= 1]

    def picture(self, place: int) -> tuple[Tensor, Target]:
        """A photograph (3, height, width) in [0, 1] and its n objects.

        Of the objects there are boxes (n, 4) in pixels, labels (n,) and masks (n, height, width).
        """
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        number = self.numbers[place]
        record = self.truth.loadImgs([number])[0]
        image = pil_to_tensor(Image.open(self.folder / record["file_name"]).convert("RGB")) / 255
        objects = self._objects(number)
        boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [torch.from_numpy(self.truth.annToMask(one)) for one in objects]
        return image, {
            "boxes": boxes,
            "labels": torch.tensor([one["category_id"] for one in objects], dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, *image.shape[1:], dtype=torch.uint8),
        }


class Augmented(Dataset[tuple[Tensor, Target]]):
    """Pictures as training sees them: asked for by (epoch, place), and random by these and the seed alone."""

    def __init__(self, pictures: Pictures, settings: Data, size: int, seed: int) -> None:
        from torchvision.transforms import v2

        self.pictures, self.seed = pictures, seed
        steps: list[Any] = [v2.RandomHorizontalFlip()] if settings.flip else []
        if settings.jitter:
            steps += [v2.ScaleJitter((size, size), settings.jitter), v2.RandomCrop(size, pad_if_needed=True)]
        self.transform = v2.Compose([*steps, v2.SanitizeBoundingBoxes()]) if steps else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        """Return a picture (channels, height, width), augmented as its epoch has it, and its objects."""
        from torchvision import tv_tensors

        epoch, place = key
        image, target = self.pictures[place]
        if self.transform is None:
            return image, target
        size = (image.shape[1], image.shape[2])
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)  # type: ignore[call-overload]
        with drawing(self.seed, "augmentation", epoch, place):
            whole = {**target, "boxes": boxes, "masks": tv_tensors.Mask(target["masks"])}
            changed, seen = self.transform(tv_tensors.Image(image), whole)
        return changed.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in seen.items()}


def load_pictures(run: Run, split: str) -> Pictures:
    """The pictures of a run's dataset: ``train`` or ``test``.

    Raises
    ------
    UserError
        The dataset is not one of pictures with boxes.
    """
    settings = run.protocol_model().data
    limit = settings.train_limit if split == "train" else settings.test_limit
    folder = run.data_folder
    if (folder / SCENES).is_file():
        return Scenes(folder, split, limit)
    if (folder / COCO_ANNOTATIONS[split]).is_file():
        return CocoPictures(folder, split, limit)
    raise UserError(f"{run.cell}: {run.data} is not a dataset of pictures with boxes")


def classes_of(run: Run) -> int:
    """Largest id of a category of a run's dataset."""
    return int(get_dataset(run.data).facts["classes"])  # type: ignore[call-overload]


def steps_per_epoch(pictures: int, protocol: Protocol) -> int:
    """Whole batches of an epoch, at least one."""
    return max(1, pictures // protocol.batch_size)


def batches(run: Run, pictures: Pictures, first: int, places: slice = slice(None)) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """Batches of training, lists of pictures (channels, height, width) and of targets, from a step on.

    They are as if the steps before had been taken. Of each batch only the pictures at some ``places`` are read, all by default.
    """
    protocol = run.protocol_model()
    per_epoch = steps_per_epoch(len(pictures), protocol)
    dataset = Augmented(pictures, protocol.data, protocol.image_size, run.seed)
    for epoch in range(first // per_epoch, protocol.epochs):
        order = torch.randperm(len(pictures), generator=generator(run.seed, "order", epoch)).tolist()
        start = first % per_epoch if epoch == first // per_epoch else 0
        size = protocol.batch_size
        whole = (order[step * size : (step + 1) * size] for step in range(start, per_epoch))
        keys = [[(epoch, place) for place in batch[places]] for batch in whole]
        yield from DataLoader(
            dataset,
            batch_sampler=keys,
            num_workers=protocol.data.workers,
            collate_fn=lists,
            generator=torch.Generator(),  # its draws would else change the process's own
        )


def lists(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Pictures (channels, height, width) and targets apart; pictures have sizes of their own."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
