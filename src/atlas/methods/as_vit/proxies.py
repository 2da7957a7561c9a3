"""Measures of untrained networks that the length distortion is compared with, as predictors of trained accuracy.

All are oriented so that larger should mean more accurate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.as_vit.geometry import Circle, extrinsic_curvature, without_norm
from atlas.methods.as_vit.kernel import default_feature
from atlas.nn.examples import as_tensor, in_type_of, require_labels
from atlas.nn.kinds import require_kind, require_sequence


def synflow(model: nn.Module, shape: Sequence[int]) -> float:
    """Return the logarithm of SynFlow's score Σ |w · ∂y/∂w|, y the sum of the logits.

    H. Tanaka et al., *Pruning neural networks without any data by iteratively conserving synaptic flow*, NeurIPS 2020, Eq. 2: all
    parameters replaced by their absolute values, LayerNorms off, an input of ones of ``shape`` (channels, height, width),
    float64. Works on a copy; ``-inf`` where nothing flows.
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    require_sequence("a shape (channels, height, width)", shape=shape)
    twin = copy.deepcopy(model).double().eval()
    parameters = list(twin.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.abs_()
    with without_norm(twin), torch.enable_grad():
        total = twin(torch.ones(1, *shape, dtype=torch.float64, device=parameters[0].device)).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    flow = sum(float((p.detach() * g).abs().sum()) for p, g in zip(parameters, gradients, strict=True) if g is not None)
    return math.log(flow) if flow > 0 else -math.inf


def grad_norm(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Euclidean norm of the gradient of the mean cross-entropy over all parameters.

    ``images``: (n, channels, height, width); ``labels``: (n,).
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    images, labels = in_type_of(model, images, "images"), as_tensor(labels, "labels")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        logits = model(images)
        require_labels(labels, len(images), logits.shape[-1], "labels")
        loss = functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))


def mean_curvature(model: nn.Module, circle: Circle) -> float:
    """Mean extrinsic curvature of the features over the points of a circle, LayerNorms off."""
    with without_norm(model):
        return float(extrinsic_curvature(default_feature(model), circle.basis, circle.theta).double().mean())
