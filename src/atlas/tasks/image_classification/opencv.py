"""ImageNet's pipeline by OpenCV, on arrays of bytes: the draws of timm's transforms, on pixels that are nearly the same.

Decoding gives Pillow's pixels, and so do all operations of RandAugment that look up a byte's new value in a table: the table is
what Pillow makes of the 256 bytes. Resizing is that of :mod:`.resampling`. Saturation and sharpness are rounded otherwise.
Rotations, shears and shifts use OpenCV's own filters, and blend with the colour around the picture at its edge.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor

from atlas.tasks.image_classification import resampling
from atlas.tasks.image_classification.resampling import Bytes

cv2.setNumThreads(0)  # a process that loads images has one core, as torch's threads there

RAMP = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
"""Pillow's filter of that name, from which sharpness moves away."""
IDENTITY = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
UNTURNED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"


def decode(file: IO[bytes]) -> Bytes:
    """Decode a file to Pillow's pixels; what is no whole JPEG in colour or grey is decoded by Pillow itself, or refused by it.

    Raises
    ------
    OSError
        The file is no image, or is cut off.
    """
    content = file.read()
    with Image.open(io.BytesIO(content)) as picture:  # reads the header
        whole = content.startswith(JPEG_BEGINS) and content.endswith(JPEG_ENDS)
        if whole and picture.mode in ("RGB", "L"):
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), UNTURNED)
            if pixels is not None:
                return pixels  # type: ignore[no-any-return]
        return np.array(picture.convert("RGB"))


def on_arrays(transform: Any) -> Any:
    """Return a transform of timm for pictures of Pillow as one that takes what :func:`decode` gives, and draws the same."""
    from torchvision import transforms

    kinds: dict[type, Callable[[Any], Any]] = {
        transforms.Normalize: Normalize,
        transforms.CenterCrop: CenterCrop,
        transforms.RandomHorizontalFlip: Flip,
        transforms.ColorJitter: Jitter,
    }
    first, *others = (step for step in transform.transforms if type(step).__name__ != "MaybeToTensor")
    steps: list[Any] = [RandomCrop(first) if hasattr(first, "get_params") else Resize(first.size)]
    for step in others:
        if type(step) in kinds:
            steps.append(kinds[type(step)](step))
        elif hasattr(step, "ops"):
            steps.append(augmenting_arrays(step))
        elif any(isinstance(before, Normalize) for before in steps):
            steps.append(step)  # erasing, which acts on tensors
        else:
            steps.append(partial(by_pillow, step))
    return transforms.Compose(steps)


def by_pillow(operation: Callable[..., Any], picture: Bytes, *arguments: Any, **options: Any) -> Bytes:
    """Do to an array what an operation does to a picture of Pillow."""
    return np.array(operation(Image.fromarray(picture), *arguments, **options))


class RandomCrop:
    """The random crop and resize of timm, with its draws."""

    def __init__(self, crop: Any) -> None:
        self.crop = crop

    def __call__(self, picture: Bytes) -> Bytes:
        """Return the resized crop of a picture."""
        whole = torch.from_numpy(picture).permute(2, 0, 1)  # as torchvision asks pictures for their size
        top, left, height, width = self.crop.get_params(whole, self.crop.scale, self.crop.ratio)
        return resampling.resized(picture[top : top + height, left : left + width], self.crop.size)


class Resize(resampling.Resize):
    """Resizes arrays so that the shorter side has a given number of pixels."""

    def __call__(self, picture: Bytes) -> Bytes:
        """Return the picture with its shorter side at the given number of pixels."""
        height, width = picture.shape[:2]
        return resampling.resized(picture, self.target(width, height))


class CenterCrop:
    """The middle of an array, as torchvision cuts it out of pictures that are large enough."""

    def __init__(self, crop: Any) -> None:
        self.size: tuple[int, int] = crop.size

    def __call__(self, picture: Bytes) -> Bytes:
        """Return the middle, of the given height and width."""
        (height, width), (rows, columns) = self.size, picture.shape[:2]
        top, left = round((rows - height) / 2), round((columns - width) / 2)
        return picture[top : top + height, left : left + width]


class Flip:
    """Torchvision's mirror, with its draw."""

    def __init__(self, flip: Any) -> None:
        self.share = flip.p

    def __call__(self, picture: Bytes) -> Bytes:
        """Return the picture or, with the probability that is set, its mirror image."""
        return cv2.flip(picture, 1) if torch.rand(1) < self.share else picture


class Normalize(resampling.Normalize):
    """An array to (3, height, width) float32, minus the mean of each colour, by its standard deviation."""

    def __call__(self, picture: Bytes) -> Tensor:
        """Return the pixels as floats (channels, height, width), less the mean and over the deviation of each channel."""
        return self.normalised(torch.from_numpy(np.stack(cv2.split(picture))).float())


class Jitter:
    """Torchvision's random brightness, contrast and saturation, in their random order, with its draws."""

    def __init__(self, jitter: Any) -> None:
        from torchvision.transforms import functional

        self.jitter = jitter
        self.changes: tuple[Callable[[Bytes, float], Bytes], ...] = (
            partial(_pointwise, functional.adjust_brightness),
            _contrast,
            _color,
            partial(by_pillow, functional.adjust_hue),
        )

    def __call__(self, picture: Bytes) -> Bytes:
        """Return the picture with what was drawn."""
        jitter = self.jitter
        order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for index in order.tolist():
            if factors[index] is not None:
                picture = self.changes[index](picture, factors[index])
        return picture


