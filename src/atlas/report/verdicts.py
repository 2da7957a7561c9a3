"""Verdicts on claims: paired over seeds, with a confidence interval, the same rule for every claim.

A comparison asks an effect to be in a region: at least a margin, at most a margin, or within a tolerance of it. It is
*supported* if its whole 95 % interval lies inside, *contradicted* if the whole interval lies outside, else *inconclusive*. So a
true effect at the edge of the region is called supported in 2.5 % of studies and contradicted in 2.5 %. One seed
alone is inconclusive.

A claim with several comparisons is supported if all are, which is no easier with more of them. It is contradicted if one
is; because more comparisons are more chances to err, each is then held to an interval of 1 − 0.05/k, k their number. One
that asks it of a bound, the end of an interval that each run has of its own, is not among them: where it fails the claim is open.

A verdict is *fragile* if leaving out one seed changes it, or if another of the processor's kernels did (``kernels.csv``). It is
then told as "supported, fragile": another set of seeds, or another machine, may well say something else.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from atlas.harness.claims import Claim, Comparison, load_claims
from atlas.harness.registry import Metric, load
from atlas.harness.stale import KERNELS
from atlas.harness.study import Study
from atlas.report.collect import Row, Table, collect
from atlas.report.costs import Costs, costs
from atlas.report.evidence import evidence, tested
from atlas.report.numbers import effect_text, effect_unit, margin_text
from atlas.report.power import MOST, replicates
from atlas.report.statistics import CONFIDENCE, FEW, Effects, Interval, effects, interval

VERDICTS = ("supported", "contradicted", "inconclusive", "not run")
DECISIVE = ("contradicted", "not run", "inconclusive", "supported")
SIGNS = {"higher": "≥", "lower": "≤", "equal": "="}


@dataclass(frozen=True)
class Part:
    """One comparison of a claim with what was found.

    Attributes
    ----------
    table : Table, optional
        Where the rows stand; ``None`` if the study does not have them.
    ours, theirs : mapping
        Seed to value of the method and of the baseline; ``theirs`` is ``None`` where there is none to compare with.
    parts : int
        How many comparisons of the claim can contradict it.
    least : int
        With fewer seeds nothing is settled.
    decisions : mapping
        Seed to the number of decisions of which its value is a share; empty if it is none.
    """

    comparison: Comparison
    task: str
    table: Table | None
    ours: Mapping[int, float]
    theirs: Mapping[int, float] | None = None
    parts: int = 1
    least: int = 2
    decisions: Mapping[int, float] = field(default_factory=dict)

    @cached_property
    def effects(self) -> Effects:
        """Effect of the method against its baseline, on every seed."""
        asks = self.comparison
        exact = asks.exact or bool(self.metric and self.metric.is_deterministic)
        decisions = round(sum(self.decisions.get(seed, 0) for seed in self.ours))
        return effects(asks.compare, self.ours, self.theirs, exact, decisions)

    @cached_property
    def found(self) -> Interval:
        """Mean effect with its interval."""
        return interval(self.effects)

    @cached_property
    def strict(self) -> Interval:
        """The wider interval that a contradiction needs, where the claim has several comparisons."""
        return interval(self.effects, self.strictness) if self.parts > 1 else self.found

    @property
    def strictness(self) -> float:
        """Confidence of the interval that a contradiction needs."""
        return 1 - (1 - CONFIDENCE) / self.parts

    @cached_property
    def _by_effects(self) -> str:
        """The verdict as if no comparison were of a bound."""
        first = verdict(self.comparison, self.found)
        if first == "not run" or (self.found.count < self.least and not self.effects.certain):
            return "not run" if first == "not run" else "inconclusive"
        if self.comparison.every and self.found.count > 1 and self.exceptions:
            return "contradicted"
        if first == "contradicted" and verdict(self.comparison, self.strict) != "contradicted":
            return "inconclusive"
        return first

    @cached_property
    def verdict(self) -> str:
        """Whether the effects uphold or contradict this comparison, or tell too little; a bound contradicts nothing."""
        return "inconclusive" if self.comparison.bound and self._by_effects == "contradicted" else self._by_effects

    @property
    def exceptions(self) -> list[int]:
        """Seeds whose own effect does not satisfy the comparison."""
        low, high = region(self.comparison)
        return [seed for seed, value in self.by_seed.items() if not low <= value <= high]

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """Effect by seed, with ratios as they are rather than as logarithms."""
        if self.theirs is None:
            seeds = sorted(self.ours)
        else:
            ratio = self.comparison.compare == "ratio"
            seeds = sorted(seed for seed in set(self.ours) & set(self.theirs) if self.theirs[seed] or not ratio)
        return dict(zip(seeds, self.effects.plain, strict=True))

    @property
    def planned(self) -> int:
        """Number of seeds that the study plans."""
        row = self._row(self.comparison.method)
        return len(row.cells) if row else len(self.ours)

    @property
    def region(self) -> tuple[float, float]:
        """Smallest and largest effect that satisfy the comparison, on the scale of the effects' values."""
        low, high = region(self.comparison)
        return (_log(low), _log(high)) if self.effects.logarithmic else (low, high)

    @cached_property
    def slack(self) -> float:
        """How far inside the region the mean lies, in half widths of the interval: the tightest part has least of it."""
        low, high = self.region
        mean = math.fsum(self.effects.values) / max(len(self.effects.values), 1)
        distance = min(mean - low, high - mean)
        wide = interval(replace(self.effects, logarithmic=False))
        half = (wide.high - wide.low) / 2
        if self.found.count == 0:
            return math.nan
        if not self.found.bounded or half == 0:
            return 0.0 if not self.found.bounded else math.copysign(math.inf, distance if distance else 1.0)
        return distance / half

    @cached_property
    def replicates(self) -> tuple[bool, float]:
        """Whether the mean lies inside the region, and how many seeds would tell it from the edge (see :mod:`.power`)."""
        low, high = self.region
        mean = math.fsum(self.effects.values) / max(len(self.effects.values), 1)
        inside = low <= mean <= high
        if self.comparison.bound and not inside:  # seeds do not narrow the interval that it is the end of
            return True, math.nan
        return inside, max(replicates(self.effects, low, high, CONFIDENCE if inside else self.strictness), float(self.least))

    def without(self, seed: int) -> Part:
        """The same comparison as if a seed had not been run; however few are left, they may settle it."""
        ours = {other: value for other, value in self.ours.items() if other != seed}
        theirs = None if self.theirs is None else {other: value for other, value in self.theirs.items() if other != seed}
        return replace(self, ours=ours, theirs=theirs, least=2)

    @cached_property
    def costs(self) -> Costs | None:
        """What the trainings of both sides take; ``None`` where there is one side, or nothing is counted."""
        rows = [self._row(name) for name in (self.comparison.method, self.comparison.baseline) if name]
        if len(rows) < 2 or self.table is None or rows[0] is None or rows[1] is None:
            return None
        return costs(self.table, rows[0], rows[1])

    @property
    def unequal(self) -> str:
        """How the costs differ where quality is compared at unequal cost, in a few words; else empty."""
        if self.costs is None or self.costs.equal or math.isnan(self.costs.ratio) or (self.metric and self.metric.is_cost):
            return ""
        return f"at {effect_text(None, 'ratio', self.costs.ratio)} × the cost of training"

    @property
    def metric(self) -> Metric | None:
        """The metric that is compared, as its row or else its task declares it."""
        row = self._row(self.comparison.method)
        declared = row.metrics if row else load().task(self.task).metrics
        return next((metric for metric in declared if metric.name == self.comparison.metric), None)

    @property
    def asked(self) -> str:
        """What the comparison asks for, in the words of the tables."""
        asks = self.comparison
        label = self.metric.label if self.metric else asks.metric
        unit = effect_unit(self.metric, asks.compare)
        margin = margin_text(self.metric, asks.compare, asks.margin)
        if asks.direction == "equal" and asks.tolerance:
            margin += f" ± {margin_text(self.metric, asks.compare, asks.tolerance)}"
        every = ", on every seed" if asks.every else ""
        return f"{label}: {self.sides} {SIGNS[asks.direction]} {margin}{unit}{every}"

    @property
    def sides(self) -> str:
        """The rows that are compared, by their titles."""
        asks = self.comparison
        if asks.compare == "value" or asks.baseline is None:
            return self._title(asks.method)
        return f"{self._title(asks.method)} {'÷' if asks.compare == 'ratio' else '−'} {self._title(asks.baseline)}"

    @property
    def effect(self) -> str:
        """The effect with its interval; empty where there is none."""
        effect, compare = self.found, self.comparison.compare
        if effect.count == 0:
            return ""
        unit = effect_unit(self.metric, compare)
        if not effect.bounded:
            return effect_text(self.metric, compare, effect.mean) + unit
        mean, low, high = (effect_text(self.metric, compare, value) for value in (effect.mean, effect.low, effect.high))
        return f"{mean}{unit} (exact)" if effect.low == effect.high else f"{mean} [{low}, {high}]{unit}"

    @property
    def basis(self) -> str:
        """How many seeds, and how the interval was found."""
        if self.found.count == 0:
            return self.why_not_run
        seeds = str(self.found.count) if self.found.count == self.planned else f"{self.found.count} of {self.planned}"
        text = f"{seeds} seed{'s' if self.planned != 1 else ''}, {self.found.method}"
        if self.comparison.every and self.exceptions:
            text += f"; not on seed {', '.join(map(str, self.exceptions))}"
        return text + (f"; the claim asks {self.least} seeds" if self.found.count < self.least else "")

    @property
    def why_not_run(self) -> str:
        """The reason why no seed could be judged; empty where the study lacks the table."""
        if self.table is None:
            return ""
        for name in filter(None, (self.comparison.method, self.comparison.baseline)):
            row = self._row(name)
            if row is None:
                return f"{name} is not a row of this study"
            missing = row.why_missing(self.comparison.metric)
            if len(missing) == len(row.cells):
                problems = sorted(row.problems.values(), key=lambda text: text.startswith("not run"))
                return f"{row.title}: {next(iter([*problems, *missing.values()]))}"
        return "no seed has both rows"

    def _row(self, name: str) -> Row | None:
        return self.table.row(name) if self.table else None

    def _title(self, name: str) -> str:
        row = self._row(name)
        methods = load().methods.get(self.task, {})
        return row.title if row else methods[name].title if name in methods else name


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict; the numbers of its row are those of the comparison that decides.

    Attributes
    ----------
    reason : str
        Why it was not run; empty if it was.
    kernels : mapping
        Another kernel of the processor to the verdict with it, where that was tried.
    """

    claim: Claim
    tier: str
    dataset: str
    parts: tuple[Part, ...]
    reason: str
    kernels: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def decisive(self) -> Part:
        """The comparison that decides: a contradiction, else what is not run or open; of several, the tightest."""
        return min(self.parts, key=lambda part: (DECISIVE.index(part.verdict), _order(part.slack)))

    @property
    def tightest(self) -> Part | None:
        """Of several comparisons, the one that has least to spare."""
        judged = [part for part in self.parts if part.found.count]
        return min(judged, key=lambda part: _order(part.slack)) if len(self.parts) > 1 and judged else None

    @property
    def verdict(self) -> str:
        """Whether the claim holds: the verdict on the comparison that decides it."""
        return self.decisive.verdict

    @property
    def told(self) -> str:
        """Verdict as it is printed: nothing fragile is called supported, or contradicted, without saying so."""
        return f"{self.verdict}, fragile" if self.fragile else self.verdict

    @cached_property
    def fragile(self) -> str:
        """What changes the verdict, in words; empty if nothing that was tried does."""
        if self.verdict not in ("supported", "contradicted"):
            return ""
        seeds = [seed for seed in self._left_out if self._without(seed) != self.verdict]
        reasons = [f"not without seed {_either(seeds)}"] if seeds else []
        others = [f"{kernel}: {other}" for kernel, other in self.kernels.items() if other != self.verdict]
        return "; ".join(reasons + ([f"with other kernels, {', '.join(others)}"] if others else []))

    @property
    def _left_out(self) -> list[int]:
        """Seeds to leave out one by one; beyond a few, those whose effects are extreme."""
        extreme: set[int] = set()
        for part in self.parts:
            seeds = sorted(part.by_seed, key=part.by_seed.__getitem__)
            extreme.update(seeds if len(seeds) <= FEW else (seeds[0], seeds[-1]))
        return sorted(extreme)

    def _without(self, seed: int) -> str:
        return min((part.without(seed).verdict for part in self.parts), key=DECISIVE.index)

    @property
    def replicates(self) -> float:
        """How many seeds would settle it with a power of 80 %, at the effects and spreads found; ``nan`` if they do not tell."""
        if any(part.found.count == 0 for part in self.parts):
            return math.nan
        outside = [count for inside, count in (part.replicates for part in self.parts) if not inside]
        every = [count for _, count in (part.replicates for part in self.parts)]
        return min(outside) if outside else math.nan if any(map(math.isnan, every)) else max(every)

    @property
    def replicates_text(self) -> str:
        """How many seeds would settle the claim, as it is shown; empty if the effects do not tell."""
        count = self.replicates
        return "" if math.isnan(count) else f">{MOST}" if math.isinf(count) else f"{count:.0f}"

    @property
    def _run(self) -> Any:
        part = self.decisive
        row = part.table.row(part.comparison.method) if part.table else None
        return row.cells[0].run if row else None

    @property
    def evidence(self) -> str:
        """Kind of evidence that it rests on; empty where that is not known."""
        return evidence(self.claim, self._run)

    @property
    def tested(self) -> str:
        """On how much each seed is tested, in words; empty where that is not known or nothing is tested."""
        return tested(self._run) if self._run is not None and not self.claim.evidence else ""

    @property
    def statement(self) -> str:
        """The statement as this tier judges it."""
        return self.claim.said(self.tier)

    @property
    def note(self) -> str:
        """What a reader of the verdict should know; empty if nothing."""
        data = f"Data: {self.substitution}." if self.substitution else ""
        return " ".join(filter(None, (self.claim.noted(self.tier), data)))

    @property
    def substitution(self) -> str:
        """That other data than the study names were read, in a sentence's words; empty where they were not."""
        table = self.decisive.table
        return table.substitution if table else ""

    @property
    def speaks_against(self) -> bool:
        """Whether it is a finding against the method: a claim that fell, or one against the method that held."""
        return self.verdict == ("supported" if self.claim.against else "contradicted")


