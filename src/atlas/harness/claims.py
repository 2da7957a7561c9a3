"""Claims: checkable statements of the papers, read from ``methods/<paper>/claims.yaml`` without running anything.

The file is checked when a study is read: a name that does not exist is an error before anything runs.

.. code-block:: yaml

    headlines:                         # what the paper's abstract promises, a sentence each, in our own words
      - {id: deeper, statement: "Deeper backbones become more accurate, by up to 1.1 points.", source: abstract}
    claims:
      - id: aos.acc-d12
        answers: [deeper]          # the headlines that it judges
        statement: AttnScale is at least as accurate as the plain backbone at depth 12.
        task: image-classification
        metric: top1
        method: attnscale          # a row
        baseline: deit             # a row; none for compare: value
        compare: difference        # metric(method) − metric(baseline); or ratio, or value
        direction: higher          # effect ≥ margin; lower: effect ≤ margin; equal: |effect − margin| ≤ tolerance
        margin: 0
        also:                      # further comparisons that the statement needs, over the same fields
          - {method: featscale}
        every: false               # ask it of every seed, not only of the mean
        of: growth_steps           # the metric is a share of so many decisions per seed: a number, or a metric that counts them
        exact: false               # it follows from the construction, so that seeds that agree settle it
        bound: false               # the metric bounds an interval of the run's own: not to reach the margin leaves the claim open
        reported: 0.009            # the effect as the paper prints it, where it does
        source: Table 3
        whose: paper               # or atlas: our own observation
        evidence: arithmetic       # true by construction; left out, the data tell the kind of evidence
        against: false             # whether it speaks against the method if it is supported
        seeds: 5                   # fewer seeds leave it inconclusive
        note: …                    # what a reader should know before believing the verdict
        tiers:                     # where it is judged, and what differs there
          demo: {dataset: digits, margin: -0.03, statement: …, note: …}
          lab: {dataset: cifar10}
          # any field of a comparison may differ, and `also`, `statement` and `note` too
        about: UCI HAR             # what it is about, where a tier that has its rows, but not that, does not judge it
    reported:                      # numbers that papers print, shown beside ours
      - {row: attnscale, task: image-classification, dataset: imagenet, metric: top1, value: 0.807, source: Table 3}
      # a note says why our count differs, where it does: the rehearsal compares the two
      - {row: deit, task: image-classification, dataset: imagenet, metric: parameters, value: 22.0e6, source: …, note: …}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import Field

from atlas.datasets import dataset_names
from atlas.errors import UserError, did_you_mean
from atlas.harness.registry import Paper, load
from atlas.harness.run import Run
from atlas.harness.yaml_file import read_yaml
from atlas.settings import Settings, merge, validate_settings

NEAR = 0.85  # similarity from which an unknown name is a misspelling


class Comparison(Settings):
    """One comparison of a row with another row, or with a number.

    Attributes
    ----------
    baseline : str, optional
        The other row; without one, the method's value itself is judged.
    compare : {"difference", "ratio", "value"}
        The effect: ``metric(method) − metric(baseline)``, their ratio, or ``metric(method)``.
    direction : {"higher", "lower", "equal"}
        What is asked of it: at least ``margin``, at most ``margin``, or within ``tolerance`` of it.
    every : bool
        Ask it of the effect of every seed, besides the mean.
    of : int or str, optional
        The metric is a share of so many decisions per seed (a number, or the metric of the row that counts them): agreement on
        a few of them is no certainty.
    exact : bool
        The effect follows from the construction, so that seeds that agree settle it.
    bound : bool
        The metric is the end of a confidence interval that every run has of its own, over something else than seeds. Support
        needs it to reach the margin; if it does not, too little was looked at, which contradicts nothing.
    """

    metric: str
    method: str
    baseline: str | None = None
    compare: Literal["difference", "ratio", "value"] = "difference"
    direction: Literal["higher", "lower", "equal"] = "higher"
    margin: float = 0.0
    tolerance: float = Field(default=0.0, ge=0)
    every: bool = False
    of: int | str | None = None
    exact: bool = False
    bound: bool = False


class Claim(Comparison):
    """A statement of a paper, or of our own; see the module's docstring.

    Attributes
    ----------
    evidence : str
        ``"arithmetic"`` if it is true by construction, else empty: the data that it is judged on tell.
    whose : {"paper", "atlas"}
        Who claims it.
    against : bool
        Whether it speaks against the method if it is supported.
    seeds : int
        Fewer seeds leave it inconclusive.
    note : str
        What a reader should know before believing the verdict.
    about : str
        What it is about, where that is less than its rows: a tier that has the rows, but not that, does not judge it.
    answers : tuple of str
        Ids of the paper's headlines that it judges.
    """

    id: str
    statement: str
    task: str
    paper: str
    reported: float | str | None = None
    source: str = ""
    whose: Literal["paper", "atlas"] = "paper"
    evidence: Literal["", "arithmetic"] = ""
    against: bool = False
    seeds: int = Field(default=2, ge=2)
    about: str = ""
    note: str = ""
    answers: tuple[str, ...] = ()
    also: tuple[dict[str, Any], ...] = ()
    tiers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def dataset(self, tier: str) -> str | None:
        """Benchmark on which a tier judges the claim, or ``None`` if it does not."""
        return self.tiers.get(tier, {}).get("dataset")

    def said(self, tier: str) -> str:
        """The statement as a tier judges it."""
        return str(self.tiers.get(tier, {}).get("statement", self.statement))

    def noted(self, tier: str) -> str:
        """What a reader of a tier's verdict should know; empty if nothing."""
        return str(self.tiers.get(tier, {}).get("note", self.note))

    def comparisons(self, tier: str) -> list[Comparison]:
        """Every comparison that the claim asks for in a tier, all of which must hold."""
        changed = {key: value for key, value in self.tiers.get(tier, {}).items() if key in COMPARISON}
        first = merge(self.model_dump(include=set(COMPARISON)), changed)
        if self.evidence == "arithmetic":
            first = {**first, "exact": True}
        further = self.tiers.get(tier, {}).get("also", self.also)
        return [_comparison(first), *(_comparison(merge(first, other)) for other in further)]


