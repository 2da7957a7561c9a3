"""Regularisers of redundancy (Chen et al., CVPR 2022, Sec. 3): every function is to be minimised.

The cosine and contrastive terms over n vectors are written so that they cost n instead of n²: the mean over all ordered pairs of
unit vectors, each with itself included, is the squared length of their mean. Terms are computed in float32 or better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from atlas.nn.vit import at_least_float32

EPSILON = 1e-8
GRAM_RIDGE = 1e-6


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(at_least_float32(vectors), dim=-1, eps=EPSILON)


def _patches(tokens: Tensor, prefix: int) -> Tensor:
    patches = tokens[:, prefix:]
    if patches.shape[1] < 2:
        raise ValueError(
            f"needs at least 2 patch tokens, not {patches.shape[1]} of {tokens.shape[1]} tokens after {prefix} prefix tokens"
        )
    return patches


def emb_cosine(h: Tensor, prefix: int = 1, *, abs: bool = False, include_diagonal: bool = True) -> Tensor:
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

    Returns
    -------
    Tensor
        Scalar in [0, 1] with the diagonal and signed; 1 when all patches are alike.
    """
    unit = _unit(_patches(h, prefix))
    count = unit.shape[1]
    if abs:
        total = (unit @ unit.transpose(-2, -1)).abs().sum((-2, -1))
    else:
        total = unit.sum(1).square().sum(-1)
    if include_diagonal:
        return (total / count**2).mean()
    return ((total - unit.square().sum((-2, -1))) / (count * (count - 1))).mean()


def cross_layer_cosine(first: Tensor, later: Tensor, prefix: int = 1, *, abs: bool = True) -> Tensor:
    """Mean cosine between all patches of one layer and all of another; an alternative at the embedding level."""
    left, right = _unit(_patches(first, prefix)), _unit(_patches(later, prefix))
    if not abs:
        return (left.mean(1) * right.mean(1)).sum(-1).mean()
    return (left @ right.transpose(-2, -1)).abs().mean()


def emb_contrast(h1: Tensor, hL: Tensor, prefix: int = 1, detach_first: bool = False) -> Tensor:
    """Keep each patch of the last layer closer to its own first embedding than to the others'.

    mean of −log(e^{pos} / (e^{pos} + e^{neg})) = softplus(neg − pos), with pos the cosine of a patch's first and last
    embedding and neg the mean cosine of its first embedding with the last ones of the other patches; no temperature.

    Parameters
    ----------
    h1, hL : Tensor
        Input of the first block and output of the last, (batch, tokens, dim).
    detach_first : bool
        Keep gradients out of ``h1``, as DiversePatch does; the published training lets them through.

    Returns
    -------
    Tensor
        Scalar between softplus(−2) and softplus(2); ln 2 where patches cannot be told apart.
    """
    first, last = _unit(_patches(h1, prefix)), _unit(_patches(hL, prefix))
    if detach_first:
        first = first.detach()
    positive = (first * last).sum(-1)
    others = (first * last.sum(1, keepdim=True)).sum(-1) - positive
    return functional.softplus(others / (first.shape[1] - 1) - positive).mean()


def attn_cosine(A: Tensor) -> Tensor:
    """Mean cosine between the flattened attention maps of a layer's heads, each with itself included.

    Parameters
    ----------
    A : Tensor
        (batch, heads, tokens, tokens).

    Returns
    -------
    Tensor
        Scalar in [1 / heads, 1]; 1 when all heads attend alike.
    """
    return _unit(A.flatten(-2)).mean(1).square().sum(-1).mean()


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

    By default the published surrogate: power steps from random probes, then Rayleigh quotients; gradients flow through all. One
    step underestimates (about 0.3 of the exact value for Gaussian matrices); more steps approach it.

    Parameters
    ----------
    W : Tensor
        (…, out, in).
    probes : pair of Tensor, optional
        Start vectors (…, out) for λ_max and for λ_min; uniform on [0, 1) by default.
    exact : bool
        Use all eigenvalues.
    steps : int
        Power steps.
    eps : float
        Added to denominators.
    generator : torch.Generator, optional
        Draws the probes.

    Returns
    -------
    Tensor
        (…,).

    Raises
    ------
    ValueError
        ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    weight = at_least_float32(W)
    if exact:
        eigenvalues = torch.linalg.eigvalsh(weight @ weight.transpose(-2, -1))
        return (eigenvalues[..., -1] - eigenvalues[..., 0]).square()
    if probes is None:
        shape = (2, *weight.shape[:-1])
        device = generator.device if generator is not None else weight.device
        probes = torch.rand(shape, generator=generator, device=device, dtype=weight.dtype).to(weight.device)
    first, second = (probe.to(weight).reshape(weight.shape[:-1]) for probe in (probes[0], probes[1]))

    def through(vector: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀv and W Wᵀv, by matrix-vector products."""
        inner = (weight.transpose(-2, -1) @ vector[..., None])[..., 0]
        return inner, (weight @ inner[..., None])[..., 0]

    def shortened(vector: Tensor) -> Tensor:
        """The same direction at a length that further steps cannot overflow; the quotients do not depend on it."""
        return vector / vector.detach().norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)

    vector = first
    for step in range(steps):
        vector = through(vector if step == 0 else shortened(vector))[1]
    largest = through(vector)[0].square().sum(-1) / (vector.square().sum(-1) + eps)
    vector = second
    for step in range(steps):
        vector = vector if step == 0 else shortened(vector)
        vector = through(vector)[1] - largest[..., None] * vector
    gap = through(vector)[0].square().sum(-1) / (vector.square().sum(-1) + eps) - largest
    return gap.square()


def soft_orth(M: Tensor) -> Tensor:
    """‖M Mᵀ − I‖_F² of rows as they are; 0 for orthonormal rows. (…, n, d) → (…)."""
    matrix = at_least_float32(M)
    gram = matrix @ matrix.transpose(-2, -1)
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum((-2, -1))


def _squared_distances(vectors: Tensor) -> Tensor:
    """2 − 2 cos between all rows, with a smooth norm."""
    full = at_least_float32(vectors)
    unit = full / (full.square().sum(-1, keepdim=True) + EPSILON).sqrt()
    return 2 - 2 * unit @ unit.transpose(-2, -1)


def mhs(vectors: Tensor) -> Tensor:
    """Minus the smallest squared distance between two different unit rows: maximum hyperspherical separation. (…, n, d) → (…).

    Equal rows count, with distance 0.
    """
    count = vectors.shape[-2]
    if count < 2:
        raise ValueError(f"needs at least 2 rows, not {count}")
    upper = torch.triu_indices(count, count, 1, device=vectors.device)
    return -_squared_distances(vectors)[..., upper[0], upper[1]].amin(-1)


def mgd(vectors: Tensor) -> Tensor:
    """Minus log det of the Gaussian Gram matrix of the unit rows plus 1e-6·I: maximum Gram determinant. (…, n, d) → (…)."""
    gram = torch.exp(-_squared_distances(vectors))
    return -torch.logdet(gram + GRAM_RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


def gradient_diversity(gradients: Tensor) -> Tensor:
    """Minus the mean of Σ‖g_i‖² / ‖Σ g_i‖² over the batch. ``gradients``: (batch, tokens, dim)."""
    full = at_least_float32(gradients)
    return -(full.square().sum((-2, -1)) / full.sum(1).square().sum(-1)).mean()
