"""Some runs of a study, by a part of their names: one row, all of a method, everything that fits a pattern.

A name has four parts, ``task/dataset/method/seed<k>``. A pattern gives some that follow each other, whole, with ``*``, ``?`` and
``[…]`` inside a part as in file names: ``image-classification/digits/attnscale`` is a row with all its seeds, ``digits`` a data
set, ``attnscale/seed10`` one seed of every row of that name. A single word may also be a paper, a registered method of a recipe
or row, or the acquired data set that a benchmark reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import chain

from atlas.errors import UserError, did_you_mean
from atlas.harness.run import Run
from atlas.harness.study import Study


def select(study: Study, patterns: Iterable[str]) -> list[Run]:
    """Return the runs that fit at least one of some patterns, those that others need first, else in the study's order.

    Raises
    ------
    UserError
        A pattern fits no run; suggests the nearest name.

    Examples
    --------
    >>> study = Study.read("demo")                                            # doctest: +SKIP
    >>> [run.cell for run in select(study, ["digits/attnscale/seed10"])]      # doctest: +SKIP
    ['image-classification/digits/attnscale/seed10']
    """
    chosen: dict[str, Run] = {}
    for pattern in patterns:
        matching = _matching(study, pattern.strip().strip("/"))
        if not matching:
            raise UserError(f"{pattern} is not a run of {study.source}, nor a part of one's name; {_hint(study, pattern)}")
        chosen |= {run.cell: run for run in matching}
    ordered: dict[str, Run] = {}
    for run in study.runs:
        if run.cell in chosen:
            _append(run, chosen, ordered)
    return list(ordered.values())


def _matching(study: Study, pattern: str) -> list[Run]:
    exact = study.by_cell.get(pattern)
    return [exact] if exact is not None else [run for run in study.runs if _fits(run, pattern.split("/"))]


def _fits(run: Run, parts: list[str]) -> bool:
    """Whether parts of a pattern are those of a run's name, beginning anywhere."""
    name = run.cell.split("/")
    places = range(len(name) - len(parts) + 1)
    if any(all(map(fnmatchcase, name[first:], parts)) for first in places):
        return True
    return len(parts) == 1 and any(fnmatchcase(word, parts[0]) for word in _words(run))


def _words(run: Run) -> list[str]:
    """What else a single word may name."""
    return [*run.recipe, *(entry.paper for entry in run.method_entries if entry.paper), *([run.data] if run.data else [])]


def _append(run: Run, chosen: dict[str, Run], ordered: dict[str, Run]) -> None:
    """Put a run after those that it needs."""
    for needed in run.needs.values():
        _append(needed, chosen, ordered)
    if run.cell in chosen:
        ordered.setdefault(run.cell, run)


def _hint(study: Study, pattern: str) -> str:
    """The nearest name with as many parts."""
    parts = pattern.strip("/").count("/") + 1
    names = [run.cell.split("/") for run in study.runs]
    known = {"/".join(name[first : first + parts]) for name in names for first in range(len(name) - parts + 1)}
    if parts == 1:
        known |= set(chain.from_iterable(map(_words, study.runs)))
    hint = did_you_mean(pattern, known)
    return hint if known and hint.startswith("did you mean") else "atlas list runs shows them"