COMPARISON = tuple(Comparison.model_fields)
TIER_WORDS = ("dataset", "also", "statement", "note", *COMPARISON)


def _comparison(values: dict[str, Any]) -> Comparison:
    """A comparison; without a baseline there is only the value itself to judge."""
    return Comparison(**(values if values.get("baseline") else {**values, "compare": "value"}))


class Reported(Settings):
    """A number that a paper prints for a row."""

    row: str
    task: str
    dataset: str
    metric: str
    value: float
    source: str
    note: str = ""
    paper: str = ""


class Headline(Settings):
    """A sentence of a paper's abstract in our own words; ``note`` says what of it Atlas does not ask, and why."""

    id: str
    statement: str
    source: str = "abstract"
    note: str = ""
    paper: str = ""


class Written(NamedTuple):
    """What one paper's ``claims.yaml`` says."""

    claims: tuple[Claim, ...] = ()
    numbers: tuple[Reported, ...] = ()
    headlines: tuple[Headline, ...] = ()


@cache
def _read(paper: Paper) -> Written:
    if not paper.claims.is_file():
        return Written()
    shown = f"methods/{paper.claims.parent.name}/claims.yaml"
    content = read_yaml(paper.claims, shown) or {}
    _known(content, ("claims", "reported", "headlines"), shown)
    headlines = [_headline(item, f"{shown}: headlines[{index}]", paper) for index, item in _items(content, "headlines", shown)]
    claims = [_claim(item, f"{shown}: claims[{index}]", paper) for index, item in _items(content, "claims", shown)]
    numbers = [_reported(item, f"{shown}: reported[{index}]", paper) for index, item in _items(content, "reported", shown)]
    _check_headlines(headlines, claims, shown)
    return Written(tuple(claims), tuple(numbers), tuple(headlines))


def _check_headlines(headlines: list[Headline], claims: list[Claim], shown: str) -> None:
    known = [headline.id for headline in headlines]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice:
        raise UserError(f"{shown}: two headlines are called {twice}")
    for claim in claims:
        for name in claim.answers:
            if name not in known:
                raise UserError(f"{shown}: claim {claim.id} answers {name}, which is no headline; {did_you_mean(name, known)}")


def _items(content: Mapping[str, Any], key: str, shown: str) -> Iterable[tuple[int, dict[str, Any]]]:
    items = content.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{shown}: {key} must be a list of mappings")
    return enumerate(items)


