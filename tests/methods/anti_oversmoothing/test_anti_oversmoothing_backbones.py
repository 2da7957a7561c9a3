"""AttnScale and FeatScale on every family of timm's transformers: against the formulas with explicit maps, to rounding at 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional

from atlas.cli.backbones import CHANNELS, WORKS, state_of, verdict
from atlas.cli.backbones import _attnscale as attnscale_check
from atlas.cli.backbones import _featscale as featscale_check
from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale, remove_scales, scale_parameters
from atlas.methods.anti_oversmoothing.scaling import ScaledQKV
from atlas.methods.anti_oversmoothing.textbook import textbook_attnscale, textbook_featscale
from atlas.nn.anatomy import attention_sites
from atlas.nn.families import Look, small_model
from atlas.nn.masks import seen_tokens, token_mean

Apply = Callable[..., nn.Module]

KINDS = {
    "beit_base_patch16_224": ("Beit", 16),
    "cait_xxs24_224": ("Cait", 16),
    "convit_tiny": ("ConVit", 16),
    "crossvit_9_240": ("CrossVit", 0),
    "deepseek_vit_412m_enc": ("DeepseekVitEncoder", 14),
    "deit_tiny_distilled_patch16_224": ("VisionTransformerDistilled", 16),
    "eva02_tiny_patch14_224": ("Eva", 14),
    "eva_giant_patch14_224": ("Eva", 14),
    "hiera_tiny_224": ("Hiera", 4),
    "naflexvit_base_patch16_gap": ("NaFlexVit", 16),
    "qwen3_vit_88m": ("Qwen3VitClassifier", 16),
    "sam2_hiera_tiny": ("HieraDet", 4),
    "samvit_base_patch16": ("VisionTransformerSAM", 16),
    "swin_tiny_patch4_window7_224": ("SwinTransformer", 4),
    "swinv2_cr_tiny_224": ("SwinTransformerV2Cr", 4),
    "swinv2_tiny_window8_256": ("SwinTransformerV2", 4),
    "tnt_s_patch16_224": ("TNT", 16),
    "twins_pcpvt_small": ("Twins", 16),
    "twins_svt_small": ("Twins", 16),
    "vit_5b_patch16_sapiens2": ("Eva", 16),
    "vit_base_patch16_18x2_224": ("VisionTransformer", 16),
    "vit_base_patch16_rpn_224": ("VisionTransformer", 16),
    "vit_base_patch16_xp_224": ("VisionTransformer", 16),
    "vit_dlittle_patch16_reg1_gap_256": ("VisionTransformer", 16),
    "vit_dpwee_patch16_reg1_gap_256": ("VisionTransformer", 16),
    "vit_pe_core_base_patch16_224": ("Eva", 16),
    "vit_pwee_patch16_reg1_gap_256": ("VisionTransformer", 16),
    "vit_relpos_small_patch16_224": ("VisionTransformerRelPos", 16),
    "vit_small_patch16_dinov3": ("Eva", 16),
    "xcit_nano_12_p16_224": ("Xcit", 16),
}
"""One entrypoint for every kind of attention and of block, with its class and the side of a patch."""


SHARED = "AttentionRope (separate projections, shared values)"


def small(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    kind, patch = KINDS[name]
    return small_model(name, Look(kind, SHARED if "sapiens" in name else "", patch, 0), dtype)


@pytest.mark.parametrize("name", KINDS)
def test_every_family_follows_the_formulas(name: str) -> None:
    kind, patch = KINDS[name]
    found = Look(kind, SHARED if "sapiens" in name else "", patch, 0)
    assert verdict(attnscale_check, name, found) == (CHANNELS if kind == "Xcit" else WORKS)
    assert verdict(featscale_check, name, found) == WORKS


@pytest.mark.parametrize("name", ["eva_giant_patch14_224", "beit_base_patch16_224", "swinv2_tiny_window8_256"])
def test_biases_that_are_added_apart_from_the_projection(name: str) -> None:
    """timm adds them in one operation with the projection, or after it: either way, at 0 not a bit changes."""
    model, images = small(name, torch.float64)
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    treated = apply_attnscale(copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(treated(images), model(images))
        for scale in scale_parameters(treated).values():
            scale.fill_(0.7)
        omegas = {site.path: torch.full((site.value_heads,), 0.7).double() for site in attention_sites(model)}
        with textbook_attnscale(model, omegas):
            expected = model(images)
        assert torch.allclose(treated(images), expected, atol=1e-12)
    assert treated.state_dict().keys() - model.state_dict().keys() == set(scale_parameters(treated))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("apply", [apply_attnscale, apply_featscale])
def test_a_failure_half_way_leaves_every_family_as_it_was(name: str, apply: Apply, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of the last attention is interrupted, when all others are rewritten already."""
    model, _ = small(name)
    last = attention_sites(model)[-1].module
    block = model.get_submodule(attention_sites(model)[-1].block)
    before = state_of(model)

    def interrupted(*inputs: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    forward = type(last).forward
    monkeypatch.setattr(last, "forward", interrupted)
    if apply is apply_featscale and hasattr(block, "attn_mask"):  # blocks of windows need no trial
        monkeypatch.setattr("atlas.methods.anti_oversmoothing.scaling.MapFeatScale", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply(model)
    monkeypatch.undo()
    assert type(last).forward is forward
    assert state_of(model) == before


@pytest.mark.parametrize(
    "name", ["eva_giant_patch14_224", "swin_tiny_patch4_window7_224", "cait_xxs24_224", "vit_base_patch16_xp_224"]
)
def test_the_way_back_and_copies(name: str) -> None:
    import io

    model, images = small(name)
    with torch.no_grad():
        expected = model(images)
        treated = apply_featscale(apply_attnscale(copy.deepcopy(model)))
        for scale in scale_parameters(treated).values():
            scale.fill_(0.3)
        changed = treated(images)
        assert not torch.allclose(changed, expected)
        assert torch.equal(copy.deepcopy(treated)(images), changed)
        file = io.BytesIO()
        torch.save(treated, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(images), changed)
        for scale in scale_parameters(treated).values():
            scale.zero_()
        plain = remove_scales(treated)
        assert torch.equal(plain(images), expected)
    assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]
    assert list(plain.state_dict()) == list(model.state_dict())


def naflex(valid: int) -> dict[str, Tensor]:
    """A batch of two images of six patches, of which the second has ``valid``."""
    patches = torch.randn(2, 6, 16 * 16 * 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coordinates = torch.tensor([[[y, x] for y in range(3) for x in range(2)]]).expand(2, -1, -1)
    present = torch.arange(6) < torch.tensor([[6], [valid]])
    return {"patches": patches, "patch_coord": coordinates * present[..., None], "patch_valid": present}


@pytest.mark.parametrize(("apply", "book"), [(apply_attnscale, textbook_attnscale), (apply_featscale, textbook_featscale)])
def test_padding_is_not_averaged(apply: Apply, book: Any) -> None:
    """A padded image gives what it gives alone, and what the formula over valid tokens gives."""
    model, _ = small("naflexvit_base_patch16_gap", torch.float64)
    plain = copy.deepcopy(model)
    treated = apply(model)
    sites = attention_sites(plain)
    scales = list(scale_parameters(treated).values())
    with torch.no_grad():
        for scale in scales:
            scale.fill_(0.6)
        batch = naflex(4)
        found = treated(batch)
        alone = {name: value[1:, :4] for name, value in batch.items()}
        assert torch.allclose(treated(alone)[0], found[1], atol=1e-12)
        each = len(scales) // len(sites)
        known = {site.path: scales[i] if each == 1 else (scales[2 * i], scales[2 * i + 1]) for i, site in enumerate(sites)}
        with book(plain, known):
            assert torch.allclose(plain(batch), found, atol=1e-12)
        unpadded = naflex(6)
        treated(batch)
        assert torch.allclose(treated(unpadded)[0], found[0], atol=1e-12)  # the mask of the call before is forgotten


def test_groups_of_masks() -> None:
    tokens = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 0, 0, 0]])
    mask = torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)  # (windows, queries, tokens)
    seen = seen_tokens(mask, False)
    assert seen is not None
    found = token_mean(tokens, seen)
    for image in range(4):
        for token in range(5):
            own = regions[image % 2] == regions[image % 2, token]
            assert torch.allclose(found[image, token], tokens[image, own].mean(0), atol=1e-6)
    assert seen_tokens(torch.zeros(2, 5, 5), False) is None
    mask[0, 0, 1] = 0.0  # token 0 now sees a token of another group
    with pytest.raises(NotImplementedError, match="does not split the tokens into groups"):
        seen_tokens(mask, False)
    with pytest.raises(NotImplementedError, match="differs between heads"):
        seen_tokens(
            torch.eye(5, dtype=torch.bool).logical_not().expand(1, 2, 5, 5) & torch.tensor([True, False])[:, None, None], False
        )


