"""The primal–dual controller: how much to prune where, which blocks to skip, and the price of the budget.

    min over W, s, r, g  max over y, p, z ≥ 0 :   L(W, g) + z (R(⌈s⌉, ⌈r⌉, k) − B)
        + Σ_l [ y_l0 low(C_l, ⌈s_l0⌉) + y_l1 low(n_l, ⌈s_l1⌉) + Σ_h p_lh low(c_lh, ⌈r_lh⌉) ]

s (L, 2) counts heads and neurons removed, r (L, H) dims removed inside heads, g (L, 2) are gate logits; y and p ask that what
counts as removed has no weight, z that the budget is met. All updates of a step are closed-form, on stacked tensors; nothing is
copied to the host on an accelerator, where NaN and infinity are looked for every ``CHECK_EVERY`` steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape, require_supported, scored_weights
from atlas.methods.uvc.costs import Cost, ResourceFunction
from atlas.methods.uvc.gates import EPSILON, gate_slope, require_gate, sample_gates
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.presets import PRESETS, Preset
from atlas.methods.uvc.repair import require_budget, require_reachable
from atlas.methods.uvc.scores import Ranked, UnitScores, column_scores, positive, stacked
from atlas.methods.uvc.settings import Gate, UVCSettings
from atlas.methods.uvc.updates import StepLog, boxed_step, multiply_columns
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_kind, require_whole

DEFAULTS = UVCSettings()
CHECK_EVERY = 50
DUAL_INIT = 1e-3
EPSILON_DECAY = 0.92
"""What each epoch multiplies ε of the gates ``softl0`` by."""
STATE = ("s", "r", "g", "y", "p", "z", "gate_memory", "gate_sum")


class UVCController:
    """Watches a model train and decides what to remove, within a budget.

    Call :meth:`step` after every optimiser step; with gates (:func:`.gates.apply_gates`) also let the loss's gradient reach
    :attr:`g`, clip it together with the weights', and keep it out of the weight optimiser.

    Parameters
    ----------
    model : nn.Module
        Any timm VisionTransformer; ``attn.proj.weight`` and ``mlp.fc2.weight`` are shrunk in place.
    budget : float
        B in (0, 1]: multiply-accumulates left, relative to the dense model.
    preset : {"normalised", "reference"}
        Scale-free coordinates with budget annealing, or the constants of the authors' code, which mostly skip blocks.
    cost : {"physical", "paper"}, optional
        What R counts; by default physical, and for the reference preset the paper's formula.
    prune, skip : bool
        Whether units are pruned, and whether blocks are skipped.
    generator : torch.Generator, optional
        Draws the gates, on the CPU; a fresh one seeded from torch's initial seed by default.
    anneal_steps : int
        Steps over which the budget falls from 1 to B, in the normalised preset; 0 sets B at once.
    gate : {"gumbel_soft", "gumbel_hard", "softl0"}
        Kind of gate.
    pace : float
        How many ordinary steps one step counts for, in the rates of gates, counts and multipliers; the presets suit searches of
        a few hundred steps and more, and shorter ones need a higher pace.
    img_size : int, optional
        Image size of the costs, if not the model's own.

    Attributes
    ----------
    s, r, g, y, p, z : Tensor
        Primal and dual variables, float32 (float64 for float64 weights), on the model's device.
    warming_up : bool
        While true, every gate passes one half, and :meth:`step` leaves everything as it is.

    Raises
    ------
    ValueError
        The budget is not in (0, 1], an option is none of those above, or a weight that would be shrunk is frozen.
    InfeasibleBudgetError
        The budget is below what the repair of every search can reach; names that bound. See :func:`.repair.reachable_macs`.
    UnsupportedArchitectureError
        See :func:`.architecture.require_supported`.
    FloatingPointError
        A score is not finite.
    """

    def __init__(
        self,
        model: Any,
        budget: float,
        preset: str = DEFAULTS.preset,
        cost: Cost | None = None,
        prune: bool = True,
        skip: bool = True,
        generator: torch.Generator | None = None,
        *,
        anneal_steps: int = 0,
        gate: Gate = DEFAULTS.gate,
        pace: float = DEFAULTS.pace,
        img_size: int | None = None,
    ) -> None:
        require_budget(budget)
        require_gate(gate)
        require_whole(anneal_steps=anneal_steps)
        if anneal_steps < 0:
            raise ValueError(f"anneal_steps must be at least 0, not {anneal_steps}")
        if generator is not None:
            require_kind(torch.Generator, "a torch.Generator", generator=generator)
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
        require_supported(model)
        self.model, self.budget, self.prune, self.skip = model, float(budget), prune, skip
        self.preset: Preset = PRESETS[preset].paced(pace)
        self.shape = ViTShape.from_timm(model, img_size)
        self.anneal_steps, self.gate, self.epsilon = anneal_steps, gate, EPSILON
        self.warming_up = False
        self.steps = 0
        require_reachable(self.shape, self.budget, prune=prune, skip=skip)
        self._weights = scored_weights(model)
        if not all(weight.requires_grad for weights in self._weights for weight in weights):
            raise ValueError("attn.proj or mlp.fc2 is frozen: its weights must be trainable to be shrunk")
        like = self._like()
        self.resource = ResourceFunction(self.shape, cost or self.preset.cost, like)
        self._exist = self._missing(like.device)
        self.generator = generator if generator is not None else torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        self._prepare(like)
        self._require_finite(self._scores()[0], self._scores()[1])

    def _like(self) -> Tensor:
        """A scalar of the controller's type and device: those of the weights, in float32 at least."""
        weight = self._weights[0][0]
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        return torch.zeros((), dtype=dtype, device=weight.device)

    def _missing(self, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Which heads, neurons and dims exist, where blocks differ; ``None`` where all do."""
        dims, neurons = self.shape.dims_exist().to(device), self.shape.neurons_exist().to(device)
        return tuple(None if bool(mask.all()) else mask for mask in (dims.any(-1), neurons, dims))  # type: ignore[return-value]

    def _prepare(self, like: Tensor) -> None:
        """Set counts, multipliers and gates to where a search starts, and the upper ends of the counts."""
        depth, heads = self.shape.depth, self.shape.widest[0]
        self.s, self.r = like.new_zeros(depth, 2), like.new_zeros(depth, heads)
        self.y, self.p = like.new_full((depth, 2), DUAL_INIT), like.new_full((depth, heads), DUAL_INIT)
        self.z = like.new_tensor(DUAL_INIT)
        self.g = torch.stack((like.new_full((depth,), -1.0), like.new_full((depth,), 1.0)), -1).requires_grad_()
        self.gate_memory, self.gate_sum = torch.zeros_like(self.s), torch.zeros_like(self.s)
        self.gate_count = self.gate_steps = 0
        self.top_s = torch.stack((self.resource.heads, self.resource.neurons), -1) - 1
        self.top_r = (self.resource.dims - 1)[:, None].expand_as(self.r)
        self._drawn: Tensor | None = None
        self._before_draw: Tensor | None = None
        self._decision: list[bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: not the gates of the last pass, which belong to its graph."""
        return {**vars(self), "_drawn": None}

    # Gates.

    def parameters(self) -> list[Tensor]:
        """The gate logits, (L, 2), in a list: to be clipped together with the weights, and kept out of their optimiser."""
        return [self.g]

    def keep_weights(self) -> Tensor:
        """Draw (L,) keep weights in [0, 1], differentiable in :attr:`g`; one half while warming up, 1 without gates."""
        if not self.skip:
            return torch.ones_like(self.g[:, 0]).detach()
        if self.warming_up:
            return torch.full_like(self.g[:, 0], 0.5).detach()
        return sample_gates(self.g, self.gate, epsilon=self.epsilon, generator=self.generator)

    def draw(self) -> None:
        """Draw the gates of the next forward pass, one for each block."""
        self._before_draw = self.generator.get_state()
        self._drawn = self.keep_weights()

    def rewind(self) -> None:
        """Let the next forward pass draw the gates of the last one again: for the further pieces of one batch."""
        if self._before_draw is not None:
            self.generator.set_state(self._before_draw)

    def drawn(self) -> Tensor:
        """Return the keep weights of this forward pass, (L,); drawn now if they were not before."""
        if self._drawn is None:
            self.draw()
        assert self._drawn is not None
        return self._drawn

    def decision(self) -> list[bool]:
        """Which blocks stay: keep logit above skip logit, or the best block if none is. Deterministic."""
        if self._decision is None:
            preference = self.preferences()
            keep = preference > 0
            if not bool(keep.any()):
                keep[int(preference.argmax())] = True
            self._decision = keep.tolist() if self.skip else [True] * len(keep)
        return self._decision

    def preferences(self) -> Tensor:
        """Return how much each block is wanted, (L,): keep logit minus skip logit."""
        return (self.g[:, 1] - self.g[:, 0]).detach()

    def start_epoch(self) -> None:
        """Note that an epoch starts: pending gate gradients are dropped, and ε of ``softl0`` decays."""
        self.gate_sum.zero_()
        self.gate_count = 0
        if self.steps:
            self.epsilon *= EPSILON_DECAY

    # One step.

    @torch.no_grad()
    def step(self, weight_lr: float) -> StepLog:
        """Shrink what counts as removed, then update gates, counts and multipliers; to follow every optimiser step.

        Parameters
        ----------
        weight_lr : float
            The present learning rate of the weights, finite and not negative.

        Raises
        ------
        TypeError, ValueError
            The learning rate is no number, or none of these. Nothing has changed then.
        FloatingPointError
            A score or the gradient of the gates is not finite; names the step.
        """
        require_numbers(weight_lr=weight_lr)
        if not (math.isfinite(weight_lr) and weight_lr >= 0):
            raise ValueError(f"step {self.steps + 1}: weight_lr must be finite and at least 0, not {weight_lr}")
        zero = self.z.new_zeros(())
        if self.warming_up:
            self._forget_gradient()
            return StepLog(0, 1.0, zero + 1, self.z, zero, zero, zero, zero, zero + self.shape.depth)
        dims, neurons = self._scores()
        ranked = self._shrink(dims, neurons, weight_lr) if self.prune else self._ranked(dims, neurons)
        removed = ranked[0].bottom(self.s[:, 0])
        draw = self._resource_draw()
        brackets = self.resource.brackets(self.s, self.r, removed)
        now = self.resource.value(brackets, draw)
        target = self.target()
        price = self._price(now, target)
        if self.skip:
            self._update_gates(brackets, draw, price)
        if self.prune:
            self._update_counts(ranked, removed, draw, price)
        after = self._update_duals(ranked, target)
        self.steps += 1
        self._decision = None
        return self._log(after, target, price)

    def target(self) -> float:
        """Return B_t, the budget in force at this step, which falls from 1 to B over ``anneal_steps``."""
        if not self.anneal_steps or not self.preset.normalised:
            return self.budget
        return 1 - (1 - self.budget) * min(1.0, self.steps / self.anneal_steps)

    def _scores(self) -> tuple[Tensor, Tensor]:
        """(dims (L, H, d), neurons (L, M)) from the present weights."""
        heads = self.shape.per_block("heads")
        columns = column_scores(self._weights[0])
        dims = stacked([column.view(count, -1) for column, count in zip(columns, heads, strict=True)])
        return dims, stacked(column_scores(self._weights[1]))

    def _require_finite(self, dims: Tensor, neurons: Tensor) -> None:
        if not bool(torch.isfinite(dims.sum() + neurons.sum() + self.g.detach().sum())):
            raise FloatingPointError(f"step {self.steps}: the weights or gates hold NaN or infinity")

    def _ranked(self, dims: Tensor, neurons: Tensor) -> tuple[Ranked, Ranked, Ranked]:
        """Sort heads (L, H), neurons (L, M) and dims (L, H, d) by score."""
        scored = (dims.sum(-1), neurons, dims)
        return tuple(Ranked(values, exist) for values, exist in zip(scored, self._exist, strict=True))  # type: ignore[return-value]

    def _shrink(self, dims: Tensor, neurons: Tensor, weight_lr: float) -> tuple[Ranked, Ranked, Ranked]:
        """Proximal step on the weights: columns that count as removed ÷ (1 + 2ηy). Returns the ranks of the shrunk weights.

        What shrinks is lowest in its layer or head already, and shrinks by one factor there: neurons and dims keep their order.
        """
        heads, hidden, inner = self._ranked(dims, neurons)
        by_dim = torch.where(inner.bottom(self.r), (1 / (1 + 2 * weight_lr * self.p))[..., None], 1)
        by_head = torch.where(heads.bottom(self.s[:, 0]), 1 / (1 + 2 * weight_lr * self.y[:, :1]), 1)
        factor = by_dim * by_head[..., None]
        by_neuron = torch.where(hidden.bottom(self.s[:, 1]), 1 / (1 + 2 * weight_lr * self.y[:, 1:]), 1)
        multiply_columns(self._weights, self.shape, factor, by_neuron)
        dims, neurons = dims * factor.square(), neurons * by_neuron.square()
        return Ranked(dims.sum(-1), self._exist[0]), hidden.shrunk(neurons), inner.shrunk(dims)

    def _resource_draw(self) -> Tensor:
        """A fresh draw of the gates for R: soft where the forward pass rounds."""
        if not self.skip:
            return torch.ones_like(self.resource.width)
        gate: Gate = "gumbel_soft" if self.gate == "gumbel_hard" else self.gate
        return sample_gates(self.g, gate, epsilon=self.epsilon, generator=self.generator)

    def _price(self, now: Tensor, target: float) -> Tensor:
        """ẑ: the multiplier of ∂R, with a proportional part in the normalised preset."""
        price = (self.z + self.preset.damping * (now - target)).clamp_min(0) if self.preset.damping else self.z
        window = self.preset.resource_window
        return price if window is None else price * ((now - target).abs() <= window)

    def _update_gates(self, brackets: Tensor, draw: Tensor, price: Tensor) -> None:
        """Momentum step on the logits, by the loss's gradient and the price of the blocks' costs, (L,)."""
        slope = gate_slope(self.g, draw, "softl0" if self.gate == "softl0" else "gumbel_soft", epsilon=self.epsilon)
        loss = torch.zeros_like(self.g) if self.g.grad is None else self.g.grad
        gradient = loss + price * self.preset.gate_resource_weight * brackets[:, None] * slope
        if not self.preset.normalised:
            self._collect_gate_gradient(gradient)
        else:
            difference = 0.5 * (gradient[:, 1] - gradient[:, 0])
            self.gate_memory[:, 1] = self.preset.gate_momentum * self.gate_memory[:, 1] + difference
            half = (self.preferences() - self.preset.gate_lr * self.gate_memory[:, 1]).clamp(-4, 4) / 2
            self.g.copy_(torch.stack((-half, half), -1))
        self._forget_gradient()

    def _collect_gate_gradient(self, gradient: Tensor) -> None:
        """One momentum step on the plain mean of gradients that grow with their place in the interval."""
        preset = self.preset
        position = self.steps % preset.gate_interval
        self.gate_sum += gradient * position
        self.gate_count += 1
        if position + 1 < preset.gate_interval:
            return
        step = self.gate_sum / self.gate_count + preset.gate_weight_decay * self.g
        self.gate_memory.copy_(step if not self.gate_steps else preset.gate_momentum * self.gate_memory + step)
        self.g.sub_(preset.gate_lr * self.gate_memory)
        self.gate_steps += 1
        self.gate_sum.zero_()
        self.gate_count = 0

    def _forget_gradient(self) -> None:
        self.g.grad = None

    def _update_counts(self, ranked: tuple[Ranked, Ranked, Ranked], removed: Tensor, draw: Tensor, price: Tensor) -> None:
        """Step on s (L, 2) and r (L, H): what removing one more unit costs in score, against what it saves in resource."""
        heads, neurons, dims = ranked
        mean_s, mean_r = self._means(ranked)
        unit_s, unit_r = self._units()
        slope_s, slope_r = self.resource.slopes(self.r, removed, draw)
        following = torch.stack((heads.next(self.s[:, 0]), neurons.next(self.s[:, 1])), -1)
        grad_s = self.y * following / mean_s + price * slope_s * unit_s
        grad_r = self.p * dims.next(self.r) / mean_r + price * slope_r * unit_r
        boxed_step(self.s, grad_s, self.top_s, self.preset.count_lr, unit_s)
        boxed_step(self.r, grad_r, self.top_r, self.preset.count_lr, unit_r)

    def _units(self) -> tuple[Tensor | float, Tensor | float]:
        """Size of one coordinate: the number of units of a block in the normalised preset, else one unit."""
        return (self.top_s + 1, self.top_r + 1) if self.preset.normalised else (1.0, 1.0)

    def _means(self, ranked: tuple[Ranked, Ranked, Ranked]) -> tuple[Tensor | float, Tensor | float]:
        """What scores are relative to: their mean in the block, or in the head for dims, in the normalised preset."""
        if not self.preset.normalised:
            return 1.0, 1.0
        heads, neurons, dims = ranked
        means = torch.stack(
            (heads.total / self.resource.heads, neurons.total / self.resource.neurons),
            -1,
        )
        return positive(means), positive(dims.total / self.resource.dims[:, None])

    def _update_duals(self, ranked: tuple[Ranked, Ranked, Ranked], target: float) -> Tensor:
        """Raise y and p by the scores of what counts as removed, move z by how far R is off the target; return R."""
        heads, neurons, dims = ranked
        removed = heads.bottom(self.s[:, 0])
        if self.prune:
            mean_s, mean_r = self._means(ranked)
            unit_s, unit_r = self._units()
            lowest = torch.stack((heads.low(self.s[:, 0]), neurons.low(self.s[:, 1])), -1)
            self.y.add_(self.preset.dual_lr * lowest / mean_s / unit_s)
            self.p.add_(self.preset.dual_lr * dims.low(self.r) / mean_r / unit_r)
        after = self.resource.value(self.resource.brackets(self.s, self.r, removed), self._resource_draw())
        self.z = (self.z + self.preset.price_lr * (after - target)).clamp_min(0)
        if self.z.device.type == "cpu" or self.steps % CHECK_EVERY == 0:
            total = self.s.sum() + self.r.sum() + self.g.sum() + self.y.sum() + self.p.sum() + self.z
            if not bool(torch.isfinite(total + heads.total.sum() + neurons.total.sum())):
                raise FloatingPointError(f"step {self.steps + 1}: scores or gate gradients hold NaN or infinity")
        return after

    def _log(self, after: Tensor, target: float, price: Tensor) -> StepLog:
        removed = self.s.ceil().sum(0)
        blocks = (self.preferences() > 0).sum() if self.skip else torch.tensor(self.shape.depth)
        return StepLog(self.steps, target, after, self.z, price, removed[0], removed[1], self.r.ceil().sum(), blocks)

    # What comes out.

    def scores(self) -> UnitScores:
        """Return the present scores of dims (L, H, d), neurons (L, M) and blocks (L,)."""
        return UnitScores(*self._scores(), self.preferences())

    def plan(self) -> CompressionPlan:
        """What stays by the present counts, scores and gates; not yet repaired to the budget. On the CPU."""
        dims, neurons = self._scores()
        self._require_finite(dims, neurons)
        heads, hidden, inner = self._ranked(dims, neurons)
        dims_kept = ~(inner.bottom(self.r) | heads.bottom(self.s[:, 0])[..., None]).cpu() & self.shape.dims_exist()
        neurons_kept = ~hidden.bottom(self.s[:, 1]).cpu() & self.shape.neurons_exist()
        plan = CompressionPlan(torch.tensor(self.decision()), dims_kept, neurons_kept)
        plan.validate(self.shape)
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, as tensors and plain values."""
        tensors = {name: getattr(self, name).detach().clone() for name in STATE}
        counts = {name: getattr(self, name) for name in ("gate_count", "gate_steps", "steps", "epsilon", "warming_up")}
        return {**tensors, **counts, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, identically."""
        for name in STATE:
            variable: Tensor = getattr(self, name)
            with torch.no_grad():
                variable.copy_(state[name])
        for name in ("gate_count", "gate_steps", "steps", "epsilon", "warming_up"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        self._drawn = self._decision = None
