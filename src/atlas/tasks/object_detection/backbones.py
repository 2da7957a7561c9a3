"""What a method of object detection builds: override :meth:`Backbone.pyramid`. The task's own rows are here too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from atlas.harness.plugin import Plugin
from atlas.tasks.object_detection.settings import PlainSettings

if TYPE_CHECKING:
    from atlas.harness.run import Run

RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4")


class Backbone(Plugin):
    """Base of the plug-ins of object detection: a row gives the body and the pyramid that the detector stands on."""

    def pyramid(self, run: Run) -> nn.Module:
        """Return what the detector stands on, at its initialisation.

        Returns
        -------
        nn.Module
            Squares (batch, channels, side, side) of the protocol's size to a dictionary of maps, ``0`` to ``3`` and ``pool``, of
            strides 4 to 64; with an attribute ``out_channels``. See :mod:`atlas.nn.pyramids`.
        """
        raise NotImplementedError


class PlainTransformer(Backbone):
    """A timm VisionTransformer under the simple pyramid of ViTDet."""

    settings: PlainSettings

    def pyramid(self, run: Run) -> nn.Module:
        """The transformer without its head."""
        from timm.models.vision_transformer import VisionTransformer

        from atlas.nn.pyramids import SimplePyramid

        protocol = run.protocol_model()
        body = VisionTransformer(
            img_size=protocol.image_size,
            in_chans=protocol.in_chans,
            num_classes=0,
            global_pool="",
            drop_path_rate=protocol.drop_path_rate,
            **self.settings.model_dump(),
        )
        return SimplePyramid(body, protocol.pyramid_channels)


class ResNet50(Backbone):
    """torchvision's ResNet-50 with a feature pyramid, as in its published Mask R-CNN."""

    def pyramid(self, run: Run) -> nn.Module:
        """Torchvision's own body and pyramid of ResNet-50, with random weights."""
        from torchvision.models import resnet50
        from torchvision.models.detection.backbone_utils import BackboneWithFPN

        protocol = run.protocol_model()
        body = resnet50(weights=None)
        if protocol.in_chans != 3:
            body.conv1 = nn.Conv2d(protocol.in_chans, 64, 7, 2, 3, bias=False)
        layers = {name: str(place) for place, name in enumerate(RESNET_LAYERS)}
        return BackboneWithFPN(body, layers, [256, 512, 1024, 2048], protocol.pyramid_channels)
