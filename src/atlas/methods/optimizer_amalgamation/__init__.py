"""Optimizer Amalgamation: one learned optimizer that combines the strengths of a pool of hand-made ones.

T. Huang, T. Chen, S. Liu, S. Chang, L. Amini, Z. Wang, *Optimizer Amalgamation*, ICLR 2022, arXiv 2203.06474.

Teachers with tuned step sizes are distilled into a student by imitation of their trajectories, beside the meta-loss: their mean,
the farthest of them (min-max), or a choice policy over them. Noise on the student's weights makes replicates end alike.

>>> from atlas.methods.optimizer_amalgamation import amalgamate, make_pool, AmalgamatedOptimizer
>>> result = amalgamate(problem, make_pool("small"), gen=torch.Generator().manual_seed(0))    # doctest: +SKIP
>>> optimizer = AmalgamatedOptimizer(model.parameters(), result.students[0])                  # doctest: +SKIP
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
