"""Flying Bird and Flying Bird+: prune and regrow while adversarial training runs.

Flying Bird keeps the number of weights of every layer. Flying Bird+ prunes more while the robust gap grows, and grows more
while the validation loss does not fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.sparse_robust.masks import SCHEMES, Masks, check_masks, prunable, random_masks, require_density
from atlas.methods.sparse_robust.selecting import above_kth, count, largest, places
from atlas.methods.sparse_robust.settings import AdaptiveSettings, DynamicSettings, Growth, Scheme
from atlas.methods.sparse_robust.static import OTHER_MODEL, SparseTraining, not_stepped
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_kind, require_whole

DEFAULT, ADAPTIVE = DynamicSettings(), AdaptiveSettings()


@dataclass(frozen=True)
class FlyingBirdPlus:
    """When and by how much Flying Bird+ changes the density; the attributes are those of :class:`.settings.AdaptiveSettings`.

    Raises
    ------
    TypeError
        A value is of another type; says what would be right.
    ValueError
        ``start_epoch`` is below 0, ``window`` below 1, or another value outside [0, 1].
    """

    start_epoch: int
    window: int = ADAPTIVE.window
    threshold: float = ADAPTIVE.threshold
    prune_extra: float = ADAPTIVE.prune_extra
    grow_extra: float = ADAPTIVE.grow_extra

    def __post_init__(self) -> None:
        for name, least in (("start_epoch", 0), ("window", 1)):
            require_whole(**{name: getattr(self, name)})
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("threshold", "prune_extra", "grow_extra"):
            require_numbers(**{name: getattr(self, name)})
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")

    def prunes_more(self, gaps: Sequence[float]) -> bool:
        """Whether the robust gap (training − validation accuracy) rose often enough of late."""
        return self._share(gaps, strict=True) >= self.threshold

    def grows_more(self, losses: Sequence[float]) -> bool:
        """Whether the validation loss failed to fall often enough of late."""
        return self._share(losses, strict=False) >= self.threshold

    def _share(self, curve: Sequence[float], *, strict: bool) -> float:
        """Share of rises among the latest changes; below any threshold while there is no change yet."""
        latest = list(curve)[-(min(self.window, len(curve) - 1) + 1) :]
        changes = [after - before for before, after in pairwise(latest)]
        if not changes:
            return -math.inf
        return sum(change > 0 if strict else change >= 0 for change in changes) / len(changes)


@dataclass(frozen=True)
class TopologyUpdate:
    """What one update changed.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    rate : float
        Share of each layer's weights up for pruning.
    pruned, grown : dict
        Number of weights taken out and put in, by parameter; a weight may be both.
    density : float
        Share of the maskable weights that exist afterwards.
    prune_more, grow_more : bool
        Flying Bird+'s decisions.
    """

    step: int
    rate: float
    pruned: dict[str, int] = field(default_factory=dict)
    grown: dict[str, int] = field(default_factory=dict)
    density: float = 1.0
    prune_more: bool = False
    grow_more: bool = False


def cosine_rate(step: int, total_steps: int, rate: float = DEFAULT.rate, rate_end: float = DEFAULT.rate_end) -> float:
    """Prune rate after ``step`` optimiser steps: half a cosine from ``rate`` to ``rate_end`` over ``total_steps``."""
    progress = min(step / total_steps, 1.0)
    return rate_end + 0.5 * (rate - rate_end) * (1 + math.cos(math.pi * progress))


def two_stage_interval(
    steps_per_epoch: int, epochs: int, first: int = DEFAULT.interval, second: int = DEFAULT.late_interval
) -> Callable[[int], int]:
    """Return the steps between updates by the step just done: ``first`` up to epoch ``epochs``/2 (from 0), then ``second``."""

    def interval(step: int) -> int:
        return first if (step - 1) // steps_per_epoch <= epochs / 2 else second

    return interval


class FlyingBird(SparseTraining):
    """Trains a sparse network whose topology moves: call :meth:`step` instead of the optimiser's.

    Every ``interval`` steps each layer that is not fully dense loses its smallest weights and grows as many where the
    gradient of the current batch's loss is largest; a weight just pruned may be regrown, and then keeps its value and
    momentum, while a new one starts at zero with momentum zero.

    Parameters
    ----------
    density : float
        Share of the weights to start with, in (0, 1]; ignored where ``init`` holds masks.
    init : {"igq", "erk", "uniform"} or Masks
        How to share the density out over layers, or the masks to start from.
    total_steps : int
        Length T of the training; the prune rate falls over it.
    interval : int or callable
        Steps ΔT between updates; as a callable, ``interval(step)`` of the number of steps done (see
        :func:`two_stage_interval`). An update happens after the steps that it divides.
    rate, rate_end : float
        First and last prune rate, in [0, 1]; a rate of 0 leaves the topology alone.
    growth : {"gradient", "random"}
        Where to grow: at the largest gradients, or anywhere.
    adaptive : FlyingBirdPlus, optional
        Makes it Flying Bird+; :meth:`end_epoch` must then be called.
    generator : torch.Generator, optional
        Source of the initial masks and of random growth.
    steps_per_epoch : int, optional
        Tells Flying Bird+ in which epoch a step is, and so lets it notice a missing :meth:`end_epoch`; otherwise the calls
        count the epochs, and with ``start_epoch`` 0 one must come before the first update.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        A density outside (0, 1], a rate outside [0, 1], ``total_steps`` or a constant ``interval`` below 1, an unknown scheme
        or growth; or the optimiser does not step a weight that is masked. Nothing has changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        density: float = DEFAULT.density,
        init: Scheme | Masks = DEFAULT.scheme,
        total_steps: int,
        interval: int | Callable[[int], int] = DEFAULT.interval,
        rate: float = DEFAULT.rate,
        rate_end: float = DEFAULT.rate_end,
        growth: Growth = DEFAULT.growth,
        adaptive: FlyingBirdPlus | None = None,
        generator: torch.Generator | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        require_kind(nn.Module, "an nn.Module", model=model)
        require_density(density)
        require_numbers(rate=rate, rate_end=rate_end)
        require_whole(total_steps=total_steps)
        if not callable(interval):
            require_whole(interval=interval)
        if steps_per_epoch is not None:
            require_whole(steps_per_epoch=steps_per_epoch)
        if adaptive is not None:
            require_kind(FlyingBirdPlus, "a FlyingBirdPlus", adaptive=adaptive)
        if generator is not None:
            require_kind(torch.Generator, "a torch.Generator", generator=generator)
        for name, value in (("rate", rate), ("rate_end", rate_end)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {value}")
        if total_steps < 1 or (isinstance(interval, int) and interval < 1):
            raise ValueError(f"total_steps and interval must be at least 1, not {total_steps} and {interval}")
        if growth not in ("gradient", "random"):
            raise ValueError(f"growth must be gradient or random, not {growth!r}")
        if isinstance(init, str) and init not in SCHEMES:
            raise ValueError(f"init must be one of {', '.join(SCHEMES)}, or masks, not {init!r}")
        self._require_stepped(model, optimizer, prunable(model) if isinstance(init, str) else check_masks(model, init))
        masks = random_masks(model, density, init, generator) if isinstance(init, str) else init
        super().__init__(model, optimizer, masks)
        self.total_steps, self.interval, self.rate, self.rate_end = total_steps, interval, rate, rate_end
        self.growth, self.adaptive, self.generator, self.steps_per_epoch = growth, adaptive, generator, steps_per_epoch
        self.steps = 0
        self.gaps: list[float] = []
        self.losses: list[float] = []

    @staticmethod
    def _require_stepped(model: nn.Module, optimizer: torch.optim.Optimizer, names: Collection[str]) -> None:
        """Refuse an optimiser that would leave a weight as it grows: none that is masked may be missing from it."""
        missing = not_stepped(model, optimizer, names)
        if len(missing) == len(names):
            raise ValueError(OTHER_MODEL)
        if missing:
            raise ValueError(
                f"the optimizer does not step {missing[0]}, which would be pruned and grown; add it, or give masks without it"
            )

    def step(self, scaler: Any = None) -> TopologyUpdate | None:
        """Take the optimiser's step, mask again, and update the topology when it is due.

        Parameters
        ----------
        scaler : GradScaler, optional
            Takes the optimiser's step where mixed precision scales the loss. Where a gradient of any parameter is not finite,
            so that a scaler skips the step, the topology stays as it is, with a scaler or without.

        Raises
        ------
        RuntimeError
            There is no gradient to grow by; or Flying Bird+ has to decide and :meth:`end_epoch` was not called.
        """
        if self.growth == "gradient" and any(weight.grad is None for weight in self.weights.values()):
            raise RuntimeError("call backward() before step()")
        interval = self.interval if isinstance(self.interval, int) else self.interval(self.steps + 1)
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval} after step {self.steps + 1}")
        self._optimizer_step(scaler)
        self.steps += 1
        self.apply()
        if self.steps % interval or not self._finite():
            return None
        return self._update()

    def end_epoch(self, *, train_ra: float, val_ra: float, val_loss: float) -> None:
        """Tell how an epoch went; only Flying Bird+ listens.

        Parameters
        ----------
        train_ra, val_ra : float
            Robust accuracy on the training batches, running over the epoch, and on the validation split; per cent.
        val_loss : float
            Cross-entropy under attack on the validation split, in nats.
        """
        require_numbers(train_ra=train_ra, val_ra=val_ra, val_loss=val_loss)
        self.gaps.append(float(train_ra) - float(val_ra))
        self.losses.append(float(val_loss))

    def _epoch(self) -> int:
        """Epoch (from 0) of the step just done."""
        return len(self.gaps) if self.steps_per_epoch is None else (self.steps - 1) // self.steps_per_epoch

    def _require_epochs(self) -> None:
        """Refuse to decide by curves that nobody keeps."""
        if self.adaptive is None or self._epoch() < self.adaptive.start_epoch:
            return
        ended = 1 if self.steps_per_epoch is None else self._epoch()
        if len(self.gaps) < ended:
            raise RuntimeError(f"Flying Bird+ decides by how epochs went: call end_epoch() after each (step {self.steps})")

    def _finite(self) -> bool:
        """Whether every gradient of the optimizer is finite: a scaler skips the step if one is not, of whatever parameter."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return all(bool(parameter.grad.isfinite().all()) for parameter in parameters if parameter.grad is not None)

    @torch.no_grad()
    def _update(self) -> TopologyUpdate | None:
        rate = cosine_rate(self.steps, self.total_steps, self.rate, self.rate_end)
        if rate == 0:
            return None
        if self.density < 1:
            self._require_epochs()
        active = self.adaptive if self.adaptive is not None and self._epoch() >= self.adaptive.start_epoch else None
        prune_more = active is not None and active.prunes_more(self.gaps)
        grow_more = active is not None and active.grows_more(self.losses)
        pruned, grown = {}, {}
        for name, weight in self.weights.items():
            counts = self._update_layer(
                name,
                weight,
                rate,
                prune_extra=active.prune_extra if active and prune_more else 0.0,
                grow_extra=active.grow_extra if active and grow_more else 0.0,
            )
            if counts is not None:
                pruned[name], grown[name] = counts
        return TopologyUpdate(self.steps, rate, pruned, grown, self.density, prune_more, grow_more)

    def _update_layer(
        self, name: str, weight: nn.Parameter, rate: float, prune_extra: float, grow_extra: float
    ) -> tuple[int, int] | None:
        """Prune and grow one layer; return how many weights were pruned and grown, or ``None`` if it is fully dense."""
        mask = self.masks[name]
        flat, size = mask.reshape(-1), weight.numel()
        there = places(flat)
        existing = len(there)
        if existing in (0, size):
            return None
        magnitude = weight.reshape(-1).index_select(0, there).abs_()
        pruned = math.ceil(rate * existing)
        survives = above_kth(magnitude, pruned)
        growing = existing - count(survives)
        if prune_extra:
            extra = math.ceil(rate * prune_extra * existing)
            survives = above_kth(magnitude, min(existing, pruned + extra))
        left = count(survives)
        if grow_extra:
            growing = min(int(growing * (1 + grow_extra)), size)
        growing = min(growing, size - left)
        dropped = there[places(~survives)]
        flat.index_fill_(0, dropped, False)
        flat.index_fill_(0, self._places_to_grow(flat, weight, growing), True)
        if not mask.is_contiguous():
            mask.copy_(flat.view_as(mask))
        self._clear(name, weight, dropped[places(~flat.index_select(0, dropped))])
        return existing - left, growing

    def _places_to_grow(self, survivors: Tensor, weight: nn.Parameter, number: int) -> Tensor:
        """Choose ``number`` indices where no weight survived, bool (n,)."""
        if self.growth == "gradient":
            assert weight.grad is not None
            scores = weight.grad.reshape(-1)
        else:
            device = weight.device if self.generator is None else self.generator.device
            scores = torch.rand(weight.numel(), generator=self.generator, device=device).to(weight.device)
        return largest(scores, number, survivors)

    def state_dict(self) -> dict[str, Any]:
        """Return masks, counters, curves and the generator's state."""
        return {
            **super().state_dict(),
            "steps": self.steps,
            "gaps": list(self.gaps),
            "losses": list(self.losses),
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with the same masks, counters, curves and draws."""
        super().load_state_dict(state)
        self.steps = int(state["steps"])
        self.gaps, self.losses = list(state["gaps"]), list(state["losses"])
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())
