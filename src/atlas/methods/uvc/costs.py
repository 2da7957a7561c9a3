"""The resource function R: multiply-accumulates left, relative to the dense model, and its analytic gradient.

The only place where costs enter the optimisation (Yu et al., ICLR 2022; the form is that of the authors' code). Per block of
width D, H heads of d dimensions (A = H·d), M hidden neurons and N tokens:

    qkv 3NDA · QKᵀ N²A · AV N²A · proj NAD · fc1 = fc2 NDM,

and N_p·D·C·P² for the patch embedding. Biases, norms, softmax, activation and classifier are left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape

Cost = Literal["physical", "paper"]


class ResourceFunction:
    """R and its gradient for one shape, with its constants on a device.

    Parameters
    ----------
    cost : {"physical", "paper"}
        ``physical`` is what the exported model costs. ``paper`` is the authors' formula, which never credits the removed rows
        of the value projection, so that paper ≥ physical, with equality without removed dims.
    """

    def __init__(self, shape: ViTShape, cost: Cost = "physical", like: Tensor | None = None) -> None:
        if cost not in ("physical", "paper"):
            raise ValueError(f"cost must be 'physical' or 'paper', not {cost!r}")
        like = torch.zeros(()) if like is None else like
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.shape = shape

        def tensor(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=like.device)

        heads, dims, neurons = (shape.per_block(name) for name in ("heads", "head_dim", "mlp_dim"))
        per_dim = shape.tokens * shape.embed_dim
        credited = 3 if cost == "paper" else 2  # thirds of qkv that go with heads; the others go with dims of values
        width = [a * b for a, b in zip(heads, dims, strict=True)]
        self.heads, self.dims, self.neurons = tensor([*heads]), tensor([*dims]), tensor([*neurons])
        self.width = self.heads * self.dims
        self.embed = shape.embed_macs / shape.full_macs
        self.attend = tensor([a * (credited * per_dim + shape.tokens**2) / shape.full_macs for a in width])
        self.values = tensor([a * ((4 - credited) * per_dim + shape.tokens**2) / shape.full_macs for a in width])
        self.mlp = tensor([m * shape.neuron_macs / shape.full_macs for m in neurons])
        head_exists = shape.dims_exist()[:, :, 0].to(like.device)
        self.ragged = None if bool(head_exists.all()) else head_exists

    def removed_heads(self, s: Tensor, head_scores: Tensor | None) -> Tensor:
        """(L, H) bool: the ⌈s1⌉ heads of lowest score of every block; among equals the lower index first."""
        scores = self.width.new_zeros(self.shape.depth, self.shape.widest[0]) if head_scores is None else head_scores.detach()
        if self.ragged is not None:
            scores = scores.masked_fill(~self.ragged, torch.inf)
        order = scores.sort(dim=-1, stable=True).indices
        below = torch.arange(scores.shape[-1], device=s.device) < s[:, :1].ceil()
        return torch.zeros_like(below).scatter(-1, order, below)

    def _kept(self, r: Tensor, removed: Tensor) -> Tensor:
        kept = ~removed
        return kept if self.ragged is None else kept & self.ragged

    def brackets(self, s: Tensor, r: Tensor, removed: Tensor) -> Tensor:
        """(L,) cost of every block, relative to the dense model, if it is kept."""
        s = s.detach().ceil()
        heads = 1 - s[:, 0] / self.heads
        neurons = 1 - s[:, 1] / self.neurons
        dims = (r.detach().ceil() * self._kept(r, removed)).sum(-1)
        values = (self.width - s[:, 0] * self.dims - dims) / self.width
        return self.attend * heads + self.values * values + self.mlp * neurons

    def value(self, brackets: Tensor, keep: Tensor | None) -> Tensor:
        """R, a scalar, from the costs (L,) of the blocks and their keep weights (L,)."""
        return self.embed + (brackets if keep is None else keep * brackets).sum()

    def slopes(self, r: Tensor, removed: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """(∂R/∂s (L, 2), ∂R/∂r (L, H)), with ceil as the identity."""
        keep = torch.ones_like(self.width) if keep is None else keep
        per_head = -keep * (self.attend / self.heads + self.values * self.dims / self.width)
        per_neuron = -keep * self.mlp / self.neurons
        per_dim = (-keep * self.values / self.width)[:, None] * self._kept(r, removed)
        return torch.stack((per_head, per_neuron), -1), per_dim


def _checked(shape: ViTShape, s: Tensor, r: Tensor, keep: Tensor | None, head_scores: Tensor | None) -> None:
    """Refuse tensors of other sizes than the model's blocks and heads."""
    wanted = ((shape.depth, 2), (shape.depth, shape.widest[0]))
    if (tuple(s.shape), tuple(r.shape)) != wanted:
        raise ValueError(f"s and r must be {wanted[0]} and {wanted[1]}, not {tuple(s.shape)} and {tuple(r.shape)}")
    for name, value, size in (("keep", keep, (shape.depth,)), ("head_scores", head_scores, wanted[1])):
        if value is not None and tuple(value.shape) != size:
            raise ValueError(f"{name} must be {size}, not {tuple(value.shape)}")
    heads, dims, neurons = (torch.tensor(shape.per_block(part)) for part in ("heads", "head_dim", "mlp_dim"))
    _within("s", s, torch.stack((heads, neurons), -1))
    _within("r", r, dims[:, None].expand(r.shape))
    if keep is not None:
        _within("keep", keep, torch.ones(shape.depth))


