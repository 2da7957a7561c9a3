"""Image classification: digits, CIFAR, and folders of images.

Small datasets become one safetensors file, ``images.safetensors``: ``train_images`` (n, channels, height, width) uint8,
``train_labels`` (n,) int64, and the same for ``test_`` where the source has an official test split.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.datasets.acquisition import extract
from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, Source
from atlas.datasets.damage import told_as
from atlas.datasets.looks import is_stray
from atlas.datasets.parquets import pack, parquet_files
from atlas.datasets.splits import balanced_order
from atlas.datasets.tars import ImageTar

if TYPE_CHECKING:
    import numpy as np

IMAGES = "images.safetensors"
IMAGENET_CLASSES = 1000
IMAGENET_TRAIN = 1_281_167
IMAGENET_VALIDATION = 50_000


def write_images(folder: Path, **arrays: np.ndarray) -> None:
    """Write the arrays of a small image dataset."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / IMAGES)


def prepare_digits(downloads: Sequence[Path], folder: Path) -> None:
    """1,797 images of 8 × 8 pixels with values 0 … 16; there is no official test split."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    write_images(folder, train_images=digits.images[:, None].astype(np.uint8), train_labels=digits.target.astype(np.int64))


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain values and NumPy arrays, and nothing that could run code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise DatasetError(f"a pickle of the archive asks for {module}.{name}; only arrays and plain values are read")
        return super().find_class(module, name)


def read_cifar_batch(path: Path, label: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch of CIFAR's Python version without running code: images (n, 3, 32, 32) uint8 and labels (n,) int64."""
    import numpy as np

    with told_as(f"{path.name} is not a batch of CIFAR's Python version"):
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(content[label], dtype=np.int64)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images and labels of the shape {labels.shape}")
        return images, labels


def _prepare_cifar(archive: Path, folder: Path, train: list[str], test: str, label: bytes) -> None:
    import tempfile

    import numpy as np

    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        extract(archive, Path(unpacked))
        inner = next(iter(sorted(Path(unpacked).glob("cifar-*-python"))), Path(unpacked))
        missing = next((name for name in [*train, test] if not (inner / name).is_file()), None)
        if missing is not None:
            raise DatasetError(f"{archive.name} has no file {missing}")
        batches = [read_cifar_batch(inner / name, label) for name in train]
        test_images, test_labels = read_cifar_batch(inner / test, label)
    write_images(
        folder,
        train_images=np.concatenate([images for images, _ in batches]),
        train_labels=np.concatenate([labels for _, labels in batches]),
        test_images=test_images,
        test_labels=test_labels,
    )


def prepare_cifar10(downloads: Sequence[Path], folder: Path) -> None:
    """50,000 + 10,000 colour images of 32 × 32 pixels in 10 classes."""
    _prepare_cifar(downloads[0], folder, [f"data_batch_{index}" for index in range(1, 6)], "test_batch", b"labels")


def prepare_cifar100(downloads: Sequence[Path], folder: Path) -> None:
    """50,000 + 10,000 colour images of 32 × 32 pixels in 100 classes (the fine labels)."""
    _prepare_cifar(downloads[0], folder, ["train"], "test", b"fine_labels")


def prepare_image_folders(downloads: Sequence[Path], folder: Path) -> None:
    """An archive of ``train/<class>/*`` and ``test/<class>/*``; classes are numbered in alphabetical order.

    Files come class by class; in the arrays the classes are evenly spread (:func:`~atlas.datasets.splits.balanced_order`), always
    in the same order. So what takes the first or the last images sees all classes, as in the batches of CIFAR.
    """
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        extract(downloads[0], Path(unpacked))
        train_folders = sorted(path for path in Path(unpacked).rglob("train") if path.is_dir())
        if not train_folders:
            raise DatasetError(f"{downloads[0].name} has no folder train/<class>/")
        folders = (train_folders[0], train_folders[0].parent / "test")
        train_classes, test_classes = (set(_classes(part)) for part in folders)
        if test_classes and train_classes != test_classes:
            odd = min(train_classes ^ test_classes)
            raise DatasetError(f"{downloads[0].name} has the class {odd} in only one of train/ and test/")
        train, test = (read_image_folder(part) for part in folders)
    orders = balanced_order(train[1]), balanced_order(test[1])
    write_images(
        folder,
        train_images=train[0][orders[0]],
        train_labels=train[1][orders[0]],
        test_images=test[0][orders[1]],
        test_labels=test[1][orders[1]],
    )


