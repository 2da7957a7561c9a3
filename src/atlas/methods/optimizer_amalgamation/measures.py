"""The paper's measures (§5), which the whole task uses: best log loss, optimization stability, and meta-stability."""

from atlas.l2o import RandomEffects, TunedLR, best_log_loss, optimization_stability, random_effects

__all__ = ["RandomEffects", "TunedLR", "best_log_loss", "optimization_stability", "random_effects"]
