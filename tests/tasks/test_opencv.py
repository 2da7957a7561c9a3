"""The pipeline by OpenCV beside Pillow's and timm's: the same files, the same draws, nearly the same pixels."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms

pytest.importorskip("cv2")

from atlas.tasks.image_classification import opencv
from atlas.tasks.image_classification.folders import keep_one_bit, picture_of

HINTS = {"translate_const": 28, "img_mean": (124, 116, 104)}
RECIPE = "rand-m9-mstd0.5-inc1"
EXACT = {"AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "BrightnessIncreasing"}
ROUNDED = {"ColorIncreasing": 2, "ContrastIncreasing": 2, "SharpnessIncreasing": 1}


def photograph(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """As smooth as a photograph, over the whole range."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


FILES = {
    "colour": encoded(photograph(), quality=90),
    "progressive": encoded(photograph(), quality=60, progressive=True, subsampling=2),
    "grey": encoded(photograph().convert("L")),
    "turned": encoded(photograph(), exif=exif(6)),
    "cmyk": encoded(photograph().convert("CMYK")),
    "something after its end": encoded(photograph()) + b"abc",
    "png": encoded(photograph().convert("RGBA"), "PNG"),
    "palette": encoded(photograph().convert("P"), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_decoded_to_pillows_pixels(name: str) -> None:
    expected = np.asarray(picture_of(io.BytesIO(FILES[name])))
    assert np.array_equal(opencv.decode(io.BytesIO(FILES[name])), expected)


@pytest.mark.parametrize("content", [FILES["colour"][:-200], b"no image"])
def test_what_pillow_refuses_is_refused(content: bytes) -> None:
    with pytest.raises(OSError):
        opencv.decode(io.BytesIO(content))


@pytest.mark.parametrize("index", range(15))
def test_operations_of_randaugment(index: int) -> None:
    """With the same draws; moved pictures may differ at their edge, where OpenCV blends with the colour around."""
    ours, theirs = (rand_augment_transform(RECIPE, dict(HINTS)) for _ in range(2))
    operation, other = opencv.augmenting_arrays(ours).ops[index], theirs.ops[index]
    operation.prob = other.prob = 1.0
    for augment in (ours, theirs):
        keep_one_bit(augment)
    picture = photograph()
    for seed in range(5):
        states, results = [], []
        for act, shown in ((operation, np.asarray(picture)), (other, picture)):
            random.seed(seed)
            results.append(np.asarray(act(shown)).astype(int))
            states.append(random.getstate())
        assert states[0] == states[1]
        difference = abs(results[0] - results[1])
        if operation.name in EXACT:
            assert difference.max() == 0
        elif operation.name in ROUNDED:
            assert difference.max() <= ROUNDED[operation.name]
        else:
            assert np.median(difference) <= 1
            assert difference.mean() < 3
            assert abs(results[1] - np.asarray(picture)).mean() > 3, "the picture has moved"


def test_a_picture_of_one_colour_stays() -> None:
    plain = np.full((8, 8, 3), 90, np.uint8)
    for name in ("AutoContrast", "Equalize", "SharpnessIncreasing"):
        assert np.array_equal(opencv.OPERATIONS[name](plain, *([1.7] if "Sharp" in name else [])), plain)


def test_colour_jitter_and_mirror() -> None:
    picture = photograph()
    for theirs, kind, most in (
        (transforms.ColorJitter(0.4, 0.4, 0.4), opencv.Jitter, 4),
        (transforms.ColorJitter(0.4, 0.4, 0.4, 0.1), opencv.Jitter, 12),
        (transforms.RandomHorizontalFlip(), opencv.Flip, 0),
    ):
        ours = kind(theirs)
        for seed in range(8):
            torch.manual_seed(seed)
            expected = np.asarray(theirs(picture)).astype(int)
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            found = ours(np.asarray(picture))
            assert torch.equal(torch.get_rng_state(), state)
            assert abs(found - expected).max() <= most


def test_operations_that_are_not_here_are_pillows() -> None:
    picture = photograph()
    ours, theirs = (rand_augment_transform("rand-t3a-m9-p1", dict(HINTS)) for _ in range(2))
    opencv.augmenting_arrays(ours)
    seen = set()
    for operation, other in zip(ours.ops, theirs.ops, strict=True):
        operation.prob = other.prob = 1.0
        assert np.array_equal(operation(np.asarray(picture)), np.asarray(other(picture)))
        seen.add(operation.name)
    assert {"GaussianBlur", "Desaturate"} <= seen - set(opencv.OPERATIONS)
