"""Two sets of results held against each other: what only one has, which numbers and verdicts differ, and by how much.

A difference between two numbers says little by itself: it is told in units of the row's standard deviation over seeds, so that
"0.4 sd" means that another machine, version or revision moved a number by less than another seed would.
"""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from atlas.errors import UserError
from atlas.report.markdown import escape, grid
from atlas.report.statistics import mean_and_sd

FRAGILE = ", fragile"
NOT_RUN = "not run"
DEFAULT_FOLDER = "results/demo"
HEADER = ("row", "metric", "seed", "first", "second", "drift in sd")


@dataclass(frozen=True)
class Results:
    """The numbers and verdicts of a results folder.

    Attributes
    ----------
    name : str
        What it is called on the page: the folder, or the revision.
    numbers : dict
        (row, metric) to seed to value; a row is ``task/dataset/method``, and a value that was not finite is ``nan``.
    verdicts : dict
        Claim's id to its verdict, as it is told.
    machines : tuple of str
        Processors that computed it.
    """

    name: str
    numbers: Mapping[tuple[str, str], Mapping[int, float]]
    verdicts: Mapping[str, str]
    machines: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, files: Mapping[str, str]) -> Results:
        """Make sense of a folder's files, given as relative path to text.

        Raises
        ------
        UserError
            A file is damaged, or there is nothing to compare.
        """
        numbers: dict[tuple[str, str], dict[int, float]] = {}
        machines: dict[str, None] = {}
        for path, text in files.items():
            parts = PurePosixPath(path).parts
            if len(parts) == 6 and parts[0] == "runs" and parts[-1] == "metrics.json" and parts[4].startswith("seed"):
                try:
                    content = json.loads(text)
                    metrics = {str(key): math.nan if value is None else float(value) for key, value in content["metrics"].items()}
                except (ValueError, TypeError, KeyError, AttributeError):
                    raise UserError(f"{name}: {path} is damaged") from None
                machines[_machine(content.get("provenance", {}))] = None
                for metric, value in metrics.items():
                    numbers.setdefault(("/".join(parts[1:4]), metric), {})[int(parts[4][4:])] = value
        claims = csv.DictReader(io.StringIO(files.get("claims.csv", "")))
        verdicts = {line["id"]: line["verdict"] + (FRAGILE if line.get("fragile") else "") for line in claims}
        if not numbers and not verdicts:
            raise UserError(
                f"{name} holds no results: neither runs/<task>/<dataset>/<method>/seed<k>/metrics.json nor claims.csv"
            )
        return cls(name, numbers, verdicts, tuple(machines))

    @classmethod
    def at(cls, source: str, folder: str = DEFAULT_FOLDER) -> Results:
        """Read a folder, or what a git revision holds at ``folder`` (``REVISION:FOLDER`` names another).

        Raises
        ------
        UserError
            It is neither a folder nor a revision that holds one.
        """
        if Path(source).is_dir():
            root = Path(source)
            files = [path for path in sorted(root.rglob("*")) if path.name in ("metrics.json", "claims.csv") and path.is_file()]
            return cls.read(source, {path.relative_to(root).as_posix(): path.read_text() for path in files})
        revision, _, own = source.partition(":")
        return cls.read(source, dict(_files_of_revision(revision, own or folder, source)))


def _machine(provenance: Mapping[str, Any]) -> str:
    """The processor that computed, and which of its kernels: "AMD EPYC, 2 cores, portable kernels"."""
    kernels = provenance.get("kernels")
    return f"{provenance.get('hardware', 'unknown')}{f', {kernels} kernels' if kernels else ''}"


