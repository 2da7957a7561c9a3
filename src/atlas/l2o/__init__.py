"""What every learned optimizer stands on: policies, optimizees, meta-training, and how optimizers are judged.

A :class:`Policy` turns gradients into updates; analytic optimizers and learned ones are policies alike. An :class:`Optimizee` is
what they act on. :func:`unroll` differentiates a window of updates with respect to the policy, :func:`meta_train` repeats that,
:func:`rollout` records trajectories, and :class:`LearnedOptimizer` puts a policy where ``torch.optim.Adam`` stood.

>>> from atlas.l2o import LearnedOptimizer, MetaConfig, meta_train, mlp, rnnprop
>>> policy = rnnprop("rp-small")
>>> meta_train(policy, problem, MetaConfig(windows=100), torch.Generator().manual_seed(0))  # doctest: +SKIP
>>> optimizer = LearnedOptimizer(model.parameters(), policy)                                # doctest: +SKIP
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
