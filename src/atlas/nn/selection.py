"""What a policy acquired, and whether that depends on what happens: cost fractions, profiles, drift, recovery, reaction.

Gates are (batch, steps, gates) tensors of values in [0, 1]; step 0 is given to the policy, not decided by it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atlas.nn.sequences import check_complete, check_lengths, first_place, valid_steps


def check_cost(cost: Tensor) -> None:
    """Refuse costs (G,) that are negative, not finite, or all zero.

    Raises
    ------
    ValueError
        They are.
    """
    wrong = ~(cost.isfinite() & (cost >= 0))
    if bool(wrong.any()):
        (index,) = first_place(wrong)
        raise ValueError(f"costs must be finite and not negative; cost[{index}] is {cost[index].item()}")
    if not bool((cost > 0).any()):
        raise ValueError("all costs are zero; at least one must be positive")


class Fractions(NamedTuple):
    """Shares of the cost of all gates at all steps, in [0, 1].

    Attributes
    ----------
    steady : float
        Steps after the first over steps after the first: what the policy decides.
    total : float
        All steps, the given first one included.
    official : float
        Steps after the first over all steps, as the official code counts: steady · (T − 1) / T.
    """

    steady: float
    total: float
    official: float


def fractions(gates: Tensor, cost: Tensor | None = None, lengths: Tensor | None = None) -> Fractions:
    """Count what gates (B, T, G) acquired, weighted by cost (G,), over valid steps. Gates may carry a gradient; counts do not.

    Raises
    ------
    ValueError
        Shapes do not fit; a cost is negative or not finite, or all are zero; lengths (B,) are not from 1 to T; or a gate at a
        valid step is not finite.
    """
    if gates.ndim != 3:
        raise ValueError(f"gates must have shape (batch, steps, gates), not {tuple(gates.shape)}")
    weight = torch.ones(gates.shape[-1]) if cost is None else cost.detach()
    if weight.shape != gates.shape[-1:]:
        raise ValueError(f"there are {gates.shape[-1]} gates, but costs of shape {tuple(weight.shape)}")
    check_cost(weight)
    check_lengths(lengths, *gates.shape[:2])
    valid = valid_steps(lengths, gates.shape[1])
    valid = torch.ones(gates.shape[:2], dtype=torch.bool, device=gates.device) if valid is None else valid
    check_complete("gates", gates, valid[..., None])
    spent = gates.detach().double() @ (weight / weight.sum()).to(gates.device).double()  # (B, T)
    spent = torch.where(valid, spent, 0)
    later, count = spent[:, 1:].sum(), valid.sum()
    decided = valid[:, 1:].sum().clamp(min=1)
    return Fractions(float(later / decided), float(spent.sum() / count), float(later / count))


def activity_profile(gates: Tensor, labels: Tensor, n_classes: int, skip_first: bool = True) -> Tensor:
    """Mean gate per label: which features each activity asks for.

    Parameters
    ----------
    gates : Tensor
        (B, T, G).
    labels : Tensor
        (B, T) classes, negative where unlabelled; or (B, T, C) of several labels, present where positive.
    skip_first : bool
        Leave out step 0, whose gates nobody decided (the official script counts it).

    Returns
    -------
    Tensor
        (C, G); NaN for a class that does not occur.

    Raises
    ------
    ValueError
        Shapes do not fit, a class is out of range, or a gate is not finite.
    """
    if gates.ndim != 3 or labels.shape[:2] != gates.shape[:2]:
        raise ValueError(f"gates {tuple(gates.shape)} and labels {tuple(labels.shape)} do not fit")
    check_complete("gates", gates)
    if labels.ndim == 2:
        if int(labels.max()) >= n_classes:
            raise ValueError(f"labels go up to {int(labels.max())}, but there are {n_classes} classes")
        present = labels[..., None] == torch.arange(n_classes, device=labels.device)
    else:
        if labels.shape[-1] != n_classes:
            raise ValueError(f"labels have {labels.shape[-1]} columns, but there are {n_classes} classes")
        present = labels > 0
    start = 1 if skip_first else 0
    weight = present[:, start:].flatten(0, 1).to(gates.dtype)
    return weight.T @ gates[:, start:].flatten(0, 1) / weight.sum(0)[:, None]


def context_drift(profile: Tensor) -> float:
    """Mean over classes and gates of |M[c, j] − mean_c M[c, j]|: 0 if selection does not depend on the class.

    ``profile``: (C, G) of :func:`activity_profile`; classes that do not occur are left out.
    """
    seen = profile.detach()[~profile.isnan().any(-1)].double()
    if not len(seen):
        return 0.0
    centred = seen - seen[:1]  # exactly zero, without rounding, where all classes agree
    return float((centred - centred.mean(0)).abs().mean())


def drift_null(gates: Tensor, labels: Tensor, n_classes: int, *, draws: int = 200, seed: int = 0) -> Tensor:
    """Context drift of shuffled labels: whole label sequences are dealt to other sequences. (draws,)."""
    generator = torch.Generator().manual_seed(seed)
    drifts = []
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        drifts.append(context_drift(activity_profile(gates, labels[order], n_classes)))
    return torch.tensor(drifts)


def recovery_f1(profile: Tensor, truth: Tensor, threshold: float = 0.5) -> float:
    """F1 score of mean gates above a threshold against the mask of what is informative, over all classes and features.

    ``profile``, ``truth``: (C, G).
    """
    chosen, wanted = profile > threshold, truth.bool()
    both = (chosen & wanted).sum()
    return float(2 * both / (chosen.sum() + wanted.sum()).clamp(min=1))


def steady_context(context: Tensor) -> Tensor:
    """(B, T) booleans: steps t ≥ 1 whose context is that of the step before."""
    same = torch.zeros_like(context, dtype=torch.bool)
    same[:, 1:] = context[:, 1:] == context[:, :-1]
    return same


def reaction(gates: Tensor, context: Tensor, truth: Tensor, horizon: int = 8) -> Tensor:
    """Mean gate on the new context's features, k = 0 … ``horizon`` − 1 steps after a switch.

    Parameters
    ----------
    gates : Tensor
        (B, T, G).
    context : LongTensor
        (B, T).
    truth : Tensor
        (K, G): what is informative in each context.

    Returns
    -------
    Tensor
        (horizon,); NaN where no switch is followed that long without another.
    """
    wanted = truth.to(gates)[context]
    level = (gates * wanted).sum(-1) / wanted.sum(-1)
    since = torch.full_like(context, -1)
    for step in range(1, context.shape[1]):
        switched = context[:, step] != context[:, step - 1]
        going_on = torch.where(since[:, step - 1] >= 0, since[:, step - 1] + 1, -1)
        since[:, step] = torch.where(switched, 0, going_on)
    return torch.stack([level[since == k].mean() for k in range(horizon)])
