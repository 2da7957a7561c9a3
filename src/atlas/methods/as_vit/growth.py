"""Growth of a seed topology into a family, and the manual ways of scaling that it is compared with (Sec. 3.3).

Each step adds one block to one stage and may widen the stem; candidates are ranked by the two measures at a small
width, while size and cost are those of the final width. Every step's network is a member of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from atlas.methods.as_vit.layout import MAX_WIDTH, SINGLE_BLOCKS, Counts, count
from atlas.methods.as_vit.measures import Measures
from atlas.methods.as_vit.search import best_of, require_measures
from atlas.methods.as_vit.settings import GrowthSettings
from atlas.methods.as_vit.topology import FIRST_STAGE_HEADS, STAGES, Quadruple, Topology, quadruple, require_topology
from atlas.nn.bars import Bar
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_callable, require_kind, require_sequence, require_whole

Policy = Literal["rank", "random", "max-width"]
DEFAULTS = GrowthSettings()


class ScaleScore(Protocol):
    """Measures a topology at given depths and (small) stem width."""

    def __call__(self, topology: Topology, depths: Sequence[int], width: int) -> Measures:
        """Return the candidate's measures."""
        ...


@dataclass(frozen=True)
class GrowthStep:
    """One member of the family.

    Attributes
    ----------
    depths : tuple of int
        Blocks per stage.
    width : int
        Stem width h at which it was measured; the final network has ``final_width``.
    counts : Counts
        Size and cost at the final width.
    measures : Measures or None
        ``None`` where the policy does not look at them.
    stage : int
        Index of the stage that got a block.
    widest : bool
        Whether no candidate of the step was wider.
    candidates : int
        Number of candidates that the step chose from.
    """

    depths: Quadruple
    width: int
    counts: Counts
    measures: Measures | None
    final_width: int
    stage: int
    widest: bool
    candidates: int


@dataclass(frozen=True)
class Candidate:
    """A network that the next step may choose."""

    stage: int
    depths: Quadruple
    width: int
    counts: Counts


@dataclass(frozen=True)
class GrowthPlan:
    """The fixed part of a growth: sizes, bounds, and the shapes that are counted.

    Parameters
    ----------
    width0, width_scale : int
        Stem width h at the start, and the factor to the final width.
    ratios : tuple of float
        Relative increases q > 0 of the width that a step may take.
    limit, target : int
        Candidates of more parameters than ``limit`` are dropped; growth ends once a member has ``target``.
    options : mapping
        Further arguments of :func:`~atlas.methods.as_vit.layout.count`: image size, stride, classes…
    """

    topology: Topology
    width0: int = DEFAULTS.width0
    width_scale: int = DEFAULTS.width_scale
    ratios: tuple[float, ...] = DEFAULTS.ratios
    limit: int = DEFAULTS.limit
    target: int = DEFAULTS.target
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_topology(self.topology)
        require_whole(width0=self.width0, width_scale=self.width_scale)
        require_numbers(limit=self.limit, target=self.target, **{f"ratios[{i}]": q for i, q in enumerate(self.ratios)})
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"ratios {list(self.ratios)} must be positive")
        if self.width0 < 1 or self.width_scale < 1:
            raise ValueError(f"width0 {self.width0} and width_scale {self.width_scale} must be at least 1")
        start = self.counts(SINGLE_BLOCKS, self.width0).params
        if self.limit < start:
            raise ValueError(f"limit {self.limit:,} is below the {start:,} parameters that growth starts from")

    def counts(self, depths: Sequence[int], width: int) -> Counts:
        """Return size and cost at the final width, for blocks per stage and the small width that is measured."""
        return count(self.topology, depths=depths, width=self.width_scale * width, **self.options)

    def candidates(self, depths: Quadruple, width: int) -> list[Candidate]:
        """Return what may follow: one more block in one stage (outer), each next width (inner), within the limit."""
        allowed = []
        for stage in range(STAGES):
            deeper = quadruple("depths", [depth + (index == stage) for index, depth in enumerate(depths)])
            for wider in next_widths(width, self.ratios):
                counts = self.counts(deeper, wider)
                if counts.params <= self.limit:
                    allowed.append(Candidate(stage, deeper, wider, counts))
        return allowed


