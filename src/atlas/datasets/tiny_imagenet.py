"""Tiny-ImageNet: 110,000 colour images of 64 × 64 pixels in 200 classes of ImageNet.

Becomes one ``images.safetensors`` like the small image datasets; its official validation images are the test split, since those
of its test folder have no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.datasets.acquisition import extract
from atlas.datasets.base import Dataset, DatasetError, Source
from atlas.datasets.damage import told_as
from atlas.datasets.images import read_images, write_images

if TYPE_CHECKING:
    import numpy as np

CLASSES, PIXELS = 200, 64
STAND_IN_TRAIN, STAND_IN_TEST = 48, 16


def prepare_tiny_imagenet(downloads: Sequence[Path], folder: Path) -> None:
    """Classes are numbered in the order of their names, and images follow in the order of classes and file names."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        extract(downloads[0], Path(unpacked))
        lists = sorted(path for path in Path(unpacked).rglob("wnids.txt"))
        if not lists:
            raise DatasetError(f"{downloads[0].name} has no file wnids.txt")
        root = lists[0].parent
        with told_as("wnids.txt is damaged"):
            classes = sorted(lists[0].read_text().split())
        train = [(path, label) for label, name in enumerate(classes) for path in sorted((root / "train" / name).rglob("*.JPEG"))]
        bare = set(range(len(classes))) - {label for _, label in train}
        if train and bare:
            raise DatasetError(f"{downloads[0].name} has no images under train/{classes[min(bare)]}")
        test = _validation_files(root / "val", classes)
        train_images, train_labels = _decode(train, "train/<class>/images")
        test_images, test_labels = _decode(test, "val/images")
    write_images(folder, train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels)


def _validation_files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Validation images in the order of their names, with the classes that ``val_annotations.txt`` gives them."""
    table = folder / "val_annotations.txt"
    if not table.is_file():
        raise DatasetError("the archive has no file val/val_annotations.txt")
    labels = {name: label for label, name in enumerate(classes)}
    with told_as("val/val_annotations.txt is damaged"):
        lines = table.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        file, _, rest = line.partition("\t")
        name = rest.split("\t")[0]
        if line and name not in labels:
            raise DatasetError(f"val/val_annotations.txt, line {number}, names the class {name!r}, which wnids.txt does not")
        if line:
            rows.append((folder / "images" / file, labels[name]))
    return sorted(rows)


def _decode(files: Sequence[tuple[Path, int]], where: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if not files:
        raise DatasetError(f"the archive has no images under {where}")
    return read_images([path for path, _ in files], PIXELS), np.asarray([label for _, label in files], dtype=np.int64)


def stand_in(folder: Path) -> None:
    """Random pixels and labels of the dataset's shape."""
    import numpy as np

    random = np.random.default_rng(0)
    sizes = {"train": STAND_IN_TRAIN, "test": STAND_IN_TEST}
    arrays = {f"{split}_images": random.integers(0, 256, (count, 3, PIXELS, PIXELS), np.uint8) for split, count in sizes.items()}
    arrays |= {f"{split}_labels": random.integers(0, CLASSES, count, np.int64) for split, count in sizes.items()}
    write_images(folder, **arrays)


DATASETS = [
    Dataset(
        name="tiny-imagenet",
        title="Tiny-ImageNet: 110,000 colour images, 64 × 64 pixels, 200 classes",
        kind="download",
        licence="research only, as ImageNet",
        citation="Y. Le, X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015",
        prepare=prepare_tiny_imagenet,
        stand_in=stand_in,
        sources=(
            Source(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "tiny-imagenet-200.zip",
                "md5:90528d7ca1a48142e341f4ef8d21d0de",
            ),
        ),
        facts={"classes": CLASSES, "shape": (3, PIXELS, PIXELS), "top": 255, "train": 100_000, "test": 10_000},
    ),
]
