"""Robust Bird, Flying Bird and Flying Bird+: sparse networks that adversarial training overfits less.

T. Chen, Z. Zhang, P. Wang, S. Balachandra, H. Ma, Z. Wang, Z. Wang, *Sparsity Winning Twice: Better Robust Generalization
from More Efficient Training*, ICLR 2022, arXiv 2202.09844.

Adversarial training overfits: robust accuracy on training images runs far ahead of that on test images, which falls after the
first decay of the learning rate. Training a sparse network under the same recipe narrows both. Robust Bird finds a static
mask early in a cheap standard training; Flying Bird prunes and regrows weights while it trains; Flying Bird+ adapts its
density too.

>>> import torch
>>> from atlas.methods.sparse_robust import FlyingBird
>>> model = torch.nn.Linear(8, 3)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> bird = FlyingBird(model, optimizer, density=0.2, total_steps=1000, interval=100)
>>> model(torch.randn(4, 8)).square().sum().backward()
>>> bird.step()  # instead of optimizer.step(); says what changed when the topology does
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
