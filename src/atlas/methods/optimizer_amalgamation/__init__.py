"""Optimizer Amalgamation: one learned optimizer that combines the strengths of a pool of hand-made ones.

T. Huang, T. Chen, S. Liu, S. Chang, L. Amini, Z. Wang, *Optimizer Amalgamation*, ICLR 2022, arXiv 2203.06474.

Teachers with tuned step sizes are distilled into a student by imitation of their trajectories, beside the meta-loss: their mean,
the farthest of them (min-max), or a choice policy over them. Noise on the student's weights makes replicates end alike.

>>> from atlas.methods.optimizer_amalgamation import amalgamate, make_pool, AmalgamatedOptimizer
>>> result = amalgamate(problem, make_pool("small"), gen=torch.Generator().manual_seed(0))    # doctest: +SKIP
>>> optimizer = AmalgamatedOptimizer(model.parameters(), result.students[0])                  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "choice": ["ChoicePolicy"],
        "descent": ["StackedAdam", "clip_adaptively"],
        "distill": ["AmalgamationResult", "ChoiceConfig", "amalgamate", "train_choice", "tune_lr"],
        "losses": ["Lesson", "distance", "teacher_weights"],
        "measures": ["RandomEffects", "TunedLR", "best_log_loss", "optimization_stability", "random_effects"],
        "noise": ["AdversarialWeightNoise", "Perturbation", "RandomWeightNoise"],
        "optimizer": ["AmalgamatedOptimizer", "WarmStart", "load"],
        "scale": ["L2OScale"],
        "schedule": ["Curriculum", "Progress"],
        "student": ["Student"],
        "teachers": ["OFFICIAL_CHOICE", "POOLS", "PRESETS", "TEACHERS", "make_pool", "teacher"],
        "trainer": ["Trainer", "TrainerConfig"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.optimizer_amalgamation.choice import ChoicePolicy as ChoicePolicy
    from atlas.methods.optimizer_amalgamation.descent import StackedAdam as StackedAdam
    from atlas.methods.optimizer_amalgamation.descent import clip_adaptively as clip_adaptively
    from atlas.methods.optimizer_amalgamation.distill import AmalgamationResult as AmalgamationResult
    from atlas.methods.optimizer_amalgamation.distill import ChoiceConfig as ChoiceConfig
    from atlas.methods.optimizer_amalgamation.distill import amalgamate as amalgamate
    from atlas.methods.optimizer_amalgamation.distill import train_choice as train_choice
    from atlas.methods.optimizer_amalgamation.distill import tune_lr as tune_lr
    from atlas.methods.optimizer_amalgamation.losses import Lesson as Lesson
    from atlas.methods.optimizer_amalgamation.losses import distance as distance
    from atlas.methods.optimizer_amalgamation.losses import teacher_weights as teacher_weights
    from atlas.methods.optimizer_amalgamation.measures import RandomEffects as RandomEffects
    from atlas.methods.optimizer_amalgamation.measures import TunedLR as TunedLR
    from atlas.methods.optimizer_amalgamation.measures import best_log_loss as best_log_loss
    from atlas.methods.optimizer_amalgamation.measures import optimization_stability as optimization_stability
    from atlas.methods.optimizer_amalgamation.measures import random_effects as random_effects
    from atlas.methods.optimizer_amalgamation.noise import AdversarialWeightNoise as AdversarialWeightNoise
    from atlas.methods.optimizer_amalgamation.noise import Perturbation as Perturbation
    from atlas.methods.optimizer_amalgamation.noise import RandomWeightNoise as RandomWeightNoise
    from atlas.methods.optimizer_amalgamation.optimizer import AmalgamatedOptimizer as AmalgamatedOptimizer
    from atlas.methods.optimizer_amalgamation.optimizer import WarmStart as WarmStart
    from atlas.methods.optimizer_amalgamation.optimizer import load as load
    from atlas.methods.optimizer_amalgamation.scale import L2OScale as L2OScale
    from atlas.methods.optimizer_amalgamation.schedule import Curriculum as Curriculum
    from atlas.methods.optimizer_amalgamation.schedule import Progress as Progress
    from atlas.methods.optimizer_amalgamation.student import Student as Student
    from atlas.methods.optimizer_amalgamation.teachers import OFFICIAL_CHOICE as OFFICIAL_CHOICE
    from atlas.methods.optimizer_amalgamation.teachers import POOLS as POOLS
    from atlas.methods.optimizer_amalgamation.teachers import PRESETS as PRESETS
    from atlas.methods.optimizer_amalgamation.teachers import TEACHERS as TEACHERS
    from atlas.methods.optimizer_amalgamation.teachers import make_pool as make_pool
    from atlas.methods.optimizer_amalgamation.teachers import teacher as teacher
    from atlas.methods.optimizer_amalgamation.trainer import Trainer as Trainer
    from atlas.methods.optimizer_amalgamation.trainer import TrainerConfig as TrainerConfig
