"""Figures of the paper: search, growth, measures against accuracy, the law behind the length, tokens over training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from atlas.harness.plots import PALETTE, FigureData, figure
from atlas.methods.as_vit.settings import PROXIES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "image-classification"
PAPER = "as-vit"
SEARCHES = {"reinforce.csv": ("REINFORCE", PALETTE[0]), "random-search.csv": ("random search", PALETTE[6])}
POLICIES = {
    "rank": ("both measures", PALETTE[0], "o"),
    "random": ("random steps", PALETTE[1], "s"),
    "max-width": ("widest steps, random stage", PALETTE[2], "^"),
    "uniform": ("equal depths", PALETTE[3], "D"),
    "swin": ("Swin-like", PALETTE[4], "v"),
}
ROLLING = 20
MARKERS = "osD^vP*Xhd<>"


def _smoothed(axes: Axes, table: pd.DataFrame, column: str, label: str, color: str) -> None:
    """A running mean over the trials, averaged over seeds, above the trials themselves."""
    smooth = table.groupby("seed")[column].transform(lambda values: values.rolling(ROLLING, min_periods=1).mean())
    axes.plot(table["step"], table[column], ".", color=color, markersize=2, alpha=0.25)
    curve = smooth.groupby(table["step"]).mean()
    axes.plot(curve.index, curve, color=color, label=label)


@figure(
    "as-vit-search",
    task=TASK,
    paper=PAPER,
    title="Search of the topology",
    caption=(
        "Length distortion (larger is better) and condition number of the kernel (smaller is better) of the topologies tried, "
        "as dots, with their running mean over 20 trials, averaged over seeds; and the policy's mean probability of the "
        "largest merge kernels, one line per seed (dotted: uniform). Random search tries as many."
    ),
    alt="Three panels over trials: length, condition number, and the probability of the largest merge kernels.",
)
def search(data: FigureData) -> Figure | None:
    """Draw how both searches went: the measures of their candidates by step, and what reinforcement learning preferred."""
    import matplotlib.pyplot as plt

    tables = {name: data.frames(name) for name in SEARCHES}
    if any(table.empty for table in tables.values()):
        return None
    drawing, (left, middle, right) = plt.subplots(1, 3, figsize=(10.8, 3.5), layout="constrained")
    for name, table in tables.items():
        for axes, column in ((left, "length"), (middle, "ntk")):
            _smoothed(axes, table, column, *SEARCHES[name])
    for _, group in tables["reinforce.csv"].groupby("seed"):
        right.plot(group["step"], group["largest_merges"], color=PALETTE[0], linewidth=1)
    right.axhline(1 / 3, linestyle=":", color=PALETTE[6], linewidth=1)
    left.set(xlabel="trial", ylabel="length distortion", ylim=(0, None))
    middle.set(xlabel="trial", ylabel="condition number", yscale="log")
    right.set(xlabel="trial", ylabel="P(largest merge kernel)", ylim=(0, 1))
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=2)
    return drawing


@figure(
    "as-vit-growth",
    task=TASK,
    paper=PAPER,
    title="Growth, and what it costs and gains",
    caption=(
        "Left: total width (the widths of all blocks together) over depth, one line per seed and way of scaling, to the same "
        "number of parameters. Right: accuracy on the test split against multiply-accumulates of an image, for every network "
        "that is trained; mean over seeds, whose range the bars span."
    ),
    alt="Left, lines of total width over depth for several ways of scaling; right, accuracy against cost of trained networks.",
)
def growth(data: FigureData) -> Figure | None:
    """Families over depth, and accuracy over cost."""
    import matplotlib.pyplot as plt

    files = data.files("family.json")
    if not files:
        return None
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2), layout="constrained")
    for number, (_, path) in enumerate(files):
        content = json.loads(path.read_text())
        for policy, (label, color, marker) in POLICIES.items():
            members = content[policy]
            depths = [sum(int(stage.split(",")[3]) for stage in member["architecture"].split("|")[:4]) for member in members]
            widths = [member["total_width"] for member in members]
            left.plot(depths, widths, color=color, marker=marker, markersize=5, linewidth=1, label="" if number else label)
    left.set(xlabel="depth, blocks", ylabel="total width")
    left.legend()
    table = data.metrics()
    trained = table.dropna(subset=["top1", "macs"]) if {"top1", "macs"} <= set(table) else table[:0]
    for index, (row, group) in enumerate(trained.groupby("method", sort=False)):
        mean, low, high = group["top1"].agg(["mean", "min", "max"])
        style = {"fmt": MARKERS[index % len(MARKERS)], "color": data.colors[str(row)], "capsize": 2}
        right.errorbar(group["macs"].mean(), mean, [[mean - low], [high - mean]], label=data.titles[str(row)], **style)
    right.set(xlabel="multiply-accumulates of an image", ylabel="top-1 accuracy")
    right.legend(fontsize="small")
    return drawing


@figure(
    "as-vit-ranking",
    task=TASK,
    paper=PAPER,
    title="Measures of untrained networks against trained accuracy",
    caption=(
        "Left: length distortion at initialisation and accuracy on the test split of topologies drawn at random and trained "
        "alike, one colour per seed, with Kendall's τ-b. Right: τ-b of every measure with its 95 % bootstrap interval over "
        "topologies, one line per seed in the same colours. An interval that crosses 0 says nothing about ranking."
    ),
    alt="Left, a scatter plot of length distortion and accuracy; right, rank correlations of eight measures with intervals.",
)
def ranking(data: FigureData) -> Figure | None:
    """Scatter of the length, and τ of every proxy."""
    import matplotlib.pyplot as plt

    topologies, taus = data.frames("topologies.csv"), data.frames("taus.csv")
    if topologies.empty or taus.empty:
        return None
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2), layout="constrained")
    seeds = sorted(topologies["seed"].unique())
    lines = {name: len(PROXIES) - 1 - index for index, name in enumerate(PROXIES)}
    for index, seed in enumerate(seeds):
        color = PALETTE[index % len(PALETTE)]
        points, correlations = topologies[topologies["seed"].eq(seed)], taus[taus["seed"].eq(seed)]
        tau = correlations.loc[correlations["proxy"].eq("length"), "tau"].iloc[0]
        left.plot(points["length"], points["top1"], "o", color=color, markersize=5, label=f"seed {seed}: τ = {tau:.2f}")
        shift = 0.5 * ((index + 0.5) / len(seeds) - 0.5)
        heights = [lines[name] - shift for name in correlations["proxy"]]
        right.hlines(heights, correlations["low"], correlations["high"], color=color, linewidth=1.2)
        right.plot(correlations["tau"], heights, "o", color=color, markersize=4)
    left.set(xlabel="length distortion", ylabel="top-1 accuracy")
    left.legend(fontsize="small")
    right.axvline(0, color="#444444", linewidth=0.8)
    right.set(xlabel="Kendall's τ-b with accuracy", xlim=(-1.05, 1.05), yticks=list(lines.values()))
    right.set_yticklabels([PROXIES[name] for name in lines])
    right.grid(axis="y", visible=False)
    return drawing


@figure(
    "as-vit-law",
    task=TASK,
    paper=PAPER,
    title="What the length sees of a topology",
    caption=(
        "Length distortion of random, untrained topologies against the product K₂K₃K₄ of their merge kernels, on logarithmic "
        "axes; one draw of the weights each, all seeds. The line is proportional: length = const · K₂K₃K₄."
    ),
    alt="Scatter plot on logarithmic axes: points lie along a line of slope one.",
)
def law(data: FigureData) -> Figure | None:
    """Draw the length distortion of networks against the product of their merges."""
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import LogLocator

    table = data.frames("law.csv")
    if table.empty:
        return None
    drawing, axes = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    for index, (seed, group) in enumerate(table.groupby("seed")):
        axes.plot(
            group["merge_product"], group["length"], "o", color=PALETTE[index % len(PALETTE)], markersize=4, label=f"seed {seed}"
        )
    ratio = np.exp(np.log(table["length"] / table["merge_product"]).mean())
    ends = np.array([table["merge_product"].min(), table["merge_product"].max()])
    axes.plot(ends, ratio * ends, color="#444444", linewidth=1, label="proportional")
    products = sorted(table["merge_product"].astype(int).unique())
    axes.set(xlabel="K₂ · K₃ · K₄", ylabel="length distortion", xscale="log", yscale="log")
    axes.set_xticks(products[::2], [str(product) for product in products[::2]])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(fontsize="small")
    return drawing


@figure(
    "as-vit-tokens",
    task=TASK,
    paper=PAPER,
    title="Few tokens first",
    caption=(
        "Tokens of the first stage, multiply-accumulates of an image, and training loss over the steps, for the network that "
        "is trained with re-tokenisation and the same network without; mean over seeds."
    ),
    alt="Three line plots over training steps: tokens, cost of an image, and training loss.",
)
def tokens(data: FigureData) -> Figure | None:
    """Tokens, cost and loss over progressive training, beside full training."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    rows = [run.method for run in data.runs if "retokenize" in run.recipe and run.seed == data.runs[0].seed]
    if table.empty or "tokens" not in table or not rows:
        return None
    plain = [row.removesuffix("+retokenize") for row in rows]
    drawing, panels = plt.subplots(1, 3, figsize=(10.8, 3.5), layout="constrained")
    columns = (("tokens", "tokens"), ("image_macs", "multiply-accumulates"), ("loss", "training loss"))
    for row in dict.fromkeys([*plain, *rows]):
        curves = table[table["method"].eq(row)].groupby("step")[[column for column, _ in columns]].mean()
        for axes, (column, label) in zip(panels, columns, strict=True):
            style = "steps-pre" if column != "loss" else "default"
            axes.plot(curves.index, curves[column], color=data.colors[row], label=data.titles[row], drawstyle=style)
            axes.set(xlabel="step", ylabel=label, ylim=(0, None))
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing
