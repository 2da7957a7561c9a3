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

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "topology": ["SearchSpace", "Topology"],
        "layout": ["Counts", "count", "total_width"],
        "network": ["HierarchicalViT", "build", "published"],
        "geometry": ["Circle", "extrinsic_curvature", "great_circle", "length_distortion", "without_norm"],
        "kernel": ["condition_number", "ntk_gram"],
        "measures": ["MeasureSpec", "Measures", "Scorer", "length_law", "measure"],
        "search": ["RandomSearch", "Reinforce", "SearchResult", "random_search", "reinforce"],
        "growth": ["Growth", "GrowthPlan", "GrowthStep", "grow", "matched", "swin_like", "uniform_scaling", "width_for"],
        "retokenize": ["ProgressiveTokenizer"],
        "proxies": ["grad_norm", "synflow"],
        "ranking": ["correlate", "kendall_tau"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.as_vit.geometry import Circle as Circle
    from atlas.methods.as_vit.geometry import extrinsic_curvature as extrinsic_curvature
    from atlas.methods.as_vit.geometry import great_circle as great_circle
    from atlas.methods.as_vit.geometry import length_distortion as length_distortion
    from atlas.methods.as_vit.geometry import without_norm as without_norm
    from atlas.methods.as_vit.growth import Growth as Growth
    from atlas.methods.as_vit.growth import GrowthPlan as GrowthPlan
    from atlas.methods.as_vit.growth import GrowthStep as GrowthStep
    from atlas.methods.as_vit.growth import grow as grow
    from atlas.methods.as_vit.growth import matched as matched
    from atlas.methods.as_vit.growth import swin_like as swin_like
    from atlas.methods.as_vit.growth import uniform_scaling as uniform_scaling
    from atlas.methods.as_vit.growth import width_for as width_for
    from atlas.methods.as_vit.kernel import condition_number as condition_number
    from atlas.methods.as_vit.kernel import ntk_gram as ntk_gram
    from atlas.methods.as_vit.layout import Counts as Counts
    from atlas.methods.as_vit.layout import count as count
    from atlas.methods.as_vit.layout import total_width as total_width
    from atlas.methods.as_vit.measures import Measures as Measures
    from atlas.methods.as_vit.measures import MeasureSpec as MeasureSpec
    from atlas.methods.as_vit.measures import Scorer as Scorer
    from atlas.methods.as_vit.measures import length_law as length_law
    from atlas.methods.as_vit.measures import measure as measure
    from atlas.methods.as_vit.network import HierarchicalViT as HierarchicalViT
    from atlas.methods.as_vit.network import build as build
    from atlas.methods.as_vit.network import published as published
    from atlas.methods.as_vit.proxies import grad_norm as grad_norm
    from atlas.methods.as_vit.proxies import synflow as synflow
    from atlas.methods.as_vit.ranking import correlate as correlate
    from atlas.methods.as_vit.ranking import kendall_tau as kendall_tau
    from atlas.methods.as_vit.retokenize import ProgressiveTokenizer as ProgressiveTokenizer
    from atlas.methods.as_vit.search import RandomSearch as RandomSearch
    from atlas.methods.as_vit.search import Reinforce as Reinforce
    from atlas.methods.as_vit.search import SearchResult as SearchResult
    from atlas.methods.as_vit.search import random_search as random_search
    from atlas.methods.as_vit.search import reinforce as reinforce
    from atlas.methods.as_vit.topology import SearchSpace as SearchSpace
    from atlas.methods.as_vit.topology import Topology as Topology
