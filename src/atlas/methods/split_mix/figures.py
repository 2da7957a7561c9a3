"""Figure of the paper: clean against robust accuracy as the knob moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TASK = "federated-learning"


def accuracies(data: FigureData) -> pd.DataFrame:
    """Mean over clients and seeds: method, width, lam (−1 for a row without a knob), clean, attacked."""
    table = data.frames("evaluation.csv")
    if table.empty or not table["attack"].eq("pgd").any():
        return table.iloc[:0]
    scored = table.assign(accuracy=table["correct"] / table["n"], lam=table["lam"].fillna(-1))
    wide = scored.pivot_table(index=["method", "width", "lam"], columns="attack", values="accuracy", sort=False)
    return wide.dropna().reset_index().rename(columns={"none": "clean", "pgd": "attacked"})


@figure(
    "trade-off",
    task=TASK,
    paper="split-mix",
    title="Clean against robust accuracy as λ moves",
    caption=(
        "Each line is one trained model whose dual norms are mixed with λ from 0 (most accurate) to 1 (most robust); labels name "
        "λ at the ends. Single points are networks trained for one λ each. Means over clients and seeds; the attack "
        "sees the very model that is tested."
    ),
    alt="Scatter plot with lines: accuracy under attack over clean accuracy for several models and λ.",
)
def trade_off(data: FigureData) -> Figure | None:
    """Robust over clean accuracy, one line per model with a knob, one point per model without."""
    import matplotlib.pyplot as plt

    table = accuracies(data)
    if table.empty:
        return None
    drawing, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    for (row, width), group in table.groupby(["method", "width"], sort=False):
        several = table[table["method"].eq(str(row))]["width"].nunique() > 1
        label = data.titles[str(row)] + (f" ×{width:g}" if several else "")
        knob = group["lam"].min() >= 0
        ordered = group.sort_values("lam")
        style = ("o-" if width == table["width"].max() else "s--") if knob else "D"
        axes.plot(ordered["clean"], ordered["attacked"], style, color=data.colors[str(row)], label=label, markersize=5)
        if knob:
            for end, offset in ((ordered.iloc[0], (6, -9)), (ordered.iloc[-1], (-6, 6))):
                side = "left" if offset[0] > 0 else "right"
                name = f"λ = {end['lam']:g}"
                point = (end["clean"], end["attacked"])
                axes.annotate(name, point, xytext=offset, textcoords="offset points", fontsize=8, ha=side)
    axes.margins(0.12)
    axes.set(xlabel="accuracy", ylabel="accuracy under attack")
    drawing.legend(loc="outside lower center", ncols=3)
    return drawing
