"""Training a selective model on sequences, and the front of accuracy against cost over λ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.vfds.losses import Loss, arm_loss, check_lambda, lambda_at, selection_loss
from atlas.methods.vfds.model import FILL, Rollout, SelectiveGRU
from atlas.methods.vfds.sweep import Sweep
from atlas.nn.bars import track
from atlas.nn.examples import gathered, require_numbers
from atlas.nn.precision import forget_casts
from atlas.nn.sequences import check_complete, check_labels, labelled, valid_steps

LEARNING_RATE = 3e-3
LOGIT_LEARNING_RATE = 0.05
"""For the free logits of the static policy: at the weights' rate they hardly move in some hundred steps."""


def parameter_groups(
    model: nn.Module, learning_rate: float = LEARNING_RATE, logit_learning_rate: float = LOGIT_LEARNING_RATE
) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: the static policy's logits have a rate of their own."""
    logits = [parameter for name, parameter in model.named_parameters() if name.endswith("static_logits")]
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("static_logits")]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": learning_rate}]
    return groups + ([{"params": logits, "lr": logit_learning_rate}] if logits else [])


def training_loss(
    model: SelectiveGRU | Sweep,
    x: Tensor,
    y: Tensor,
    *,
    lam: float | Tensor,
    cost: Tensor | None = None,
    lengths: Tensor | None = None,
    noise: Tensor | None = None,
    **options: Any,
) -> Loss:
    """Loss of the model's own kind on x (B, T, D): of its relaxation, or of a pair of trajectories for ARM; a sweep's are (M,).

    The other parameters, ``options`` among them, are those of :func:`.losses.selection_loss` and :func:`.losses.arm_loss`; a
    batch in which chance left no label has a task loss of 0.
    """
    template = model.template if isinstance(model, Sweep) else model
    cost = (template.groups.cost if cost is None else cost).to(x)
    if template.arm:
        return arm_loss(model, x, y, lam=lam, cost=cost, lengths=lengths, noise=noise, allow_unlabelled=True, **options)
    rollout = model(x, lengths=lengths, noise=noise, gates="relaxed")
    return rollout_loss(template, rollout, y, lam=lam, cost=cost, **options)


def rollout_loss(
    template: SelectiveGRU, rollout: Rollout, y: Tensor, *, lam: float | Tensor, cost: Tensor, **options: Any
) -> Loss:
    """The loss of what a model, or several like ``template``, did with sequences; not for ARM, which needs two of them.

    Labels ``y`` are (B, T), or (B, T, C) of several labels; ``cost`` is (G,), ``lam`` a number or (M,). A batch without a label
    has a task loss of 0.
    """
    if template.policy not in ("dynamic", "static"):
        lam = 0.0  # nothing to learn about cost: the gates are given, or (attention) the paper's code asks nothing for them
    return selection_loss(rollout, y, cost=cost, lam=lam, allow_unlabelled=True, **options)


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: SelectiveGRU,
    dataset: Any,
    *,
    lam: float,
    steps: int,
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None = None,
    warmup: float = 0.25,
    seed: int = 0,
    batch_size: int = 32,
    clip_norm: float | None = 1.0,
    lengths: Tensor | None = None,
    ignore_index: int = -1,
    progress: bool | None = None,
    **options: Any,
) -> list[dict[str, float]]:
    """Train a model in place.

    Parameters
    ----------
    dataset : pair of tensors or arrays, Dataset, or DataLoader
        x (N, T, D), of the type of the model's weights, and y (N, T[, C]); or a dataset of such pairs of one length, or a loader,
        which is passed over once. Every value that may be read must be finite. No gradient goes back to them.
        Stretches and whole sequences may be unlabelled: a batch of such alone adds nothing to the task's part of the loss.
    lam : float
        λ, in nats; 0 asks nothing for acquisition.
    steps : int
        Number of optimiser steps.
    optimizer : callable, optional
        Makes an optimiser of parameter groups; by default Adam at 3e−3, 0.05 for static logits.
    warmup : float
        Part of the steps in which λ rises linearly from 0; without it a large λ closes all gates for good.
    seed : int
        Of the order of the data and, apart from it, of the gates' noise.
    clip_norm : float, optional
        Largest norm of the gradient: a relaxed gate's slope reaches 1 / 4τ.
    lengths : LongTensor, optional
        (N,) valid steps of padded sequences, from 1 to T; they go with their sequences into every batch.
    ignore_index : int
        Label of unlabelled steps.
    progress : bool, optional
        Whether to draw a bar; by default on a terminal.
    options
        Of :func:`.losses.selection_loss` or :func:`.losses.arm_loss`, but for ``allow_unlabelled``, which is so here.

    Returns
    -------
    list of dict
        total, task and cost_fraction of every step.

    Raises
    ------
    TypeError
        The dataset is none of these, or x has another type than the model's weights.
    ValueError
        λ is negative, ``steps`` or ``batch_size`` is less than 1, ``warmup`` is outside [0, 1], or ``clip_norm`` is not positive;
        x holds NaN or infinity where it may be read; a label is out of range or no whole number; nothing is labelled; or the
        shapes of x, y and lengths do not fit.
    FloatingPointError
        The loss or its gradient is no longer finite: the learning rate is too large.
    """
    check_lambda(lam)
    require_numbers(steps=steps, batch_size=batch_size, warmup=warmup, seed=seed)
    if steps < 1 or batch_size < 1 or not 0 <= warmup <= 1:
        raise ValueError(f"steps {steps} and batch_size {batch_size} must be positive, warmup {warmup} in [0, 1]")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, not {clip_norm}")
    device = next(model.parameters()).device
    x, y = (part.detach().to(device) for part in _tensors(dataset))
    lengths = None if lengths is None else torch.as_tensor(lengths, device=device)
    check_data(model, x, y, lengths, ignore_index)
    groups = parameter_groups(model)
    optimiser = torch.optim.Adam(groups) if optimizer is None else optimizer(groups)
    order, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 2**32)
    curve = []
    for step in track(range(steps), "fit", steps, progress):
        chosen = torch.randint(len(x), (min(batch_size, len(x)),), generator=order).to(x.device)
        drawn = torch.rand(x.shape[1], len(chosen), model.groups.n_groups, generator=noise).clamp(1e-6, 1 - 1e-6)
        loss = training_loss(
            model,
            x[chosen],
            y[chosen],
            lam=lambda_at(step, steps, lam, warmup),
            lengths=None if lengths is None else lengths[chosen],
            noise=drawn.to(x),
            ignore_index=ignore_index,
            **options,
        )
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip_norm is None else clip_norm)
        if not bool(torch.isfinite(loss.total.detach()) & torch.isfinite(norm)):
            values = f"the loss is {float(loss.total.detach())} and its gradient's norm {float(norm)}"
            raise FloatingPointError(f"{values} at step {step + 1}; a smaller learning rate may help")
        optimiser.step()
        forget_casts()
        curve.append({name: float(value.detach()) for name, value in loss._asdict().items()})
    return curve


