"""AttnScale and FeatScale: identities, limits, equal forms, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from atlas.methods.anti_oversmoothing import (
    apply_attnscale,
    apply_featscale,
    apply_head_gain,
    apply_layerscale,
    apply_output_gain,
    attnscale_filter,
    attnscale_output,
    attnscale_sdpa,
    dc,
    hc,
    hf_gain_bound,
    param_groups,
    remove_scales,
    scale_parameters,
)
from atlas.methods.anti_oversmoothing.scaling import ScaledHeads
from atlas.nn.diagnostics import attn_hf_gain, centred, hf_dc_ratio


def vit(**options) -> VisionTransformer:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 4}
    model = VisionTransformer(**{**sizes, "weight_init": "jax", **options}).double().eval()
    nn.init.normal_(model.head.weight)  # zero by this initialisation: no gradient would pass
    return model


IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def qkv(tokens: int, width: int = 4, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    draw = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, width, generator=draw, dtype=torch.float64).to(dtype) for _ in range(3)]


def textbook(q, k, v, omega, mask=None):  # type: ignore[no-untyped-def]
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    maps = (logits if mask is None else logits + mask).softmax(-1)
    return attnscale_filter(maps, omega) @ v


@pytest.mark.parametrize("tokens", [1, 2, 17, 197])
@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fused_equals_textbook_forward_and_gradient(tokens: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    omega = torch.tensor([-1.0, 0.3, 2.0], dtype=dtype)
    results = []
    for form in (
        textbook,
        attnscale_sdpa,
        lambda q, k, v, w: attnscale_output(functional.scaled_dot_product_attention(q, k, v), v, w),
    ):
        inputs = [tensor.requires_grad_() for tensor in (*qkv(tokens, width, dtype), omega.clone())]
        output = form(*inputs)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
        results.append([output, *torch.autograd.grad((output * direction).sum(), inputs)])
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            scale = max(1.0, float(expected.detach().abs().max()))
            assert torch.allclose(found, expected, atol=tolerance * scale, rtol=0)


def test_fused_equals_textbook_with_additive_bias() -> None:
    q, k, v = qkv(9)
    bias = torch.randn(9, 9, dtype=torch.float64)
    omega = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    assert torch.allclose(attnscale_sdpa(q, k, v, omega, attn_mask=bias), textbook(q, k, v, omega, bias), atol=1e-12)


def test_key_padding_mask_means_over_valid_tokens() -> None:
    q, k, v = qkv(6)
    omega = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    valid = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    valid[..., 4:] = False
    found = attnscale_sdpa(q, k, v, omega, attn_mask=valid)
    expected = attnscale_sdpa(q, k[:, :, :4], v[:, :, :4], omega)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("form", ["keys", "keys, added", "all", "all, added"])
def test_padding_is_padding_in_every_form_of_a_mask(form: str) -> None:
    q, k, v = qkv(6)
    omega = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    valid = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    valid[0, ..., 4:] = False
    mask = valid.expand(2, 1, 6, 6) if form.startswith("all") else valid
    if form.endswith("added"):
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    found = attnscale_sdpa(q, k, v, omega, attn_mask=mask)
    expected = attnscale_sdpa(q, k, v, omega, attn_mask=valid)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_groups_of_tokens_have_means_of_their_own() -> None:
    q, k, v = qkv(6)
    omega = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    mask = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).double().log()  # 0 within a group, −inf between them
    found = attnscale_sdpa(q, k, v, omega, attn_mask=mask)
    for part in (slice(0, 2), slice(2, 6)):
        alone = attnscale_sdpa(q[:, :, part], k[:, :, part], v[:, :, part], omega)
        torch.testing.assert_close(found[:, :, part], alone, rtol=0, atol=1e-12)


def test_one_scale_for_each_head() -> None:
    q, k, v = qkv(6)
    with pytest.raises(ValueError, match=r"one number for each of 3 heads, not have the shape \(4,\)"):
        attnscale_sdpa(q, k, v, torch.zeros(4).double())


def test_causal_mask_is_refused() -> None:
    q, k, v = qkv(6)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    hidden = torch.zeros(6, 6, dtype=torch.float64).masked_fill(future, -torch.inf)
    for mask in (~future, (~future)[None, None], hidden, hidden.expand(2, 3, 6, 6), hidden[None]):
        with pytest.raises(NotImplementedError, match="does not split the tokens into groups"):
            attnscale_sdpa(q, k, v, torch.zeros(3).double(), attn_mask=mask)
    per_head = torch.zeros(3, 6, 6, dtype=torch.float64)
    per_head[1, :, 5] = -torch.inf
    with pytest.raises(NotImplementedError, match="differs between heads"):
        attnscale_sdpa(q, k, v, torch.zeros(3).double(), attn_mask=per_head)
    model = apply_attnscale(vit())
    with pytest.raises(NotImplementedError, match="causal"):
        model.blocks[0].attn(torch.randn(1, 17, 16, dtype=torch.float64), is_causal=True)


def test_gradcheck_of_every_scale() -> None:
    q, k, v = (tensor[:1, :, :5] for tensor in qkv(5, 3))
    omega = torch.tensor([0.4, -0.7, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: attnscale_sdpa(q, k, v, w), (omega,))
    model = apply_featscale(apply_attnscale(vit(depth=1)))
    names = list(scale_parameters(model))
    scales = [torch.full_like(parameter, 0.3).requires_grad_() for parameter in scale_parameters(model).values()]

    def forward(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (IMAGES[:1],))

    assert torch.autograd.gradcheck(forward, tuple(scales))


@pytest.mark.parametrize("apply", [apply_attnscale, apply_featscale, apply_head_gain, apply_output_gain])
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"global_pool": "avg", "class_token": False}, {"init_values": 0.1, "reg_tokens": 3}]
)
def test_zero_is_the_identity(apply, options) -> None:  # type: ignore[no-untyped-def]
    plain = vit(**options)
    treated = apply(copy.deepcopy(plain))
    expected, found = plain(IMAGES), treated(IMAGES)
    assert torch.equal(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = dict(treated.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.allclose(gradients[name].grad, parameter.grad, atol=1e-12), name
    assert any(bool((scale.grad != 0).any()) for scale in scale_parameters(treated).values())


def test_zero_is_the_identity_without_fused_attention() -> None:
    plain = vit()
    treated = apply_attnscale(copy.deepcopy(plain))
    for model in (plain, treated):
        for block in model.blocks:
            block.attn.fused_attn = False
    assert torch.equal(treated(IMAGES), plain(IMAGES))


def test_minus_one_makes_all_rows_the_projected_mean_of_values() -> None:
    attention = apply_attnscale(vit(), init=-1.0).blocks[0].attn
    tokens = torch.randn(2, 17, 16, dtype=torch.float64)
    output = attention(tokens)
    values = attention.qkv(tokens)[..., 32:]
    assert torch.allclose(output, attention.proj(values.mean(1, keepdim=True)).expand_as(output), atol=1e-12)
    with torch.no_grad():
        attention.qkv.weight[:32].normal_()
    assert torch.allclose(attention(tokens), output, atol=1e-12)


def test_featscale_limits() -> None:
    plain = vit()
    tokens = torch.randn(2, 17, 16, dtype=torch.float64)
    attended = plain.blocks[0].attn(tokens)

    def scaled(init_dc: float, init_hc: float, **options) -> torch.Tensor:  # type: ignore[no-untyped-def]
        return apply_featscale(copy.deepcopy(plain), init_dc=init_dc, init_hc=init_hc, **options).blocks[0].attn(tokens)

    assert torch.allclose(scaled(0.7, 0.7), 1.7 * attended)
    assert torch.allclose(scaled(-1, 0), hc(attended), atol=1e-12)
    assert torch.allclose(scaled(0, -1), dc(attended), atol=1e-12)
    assert torch.allclose(scaled(0.4, -0.6), attended + 0.4 * dc(attended) - 0.6 * hc(attended))
    assert torch.allclose(scaled(0.2, -0.3, gain=2.0), scaled(0.4, -0.6))
    single = plain.blocks[0].attn(tokens[:, :1])
    model = apply_featscale(copy.deepcopy(plain), init_dc=0.5, init_hc=9.0)
    assert torch.allclose(model.blocks[0].attn(tokens[:, :1]), 1.5 * single)


def test_filter_keeps_rows_and_scales_the_rest() -> None:
    maps = torch.randn(2, 3, 7, 7, dtype=torch.float64).softmax(-1)
    omega = torch.tensor([0.5, -0.3, 2.0], dtype=torch.float64)
    scaled = attnscale_filter(maps, omega)
    assert torch.allclose(scaled.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    assert torch.allclose(centred(scaled), (1 + omega[:, None, None]) * centred(maps), atol=1e-14)
    plain, treated = torch.linalg.eigvals(maps), torch.linalg.eigvals(scaled)
    assert torch.allclose(
        treated.abs().amax(-1).clamp(max=1e9),
        torch.maximum(torch.ones(()), ((1 + omega)[:, None] * plain.abs().sort(-1).values[..., :-1]).abs().amax(-1)),
    )


def test_powers_of_a_filter_decay_by_one_plus_omega() -> None:
    maps = torch.randn(1, 1, 6, 6, dtype=torch.float64).softmax(-1)
    tokens = torch.randn(6, 4, dtype=torch.float64)
    plain, scaled = maps[0, 0], attnscale_filter(maps, torch.tensor([0.4], dtype=torch.float64))[0, 0]
    for power in (1, 3, 6):
        expected = 1.4**power * hc(torch.linalg.matrix_power(plain, power) @ tokens)
        assert torch.allclose(hc(torch.linalg.matrix_power(scaled, power) @ tokens), expected)


def test_hand_example() -> None:
    maps = torch.tensor([[[[0.75, 0.25], [0.25, 0.75]]]])
    values = torch.tensor([[[[1.0], [-1.0]]]])
    assert torch.equal(attnscale_filter(maps, torch.ones(1)), torch.eye(2)[None, None])
    assert torch.equal(attnscale_output(maps @ values, values, torch.ones(1)), values)


def test_talking_heads_need_the_form_after_attention() -> None:
    """Mixed maps have other row sums than 1: rewriting the values is then something else."""
    maps = torch.randn(1, 2, 5, 5, dtype=torch.float64).softmax(-1)
    mixed = torch.einsum("hg,bgij->bhij", torch.tensor([[1.0, 0.5], [-0.2, 0.8]], dtype=torch.float64), maps)
    values = torch.randn(1, 2, 5, 3, dtype=torch.float64)
    omega = torch.tensor([0.5, 1.0], dtype=torch.float64)
    expected = attnscale_filter(mixed, omega) @ values
    assert torch.allclose(attnscale_output(mixed @ values, values, omega), expected, atol=1e-12)
    rewritten = mixed @ (values + omega[:, None, None] * (values - values.mean(-2, keepdim=True)))
    assert not torch.allclose(rewritten, expected, atol=1e-3)


def test_permuting_tokens_permutes_the_output() -> None:
    q, k, v = qkv(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    omega = torch.tensor([0.5, -0.3, 2.0], dtype=torch.float64)
    permuted = attnscale_sdpa(q[:, :, order], k[:, :, order], v[:, :, order], omega)
    assert torch.allclose(permuted, attnscale_sdpa(q, k, v, omega)[:, :, order], atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 3.0])
def test_logit_bound_on_the_gain(alpha: float) -> None:
    for tokens in (2, 5, 12):
        logits = (2 * torch.rand(50, tokens, tokens, dtype=torch.float64) - 1) * alpha
        assert float(attn_hf_gain(logits.softmax(-1)).max()) <= hf_gain_bound(alpha, tokens) + 1e-9
    extreme = alpha * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert float(attn_hf_gain(extreme.softmax(-1))) == pytest.approx(hf_gain_bound(alpha, 2) ** 2, abs=1e-7)


def test_parameters_added_and_their_groups() -> None:
    plain = vit()
    count = sum(parameter.numel() for parameter in plain.parameters())
    attention = apply_attnscale(copy.deepcopy(plain))
    features = apply_featscale(copy.deepcopy(plain))
    assert sum(p.numel() for p in attention.parameters()) - count == 2 * 4
    assert sum(p.numel() for p in features.parameters()) - count == 2 * 2 * 16
    assert set(attention.state_dict()) - set(plain.state_dict()) == {f"blocks.{i}.attn.qkv.omega" for i in range(2)}
    assert set(features.state_dict()) - set(plain.state_dict()) == {
        f"blocks.{i}.attn.proj_drop.{n}" for i in range(2) for n in "st"
    }
    groups = param_groups(attention, lr=1.0, weight_decay=0.1, scale_lr_mult=10)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1.0, 0.1), (1.0, 0.0), (10.0, 0.0)]
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == count + 8
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])


def test_scales_can_be_removed_only_at_zero() -> None:
    plain = vit()
    model = apply_featscale(apply_attnscale(copy.deepcopy(plain)))
    assert type(remove_scales(model).blocks[0].attn.qkv) is nn.Linear
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(IMAGES), plain(IMAGES))
    assert not model.blocks[0].attn._forward_pre_hooks
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.omega is not 0"):
        remove_scales(apply_attnscale(vit(), init=0.1))


def test_a_chosen_block_alone_is_treated() -> None:
    model = apply_attnscale(vit(), blocks=[1])
    assert list(scale_parameters(model)) == ["blocks.1.attn.qkv.omega"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: apply_attnscale(apply_attnscale(vit())), ValueError, "already rewritten"),
        (lambda: apply_featscale(apply_featscale(vit())), ValueError, "already scaled"),
        (lambda: apply_attnscale(vit(), init=float("nan")), ValueError, "init must be finite"),
        (lambda: apply_attnscale(vit(), blocks=[]), ValueError, "blocks must name some of 0 … 1"),
        (lambda: apply_attnscale(vit(), blocks=[2]), ValueError, "blocks must name some of 0 … 1"),
        (lambda: apply_layerscale(apply_layerscale(vit())), ValueError, "LayerScale already"),
        (lambda: apply_attnscale(nn.Linear(2, 2)), TypeError, "expected a timm VisionTransformer"),
    ],
)
def test_misuse_is_refused(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "vit_relpos_small_patch16_224", "vit_small_patch16_36x1_224"],
)
def test_works_on_timm_families(name: str) -> None:
    model = create_model(name, **SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    assert torch.allclose(apply_attnscale(model)(images), before)
    with torch.no_grad():
        for scale in scale_parameters(model).values():
            scale.fill_(0.5)
    assert not torch.equal(model(images), before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gemma4_vit_167m_enc", {"embed_dim": 32, "depth": 2, "num_heads": 2}, r"blocks\.0\.attn\.v_proj \(NoneType\)|Gemma4"),
        ("tiny_vit_5m_224", {}, "expected a timm VisionTransformer"),
    ],
)
@pytest.mark.parametrize("apply", [apply_attnscale, apply_featscale])
def test_attentions_on_which_the_rewrite_would_be_wrong_are_named(name: str, options, message: str, apply) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match=message):
        apply(create_model(name, **options))


def test_a_bypassed_swap_is_noticed() -> None:
    class Attention(type(vit().blocks[0].attn)):  # type: ignore[misc]
        """Has the name and the modules of timm's attention, but calls the linear function itself."""

        def forward(self, x, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
            q, k, v = functional.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
            return self.proj(functional.scaled_dot_product_attention(q, k, v))

    model = vit()
    model.blocks[1].attn.__class__ = Attention
    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn .* bypasses"):
        apply_attnscale(model)


def test_untrained_attention_alone_collapses_and_attnscale_keeps_more() -> None:
    from atlas.methods.anti_oversmoothing import random_stack_ratios

    def last(seed: int, omega: float, stack: str) -> torch.Tensor:
        return random_stack_ratios(omega=omega, stack=stack, generator=torch.Generator().manual_seed(seed))

    for seed in range(5):
        collapsed = last(seed, 0.0, "attention")
        assert collapsed[8] < 1e-3 * collapsed[0]
        plain, scaled = last(seed, 0.0, "residual"), last(seed, 1.0, "residual")
        assert scaled[0] == plain[0]
        assert scaled[-1] > 1.3 * plain[-1]
    assert float(hf_dc_ratio(torch.ones(1, 4, 3))) == 0


@pytest.mark.parametrize("biased", [False, True])
def test_mixed_heads_become_the_map_of_the_formula(biased: bool) -> None:
    torch.manual_seed(0)
    mixing = nn.Linear(3, 3, bias=biased).double()
    maps = torch.randn(2, 5, 7, 3, dtype=torch.float64)  # (batch, queries, tokens, heads)
    mixed = mixing(maps)
    scaled = ScaledHeads.of(mixing, {"omega": (3, 0.4)})
    expected = (1 + 0.4) * mixed - 0.4 / 7  # J has 1/n everywhere, and Â = (1 + ω) A − ω J
    torch.testing.assert_close(scaled(maps), expected, rtol=0, atol=1e-14)


def test_a_mean_counts_the_valid_tokens_of_each_image() -> None:
    q, k, v = qkv(6)
    omega = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    valid = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    valid[0, ..., 4:] = False
    found = attnscale_sdpa(q, k, v, omega, attn_mask=valid)
    for image, count in enumerate((4, 6)):
        alone = attnscale_sdpa(q[image : image + 1], k[image : image + 1, :, :count], v[image : image + 1, :, :count], omega)
        torch.testing.assert_close(found[image : image + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["init_dc", "init_hc", "gain"])
def test_a_start_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        apply_featscale(vit(), **{name: float("nan")})


@pytest.mark.parametrize("wrap", [torch.compile, nn.Sequential], ids=["compiled", "in a sequence"])
def test_groups_of_a_model_within_another_are_its_own(wrap: Any) -> None:
    model = apply_attnscale(vit())
    sizes = [[p.numel() for p in group["params"]] for group in param_groups(model, lr=1.0, weight_decay=0.1)]
    assert [[p.numel() for p in group["params"]] for group in param_groups(wrap(model), lr=1.0, weight_decay=0.1)] == sizes
    exempt = {id(model.cls_token), id(model.pos_embed)}
    assert not exempt & {id(p) for p in param_groups(wrap(model), lr=1.0, weight_decay=0.1)[0]["params"]}
