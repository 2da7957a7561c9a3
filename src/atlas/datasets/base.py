"""What a dataset is: where it comes from, how it is checked, and how it becomes files under ``data/<name>/``.

A module of this package that holds a list ``DATASETS`` of :class:`Dataset` adds them; no other list needs an edit. ``prepare``
receives the verified downloads and an empty folder, and writes what loaders read. It imports heavy libraries inside.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from atlas.errors import AtlasError, UserError, did_you_mean


class DatasetError(AtlasError):
    """A dataset cannot be acquired or read; the message says which file, what is wrong with it, and what to do."""


class DatasetLayoutError(DatasetError, UserError):
    """Files that the user supplies are missing, incomplete or in another layout than expected."""


@dataclass(frozen=True)
class Source:
    """One file to download.

    Attributes
    ----------
    url : str
        Origin; empty for a file that only mirrors have.
    file : str
        Name under which mirrors hold it.
    checksum : str
        ``"sha256:…"`` or ``"md5:…"`` as the source publishes it; empty where it publishes none (the manifest then records
        what was received).
    """

    url: str
    file: str
    checksum: str = ""


@dataclass(frozen=True)
class Dataset:
    """A dataset by name; see the module's docstring.

    Attributes
    ----------
    kind : {"embedded", "download", "user-supplied"}
        Bundled with a library; fetched from its origin or a mirror; or put under ``data/<name>/`` by hand.
    prepare : callable
        ``prepare(downloads, folder)`` writes the files that loaders read. For user-supplied data it is ``None``.
    check : callable, optional
        ``check(folder)`` raises :class:`DatasetLayoutError` for user-supplied data that is not as expected.
    stand_in : callable, optional
        ``stand_in(folder)`` writes random data of the dataset's shape, as few examples as loaders accept, where ``prepare``
        would write the real ones: for rehearsals and tests, never for results.
    made_of : callable, optional
        ``made_of(root)`` says what ``prepare`` would copy now, as the sources of a manifest under ``root`` say it: for data whose
        origin is on this machine, where it may change. ``None`` where the origin is always the same.
    """

    name: str
    title: str
    kind: Literal["embedded", "download", "user-supplied"]
    licence: str
    citation: str
    prepare: Callable[[Sequence[Path], Path], None] | None = None
    check: Callable[[Path], None] | None = None
    stand_in: Callable[[Path], None] | None = None
    made_of: Callable[[Path], list[dict[str, Any]]] | None = None
    sources: tuple[Source, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    def training_examples(self, test_fraction: float) -> float:
        """Examples that a task can train or validate on; NaN where that is not known before the data are there.

        ``test_fraction`` of a dataset without an official test split are held out.
        """
        known = cast(float, self.facts.get("train", math.nan))
        official = "test" in self.facts or "domains" in self.facts
        return known if official else (1 - test_fraction) * known

    def test_examples(self, test_fraction: float) -> int | None:
        """Examples that are held out for testing, up to the rounding of each class; ``None`` where that is not known."""
        if "test" in self.facts:
            return cast(int, self.facts["test"])
        known = cast(float, self.facts.get("train", math.nan))
        return None if math.isnan(known) or "domains" in self.facts else round(test_fraction * known)


@cache
def all_datasets() -> dict[str, Dataset]:
    """Every dataset, by name, from the modules of this package."""
    package = importlib.import_module("atlas.datasets")
    datasets: dict[str, Dataset] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for dataset in getattr(importlib.import_module(f"atlas.datasets.{module.name}"), "DATASETS", ()):
            datasets[dataset.name] = dataset
    return dict(sorted(datasets.items()))


def dataset_names() -> list[str]:
    """Names of all datasets, sorted."""
    return list(all_datasets())


def get_dataset(name: str) -> Dataset:
    """Look a dataset up, or raise a :class:`~atlas.errors.UserError` that suggests the nearest name."""
    if name not in all_datasets():
        raise UserError(f"there is no dataset {name}; {did_you_mean(name, all_datasets())}")
    return all_datasets()[name]
