"""Figures of the paper: what the choice policy chooses, how meta-training went, and how alike replicates end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import PALETTE, FigureData, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK, PAPER = "learned-optimization", "optimizer-amalgamation"
SMOOTHING = 5
NAMES = {
    "adam_ema": "Adam",
    "rmsprop_ema": "RMSprop",
    "sgd_ema": "SGD",
    "momentum_ema": "Momentum",
    "powersign_ema": "PowerSign",
    "addsign_ema": "AddSign",
}


@figure(
    "choice-weights",
    task=TASK,
    paper=PAPER,
    title="What the choice policy chooses",
    caption=(
        "Mean weight of every member of the pool over the parameters, while a trained choice policy optimizes the meta-training "
        "problem. Lines are means over seeds, bands span them."
    ),
    alt="Line plots of the pool members' weights against steps; they sum to one.",
)
def choice_weights(data: FigureData) -> Figure | None:
    """Weights of the pool over steps, one panel per choice policy."""
    import matplotlib.pyplot as plt

    table = data.frames("weights.csv")
    if table.empty:
        return None
    rows = list(dict.fromkeys(table["method"]))
    drawing, panels = plt.subplots(1, len(rows), figsize=(5.2 * len(rows), 3.6), squeeze=False, layout="constrained", sharey=True)
    for axes, row in zip(panels[0], rows, strict=True):
        own = table[table["method"].eq(row)]
        for name, color in zip(NAMES, PALETTE, strict=False):
            if name in own and own[name].notna().any():
                over = own.groupby("step")[name].agg(["mean", "min", "max"])
                axes.plot(over.index, over["mean"], color=color, label=NAMES[name])
                axes.fill_between(over.index, over["min"], over["max"], color=color, alpha=0.15, linewidth=0)
        axes.set(title=data.titles[row], xlabel="step", ylim=(0, 1))
    panels[0][0].set_ylabel("mean weight")
    handles = {label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawing.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6)
    return drawing


@figure(
    "meta-training",
    task=TASK,
    paper=PAPER,
    title="Meta-training",
    caption=(
        "Meta-loss (mean log ratio of losses to those at the window's start) and imitation loss over windows, mean over seeds "
        f"and replicates, smoothed over {SMOOTHING} windows. The curriculum's stages are marked: windows go further into "
        "training, where there is less left to gain, so the meta-loss rises from stage to stage."
    ),
    alt="Two line plots over meta-training windows, one line per student: meta-loss and imitation loss.",
)
def meta_training(data: FigureData) -> Figure | None:
    """Meta-loss and imitation loss over windows, per student."""
    import matplotlib.pyplot as plt

    from atlas.tasks.learned_optimization.figures import style

    table = data.frames("history.csv")
    if table.empty or "meta" not in table:
        return None
    table = table.dropna(subset=["meta"])
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    for row, group in table.groupby("method", sort=False):
        color, line = style(data, str(row))
        for axes, measure in ((left, "meta"), (right, "imitation")):
            if measure in group and group[measure].notna().any():
                curve = group.groupby("step")[measure].mean().rolling(SMOOTHING, min_periods=1).mean()
                axes.plot(curve.index, curve, line, color=color, label=data.titles[str(row)])
    starts = table.groupby("stage")["step"].min()
    for axes, label in ((left, "meta-loss"), (right, "imitation loss")):
        axes.set(xlabel="window", ylabel=label)
        for start in starts[starts.index > 0]:
            axes.axvline(start, color="#BBBBBB", linewidth=0.8, zorder=0)
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing


@figure(
    "meta-stability",
    task=TASK,
    paper=PAPER,
    title="Stability across meta-training seeds",
    caption=(
        "Every meta-trained replicate's log best training loss at home (one dot per seed and replicate, mean over its starts), "
        "the mean, and ± one standard deviation between replicates, σ, by random effects. Noise on the weights is meant to make "
        "σ small; with few replicates σ is itself uncertain."
    ),
    alt="Dots per replicate for every student, with the mean and the standard deviation between replicates.",
)
def meta_stability(data: FigureData) -> Figure | None:
    """Replicates' results per student, with the deviation between them."""
    import matplotlib.pyplot as plt

    from atlas.methods.optimizer_amalgamation.measures import random_effects
    from atlas.tasks.learned_optimization.figures import style

    table, trained = data.frames("evaluations.csv"), data.frames("history.csv")
    if table.empty or "meta" not in trained:
        return None
    table = table[table["problem"].eq(table["problem"].iloc[0])]
    rows = list(dict.fromkeys(trained.dropna(subset=["meta"])["method"]))
    drawing, axes = plt.subplots(figsize=(8.4, 0.9 + 0.5 * len(rows)), layout="constrained")
    shown: list[str] = []
    for row in rows:
        runs = table[table["method"].eq(row)].pivot_table(index=["seed", "replicate"], columns="init", values="best_log_train")
        runs = runs.dropna()
        if min(runs.shape) < 2:
            continue
        effects = random_effects(runs.to_numpy())
        height, color = len(shown), style(data, row)[0]
        axes.errorbar(effects.mean, height, xerr=effects.meta_sd, fmt="|", color=color, markersize=16, capsize=4)
        axes.plot(runs.mean(axis=1), [height] * len(runs), "o", color=color, alpha=0.6, markersize=6)
        shown.append(f"{data.titles[row]}  (σ = {effects.meta_sd:.2f})")
    if not shown:
        plt.close(drawing)
        return None
    axes.set_yticks(range(len(shown)), shown)
    axes.set(xlabel="log best training loss", ylim=(len(shown) - 0.5, -0.5))
    return drawing
