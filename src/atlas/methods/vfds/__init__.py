"""VFDS: choose what to measure next.

R. Ardywibowo, S. Boluki, Z. Wang, B. Mortazavi, S. Huang, X. Qian, *VFDS: Variational Foresight Dynamic Selection in Bayesian
Neural Networks for Efficient Human Activity Recognition*, AISTATS 2022, arXiv 2204.00130.

A recurrent classifier decides from its state after step t − 1 which features to acquire at step t, before anything of step t is
seen, and is trained for accuracy less the cost of acquisition.

>>> from atlas.methods.vfds import SelectiveGRU, fit
>>> model = SelectiveGRU(n_features=48, hidden=64, n_outputs=6)                             # doctest: +SKIP
>>> curve = fit(model, (x, y), lam=1.0, steps=400, seed=0)                                  # doctest: +SKIP
>>> policy = model.stream()                                                                 # doctest: +SKIP
>>> wanted = policy.request(); logits = policy.observe(read(wanted))                        # doctest: +SKIP
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
