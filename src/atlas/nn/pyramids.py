"""Feature pyramids on transformers, as torchvision's detectors take them: a dictionary of maps, and ``out_channels``.

:class:`StagePyramid` joins maps of several strides from the top down (Lin et al., *Feature Pyramid Networks*, CVPR 2017);
:class:`SimplePyramid` makes them all of the one map of a plain transformer (Li et al., *Exploring Plain Vision Transformer
Backbones for Object Detection*, ECCV 2022, Sec. 3).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps (batch, channels, height, width)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps (batch, channels, height, width) over the channels, every place by itself."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StagePyramid(nn.Module):
    """A feature pyramid over a body that returns maps, finest first.

    Parameters
    ----------
    body : nn.Module
        Images (batch, channels, side, side) to a list of maps, each of half the side of the one before.
    widths : sequence of int
        Channels of the body's maps.
    out_channels : int
        Channels of every level.
    """

    def __init__(self, body: nn.Module, widths: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.body, self.out_channels = body, out_channels
        self.norms = nn.ModuleList(MapNorm(width) for width in widths)
        self.fpn = FeaturePyramidNetwork(list(widths), out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels (batch, out_channels, …) of images (batch, channels, side, side): ``0``, the finest, to the last, and ``pool``.

        The side of ``pool`` is half of the last level's.
        """
        maps = [norm(features) for norm, features in zip(self.norms, self.body(images), strict=True)]
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(index), features) for index, features in enumerate(maps)))
        return levels


class SimplePyramid(nn.Module):
    """Levels of strides 4, 8, 16, 32 and 64 from the last map of a timm VisionTransformer, whose patches have 16 pixels.

    Each of the first four is the map resized by transposed convolutions or by pooling, then a 1 × 1 and a 3 × 3 convolution, each
    with LayerNorm.
    """

    body: Any

    def __init__(self, body: Any, out_channels: int = 256) -> None:
        super().__init__()
        width = int(body.embed_dim)
        self.body, self.out_channels = body, out_channels
        quarter = nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        finest = nn.Sequential(nn.ConvTranspose2d(width, width // 2, 2, 2), MapNorm(width // 2), nn.GELU(), quarter)
        resized = [finest, nn.ConvTranspose2d(width, width // 2, 2, 2), nn.Identity(), nn.MaxPool2d(2)]
        widths = [width // 4, width // 2, width, width]
        self.levels = nn.ModuleList(
            nn.Sequential(
                resize,
                nn.Conv2d(before, out_channels, 1, bias=False),
                MapNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                MapNorm(out_channels),
            )
            for resize, before in zip(resized, widths, strict=True)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels (batch, out_channels, …) of images (batch, channels, side, side): ``0`` (stride 4) to ``3``, and ``pool``."""
        tokens = self.body.forward_features(images)[:, self.body.num_prefix_tokens :]
        rows, columns = self.body.patch_embed.grid_size
        last = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        levels = {str(index): level(last) for index, level in enumerate(self.levels)}
        return {**levels, "pool": functional.max_pool2d(levels["3"], 1, 2)}
