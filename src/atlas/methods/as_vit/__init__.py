"""As-ViT: design and scale a hierarchical vision transformer without training it.

W. Chen, W. Huang, X. Du, X. Song, Z. Wang, D. Zhou, *Auto-scaling Vision Transformers without Training*, ICLR 2022,
arXiv 2202.11921.

Two measures of a network at random weights guide everything: how much it stretches a circle of inputs (length
distortion), and how well its neural tangent kernel is conditioned. REINFORCE searches a topology by them; growth adds
depth and width by them, and gives a family of sizes in one run; training starts with coarse tokens and refines them.

>>> import torch
>>> from atlas.methods.as_vit import MeasureSpec, Scorer, SearchSpace, grow, reinforce
>>> spec = MeasureSpec(images=torch.randn(16, 3, 32, 32), repeats=1)
>>> score = Scorer(spec, seed=0, width=8)
>>> found = reinforce(SearchSpace.official(), score, steps=2, generator=torch.Generator().manual_seed(0))
>>> family = grow(found.best, score, width0=8, width_scale=1, target=400_000, img_size=32, num_classes=10)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
