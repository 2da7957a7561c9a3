"""Figures of novel view synthesis: renderings beside the truth, quality over the distance from the reference, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas.harness.plots import FigureData, Film, figure
from atlas.tasks.novel_view_synthesis.reconstruction import FLIGHT, FLIGHT_PAUSE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "novel-view-synthesis"
SCENE = "scene"
ERROR_TOP = 0.4
COLUMN, MARGIN, LABEL = 1.35, 0.3, 0.35


def _image(path: Path) -> Any:
    """A picture as floats in [0, 1]."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float64) / 255


def _pictures(data: FigureData) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Names of the kept views, nearest first, and every row's pictures by name: the scene's are the truth; first seed only."""
    folders = {run.method: run.results for run in reversed(data.runs)}
    truth = folders.pop(SCENE, None)
    if truth is None:
        return [], {}
    names = sorted(path.stem for path in truth.glob("view*.png"))
    distance = data.frames("views.csv")
    if len(distance):
        degrees = distance.groupby("view")["degrees"].first()
        names.sort(key=lambda name: (degrees.get(int(name.removeprefix("view")), 0.0), name))
    pictures_of = {}
    for row, folder in {SCENE: truth, **folders}.items():
        pictures = {path.stem: _image(path) for path in folder.glob("*.png")}
        if row == SCENE or all(name in pictures for name in names):
            pictures_of[row] = pictures
    order = [run.method for run in data.runs]
    return names, {row: pictures_of[row] for row in dict.fromkeys([SCENE, *order]) if row in pictures_of}


def _show(axes: Axes, image: Any, **options: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if image is not None:
        axes.imshow(image, interpolation="none", **options)


@figure(
    "views",
    task=TASK,
    title="Held-out views",
    caption=(
        "Held-out views of the first seed as rendered by every row, the nearest to the reference first; below, for the farthest "
        "one, the absolute error of the colours (mean over channels, white is 0 and black 0.4 or more) and the depth (near is "
        "bright, black is empty)."
    ),
    alt="A grid of small pictures: rows of the table beside the true view, with error maps and depth maps below.",
)
def views(data: FigureData) -> Figure | None:
    """Renderings, error maps and depth maps beside the truth."""
    import matplotlib.pyplot as plt
    import numpy as np

    names, rows = _pictures(data)
    if not names or len(rows) < 2:
        return None
    last = names[-1]
    height, width = rows[SCENE][last].shape[:2]
    lines = [*names, "error", "depth"]
    tall = COLUMN * height / width
    drawing, grid = plt.subplots(
        len(lines),
        len(rows),
        figsize=(COLUMN * len(rows) + MARGIN, tall * len(lines) + LABEL),
        layout="constrained",
        squeeze=False,
    )
    drawing.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # type: ignore[union-attr,call-arg]
    for column, (row, pictures) in enumerate(rows.items()):
        for line, name in enumerate(names):
            _show(grid[line, column], pictures[name])
        error = None if row == SCENE else np.abs(pictures[last] - rows[SCENE][last]).mean(-1)
        _show(grid[-2, column], error, cmap="Greys", vmin=0, vmax=ERROR_TOP)
        depth = pictures.get(last.replace("view", "depth"))
        _show(grid[-1, column], depth, cmap="gray", vmin=0, vmax=1)
        title = "truth" if row == SCENE else data.titles[row]
        grid[0, column].set_title(_wrapped(title), fontsize=8)
    for line, name in enumerate(lines):
        label = f"view {name.removeprefix('view')}" if name in names else name
        grid[line, 0].set_ylabel(label, fontsize=8)
    return drawing


def _wrapped(title: str) -> str:
    """A title in lines that are no wider than a column."""
    import textwrap

    return "\n".join(textwrap.wrap(title, 15, break_on_hyphens=True))


def _frames(path: Path) -> Any:
    """The frames of an animation, (frames, height, width, 3) of uint8."""
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as film:  # a frame that is shown longer stands for several that are the same
        shown = [(frame.convert("RGB"), round(frame.info["duration"] / FLIGHT_PAUSE)) for frame in ImageSequence.Iterator(film)]
    return np.stack([np.asarray(frame) for frame, times in shown for _ in range(times)])


@figure(
    "flight",
    task=TASK,
    title="A flight around the reference",
    caption=(
        "The reference of the first seed, which is all that is known, and what the fields of some rows show on one path around "
        "it; the films are flight.gif beside the runs' metrics."
    ),
    alt="Moving pictures side by side: the reference stands still, the rows' fields are seen from cameras that move around it.",
)
def flight(data: FigureData) -> Film | None:
    """Show films of the first seed of every row, side by side."""
    import numpy as np
    from PIL import Image

    first = {run.method: run for run in reversed(data.runs)}
    films = {run.title: _frames(path) for run, path in data.files(FLIGHT) if first[run.method] is run}
    references = [path for run, path in data.files("reference.png") if first[run.method] is run]
    if not films or not references:
        return None
    with Image.open(references[0]) as image:
        height, width = next(iter(films.values())).shape[1:3]
        known = np.asarray(image.convert("RGB").resize((width, height)))
    return Film({"reference": known, **films}, FLIGHT_PAUSE)


@figure(
    "distance",
    task=TASK,
    title="Quality over the distance from the reference",
    caption=(
        "PSNR and SSIM of every held-out view, mean over seeds, against the angle between its optical axis and the reference's "
        "(for cameras that do not turn, the parallax at the nearest depth)."
    ),
    alt="Two plots over the angle from the reference, one line per method: PSNR and SSIM fall with the distance.",
)
def distance(data: FigureData) -> Figure | None:
    """PSNR and SSIM against the distance from the input view."""
    import matplotlib.pyplot as plt

    table = data.frames("views.csv")
    if table.empty or table["view"].nunique() < 2:
        return None
    table = table.assign(degrees=table["degrees"].round())
    drawing, panels = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    for axes, (metric, label) in zip(panels, (("psnr", "PSNR / dB"), ("ssim", "SSIM")), strict=True):
        for row, group in table.groupby("method", sort=False):
            mean = group.groupby("degrees")[metric].mean()
            axes.plot(mean.index, mean, "o-", color=data.colors[str(row)], label=data.titles[str(row)], markersize=4)
        axes.set(xlabel="degrees from the reference", ylabel=label)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing


TERMS = (("rgb", "error of the colours"), ("depth", "depth term"))


@figure(
    "training",
    task=TASK,
    title="Training",
    caption=(
        "Unweighted terms over the steps, mean over seeds, logarithmic: the squared error of the reference's colours, and the "
        "depth term, which for SinNeRF covers warped views too."
    ),
    alt="Two line plots over training steps, one line per method: colour error and depth term.",
)
def training(data: FigureData) -> Figure | None:
    """Draw the colour and depth terms of the loss over steps."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    if table.empty or "rgb" not in table:
        return None
    drawing, panels = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    for axes, (term, label) in zip(panels, TERMS, strict=True):
        for row, group in table.groupby("method", sort=False):
            if term in group and group[term].notna().any():
                curve = group.groupby("step")[term].mean()
                axes.plot(curve.index, curve, color=data.colors[str(row)], label=data.titles[str(row)], linewidth=1.4)
        axes.set(xlabel="step", ylabel=label, yscale="log")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing
