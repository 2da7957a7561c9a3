"""MNIST and Fashion-MNIST: 70,000 grey images of 28 × 28 pixels in 10 classes, from their IDX files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.datasets.base import Dataset, DatasetError, Source
from atlas.datasets.damage import told_as
from atlas.datasets.images import stand_in_images, write_images

if TYPE_CHECKING:
    import numpy as np

FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
BYTES = 0x08
"""The IDX code of unsigned bytes."""
FACTS = {"classes": 10, "shape": (1, 28, 28), "top": 255, "train": 60_000, "test": 10_000}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes.

    Raises
    ------
    DatasetError
        The file is no such file, or is cut off.
    """
    import numpy as np

    with told_as(f"{path.name} is not a gzipped IDX file of bytes"):
        content = gzip.decompress(path.read_bytes())
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
        if zero != 0 or kind != BYTES:
            raise ValueError(f"it starts with {content[:4]!r}")
        return values.reshape(shape)


def prepare_idx(downloads: Sequence[Path], folder: Path) -> None:
    """Images and labels of the official training and test splits."""
    import numpy as np

    arrays = {name: read_idx(path) for name, path in zip(FILES, downloads, strict=True)}
    images, labels, test_images, test_labels = (arrays[name] for name in FILES)
    for path, pictures, classes in zip(downloads[::2], (images, test_images), (labels, test_labels), strict=True):
        if pictures.ndim != 3 or classes.shape != pictures.shape[:1]:
            raise DatasetError(f"{path.name} holds an array of the shape {pictures.shape}, its labels one of {classes.shape}")
    write_images(
        folder,
        train_images=images[:, None],
        train_labels=labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
    )


def _sources(site: str, name: str, checksums: Sequence[str]) -> tuple[Source, ...]:
    return tuple(
        Source(f"{site}/{file}", f"{name}-{file}", f"md5:{checksum}") for file, checksum in zip(FILES, checksums, strict=True)
    )


DATASETS = [
    Dataset(
        name="mnist",
        title="MNIST: 70,000 handwritten digits, 28 × 28 pixels, 10 classes",
        kind="download",
        licence="CC BY-SA 3.0",
        citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, 1998",
        prepare=prepare_idx,
        sources=_sources(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "mnist",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        facts=FACTS,
        stand_in=lambda folder: stand_in_images(folder, (1, 28, 28), 10),
    ),
    Dataset(
        name="fashion-mnist",
        title="Fashion-MNIST: 70,000 pictures of clothes, 28 × 28 pixels, 10 classes",
        kind="download",
        licence="MIT",
        citation="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017",
        prepare=prepare_idx,
        sources=_sources(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "fashion-mnist",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        facts=FACTS,
        stand_in=lambda folder: stand_in_images(folder, (1, 28, 28), 10),
    ),
]
