"""Numbers of one operating point on one split: how right it is, and what it acquires."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from atlas.nn.selection import fractions
from atlas.tasks.feature_acquisition.learner import Prediction
from atlas.tasks.feature_acquisition.streams import GateLayout, Sequences


def task_loss(logits: Tensor, y: Tensor) -> float:
    """Mean (binary) cross-entropy over labelled entries, in nats. logits: (B, T, C); y: (B, T) or (B, T, C), −1 unlabelled."""
    if y.ndim == 2:
        return float(functional.cross_entropy(logits.double().flatten(0, 1), y.flatten(), ignore_index=-1))
    known = y >= 0
    return float(functional.binary_cross_entropy_with_logits(logits[known].double(), y[known].double()))


def objective(made: Prediction, point: int, split: Sequences, layout: GateLayout, weight: float) -> float:
    """Task loss plus weighted cost fraction: what modes and moments are compared by, on validation data."""
    cost = fractions(made.gates[point], layout.cost).steady
    return task_loss(made.logits[point], split.y.cpu()) + weight * cost


def predicted(logits: Tensor, several: bool) -> Tensor:
    """Predicted class (…) or, with several labels, 0/1 per label (…, C)."""
    return (logits > 0).long() if several else logits.argmax(-1)


def score(made: Prediction, point: int, split: Sequences, layout: GateLayout) -> dict[str, float]:
    """Accuracy, F1, IoU and cost of one operating point.

    With several labels accuracy is that of single labels (one less the Hamming error), F1 the mean over sequences, IoU global.
    """
    logits, gates, y = made.logits[point], made.gates[point], split.y.cpu()
    guess, known = predicted(logits, layout.several), y >= 0
    features = gates[..., layout.groups]
    acquired, cost = fractions(features), fractions(gates, layout.cost)
    f1, iou = _overlap_several(guess, y, known) if layout.several else _overlap(guess[known], y[known], len(layout.classes))
    return {
        "accuracy": float((guess == y)[known].double().mean()),
        "f1": f1,
        "iou": iou,
        "nll": task_loss(logits, y),
        "frac_steady": acquired.steady,
        "frac_total": acquired.total,
        "frac_official": acquired.official,
        "cost_fraction": cost.steady,
        "n_features": acquired.steady * layout.features,
        "sensor_on": float(sensors_on(features, layout.sensors).mean()),
    }


def sensors_on(features: Tensor, sensors: Tensor) -> Tensor:
    """Share of the steps after the first at which any feature of a sensor is acquired: (B, T, D), (D,) to (S,)."""
    opened = (features[:, 1:] > 0).flatten(0, 1).double()
    member = functional.one_hot(sensors).double()
    return ((opened @ member) > 0).double().mean(0)


def _overlap(guess: Tensor, y: Tensor, classes: int) -> tuple[float, float]:
    """Mean over the classes that occur of F1 and of intersection over union."""
    confusion = torch.bincount(y * classes + guess, minlength=classes * classes).view(classes, classes).double()
    hit, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    occurs = confusion.sum(1) > 0
    return float((2 * hit / either)[occurs].mean()), float((hit / (either - hit))[occurs].mean())


def _overlap_several(guess: Tensor, y: Tensor, known: Tensor) -> tuple[float, float]:
    """F1 as the mean over sequences, and global intersection over union, of labels that are known."""
    hit = ((guess == 1) & (y == 1) & known).flatten(1).sum(1).double()
    either = (((guess == 1) & known).flatten(1).sum(1) + ((y == 1) & known).flatten(1).sum(1)).double()
    each = torch.where(either > 0, 2 * hit / either.clamp(min=1), 1.0)
    return float(each.mean()), float(hit.sum() / (either - hit).sum().clamp(min=1))
