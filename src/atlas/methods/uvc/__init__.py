"""UVC: compress a vision transformer to a budget of multiply-accumulates, and leave a physically smaller model.

S. Yu, T. Chen, J. Shen, H. Yuan, J. Tan, S. Yang, J. Liu, Z. Wang, *Unified Visual Transformer Compression*, ICLR 2022, arXiv
2203.08243.

One constrained problem learns the weights, how many heads, dims and neurons each block loses, and which blocks are skipped, under
a distillation loss; a primal–dual method solves it. What is left becomes an ordinary timm model, fine-tuned as usual.

>>> import timm
>>> from atlas.methods.uvc import compress
>>> result = compress(timm.create_model("deit_tiny_patch16_224"), 0.5, loader)              # doctest: +SKIP
>>> result.model, result.r_phys                                                              # doctest: +SKIP
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
