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

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attacks": ["PGD", "margin_loss"],
        "costs": ["EpochCost", "FlopsReport", "flops", "training_flops"],
        "early_bird": ["EarlyBird", "robust_bird"],
        "flying_bird": ["FlyingBird", "FlyingBirdPlus", "TopologyUpdate", "cosine_rate", "two_stage_interval"],
        "masks": ["Masks", "density_of", "layer_densities", "prunable", "random_masks"],
        "regularisers": ["WeightAverage", "robust_distillation"],
        "report": ["RobustReport", "robust_report"],
        "scores": ["saliency", "score_masks"],
        "static": ["SparseTraining"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.sparse_robust.attacks import PGD as PGD
    from atlas.methods.sparse_robust.attacks import margin_loss as margin_loss
    from atlas.methods.sparse_robust.costs import EpochCost as EpochCost
    from atlas.methods.sparse_robust.costs import FlopsReport as FlopsReport
    from atlas.methods.sparse_robust.costs import flops as flops
    from atlas.methods.sparse_robust.costs import training_flops as training_flops
    from atlas.methods.sparse_robust.early_bird import EarlyBird as EarlyBird
    from atlas.methods.sparse_robust.early_bird import robust_bird as robust_bird
    from atlas.methods.sparse_robust.flying_bird import FlyingBird as FlyingBird
    from atlas.methods.sparse_robust.flying_bird import FlyingBirdPlus as FlyingBirdPlus
    from atlas.methods.sparse_robust.flying_bird import TopologyUpdate as TopologyUpdate
    from atlas.methods.sparse_robust.flying_bird import cosine_rate as cosine_rate
    from atlas.methods.sparse_robust.flying_bird import two_stage_interval as two_stage_interval
    from atlas.methods.sparse_robust.masks import Masks as Masks
    from atlas.methods.sparse_robust.masks import density_of as density_of
    from atlas.methods.sparse_robust.masks import layer_densities as layer_densities
    from atlas.methods.sparse_robust.masks import prunable as prunable
    from atlas.methods.sparse_robust.masks import random_masks as random_masks
    from atlas.methods.sparse_robust.regularisers import WeightAverage as WeightAverage
    from atlas.methods.sparse_robust.regularisers import robust_distillation as robust_distillation
    from atlas.methods.sparse_robust.report import RobustReport as RobustReport
    from atlas.methods.sparse_robust.report import robust_report as robust_report
    from atlas.methods.sparse_robust.scores import saliency as saliency
    from atlas.methods.sparse_robust.scores import score_masks as score_masks
    from atlas.methods.sparse_robust.static import SparseTraining as SparseTraining
