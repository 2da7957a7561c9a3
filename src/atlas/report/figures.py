"""Draw every figure of a table: the general ones that each has, and those that its task and the papers register."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from atlas.harness.files import write_json, write_text
from atlas.harness.plots import FigureData, FigureEntry, Film, figures_of
from atlas.harness.stale import metrics_digest, read_json
from atlas.harness.study import Study
from atlas.report.collect import Table, collect_table
from atlas.report.film import film_svg
from atlas.report.general import cost_figure, headline_figure
from atlas.report.style import STYLE, svg

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A figure as it is written: name, texts, and its SVG."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str


def draw(table: Table) -> list[Drawn]:
    """Draw every figure that has its data; one that cannot be drawn is left out with a warning."""
    import matplotlib as mpl

    mpl.use("svg")
    data = FigureData(table.study, table.task, table.dataset)
    general = [headline_figure(table, data.colors), cost_figure(table, data.colors)]
    drawn = []
    with mpl.rc_context(STYLE):
        for figure in (*filter(None, general), *figures_of(table.task)):
            text = _draw_one(figure, data)
            if text is not None:
                drawn.append(Drawn(figure.name, figure.title, figure.caption, figure.alt, text))
    return drawn


def _draw_one(figure: FigureEntry, data: FigureData) -> str | None:
    """SVG of one figure; the numbers of a run that went wrong must not cost the reader the whole report."""
    import matplotlib.pyplot as plt

    try:
        drawn = figure.draw(data)
        if isinstance(drawn, Film):
            return film_svg(drawn)
        return None if drawn is None else svg(drawn)
    except Exception as error:
        log.warning("%s/%s: the figure %s cannot be drawn: %s", data.task, data.dataset, figure.name, error)
        return None
    finally:
        plt.close("all")


def write_figures(study: Study, task: str, dataset: str) -> None:
    """Write ``figures/<task>/<dataset>/*.svg``, and ``index.json`` with their captions and what they were drawn from."""
    folder = study.results / "figures" / task / dataset
    for old in folder.glob("*.svg"):
        old.unlink()
    index: list[dict[str, Any]] = []
    for figure in draw(collect_table(study, task, dataset)):
        write_text(folder / f"{figure.name}.svg", figure.svg)
        index.append({key: value for key, value in asdict(figure).items() if key != "svg"})
    write_json(folder / "index.json", {"metrics_digest": metrics_digest(study.matching(task, dataset)), "figures": index})


def figures(table: Table) -> list[Drawn]:
    """The figures of a table: those on disk if they show what is there now, else drawn anew and not written."""
    folder = table.study.results / "figures" / table.task / table.dataset
    index = read_json(folder / "index.json")
    if index.get("metrics_digest") == metrics_digest(table.study.matching(table.task, table.dataset)):
        drawn = [(item, folder / f"{item['name']}.svg") for item in index.get("figures", [])]
        if all(path.is_file() for _, path in drawn):
            return [Drawn(**item, svg=path.read_text()) for item, path in drawn]
    return draw(table)
