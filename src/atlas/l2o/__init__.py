"""What every learned optimizer stands on: policies, optimizees, meta-training, and how optimizers are judged.

A :class:`Policy` turns gradients into updates; analytic optimizers and learned ones are policies alike. An :class:`Optimizee` is
what they act on. :func:`unroll` differentiates a window of updates with respect to the policy, :func:`meta_train` repeats that,
:func:`rollout` records trajectories, and :class:`LearnedOptimizer` puts a policy where ``torch.optim.Adam`` stood.

>>> from atlas.l2o import LearnedOptimizer, MetaConfig, meta_train, mlp, rnnprop
>>> policy = rnnprop("rp-small")
>>> meta_train(policy, problem, MetaConfig(windows=100), torch.Generator().manual_seed(0))  # doctest: +SKIP
>>> optimizer = LearnedOptimizer(model.parameters(), policy)                                # doctest: +SKIP
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "rules": [
            "ANALYTIC",
            "AMSGrad",
            "AdaGrad",
            "Adam",
            "AddSign",
            "Analytic",
            "Momentum",
            "Nesterov",
            "PowerSign",
            "RMSprop",
            "SGD",
            "analytic",
        ],
        "drop_in": ["DropIn"],
        "evaluation": ["GRID", "Curves", "TunedLR", "rollout", "tune", "warm_up"],
        "features": ["FEATURES", "Features"],
        "functions": ["Quadratic", "Rastrigin", "Rosenbrock", "quadratic", "rastrigin", "rosenbrock"],
        "meta": ["History", "MetaConfig", "MetaTrainer", "meta_train", "random_scale"],
        "metrics": ["RandomEffects", "best_log_loss", "optimization_stability", "random_effects"],
        "networks": ["convnet", "mlp", "resnet", "vision_transformer"],
        "optimizees": ["Batch", "DataOptimizee", "Examples", "Optimizee", "module_optimizee"],
        "optimizer": ["LearnedOptimizer"],
        "policies": ["Layout", "Policy"],
        "recurrent": ["L2ODM", "LSTMCell", "LSTMStack", "RNNprop", "log_and_sign", "rnnprop"],
        "replicas": ["Ensemble", "Replicas"],
        "saving": ["load_policy", "save_policy"],
        "state": ["State", "detach_state", "map_state", "stack_states"],
        "windows": ["Window", "unroll"],
    },
)

if TYPE_CHECKING:
    from atlas.l2o.drop_in import DropIn as DropIn
    from atlas.l2o.evaluation import GRID as GRID
    from atlas.l2o.evaluation import Curves as Curves
    from atlas.l2o.evaluation import TunedLR as TunedLR
    from atlas.l2o.evaluation import rollout as rollout
    from atlas.l2o.evaluation import tune as tune
    from atlas.l2o.evaluation import warm_up as warm_up
    from atlas.l2o.features import FEATURES as FEATURES
    from atlas.l2o.features import Features as Features
    from atlas.l2o.functions import Quadratic as Quadratic
    from atlas.l2o.functions import Rastrigin as Rastrigin
    from atlas.l2o.functions import Rosenbrock as Rosenbrock
    from atlas.l2o.functions import quadratic as quadratic
    from atlas.l2o.functions import rastrigin as rastrigin
    from atlas.l2o.functions import rosenbrock as rosenbrock
    from atlas.l2o.meta import History as History
    from atlas.l2o.meta import MetaConfig as MetaConfig
    from atlas.l2o.meta import MetaTrainer as MetaTrainer
    from atlas.l2o.meta import meta_train as meta_train
    from atlas.l2o.meta import random_scale as random_scale
    from atlas.l2o.metrics import RandomEffects as RandomEffects
    from atlas.l2o.metrics import best_log_loss as best_log_loss
    from atlas.l2o.metrics import optimization_stability as optimization_stability
    from atlas.l2o.metrics import random_effects as random_effects
    from atlas.l2o.networks import convnet as convnet
    from atlas.l2o.networks import mlp as mlp
    from atlas.l2o.networks import resnet as resnet
    from atlas.l2o.networks import vision_transformer as vision_transformer
    from atlas.l2o.optimizees import Batch as Batch
    from atlas.l2o.optimizees import DataOptimizee as DataOptimizee
    from atlas.l2o.optimizees import Examples as Examples
    from atlas.l2o.optimizees import Optimizee as Optimizee
    from atlas.l2o.optimizees import module_optimizee as module_optimizee
    from atlas.l2o.optimizer import LearnedOptimizer as LearnedOptimizer
    from atlas.l2o.policies import Layout as Layout
    from atlas.l2o.policies import Policy as Policy
    from atlas.l2o.recurrent import L2ODM as L2ODM
    from atlas.l2o.recurrent import LSTMCell as LSTMCell
    from atlas.l2o.recurrent import LSTMStack as LSTMStack
    from atlas.l2o.recurrent import RNNprop as RNNprop
    from atlas.l2o.recurrent import log_and_sign as log_and_sign
    from atlas.l2o.recurrent import rnnprop as rnnprop
    from atlas.l2o.replicas import Ensemble as Ensemble
    from atlas.l2o.replicas import Replicas as Replicas
    from atlas.l2o.rules import ANALYTIC as ANALYTIC
    from atlas.l2o.rules import SGD as SGD
    from atlas.l2o.rules import AdaGrad as AdaGrad
    from atlas.l2o.rules import Adam as Adam
    from atlas.l2o.rules import AddSign as AddSign
    from atlas.l2o.rules import AMSGrad as AMSGrad
    from atlas.l2o.rules import Analytic as Analytic
    from atlas.l2o.rules import Momentum as Momentum
    from atlas.l2o.rules import Nesterov as Nesterov
    from atlas.l2o.rules import PowerSign as PowerSign
    from atlas.l2o.rules import RMSprop as RMSprop
    from atlas.l2o.rules import analytic as analytic
    from atlas.l2o.saving import load_policy as load_policy
    from atlas.l2o.saving import save_policy as save_policy
    from atlas.l2o.state import State as State
    from atlas.l2o.state import detach_state as detach_state
    from atlas.l2o.state import map_state as map_state
    from atlas.l2o.state import stack_states as stack_states
    from atlas.l2o.windows import Window as Window
    from atlas.l2o.windows import unroll as unroll