def _order(slack: float) -> float:
    return math.inf if math.isnan(slack) else slack


def _either(seeds: list[int]) -> str:
    """Numbers joined by commas and a last "or"."""
    words = list(map(str, seeds))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _log(value: float) -> float:
    return -math.inf if value <= 0 else math.log(value) if math.isfinite(value) else value


def region(comparison: Comparison) -> tuple[float, float]:
    """Smallest and largest effect that satisfy a comparison."""
    if comparison.direction == "higher":
        return comparison.margin, math.inf
    if comparison.direction == "lower":
        return -math.inf, comparison.margin
    return comparison.margin - comparison.tolerance, comparison.margin + comparison.tolerance


def verdict(comparison: Comparison, effect: Interval) -> str:
    """Judge one comparison by its interval."""
    if effect.count == 0:
        return "not run"
    if not effect.bounded:
        return "inconclusive"
    low, high = region(comparison)
    slack = 1e-12 * max(1e-6, abs(comparison.margin), abs(effect.mean))
    if low - slack <= effect.low and effect.high <= high + slack:
        return "supported"
    if effect.high < low - slack or effect.low > high + slack:
        return "contradicted"
    return "inconclusive"


def compare(comparison: Comparison, task: str, table: Table | None, parts: int, least: int = 2) -> Part:
    """Find the effect of one of several comparisons of a claim about a task."""
    method = table.row(comparison.method) if table else None
    baseline = table.row(comparison.baseline) if table and comparison.baseline else None
    ours = method.values(comparison.metric) if method else {}
    theirs = (baseline.values(comparison.metric) if baseline else {}) if comparison.baseline else None
    of, decisions = comparison.of, {}
    if method and of is not None:
        decisions = method.values(of) if isinstance(of, str) else dict.fromkeys(ours, float(of))
    return Part(comparison, task, table, ours, theirs, parts, least, decisions)


