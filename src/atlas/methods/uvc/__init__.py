"""UVC: compress a vision transformer to a budget of multiply-accumulates, and leave a physically smaller model.

S. Yu, T. Chen, J. Shen, H. Yuan, J. Tan, S. Yang, J. Liu, Z. Wang, *Unified Visual Transformer Compression*, ICLR 2022, arXiv
2203.08243.

One constrained problem learns the weights, how many heads, dims and neurons each block loses, and which blocks are skipped, under
a distillation loss; a primal–dual method solves it. What is left becomes an ordinary timm model, fine-tuned as usual.

>>> import timm
>>> from atlas.methods.uvc import compress
>>> result = compress(timm.create_model("deit_tiny_patch16_224"), 0.5, loader)              # doctest: +SKIP
>>> result.model, result.r_phys                                                              # doctest: +SKIP
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compression": ["CompressionResult", "compress"],
        "controller": ["UVCController"],
        "criteria": [
            "cubic_sparsity",
            "evenly_spaced_plan",
            "gradual_plan",
            "one_shot_plan",
            "taylor_scores",
            "uniform_plan",
            "weight_masks",
        ],
        "distillation": ["kd_loss", "kd_term"],
        "errors": ["ExportError", "InfeasibleBudgetError", "PlanError", "UnsupportedArchitectureError"],
        "exporting": ["CompactAttention", "export", "masked"],
        "gates": ["GatedBlock", "apply_gates", "is_gated", "remove_gates", "sample_gates"],
        "plan": ["CompressionPlan"],
        "repair": ["fill_blocks", "fit_blocks", "fit_to_budget", "minimum_macs", "uniform_widths"],
        "costs": ["ViTShape", "resource", "resource_grad"],
        "scores": ["UnitScores", "low", "nxt", "unit_scores"],
        "updates": ["StepLog"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.uvc.compression import CompressionResult as CompressionResult
    from atlas.methods.uvc.compression import compress as compress
    from atlas.methods.uvc.controller import UVCController as UVCController
    from atlas.methods.uvc.costs import ViTShape as ViTShape
    from atlas.methods.uvc.costs import resource as resource
    from atlas.methods.uvc.costs import resource_grad as resource_grad
    from atlas.methods.uvc.criteria import cubic_sparsity as cubic_sparsity
    from atlas.methods.uvc.criteria import evenly_spaced_plan as evenly_spaced_plan
    from atlas.methods.uvc.criteria import gradual_plan as gradual_plan
    from atlas.methods.uvc.criteria import one_shot_plan as one_shot_plan
    from atlas.methods.uvc.criteria import taylor_scores as taylor_scores
    from atlas.methods.uvc.criteria import uniform_plan as uniform_plan
    from atlas.methods.uvc.criteria import weight_masks as weight_masks
    from atlas.methods.uvc.distillation import kd_loss as kd_loss
    from atlas.methods.uvc.distillation import kd_term as kd_term
    from atlas.methods.uvc.errors import ExportError as ExportError
    from atlas.methods.uvc.errors import InfeasibleBudgetError as InfeasibleBudgetError
    from atlas.methods.uvc.errors import PlanError as PlanError
    from atlas.methods.uvc.errors import UnsupportedArchitectureError as UnsupportedArchitectureError
    from atlas.methods.uvc.exporting import CompactAttention as CompactAttention
    from atlas.methods.uvc.exporting import export as export
    from atlas.methods.uvc.exporting import masked as masked
    from atlas.methods.uvc.gates import GatedBlock as GatedBlock
    from atlas.methods.uvc.gates import apply_gates as apply_gates
    from atlas.methods.uvc.gates import is_gated as is_gated
    from atlas.methods.uvc.gates import remove_gates as remove_gates
    from atlas.methods.uvc.gates import sample_gates as sample_gates
    from atlas.methods.uvc.plan import CompressionPlan as CompressionPlan
    from atlas.methods.uvc.repair import fill_blocks as fill_blocks
    from atlas.methods.uvc.repair import fit_blocks as fit_blocks
    from atlas.methods.uvc.repair import fit_to_budget as fit_to_budget
    from atlas.methods.uvc.repair import minimum_macs as minimum_macs
    from atlas.methods.uvc.repair import uniform_widths as uniform_widths
    from atlas.methods.uvc.scores import UnitScores as UnitScores
    from atlas.methods.uvc.scores import low as low
    from atlas.methods.uvc.scores import nxt as nxt
    from atlas.methods.uvc.scores import unit_scores as unit_scores
    from atlas.methods.uvc.updates import StepLog as StepLog
