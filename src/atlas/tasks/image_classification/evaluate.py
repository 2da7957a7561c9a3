"""Evaluation on the test split: accuracy, calibration, size, speed, and the per-layer diagnostics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_text
from atlas.harness.seeds import pick_device
from atlas.nn.counts import forward_flops, parameter_count
from atlas.nn.diagnostics import diagnose
from atlas.nn.precision import weight_type
from atlas.nn.ranks import here
from atlas.nn.timing import interleaved_seconds, median_ratio
from atlas.tasks.image_classification.data import ImageData, load_data
from atlas.tasks.image_classification.ingredients import Ingredients
from atlas.tasks.image_classification.models import build_model, plain_backbone

if TYPE_CHECKING:
    import pandas as pd

    from atlas.harness.run import Run

CALIBRATION_BINS = 15
DIAGNOSED_IMAGES = 64
TIMING_IMAGES = 64
TIMING_ROUNDS = 25


@dataclass
class Evaluation:
    """A trained recipe while it is evaluated: what ingredients see.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode, on the run's device.
    baseline : nn.Module
        The recipe's plain backbone, by default the protocol's, at its initialisation, for costs that are stated relative to it.
    """

    run: Run
    data: ImageData
    model: nn.Module
    baseline: nn.Module


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return (logits (n, classes), labels (n,)) of a split, on the CPU in float32.

    Several ranks each predict the batches that they are given, their part of the split, and all of them get the whole.
    """
    model.eval()
    logits, labels = [torch.empty(0, 0)], [torch.empty(0, dtype=torch.long)]
    for images, truth in batches:
        logits.append(model(images).float().cpu())
        labels.append(truth.cpu())
    ranks = here()
    return ranks.joined(torch.cat(logits[1:] or logits)), ranks.joined(torch.cat(labels[1:] or labels))


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy in [0, 1] over batches of images (batch, channels, height, width) and classes (batch,)."""
    logits, labels = predict(model, batches)
    return float((logits.argmax(1) == labels).double().mean())


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their share.

    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, Eq. 3. ``logits``: (n, classes); in [0, 1].
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = (predicted == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, index, confidence - correct)
    return float(gaps.abs().sum() / len(labels))


@torch.no_grad()
def throughput_ratio(model: nn.Module, baseline: nn.Module, images: Tensor, rounds: int = TIMING_ROUNDS) -> float:
    """Images per second of ``model`` relative to ``baseline`` on images (batch, channels, height, width).

    It is the median of the ratios of interleaved forward passes.
    """
    model.eval()
    baseline.eval()

    own, reference = interleaved_seconds([lambda: model(images), lambda: baseline(images)], rounds, device=images.device)
    return median_ratio(reference, own)


def load_trained(run: Run, data: ImageData) -> nn.Module:
    """Return a run's trained model, in evaluation mode."""
    ingredients = Ingredients(run.build())
    model = ingredients.restore(build_model(run, ingredients, data.classes), run)
    model.load_state_dict(read_tensors(run.weights))
    return model.to(pick_device(run.resources.device)).eval()


def evaluate(run: Run) -> dict[str, float]:
    """Evaluate a trained recipe on the test split; also writes ``diagnostics.csv`` beside the metrics."""
    protocol, device = run.protocol_model(), pick_device(run.resources.device)
    data = load_data(run, protocol, device)
    model = load_trained(run, data)
    ingredients = Ingredients(run.build())
    baseline = plain_backbone(run, ingredients, data.classes).to(device, weight_type(protocol.precision)).eval()
    values = essentials(run, model, data)
    images, rounds = (TIMING_IMAGES, TIMING_ROUNDS) if run.limit is None else (1, 1)
    values["throughput_ratio"] = throughput_ratio(model, baseline, data.example(images), rounds)
    values.update(diagnostics(run, model, ingredients, data))
    evaluation = Evaluation(run, data, model, baseline)
    for ingredient in ingredients:
        values.update(ingredient.evaluate(evaluation))
    return values


def essentials(run: Run, model: nn.Module, data: ImageData) -> dict[str, float]:
    """Measure what every classifier has: accuracy and calibration on the test split, size, cost."""
    logits, labels = predict(model, data.batches("test"))
    return {
        "top1": float((logits.argmax(1) == labels).double().mean()),
        "nll": float(functional.cross_entropy(logits.double(), labels)),
        "ece": expected_calibration_error(logits, labels),
        "parameters": parameter_count(model),
        "forward_flops": forward_flops(model, data.example(1)),
        "train_flops": training_summary(run)["train_flops"],
    }


def diagnostics(run: Run, model: nn.Module, ingredients: Ingredients, data: ImageData) -> dict[str, float]:
    """Diagnose the trained model and its initialisation layer by layer; return the summary metrics.

    Leaves ``diagnostics.csv``: columns stage (initial, trained), layer, head, metric, value.
    """
    import pandas as pd

    images = data.example(DIAGNOSED_IMAGES if run.limit is None else 1)
    trained = diagnose(model, images)
    rows = [trained.assign(stage="trained")]
    if run.limit is None:
        initial = build_model(run, ingredients, data.classes).to(images.device).eval()
        rows.insert(0, diagnose(initial, images).assign(stage="initial"))
    table = pd.concat(rows)[["stage", "layer", "head", "metric", "value"]]
    write_text(run.results / "diagnostics.csv", table.to_csv(index=False, float_format="%.6g"))
    return summarise(trained)


def summarise(diagnosed: pd.DataFrame) -> dict[str, float]:
    """Reduce a model's diagnostics to the metrics of the table."""

    def value(*metrics: str, final: bool) -> float:
        rows = diagnosed[diagnosed["metric"].isin(metrics)]
        rows = rows[rows["layer"].eq(rows["layer"].max())] if final else rows
        return float(rows["value"].mean(skipna=False)) if len(rows) else float("nan")

    return {
        "token_cosine_last": value("token_cosine", final=True),
        "hf_dc_ratio_last": value("hf_dc_ratio", final=True),
        "attn_head_cosine": value("attn_head_cosine", final=False),
        "weight_cond_gap": value(*(f"weight_cond_gap.{name}" for name in "qkv"), final=False),
    }
