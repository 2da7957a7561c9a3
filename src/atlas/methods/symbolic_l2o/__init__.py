"""Symbolic Learning to Optimize: read what a learned optimizer does as an equation, then run the equation.

W. Zheng, T. Chen, T.-K. Hu, Z. Wang, *Symbolic Learning to Optimize: Towards Interpretability and Scalability*, ICLR 2022,
arXiv 2203.06578.

A recurrent optimizer is meta-trained, what it does is recorded, symbolic regression finds an equation that does the same, and a
few coefficients of it are fine-tuned where the recurrent optimizer would not fit in memory.

>>> import torch
>>> from atlas.methods.symbolic_l2o import SymbolicOptimizer
>>> layer = torch.nn.Linear(3, 1)
>>> optimizer = SymbolicOptimizer(layer.parameters(), "-tanh(2 * m_0) - 0.1 * g_1", lr=0.01)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
