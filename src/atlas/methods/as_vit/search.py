"""Search of the seed topology: REINFORCE over independent categorical choices, and random search (Sec. 3.2)."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atlas.methods.as_vit.measures import Measures
from atlas.methods.as_vit.settings import SearchSettings
from atlas.methods.as_vit.topology import SearchSpace, Topology
from atlas.nn.bars import track
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_callable, require_kind, require_whole

Score = Callable[[Topology], Measures]
DEFAULTS = SearchSettings()
EPSILON = 1e-6
"""What the authors add to the range of a measure before they divide by it."""
LOGIT_NOISE = 1e-3
"""Standard deviation of the policy's initial logits."""


@dataclass(frozen=True)
class Trial:
    """One step of a search.

    Attributes
    ----------
    reward, baseline : float
        Normalised change of the measures against the trial before, and its moving average; 0 in random search.
    entropy : float
        Of the policy, summed over groups, in nats.
    """

    topology: Topology
    measures: Measures
    reward: float = 0.0
    baseline: float = 0.0
    entropy: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """The topology that a search derives, the policy's logits by group (none in random search), and every trial."""

    best: Topology
    logits: dict[str, Tensor]
    history: list[Trial]


class RewardTracker:
    """Rewards the change of both measures, relative to their range over the last trials, with a moving-average baseline.

    Parameters
    ----------
    window : int
        Trials over which the range is taken, the current one included.
    momentum : float
        Of the bias-corrected moving average, in [0, 1).
    relative : bool
        Scale each measure by its first finite value before the authors' 1e-6 is added to its range: the length of
        small networks is of that size.
    """

    def __init__(
        self, window: int = DEFAULTS.window, momentum: float = DEFAULTS.momentum, relative: bool = DEFAULTS.relative
    ) -> None:
        require_whole(window=window)
        require_numbers(momentum=momentum)
        if window < 2 or not 0 <= momentum < 1:
            raise ValueError(f"window {window} must be at least 2 and momentum {momentum} in [0, 1)")
        self.window, self.momentum, self.relative = window, momentum, relative
        self.recent: deque[tuple[float, float]] = deque(maxlen=window)
        self.numerator = self.denominator = 0.0
        self.reference: tuple[float, float] | None = None

    def __call__(self, measures: Measures) -> tuple[float, float]:
        """Return (reward, baseline) of the next trial; the reward is in [−2, 2], and 0 for the first trial."""
        values = (measures.length, measures.ntk)
        if self.relative:
            if self.reference is None and all(map(math.isfinite, values)):
                self.reference = values
            length, ntk = self.reference or (1.0, 1.0)
            values = values[0] / (length or 1.0), values[1] / (ntk or 1.0)
        self.recent.append(values)
        reward = self._change(0) - self._change(1) if len(self.recent) > 1 else 0.0
        self.numerator = self.momentum * self.numerator + (1 - self.momentum) * reward
        self.denominator = self.momentum * self.denominator + (1 - self.momentum)
        return reward, self.numerator / self.denominator

    def _change(self, index: int) -> float:
        """Last change of a measure over its range; an infinite value counts as the largest finite one of the window."""
        values = [pair[index] for pair in self.recent]
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return 0.0
        worst = max(finite)
        values = [value if math.isfinite(value) else worst for value in values]
        return (values[-1] - values[-2]) / (max(values) - min(values) + EPSILON)

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from trial to trial, as plain values."""
        return {
            "recent": [list(pair) for pair in self.recent],
            "average": [self.numerator, self.denominator],
            "reference": None if self.reference is None else list(self.reference),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore recent measures, averages and reference from :meth:`state_dict`."""
        self.recent = deque((tuple(pair) for pair in state["recent"]), maxlen=self.window)
        self.numerator, self.denominator = state["average"]
        self.reference = None if state["reference"] is None else tuple(state["reference"])


