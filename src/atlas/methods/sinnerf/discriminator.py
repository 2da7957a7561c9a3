"""Local texture: a discriminator of patches, and augmentation that lets gradients through.

The augmentation is S. Zhao et al., *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A spectrally normalised convolution of 4 × 4; with stride 2 it halves height and width."""
    return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1 if stride == 2 else 0, bias=False))


class PatchDiscriminator(nn.Module):
    """Convolutions of 4 × 4 without bias, spectrally normalised; the last one, without padding, gives the logits.

    Parameters
    ----------
    widths : tuple of int
        Channels of the layers that halve the resolution. The default has a receptive field of 22 pixels and gives a map of
        logits, 12 × 18 for a patch of 63 × 84. ``(64, 128, 256, 512)`` gives one logit for 64 × 64.
    norm_first : bool
        Whether the first layer is followed by instance normalisation, as the others are.
    """

    def __init__(self, widths: tuple[int, ...] = (256, 512), norm_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for layer, width in enumerate(widths):
            layers.append(_convolution(channels, width, stride=2))
            if layer or norm_first:
                layers.append(nn.InstanceNorm2d(width))
            layers.append(nn.LeakyReLU(SLOPE))
            channels = width
        layers.append(_convolution(channels, 1, stride=1))
        self.layers = nn.Sequential(*layers)

    @classmethod
    def whole_patch(cls) -> PatchDiscriminator:
        """The official choice for 64 × 64 patches of Blender scenes: one logit, the first layer not normalised."""
        return cls((64, 128, 256, 512), norm_first=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, 1, rows, columns) of patches (b, 3, height, width)."""
        return self.layers(images)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss ½·(E[ReLU(1 − D(real))] + E[ReLU(1 + D(fake))]), a scalar, of logits of any shape."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """The field's adversarial loss −E[D(fake)], a scalar, of logits of any shape."""
    return -fake.mean()


def brightness(images: Tensor, u: Tensor) -> Tensor:
    """Add u − ½ to (b, 3, h, w), u in [0, 1] of shape (b, 1, 1, 1)."""
    return images + (u - 0.5)


def saturation(images: Tensor, u: Tensor) -> Tensor:
    """Scale the distance of (b, 3, h, w) from grey by 2u, u in [0, 1] of shape (b, 1, 1, 1)."""
    grey = images.mean(dim=1, keepdim=True)
    return (images - grey) * (2 * u) + grey


def contrast(images: Tensor, u: Tensor) -> Tensor:
    """Scale the distance of (b, 3, h, w) from each image's mean by u + ½, u in [0, 1] of shape (b, 1, 1, 1)."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (u + 0.5) + mean


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """Blank a rectangle of half the height and width, centred anywhere, cut off at the border; u (b, 2) in [0, 1)."""
    _, _, height, width = images.shape
    kept = torch.ones(len(images), 1, height, width, dtype=images.dtype, device=images.device)
    for image, centre in enumerate(u.tolist()):
        bounds = []
        for size, share in zip((height, width), centre, strict=True):
            length = int(size * 0.5 + 0.5)
            first = int(share * (size + 1 - length % 2)) - length // 2
            bounds.append((max(first, 0), min(first + length, size)))
        (top, bottom), (left, right) = bounds
        kept[image, :, top:bottom, left:right] = 0
    return images * kept


COLOUR = (brightness, saturation, contrast)


def diff_augment(images: Tensor, generator: torch.Generator | None = None, policy: str = "color,cutout") -> Tensor:
    """Augment images (b, 3, h, w) differentiably.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the draws, on the CPU.
    policy : str
        ``color`` (brightness ± 0.5, saturation × [0, 2], contrast × [0.5, 1.5]) and ``cutout``, comma-separated.

    Raises
    ------
    ValueError
        The policy holds another word.
    """
    count = len(images)
    for name in filter(None, policy.split(",")):
        if name == "color":
            for change in COLOUR:
                drawn = torch.rand(count, 1, 1, 1, generator=generator, dtype=images.dtype)
                images = change(images, drawn.to(images.device))
        elif name == "cutout":
            images = cutout(images, torch.rand(count, 2, generator=generator))
        else:
            raise ValueError(f"there is no augmentation {name}; choose from color, cutout")
    return images