def judge(claim: Claim, study: Study, tables: dict[tuple[str, str], Table], kernels: Mapping[str, str] | None = None) -> Judged:
    """Judge one claim on the tables of a study: every comparison that it asks for, and the verdict on the whole."""
    dataset = claim.dataset(study.tier)
    table = tables.get((claim.task, dataset)) if dataset else None
    comparisons = claim.comparisons(study.tier)
    count = max(sum(not comparison.bound for comparison in comparisons), 1)
    parts = tuple(compare(comparison, claim.task, table, count, claim.seeds) for comparison in comparisons)
    reason = ""
    if dataset is None:
        reason = f"not a claim for the {study.tier} tier" + (f": it is about {claim.about}" if claim.about else "")
    elif table is None:
        reason = f"{claim.task}/{dataset} is not in this study"
    elif any(part.verdict == "not run" for part in parts):
        reason = next(part.why_not_run for part in parts if part.verdict == "not run")
    return Judged(claim, study.tier, dataset or "", parts, reason, kernels or {})


def judge_all(study: Study, tables: list[Table] | None = None) -> list[Judged]:
    """Judge every claim of every paper on the tables of a study."""
    by_name = {(table.task, table.dataset): table for table in (collect(study) if tables is None else tables)}
    kernels = other_kernels(study)
    return [judge(claim, study, by_name, kernels.get(claim.id)) for claim in load_claims()]


def other_kernels(study: Study) -> dict[str, dict[str, str]]:
    """Claim to kernel to verdict, as ``results/<tier>/kernels.csv`` (id, kernel, verdict) records them; empty without one."""
    path = study.results / KERNELS
    verdicts: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(path.open()) if path.is_file() else ():
        if all(line.get(key) for key in ("id", "kernel", "verdict")):
            verdicts.setdefault(line["id"], {})[line["kernel"]] = line["verdict"]
    return verdicts
