"""How a task or a paper contributes figures to the report: one decorated function per figure.

Figures live in ``figures.py`` beside an ``entry.py``; finding the file is the registration. A figure reads result
files through :class:`FigureData` and returns a matplotlib figure, a :class:`Film`, or ``None`` where
its data is missing.
Matplotlib and pandas load inside the function, never at module level.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.harness.run import Run
from atlas.harness.study import Study

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette; a row keeps its colour through all figures of a table.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#B8A800", "#332288")


@dataclass(frozen=True)
class FigureData:
    """The result files of one table: (task, dataset) of a study."""

    study: Study
    task: str
    dataset: str

    @cached_property
    def runs(self) -> list[Run]:
        """Every planned run of the table."""
        return self.study.matching(self.task, self.dataset)

    @cached_property
    def colors(self) -> dict[str, str]:
        """Colour of every row by the row's name, the same in all figures of a table."""
        rows = list(dict.fromkeys(run.method for run in self.runs))
        return {row: PALETTE[index % len(PALETTE)] for index, row in enumerate(rows)}

    @cached_property
    def titles(self) -> dict[str, str]:
        """Title that legends print, by the name of the row."""
        return {run.method: run.title for run in self.runs}

    def metrics(self) -> pd.DataFrame:
        """Every evaluated run: columns method, title, role, seed, and one per metric."""
        import pandas as pd

        rows = []
        for run in self.runs:
            if run.metrics.is_file():
                content = json.loads(run.metrics.read_text())
                values = {**content["metrics"], **content.get("timings", {})}
                rows.append({"method": run.method, "title": run.title, "role": run.role, "seed": run.seed, **values})
        return pd.DataFrame(rows, columns=None if rows else ["method", "title", "role", "seed"])

    def frames(self, name: str) -> pd.DataFrame:
        """A CSV file that runs leave beside their metrics, of all runs: its columns and method, title, seed."""
        import pandas as pd

        frames = []
        for run in self.runs:
            path = run.results / name
            if path.is_file():
                frame = pd.read_csv(path)
                frames.append(frame.assign(method=run.method, title=run.title, seed=run.seed))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def files(self, name: str) -> list[tuple[Run, Path]]:
        """Every run that left a file of that name beside its metrics, with its path."""
        return [(run, run.results / name) for run in self.runs if (run.results / name).is_file()]


@dataclass(frozen=True)
class Film:
    """A figure that moves: pictures side by side, each with a title.

    Attributes
    ----------
    columns : mapping
        Title to a picture of uint8, (height, width, 3), or to (frames, height, width, 3) that are shown in turn, without end. All
        have one size, and what moves as many frames.
    pause : int
        Milliseconds that each frame is shown.
    """

    columns: Mapping[str, np.ndarray]
    pause: int


@dataclass(frozen=True)
class FigureEntry:
    """A registered figure: ``draw(data)`` returns a matplotlib figure, a film, or ``None``."""

    name: str
    title: str
    caption: str
    alt: str
    task: str
    paper: str
    draw: Callable[[FigureData], Figure | Film | None]


_figures: dict[tuple[str, str], FigureEntry] = {}


def figure(name: str, *, task: str, title: str, caption: str, alt: str, paper: str = "") -> Callable[..., Any]:
    """Register the decorated function as a figure of every table of ``task``.

    Parameters
    ----------
    name : str
        File name without ending: ``results/<tier>/figures/<task>/<dataset>/<name>.svg``.
    title, caption, alt : str
        Heading, how to read it, and what a reader who cannot see it is told.
    paper : str
        Slug of the paper that the figure belongs to; empty for a task's own.
    """

    def register(draw: Callable[[FigureData], Figure | Film | None]) -> Callable[[FigureData], Figure | Film | None]:
        _figures[task, name] = FigureEntry(name, title, caption, alt, task, paper, draw)
        return draw

    return register


def figures_of(task: str) -> list[FigureEntry]:
    """Return the figures of a task, its own first, then those of papers, each in order of definition."""
    for module in _figure_modules():
        importlib.import_module(module)
    entries = [entry for entry in _figures.values() if entry.task == task]
    return sorted(entries, key=lambda entry: entry.paper != "")


def _figure_modules() -> Iterator[str]:
    for package in ("atlas.tasks", "atlas.methods"):
        folder = Path(importlib.import_module(package).__path__[0])
        for path in sorted(folder.glob("*/figures.py")):
            yield f"{package}.{path.parent.name}.figures"
