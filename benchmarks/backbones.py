"""Cost of AttnScale and FeatScale on every kind of attention in timm: a training step beside the plain model's, in the same run.

Theory. Rewriting values is O(n·C) beside O(n·C²) of a block's layers: a mean, a difference, a sum and a copy of what qkv gives
are 13 times n·C numbers that are read or written, their gradients some 20 times. At C = 384 that is a hundredth of the arithmetic
of a block; where blocks are as narrow as 96 and widen before they pool (Hiera), a tenth. There the weights are scaled in place of
the values, and what is left is 9 times n·C. Shifted windows add the means of at most four regions per window. The bound is 1.06
for every kind.

    python benchmarks/backbones.py [--quick] [ENTRYPOINT ...]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved
from timm.models import create_model
from torch import Tensor, nn

from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale
from atlas.nn.t2t import T2TViT

BOUND = 1.06
VIT = {"embed_dim": 384, "depth": 2, "num_heads": 6}
STAGES = {"embed_dim": 96, "depths": (2, 2), "num_heads": (3, 6), "img_size": 224}
MODELS: dict[str, dict[str, Any]] = {
    "deit_small_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "cait_s24_224": VIT | {"num_heads": 8},
    "convit_small": VIT,
    "crossvit_9_240": {"depth": ((1, 1, 0),)},
    "eva_giant_patch14_224": VIT,
    "eva02_small_patch14_224": VIT,
    "hiera_tiny_224": {"stages": (1, 1, 2, 1)},
    "naflexvit_base_patch16_gap": VIT,
    "sam2_hiera_tiny": {"stages": (1, 2, 2, 1), "global_att_blocks": (4,)},
    "samvit_base_patch16_224": VIT | {"window_size": 7, "global_attn_indexes": (1,)},
    "swin_small_patch4_window7_224": STAGES | {"window_size": 7},
    "swinv2_cr_small_224": STAGES,
    "swinv2_small_window8_256": STAGES | {"window_size": 8, "img_size": 256},
    "t2t_vit_14": {},
    "tnt_s_patch16_224": {"depth": 2},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
    "vit_5b_patch16_sapiens2": VIT | {"num_kv_heads": 3, "img_size": 224},
    "vit_base_patch16_xp_224": VIT,
    "vit_dlittle_patch16_reg1_gap_256": VIT,
    "vit_dpwee_patch16_reg1_gap_256": VIT,
    "vit_pe_core_small_patch16_384": VIT | {"img_size": 224},
    "vit_relpos_small_patch16_224": VIT,
    "vit_small_patch16_dinov3": VIT | {"img_size": 224},
}
"""Entrypoints, one for each kind of attention, at their own width with few blocks."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A model and two images of the size that it wants."""
    torch.manual_seed(0)
    if name == "t2t_vit_14":
        return T2TViT(depth=2), torch.randn(2, 3, 224, 224)
    model: Any = create_model(name, **MODELS[name])
    side = MODELS[name].get("img_size") or (240 if "crossvit" in name else 256 if "256" in name else 224)
    return model, torch.randn(2, 3, side, side)


def step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward and backward pass and an SGD step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        found = model(images)
        parts = found if isinstance(found, tuple | list) else [found]
        sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("entrypoints", nargs="*", help="by default one for every kind of attention")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 7 if chosen.quick else 25
    print(f"{'step ÷ plain step (median, quartiles)':<38}{'AttnScale':>24}{'FeatScale':>24}", flush=True)
    for name in chosen.entrypoints or MODELS:
        model, images = built(name)
        treated = {"AttnScale": apply_attnscale(copy.deepcopy(model)), "FeatScale": apply_featscale(copy.deepcopy(model))}
        seconds = interleaved({"plain": step(model, images), **{k: step(m, images) for k, m in treated.items()}}, rounds)
        cells = []
        for method in treated:
            ratios = [own / plain for own, plain in zip(seconds[method], seconds["plain"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.3f} ({low:.3f}–{high:.3f}){'' if middle <= BOUND else ' !'}")
        print(f"{name:<38}{cells[0]:>24}{cells[1]:>24}", flush=True)


if __name__ == "__main__":
    main()
