"""Diverse-ViT: less redundancy of patch embeddings, attention maps and weights.

T. Chen, Z. Zhang, Y. Cheng, A. Awadallah, Z. Wang, *The Principle of Diversity: Training Stronger Vision Transformers Calls for
Reducing All Levels of Redundancy*, CVPR 2022, arXiv 2203.06345.

Five loss terms at three levels, used in training only: the architecture, the ``state_dict`` and inference stay as they are, and
fused attention stays on (one block's map is recomputed beside it).

>>> import timm
>>> from atlas.methods.diverse_vit import DiversityConfig, DiversityTrainer, PatchMixup
>>> trainer = DiversityTrainer(timm.create_model("deit_small_patch16_224"), DiversityConfig.preset("deit-s-12"))
>>> mixup = PatchMixup(num_classes=1000, patch_size=16)
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["DiversityConfig"],
        "mixing": ["MixTarget", "PatchMixup"],
        "terms": [
            "attn_cosine",
            "cond_orth",
            "cross_layer_cosine",
            "emb_contrast",
            "emb_cosine",
            "gradient_diversity",
            "mgd",
            "mhs",
            "soft_orth",
        ],
        "trainer": ["DiversityOutputs", "DiversityTrainer"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.diverse_vit.config import DiversityConfig as DiversityConfig
    from atlas.methods.diverse_vit.mixing import MixTarget as MixTarget
    from atlas.methods.diverse_vit.mixing import PatchMixup as PatchMixup
    from atlas.methods.diverse_vit.terms import attn_cosine as attn_cosine
    from atlas.methods.diverse_vit.terms import cond_orth as cond_orth
    from atlas.methods.diverse_vit.terms import cross_layer_cosine as cross_layer_cosine
    from atlas.methods.diverse_vit.terms import emb_contrast as emb_contrast
    from atlas.methods.diverse_vit.terms import emb_cosine as emb_cosine
    from atlas.methods.diverse_vit.terms import gradient_diversity as gradient_diversity
    from atlas.methods.diverse_vit.terms import mgd as mgd
    from atlas.methods.diverse_vit.terms import mhs as mhs
    from atlas.methods.diverse_vit.terms import soft_orth as soft_orth
    from atlas.methods.diverse_vit.trainer import DiversityOutputs as DiversityOutputs
    from atlas.methods.diverse_vit.trainer import DiversityTrainer as DiversityTrainer