def read_image_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decode every image under ``folder/<class>/``: images (n, 3, height, width) uint8 of one size, labels (n,) int64."""
    import numpy as np

    files = [(path, label) for label, name in enumerate(_classes(folder)) for path in sorted((folder / name).iterdir())]
    if not files:
        raise DatasetError(f"the archive has no images under {folder.name}/<class>/")
    return read_images([path for path, _ in files]), np.asarray([label for _, label in files], dtype=np.int64)


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def read_images(paths: Sequence[Path], pixels: int | None = None) -> np.ndarray:
    """Decode images of one size: (n, 3, height, width) uint8.

    Parameters
    ----------
    pixels : int, optional
        Their height and width; by default those of the first.

    Raises
    ------
    DatasetError
        An image is missing or damaged, or has another size; the message names it with the two folders above it.
    """
    import numpy as np
    from PIL import Image

    size = None if pixels is None else (pixels, pixels)
    images = None
    for index, path in enumerate(paths):
        shown = "/".join(path.parts[-3:])
        with told_as(f"{shown} is missing or damaged"), Image.open(path) as image:
            decoded = np.asarray(image.convert("RGB"))
        size = size or decoded.shape[:2]
        if decoded.shape[:2] != size:
            raise DatasetError(f"{shown} has {decoded.shape[0]} × {decoded.shape[1]} pixels, not {size[0]} × {size[1]}")
        if images is None:
            images = np.empty((len(paths), 3, *size), dtype=np.uint8)
        images[index] = decoded.transpose(2, 0, 1)
    assert images is not None
    return images


def stand_in_images(folder: Path, shape: tuple[int, int, int], classes: int, *, tested: bool = True) -> None:
    """Random images (channels, height, width), two of every class; with ``tested`` as many in a test split."""
    import numpy as np

    random = np.random.default_rng(0)
    labels = np.tile(np.arange(classes, dtype=np.int64), 2)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test") if tested else ("train",):
        arrays[f"{split}_images"] = random.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels
    write_images(folder, **arrays)


def stand_in_imagenet(folder: Path) -> None:
    """One random picture in each of 1,000 training classes, and four in two classes of ``val``."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG")
    classes = [f"n{index:08d}" for index in range(IMAGENET_CLASSES)]
    places = [f"train/{name}/a" for name in classes] + [f"val/{name}/{image}" for name in classes[:2] for image in "ab"]
    for number in places:
        path = folder / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())


def check_imagenet(folder: Path) -> None:
    """ImageNet-1k as everyone lays it out, ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG`` of 1,000 classes; or as two tars.

    Of Hugging Face's Parquet files, where there is nothing else, the two tars are made.
    """
    where = (
        f"put ImageNet-1k at {folder}/train/<wnid>/*.JPEG and {folder}/val/<wnid>/*.JPEG (a link to your copy will do), "
        "or the same in train.tar and val.tar, or Hugging Face's Parquet files"
    )
    if not folder.is_dir():
        raise DatasetLayoutError(f"imagenet: {folder} does not exist; {where}")
    for split, expected in (("train", IMAGENET_TRAIN), ("val", IMAGENET_VALIDATION)):
        images = folder / split
        tar = images.with_suffix(".tar")
        if images.is_dir():
            _check_folders(images, expected, where)
        elif tar.is_file():
            _check_tar(tar, expected, where)
        elif files := parquet_files(folder, split):
            _make_tar(files, tar, expected, where)
        else:
            raise DatasetLayoutError(f"imagenet: {images} does not exist; {where}")


def _check_folders(folder: Path, expected: int, where: str) -> None:
    classes = [path for path in folder.iterdir() if path.is_dir() and not is_stray(path.name)]
    if len(classes) != IMAGENET_CLASSES:
        flat = " (its images are not sorted into class folders)" if not classes and any(folder.iterdir()) else ""
        raise DatasetLayoutError(f"imagenet: {folder} has {len(classes)} class folders, not {IMAGENET_CLASSES}{flat}; {where}")
    empty = next((path for path in sorted(classes) if not any(path.iterdir())), None)
    if empty is not None:
        raise DatasetLayoutError(f"imagenet: {empty} is empty; is the copy complete?")
    count = sum(not is_stray(image.name) for path in classes for image in path.iterdir())
    if count != expected:
        raise DatasetLayoutError(f"imagenet: {folder} has {count:,} images, not {expected:,}; is the copy complete?")