class Reinforce:
    """REINFORCE with one trial per step; :func:`reinforce` runs it, resumable loops call :meth:`step` themselves.

    Parameters
    ----------
    space : SearchSpace
        One categorical per group.
    score : callable
        Topology to :class:`~atlas.methods.as_vit.measures.Measures`.
    lr : float
        Learning rate of Adam on the logits.
    generator : torch.Generator
        Source of the initial logits (1e-3 · normal) and of the samples.
    """

    def __init__(
        self,
        space: SearchSpace,
        score: Score,
        *,
        lr: float = DEFAULTS.learning_rate,
        generator: torch.Generator,
        tracker: RewardTracker | None = None,
    ) -> None:
        _require_search(space, score, generator)
        require_numbers(lr=lr)
        self.space, self.score, self.generator = space, score, generator
        self.logits = {
            name: (LOGIT_NOISE * torch.randn(len(choices), generator=generator)).requires_grad_()
            for name, choices in space.groups.items()
        }
        self.optimizer = torch.optim.Adam(self.logits.values(), lr=lr)
        self.tracker = tracker or RewardTracker()

    def log_probability(self, indices: Sequence[int]) -> Tensor:
        """Log-probability of one choice per group, summed over groups: a scalar, differentiable by the logits."""
        chosen = [logits.log_softmax(0)[index] for logits, index in zip(self.logits.values(), indices, strict=True)]
        return torch.stack(chosen).sum()

    def entropy(self) -> float:
        """Entropy of the policy in nats, summed over groups."""
        return float(sum(torch.distributions.Categorical(logits=logits.detach()).entropy() for logits in self.logits.values()))

    def step(self) -> Trial:
        """Sample a topology, measure it, and move the policy along the advantage of its log-probability."""
        entropy = self.entropy()
        with torch.no_grad():
            probabilities = [logits.softmax(0) for logits in self.logits.values()]
            indices = [int(torch.multinomial(p, 1, generator=self.generator)) for p in probabilities]
        topology = self.space.topology(indices)
        measures = self.score(topology)
        require_measures(measures)
        reward, baseline = self.tracker(measures)
        self.optimizer.zero_grad()
        (-self.log_probability(indices) * (reward - baseline)).backward()
        self.optimizer.step()
        return Trial(topology, measures, reward, baseline, entropy)

    def best(self) -> Topology:
        """Return the most probable choice of every group."""
        return self.space.topology([int(logits.argmax()) for logits in self.logits.values()])

    def probability(self, group: str) -> list[float]:
        """Return the policy's probabilities of a group's choices."""
        return self.logits[group].detach().softmax(0).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of logits, optimiser, generator and rewards, as tensors and plain values."""
        return {
            "logits": {name: logits.detach().clone() for name, logits in self.logits.items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "tracker": self.tracker.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore policy, optimiser, random numbers and rewards from :meth:`state_dict`, which stays as it is."""
        with torch.no_grad():
            for name, logits in self.logits.items():
                logits.copy_(state["logits"][name])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
        self.tracker.load_state_dict(state["tracker"])


