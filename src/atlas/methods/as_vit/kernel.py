"""The empirical neural tangent kernel of a network at its initialisation, and its condition number (Sec. 3.1).

Θ[b, c] = Σ_w ∂y_b/∂w · ∂y_c/∂w with y_b the sum of the features of image b. One forward and one backward pass of the batch
give, for every layer, its inputs and the gradients of its outputs; the gradients per image follow from these layer by layer, and
the n × (number of weights) matrix is never held.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from atlas.methods.as_vit.geometry import require_independent_points
from atlas.nn.examples import as_tensor, in_type_of, require_tensors
from atlas.nn.kinds import require_kind

MIN_IMAGES = 2
EQUAL_DISTANCE = 1e-10
"""Squared distance of the gradients of two images, relative to their squares, below which they count as equal."""

Feature = Callable[[Tensor], Tensor]


Call = tuple[nn.Module, Tensor, GradientEdge]
"""A layer, its input, and where in the graph the gradient of its output arrives."""


class _Recorder(AbstractContextManager["_Recorder"]):
    """Keeps every :data:`Call` of a linear, convolution or LayerNorm layer with a plain ``weight``.

    The output tensor itself would not do: an operation in place, such as a rectifier's, makes it another point of the graph.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.handles = [m.register_forward_hook(self._keep) for m in model.modules() if _has_formula(m)]

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not output.requires_grad:
            return None
        self.calls.append((module, inputs[0].detach(), get_gradient_edge(output)))
        # changed in place, a view (what a linear layer makes of tokens) bypasses its node of the graph; a copy does not
        return output.clone() if output._is_view() else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self.handles:
            handle.remove()


def _has_formula(module: nn.Module) -> bool:
    """Whether gradients per image can be formed from inputs and output gradients.

    Not of parametrised weights, nor of layers with a forward pass of their own, whose output is something else.
    """
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return False
    forward = type(module).forward
    if isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return forward in (nn.Linear.forward, nn.LayerNorm.forward)


def default_feature(model: nn.Module) -> Feature:
    """Return ``model.features`` where it is a function (pooled, before the head), else the model itself."""
    own = getattr(model, "features", None)
    return own if callable(own) and not isinstance(own, nn.Module) else model


def ntk_gram(
    model: nn.Module, x: Tensor, *, feature: Feature | None = None, params: Literal["weights", "all"] = "weights"
) -> Tensor:
    """Return the kernel matrix of a batch.

    Parameters
    ----------
    model : nn.Module
        The network, in the mode in which it is to be measured. Samples must be the slowest axis of every layer's input, as
        in all layers that work on (batch, …) or on windows cut from it, and a layer's weight be used through the layer.
    x : Tensor
        (n, channels, height, width), n ≥ 2.
    feature : callable, optional
        The map from images to (n, features) that is summed over features, computed by ``model``; by default ``model.features``
        where there is one, else the model itself.
    params : {"weights", "all"}
        Parameters named ``weight`` (the authors' choice: no biases, no embeddings), or all; in either case only those
        on which the features depend.

    Returns
    -------
    Tensor
        (n, n), float64, symmetric, positive semi-definite.

    Raises
    ------
    ValueError
        Fewer than 2 images, an unknown ``params``, a BatchNorm in training mode, or nothing that receives a gradient.
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    x = in_type_of(model, x, "x")
    if len(x) < MIN_IMAGES:
        raise ValueError(f"a kernel needs at least {MIN_IMAGES} images, not {len(x)}")
    if params not in ("weights", "all"):
        raise ValueError(f"params {params!r} is neither 'weights' nor 'all'")
    require_independent_points(model)
    wanted = {
        id(parameter): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (params == "all" or name.rpartition(".")[2] == "weight")
    }
    with torch.enable_grad(), _Recorder(model) as recorder:
        targets = (feature or default_feature(model))(x).flatten(1).sum(1)
    if not targets.requires_grad:
        raise ValueError("no parameter of the model receives a gradient from these features")
    rest = _outside_layers(wanted, recorder.calls)
    edges = [edge for _, _, edge in recorder.calls] + [get_gradient_edge(parameter) for parameter in rest]
    gradients = torch.autograd.grad(targets.sum(), edges, retain_graph=bool(rest), allow_unused=True)
    calls = len(recorder.calls)
    rest = [parameter for parameter, gradient in zip(rest, gradients[calls:], strict=True) if gradient is not None]
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for pieces in _by_parameter(wanted, recorder.calls, gradients[:calls]):
        gram += _gram_of(pieces, len(x))
    if rest:
        gram += _gram_by_backward(targets, rest)
    return (gram + gram.T) / 2


Piece = tuple[Tensor | None, Tensor]
"""Factors of a weight's gradient: inputs (n, T, in) and output gradients (n, T, out); or None and the gradient (n, …)."""


