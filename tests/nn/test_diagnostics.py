"""Diagnostics against brute force, closed forms and limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer

from atlas.methods.anti_oversmoothing import apply_attnscale, diagnose
from atlas.nn.counts import forward_flops, parameter_count
from atlas.nn.diagnostics import (
    OF_MAPS,
    OF_TOKENS,
    OF_WEIGHTS,
    RESPONSE,
    attn_cross_layer,
    attn_freq_response,
    attn_head_cosine,
    attn_hf_gain,
    attn_hf_norm,
    attn_lambda2,
    dc_energy_fraction,
    hf_dc_ratio,
    hf_energy_fraction,
    mgd,
    mhs,
    patch_maps,
    token_cosine,
    token_cross_layer,
    unit,
    weight_cond_gap,
    weight_effective_rank,
    weight_row_cosine_abs,
)
from atlas.nn.vit import attention_maps, block_features

TOKENS = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MAPS = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_token_cosine_is_the_double_loop(absolute: bool, diagonal: bool) -> None:
    values = []
    for sample in TOKENS:
        for i, left in enumerate(sample):
            for j, right in enumerate(sample):
                if i != j or diagonal:
                    cosine = float(left @ right / left.norm() / right.norm())
                    values.append(abs(cosine) if absolute else cosine)
    found = float(token_cosine(TOKENS, abs=absolute, diag=diagonal))
    assert found == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_with_and_without_diagonal_convert() -> None:
    off, on, count = token_cosine(TOKENS), token_cosine(TOKENS, diag=True), TOKENS.shape[1]
    assert float(on) == pytest.approx(float((1 + (count - 1) * off) / count), abs=1e-12)
    assert float(dc_energy_fraction(unit(TOKENS))) == pytest.approx(float(on), abs=1e-12)


def test_energy_fraction_by_fourier_transform() -> None:
    spectrum = torch.fft.fft(TOKENS, dim=1).abs().square().sum(-1)
    expected = (1 - spectrum[:, 0] / spectrum.sum(1)).mean()
    assert float(hf_energy_fraction(TOKENS)) == pytest.approx(float(expected), abs=1e-12)
    one = TOKENS[:1]
    assert float(hf_energy_fraction(one)) == pytest.approx(float(hf_dc_ratio(one) ** 2 / (1 + hf_dc_ratio(one) ** 2)))


def test_limits_of_token_measures() -> None:
    equal = torch.ones(1, 4, 3, dtype=torch.float64)
    assert float(hf_dc_ratio(equal)) == 0
    assert float(token_cosine(equal)) == pytest.approx(1)
    orthonormal = torch.eye(4, dtype=torch.float64)[None]
    assert float(token_cosine(orthonormal)) == pytest.approx(0)
    assert float(hf_energy_fraction(orthonormal)) == pytest.approx(3 / 4)
    assert float(token_cross_layer(TOKENS, 2 * TOKENS)) == pytest.approx(1)
    assert float(token_cross_layer(TOKENS, -TOKENS, all_pairs=True)) <= 1


def test_attention_gains_of_known_filters() -> None:
    uniform, identity = torch.full((4, 4), 0.25, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    for maps, expected in ((uniform, 0), (identity, 1)):
        assert float(attn_hf_gain(maps)) == pytest.approx(expected, abs=1e-12)
        assert float(attn_lambda2(maps)) == pytest.approx(expected, abs=1e-7)
    assert float(attn_hf_norm(uniform)) == 0
    assert torch.allclose(attn_freq_response(identity), torch.ones(4, dtype=torch.float64))
    row = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    circulant = torch.stack([row.roll(shift) for shift in range(4)])
    assert torch.allclose(attn_freq_response(circulant), torch.fft.fft(row).abs(), atol=1e-12)
    assert float(attn_lambda2(torch.ones(1, 1))) == 0


def test_two_dimensional_response_and_patch_maps() -> None:
    rings = attn_freq_response(torch.eye(12, dtype=torch.float64), grid=(3, 4))
    assert torch.allclose(rings, torch.ones_like(rings))
    with pytest.raises(ValueError, match="grid of 3 × 3 has 9 patches, the map has 12"):
        attn_freq_response(torch.eye(12), grid=(3, 3))
    inner = patch_maps(MAPS, 1)
    assert inner.shape == (2, 4, 5, 5)
    assert torch.allclose(inner.sum(-1), torch.ones(2, 4, 5, dtype=torch.float64))


def test_head_and_layer_similarity() -> None:
    same = MAPS[:, :1].expand(2, 4, 6, 6)
    assert float(attn_head_cosine(same)) == pytest.approx(1)
    assert float(attn_cross_layer(MAPS, MAPS)) == pytest.approx(1)
    assert float(attn_cross_layer(MAPS, MAPS, flattened=True)) == pytest.approx(1)
    flat = MAPS.flatten(-2)
    pairs = [
        float(torch.cosine_similarity(flat[b, h], flat[b, g], dim=0))
        for b in range(2)
        for h in range(4)
        for g in range(4)
        if g != h
    ]
    assert float(attn_head_cosine(MAPS)) == pytest.approx(sum(pairs) / len(pairs))


def test_weight_measures() -> None:
    orthogonal = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    assert float(weight_cond_gap(orthogonal)) == pytest.approx(0, abs=1e-20)
    assert float(weight_effective_rank(orthogonal)) == pytest.approx(5)
    assert float(weight_row_cosine_abs(orthogonal)) == pytest.approx(0, abs=1e-12)
    assert float(weight_cond_gap(torch.diag(torch.tensor([3.0, 2.0])))) == pytest.approx((9 - 4) ** 2)
    rows = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [-1.0, 0.0]], dtype=torch.float64)  # 0°, 60°, 180°
    assert float(mhs(rows)) == pytest.approx(1.0)
    gram = torch.full((3, 3), math.exp(-2), dtype=torch.float64).fill_diagonal_(1 + 1e-6)
    assert float(mgd(torch.eye(3, dtype=torch.float64))) == pytest.approx(float(torch.logdet(gram)))


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=3, embed_dim=16, depth=3, num_heads=4, qk_norm=True
    )


def test_maps_are_those_that_the_model_uses(model: VisionTransformer) -> None:
    images = torch.randn(2, 1, 8, 8)
    features = block_features(model.eval(), images)
    assert len(features) == 4
    for index, site, maps in attention_maps(model, images):
        attention = site.module
        normed = model.blocks[index].norm1(features[index])
        values = attention.qkv(normed)[..., 32:].reshape(2, 17, 4, 4).transpose(1, 2)
        output = attention.proj((maps @ values).transpose(1, 2).flatten(-2))
        assert torch.allclose(output, attention(normed), atol=1e-6)


def test_diagnose_is_tidy_and_leaves_the_model_alone(model: VisionTransformer) -> None:
    model.train()
    images = torch.randn(6, 1, 8, 8)
    table = diagnose(model, images, batch_size=4)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert list(table.columns) == ["layer", "head", "metric", "value"]
    assert table["value"].notna().all()
    assert set(table.loc[table["metric"] == "token_cosine", "layer"]) == {0, 1, 2, 3}
    assert set(table.loc[table["metric"] == "attn_hf_gain", "head"].dropna()) == {0, 1, 2, 3}
    whole = diagnose(model, images, attention=False, weights=False, metrics=["token_cosine"])
    expected = table[table["metric"] == "token_cosine"]["value"].to_numpy()
    assert whole["value"].to_numpy() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="at least one image"):
        diagnose(model, images[:0])
    with pytest.raises(ValueError, match="'patch' or 'all'"):
        diagnose(model, images, tokens="class")  # type: ignore[arg-type]


def test_diagnose_measures_what_is_named(model: VisionTransformer) -> None:
    images = torch.randn(3, 1, 8, 8)
    everything = set(diagnose(model, images)["metric"].str.split(".").str[0])
    assert everything == {*OF_TOKENS, *OF_MAPS, *OF_WEIGHTS} - {RESPONSE}
    named = diagnose(model, images, metrics=["mhs", "weight_mgd.q", RESPONSE])
    assert set(named["metric"]) >= {"weight_mhs.q", "weight_mhs.fc1", "weight_mgd.q", f"{RESPONSE}.0"}
    assert set(named["metric"].str.split(".").str[0]) == {"weight_mhs", "weight_mgd", RESPONSE}
    # a map whose rows sum to 1 leaves the mean of the patches as it is, and what is left of other frequencies is less
    responses = named[named["metric"].str.startswith(RESPONSE)].pivot(index=["layer", "head"], columns="metric", values="value")
    assert responses[f"{RESPONSE}.0"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (responses.drop(columns=f"{RESPONSE}.0") < 1).all().all()
    layers = {layer: maps for layer, (_, _, maps) in enumerate(attention_maps(model, images), start=1)}
    by_hand = attn_freq_response(patch_maps(layers[2], 1), model.patch_embed.grid_size).mean(0)
    assert responses.loc[2].to_numpy() == pytest.approx(by_hand.detach().numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": ["nope"]}, ValueError, "metrics: nope is not measured here; choose from token_cosine, "),
        ({"metrics": ["mhs"], "weights": False}, ValueError, "mhs is not measured here"),
        ({"metrics": "token_cosine"}, TypeError, r"metrics must be a list of names, as \['token_cosine'\], not one name"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size"),
    ],
)
def test_diagnose_refuses_what_it_does_not_measure(
    model: VisionTransformer, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    before_it_computes = model.register_forward_pre_hook(lambda module, inputs: pytest.fail("was called"))
    with before_it_computes, pytest.raises(error, match=message):
        diagnose(model, torch.randn(1, 1, 8, 8), **options)


def test_diagnose_reports_the_effective_filter_of_attnscale(model: VisionTransformer) -> None:
    treated = apply_attnscale(model, init=0.5)
    table = diagnose(treated, torch.randn(2, 1, 8, 8), weights=False).set_index(["layer", "head", "metric"])["value"]
    raw, effective = table[1, 0, "attn_hf_gain"], table[1, 0, "attn_hf_gain_effective"]
    assert effective == pytest.approx(1.5 * raw)


@pytest.mark.parametrize("name", ["vit_srelpos_small_patch16_224", "vit_relpos_small_patch16_224"])
def test_diagnose_sees_the_biases_of_relative_positions(name: str) -> None:
    """With a bias that ties every query to its own key, all heads have nearly the same, nearly diagonal map."""
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = create_model(name, **sizes, rel_pos_type="bias", class_token=False)
    with torch.no_grad():
        for parameter_name, table in model.named_parameters():
            if parameter_name.endswith("relative_position_bias_table"):
                table[len(table) // 2] = 30.0
    table = diagnose(model, torch.randn(2, 3, 32, 32), weights=False)
    values = table[table["metric"].isin(["attn_head_cosine", "attn_hf_gain"])]["value"]
    assert len(values) == 2 + 4
    assert values.to_numpy() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "tiny_vit_5m_224"])
@pytest.mark.parametrize("attention", [True, False])
def test_diagnose_refuses_what_is_no_vision_transformer(name: str, attention: bool) -> None:
    with pytest.raises(TypeError, match="expected a timm VisionTransformer|of a known kind"):
        diagnose(create_model(name).eval(), torch.randn(1, 3, 224, 224), attention=attention)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "xcit_nano_12_p16_224",
            {"embed_dim": 32, "num_heads": 2, "depth": 2},
            r"no maps to read in blocks\.0\.attn \(XCA\), .*of channels on channels",
        ),
        (
            "hiera_tiny_224",
            {"embed_dim": 16, "stages": (1, 1, 1, 1)},
            r"no maps to read in blocks\.0\.attn \(MaskUnitAttention\)",
        ),
        ("crossvit_9_240", {}, r"blocks\.0 \(MultiScaleBlock\) passes on several sequences"),
    ],
)
def test_diagnose_refuses_what_it_cannot_read_before_it_computes(name: str, options: dict[str, Any], message: str) -> None:
    model = create_model(name, **options)
    model.register_forward_pre_hook(lambda module, inputs: pytest.fail("was called"))
    with pytest.raises(TypeError, match=message):
        diagnose(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("pool", ["map", "token"])
def test_flops_of_models_that_pool_by_attention(pool: str) -> None:
    """Their query is a view of a parameter, which asks for gradients even where none are recorded."""
    from torch.utils.flop_counter import FlopCounterMode

    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3, global_pool=pool, class_token=pool == "token"
    )
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.randn(2, 3, 8, 8))
    model.train()
    frozen = model.blocks[0].mlp.fc1.weight.requires_grad_(False)
    assert forward_flops(model, torch.randn(2, 3, 8, 8, requires_grad=True)) == counter.get_total_flops() / 2
    assert model.training
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [frozen]


def test_counts() -> None:
    layer = torch.nn.Linear(7, 3)
    assert parameter_count(layer) == 24
    assert forward_flops(layer, torch.randn(5, 7)) == 2 * 7 * 3
    assert layer.training


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_network_that_gives_no_numbers_is_not_measured_as_zero(batch_size: int) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
    images = torch.randn(4, 1, 8, 8)
    images[3] = math.nan
    table = diagnose(model, images, weights=False, batch_size=batch_size)
    of_tokens = table[table["metric"].isin(["token_cosine", "hf_dc_ratio", "token_cross_layer"])]
    assert len(of_tokens)
    assert of_tokens["value"].isna().all()


def test_one_patch_has_no_other_to_be_compared_with() -> None:
    model = VisionTransformer(img_size=8, patch_size=8, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
    table = diagnose(model, torch.randn(3, 1, 8, 8), attention=False, weights=False)
    assert table[table["metric"].isin(["token_cosine", "token_cosine_abs"])]["value"].isna().all()
    assert table[table["metric"] == "hf_energy_fraction"]["value"].notna().all()
