"""IDX files are read as they are written, and nothing else is."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from atlas.datasets.base import DatasetError
from atlas.datasets.images import IMAGES
from atlas.datasets.mnist import FILES, prepare_idx, read_idx


def write_idx(path: Path, values: np.ndarray) -> Path:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    return path


def test_prepares_both_splits(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    arrays = (images, labels, images[:2], labels[:2])
    downloads = [write_idx(tmp_path / name, array) for name, array in zip(FILES, arrays, strict=True)]
    prepare_idx(downloads, tmp_path)
    found = load_file(tmp_path / IMAGES)
    assert np.array_equal(found["train_images"], images[:, None])
    assert found["train_labels"].dtype == np.int64
    assert found["test_images"].shape == (2, 1, 4, 3)


@pytest.mark.parametrize(
    "content", [b"", b"plain", gzip.compress(b"\0\0\x0d\x01", mtime=0), gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc", mtime=0)]
)
def test_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILES[0]
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is not a gzipped IDX file"):
        read_idx(path)