def next_widths(width: int, ratios: Sequence[float] = DEFAULTS.ratios) -> list[int]:
    """Return the widths that a step may take: width · (1 + q), rounded half to even, repeated ones once.

    >>> next_widths(8), next_widths(20)
    ([8, 9, 10], [21, 22, 23, 24])
    """
    return list(dict.fromkeys(round(width * (1 + ratio)) for ratio in ratios))


class Growth:
    """Growth step by step; :func:`grow` runs it, resumable loops call :meth:`step` themselves.

    Parameters
    ----------
    plan : GrowthPlan
        Sizes and bounds.
    score : ScaleScore or None
        Measures candidates; only the policy ``rank`` needs it.
    policy : {"rank", "random", "max-width"}
        Smallest rank sum; a uniform choice among the candidates; or always the widest, in a random stage.
    generator : torch.Generator, optional
        Source of random choices.
    evaluate : callable
        Like ``map``: applies a function to the candidates of a step, for example ``executor.map`` of processes.
    """

    def __init__(
        self,
        plan: GrowthPlan,
        score: ScaleScore | None = None,
        *,
        policy: Policy = "rank",
        generator: torch.Generator | None = None,
        evaluate: Callable[[Callable[[Candidate], Measures], Iterable[Candidate]], Iterable[Measures]] = map,
    ) -> None:
        if policy not in ("rank", "random", "max-width"):
            raise ValueError(f"policy {policy!r} is none of 'rank', 'random', 'max-width'")
        if policy == "rank" and score is None:
            raise ValueError("policy 'rank' needs a score")
        if score is not None:
            require_callable("a function of topology, depths and width, such as a Scorer,", score=score)
        if generator is not None:
            require_kind(torch.Generator, "a torch.Generator", generator=generator)
        self.plan, self.score, self.policy, self.evaluate = plan, score, policy, evaluate
        self.generator = generator or torch.Generator().manual_seed(0)
        self.depths: Quadruple = SINGLE_BLOCKS
        self.width = plan.width0

    def measures_of(self, candidate: Candidate) -> Measures:
        """Measure one candidate at its small width."""
        assert self.score is not None
        measures = self.score(self.plan.topology, candidate.depths, candidate.width)
        require_measures(measures)
        return measures

    def step(self) -> GrowthStep | None:
        """Take one step; ``None`` when the target is reached or no candidate is left."""
        if self.plan.counts(self.depths, self.width).params >= self.plan.target:
            return None
        candidates = self.plan.candidates(self.depths, self.width)
        if not candidates:
            return None
        index, measures = self._choose(candidates)
        chosen = candidates[index]
        self.depths, self.width = chosen.depths, chosen.width
        return GrowthStep(
            chosen.depths,
            chosen.width,
            chosen.counts,
            measures,
            final_width=self.plan.width_scale * chosen.width,
            stage=chosen.stage,
            widest=chosen.width == max(candidate.width for candidate in candidates),
            candidates=len(candidates),
        )

    def _choose(self, candidates: list[Candidate]) -> tuple[int, Measures | None]:
        if self.policy == "rank":
            measured = list(self.evaluate(self.measures_of, candidates))
            index = best_of(measured)
            return index, measured[index]
        allowed = range(len(candidates))
        if self.policy == "max-width":
            widest = max(candidate.width for candidate in candidates)
            allowed = [index for index in allowed if candidates[index].width == widest]  # type: ignore[assignment]
        return allowed[int(torch.randint(len(allowed), (), generator=self.generator))], None

    def state_dict(self) -> dict[str, Any]:
        """Return where growth is, as plain values and a tensor."""
        return {"depths": list(self.depths), "width": self.width, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore depths, width and random numbers from :meth:`state_dict`."""
        self.depths, self.width = quadruple("depths", state["depths"]), state["width"]
        self.generator.set_state(state["generator"])

    def __iter__(self) -> Iterator[GrowthStep]:
        """Take and yield growth steps until the limit is reached."""
        while (taken := self.step()) is not None:
            yield taken


def grow(
    topology: Topology,
    score: ScaleScore | None = None,
    *,
    width0: int = DEFAULTS.width0,
    width_scale: int = DEFAULTS.width_scale,
    ratios: Sequence[float] = DEFAULTS.ratios,
    limit: int = DEFAULTS.limit,
    target: int = DEFAULTS.target,
    policy: Policy = "rank",
    generator: torch.Generator | None = None,
    evaluate: Callable[..., Iterable[Measures]] = map,
    progress: bool | None = None,
    **options: Any,
) -> list[GrowthStep]:
    """Grow a topology into a family; defaults are the authors'.

    Parameters
    ----------
    topology : Topology
        The seed.
    score : callable, optional
        ``score(topology, depths, width)``, for example a :class:`~atlas.methods.as_vit.measures.Scorer`; width is the
        small one.
    width0, width_scale, ratios, limit, target
        See :class:`GrowthPlan`.
    policy, generator, evaluate
        See :class:`Growth`.
    progress : bool, optional
        Whether to show a bar over the parameters of ``target``; by default where the standard error stream is a terminal.
    **options
        Further arguments of :func:`~atlas.methods.as_vit.layout.count`.

    Returns
    -------
    list of GrowthStep
        One member per step, each a block deeper than the one before; the start is not among them.

    Raises
    ------
    ValueError
        Ratios that are not positive, a limit below the start's size, or policy ``rank`` without a score.
    """
    require_sequence("a sequence of ratios", ratios=ratios)
    plan = GrowthPlan(topology, width0, width_scale, tuple(ratios), limit, target, options)
    members: list[GrowthStep] = []
    with Bar("grow", target, progress) as bar:
        for member in Growth(plan, score, policy=policy, generator=generator, evaluate=evaluate):
            members.append(member)
            bar.reach(member.counts.params)
    return members


def matched(
    plan: GrowthPlan,
    budget: int,
    policy: Policy,
    *,
    generator: torch.Generator,
    tolerance: float = DEFAULTS.tolerance,
    attempts: int = DEFAULTS.attempts,
) -> list[GrowthStep]:
    """Grow without measures, again and again, until a member's size is within ``tolerance`` of a budget of parameters.

    Returns
    -------
    list of GrowthStep
        The family up to that member; after ``attempts`` families, that of the closest member.
    """

    def distance(family: list[GrowthStep]) -> float:
        return abs(family[-1].counts.params / budget - 1) if family else float("inf")

    best: list[GrowthStep] = []
    for _ in range(attempts):
        family = list(Growth(plan, policy=policy, generator=generator))
        best = min([best, *(family[:end] for end in range(1, len(family) + 1))], key=distance)
        if distance(best) <= tolerance:
            break
    return best


def width_for(topology: Topology, params: int, *, depths: Sequence[int], **options: Any) -> int:
    """Return the stem width that brings a network closest to a parameter budget.

    The width is a multiple of 4 and of H/8, so that every head of the first stage has the same share.

    Raises
    ------
    ValueError
        The smallest such width is above the budget by more than half, or the widest that ``max_width`` allows below by as much.
    """
    require_topology(topology)
    require_numbers(params=params)
    unit, widest = 4, options.get("max_width", MAX_WIDTH)
    while unit % (topology.heads // FIRST_STAGE_HEADS):
        unit += 4

    def size(width: int) -> int:
        return count(topology, depths=depths, width=width, **options).params

    width = unit
    while size(width) < params and width + unit <= widest:
        width += unit
    if width > unit and params - size(width - unit) <= size(width) - params:
        width -= unit
    if not params / 1.5 <= size(width) <= 1.5 * params:
        raise ValueError(f"no width brings {topology} with depths {list(depths)} to {params:,} parameters")
    return width


def uniform_scaling(topology: Topology, params: int, **options: Any) -> tuple[Quadruple, int]:
    """Return equal depths (n, n, n, n) and the width whose size is closest to a budget; the shallowest on ties.

    Depths up to 8 are tried.
    """
    fitting = []
    for depth in range(1, 9):
        depths = quadruple("depths", (depth,) * STAGES)
        try:
            width = width_for(topology, params, depths=depths, **options)
        except ValueError:
            continue
        fitting.append((abs(count(topology, depths=depths, width=width, **options).params - params), depths, width))
    if not fitting:
        raise ValueError(f"no uniform scaling of {topology} fits {params:,} parameters")
    _, depths, width = min(fitting)
    return depths, width


def swin_like(splits: Sequence[int], heads: int = 32) -> Topology:
    """Return a topology in the manner of Swin: non-overlapping merges, expansion 4; ``splits`` set the window."""
    return Topology((4, 2, 2, 2), quadruple("splits", splits), (4, 4, 4, 4), heads)