def test_grouped_queries_share_the_scale_of_their_values() -> None:
    model, _ = small("vit_5b_patch16_sapiens2")
    heads = {site.path: (site.heads, site.value_heads) for site in attention_sites(model)}
    assert list(heads.values()) == [(2, 2), (2, 1)]
    assert [len(omega) for omega in scale_parameters(apply_attnscale(model)).values()] == [2, 1]


def test_class_attention_stays_apart() -> None:
    model = create_model("cait_xxs24_224", img_size=32, embed_dim=32, depth=2, num_heads=2)
    names = scale_parameters(apply_featscale(apply_attnscale(model)))
    assert all(name.startswith("blocks.") for name in names)
    assert {name for name in names if name.endswith("omega")} == {f"blocks.{i}.attn.proj_w.omega" for i in range(2)}


def test_attention_over_channels_passes_all_frequencies_of_tokens_alike() -> None:
    """What AttnScale does not do in XCiT: its attention commutes with changes of the tokens' basis, also when it is scaled."""
    from timm.models.xcit import XCA

    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 16, generator=random, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(9, 9, generator=random, dtype=torch.float64))[0]
    for kind, same in ((XCA, True), (Attention, False)):
        attention = kind(16, num_heads=2, qkv_bias=False).double().eval()
        attention.proj.bias.data.zero_()
        if same:
            attention.qkv = ScaledQKV.of(attention.qkv, {"omega": (2, 0.7)}, value_dim=8, over_channels=True)
        with torch.no_grad():
            assert torch.allclose(attention(basis @ tokens), basis @ attention(tokens), atol=1e-12) == same


