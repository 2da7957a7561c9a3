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

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["estimators"],
    submod_attrs={
        "conversion": ["replace_rnn"],
        "estimators": ["arm_pair", "bernoulli_entropy", "bernoulli_hard", "bernoulli_kl", "bernoulli_st", "relaxed_bernoulli"],
        "fitting": ["Front", "Point", "fit", "pareto"],
        "groups": ["FeatureGroups"],
        "losses": ["Loss", "arm_loss", "selection_loss"],
        "measures": [
            "Fractions",
            "activity_profile",
            "averaged_prediction",
            "context_drift",
            "drift_null",
            "fractions",
            "reaction",
            "recovery_f1",
            "sensor_on",
        ],
        "model": ["FixedMask", "Random", "Rollout", "SelectiveGRU"],
        "streaming": ["StreamingPolicy"],
        "sweep": ["Sweep"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.vfds import estimators as estimators
    from atlas.methods.vfds.conversion import replace_rnn as replace_rnn
    from atlas.methods.vfds.estimators import arm_pair as arm_pair
    from atlas.methods.vfds.estimators import bernoulli_entropy as bernoulli_entropy
    from atlas.methods.vfds.estimators import bernoulli_hard as bernoulli_hard
    from atlas.methods.vfds.estimators import bernoulli_kl as bernoulli_kl
    from atlas.methods.vfds.estimators import bernoulli_st as bernoulli_st
    from atlas.methods.vfds.estimators import relaxed_bernoulli as relaxed_bernoulli
    from atlas.methods.vfds.fitting import Front as Front
    from atlas.methods.vfds.fitting import Point as Point
    from atlas.methods.vfds.fitting import fit as fit
    from atlas.methods.vfds.fitting import pareto as pareto
    from atlas.methods.vfds.groups import FeatureGroups as FeatureGroups
    from atlas.methods.vfds.losses import Loss as Loss
    from atlas.methods.vfds.losses import arm_loss as arm_loss
    from atlas.methods.vfds.losses import selection_loss as selection_loss
    from atlas.methods.vfds.measures import Fractions as Fractions
    from atlas.methods.vfds.measures import activity_profile as activity_profile
    from atlas.methods.vfds.measures import averaged_prediction as averaged_prediction
    from atlas.methods.vfds.measures import context_drift as context_drift
    from atlas.methods.vfds.measures import drift_null as drift_null
    from atlas.methods.vfds.measures import fractions as fractions
    from atlas.methods.vfds.measures import reaction as reaction
    from atlas.methods.vfds.measures import recovery_f1 as recovery_f1
    from atlas.methods.vfds.measures import sensor_on as sensor_on
    from atlas.methods.vfds.model import FixedMask as FixedMask
    from atlas.methods.vfds.model import Random as Random
    from atlas.methods.vfds.model import Rollout as Rollout
    from atlas.methods.vfds.model import SelectiveGRU as SelectiveGRU
    from atlas.methods.vfds.streaming import StreamingPolicy as StreamingPolicy
    from atlas.methods.vfds.sweep import Sweep as Sweep