def reinforce(
    space: SearchSpace,
    score: Score,
    steps: int = DEFAULTS.steps,
    lr: float = DEFAULTS.learning_rate,
    window: int = DEFAULTS.window,
    momentum: float = DEFAULTS.momentum,
    *,
    generator: torch.Generator,
    relative: bool = DEFAULTS.relative,
    progress: bool | None = None,
) -> SearchResult:
    """Search a topology with REINFORCE; defaults are the authors'.

    Parameters
    ----------
    space, score, lr, generator
        See :class:`Reinforce`.
    steps : int
        Trials.
    window, momentum, relative
        See :class:`RewardTracker`; ``relative=False`` is the authors' normalisation.
    progress : bool, optional
        Whether to show a bar; by default where the standard error stream is a terminal.

    Returns
    -------
    SearchResult
        The most probable topology, the logits, and every trial.
    """
    require_whole(steps=steps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    searcher = Reinforce(space, score, lr=lr, generator=generator, tracker=RewardTracker(window, momentum, relative))
    history = [searcher.step() for _ in track(range(steps), "search", steps, progress)]
    return SearchResult(searcher.best(), {name: logits.detach() for name, logits in searcher.logits.items()}, history)


class RandomSearch:
    """Uniform samples, of which the smallest rank sum wins; :func:`random_search` runs it.

    Parameters
    ----------
    space, score, generator
        As for :class:`Reinforce`.
    """

    def __init__(self, space: SearchSpace, score: Score, *, generator: torch.Generator) -> None:
        _require_search(space, score, generator)
        self.space, self.score, self.generator = space, score, generator
        self.trials: list[Trial] = []

    def step(self) -> Trial:
        """Sample a topology and measure it."""
        topology = self.space.sample(self.generator)
        measures = self.score(topology)
        require_measures(measures)
        self.trials.append(Trial(topology, measures))
        return self.trials[-1]

    def best(self) -> Topology:
        """Return the sample of the smallest rank sum."""
        return self.trials[best_of([trial.measures for trial in self.trials])].topology

    def state_dict(self) -> dict[str, Any]:
        """Return the generator and the samples with their measures, as a tensor and plain values."""
        trials = [[str(trial.topology), trial.measures.length, trial.measures.ntk] for trial in self.trials]
        return {"generator": self.generator.get_state(), "trials": trials}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore random numbers and trials from :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        self.trials = [Trial(Topology.parse(text)[0], Measures(length, ntk)) for text, length, ntk in state["trials"]]


def random_search(
    space: SearchSpace,
    score: Score,
    steps: int = DEFAULTS.steps,
    *,
    generator: torch.Generator,
    progress: bool | None = None,
) -> SearchResult:
    """Measure uniform samples and return the one of the smallest rank sum: what the measures do without a policy.

    Arguments are those of :func:`reinforce`.
    """
    require_whole(steps=steps)
    searcher = RandomSearch(space, score, generator=generator)
    history = [searcher.step() for _ in track(range(steps), "search at random", steps, progress)]
    return SearchResult(searcher.best(), {}, history)


def _require_search(space: object, score: object, generator: object) -> None:
    require_kind(SearchSpace, "a SearchSpace, such as SearchSpace.official(),", space=space)
    require_callable("a function of a topology, such as a Scorer,", score=score)
    require_kind(torch.Generator, "a torch.Generator", generator=generator)


def require_measures(measures: object) -> None:
    """Refuse what a score returns and is no :class:`~atlas.methods.as_vit.measures.Measures`.

    Raises
    ------
    TypeError
        It is of another type.
    """
    require_kind(Measures, "Measures(length, ntk)", **{"what the score returns": measures})


def dense_ranks(values: Sequence[float], *, descending: bool = False) -> list[int]:
    """Return ranks from 0, one per value; equal values share a rank, and no rank is left out."""
    order = {value: rank for rank, value in enumerate(sorted(set(values), reverse=descending))}
    return [order[value] for value in values]


def best_of(measured: Sequence[Measures]) -> int:
    """Return the index of the smallest sum of ranks: condition number ascending, length descending.

    Ties go to the better value of the measure that varies more, (max − min)/max, among all that are tied; then to the first.

    Raises
    ------
    ValueError
        There is nothing to choose from.
    """
    if not measured:
        raise ValueError("there is no candidate to choose from")
    lengths, kernels = [m.length for m in measured], [m.ntk for m in measured]
    ranks = zip(dense_ranks(kernels), dense_ranks(lengths, descending=True), strict=True)
    sums = [first + second for first, second in ranks]
    tied = [index for index, total in enumerate(sums) if total == min(sums)]
    if _relative_range(lengths) > _relative_range(kernels):
        return max(tied, key=lambda index: (lengths[index], -index))
    return min(tied, key=lambda index: (kernels[index], index))


def _relative_range(values: Sequence[float]) -> float:
    """(max − min)/max of non-negative values; 1 where the largest is infinite."""
    top, bottom = max(values), min(values)
    if math.isinf(top):
        return 0.0 if math.isinf(bottom) else 1.0
    return (top - bottom) / top if top else 0.0