def check_data(model: SelectiveGRU, x: Tensor, y: Tensor, lengths: Tensor | None, ignore_index: int) -> None:
    """Refuse data (N, T, D) that a model cannot learn from, before any of it is spent.

    Raises
    ------
    TypeError, ValueError
        As :func:`fit` says.
    """
    if not len(x):
        raise ValueError("x holds no sequence")
    own = next(model.parameters()).dtype
    if x.dtype != own:
        raise TypeError(f"x is {x.dtype}, and the model's weights are {own}: bring x to {own}")
    model.check_input(x, "sample", lengths)
    if y.shape[:2] != x.shape[:2] or y.shape[2:] not in ((), (model.n_outputs,)):
        wanted = f"{tuple(x.shape[:2])} or {(*x.shape[:2], model.n_outputs)}"
        raise ValueError(f"y must have shape {wanted}, not {tuple(y.shape)}")
    valid = valid_steps(lengths, x.shape[1])
    read = model.readable(x.shape[1]).to(x.device)
    check_complete("x", x, read if valid is None else read & valid[..., None], remedy=FILL)
    known = labelled(y, valid, ignore_index)
    check_labels(y, known, model.n_outputs)
    if not bool(known.any()):
        raise ValueError(f"y labels no step: every entry is {ignore_index}" + (" or padding" if lengths is not None else ""))


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    try:
        return gathered(dataset, "the dataset")
    except ValueError as error:
        raise ValueError(f"{error}; pad sequences to one length, and give their lengths as an argument of its own") from None


@dataclass(frozen=True)
class Point:
    """One trained model on the front: λ, seed, share of the cost, and accuracy, both in [0, 1]."""

    lam: float
    seed: int
    fraction: float
    accuracy: float


@dataclass(frozen=True)
class Front:
    """Accuracy against cost over λ and seeds."""

    points: tuple[Point, ...]

    def mean(self) -> Front:
        """Front of the means over seeds: one point per λ, of the seed −1."""
        means = []
        for lam in sorted({point.lam for point in self.points}):
            own = [point for point in self.points if point.lam == lam]
            fraction, accuracy = (sum(values) / len(own) for values in zip(*((p.fraction, p.accuracy) for p in own), strict=True))
            means.append(Point(lam, -1, fraction, accuracy))
        return Front(tuple(means))

    def efficient(self) -> Front:
        """The points that no other point beats in both accuracy and cost, by rising cost."""
        kept: list[Point] = []
        for point in sorted(self.points, key=lambda point: (point.fraction, -point.accuracy)):
            if not kept or point.accuracy > kept[-1].accuracy:
                kept.append(point)
        return Front(tuple(kept))

    def interpolate(self, fraction: float) -> float:
        """Accuracy at a cost, linear between neighbours (two models mixed by chance reach it), constant beyond the ends."""
        points = sorted(self.points, key=lambda point: point.fraction)
        if not points:
            raise ValueError("the front has no point")
        if fraction <= points[0].fraction:
            return points[0].accuracy
        for low, high in pairwise(points):
            if fraction <= high.fraction:
                share = (fraction - low.fraction) / (high.fraction - low.fraction)
                return low.accuracy + share * (high.accuracy - low.accuracy)
        return points[-1].accuracy

    def cheapest(self, accuracy: float) -> float | None:
        """Smallest cost of a point that is at least that accurate, or ``None``."""
        return min((point.fraction for point in self.points if point.accuracy >= accuracy), default=None)


def pareto(model_fn: Callable[[float, int], tuple[float, float]], lams: Sequence[float], seeds: Sequence[int]) -> Front:
    """Front of accuracy against cost.

    Parameters
    ----------
    model_fn : callable
        ``model_fn(lam, seed)`` trains a model and returns its (cost fraction, accuracy), on data that it was not trained on.

    Raises
    ------
    ValueError
        There is no λ or no seed, a λ is negative, or a result is not finite.
    """
    if not lams or not seeds:
        raise ValueError("a front needs at least one λ and one seed")
    for lam in lams:
        check_lambda(lam)
    points = [Point(lam, seed, *model_fn(lam, seed)) for lam in lams for seed in seeds]
    for point in points:
        if not (math.isfinite(point.fraction) and math.isfinite(point.accuracy)):
            values = f"cost fraction {point.fraction} and accuracy {point.accuracy}"
            raise ValueError(f"the model of λ = {point.lam} and seed {point.seed} has {values}; both must be finite")
    return Front(tuple(points))
