"""UVC on transformers with rotary positions, gated feed-forwards and tokens of tokens; and what it refuses, before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from atlas.methods.uvc import (
    CompressionPlan,
    UnsupportedArchitectureError,
    UVCController,
    ViTShape,
    compress,
    export,
    fit_to_budget,
    masked,
    uniform_widths,
    unit_scores,
)
from atlas.methods.uvc.criteria import saliency_plan
from atlas.nn.counts import forward_flops
from atlas.nn.families import stir
from atlas.nn.t2t import T2TViT

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}


def stirred(model: Any) -> Any:
    stir(model, torch.Generator().manual_seed(0))
    return model.eval()


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return stirred(VisionTransformer(**{**SMALL, "mlp_ratio": 2, **options}))


def timm_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return stirred(create_model(name, **{**SMALL, **options}))


MODELS: dict[str, Any] = {
    "gated, packed": lambda: vit(mlp_layer=SwiGLUPacked),
    "gated, gate last": lambda: vit(mlp_layer=lambda *a, **k: GluMlp(*a, **{n: v for n, v in k.items() if n != "norm_layer"})),
    "gated, apart": lambda: vit(mlp_layer=SwiGLU),
    "registers, LayerScale, query-key norm": lambda: vit(reg_tokens=2, init_values=0.4, qk_norm=True),
    "no class token": lambda: vit(class_token=False, global_pool="avg"),
    "EVA": lambda: timm_model("eva_giant_patch14_224"),
    "EVA-02": lambda: timm_model("eva02_tiny_patch14_224"),
    "DINOv3": lambda: timm_model("vit_small_patch16_dinov3"),
    "DINOv3, gated": lambda: timm_model("vit_small_plus_patch16_dinov3"),
    "Perception Encoder": lambda: timm_model("vit_pe_core_tiny_patch16_384"),
    "T2T-ViT": lambda: stirred(T2TViT(img_size=32, embed_dim=128, depth=4, num_heads=4, num_classes=5)),
}


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ragged(model: Any) -> CompressionPlan:
    """A block out, a head out, and different numbers of dims in every head."""
    plan = CompressionPlan.identity(ViTShape.from_timm(model))
    plan.keep[1] = False
    plan.dims[0, 1] = False
    plan.dims[0, :, 3] = plan.dims[0, 0, :2] = False
    plan.dims[2, 3, 1:] = False
    plan.neurons[0, ::3] = False
    plan.neurons[2, 5:] = False
    return plan


@pytest.mark.parametrize("name", MODELS)
def test_the_exported_model_is_the_masked_one(name: str) -> None:
    model = MODELS[name]()
    shape = ViTShape.from_timm(model)
    plan = ragged(model)
    with torch.no_grad():
        expected = masked(model, plan)(images())
        small: Any = export(model, plan, check=False)
        assert torch.allclose(small(images()), expected, atol=1e-5 * (1 + float(expected.abs().max())))
        assert not torch.allclose(expected, model(images()), atol=1e-2)
        same: Any = export(model, CompressionPlan.identity(shape))
        assert torch.allclose(same(images()), model(images()), atol=1e-5)
    assert small.training is False
    small.train()(images()).sum().backward()


@pytest.mark.parametrize("name", MODELS)
def test_costs_are_those_of_the_model_that_comes_out(name: str) -> None:
    """Counted in the pass of the dense model and of a smaller one, without its head, which the formula leaves out."""
    model = MODELS[name]()
    shape = ViTShape.from_timm(model)
    model.reset_classifier(0)
    plan = fit_to_budget(CompressionPlan.identity(shape), shape, unit_scores(model), 0.8)
    plan = uniform_widths(plan, shape, unit_scores(model))
    small = export(model, plan, check=False)
    rest = forward_flops(model, images(1)) / 2 - shape.full_macs  # a pooling by attention, rotations
    assert 0 <= rest <= 0.1 * shape.full_macs
    assert forward_flops(small, images(1)) / 2 - rest == plan.macs(shape)
    assert plan.macs(shape) <= 0.8 * shape.full_macs


@pytest.mark.parametrize("name", ["gated, packed", "gated, apart", "DINOv3", "T2T-ViT"])
def test_a_search_ends_within_its_budget(name: str) -> None:
    batches = [(images(4), torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    result = compress(MODELS[name](), 0.8, batches, epochs=(2, 1), seed=0)
    assert result.r_phys <= 0.8
    assert result.model(images()).shape == (2, 5)


def test_saliencies_of_gated_neurons_count_both_layers() -> None:
    packed, apart = vit(mlp_layer=SwiGLUPacked, mlp_ratio=4), vit(mlp_layer=SwiGLU)
    for one, other in zip(packed.blocks, apart.blocks, strict=True):
        width = other.mlp.fc2.in_features
        state = {name: value for name, value in other.state_dict().items() if ".fc1" not in name}
        state["mlp.fc1.weight"] = torch.cat((other.mlp.fc1_g.weight, other.mlp.fc1_x.weight))
        state["mlp.fc1.bias"] = torch.cat((other.mlp.fc1_g.bias, other.mlp.fc1_x.bias))
        assert one.mlp.fc1.out_features == 2 * width
        one.load_state_dict(state)
    packed.load_state_dict({name: value for name, value in apart.state_dict().items() if "blocks" not in name}, strict=False)
    labels = torch.tensor([0, 3])
    plans = [saliency_plan(model, images(), labels, nn.functional.cross_entropy, 0.7) for model in (packed, apart)]
    assert torch.equal(plans[0].neurons, plans[1].neurons)
    assert torch.equal(plans[0].dims, plans[1].dims)


class Untouched:
    """Batches that nobody may ask for."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the search has begun")

    def __len__(self) -> int:
        raise AssertionError("the search has begun")


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: nn.Linear(2, 2), "Linear is not a timm VisionTransformer"),
        (
            lambda: create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(2, 2)),
            "SwinTransformer is",
        ),
        (lambda: create_model("cait_xxs24_224", embed_dim=32, depth=2, num_heads=2), "Cait is not"),
        (lambda: timm_model("beit_base_patch16_224"), "Beit is not"),
        (lambda: create_model("naflexvit_base_patch16_gap", embed_dim=32, depth=2, num_heads=2), "NaFlexVit is not"),
        (lambda: create_model("vit_tiny_r_s16_p8_224", embed_dim=32, depth=2, num_heads=2), "patch_embed: HybridEmbed"),
        (lambda: timm_model("vit_base_patch16_xp_224"), "blocks.0: ParallelScalingBlock"),
        (lambda: timm_model("vit_dlittle_patch16_reg1_gap_256"), "blocks.0.attn: DiffAttention"),
        (lambda: timm_model("eva02_base_patch14_224", img_size=28, patch_size=14), "blocks.0.mlp.norm: an inner norm"),
        (lambda: timm_model("vit_small_patch16_rope_mixed_224"), "rope: every block and head has rotations of its own"),
        (lambda: timm_model("vit_5b_patch16_sapiens2", num_kv_heads=1), "blocks.0.attn: heads share keys and values"),
        (lambda: vit(mlp_layer=lambda *a, **k: SwiGLU(*a, **{**k, "norm_layer": nn.LayerNorm})), "blocks.0.mlp.norm"),
    ],
)
def test_what_is_out_of_scope_is_refused_before_the_search(make: Any, path: str) -> None:
    model = make()
    with pytest.raises(UnsupportedArchitectureError, match=path):
        compress(model, 0.5, Untouched())
    with pytest.raises(UnsupportedArchitectureError, match=path):
        UVCController(model, 0.5)
    with pytest.raises(UnsupportedArchitectureError, match=path):
        export(model, CompressionPlan(torch.ones(1, dtype=torch.bool), torch.ones(1, 1, 1).bool(), torch.ones(1, 1).bool()))
