"""What is minimised: task loss plus λ times the fraction of the cost that is spent, and its gradient estimators for hard gates.

The abstract states the trade-off; the official code minimises exactly cross-entropy + λ · mean gates. The reading of it as a
variational objective with a Bernoulli prior is ours, see :func:`selection_loss`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from atlas.methods.vfds.estimators import bernoulli_entropy, bernoulli_kl, check_noise, logistic_noise, uniform_noise
from atlas.methods.vfds.model import Rollout, SelectiveGRU
from atlas.methods.vfds.settings import CostNorm, SelectionSettings
from atlas.nn.examples import as_tensor
from atlas.nn.selection import check_cost
from atlas.nn.sequences import check_labels, first_place, labelled, valid_steps

DEFAULT = SelectionSettings()
Kappa = float | Tensor | Literal["lambda"]


class Loss(NamedTuple):
    """Scalars, or (M,) for M models at once.

    Attributes
    ----------
    total : Tensor
        What to differentiate.
    task : Tensor
        Mean cross-entropy (binary cross-entropy for several labels) over labelled steps, in nats; 0 where a batch without any is
        allowed.
    cost_fraction : Tensor
        Cost of the acquired gates over the cost of all, in [0, 1].
    """

    total: Tensor
    task: Tensor
    cost_fraction: Tensor


def check_lambda(lam: float | Tensor) -> None:
    """Refuse a negative λ, or one that is not a number; several of them are (M,).

    Raises
    ------
    TypeError
        It is of another type.
    ValueError
        It is negative or not finite.
    """
    values = as_tensor([lam] if hasattr(lam, "__float__") else lam, "λ")
    if bool((values < 0).any()) or not bool(torch.isfinite(values).all()):
        raise ValueError(f"λ must be finite and not negative, not {lam}")


def step_task_loss(
    logits: Tensor, y: Tensor, valid: Tensor | None, ignore_index: int = -1, allow_unlabelled: bool = False
) -> Tensor:
    """Contribution of every step to the mean task loss: (…, B, T), zero where there is no label.

    Parameters
    ----------
    logits : Tensor
        (…, B, T, C).
    y : Tensor
        (B, T) classes, ``ignore_index`` where unlabelled; or (B, T, C) of 0, 1 and ``ignore_index`` for several labels. Whole
        numbers of any type; padding may hold anything.
    valid : Tensor, optional
        (B, T) booleans, false for padding.
    allow_unlabelled : bool
        Let a batch without any label contribute nothing, instead of refusing it: chance may draw one from data with unlabelled
        stretches. To refuse it, the host waits for the device once.

    Raises
    ------
    ValueError
        Shapes do not fit, a label is out of range or no whole number, or no step has one.
    """
    shape = logits.shape[-3:]
    if y.shape not in (shape, shape[:-1]):
        raise ValueError(f"y must have shape {tuple(shape[:-1])} or {tuple(shape)}, not {tuple(y.shape)}")
    known = labelled(y, valid, ignore_index)
    check_labels(y, known, shape[-1])
    if not allow_unlabelled and not bool(known.any()):
        padding = "" if valid is None else " or padding"
        raise ValueError(
            f"y labels no step: every entry is {ignore_index}{padding}; label at least one, or ask for allow_unlabelled"
        )
    count = known.sum().clamp(min=1)
    if y.ndim == 3:
        target = torch.where(known, y, 0).to(logits)
        target = target.expand(logits.shape)
        each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return torch.where(known, each, 0).sum(-1) / count
    classes = torch.where(known, y, 0).long()
    index = classes.expand(logits.shape[:-1]).unsqueeze(-1)
    each = logits.logsumexp(-1) - logits.gather(-1, index).squeeze(-1)
    return torch.where(known, each, 0) / count


def step_cost(gates: Tensor, cost: Tensor, lengths: Tensor | None = None, norm: CostNorm = DEFAULT.cost_norm) -> Tensor:
    """Contribution of every step to the cost fraction: (…, B, T), zero at the first step, which nobody decides.

    ``"steady"`` divides by the (valid) steps after the first, so that all gates on are 1; ``"official"`` divides by all steps, so
    that they are (T − 1) / T.

    Raises
    ------
    ValueError
        Costs do not fit the gates, or are not valid.
    """
    if cost.shape != gates.shape[-1:]:
        raise ValueError(f"there are {gates.shape[-1]} gates, but costs of shape {tuple(cost.shape)}")
    check_cost(cost)
    if norm not in ("steady", "official"):
        raise ValueError(f"there is no cost norm {norm}; choose from steady, official")
    batch, steps = gates.shape[-3:-1]
    spent = gates @ (cost / cost.sum()).to(gates)
    counted = torch.ones(batch, steps, dtype=torch.bool, device=gates.device)
    counted[:, 0] = False
    valid = valid_steps(lengths, steps)
    if valid is not None:
        counted = counted & valid
    total = counted.sum() if norm == "steady" else (batch * steps if lengths is None else lengths.sum())
    return torch.where(counted, spent, 0) / torch.as_tensor(total).clamp(min=1)


def selection_loss(
    rollout: Rollout,
    y: Tensor,
    *,
    cost: Tensor,
    lam: float | Tensor,
    entropy_weight: float = DEFAULT.entropy_weight,
    cost_norm: CostNorm = DEFAULT.cost_norm,
    ignore_index: int = -1,
    prior: Literal["bernoulli"] | None = None,
    allow_unlabelled: bool = False,
) -> Loss:
    """CE + λ K − η · mean entropy of the gates, on relaxed or straight-through gates.

    Parameters
    ----------
    rollout : Rollout
        Of :class:`.model.SelectiveGRU`.
    y : Tensor
        Labels, see :func:`step_task_loss`.
    cost : Tensor
        (G,) cost of every gate.
    lam : float or Tensor
        λ ≥ 0 in nats; (M,) for M models.
    entropy_weight : float
        η ≥ 0: 0 is the official objective; on a common scale with ``prior``, 1 is the evidence lower bound.
    cost_norm : {"steady", "official"}
        See :func:`step_cost`.
    prior : {"bernoulli"}, optional
        Puts mean KL(Bern(σ(α)) ‖ Bern(σ(−λ c))) / Σ c in the place of λ K: the cost term on probabilities, less the entropy, plus
        a constant. Our reading of the variational objective, which the official code does not contain.
    allow_unlabelled : bool
        Take a batch without any label for a task loss of 0, as :func:`.fitting.fit` does with those that chance draws. Looking
        for a label makes the host wait for the device, once a call.

    Raises
    ------
    ValueError
        λ, η or a cost is negative or not finite, shapes do not fit, a label is not one, or no step has one.
    """
    check_lambda(lam)
    if not 0 <= entropy_weight < math.inf:
        raise ValueError(f"entropy_weight must be finite and not negative, not {entropy_weight}")
    y, cost = as_tensor(y, "y"), as_tensor(cost, "cost")
    weight = torch.as_tensor(lam, dtype=rollout.logits.dtype, device=rollout.logits.device)
    task = step_task_loss(rollout.logits, y, rollout.valid, ignore_index, allow_unlabelled).sum((-2, -1))
    cost = cost.to(rollout.logits)
    fraction = step_cost(rollout.gates, cost, rollout.lengths, cost_norm).sum((-2, -1))
    ones = torch.ones_like(cost)
    if prior is None:
        total = task + weight * fraction
    elif prior == "bernoulli":
        penalty = weight[..., None, None, None] * cost
        divergence = bernoulli_kl(rollout.gate_logits, penalty)
        total = task + step_cost(divergence, ones, rollout.lengths, cost_norm).sum((-2, -1)) * len(cost) / cost.sum()
    else:
        raise ValueError(f"there is no prior {prior}; choose bernoulli or None")
    if entropy_weight:
        entropy = step_cost(bernoulli_entropy(rollout.gate_logits), ones, rollout.lengths, cost_norm)
        total = total - entropy_weight * entropy.sum((-2, -1))
    return Loss(total, task, fraction)


def returns_to_go(losses: Tensor, gamma: float) -> Tensor:
    """Discounted sums Σ_{s ≥ t} γ^{s−t} losses_s over the steps, the last dimension: (…, T) to (…, T)."""
    if gamma == 0:
        return losses
    if gamma == 1:
        return losses.flip(-1).cumsum(-1).flip(-1)
    out = [losses[..., -1]]
    for step in range(losses.shape[-1] - 2, -1, -1):
        out.append(losses[..., step] + gamma * out[-1])
    return torch.stack(out[::-1], -1)


def arm_loss(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    lam: float | Tensor,
    gamma: float = DEFAULT.gamma,
    unbiased: bool | None = None,
    cost: Tensor | None = None,
    lengths: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    detach_policy_input: bool = False,
    published: bool = DEFAULT.published,
    kappa: Kappa = DEFAULT.kappa,
    cost_path: bool = DEFAULT.cost_path,
    ignore_index: int = -1,
    allow_unlabelled: bool = False,
) -> Loss:
    """Loss whose gradient trains hard gates by two antithetic trajectories on common noise, run as one batch of 2B.

    Three estimators. *Aligned* (the default): the pair's difference of losses times (u − ½), on the logits that made the gates;
    differentiable in everything, and slightly biased over several steps. *Unbiased pair*: a score-function form of each
    trajectory with a leave-one-out baseline; exactly unbiased for all parameters at γ = 1. *Published*: the official code's
    gradient, with its three defects (state after the step, immediate loss only, cost per feature).

    Parameters
    ----------
    model : SelectiveGRU
        Dynamic or static policy; a :class:`.sweep.Sweep` of them works too.
    lam, cost, lengths, ignore_index, allow_unlabelled
        As for :func:`selection_loss`; ``cost`` is by default that of the model's groups.
    gamma : float
        Discount of later losses in the policy's return, in [0, 1]; 0 has the least variance.
    unbiased : bool, optional
        Whether to use the unbiased pair; by default as the model's relaxation says, but for ``published``.
    noise : Tensor, optional
        (T, B, G) uniform noise in [0, 1], drawn from ``generator`` if left out.
    detach_policy_input : bool
        Keep the policy's gradient out of the recurrence (aligned estimator).
    published : bool
        The official estimator. Its code differs between data sets. UCI HAR: a model with ``logit_scale=5``, ``kappa=1`` and
        ``cost_path=True``, the defaults here; ExtraSensory: the same, but ``cost_path=False``; Opportunity: ``logit_scale=1``,
        ``kappa="lambda"`` and ``cost_path=False``.
    kappa : float, Tensor or "lambda"
        κ ≥ 0: what an open gate weighs in the policy's difference, where a step's task loss weighs 1. A number for all gates, a
        tensor (G,) with a number for each, or λ. It is multiplied by the gate's cost over the mean cost of all gates, which is 1
        in the official code, where all gates cost the same.
    cost_path : bool
        Whether the cost's gradient goes through σ(α), weighted by cost, into the recurrence.

    Raises
    ------
    ValueError
        γ is outside [0, 1]; λ, κ or a cost is negative or not finite; κ is neither one number nor one per gate; both
        ``unbiased`` and ``published`` are asked for; the policy is neither dynamic nor static; or x, y, lengths or noise are
        what :meth:`.model.SelectiveGRU.forward` and :func:`selection_loss` refuse.
    """
    check_lambda(lam)
    if not 0 <= gamma <= 1:
        raise ValueError(f"γ must lie in [0, 1], not {gamma}")
    if unbiased and published:
        raise ValueError("choose one of unbiased and published")
    template: SelectiveGRU = getattr(model, "template", model)
    if template.policy not in ("dynamic", "static"):
        raise ValueError(f"arm_loss trains dynamic and static policies, not {template.policy}")
    if unbiased is None:
        unbiased = template.relaxation == "arm-unbiased"
    x, y = as_tensor(x, "x"), as_tensor(y, "y")
    template.check_input(x, "sample", lengths)
    lengths = None if lengths is None else lengths.to(x.device)
    cost = (template.groups.cost if cost is None else cost).to(x)
    shape = template.noise_shape(x)
    if noise is None:
        noise = uniform_noise(*shape, generator=generator, like=x)
    check_noise(noise, shape)
    weight = torch.as_tensor(lam, dtype=x.dtype, device=x.device)
    price = gate_price(kappa, weight, cost)
    both = unbiased and not published  # the other estimators differentiate the first trajectory alone
    pair = _Pair.run(model, x, y, cost, lam, lengths, noise, ignore_index, allow_unlabelled, both)
    if published:
        return pair.published(model, weight, price, cost_path)
    return pair.unbiased(gamma) if unbiased else pair.aligned(gamma, model if detach_policy_input else None)


def gate_price(kappa: Kappa, lam: Tensor, cost: Tensor) -> Tensor:
    """What an open gate weighs in the published estimator's difference: κ times its cost over the mean cost.

    Parameters
    ----------
    kappa : float, Tensor or "lambda"
        One number, or (G,) with one per gate, or λ.
    lam : Tensor
        λ, or (M,) for M models.
    cost : Tensor
        (G,) cost of every gate, in any unit.

    Returns
    -------
    Tensor
        (G,), or (M, 1, 1, G).

    Raises
    ------
    ValueError
        κ has another shape or is another word, or holds something negative or not finite.
    """
    gates = len(cost)
    wanted = f'kappa must be one number, one per gate ({gates},), or "lambda"'
    relative = cost * gates / cost.sum()
    if isinstance(kappa, str):
        if kappa != "lambda":
            raise ValueError(f"{wanted}; not {kappa!r}")
        return lam[..., None, None, None] * relative
    weight = torch.as_tensor(kappa, dtype=cost.dtype, device=cost.device)
    if weight.shape not in ((), (gates,)):
        raise ValueError(f"{wanted}; not of shape {tuple(weight.shape)}")
    wrong = ~(weight.isfinite() & (weight >= 0))
    if bool(wrong.any()):
        index = first_place(wrong)
        where = f" at {list(index)}" if index else ""
        raise ValueError(f"kappa must be finite and not negative, not {weight[index].item()}{where}")
    return weight * relative


class _Pair(NamedTuple):
    """Both trajectories of a batch; the first dimension of losses, gates and logits tells them apart."""

    task: Tensor  # (2, …, B, T) contributions to the mean task loss
    spent: Tensor  # (2, …, B, T) contributions to the cost fraction
    each: Tensor  # (2, …, B, T) contributions to the total
    logits: Tensor  # (2, …, B, T, G)
    gates: Tensor  # (2, …, B, T, G)
    hidden: Tensor  # (2, …, B, T, H)
    noise: Tensor  # (B, T, G), ½ where the policy decides nothing
    cost: Tensor  # (G,)
    lengths: Tensor | None  # (B,)

    @classmethod
    def run(
        cls,
        model: Any,
        x: Tensor,
        y: Tensor,
        cost: Tensor,
        lam: float | Tensor,
        lengths: Tensor | None,
        noise: Tensor,
        ignore_index: int,
        allow_unlabelled: bool,
        both: bool,
    ) -> _Pair:
        template = getattr(model, "template", model)
        offset = torch.cat([logistic_noise(1 - noise), logistic_noise(noise)], 1)
        batch = len(x)
        rollout = model(x, lengths=lengths, gates="sample", offset=offset, learning=None if both else batch)
        parts = [
            torch.stack(part.split(batch, -3)) for part in (rollout.logits, rollout.gate_logits, rollout.gates, rollout.hidden)
        ]
        outputs, logits, gates, hidden = parts
        valid = valid_steps(lengths, x.shape[1])
        task = step_task_loss(outputs, y, valid, ignore_index, allow_unlabelled)
        spent = step_cost(gates, cost, lengths)
        weight = torch.as_tensor(lam, dtype=x.dtype, device=x.device)
        decided = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid.clone()
        if template.first is not None:
            decided[:, 0] = False
        centred = torch.where(decided[..., None], noise.transpose(0, 1), 0.5)
        each = task + weight[..., None, None] * spent
        return cls(task, spent, each, logits, gates, hidden, centred, cost, lengths)

    def loss(self, total: Tensor, policy: Tensor) -> Loss:
        """The total with the policy's gradient, whose value is left out; of the first trajectory."""
        task, fraction = self.task[0].sum((-2, -1)), self.spent[0].sum((-2, -1))
        return Loss(total + policy - policy.detach(), task, fraction)

    def aligned(self, gamma: float, detached: Any | None) -> Loss:
        """Common noise: (R² − R¹)(u − ½) on the first trajectory's logits."""
        returns = returns_to_go(self.each.detach(), gamma)
        difference = (returns[1] - returns[0])[..., None] * (self.noise - 0.5)
        logits = self.logits[0] if detached is None else self._logits(detached, shift=True)
        return self.loss(self.each[0].sum((-2, -1)), (difference * logits).sum((-3, -2, -1)))

    def unbiased(self, gamma: float) -> Loss:
        """Score-function pair: ½ Σ_k [loss^k + (R^k − base^k) ε_k (1 − 2u) α^k], ε = ±1, base the mean return of the others."""
        returns = returns_to_go(self.each.detach(), gamma)
        batch = returns.shape[-2]
        if batch > 1:
            returns = returns - (returns.sum(-2, keepdim=True) - returns) / (batch - 1)
        sign = returns.new_tensor([1.0, -1.0]).reshape(2, *[1] * (self.logits.ndim - 1))
        policy = (returns[..., None] * sign * (1 - 2 * self.noise) * self.logits).sum((-3, -2, -1))
        return self.loss(self.each.sum((-2, -1)).mean(0), 0.5 * policy.sum(0))

    def published(self, model: Any, lam: Tensor, price: Tensor, cost_path: bool) -> Loss:
        """Official code: sums over the batch, immediate losses, ``price`` per open gate, and logits of the state after the step.

        A labelled step's loss weighs steps / labels, so that batches with few labels pull as hard. Padding is no step.
        """
        batch, steps = self.task.shape[-2:]
        count = batch * steps if self.lengths is None else self.lengths.sum()
        each = self.task * count + (self.gates * price).sum(-1)
        difference = (each[1] - each[0]).detach()[..., None] * (self.noise - 0.5)
        policy = (difference * self._logits(model, shift=False)).sum((-3, -2, -1))
        fraction = self._fraction(self.gates[0])
        if cost_path and not self._static(model):
            soft = self._fraction(torch.sigmoid(self._logits(model, shift=True, frozen=True)))
            fraction = fraction.detach() + (soft - soft.detach())
        task = self.task[0].sum((-2, -1))
        total = task + lam * fraction + policy - policy.detach()
        return Loss(total, task, fraction)

    def _fraction(self, gates: Tensor) -> Tensor:
        """Cost fraction as the official code counts it, which divides by all steps, the first included."""
        return step_cost(gates, self.cost, self.lengths, "official").sum((-2, -1))

    @staticmethod
    def _static(model: Any) -> bool:
        return getattr(model, "template", model).policy == "static"

    def _logits(self, model: Any, shift: bool, frozen: bool = False) -> Tensor:
        """Logits of the first trajectory's states: of h_{t−1} (``shift``) or h_t, detached; or with the policy frozen instead."""
        if self._static(model):
            return self.logits[0]
        state = self.hidden[0] if frozen else self.hidden[0].detach()
        if shift:
            state = functional.pad(state[..., :-1, :], (0, 0, 1, 0))
        weight, bias = model.selector.weight, model.selector.bias
        if frozen:
            weight, bias = weight.detach(), bias.detach()
        scale = getattr(model, "template", model).logit_scale
        return scale * (state @ weight.mT.unsqueeze(-3) + bias[..., None, None, :])


def lambda_at(step: int, total: int, lam: float, warmup: float) -> float:
    """Linear warm-up of λ over the first ``warmup`` part of training: a large λ early collapses all gates to 0."""
    span = math.ceil(warmup * total)
    return lam if span == 0 else lam * min(1.0, (step + 1) / span)