def _known(values: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping, not {values!r}")
    for key in values:
        if key not in known:
            raise UserError(f"{where}: {key} is not known here; {did_you_mean(str(key), known)}")


def _claim(item: dict[str, Any], where: str, paper: Paper) -> Claim:
    where = f"{where} ({item.get('id', 'no id')})"
    claim = Claim(**validate_settings(Claim, {**item, "paper": paper.slug}, where, "a claim"))
    for tier, changes in claim.tiers.items():
        _known(changes, TIER_WORDS, f"{where}.tiers.{tier}")
        if "dataset" not in changes:
            raise UserError(f"{where}.tiers.{tier} names no dataset")
        changed = {key: value for key, value in changes.items() if key in COMPARISON}
        first = merge(claim.model_dump(include=set(COMPARISON)), changed)
        for other in ({}, *changes.get("also", claim.also)):
            validate_settings(Comparison, merge(first, other), f"{where}.tiers.{tier}", "a comparison")
    return claim


def _reported(item: dict[str, Any], where: str, paper: Paper) -> Reported:
    return Reported(**validate_settings(Reported, {**item, "paper": paper.slug}, where, "a reported number"))


def _headline(item: dict[str, Any], where: str, paper: Paper) -> Headline:
    return Headline(**validate_settings(Headline, {**item, "paper": paper.slug}, where, "a headline"))


def claims_text() -> str:
    """Every paper's ``claims.yaml`` as it is written: what verdicts depend on beside the numbers."""
    files = (load().papers[slug].claims for slug in sorted(load().papers))
    return "\n".join(path.read_text() for path in files if path.is_file())


def load_claims() -> list[Claim]:
    """Return every claim of every paper, by paper."""
    return [claim for slug in sorted(load().papers) for claim in _read(load().papers[slug]).claims]


def load_headlines() -> list[Headline]:
    """Return what every paper's abstract promises, by paper."""
    return [headline for slug in sorted(load().papers) for headline in _read(load().papers[slug]).headlines]


def load_reported(task: str, dataset: str) -> list[Reported]:
    """Return the numbers that papers print for a benchmark."""
    return [number for number in _all_reported() if (number.task, number.dataset) == (task, dataset)]


def _all_reported() -> list[Reported]:
    return [number for slug in sorted(load().papers) for number in _read(load().papers[slug]).numbers]


def check_claims(runs: Iterable[Run], tier: str) -> None:
    """Check that every claim and reported number names things that exist, for the runs of a study.

    Raises
    ------
    UserError
        A claim names a task, dataset, row or metric that neither the study nor the registry knows; or two claims share an id.
    """
    rows = {(run.task, run.dataset, run.method): run for run in runs}
    seen: set[str] = set()
    for claim in load_claims():
        if claim.id in seen:
            raise UserError(f"two claims are called {claim.id}")
        seen.add(claim.id)
        load().task(claim.task)
        _check_tier(rows, tier, claim)
        for judged in claim.tiers:
            for comparison in claim.comparisons(judged):
                _check_metric(claim.task, comparison.metric, f"claim {claim.id}")
                if isinstance(comparison.of, str):
                    _check_metric(claim.task, comparison.of, f"claim {claim.id}")
    for number in _all_reported():
        _check_metric(number.task, number.metric, f"the number that {number.paper} reports for {number.row}")


def _check_metric(task: str, metric: str, who: str) -> None:
    """Whether any method of a task declares a metric."""
    entry = load().task(task)
    methods = load().methods.get(task, {}).values()
    declared = [*entry.metrics, *(known for method in methods for known in (*(method.metrics or ()), *method.extra_metrics))]
    names = {known.name for known in declared}
    if metric not in names:
        raise UserError(f"{who} names the metric {metric}, which no method of {task} declares; {did_you_mean(metric, names)}")


def _check_tier(rows: Mapping[tuple[str, str, str], Run], tier: str, claim: Claim) -> None:
    """Check what a claim names in the study's own tier."""
    dataset = claim.dataset(tier)
    tables = list(dict.fromkeys(name for task, name, _ in rows if task == claim.task))
    if dataset is None or not tables:
        return
    if dataset not in tables:
        if dataset not in dataset_names() and difflib.get_close_matches(dataset, tables, n=1, cutoff=NEAR):
            raise UserError(f"claim {claim.id} names the dataset {dataset} of {claim.task}; {did_you_mean(dataset, tables)}")
        return  # a study may leave a benchmark out: the claim is then not run
    for comparison in claim.comparisons(tier):
        for row in filter(None, (comparison.method, comparison.baseline)):
            _check_row(rows, claim, dataset, row, comparison.metric)


def _check_row(rows: Mapping[tuple[str, str, str], Run], claim: Claim, dataset: str, row: str, metric: str) -> None:
    run = rows.get((claim.task, dataset, row))
    if run is None:
        registered = load().methods.get(claim.task, {})
        if all(name in registered for name in row.split("+")):
            return  # a study may leave a row out: the claim is then not run
        known = [method for task, name, method in rows if (task, name) == (claim.task, dataset)]
        raise UserError(f"claim {claim.id} names the row {row} of {claim.task}/{dataset}; {did_you_mean(row, known)}")
    names = [declared.name for declared in run.declared_metrics]
    if metric not in names:
        raise UserError(f"claim {claim.id} names the metric {metric} of {row}; {did_you_mean(metric, names)}")
