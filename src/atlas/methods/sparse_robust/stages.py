"""The paper's table of inference costs, recomputed: arithmetic on shapes, nothing is trained."""

from __future__ import annotations

import torch

from atlas.harness.run import Run
from atlas.methods.sparse_robust.costs import flops
from atlas.methods.sparse_robust.masks import layer_densities, prunable
from atlas.nn.convnets import PreActResNet

BENCHMARKS = {"cifar10": (10, 32), "cifar100": (100, 32), "tiny": (200, 64)}
"""Classes and pixels of the paper's benchmarks."""


def cost_table(run: Run) -> dict[str, float]:
    """Return, per benchmark, the cost as printed, and the true ratio of the sparse to the dense network's.

    Printed are 2·nnz·(number of outputs) over the convolutions, although a weight acts on each place of its output channel
    only: that counts the output channels twice.
    """
    settings = run.settings_model(run.recipe[0])
    costs: dict[str, float] = {}
    for name, (classes, pixels) in BENCHMARKS.items():
        with torch.device("meta"):  # shapes without values
            model = PreActResNet(classes)
        weights = prunable(model)
        shapes = {layer: tuple(weight.shape) for layer, weight in weights.items()}
        densities = layer_densities(shapes, settings.density, settings.scheme)
        report = flops(model, (3, pixels, pixels))
        costs[f"printed_{name}"] = sum(
            2 * densities[layer] * weight.numel() * report.outputs[layer] for layer, weight in weights.items() if weight.ndim == 4
        )
        costs[f"ratio_{name}"] = (
            sum(densities[layer] * macs for layer, macs in report.dense_per_layer.items()) / report.dense_macs
        )
    return costs
