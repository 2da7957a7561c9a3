"""AttnScale and FeatScale: keep the high frequencies that self-attention filters out.

P. Wang, W. Zheng, T. Chen, Z. Wang, *Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis: From
Theory to Practice*, ICLR 2022, arXiv 2203.05962.

Softmax attention is row-stochastic, hence a low-pass filter over tokens: layer after layer they drift towards their mean.
AttnScale learns one scalar per head that amplifies what an attention matrix does beyond averaging; FeatScale learns two
vectors per layer that re-weight the mean (DC) and the rest (HC) of the attention output. Both start as the identity
and act on any timm VisionTransformer, in place, on its fused attention path.

>>> import timm
>>> from atlas.methods.anti_oversmoothing import apply_attnscale, param_groups
>>> model = apply_attnscale(timm.create_model("deit_tiny_patch16_224"))
>>> groups = param_groups(model, lr=1e-3, weight_decay=0.05)
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "scaling": [
            "apply_attnscale",
            "apply_featscale",
            "attnscale_output",
            "attnscale_sdpa",
            "param_groups",
            "remove_scales",
            "scale_parameters",
        ],
        "controls": ["apply_head_gain", "apply_layerscale", "apply_output_gain"],
        "filters": ["attnscale_filter", "dc", "hc", "hf_gain_bound"],
        "theory": ["random_stack_ratios"],
        "diagnosis": ["diagnose"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.anti_oversmoothing.controls import apply_head_gain as apply_head_gain
    from atlas.methods.anti_oversmoothing.controls import apply_layerscale as apply_layerscale
    from atlas.methods.anti_oversmoothing.controls import apply_output_gain as apply_output_gain
    from atlas.methods.anti_oversmoothing.diagnosis import diagnose as diagnose
    from atlas.methods.anti_oversmoothing.filters import attnscale_filter as attnscale_filter
    from atlas.methods.anti_oversmoothing.filters import dc as dc
    from atlas.methods.anti_oversmoothing.filters import hc as hc
    from atlas.methods.anti_oversmoothing.filters import hf_gain_bound as hf_gain_bound
    from atlas.methods.anti_oversmoothing.scaling import apply_attnscale as apply_attnscale
    from atlas.methods.anti_oversmoothing.scaling import apply_featscale as apply_featscale
    from atlas.methods.anti_oversmoothing.scaling import attnscale_output as attnscale_output
    from atlas.methods.anti_oversmoothing.scaling import attnscale_sdpa as attnscale_sdpa
    from atlas.methods.anti_oversmoothing.scaling import param_groups as param_groups
    from atlas.methods.anti_oversmoothing.scaling import remove_scales as remove_scales
    from atlas.methods.anti_oversmoothing.scaling import scale_parameters as scale_parameters
    from atlas.methods.anti_oversmoothing.theory import random_stack_ratios as random_stack_ratios
