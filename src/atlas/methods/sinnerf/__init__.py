"""SinNeRF: a radiance field of a scene from a single image with depth.

D. Xu, Y. Jiang, P. Wang, Z. Fan, H. Shi, Z. Wang, *SinNeRF: Training Neural Radiance Fields on Complex Scenes from a Single
Image*, ECCV 2022, arXiv 2204.00928.

Unseen poses get pseudo-labels. Geometry: the reference's depth, warped there. Semantics: a discriminator of patches for texture,
and the features of a frozen ViT for the whole.

>>> from atlas.methods.sinnerf import LossWeights, OrbitGaussian, RGBDView, SinNeRF, Stage, make_field
>>> model = SinNeRF(make_field("vm"), bounds=[[-1, -1, -1], [1, 1, 1]], near=2, far=6, pose_prior=OrbitGaussian(10),
...                 stages=[Stage(steps=200, stride=2, lr=0.03, weights=LossWeights())], white_background=True)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