def augmenting_arrays(augment: Any) -> Any:
    """Let an augmentation of timm, in place, act on arrays; operations that are not here are done by Pillow."""
    for operation in augment.ops:
        operation.aug_fn = OPERATIONS.get(operation.name) or partial(by_pillow, operation.aug_fn)
    return augment


def _pointwise(operation: Callable[..., Any], picture: Bytes, *arguments: Any, **options: Any) -> Bytes:
    """What an operation of Pillow makes of a picture, if every byte of the result depends on the one in its place alone."""
    return cv2.LUT(picture, np.asarray(operation(RAMP, *arguments, **options)))  # type: ignore[no-any-return]


def _looked_up(picture: Bytes, table: Bytes) -> Bytes:
    """Each byte's new value by the table (256, 3) of its colour; colour by colour, which is faster than all at once."""
    channels = zip(cv2.split(picture), table.T, strict=True)
    return cv2.merge([cv2.LUT(channel, np.ascontiguousarray(column)) for channel, column in channels])  # type: ignore[no-any-return]


def _contrast(picture: Bytes, factor: float, **_: Any) -> Bytes:
    """Away from the mean grey by a factor."""
    grey = Image.new("L", RAMP.size, int(cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0] + 0.5))
    return cv2.LUT(picture, np.asarray(Image.blend(grey, RAMP, factor)))  # type: ignore[no-any-return]


def _color(picture: Bytes, factor: float, **_: Any) -> Bytes:
    """Away from each pixel's grey by a factor."""
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(picture, factor, grey, 1 - factor, 0)  # type: ignore[no-any-return]


def _sharpness(picture: Bytes, factor: float, **_: Any) -> Bytes:
    """Away from the smoothed picture by a factor; the outermost pixels stay."""
    sharp = cv2.filter2D(picture, -1, factor * IDENTITY + (1 - factor) * SMOOTH)
    sharp[[0, -1]], sharp[:, [0, -1]] = picture[[0, -1]], picture[:, [0, -1]]
    return sharp  # type: ignore[no-any-return]


def _counts(picture: Bytes) -> NDArray[np.int64]:
    """How often each byte occurs in each colour: (256, 3)."""
    counts = [cv2.calcHist([picture], [channel], None, [256], [0, 256]).reshape(256) for channel in range(3)]
    return np.stack(counts, 1).astype(np.int64)


def _auto_contrast(picture: Bytes, **_: Any) -> Bytes:
    """Each colour stretched so that its darkest byte becomes 0 and its lightest one 255."""
    low, high = zip(*(cv2.minMaxLoc(channel)[:2] for channel in cv2.split(picture)), strict=True)
    ramps = Image.fromarray(np.arange(256)[:, None].clip(low, high).astype(np.uint8)[None])
    return _looked_up(picture, np.asarray(ImageOps.autocontrast(ramps))[0])


def _equalize(picture: Bytes, **_: Any) -> Bytes:
    """Each colour's bytes spread so that about as many pixels have every value, by Pillow's rule."""
    table = np.tile(np.arange(256)[:, None], 3)
    for channel, counts in enumerate(_counts(picture).T):
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            table[:, channel] = (step // 2 + counts.cumsum() - counts) // step
    return _looked_up(picture, table.clip(0, 255).astype(np.uint8))


def _warped(picture: Bytes, matrix: Sequence[float], *, fillcolor: Any, resample: Any) -> Bytes:
    """Take every pixel from where an affine map, by Pillow's six numbers, says that it comes from."""
    chosen = random.choice(resample) if isinstance(resample, list | tuple) else resample
    # pixels of Pillow have their centres at half numbers, those of OpenCV at whole ones
    a, b, c, d, e, f = matrix
    source = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    kernel = cv2.INTER_LINEAR if chosen == Image.Resampling.BILINEAR else cv2.INTER_CUBIC
    size = picture.shape[1::-1]
    return cv2.warpAffine(picture, source, size, flags=kernel | cv2.WARP_INVERSE_MAP, borderValue=fillcolor)  # type: ignore[no-any-return]


def _rotate(picture: Bytes, degrees: float, **options: Any) -> Bytes:
    height, width = picture.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _warped(picture, (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y), **options)


def _shear_x(picture: Bytes, factor: float, **options: Any) -> Bytes:
    return _warped(picture, (1, factor, 0, 0, 1, 0), **options)


def _shear_y(picture: Bytes, factor: float, **options: Any) -> Bytes:
    return _warped(picture, (1, 0, 0, factor, 1, 0), **options)


def _shift_x(picture: Bytes, share: float, **options: Any) -> Bytes:
    return _warped(picture, (1, 0, share * picture.shape[1], 0, 1, 0), **options)


def _shift_y(picture: Bytes, share: float, **options: Any) -> Bytes:
    return _warped(picture, (1, 0, 0, 0, 1, share * picture.shape[0]), **options)


TABLES = ("Invert", "Posterize", "PosterizeIncreasing", "PosterizeOriginal", "Solarize", "SolarizeIncreasing", "SolarizeAdd")
PILLOWS: Any = NAME_TO_OP  # by its own hints, its values cannot be called
OPERATIONS: dict[str, Callable[..., Bytes]] = {
    **{name: partial(_pointwise, PILLOWS[name]) for name in (*TABLES, "Brightness", "BrightnessIncreasing")},
    **dict.fromkeys(("Contrast", "ContrastIncreasing"), _contrast),
    **dict.fromkeys(("Color", "ColorIncreasing"), _color),
    **dict.fromkeys(("Sharpness", "SharpnessIncreasing"), _sharpness),
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Rotate": _rotate,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _shift_x,
    "TranslateYRel": _shift_y,
}