def _within(name: str, values: Tensor, top: Tensor) -> None:
    """Refuse what is removed, or kept, beyond what there is, or below nothing; ``top`` has the shape of the values."""
    values = values.detach().cpu()
    wrong = ~((values >= 0) & (values <= top))
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}{place} is {float(values[tuple(place)]):g}: it must be from 0 to {float(top[tuple(place)]):g}")


def resource(
    shape: ViTShape,
    s: Tensor,
    r: Tensor,
    keep: Tensor | None = None,
    head_scores: Tensor | None = None,
    cost: Cost = "physical",
) -> Tensor:
    """Multiply-accumulates left, relative to the dense model.

    Parameters
    ----------
    shape : ViTShape
        Of the dense model.
    s : Tensor
        (L, 2): heads and neurons removed from every block, real; the ceiling is what counts.
    r : Tensor
        (L, H): dims removed inside every head. Those of heads that are removed themselves do not count twice.
    keep : Tensor, optional
        (L,) keep weights of the blocks in [0, 1]; all 1 by default. Differentiable.
    head_scores : Tensor, optional
        (L, H): the heads of lowest score are the ones removed; the first ones by default.
    cost : {"physical", "paper"}
        See :class:`ResourceFunction`.

    Returns
    -------
    Tensor
        Scalar in (0, 1].

    Raises
    ------
    ValueError
        A tensor is of another shape, or beyond what the model has; or the cost is neither. Says what would be right.
    """
    _checked(shape, s, r, keep, head_scores)
    function = ResourceFunction(shape, cost, s)
    return function.value(function.brackets(s, r, function.removed_heads(s, head_scores)), keep)


def resource_grad(
    shape: ViTShape,
    s: Tensor,
    r: Tensor,
    keep: Tensor | None = None,
    head_scores: Tensor | None = None,
    cost: Cost = "physical",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of :func:`resource`, with ceil as the identity, in closed form.

    No ratio is clamped: every ratio starts at exactly 1, where the gradient of a clamp may be 0.

    Returns
    -------
    tuple of Tensor
        (∂R/∂s (L, 2), ∂R/∂r (L, H), ∂R/∂keep (L,)); 0 in r for heads that are removed.

    Raises
    ------
    ValueError
        As :func:`resource`.
    """
    _checked(shape, s, r, keep, head_scores)
    function = ResourceFunction(shape, cost, s)
    removed = function.removed_heads(s, head_scores)
    return (*function.slopes(r, removed, keep), function.brackets(s, r, removed))
