"""Tiny-ImageNet's layout: an archive of the same shape, small, is read; others are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas.datasets import DatasetError
from atlas.datasets.images import IMAGES
from atlas.datasets.tiny_imagenet import prepare_tiny_imagenet, stand_in
from atlas.harness.files import read_tensors

CLASSES = ("n03", "n01", "n02")


def jpeg(level: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64), level if mode == "L" else (level, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def archive(path: Path, annotations: str | None = "val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n") -> Path:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("tiny-imagenet-200/wnids.txt", "\n".join(CLASSES))
        for name in CLASSES:
            for index in (1, 0):
                target.writestr(f"tiny-imagenet-200/train/{name}/images/{name}_{index}.JPEG", jpeg(40 * int(name[2]) + index))
        target.writestr("tiny-imagenet-200/val/images/val_0.JPEG", jpeg(90, "L"))
        target.writestr("tiny-imagenet-200/val/images/val_1.JPEG", jpeg(200))
        if annotations is not None:
            target.writestr("tiny-imagenet-200/val/val_annotations.txt", annotations)
    return path


def test_classes_and_images_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare_tiny_imagenet([archive(tmp_path / "a.zip")], tmp_path / "out")
    arrays = read_tensors(tmp_path / "out" / IMAGES)
    assert arrays["train_images"].shape == (6, 3, 64, 64)
    assert arrays["train_labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert arrays["test_labels"].tolist() == [1, 0]
    reds = arrays["train_images"][:, 0].double().mean((1, 2)).tolist()
    assert reds == pytest.approx([40, 41, 80, 81, 120, 121], abs=2)
    grey = arrays["test_images"][0].double().mean((1, 2))
    assert grey.tolist() == pytest.approx([90] * 3, abs=2)


def test_damaged_layouts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="no file val/val_annotations.txt"):
        prepare_tiny_imagenet([archive(tmp_path / "a.zip", None)], tmp_path / "out")
    with pytest.raises(DatasetError, match="names the class 'n09'"):
        prepare_tiny_imagenet([archive(tmp_path / "b.zip", "val_0.JPEG\tn09\n")], tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as target:
        target.writestr("other.txt", "")
    with pytest.raises(DatasetError, match="no file wnids.txt"):
        prepare_tiny_imagenet([tmp_path / "c.zip"], tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as target:
        target.writestr("wnids.txt", "n01")
        target.writestr("val/val_annotations.txt", "")
    with pytest.raises(DatasetError, match="no images under train"):
        prepare_tiny_imagenet([tmp_path / "d.zip"], tmp_path / "out")


def test_stand_in_has_the_datasets_shape(tmp_path: Path) -> None:
    stand_in(tmp_path)
    arrays = read_tensors(tmp_path / IMAGES)
    assert arrays["train_images"].shape[1:] == arrays["test_images"].shape[1:] == (3, 64, 64)
    assert arrays["train_images"].numpy().dtype == np.uint8
    assert int(arrays["train_labels"].max()) < 200
