"""Copies and pickles of a model that something watches: nobody watches them, and who watches hears of its own model alone."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from atlas.methods.diverse_vit import DiversityConfig, DiversityTrainer
from atlas.methods.uvc import UVCController
from atlas.methods.uvc.gates import apply_gates, is_gated, remove_gates

IMAGES = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved, lambda model: ModelEmaV3(model).module]
NAMES = ["deepcopy", "pickle", "torch.save", "average"]


@pytest.mark.parametrize("make", COPIES, ids=NAMES)
@pytest.mark.parametrize("mix_weight", [0, 1])
def test_a_loss_is_of_its_own_model(make: Any, mix_weight: float) -> None:
    model = vit()
    trainer = DiversityTrainer(model, DiversityConfig(mix_weight=mix_weight))
    expected = trainer.forward(IMAGES)
    logits = model(IMAGES)  # a pass that nobody has asked about yet, with its graph
    twin: nn.Module = make(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(3)
    twin(IMAGES)
    seen = trainer.outputs(logits)
    assert isinstance(expected.h_last, Tensor)
    for name in ("h_first", "h_last", "attn", "tokens"):
        before, after = getattr(expected, name, None), getattr(seen, name, None)
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before, after)


def test_a_copied_trainer_watches_the_copied_model() -> None:
    trainer = DiversityTrainer(vit(), DiversityConfig(), generator=torch.Generator().manual_seed(1))
    trainer.forward(IMAGES)
    for twin in (copy.deepcopy(trainer), pickled(trainer)):
        assert twin.model is not trainer.model
        assert torch.equal(twin.forward(IMAGES).h_last, trainer.forward(IMAGES).h_last)
    trainer.close()
    with pytest.raises(RuntimeError, match="the hooks on the blocks saw nothing"):
        copy.deepcopy(trainer).forward(IMAGES)


@pytest.mark.parametrize("make", COPIES, ids=NAMES)
def test_a_gated_model_is_copied_with_gates_of_its_own(make: Any) -> None:
    model = vit().train()
    controller = UVCController(model, budget=0.6)
    apply_gates(model, controller)
    model(IMAGES).sum().backward()
    twin = make(model)
    assert is_gated(twin)
    drawn, state = controller.drawn(), controller.generator.get_state()
    twin.train()(IMAGES).sum().backward()
    assert controller.drawn() is drawn
    assert torch.equal(controller.generator.get_state(), state)
    assert twin.blocks[0].controller is twin.blocks[1].controller is not controller
    twin.eval()
    assert torch.equal(twin(IMAGES), model.eval()(IMAGES))
    remove_gates(twin)
    assert not is_gated(twin)
    assert is_gated(model)
