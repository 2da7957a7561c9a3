"""Regularisers of redundancy (Chen et al., CVPR 2022, Sec. 3): every function is to be minimised.

The cosine and contrastive terms over n vectors are written so that they cost n instead of n²: the mean over all ordered pairs of
unit vectors, each with itself included, is the squared length of their mean. All terms are computed in float32 or better, under
autocast too, and refuse values that are not finite.

Where the paper offers several measures for a level, the ones of the released training scripts are :func:`emb_cosine`,
:func:`emb_contrast`, :func:`attn_cosine` and :func:`cond_orth`; the others are its ablation menu. Functions of tokens also
measure attention maps, as (batch, heads, tokens²) with ``prefix=0``: heads take the place of tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor
from torch.nn import functional

from atlas.methods.diverse_vit.closed_forms import head_cosine, power_condition
from atlas.nn.examples import require_tensors
from atlas.nn.vit import at_least_float32

EPSILON = 1e-8
GRAM_RIDGE = 1e-6
Arguments = ParamSpec("Arguments")


def _term(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Compute a term outside autocast, and refuse a value that is not finite."""

    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def term(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        name, first = (names[0], args[0]) if args else next(iter(kwargs.items()))
        require_tensors(**{name: first})
        assert isinstance(first, Tensor)
        with torch.autocast(first.device.type, enabled=False):
            value = function(*args, **kwargs)
        if not value.isfinite().all():
            raise ValueError(f"{function.__name__} is not finite: its input holds NaN or infinity, or is too large")
        return value

    return term


def _unit(vectors: Tensor) -> Tensor:
    """The vectors (…, dim) at length 1, in float32 or better; a zero vector stays zero."""
    return functional.normalize(at_least_float32(vectors), dim=-1, eps=EPSILON)


def _patches(tokens: Tensor, prefix: int) -> Tensor:
    """The patch tokens (batch, patches, dim) of (batch, tokens, dim): all but the first ``prefix``."""
    if tokens.ndim != 3:
        raise ValueError(f"tokens (batch, tokens, dim) are needed, not {tuple(tokens.shape)}")
    if prefix < 0:
        raise ValueError(f"prefix must be at least 0, not {prefix}")
    patches = tokens[:, prefix:]
    if patches.shape[1] < 2:
        count = f"{patches.shape[1]} of {tokens.shape[1]} tokens after {prefix} prefix tokens"
        raise ValueError(f"needs at least 2 patch tokens, not {count}")
    return patches


def _require_valid(valid: Tensor, batch: int, tokens: int) -> None:
    """Refuse a mask of tokens that is neither (batch, tokens) nor (1, tokens)."""
    if valid.ndim != 2 or valid.shape[0] not in (1, batch) or valid.shape[1] != tokens:
        raise ValueError(f"valid must be ({batch} or 1, {tokens}), not {tuple(valid.shape)}")


def _counts(valid: Tensor | None, unit: Tensor, prefix: int) -> tuple[Tensor, Tensor | float]:
    """The unit patches with those that are no valid tokens set to 0, and how many are left, (batch,)."""
    if valid is None:
        return unit, unit.shape[1]
    _require_valid(valid, len(unit), prefix + unit.shape[1])
    kept = valid[:, prefix:].to(unit).expand(len(unit), -1)
    count = kept.sum(1)
    if bool((count < 2).any()):
        raise ValueError(f"needs at least 2 valid patch tokens in every image, not {int(count.min())}")
    return unit * kept[..., None], count


@_term
def emb_cosine(
    h: Tensor, prefix: int = 1, *, abs: bool = False, include_diagonal: bool = True, valid: Tensor | None = None
) -> Tensor:
    """Mean cosine between the patch embeddings of one layer, averaged over the batch.

    Parameters
    ----------
    h : Tensor
        (batch, tokens, dim), for example the output of the last block before the final norm.
    prefix : int
        Class, distillation and register tokens to leave out, at the front.
    abs : bool
        Mean of absolute cosines; needs the n × n Gram matrix.
    include_diagonal : bool
        Count each patch with itself, as the published training does.
    valid : Tensor, optional
        (batch or 1, tokens) bool: tokens that are no padding; all by default.

    Returns
    -------
    Tensor
        Scalar. Signed and with the diagonal in [0, 1]: 1 when all patches are alike, 0 when the unit patches sum to zero; it is
        the share of their energy that is their mean.

    Raises
    ------
    ValueError
        Fewer than 2 patches, or values that are not finite.
    """
    unit, count = _counts(valid, _unit(_patches(h, prefix)), prefix)
    if abs:
        total = (unit @ unit.transpose(-2, -1)).abs().sum((-2, -1))
    else:
        total = unit.sum(1).square().sum(-1)
    if include_diagonal:
        return (total / count**2).mean()
    return ((total - unit.square().sum((-2, -1))) / (count * (count - 1))).mean()


@_term
def cross_layer_cosine(first: Tensor, later: Tensor, prefix: int = 1, *, abs: bool = True) -> Tensor:
    """Mean cosine between all patches of one layer and all of another.

    Parameters
    ----------
    first, later : Tensor
        (batch, tokens, dim).
        The numbers of their tokens may differ.
    abs : bool
        Mean of absolute cosines; needs the n × n matrix of them.

    Raises
    ------
    ValueError
        Batches or dims differ, there are fewer than 2 patches, or values are not finite.
    """
    require_tensors(later=later)
    if (first.shape[:1], first.shape[2:]) != (later.shape[:1], later.shape[2:]):
        shapes = f"{tuple(first.shape)} and {tuple(later.shape)}"
        raise ValueError(f"first and later must be alike but for their tokens, not {shapes}")
    left, right = _unit(_patches(first, prefix)), _unit(_patches(later, prefix))
    if not abs:
        return (left.mean(1) * right.mean(1)).sum(-1).mean()
    return (left @ right.transpose(-2, -1)).abs().mean()


@_term
def emb_contrast(h1: Tensor, hL: Tensor, prefix: int = 1, detach_first: bool = False, *, valid: Tensor | None = None) -> Tensor:
    """Keep each patch of the last layer closer to its own first embedding than the other patches are.

    mean of −log(e^{pos} / (e^{pos} + e^{neg})) = softplus(neg − pos), with pos the cosine of a patch's first and last embedding
    and neg the mean cosine of its first embedding with the last ones of the other patches; no temperature.

    Parameters
    ----------
    h1, hL : Tensor
        Input of the first block and output of the last, (batch, tokens, dim).
    prefix : int
        Tokens to leave out, at the front.
    detach_first : bool
        Keep gradients out of ``h1``, as DiversePatch does; the published training lets them through.
    valid : Tensor, optional
        (batch or 1, tokens) bool: tokens that are no padding; all by default. Every image weighs the same.

    Returns
    -------
    Tensor
        Scalar between softplus(−2) and softplus(2); ln 2 where patches cannot be told apart.

    Raises
    ------
    ValueError
        The two are of different shapes, there are fewer than 2 patches, or values are not finite.
    """
    require_tensors(hL=hL)
    if h1.shape != hL.shape:
        raise ValueError(f"h1 and hL must be of one shape, not {tuple(h1.shape)} and {tuple(hL.shape)}")
    first, last = _unit(_patches(h1, prefix)), _unit(_patches(hL, prefix))
    if detach_first:
        first = first.detach()
    last, count = _counts(valid, last, prefix)
    positive = (first * last).sum(-1)
    others = (first * last.sum(1, keepdim=True)).sum(-1) - positive
    if valid is None:
        return functional.softplus(others / (first.shape[1] - 1) - positive).mean()
    count = torch.as_tensor(count)[:, None]
    each = functional.softplus(others / (count - 1) - positive) * valid[:, prefix:].to(positive)
    return (each / count).sum(1).mean()


@_term
def attn_cosine(A: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Mean cosine between the flattened attention maps of a layer's heads, each with itself included.

    Parameters
    ----------
    A : Tensor
        (batch, heads, tokens, tokens), entries not negative; of talking heads and differential attention they may be.
    valid : Tensor, optional
        (batch or 1, tokens) bool: tokens that are no padding; all by default.

    Returns
    -------
    Tensor
        Scalar in [1 / heads, 1]; 1 when all heads attend alike.
    """
    if valid is not None:
        _require_valid(valid, len(A), A.shape[-1])
        A = A * (valid[:, None, :, None] & valid[:, None, None, :]).to(A)
    return head_cosine(at_least_float32(A.flatten(-2)), EPSILON, _mean_cosine)


def _mean_cosine(maps: Tensor) -> Tensor:
    """Mean cosine between flattened maps (batch, heads, n): the squared length of the mean unit map, averaged over the batch."""
    return _unit(maps).mean(1).square().sum(-1).mean()


def _rayleigh(weight: Tensor, shift: Tensor, vector: Tensor, eps: float) -> Tensor:
    """vᵀ (W Wᵀ − shift·I) v / (vᵀv + eps), and 0 for v = 0. ``weight``: (…, out, in), ``vector``: (…, out)."""
    image = (weight.transpose(-2, -1) @ vector[..., None])[..., 0]
    length = vector.square().sum(-1)
    quadratic = image.square().sum(-1) - shift * length
    return torch.where(length == 0, 0, quadratic / torch.where(length == 0, 1, length + eps))


def _power(weight: Tensor, shift: Tensor, vector: Tensor, steps: int, rescale: bool) -> Tensor:
    """Apply W Wᵀ − shift·I to a vector again and again, by matrix-vector products.

    With ``rescale`` the vector is brought to unit length after each step. A Rayleigh quotient does not see the length, nor do its
    gradients; without it, many steps end in underflow.
    """
    for _ in range(steps):
        image = weight @ (weight.transpose(-2, -1) @ vector[..., None])
        vector = image[..., 0] - shift[..., None] * vector
        if rescale:
            length = torch.linalg.vector_norm(vector.detach(), dim=-1, keepdim=True)
            vector = vector / torch.where(length == 0, 1, length)
    return vector


@_term
def cond_orth(
    W: Tensor,
    *,
    probes: tuple[Tensor, Tensor] | Tensor | None = None,
    exact: bool = False,
    steps: int = 1,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(λ_max − λ_min)² of W Wᵀ: 0 for a matrix with orthogonal rows of one length.

    By default the published surrogate: power steps from random probes, then Rayleigh quotients; gradients flow through all of it.
    One step underestimates (about 0.3 of the exact value for Gaussian matrices); more steps approach it.

    Parameters
    ----------
    W : Tensor
        (…, out, in). Transpose it for the variant over inputs.
    probes : pair of Tensor, optional
        Start vectors (…, out) for λ_max and for λ_min; uniform on [0, 1) by default, as published for weights.
    exact : bool
        Use all eigenvalues: O(out³), and no probes.
    steps : int
        Power steps.
    eps : float
        Added to the denominators; the published variants for embeddings and attention use 1e-6, with standard normal probes.
    generator : torch.Generator, optional
        Draws the probes.

    Returns
    -------
    Tensor
        (…,).

    Raises
    ------
    ValueError
        ``steps`` is not positive, a probe has another shape than (…, out), or values are not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    weight = at_least_float32(W)
    if exact:
        eigenvalues = torch.linalg.eigvalsh(weight @ weight.transpose(-2, -1))
        return (eigenvalues[..., -1] - eigenvalues[..., 0]).square()
    shape = weight.shape[:-1]
    if probes is None:
        device = generator.device if generator is not None else weight.device
        probes = torch.rand((2, *shape), generator=generator, device=device, dtype=weight.dtype)
    if len(probes) != 2 or any(probe.shape != shape for probe in probes):
        raise ValueError(f"probes must be two tensors of shape {tuple(shape)}, not {[tuple(probe.shape) for probe in probes]}")
    if steps == 1 and eps == 0:
        return power_condition(weight, torch.stack([probe.to(weight) for probe in probes]), _powered)
    return _powered(weight, probes, steps, eps)


def _powered(weight: Tensor, probes: tuple[Tensor, Tensor] | Tensor, steps: int = 1, eps: float = 0.0) -> Tensor:
    """The surrogate of :func:`cond_orth` step by step."""
    rescale = eps == 0
    first, second = (probe.to(weight) for probe in probes)
    zero = weight.new_zeros(weight.shape[:-2])
    largest = _rayleigh(weight, zero, _power(weight, zero, first, steps, rescale), eps)
    # the Rayleigh quotient of W Wᵀ − λ_max I is λ_min − λ_max
    return _rayleigh(weight, largest, _power(weight, largest, second, steps, rescale), eps).square()


@_term
def soft_orth(M: Tensor) -> Tensor:
    """‖M Mᵀ − I‖_F² of rows as they are; 0 for orthonormal rows. (…, n, d) → (…).

    As published: weights and flattened attention maps raw, embeddings with unit rows and all tokens; mean over the batch.
    """
    matrix = at_least_float32(M)
    gram = matrix @ matrix.transpose(-2, -1)
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum((-2, -1))


def _squared_distances(vectors: Tensor) -> Tensor:
    """2 − 2 cos between all rows, (…, n, d) → (…, n, n), whatever their lengths.

    Rows are made unit, and norms then taken as sqrt(sum of squares + 1e-8): cos is the product of unit rows / (1 + 1e-8). A row
    of zeros has no direction: its cosines are 0, and no gradient reaches it.
    """
    if vectors.shape[-2] < 2:
        raise ValueError(f"needs at least 2 rows, not {vectors.shape[-2]}")
    full = at_least_float32(vectors)
    peak = full.detach().abs().amax(-1, keepdim=True)
    scaled = full / torch.where(peak == 0, 1, peak)  # squares of very small numbers are 0, of very large ones infinite
    squares = scaled.square().sum(-1, keepdim=True)
    unit = scaled / torch.where(squares == 0, torch.inf, squares).sqrt()
    return 2 - 2 * (unit @ unit.transpose(-2, -1)) / (1 + EPSILON)


@_term
def mhs(vectors: Tensor) -> Tensor:
    """Minus the smallest squared distance between two different unit rows: maximum hyperspherical separation. (…, n, d) → (…).

    Equal rows, the worst redundancy, count with distance 0; where several pairs are closest, they share the gradient. The length
    of a row plays no part, and a row of zeros counts as orthogonal to all.

    Raises
    ------
    ValueError
        Fewer than 2 rows, or values that are not finite.
    """
    distances = _squared_distances(vectors)
    count = vectors.shape[-2]
    upper = torch.triu_indices(count, count, 1, device=vectors.device)
    return -distances[..., upper[0], upper[1]].amin(-1)


@_term
def mgd(vectors: Tensor) -> Tensor:
    """Minus log det of the Gaussian Gram matrix of the unit rows plus 1e-6·I: maximum Gram determinant. (…, n, d) → (…).

    The length of a row plays no part, and a row of zeros counts as orthogonal to all, itself included.

    Raises
    ------
    ValueError
        Fewer than 2 rows, or values that are not finite.
    """
    gram = torch.exp(-_squared_distances(vectors))
    return -torch.logdet(gram + GRAM_RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


@_term
def gradient_diversity(gradients: Tensor) -> Tensor:
    """Minus the mean over the batch of Σ‖g_i‖² / ‖Σ g_i‖²: −1 / n for equal gradients of n tokens.

    Parameters
    ----------
    gradients : Tensor
        (batch, tokens, dim): gradient of the loss in the tokens.

    Raises
    ------
    ValueError
        The gradients of a sample sum to zero, or hold values that are not finite.
    """
    full = at_least_float32(gradients)
    return -(full.square().sum((-2, -1)) / full.sum(1).square().sum(-1)).mean()
