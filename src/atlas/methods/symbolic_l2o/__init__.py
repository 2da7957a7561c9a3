"""Symbolic Learning to Optimize: read what a learned optimizer does as an equation, then run the equation.

W. Zheng, T. Chen, T.-K. Hu, Z. Wang, *Symbolic Learning to Optimize: Towards Interpretability and Scalability*, ICLR 2022,
arXiv 2203.06578.

A recurrent optimizer is meta-trained, what it does is recorded, symbolic regression finds an equation that does the same, and a
few coefficients of it are fine-tuned where the recurrent optimizer would not fit in memory.

>>> import torch
>>> from atlas.methods.symbolic_l2o import SymbolicOptimizer
>>> layer = torch.nn.Linear(3, 1)
>>> optimizer = SymbolicOptimizer(layer.parameters(), "-tanh(2 * m_0) - 0.1 * g_1", lr=0.01)
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "distillation": ["Distillation", "MetaConfig", "boosting_bound", "distill", "distill_records", "meta_tune"],
        "expressions": ["OPERATORS", "Expression", "call", "const", "parse", "var"],
        "interpretability": [
            "lag_support",
            "mapping_complexity",
            "network_field",
            "r_squared",
            "sensitivities",
            "temporal_perception_field",
        ],
        "optimizer": ["LearnedOptimizer", "SymbolicOptimizer", "load_expression", "read_rule"],
        "recording": ["Records", "record", "trace"],
        "regression": ["ParetoEntry", "SRBackend", "SRConfig", "get_backend", "pareto_front"],
        "rules": ["ExpressionRule", "InterpolationRule", "PolynomialRule", "Rule", "SymbolicPolicy", "TanhTemplate"],
        "sympy_bridge": ["from_sympy"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.symbolic_l2o.distillation import Distillation as Distillation
    from atlas.methods.symbolic_l2o.distillation import MetaConfig as MetaConfig
    from atlas.methods.symbolic_l2o.distillation import boosting_bound as boosting_bound
    from atlas.methods.symbolic_l2o.distillation import distill as distill
    from atlas.methods.symbolic_l2o.distillation import distill_records as distill_records
    from atlas.methods.symbolic_l2o.distillation import meta_tune as meta_tune
    from atlas.methods.symbolic_l2o.expressions import OPERATORS as OPERATORS
    from atlas.methods.symbolic_l2o.expressions import Expression as Expression
    from atlas.methods.symbolic_l2o.expressions import call as call
    from atlas.methods.symbolic_l2o.expressions import const as const
    from atlas.methods.symbolic_l2o.expressions import parse as parse
    from atlas.methods.symbolic_l2o.expressions import var as var
    from atlas.methods.symbolic_l2o.interpretability import lag_support as lag_support
    from atlas.methods.symbolic_l2o.interpretability import mapping_complexity as mapping_complexity
    from atlas.methods.symbolic_l2o.interpretability import network_field as network_field
    from atlas.methods.symbolic_l2o.interpretability import r_squared as r_squared
    from atlas.methods.symbolic_l2o.interpretability import sensitivities as sensitivities
    from atlas.methods.symbolic_l2o.interpretability import temporal_perception_field as temporal_perception_field
    from atlas.methods.symbolic_l2o.optimizer import LearnedOptimizer as LearnedOptimizer
    from atlas.methods.symbolic_l2o.optimizer import SymbolicOptimizer as SymbolicOptimizer
    from atlas.methods.symbolic_l2o.optimizer import load_expression as load_expression
    from atlas.methods.symbolic_l2o.optimizer import read_rule as read_rule
    from atlas.methods.symbolic_l2o.recording import Records as Records
    from atlas.methods.symbolic_l2o.recording import record as record
    from atlas.methods.symbolic_l2o.recording import trace as trace
    from atlas.methods.symbolic_l2o.regression import ParetoEntry as ParetoEntry
    from atlas.methods.symbolic_l2o.regression import SRBackend as SRBackend
    from atlas.methods.symbolic_l2o.regression import SRConfig as SRConfig
    from atlas.methods.symbolic_l2o.regression import get_backend as get_backend
    from atlas.methods.symbolic_l2o.regression import pareto_front as pareto_front
    from atlas.methods.symbolic_l2o.rules import ExpressionRule as ExpressionRule
    from atlas.methods.symbolic_l2o.rules import InterpolationRule as InterpolationRule
    from atlas.methods.symbolic_l2o.rules import PolynomialRule as PolynomialRule
    from atlas.methods.symbolic_l2o.rules import Rule as Rule
    from atlas.methods.symbolic_l2o.rules import SymbolicPolicy as SymbolicPolicy
    from atlas.methods.symbolic_l2o.rules import TanhTemplate as TanhTemplate
    from atlas.methods.symbolic_l2o.sympy_bridge import from_sympy as from_sympy
