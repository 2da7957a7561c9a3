"""Claims: checkable statements of the papers, read from ``methods/<paper>/claims.yaml`` without running anything.

.. code-block:: yaml

    claims:
      - id: aos.acc-d12
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
        reported: 0.009            # the effect as the paper prints it, where it does
        source: Table 3
        tiers:                     # where it is judged, and what differs there
          demo: {dataset: digits, margin: -0.03}
          lab: {dataset: cifar10}
    reported:                      # numbers that papers print, shown beside ours
      - {row: attnscale, task: image-classification, dataset: imagenet, metric: top1, value: 0.807, source: Table 3}
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from atlas.errors import UserError, did_you_mean
from atlas.harness.planning import merge
from atlas.harness.registry import Paper, Settings, load
from atlas.harness.study import Study


class Comparison(Settings):
    """One comparison of a row with another row, or with a number."""

    metric: str
    method: str
    baseline: str | None = None
    compare: Literal["difference", "ratio", "value"] = "difference"
    direction: Literal["higher", "lower", "equal"] = "higher"
    margin: float = 0.0
    tolerance: float = 0.0


class Claim(Comparison):
    """A statement of a paper; see the module's docstring."""

    id: str
    statement: str
    task: str
    paper: str
    reported: float | str | None = None
    source: str = ""
    also: tuple[dict[str, Any], ...] = ()
    tiers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def dataset(self, tier: str) -> str | None:
        """Benchmark on which a tier judges the claim, or ``None`` if it does not."""
        return self.tiers.get(tier, {}).get("dataset")

    def comparisons(self, tier: str) -> list[Comparison]:
        """Every comparison that the claim asks for in a tier, all of which must hold."""
        own = self.model_dump(include=set(Comparison.model_fields))
        changed = {key: value for key, value in self.tiers.get(tier, {}).items() if key in Comparison.model_fields}
        first = merge(own, changed)
        further = self.tiers.get(tier, {}).get("also", self.also)
        return [Comparison(**first), *(Comparison(**merge(first, other)) for other in further)]


class Reported(Settings):
    """A number that a paper prints for a row."""

    row: str
    task: str
    dataset: str
    metric: str
    value: float
    source: str
    paper: str = ""


@cache
def _read(paper: Paper) -> tuple[tuple[Claim, ...], tuple[Reported, ...]]:
    if not paper.claims.is_file():
        return (), ()
    shown = f"methods/{paper.claims.parent.name}/claims.yaml"
    content = yaml.load(paper.claims.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    claims: list[Claim] = []
    reported: list[Reported] = []
    try:
        for index, item in enumerate(content.get("claims") or ()):
            where = f"claims[{index}] ({item.get('id', 'no id')})"
            claims.append(Claim(**item, paper=paper.slug))
            for tier in claims[-1].tiers:
                claims[-1].comparisons(tier)
        for index, item in enumerate(content.get("reported") or ()):
            where = f"reported[{index}]"
            reported.append(Reported(**item, paper=paper.slug))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise UserError(f"{shown}: {where}: {name}: {problem['msg'].lower()}") from None
    return tuple(claims), tuple(reported)


def load_claims() -> list[Claim]:
    """Return every claim of every paper, by paper."""
    return [claim for slug in sorted(load().papers) for claim in _read(load().papers[slug])[0]]


def load_reported(task: str, dataset: str) -> list[Reported]:
    """Return the numbers that papers print for a benchmark."""
    numbers = [number for slug in sorted(load().papers) for number in _read(load().papers[slug])[1]]
    return [number for number in numbers if (number.task, number.dataset) == (task, dataset)]


def check_claims(study: Study) -> None:
    """Check that every claim of the study's tier names things that exist.

    Raises
    ------
    UserError
        A claim names a task, row or metric that neither the study nor the registry knows; or two claims share an id.
    """
    seen: set[str] = set()
    for claim in load_claims():
        if claim.id in seen:
            raise UserError(f"two claims are called {claim.id}")
        seen.add(claim.id)
        load().task(claim.task)
        dataset = claim.dataset(study.tier)
        if dataset is None or (claim.task, dataset) not in study.tables:
            continue
        for comparison in claim.comparisons(study.tier):
            for row in filter(None, (comparison.method, comparison.baseline)):
                _check_row(study, claim, dataset, row, comparison.metric)


def _check_row(study: Study, claim: Claim, dataset: str, row: str, metric: str) -> None:
    runs = study.by_row.get((claim.task, dataset, row))
    if runs is None:
        registered = load().methods.get(claim.task, {})
        if all(name in registered for name in row.split("+")):
            return  # a study may leave a row out: the claim is then not run
        rows = [method for task, name, method in study.by_row if (task, name) == (claim.task, dataset)]
        raise UserError(f"claim {claim.id} names the row {row} of {claim.task}/{dataset}; {did_you_mean(row, rows)}")
    names = [declared.name for declared in runs[0].declared_metrics]
    if metric not in names:
        raise UserError(f"claim {claim.id} names the metric {metric} of {row}; {did_you_mean(metric, names)}")
