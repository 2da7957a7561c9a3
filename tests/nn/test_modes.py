"""Layers that somebody keeps in evaluation mode, as frozen normalisations are, stay there whatever looks at the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from atlas.methods.uvc import UVCController
from atlas.methods.uvc.compression import accuracy
from atlas.methods.uvc.gates import apply_gates, remove_gates
from atlas.methods.uvc.tokens import select_tokens
from atlas.nn.diagnostics import diagnose
from atlas.nn.stacked import Stack


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def gates_on_and_off(model: Any, images: Tensor) -> None:
    remove_gates(apply_gates(model, UVCController(model, budget=0.9)))


LOOKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "diagnose": diagnose,
    "accuracy": lambda model, images: accuracy(model, [(images, torch.zeros(2, dtype=torch.long))], torch.device("cpu")),
    "stack": lambda model, images: Stack([model, vit().train()]).check(images.expand(2, *images.shape)),
    "gates": gates_on_and_off,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("training", [True, False])
def test_every_layer_has_its_own_mode_again(look: str, training: bool) -> None:
    model = vit().train(training)
    other = model.blocks[0].norm1.train(not training)
    LOOKS[look](model, torch.rand(2, 3, 8, 8))
    assert {name for name, module in model.named_modules() if module.training != training} == {"blocks.0.norm1"}
    assert other is model.blocks[0].norm1


def test_gates_and_token_selection_take_the_modes_of_the_blocks_over() -> None:
    model = vit().train()
    model.blocks[1].eval()
    gated = apply_gates(model, UVCController(model, budget=0.9))
    assert gated.blocks[0].training
    assert not any(module.training for module in gated.blocks[1].modules())
    remove_gates(gated)
    model.blocks[1].train()
    model.blocks[0].norm1.eval()
    chosen = select_tokens(model, 0.5, [1])
    assert chosen.blocks.training
    assert [name for name, module in chosen.named_modules() if not module.training] == ["blocks.0.norm1"]
