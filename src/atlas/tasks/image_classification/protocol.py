"""The protocol of image classification: backbone, data, schedule. Defaults are DeiT's on ImageNet-1k.

H. Touvron et al., *Training data-efficient image transformers & distillation through attention*, ICML 2021, Table 9.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Len, Lt
from pydantic import Field, model_validator

from atlas.datasets.splits import TestSplit
from atlas.settings import Fraction, Natural, Positive, Settings


def _unset(value: object) -> bool:
    """Whether a setting is left out of what determines a run's numbers: it came later, and without it nothing changes."""
    return value is None


class Backbone(Settings):
    """A timm VisionTransformer of any size; the defaults are DeiT-S/16 at 224 pixels.

    ``drop_path_rate`` is the rate of the last block; it grows linearly from 0 at the first.
    """

    img_size: Natural = 224
    patch_size: Natural = 16
    in_chans: Natural = 3
    embed_dim: Natural = 384
    depth: Natural = 12
    num_heads: Natural = 6
    mlp_ratio: Positive = 4.0
    global_pool: Literal["token", "avg"] = "token"
    weight_init: Literal["", "jax", "moco"] = ""
    drop_rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.1

    @model_validator(mode="after")
    def _divisible(self) -> Backbone:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class CaitSettings(Settings):
    """``init`` of the residual scales is 1e-5 at 24 layers (Table 1); ``class_layers`` attend from the class token alone."""

    init: Positive = 1e-5
    class_layers: Natural = 2


class SwinSettings(Settings):
    """Blocks and heads of the stages, and the side of a window in tokens; the defaults are Swin-S's.

    The protocol's ``embed_dim`` and ``patch_size`` are those of the first stage; its ``depth`` and ``num_heads`` do not matter.
    """

    depths: Annotated[tuple[Natural, ...], Len(1)] = (2, 2, 18, 2)
    heads: Annotated[tuple[Natural, ...], Len(1)] = (3, 6, 12, 24)
    window: Annotated[int, Gt(1)] = 7


class T2TSettings(Settings):
    """``strides`` of the three soft splits; their product is the side of a patch, whatever the protocol's ``patch_size`` is."""

    strides: tuple[Natural, Natural, Natural] = (4, 2, 2)


class Data(Settings):
    """Splits and augmentation.

    ``test_fraction`` applies to datasets without an official test split; there ``test_split`` says whether all seeds share one
    (``shared``) or each draws its own (``per-seed``). ``validation_fraction`` of the training images is held out for tuning; 0
    trains on all of them. ``train_size`` trains on so many of the others, of every class as many as its share; all runs see the
    same. ``upsample`` enlarges small images bilinearly by a whole factor, before they are normalised. ``resampling`` "torch"
    crops and resizes ImageNet's images faster than Pillow does, with some values that differ by 1 of 255; "opencv" does that, and
    decodes and augments by OpenCV, in half of Pillow's time or less (docs/performance.md says how far pixels differ).
    """

    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.3
    test_split: TestSplit = "shared"
    validation_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    train_size: Natural | None = Field(default=None, exclude_if=_unset)
    upsample: Natural = 1
    crop_padding: Annotated[int, Ge(0)] = 0
    flip: bool = False
    rand_augment: str = ""
    random_erasing: Fraction = 0.0
    repeats: Natural = 1
    workers: Annotated[int, Ge(0)] = 0
    resampling: Literal["torch", "opencv"] | None = Field(default=None, exclude_if=_unset)


class Protocol(Settings):
    """What every row of a table shares.

    A batch goes through the model ``micro_batch`` images at a time, and its gradients add up: the same step in less memory.
    Images are mixed inside such a piece. Of several ranks each passes its share of the pieces, and at most ``micro_batch``
    images at a time. ``precision`` float64 computes everything in double precision, where rounding must not matter.
    """

    backbone: Backbone = Backbone()
    data: Data = Data()
    epochs: Natural = 300
    batch_size: Natural = 1024
    micro_batch: Natural | None = None
    learning_rate: Positive = 1e-3
    min_learning_rate: Annotated[float, Ge(0)] = 1e-5
    warmup_learning_rate: Annotated[float, Ge(0)] = 1e-6
    warmup_epochs: Annotated[float, Ge(0)] = 5
    weight_decay: Annotated[float, Ge(0)] = 0.05
    clip_norm: Positive | None = None
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    mixup: Annotated[float, Ge(0)] = 0.8
    cutmix: Annotated[float, Ge(0)] = 1.0
    mix_probability: Fraction = 1.0
    mix_switch_probability: Fraction = 0.5
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = None
    evaluate_ema: bool = False
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    evaluation_batch_size: Natural = 256
    log_every: Natural = 10

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.evaluate_ema and self.ema_decay is None:
            raise ValueError("evaluate_ema needs an ema_decay, for example 0.9999")
        if self.warmup_epochs >= self.epochs:
            at_most = f"lower it, to {self.epochs - 1} at most"
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of epochs {self.epochs}: {at_most}")
        return self
