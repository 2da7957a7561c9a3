"""Other backbones than the protocol's plain one: the first ingredient of a recipe, with the protocol's sizes.

CaiT is H. Touvron et al., *Going deeper with Image Transformers*, ICCV 2021; Swin is Z. Liu et al., *Swin Transformer:
Hierarchical Vision Transformer using Shifted Windows*, ICCV 2021; T2T-ViT is in :mod:`atlas.nn.t2t`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atlas.errors import UserError
from atlas.harness.seeds import derive_seed
from atlas.tasks.image_classification.ingredients import Ingredient
from atlas.tasks.image_classification.protocol import CaitSettings, SwinSettings, T2TSettings

if TYPE_CHECKING:
    from atlas.harness.run import Run


class Backbone(Ingredient):
    """Brings a backbone, whose weights follow from the run's seed alone."""

    def backbone(self, run: Run, classes: int) -> nn.Module:
        """Return the backbone at its initialisation."""
        sizes = run.protocol_model().backbone
        options = {
            "img_size": sizes.img_size,
            "in_chans": sizes.in_chans,
            "num_classes": classes,
            "embed_dim": sizes.embed_dim,
            "mlp_ratio": sizes.mlp_ratio,
            "drop_rate": sizes.drop_rate,
            "proj_drop_rate": sizes.drop_rate,
            "drop_path_rate": sizes.drop_path_rate,
        }
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(run.seed, "init"))
            return self.build(run, options, sizes)

    @abstractmethod
    def build(self, run: Run, options: dict[str, Any], sizes: Any) -> nn.Module:
        """Build the backbone from options of timm and the protocol's sizes."""


class Cait(Backbone):
    """timm's CaiT: talking heads, then class attention."""

    settings: CaitSettings

    def build(self, run: Run, options: dict[str, Any], sizes: Any) -> nn.Module:
        """Build a CaiT of the sizes that the protocol gives."""
        from timm.models.cait import Cait as TimmCait

        return TimmCait(
            **options,
            patch_size=sizes.patch_size,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            init_values=self.settings.init,
            depth_token_only=self.settings.class_layers,
        )


class Swin(Backbone):
    """timm's Swin: attention in windows, shifted in every other block."""

    settings: SwinSettings

    def build(self, run: Run, options: dict[str, Any], sizes: Any) -> nn.Module:
        """Swin of the protocol's first stage and the settings' stages."""
        from timm.models.swin_transformer import SwinTransformer

        depths, heads = self.settings.depths, self.settings.heads
        if len(depths) != len(heads):
            raise UserError(f"{run.cell}: depths has {len(depths)} stages and heads {len(heads)}: give one number for each")
        return SwinTransformer(
            **options, patch_size=sizes.patch_size, depths=depths, num_heads=heads, window_size=self.settings.window
        )


class T2T(Backbone):
    """T2T-ViT: overlapping patches, cut three times."""

    settings: T2TSettings

    def build(self, run: Run, options: dict[str, Any], sizes: Any) -> nn.Module:
        """T2T-ViT of the protocol's sizes."""
        from atlas.nn.t2t import T2TViT

        return T2TViT(**options, depth=sizes.depth, num_heads=sizes.num_heads, strides=self.settings.strides)
