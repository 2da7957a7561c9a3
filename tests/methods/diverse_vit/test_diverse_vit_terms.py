"""The regularisers against brute force, closed forms and limits."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from atlas.methods.diverse_vit import (
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
from atlas.methods.diverse_vit.terms import _mean_cosine, _powered
from atlas.nn.diagnostics import hf_energy_fraction, unit, weight_cond_gap

DRAW = torch.Generator().manual_seed(0)
FIRST = torch.randn(2, 7, 5, generator=DRAW, dtype=torch.float64)
LAST = torch.randn(2, 7, 5, generator=DRAW, dtype=torch.float64)
MAPS = torch.randn(2, 3, 6, 6, generator=DRAW, dtype=torch.float64).softmax(-1)


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


def test_condition_term_of_degenerate_matrices() -> None:
    for weight in (torch.eye(5), 2.0 * torch.eye(5), torch.zeros(5, 5)):
        weight.requires_grad_()
        value = cond_orth(weight)
        value.backward()
        assert float(value.detach()) == 0
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) == 0


def test_condition_term_in_float32_survives_many_steps_on_small_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = 1e-4 * torch.randn(8, 8, generator=draw)
    estimate = cond_orth(weight, steps=2000, generator=draw)
    assert float(estimate) == pytest.approx(float(weight_cond_gap(weight.double())), rel=1e-3)


def test_one_step_underestimates_by_a_known_factor() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(64, 64, 64, generator=draw, dtype=torch.float64)
    ratio = cond_orth(weights, generator=draw).mean() / cond_orth(weights, exact=True).mean()
    assert 0.25 < float(ratio) < 0.35


def test_denominators_of_the_published_feature_variants() -> None:
    draw = torch.Generator().manual_seed(3)
    weight, probes = (torch.randn(2, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    gram, first, second = weight @ weight.T, probes[0, :2], probes[1, :2]
    u = gram @ first
    largest = u @ gram @ u / (u @ u + 1e-6)
    shifted = gram - largest * torch.eye(2, dtype=torch.float64)
    v = shifted @ second
    expected = (v @ shifted @ v / (v @ v + 1e-6)) ** 2
    assert float(cond_orth(weight, probes=(first, second), eps=1e-6)) == pytest.approx(float(expected), rel=1e-12)


def test_probes_follow_from_the_generator_and_must_fit() -> None:
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    first, again, other = (cond_orth(weight, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match=r"probes must be two tensors of shape \(3, 4\)"):
        cond_orth(weight, probes=torch.rand(2, 4))


def test_contrast_is_not_symmetric_and_swapping_transposes() -> None:
    left, right = unit(FIRST[:, 1:]), unit(LAST[:, 1:])
    gram = left @ right.transpose(1, 2)
    for similarity, found in ((gram, emb_contrast(FIRST, LAST)), (gram.transpose(1, 2), emb_contrast(LAST, FIRST))):
        own = similarity.diagonal(dim1=1, dim2=2)
        others = (similarity.sum(-1) - own) / 5
        assert float(found) == pytest.approx(float(torch.log1p((others - own).exp()).mean()), abs=1e-12)
    assert float(emb_contrast(FIRST, LAST)) != pytest.approx(float(emb_contrast(LAST, FIRST)), abs=1e-6)


@pytest.mark.parametrize("absolute", [False, True])
def test_cross_layer_cosine_is_the_double_loop_for_heads_too(absolute: bool) -> None:
    other = MAPS.flip(-1)
    pairs = [cosine(MAPS[b, h].flatten(), other[b, g].flatten()) for b in range(2) for h in range(3) for g in range(3)]
    expected = sum(map(abs, pairs) if absolute else pairs) / len(pairs)
    found = cross_layer_cosine(MAPS.flatten(-2), other.flatten(-2), prefix=0, abs=absolute)
    assert float(found) == pytest.approx(expected)


def test_separation_shares_its_gradient_among_the_closest_pairs() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mhs(rows).backward()
    gradient = rows.grad
    assert gradient is not None
    assert gradient[0, 1].item() == pytest.approx(gradient[2, 1].item())
    assert gradient[0, 1].item() > 0  # away from the row in the middle
    assert float(mhs(torch.ones(3, 4))) == pytest.approx(0, abs=1e-6)  # equal rows are not skipped
    with pytest.raises(ValueError, match="at least 2 rows"):
        mhs(torch.ones(1, 4))


def plain_cosines(rows: torch.Tensor) -> torch.Tensor:
    """Cosines by the published two steps: rows made unit, then divided by their norms, which are taken as sqrt(sum + 1e-8)."""
    unit = rows / rows.square().sum(-1, keepdim=True).sqrt()
    norms = (unit.square().sum(-1) + 1e-8).sqrt()
    return (unit @ unit.mT) / (norms[:, None] * norms)


def plain_mgd(rows: torch.Tensor) -> torch.Tensor:
    return -torch.logdet(torch.exp(2 * plain_cosines(rows) - 2) + 1e-6 * torch.eye(len(rows), dtype=rows.dtype))


def plain_mhs(rows: torch.Tensor) -> torch.Tensor:
    cosines = plain_cosines(rows)
    return -torch.stack([2 - 2 * cosines[i, j] for i in range(len(rows)) for j in range(i)]).min()


@pytest.mark.parametrize("scale", [1, 1e-3, 1e-5, 1e-200, 1e200])
def test_spread_of_directions_is_the_same_at_every_scale(scale: float) -> None:
    vectors = torch.randn(6, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(mgd(scale * vectors)) == pytest.approx(0.2508702, abs=5e-8)
    for term, plain in ((mgd, plain_mgd), (mhs, plain_mhs)):
        rows, reference = (scale * vectors).requires_grad_(), vectors.clone().requires_grad_()
        found, expected = term(rows), plain(reference)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        found.backward()
        expected.backward()
        assert rows.grad is not None
        torch.testing.assert_close(rows.grad * scale, reference.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("scale", [1, 1e-3, 1e-5])
@pytest.mark.parametrize("term", [mgd, mhs])
def test_gradients_of_the_spread_at_every_scale(term, scale: float) -> None:  # type: ignore[no-untyped-def]
    rows = (scale * LAST).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: term(h).sum() * scale, (rows,), eps=1e-6 * scale)


@pytest.mark.parametrize("term", [mgd, mhs])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_zeros_has_no_direction_and_no_gradient(term, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    rows = torch.eye(4, 6, dtype=dtype)
    rows[1] = 0
    rows[3] = torch.tensor([1.0, 0, 1, 0, 0, 0])
    rows = (1e-5 * rows).requires_grad_()
    term(rows).backward()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()
    assert not rows.grad[1].any()
    assert rows.grad.any()
    assert float(mhs(torch.zeros(3, 4, dtype=dtype))) == -2


TERMS = {
    "emb_cosine": lambda x: emb_cosine(x),
    "emb_contrast": lambda x: emb_contrast(x, x.flip(1)),
    "attn_cosine": lambda x: attn_cosine(x[:, None] * x[:, :, None].softmax(1)[..., :1]),
    "cond_orth": lambda x: cond_orth(x, generator=torch.Generator().manual_seed(0)),
    "soft_orth": soft_orth,
    "mhs": mhs,
    "mgd": mgd,
}


@pytest.mark.parametrize("name", TERMS)
def test_autocast_changes_nothing(name: str) -> None:
    values = FIRST.float()
    expected = TERMS[name](values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TERMS[name](values)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    values = FIRST.float().clone()
    values[0, 3, 2] = bad
    with pytest.raises(ValueError, match="is not finite"):
        TERMS[name](values)


@pytest.mark.parametrize("shape", [(5, 7), (3, 6, 4), (2, 2, 4, 4)])
def test_the_condition_term_in_closed_form_is_the_one_step_by_step(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
    probes = torch.rand(2, *shape[:-1], generator=draw, dtype=torch.float64)
    closed, plain = cond_orth(weight, probes=probes), _powered(weight, probes)
    torch.testing.assert_close(closed, plain, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(value.sin().sum(), weight)[0] for value in (closed, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradgradcheck(lambda w: cond_orth(w, probes=probes), weight)


def test_the_condition_term_in_closed_form_of_rows_that_are_orthogonal_zero_or_tiny() -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.linalg.qr(torch.randn(64, 64, generator=draw))[0]
    probes = torch.rand(2, 3, 64, generator=draw)
    stack = torch.stack([rows, 1e-8 * rows, torch.zeros_like(rows)]).requires_grad_()
    value = cond_orth(stack, probes=probes)
    value.sum().backward()
    assert float(value.detach().max()) < 1e-9
    assert stack.grad is not None
    assert torch.isfinite(stack.grad).all()
    small = 1e-9 * torch.randn(3, 64, 64, generator=draw)
    exact = _powered(small.double(), probes.double())
    torch.testing.assert_close(cond_orth(small.double(), probes=probes.double()), exact, rtol=1e-9, atol=0)
    assert float(_powered(1e4 * small, probes).min()) > 0
    torch.testing.assert_close(cond_orth(1e4 * small, probes=probes).double(), 1e16 * exact, rtol=1e-3, atol=0)


def test_attention_cosine_in_closed_form_is_that_of_unit_maps() -> None:
    maps = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps[1, 2] = 0
    maps.requires_grad_()
    closed, plain = attn_cosine(maps), _mean_cosine(maps.flatten(-2))
    torch.testing.assert_close(closed, plain, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(value.exp(), maps)[0] for value in (closed, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradgradcheck(attn_cosine, maps[:1].detach().requires_grad_())


def test_two_rows_are_enough_for_a_separation_and_one_is_not() -> None:
    rows = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(mhs(rows), torch.tensor(-2.0, dtype=torch.float64), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="at least 2 rows, not 1"):
        mhs(rows[:1])


def test_a_first_argument_that_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="vectors"):
        mhs([[1.0, 0.0], [0.0, 1.0]])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: emb_contrast(FIRST, LAST[:, :5]), r"h1 and hL must be of one shape, not \(2, 7, 5\) and \(2, 5, 5\)"),
        (lambda: emb_contrast(FIRST[:1], LAST), "h1 and hL must be of one shape"),
        (lambda: emb_contrast(FIRST[..., :1], LAST), "h1 and hL must be of one shape"),
        (lambda: cross_layer_cosine(FIRST[..., :3], LAST), "first and later must be alike but for their tokens"),
        (lambda: cross_layer_cosine(FIRST[..., :1], LAST, abs=False), "first and later must be alike but for their tokens"),
        (lambda: emb_cosine(FIRST[0]), r"\(batch, tokens, dim\) are needed, not \(7, 5\)"),
        (lambda: emb_cosine(FIRST, valid=torch.ones(2, 6, dtype=torch.bool)), r"valid must be \(2 or 1, 7\), not \(2, 6\)"),
        (lambda: emb_contrast(FIRST, LAST, valid=torch.ones(3, 7, dtype=torch.bool)), r"valid must be \(2 or 1, 7\)"),
        (lambda: attn_cosine(MAPS, valid=torch.ones(2, 3, dtype=torch.bool)), r"valid must be \(2 or 1, "),
    ],
)
def test_tensors_of_different_sizes_are_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_of_different_token_counts_have_a_mean_cosine() -> None:
    assert -1 <= float(cross_layer_cosine(FIRST, LAST[:, :5], abs=False)) <= float(cross_layer_cosine(FIRST, LAST[:, :5])) <= 1
