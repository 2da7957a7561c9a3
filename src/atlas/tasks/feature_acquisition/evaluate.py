"""Evaluation on the test split: accuracy and cost of every operating point, and what is selected when."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_text
from atlas.nn.selection import activity_profile, context_drift, drift_null, recovery_f1, steady_context
from atlas.tasks.feature_acquisition.learner import Bench, Learner, Mode, Prediction
from atlas.tasks.feature_acquisition.scores import predicted, score
from atlas.tasks.feature_acquisition.streams import GateLayout, Sequences
from atlas.tasks.feature_acquisition.training import decide, make_bench

if TYPE_CHECKING:
    from atlas.harness.run import Run

NULL_DRAWS = 200
NULL_QUANTILE = 0.99


@dataclass(frozen=True)
class Evaluation:
    """A trained learner on the test split: what its ``extra`` hook sees.

    Attributes
    ----------
    modes : list
        Mode of every operating point, as validation chose it.
    points : list of dict
        Scores of every operating point on the test split.
    """

    bench: Bench
    learner: Learner
    modes: list[Mode]
    made: dict[Mode, Prediction]
    points: list[dict[str, float]]

    @property
    def headline(self) -> dict[str, float]:
        """Scores of the point that the table shows."""
        return self.points[self.learner.headline]


def evaluate_points(run: Run, bench: Bench | None = None) -> Evaluation:
    """Restore a trained run and score all its operating points on the test split.

    ``bench`` may be that of another run of the same benchmark and seed, whose streams are the same.
    """
    bench = Bench(run, bench.protocol, bench.streams, bench.device) if bench is not None else make_bench(run)
    learner: Learner = run.build()[0]
    learner.restore(bench, read_tensors(run.weights))
    modes: list[Any] = training_summary(run)["modes"].split(",")
    made = {mode: decide(learner, bench, "test", mode) for mode in dict.fromkeys(["threshold", *modes])}
    split, layout = bench.streams.splits["test"], bench.streams.layout
    points = [score(made[mode], point, split, layout) for point, mode in enumerate(modes)]
    return Evaluation(bench, learner, modes, made, points)


def evaluate(run: Run) -> dict[str, float]:
    """Evaluate a trained learner; also writes ``front.csv``, ``profile.csv`` and ``session.csv`` beside the metrics."""
    evaluation = evaluate_points(run)
    bench, learner = evaluation.bench, evaluation.learner
    mode = evaluation.modes[learner.headline]
    gates = evaluation.made[mode].gates[learner.headline]
    split, layout = bench.streams.splits["test"], bench.streams.layout
    _write_front(run, evaluation)
    write_profile(run.results, gates, split, layout)
    write_session(run.results, evaluation.made[mode].logits[learner.headline], gates, split, layout)
    long = decide(learner, bench, "long", mode)
    return {
        **evaluation.headline,
        "long_accuracy": score(long, learner.headline, bench.streams.splits["long"], layout)["accuracy"],
        **selection_metrics(gates, evaluation.made["threshold"].gates[learner.headline], split, layout),
        "parameters": learner.parameters(),
        "step_flops": learner.step_flops(evaluation.headline["n_features"]),
        **learner.extra(evaluation),
    }


def selection_metrics(gates: Tensor, decided: Tensor, split: Sequences, layout: GateLayout) -> dict[str, float]:
    """How much selection depends on the context, and whether it finds what is informative.

    Parameters
    ----------
    gates : Tensor
        (N, T, G), in the mode that validation chose.
    decided : Tensor
        The same under ``threshold``, where a static policy opens the same gates at every step.

    Returns
    -------
    dict
        ``context_drift`` under threshold; ``drift_margin``, by how much it exceeds the 99th percentile of what shuffled labels
        give; ``recovery_f1`` where the truth is known, else NaN.
    """
    label, count = labels_of(split, layout)
    drift = context_drift(activity_profile(decided, label, count))
    limit = 0.0
    if drift:
        limit = float(torch.quantile(drift_null(decided, label, count, draws=NULL_DRAWS), NULL_QUANTILE))
    recovery = float("nan")
    if layout.truth is not None and split.context is not None:
        context = split.context.cpu()
        settled = torch.where(steady_context(context), context, -1)
        recovery = recovery_f1(activity_profile(gates, settled, len(layout.truth)), layout.truth)
    return {"context_drift": drift, "drift_margin": drift - limit, "recovery_f1": recovery}


def labels_of(split: Sequences, layout: GateLayout) -> tuple[Tensor, int]:
    """What selection may depend on, (N, T): the context where the stream has one, else the label; and the number of values."""
    if split.context is None:
        return split.y.cpu(), len(layout.classes)
    return split.context.cpu(), int(split.context.max()) + 1


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a small CSV atomically; floats with six digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_text(path, buffer.getvalue())


def _write_front(run: Run, evaluation: Evaluation) -> None:
    """``front.csv``: knob, mode, whether it is the headline, and the scores of every operating point."""
    learner = evaluation.learner
    names = list(evaluation.points[0])
    rows = [
        (float(knob), mode, int(index == learner.headline), *(values[name] for name in names))
        for index, (knob, mode, values) in enumerate(zip(learner.points, evaluation.modes, evaluation.points, strict=True))
    ]
    write_csv(run.results / "front.csv", ["knob", "mode", "headline", *names], rows)


def write_profile(folder: Path, gates: Tensor, split: Sequences, layout: GateLayout) -> None:
    """``profile.csv``: mean of gates (N, T, G) per label (or context) after the first step, if they are ever opened there."""
    label, count = labels_of(split, layout)
    profile = activity_profile(gates, label, count)
    names = layout.classes if split.context is None else [f"context {index}" for index in range(count)]
    rows = [
        (names[row], layout.names[column], float(profile[row, column]))
        for column in range(profile.shape[1])
        for row in range(count)
        if not bool(profile[row, column].isnan())
    ]
    write_csv(folder / "profile.csv", ["label", "gate", "mean"], rows)


def write_session(folder: Path, logits: Tensor, gates: Tensor, split: Sequences, layout: GateLayout) -> None:
    """``session.csv``: the first test sequence, step by step: label, prediction, context, opened gates.

    Logits are (N, T, C), gates (N, T, G).
    """
    guess, y = predicted(logits[0], layout.several), split.y[0].cpu()
    rows = []
    for step in range(len(y)):
        opened = " | ".join(layout.names[index] for index in (gates[0, step] > 0).nonzero().flatten().tolist())
        context = "" if split.context is None else int(split.context[0, step])
        rows.append((step, _named(y[step], layout), _named(guess[step], layout), context, opened))
    write_csv(folder / "session.csv", ["step", "label", "prediction", "context", "gates"], rows)


def _named(value: Tensor, layout: GateLayout) -> str:
    if layout.several:
        return " | ".join(layout.classes[index] for index in (value == 1).nonzero().flatten().tolist())
    return layout.classes[int(value)] if int(value) >= 0 else ""