def _files_of_revision(revision: str, folder: str, source: str) -> Iterator[tuple[str, str]]:
    """Relative path and text of the files that matter below a folder, as a revision holds them."""
    try:
        archive = ["git", "archive", "--format=tar", f"{revision}:{folder}"]
        done = subprocess.run(archive, capture_output=True, cwd=_repository())  # from a folder below it gives that folder's part
    except OSError:
        raise UserError(f"{source} is not a folder, and there is no git to ask for a revision of that name") from None
    if done.returncode:
        raise UserError(f"{source} is neither a folder nor a git revision that holds {folder}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as packed:
        for member in packed:
            if PurePosixPath(member.name).name in ("metrics.json", "claims.csv") and (stream := packed.extractfile(member)):
                yield member.name, stream.read().decode()


@dataclass(frozen=True)
class Difference:
    """One number that two results do not share; ``drift`` is in standard deviations over seeds, ``nan`` where there is none."""

    row: str
    metric: str
    seed: int
    first: float
    second: float
    drift: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The difference as a line of a table."""
        drift = "no spread" if math.isnan(self.drift) else f"{self.drift:.2g}"
        return (self.row, self.metric, str(self.seed), f"{self.first:.6g}", f"{self.second:.6g}", drift)


@dataclass(frozen=True)
class ResultsComparison:
    """Two studies' results side by side: which numbers and verdicts differ, and by how much."""

    first: Results
    second: Results
    differences: list[Difference] = field(default_factory=list)
    shared: int = 0

    @classmethod
    def of(cls, first: Results, second: Results) -> ResultsComparison:
        """Hold every number that both have against the other; the largest drift comes first."""
        differences: list[Difference] = []
        shared = 0
        for key in sorted(set(first.numbers) & set(second.numbers)):
            ours, theirs = first.numbers[key], second.numbers[key]
            spread = _spread(list(ours.values()), list(theirs.values()))
            for seed in sorted(set(ours) & set(theirs)):
                shared += 1
                if not _same(ours[seed], theirs[seed]):
                    drift = abs(ours[seed] - theirs[seed]) / spread if spread > 0 else math.nan
                    differences.append(Difference(*key, seed, ours[seed], theirs[seed], drift))
        differences.sort(
            key=lambda difference: (
                -math.inf if math.isnan(difference.drift) else -difference.drift,
                difference.row,
                difference.metric,
                difference.seed,
            )
        )
        return cls(first, second, differences, shared)

    @cached_property
    def judged(self) -> list[tuple[str, str, str]]:
        """Claims that both have and at least one of the two judges: id, first verdict, second verdict.

        That neither judged a claim is no agreement about it; that one did, and the other had no results for it, is a difference.
        """
        both = [name for name in self.first.verdicts if name in self.second.verdicts]
        pairs = [(name, self.first.verdicts[name], self.second.verdicts[name]) for name in both]
        return [pair for pair in pairs if set(pair[1:]) != {NOT_RUN}]

    @cached_property
    def verdicts(self) -> list[tuple[str, str, str]]:
        """Those of :attr:`judged` whose verdicts differ.

        A fragile verdict claims no more than an inconclusive one, or than the same one without that word; they do not differ.
        """
        return [pair for pair in self.judged if not agree(*pair[1:])]

    @cached_property
    def largest(self) -> Difference | None:
        """The difference that is largest beside its row's spread over seeds."""
        measured = [difference for difference in self.differences if not math.isnan(difference.drift)]
        return max(measured, key=lambda difference: difference.drift, default=None)

    @property
    def headline(self) -> str:
        """One line that says how many numbers and verdicts are alike, and which drifted most."""
        alike = f"{self.shared - len(self.differences):,} of {self.shared:,} numbers alike"
        verdicts = f"{len(self.judged) - len(self.verdicts)} of {len(self.judged)} verdicts alike"
        if not self.differences:
            return f"{alike}, {verdicts}"
        worst = f", largest drift {self.largest.drift:.2g} sd ({self.largest.row} {self.largest.metric})" if self.largest else ""
        return f"{verdicts}, {alike}{worst}"

    def only(self) -> list[tuple[str, list[str]]]:
        """What one of the two lacks: its name, and the runs and claims that only it has."""
        return [
            (
                mine.name,
                sorted(_cells(mine) - _cells(other)) + [f"claim {name}" for name in mine.verdicts if name not in other.verdicts],
            )
            for mine, other in ((self.first, self.second), (self.second, self.first))
        ]

    def markdown(self, limit: int | None = None) -> str:
        """The comparison as text; ``limit`` shortens the list of numbers."""
        parts = [f"# {escape(self.first.name)} and {escape(self.second.name)}\n\n**{escape(self.headline)}**\n\n"]
        for results in (self.first, self.second):
            parts.append(f"- {escape(results.name)}: computed on {escape('; '.join(results.machines) or 'unknown machines')}\n")
        if self.verdicts:
            parts.append(f"\n## Verdicts that differ\n\n{grid(('claim', 'first', 'second'), self.verdicts)}")
        if self.differences:
            parts.append(
                f"\n## Numbers that differ\n\n{grid(HEADER, [difference.cells for difference in self.differences[:limit]])}"
            )
            if limit is not None and len(self.differences) > limit:
                parts.append(f"\n… and {len(self.differences) - limit:,} more; --output FILE.md or FILE.html holds all.\n")
        for name, items in self.only():
            if items:
                parts.append(f"\n## Only in {escape(name)}\n\n" + "".join(f"- {escape(item)}\n" for item in items))
        return "".join(parts)

    def html(self) -> str:
        """The comparison as a page of its own."""
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup

        environment = Environment(loader=PackageLoader("atlas.report"), autoescape=True, undefined=StrictUndefined)
        style = Markup((Path(__file__).parent / "templates" / "style.css").read_text())
        return environment.get_template("compare.html").render(comparison=self, header=HEADER, style=style)


def _cells(results: Results) -> set[str]:
    return {f"{row}/seed{seed}" for (row, _), seeds in results.numbers.items() for seed in seeds}


def agree(first: str, second: str) -> bool:
    """Whether two verdicts do not contradict each other."""
    plain = {first.removesuffix(FRAGILE), second.removesuffix(FRAGILE)}
    fragile = [shown for shown in (first, second) if shown.endswith(FRAGILE)]
    return len(plain) == 1 or ("inconclusive" in plain and bool(fragile))


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


def _spread(ours: list[float], theirs: list[float]) -> float:
    """Standard deviation over seeds, pooled over both sides; ``nan`` where neither has two seeds."""
    deviations = [sd for values in (ours, theirs) if not math.isnan(sd := mean_and_sd(values)[1])]
    return math.sqrt(math.fsum(sd**2 for sd in deviations) / len(deviations)) if deviations else math.nan


def compare(first: str, second: str) -> ResultsComparison:
    """Compare two results folders, or a folder and what a git revision holds at its place.

    Parameters
    ----------
    first, second : str
        A folder such as ``results/demo``; a git revision such as ``HEAD`` (the same folder as the other side's, or
        ``results/demo`` beside another revision), or ``REVISION:FOLDER``.

    Raises
    ------
    UserError
        One of them holds no results, they share none, or the folder lies outside the checkout, where no revision has its like.
    """
    found = ResultsComparison.of(_side(first, beside=second), _side(second, beside=first))
    if not found.shared and not found.judged:
        raise UserError(
            f"{first} and {second} have no run and no judged claim in common, so there is nothing to compare; "
            "name results of the same study, judged by 'atlas claims'"
        )
    return found


def _side(source: str, beside: str) -> Results:
    """Read one side of a comparison; a revision that names no folder is asked for the one that stands beside it."""
    names_its_folder = Path(source).is_dir() or ":" in source
    return Results.at(source) if names_its_folder else Results.at(source, _folder_in_revisions(beside, source))


def _folder_in_revisions(source: str, revision: str) -> str:
    """Where revisions hold what a side of a comparison names, as a path from the top of the repository."""
    if not Path(source).is_dir():
        return source.partition(":")[2] or DEFAULT_FOLDER
    top = _repository()
    if top is None:
        return source
    for path in (Path(source).resolve(), Path.cwd() / source):  # results may be a link to elsewhere
        if path.is_relative_to(top):
            return path.relative_to(top).as_posix()
    raise UserError(
        f"{source} lies outside this checkout, so no folder of a revision corresponds to it; "
        f"say which one is meant, for example {revision}:{DEFAULT_FOLDER}"
    )


def _repository() -> Path | None:
    """Top folder of the git repository around the present folder; ``None`` without one."""
    with suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True)
        if done.returncode == 0:
            return Path(done.stdout.strip())
    return None