def test_attention_over_channels_by_hand() -> None:
    """Â = J + (1 + ω)(A − J) for the maps of XCA, which are written out here; class attention is left alone."""
    model, _ = small_model("xcit_nano_12_p16_224", Look("Xcit", "", 16, 0), torch.float64)
    plain = copy.deepcopy(model.blocks[0].attn)
    model = apply_attnscale(model)
    names = scale_parameters(model)
    assert list(names) == [f"blocks.{index}.attn.qkv.omega" for index in range(2)]
    omega = torch.tensor([0.8, -0.3], dtype=torch.float64)
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model.blocks[0].attn(tokens), plain(tokens))
        names["blocks.0.attn.qkv.omega"].copy_(omega)
        query, key, value = plain.qkv(tokens).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 4, 1)  # (…, heads, channels, tokens)
        logits = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).mT * plain.temperature
        maps = logits.softmax(-1)
        assert torch.allclose(maps.sum(-1), torch.ones(()).double())
        scaled = 1 / 16 + (1 + omega[:, None, None]) * (maps - 1 / 16)
        expected = plain.proj((scaled @ value).permute(0, 3, 1, 2).flatten(2))
        assert torch.allclose(model.blocks[0].attn(tokens), expected, atol=1e-12)
        assert not torch.allclose(model.blocks[0].attn(tokens), plain(tokens), atol=1e-3)
