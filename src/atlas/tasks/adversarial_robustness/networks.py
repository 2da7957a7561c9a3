"""From settings to networks, initialised by the run's seed alone: rows of one seed share their initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.harness.seeds import derive_seed
from atlas.nn.convnets import MLP, VGG, Normalise, PreActResNet, SmallConvNet, WideResNet
from atlas.tasks.adversarial_robustness.protocol import Network


class PixelClassifier(nn.Module):
    """A network behind its normalisation: pixels in [0, 1] to logits."""

    def __init__(self, network: nn.Module, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = normalise, network

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        return self.network(self.normalise(x))


def build_network(settings: Network, classes: int, shape: tuple[int, int, int], seed: int) -> PixelClassifier:
    """Return the network of the settings for images of ``shape`` (channels, height, width)."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "init"))
        network = _network(settings, classes, shape)
    return PixelClassifier(network, Normalise(settings.mean, settings.std) if settings.mean else nn.Identity())


def _network(settings: Network, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    channels, scale = shape[0], settings.scale
    widths = [max(1, round(width * scale)) for width in settings.widths]
    match settings.name:
        case "mlp":
            return MLP(classes, channels * shape[1] * shape[2], widths)
        case "convnet":
            return SmallConvNet(classes, channels, widths)
        case "preact-resnet18":
            return PreActResNet(classes, channels, scale=scale)
        case "vgg16":
            return VGG(classes, channels, scale=scale)
        case "wide-resnet":
            return WideResNet(classes, channels, settings.depth, settings.widening * scale)