def _make_tar(files: list[Path], tar: Path, expected: int, where: str) -> None:
    """Make the tar of a split, and leave none that is not as it should be."""
    pack(files, tar)
    try:
        _check_tar(tar, expected, where)
    except DatasetLayoutError:
        tar.unlink()
        raise


def _check_tar(tar: Path, expected: int, where: str) -> None:
    from PIL import Image, UnidentifiedImageError

    images = ImageTar(tar)
    if len(images.classes) != IMAGENET_CLASSES:
        raise DatasetLayoutError(f"imagenet: {tar} has {len(images.classes)} class folders, not {IMAGENET_CLASSES}; {where}")
    if len(images) != expected:
        raise DatasetLayoutError(f"imagenet: {tar} has {len(images):,} images, not {expected:,}; is the copy complete?")
    for index in (0, len(images) - 1):
        try:
            with Image.open(images.open(index)) as image:
                image.load()
        except (UnidentifiedImageError, OSError) as error:
            raise DatasetLayoutError(f"imagenet: {images.names[index]} in {tar} is no image: {error}") from None


KRIZHEVSKY = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
DATASETS = [
    Dataset(
        name="digits",
        title="1,797 handwritten digits, 8 × 8 pixels, bundled with scikit-learn",
        kind="embedded",
        licence="CC BY 4.0",
        citation="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
        prepare=prepare_digits,
        stand_in=lambda folder: prepare_digits((), folder),
        facts={"classes": 10, "shape": (1, 8, 8), "top": 16, "train": 1797},
    ),
    Dataset(
        name="cifar10",
        title="CIFAR-10: 60,000 colour images, 32 × 32 pixels, 10 classes",
        kind="download",
        licence="not stated by its authors",
        citation=KRIZHEVSKY,
        prepare=prepare_cifar10,
        stand_in=lambda folder: stand_in_images(folder, (3, 32, 32), 10),
        sources=(
            Source(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "cifar-10-python.tar.gz",
                "md5:c58f30108f718f92721af3b95e74349a",
            ),
        ),
        facts={"classes": 10, "shape": (3, 32, 32), "top": 255, "train": 50_000, "test": 10_000},
    ),
    Dataset(
        name="cifar100",
        title="CIFAR-100: 60,000 colour images, 32 × 32 pixels, 100 classes",
        kind="download",
        licence="not stated by its authors",
        citation=KRIZHEVSKY,
        prepare=prepare_cifar100,
        stand_in=lambda folder: stand_in_images(folder, (3, 32, 32), 100),
        sources=(
            Source(
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "cifar-100-python.tar.gz",
                "md5:eb9058c3a382ffc7106e4002c42a8d85",
            ),
        ),
        facts={"classes": 100, "shape": (3, 32, 32), "top": 255, "train": 50_000, "test": 10_000},
    ),
    Dataset(
        name="cifar10-jpeg",
        title="CIFAR-10 re-encoded as JPEG in class folders: pixels differ slightly from the original",
        kind="download",
        licence="not stated by its authors",
        citation=KRIZHEVSKY,
        prepare=prepare_image_folders,
        stand_in=lambda folder: stand_in_images(folder, (3, 32, 32), 10),
        sources=(
            Source(
                "",
                "cifar10-imagefolder.tar.gz",
                "sha256:ff937e22f2e42c12741508e6351cd54497a0e81afe873c5dc0592ff3b9aa0d70",
            ),
        ),
        facts={"classes": 10, "shape": (3, 32, 32), "top": 255, "train": 50_000, "test": 10_000},
    ),
    Dataset(
        name="imagenet",
        title="ImageNet-1k (ILSVRC 2012), supplied by the user",
        kind="user-supplied",
        licence="research only, by agreement with its authors",
        citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
        check=check_imagenet,
        stand_in=stand_in_imagenet,
        facts={"classes": 1000, "shape": (3, 224, 224), "top": 255, "train": IMAGENET_TRAIN, "test": IMAGENET_VALIDATION},
    ),
]
