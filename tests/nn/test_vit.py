"""Attention maps are those that the model's own pass used: biases, shared or not, masks, and random draws among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.anti_oversmoothing import apply_attnscale
from atlas.nn.anatomy import Site, anatomy_of, attention_sites
from atlas.nn.vit import attention_maps, logit_bias, softmax_map

SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextmanager
def maps_inside(model: nn.Module) -> Iterator[list[Tensor]]:
    """The maps of a pass, caught where they are dropped out, with fused attention off."""
    seen: list[Tensor] = []
    handles = []
    for site in attention_sites(model):
        site.module.fused_attn = False
        handles.append(site.module.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0])))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def strong_biases(model: nn.Module) -> nn.Module:
    """Biases of relative positions that matter: fresh ones are almost 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name:
                nn.init.normal_(parameter, std=2.0)
    return model


@pytest.mark.parametrize("kind", ["bias", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_relative_position_biases_are_in_the_maps(kind: str, shared: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = create_model("vit_relpos_small_patch16_224", **SMALL, rel_pos_type=kind, shared_rel_pos=shared)
    strong_biases(model).train(training)
    if training:
        expected = reference_in_training(model)
    else:
        with maps_inside(model) as expected, torch.no_grad():
            model(IMAGES)
    torch.manual_seed(1)
    found = [maps for _, _, maps in attention_maps(model, IMAGES)]
    assert len(found) == 2
    for own, wanted in zip(found, expected, strict=True):
        assert torch.allclose(own, wanted, atol=1e-5)


def reference_in_training(model: nn.Module) -> list[Tensor]:
    """The maps of a pass that draws the dropout of the biases from the same random numbers."""
    torch.manual_seed(1)
    with maps_inside(model) as seen, torch.no_grad():
        model(IMAGES)
    return seen


def test_looking_at_maps_leaves_the_random_stream_to_the_model() -> None:
    model = create_model("vit_relpos_small_patch16_224", **SMALL, rel_pos_type="mlp").train()
    torch.manual_seed(0)
    with torch.no_grad():
        model(IMAGES)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    list(attention_maps(model, IMAGES))
    assert torch.equal(torch.get_rng_state(), state)


def test_maps_of_a_scaled_model_are_the_raw_ones() -> None:
    model = create_model("vit_srelpos_small_patch16_224", **SMALL).eval()
    plain = [maps for _, _, maps in attention_maps(strong_biases(model), IMAGES)]
    scaled = [maps for _, _, maps in attention_maps(apply_attnscale(model), IMAGES)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, scaled, strict=True))


@pytest.mark.parametrize(
    "call",
    [
        {"is_causal": True},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril(1)},
        {"attn_mask": torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(3))},
    ],
)
def test_masks_are_in_the_maps(call: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    attention.fused_attn = False
    tokens = torch.randn(2, 5, 8)
    seen: list[Tensor] = []
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    attention(tokens, **call)
    anatomy = anatomy_of(type(attention))
    assert anatomy is not None
    site = Site("attn", "", attention, anatomy)
    found = softmax_map(site, attention.qkv(tokens), logit_bias(site, (tokens,), call))
    assert torch.allclose(found, seen[0], atol=1e-6)


def test_maps_of_models_that_mask_their_padding() -> None:
    model = create_model("naflexvit_base_patch16_gap", embed_dim=32, depth=2, num_heads=2, num_classes=3).eval()
    batch: Any = {
        "patches": torch.randn(1, 6, 16 * 16 * 3),
        "patch_coord": torch.tensor([[[y, x] for y in range(3) for x in range(2)]]),
        "patch_valid": torch.tensor([[True] * 4 + [False] * 2]),
    }
    with maps_inside(model) as expected, torch.no_grad():
        model(batch)
    found = [maps for _, _, maps in attention_maps(model, batch)]
    valid = slice(0, found[0].shape[-1] - 2)  # rows of padding mean nothing
    for own, wanted in zip(found, expected, strict=True):
        assert torch.allclose(own[..., valid, :], wanted[..., valid, :], atol=1e-6)
        assert not own[..., valid, -2:].any()


STAGES = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beit_base_patch16_224", SMALL),
        ("cait_xxs24_224", SMALL),
        ("eva02_tiny_patch14_224", SMALL | {"img_size": 28}),
        ("samvit_base_patch16", SMALL | {"img_size": 96, "window_size": 4, "global_attn_indexes": (1,)}),
        ("swin_tiny_patch4_window7_224", STAGES),
        ("swinv2_cr_tiny_224", STAGES),
        ("swinv2_tiny_window8_256", STAGES),
        ("vit_base_patch16_xp_224", SMALL),
        ("vit_5b_patch16_sapiens2", SMALL | {"num_kv_heads": 1}),
    ],
)
def test_maps_of_every_kind_are_those_of_the_pass(name: str, options: dict[str, Any]) -> None:
    """Windows, shifted and masked, biases and rotations among them; and the model stays as it was."""
    torch.manual_seed(0)
    model = strong_biases(create_model(name, **options).eval())
    images = torch.randn(2, 3, options["img_size"], options["img_size"])
    with torch.no_grad():
        before = model(images)
    found = list(attention_maps(model, images))
    with torch.no_grad():
        assert torch.equal(model(images), before)
    with maps_inside(model) as expected, torch.no_grad():
        model(images)
    assert len(found) == len(expected)
    for (_, site, own), wanted in zip(found, expected, strict=True):
        assert own.ndim == 4
        assert own.shape[1] == site.heads
        assert torch.allclose(own.flatten(), wanted.flatten(), atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules() if module is not model)


class AroundTheModule(Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = functional.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        return self.proj(functional.scaled_dot_product_attention(q, k, v))


def test_maps_that_cannot_be_known_are_refused() -> None:
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)
    model.blocks[1].attn.__class__ = AroundTheModule
    with pytest.raises(TypeError, match=r"blocks\.1\.attn \(AroundTheModule\) .* bypasses its qkv"):
        list(attention_maps(model, torch.randn(1, 3, 8, 8)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_wrapped_projection_is_named() -> None:
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)
    model.blocks[0].attn.proj = nn.Sequential(model.blocks[0].attn.proj)
    with pytest.raises(TypeError, match=r"blocks\.0\.attn\.proj \(Sequential\), blocks\.1\.attn\.qkv \(Sequential\)"):
        attention_sites(model)


def test_an_attention_that_only_shares_its_name_is_told_apart() -> None:
    model = create_model("vit_tiny_patch16_224", **SMALL)
    model.blocks[0].attn = create_model("fastvit_sa12").stages[3].blocks[0].token_mixer  # another ``Attention``
    with pytest.raises(TypeError, match=r"known kind.* in blocks\.0\.attn \(fastvit\.Attention\); `atlas list backbones`"):
        attention_sites(model)
