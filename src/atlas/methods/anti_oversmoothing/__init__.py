"""AttnScale and FeatScale: keep the high frequencies that self-attention filters out.

P. Wang, W. Zheng, T. Chen, Z. Wang, *Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis: From
Theory to Practice*, ICLR 2022, arXiv 2203.05962.

Softmax attention is row-stochastic, hence a low-pass filter over tokens: layer after layer they drift towards their mean.
AttnScale learns one scalar per head that amplifies what an attention matrix does beyond averaging; FeatScale learns two
vectors per layer that re-weight the mean (DC) and the rest (HC) of the attention output. Both start as the identity
and act on timm's transformers, in place, on their fused attention path.

>>> import timm
>>> from atlas.methods.anti_oversmoothing import apply_attnscale, param_groups
>>> model = apply_attnscale(timm.create_model("deit_tiny_patch16_224"))
>>> groups = param_groups(model, lr=1e-3, weight_decay=0.05)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
