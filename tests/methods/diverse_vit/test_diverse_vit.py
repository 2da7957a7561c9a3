"""Diverse-ViT: every term against brute force, closed forms and limits; the trainer leaves the model alone."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from atlas.methods.diverse_vit import (
    DiversityConfig,
    DiversityTrainer,
    MixTarget,
    PatchMixup,
    attn_cosine,
    cond_orth,
    cross_layer_cosine,
    emb_contrast,
    emb_cosine,
    gradient_diversity,
    mgd,
    mhs,
    soft_orth,
)
from atlas.nn.diagnostics import hf_energy_fraction, unit, weight_cond_gap

DRAW = torch.Generator().manual_seed(0)
FIRST = torch.randn(2, 7, 5, generator=DRAW, dtype=torch.float64)
LAST = torch.randn(2, 7, 5, generator=DRAW, dtype=torch.float64)
MAPS = torch.randn(2, 3, 6, 6, generator=DRAW, dtype=torch.float64).softmax(-1)
SILENT = {"mix_weight": 0.0, "emb_cos": 0.0, "emb_contrast": 0.0, "attn_cos": 0.0, "weight_orth": 0.0}


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(left @ right / left.norm() / right.norm())


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_embedding_cosine_is_the_double_loop(absolute: bool, diagonal: bool) -> None:
    values = [
        abs(value) if absolute else value
        for sample in LAST[:, 1:]
        for i, j in product(range(6), range(6))
        if (i != j or diagonal) and (value := cosine(sample[i], sample[j])) is not None
    ]
    found = emb_cosine(LAST, abs=absolute, include_diagonal=diagonal)
    assert float(found) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_embedding_cosine_limits() -> None:
    prefix = torch.randn(1, 1, 4, dtype=torch.float64)
    equal = torch.cat([prefix, torch.ones(1, 4, 4, dtype=torch.float64)], 1)
    orthonormal = torch.cat([prefix, torch.eye(4, dtype=torch.float64)[None]], 1)
    opposite = torch.cat([prefix, torch.tensor([[[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]], dtype=torch.float64)], 1)
    assert float(emb_cosine(equal)) == pytest.approx(1)
    assert float(emb_cosine(orthonormal)) == pytest.approx(1 / 4)
    assert float(emb_cosine(opposite)) == pytest.approx(0)
    scaled = LAST * torch.rand(2, 7, 1, dtype=torch.float64).add(0.1)
    assert float(emb_cosine(scaled)) == pytest.approx(float(emb_cosine(LAST)))
    assert float(emb_cosine(LAST)) == pytest.approx(float(1 - hf_energy_fraction(unit(LAST[:, 1:]))))
    with pytest.raises(ValueError, match="at least 2 patch tokens, not 1"):
        emb_cosine(LAST[:, :2])


def test_contrast_is_the_double_loop_and_its_limits() -> None:
    values = []
    for first, last in zip(FIRST[:, 1:], LAST[:, 1:], strict=True):
        for i in range(6):
            positive = cosine(first[i], last[i])
            negative = sum(cosine(first[i], last[j]) for j in range(6) if j != i) / 5
            values.append(-math.log(math.exp(positive) / (math.exp(positive) + math.exp(negative))))
    assert float(emb_contrast(FIRST, LAST)) == pytest.approx(sum(values) / len(values), abs=1e-12)
    equal = torch.ones(1, 5, 3, dtype=torch.float64)
    assert float(emb_contrast(equal, equal)) == pytest.approx(math.log(2))
    orthonormal = torch.cat([torch.zeros(1, 1, 4), torch.eye(4)[None]], 1).double()
    assert float(emb_contrast(orthonormal, orthonormal)) == pytest.approx(math.log1p(math.exp(-1)))
    assert torch.isfinite(emb_contrast(1e20 * FIRST, 1e-20 * LAST))
    inputs = [FIRST.clone().requires_grad_(), LAST.clone().requires_grad_()]
    emb_contrast(*inputs, detach_first=True).backward()
    assert inputs[0].grad is None
    assert inputs[1].grad is not None


def test_attention_cosine_limits() -> None:
    same = MAPS[:, :1].expand(2, 3, 6, 6)
    assert float(attn_cosine(same)) == pytest.approx(1)
    disjoint = torch.zeros(1, 2, 2, 2)
    disjoint[0, 0, :, 0] = disjoint[0, 1, :, 1] = 1
    assert float(attn_cosine(disjoint)) == pytest.approx(1 / 2)
    single = MAPS[:, :1].clone().requires_grad_()
    value = attn_cosine(single)
    value.backward()
    assert float(value.detach()) == pytest.approx(1)
    assert float(single.grad.abs().max()) < 1e-12
    flat = MAPS.flatten(-2)
    pairs = [cosine(flat[b, h], flat[b, g]) for b in range(2) for h in range(3) for g in range(3)]
    assert float(attn_cosine(MAPS)) == pytest.approx(sum(pairs) / len(pairs))


def test_permutations_change_nothing() -> None:
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(6)])
    for term in (emb_cosine, lambda h: emb_contrast(FIRST[:, order] if h is not LAST else FIRST, h)):
        assert float(term(LAST[:, order])) == pytest.approx(float(term(LAST)))
    assert float(attn_cosine(MAPS[:, [2, 0, 1]])) == pytest.approx(float(attn_cosine(MAPS)))


@pytest.mark.parametrize(
    "term",
    [
        emb_cosine,
        lambda h: emb_contrast(FIRST, h),
        lambda h: emb_contrast(h, FIRST),
        lambda h: cross_layer_cosine(FIRST, h, abs=False),
        lambda h: soft_orth(h).sum(),
        lambda h: mgd(h).sum(),
        lambda h: mhs(h).sum(),
        gradient_diversity,
        lambda h: cond_orth(h, probes=(torch.ones(2, 7).double(), torch.arange(14.0).view(2, 7).double())).sum(),
    ],
)
def test_gradients(term) -> None:  # type: ignore[no-untyped-def]
    assert torch.autograd.gradcheck(term, (LAST.clone().requires_grad_(),))


def test_condition_term() -> None:
    orthogonal = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probes = torch.rand(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert float(cond_orth(orthogonal)) == pytest.approx(0, abs=1e-25)
    assert float(cond_orth(3 * orthogonal)) == pytest.approx(0, abs=1e-20)
    assert float(cond_orth(torch.diag(torch.tensor([3.0, 2.0])), exact=True)) == pytest.approx((9 - 4) ** 2)
    estimate = cond_orth(weight, probes=probes)
    assert float(cond_orth(weight @ orthogonal, probes=probes)) == pytest.approx(float(estimate))
    assert float(cond_orth(2 * weight, probes=probes)) == pytest.approx(16 * float(estimate))
    exact = float(weight_cond_gap(weight))
    assert float(cond_orth(weight, exact=True)) == pytest.approx(exact)
    assert float(cond_orth(weight, probes=probes, steps=300)) == pytest.approx(exact, rel=1e-6)
    # the published recipe, step by step
    gram = weight @ weight.T
    u = gram @ probes[0]
    largest = u @ gram @ u / (u @ u)
    assert float(largest) <= float(torch.linalg.eigvalsh(gram)[-1])
    shifted = gram - largest * torch.eye(4)
    v = shifted @ probes[1]
    assert float(estimate) == pytest.approx(float((v @ shifted @ v / (v @ v)) ** 2))
    stacked = cond_orth(torch.stack([weight, 2 * weight]), probes=(probes[:1].expand(2, 4), probes[1:].expand(2, 4)))
    assert stacked.tolist() == pytest.approx([float(estimate), 16 * float(estimate)])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        cond_orth(weight, steps=0)


def test_alternatives() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [-1.0, 0.0]], dtype=torch.float64)
    assert float(mhs(rows)) == pytest.approx(-1.0, abs=1e-6)
    assert float(mhs(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))) == pytest.approx(-2.0, abs=1e-6)
    gram = torch.full((3, 3), math.exp(-2), dtype=torch.float64).fill_diagonal_(1 + 1e-6)
    assert float(mgd(torch.eye(3, dtype=torch.float64))) == pytest.approx(-float(torch.logdet(gram)), abs=1e-6)
    assert float(soft_orth(torch.eye(3, 5))) == 0
    equal = torch.ones(2, 4, 3, dtype=torch.float64)
    assert float(gradient_diversity(equal)) == pytest.approx(-1 / 4)


def mixer(**options) -> PatchMixup:  # type: ignore[no-untyped-def]
    return PatchMixup(5, 2, generator=torch.Generator().manual_seed(3), **options)


def test_patch_shares() -> None:
    keep = torch.ones(4, 4)
    keep[0:2, 1:3] = 0
    assert mixer().patch_shares(keep).tolist() == [0.5, 0.5, 1, 1]
    assert float(keep.mean()) == 0.75
    assert mixer().patch_shares(torch.ones(4, 4)).tolist() == [1] * 4
    assert mixer().patch_shares(torch.zeros(4, 4)).tolist() == [0] * 4


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_mixing_and_its_targets(switch: float) -> None:
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    mix = mixer(switch_prob=switch)
    for _ in range(5):
        mixed, target = mix(images, labels)
        assert float(target.patch_lam.mean()) == pytest.approx(target.lam, abs=1e-6)
        whole, patches = target.dense()
        assert whole.sum(1).tolist() == pytest.approx([1] * 4)
        assert torch.allclose(patches.sum(-1), torch.ones(4, 16))
        assert torch.allclose(patches.mean(1), whole, atol=1e-6)
        if switch:
            own = functional.avg_pool2d((mixed == images).all(1, keepdim=True).float(), 2).flatten(1)
            assert torch.allclose(own[0], target.patch_lam, atol=1e-6)
        else:
            assert torch.allclose(mixed, target.lam * images + (1 - target.lam) * images.flip(0))


def test_sparse_cross_entropy_is_the_dense_one() -> None:
    _, target = mixer(switch_prob=1.0)(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    logits, whole = torch.randn(4, 16, 5), torch.randn(4, 5)
    dense = target.dense()
    expected = -(dense[1] * logits.log_softmax(-1)).sum(-1).mean(0).sum()
    assert float(target.patch_loss(logits)) == pytest.approx(float(expected), rel=1e-5)
    assert float(target.image_loss(whole)) == pytest.approx(float(functional.cross_entropy(whole, dense[0])), rel=1e-5)
    with pytest.raises(ValueError, match="the model has 3 patch tokens, the target 16 patches"):
        target.patch_loss(logits[:, :3])


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 1, 8, 8), "must be even"), ((4, 1, 7, 8), "no multiple of patches of 2 × 2")]
)
def test_mixing_refuses(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer()(torch.randn(shape), torch.zeros(shape[0], dtype=torch.long))


def vit(**options) -> VisionTransformer:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 3, "num_heads": 4}
    model = VisionTransformer(**{**sizes, **options}).double()
    nn.init.normal_(model.head.weight, std=0.1)
    return model


IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3])


def test_without_coefficients_it_is_plain_cross_entropy() -> None:
    model = vit()
    with DiversityTrainer(model, DiversityConfig(**SILENT)) as trainer:
        total, terms = trainer.loss(trainer(IMAGES), LABELS)
        gradient = torch.autograd.grad(total, model.parameters())
    expected = functional.cross_entropy(model(IMAGES), LABELS)
    assert list(terms) == ["base"]
    assert float(total) == float(expected)
    for found, wanted in zip(gradient, torch.autograd.grad(expected, model.parameters()), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"reg_tokens": 2}, {"global_pool": "avg", "class_token": False, "fc_norm": True}]
)
def test_total_is_the_sum_of_its_terms_by_definition(options) -> None:  # type: ignore[no-untyped-def]
    model = vit(**options)
    _, target = PatchMixup(5, 2, generator=torch.Generator().manual_seed(0), switch_prob=1.0)(IMAGES, LABELS)
    config = DiversityConfig(mix_weight=0.7, attn_cos=0.3, orth_exact=True)
    with DiversityTrainer(model, config) as trainer:
        total, terms = trainer.loss(trainer(IMAGES), target)
        prefix = trainer.prefix
    first = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(IMAGES))))
    last = first
    for block in model.blocks:
        last = block(last)
    tokens = model.head(model.head_drop(model.fc_norm(model.norm(last))))[:, prefix:]
    whole, patches = target.dense()
    own = functional.cross_entropy(model(IMAGES), whole.double())
    each = sum(functional.cross_entropy(tokens[:, p], patches[:, p].double()) for p in range(16))
    attention = model.blocks[0].attn
    qkv = attention.qkv(model.blocks[0].norm1(first)).reshape(4, -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
    maps = (query @ key.transpose(-2, -1) * attention.scale).softmax(-1)
    gaps = sum(cond_orth(part, exact=True) for block in model.blocks for part in block.attn.qkv.weight.chunk(3))
    expected = (own + 0.7 * each) / (1 + 0.7 * 16)
    expected = expected + 0.5 * emb_cosine(last, prefix) + 0.5 * emb_contrast(first, last, prefix)
    expected = expected + 0.3 * attn_cosine(maps) + 5e-4 * gaps
    assert float(total) == pytest.approx(float(expected), rel=1e-12)
    assert set(terms) == {"base", "emb_cos", "emb_contrast", "attn_cos", "weight_orth"}


def test_patches_that_agree_with_the_class_token_change_nothing() -> None:
    target = MixTarget(LABELS, LABELS, 1.0, torch.ones(6), 0.1, 5)
    logits = torch.randn(4, 5)
    own = target.image_loss(logits)
    together = (own + 2.0 * target.patch_loss(logits[:, None].expand(4, 6, 5))) / (1 + 2.0 * 6)
    assert float(together) == pytest.approx(float(own))


def test_model_is_left_alone() -> None:
    model = vit().eval()
    before, keys = model(IMAGES), list(model.state_dict())
    trainer = DiversityTrainer(model, DiversityConfig())
    assert torch.equal(model(IMAGES), before)
    assert all(block.attn.fused_attn for block in model.blocks)
    assert list(model.state_dict()) == keys
    trainer.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="emb_cos must be finite and not negative"):
        DiversityConfig(emb_cos=-1)
    with pytest.raises(ValueError, match="attn_block must be one of 0 … 2, not 3"):
        DiversityTrainer(vit(), DiversityConfig(attn_block=3))
    trainer = DiversityTrainer(vit(), DiversityConfig())
    with pytest.raises(RuntimeError, match="hooks did not fire"):
        trainer.outputs(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="mix_weight needs the patch labels"):
        trainer.loss(trainer(IMAGES), LABELS)
    with pytest.raises(TypeError, match="expected a timm VisionTransformer"):
        DiversityTrainer(nn.Linear(2, 2), DiversityConfig())


def test_probes_follow_from_the_generator() -> None:
    def weight_term(seed: int) -> float:
        with DiversityTrainer(vit(), DiversityConfig(), generator=torch.Generator().manual_seed(seed)) as trainer:
            return float(trainer.weight_term())

    assert weight_term(1) == weight_term(1) != weight_term(2)