def _by_parameter(wanted: dict[int, nn.Parameter], calls: list[Call], gradients: tuple[Tensor | None, ...]) -> list[list[Piece]]:
    """Collect the pieces of every parameter, over all calls of all modules that hold it."""
    pieces: dict[int, list[Piece]] = {}
    for (module, inputs, _), gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            continue
        for parameter, piece in _pieces(module, inputs, gradient):
            if id(parameter) in wanted:
                pieces.setdefault(id(parameter), []).append(piece)
    return list(pieces.values())


def _pieces(module: nn.Module, inputs: Tensor, gradient: Tensor) -> list[tuple[Any, Piece]]:
    """Factors of the gradients of a layer's weight and bias for one call; the batch is still the layer's own."""
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.Conv2d):
        patches = functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        factor, gradient = patches.transpose(1, 2), gradient.flatten(2).transpose(1, 2)
        pieces: list[tuple[Any, Piece]] = [(module.weight, (factor, gradient))]
    elif isinstance(module, nn.LayerNorm):
        axes = len(module.normalized_shape)
        normal = functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        pieces = [(module.weight, (None, (normal * gradient).flatten(-axes)))]
        gradient = gradient.flatten(-axes)
    else:
        pieces = [(module.weight, (inputs, gradient))]
    return pieces if bias is None else [*pieces, (bias, (None, gradient))]


def _gram_of(pieces: list[Piece], images: int) -> Tensor:
    """Inner products of one parameter's gradients per image, (n, n) in float64."""
    if len(pieces) == 1 and pieces[0][0] is not None:
        factor, gradient = _per_image(pieces[0][0], images), _per_image(pieces[0][1], images)
        tokens, size_in, size_out = factor.shape[1], factor.shape[2], gradient.shape[2]
        if images * tokens**2 * (size_in + size_out) < size_in * size_out * (tokens + images):
            inner = torch.einsum("btd,csd->bcts", factor.double(), factor.double())
            outer = torch.einsum("bto,cso->bcts", gradient.double(), gradient.double())
            return (inner * outer).sum((2, 3))
    rows = torch.zeros((), dtype=torch.float64, device=pieces[0][1].device)
    for inputs, gradient in pieces:
        gradient = _per_image(gradient, images)
        if inputs is None:
            rows = rows + gradient.sum(1).double()
        else:
            rows = rows + torch.einsum("btd,bto->bod", _per_image(inputs, images), gradient).flatten(1).double()
    return rows @ rows.T


def _per_image(values: Tensor, images: int) -> Tensor:
    """(images · …, width) → (images, tokens, width); windows cut from an image count as more of its tokens."""
    return values.reshape(images, -1, values.shape[-1])


def _outside_layers(wanted: dict[int, nn.Parameter], calls: list[Call]) -> list[nn.Parameter]:
    """Parameters that no recorded layer accounts for: embeddings, scales, weights used by hand."""
    covered = {id(parameter) for module, _, _ in calls for parameter in module._parameters.values() if parameter is not None}
    return [parameter for key, parameter in wanted.items() if key not in covered]


def _gram_by_backward(targets: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Gram matrix of parameters without a formula: one backward pass per image."""
    rows = []
    for index in range(len(targets)):
        gradients = torch.autograd.grad(targets[index], parameters, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        rows.append(torch.cat([gradient.flatten() for gradient in flat]).double())
    stacked = torch.stack(rows)
    return stacked @ stacked.T


def condition_number(gram: Tensor, *, computed_in: torch.dtype | None = None) -> float:
    """Largest over smallest eigenvalue of a kernel matrix.

    Parameters
    ----------
    gram : Tensor
        (n, n), symmetric positive semi-definite.
    computed_in : torch.dtype, optional
        Precision of the network that the matrix comes from, whose rounding is in its entries however wide these are; by default
        that of the matrix itself. :func:`ntk_gram` sums in float64 what a network gives in its own precision.

    Returns
    -------
    float
        At least 1; ``inf`` where the matrix is not finite, where two images have the same gradients (with a warning), or where it
        is singular to rounding: its smallest eigenvalue is at most n · ε · the largest, ε the precision of ``computed_in``.
    """
    gram = as_tensor(gram, "gram")
    require_tensors(gram=gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be a square matrix (n, n), not {tuple(gram.shape)}")
    matrix = gram.double()
    if not bool(matrix.isfinite().all()):
        return math.inf
    if _has_equal_images(matrix):
        warnings.warn("two images of the batch have the same gradients: the kernel is singular", stacklevel=2)
        return math.inf
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    smallest, largest = float(values[0]), float(values[-1])
    if smallest <= len(matrix) * torch.finfo(computed_in or gram.dtype).eps * largest:
        return math.inf
    return max(1.0, largest / smallest)


def _has_equal_images(matrix: Tensor) -> bool:
    """Whether two rows of a Gram matrix belong to vectors that differ by no more than the rounding of single precision.

    Equal images are computed at different places of a batch, where a processor may sum in another order. A network in float32
    then gives vectors whose squared distance is about (n ε)² of their squares, far below that of different images.
    """
    squares = matrix.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * matrix
    equal = distances <= EQUAL_DISTANCE * torch.maximum(squares[:, None], squares[None, :])
    return bool(equal.sum() > len(matrix))
