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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
