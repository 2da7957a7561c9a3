"""The protocol of object detection: pictures, heads and schedule, which every row of a table shares."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Len, Lt
from pydantic import model_validator

from atlas.settings import Count, Natural, NonNegative, Positive, Settings

STRIDE = 32
"""Of the coarsest map of a backbone: sides of pictures are multiples of it."""


class Data(Settings):
    """How pictures are read.

    ``flip`` mirrors every second one. ``jitter`` scales a picture by a random factor from this range, beside the one that fits it
    in, and crops or pads it (large-scale jitter). ``workers`` read ahead. ``train_limit`` and ``test_limit`` take the first
    pictures alone.
    """

    flip: bool = False
    jitter: tuple[Positive, Positive] | None = None
    workers: Count = 0
    train_limit: Natural | None = None
    test_limit: Natural | None = None


class Protocol(Settings):
    """What every row shares. Where As-ViT's authors released nothing, defaults are ours.

    ``image_size`` is the side of the square that pictures are fitted in, ``mean`` and ``std`` of its channels are taken out.
    ``masks`` adds the branch for them: Mask R-CNN instead of Faster R-CNN. ``anchors`` are sides in pixels, one for each of the
    five levels; ``representation`` is the width of the box head and ``proposals`` how many of a picture's regions reach it in
    use, twice as many in training; what scores less than ``score_threshold`` is not told.

    AdamW with ``learning_rate`` for ``batch_size`` pictures, a linear warm-up over ``warmup_steps``, then a cosine to 0;
    gradients are clipped at a norm of ``clip_norm``. ``drop_path_rate`` is the backbones'. A batch is passed in units of
    ``micro_batch`` pictures (all by default), whose losses and batch statistics are taken together. Several processes share the
    units out, so numbers do not depend on how many there are. ``precision`` float64 computes everything in double precision,
    where rounding must not matter.
    """

    image_size: Annotated[int, Ge(STRIDE)] = 1024
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    masks: bool = True
    pyramid_channels: Natural = 256
    anchors: Annotated[tuple[Positive, ...], Len(5, 5)] = (32, 64, 128, 256, 512)
    representation: Natural = 1024
    proposals: Natural = 1000
    score_threshold: Annotated[float, Ge(0), Lt(1)] = 0.05
    data: Data = Data(flip=True, jitter=(0.1, 2.0), workers=14)
    epochs: Natural = 36
    batch_size: Natural = 64
    micro_batch: Natural | None = None
    learning_rate: Positive = 1e-4
    weight_decay: NonNegative = 0.05
    warmup_steps: Count = 500
    clip_norm: Positive = 1.0
    drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.4
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    log_every: Natural = 50

    @model_validator(mode="after")
    def _shapes(self) -> Protocol:
        if self.image_size % STRIDE:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {STRIDE}, the stride of the coarsest map")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}")
        return self

    @property
    def in_chans(self) -> int:
        """Number of colour channels of a picture."""
        return len(self.mean)
