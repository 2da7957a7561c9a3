"""Length and curvature of the curve that a network makes of a circle of inputs (Sec. 3.1).

Along a great circle x(θ) = u₁cos θ + u₂sin θ with orthonormal u₁, u₂ the output f(x(θ)) is a curve of velocity v = f′ and
acceleration a = f″. Its length measures how much the network stretches its inputs, its extrinsic curvature
κ = √(|v|²|a|² − (v·a)²) / |v|³ how much it bends them. Both come from forward-mode derivatives: one product with the tangent for
all points of the circle, instead of one backward pass per output channel.

LayerNorm must be off (:func:`without_norm`): it would scale the tiny output of a fresh network back to one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from atlas.nn.examples import as_tensor, require_tensors
from atlas.nn.kinds import require_callable, require_kind, require_sequence, require_whole

Curve = Callable[[Tensor], Tensor]
MIN_POINTS = 3
FULL_TURN = 2 * math.pi


@dataclass(frozen=True)
class Circle:
    """Points of a circle of inputs.

    Attributes
    ----------
    theta : Tensor
        (n,) angles in radians.
    x, dx : Tensor
        (n, channels, height, width) points, and their derivatives by the angle.
    """

    theta: Tensor
    x: Tensor
    dx: Tensor

    @property
    def basis(self) -> Tensor:
        """(2, channels, height, width): the plane's vectors, x(0) and x(π/2)."""
        cosine, sine = math.cos(float(self.theta[0])), math.sin(float(self.theta[0]))
        first, tangent = self.x[0], self.dx[0]
        return torch.stack([first * cosine - tangent * sine, first * sine + tangent * cosine])

    @property
    def closed(self) -> bool:
        """Whether the last point is the first again."""
        return math.isclose(float(self.theta[-1] - self.theta[0]), FULL_TURN, rel_tol=1e-6)


def _check_points(count: int) -> None:
    if count < MIN_POINTS:
        raise ValueError(f"a circle needs at least {MIN_POINTS} points, not {count}")


def great_circle(
    shape: tuple[int, int, int],
    n: int = 10,
    *,
    generator: torch.Generator,
    scale: Literal["unit", "sqrt_dim"] = "unit",
    endpoint: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Circle:
    """Draw a circle in the plane of two random orthonormal images.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of an image; N is their product.
    n : int
        Number of points, at least 3.
    generator : torch.Generator
        Source of the plane.
    scale : {"unit", "sqrt_dim"}
        Radius 1, as the authors compute, or √N, as the definition has it.
    endpoint : bool
        Whether the last angle is 2π, repeating the first point, as the authors compute.

    Raises
    ------
    ValueError
        Fewer than 3 points, fewer than 2 dimensions, or an unknown scale.
    """
    require_sequence("a shape (channels, height, width)", shape=shape)
    require_whole(n=n)
    require_kind(torch.Generator, "a torch.Generator", generator=generator)
    _check_points(n)
    size = math.prod(shape)
    if size < 2:
        raise ValueError(f"a circle needs at least 2 input dimensions; images of {tuple(shape)} have {size}")
    if scale not in ("unit", "sqrt_dim"):
        raise ValueError(f"scale {scale!r} is neither 'unit' nor 'sqrt_dim'")
    gaussian = torch.randn(size, 2, generator=generator, dtype=dtype)
    basis = torch.linalg.svd(gaussian, full_matrices=False).U.T.reshape(2, *shape)
    if scale == "sqrt_dim":
        basis = basis * math.sqrt(size)
    theta = torch.linspace(0, FULL_TURN, n if endpoint else n + 1, dtype=dtype)[:n]
    return Circle(theta, *points_on(basis, theta))


def points_on(basis: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return points and tangents of the circle in the plane of ``basis``, (2, …), at the angles ``theta``, (n,)."""
    cosine, sine = (wave.reshape(-1, *[1] * (basis.ndim - 1)) for wave in (theta.cos(), theta.sin()))
    return basis[0] * cosine + basis[1] * sine, basis[1] * cosine - basis[0] * sine


@contextmanager
def without_norm(model: nn.Module) -> Iterator[nn.Module]:
    """Replace every LayerNorm inside ``model`` by the identity while the block runs, then put the same objects back."""
    require_kind(nn.Module, "an nn.Module", model=model)
    norms = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent._modules.items()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        for parent, name, _ in norms:
            setattr(parent, name, nn.Identity())
        yield model
    finally:
        for parent, name, module in norms:
            setattr(parent, name, module)


def require_independent_points(model: nn.Module) -> None:
    """Refuse modules in which the images of a batch influence each other.

    Raises
    ------
    ValueError
        A BatchNorm in training mode, with its name.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"{name or 'the model'} is a BatchNorm in training mode: points of a batch depend on each other")


def speeds(fn: Curve, x: Tensor, dx: Tensor) -> Tensor:
    """Return |d f(x(θ)) / dθ| at each point, (n,)."""
    with torch.no_grad(), _differentiable_attention(), _ConstantWeights(), forward_ad.dual_level():
        velocity = forward_ad.unpack_dual(fn(forward_ad.make_dual(x, dx))).tangent
    if velocity is None:  # a function that does not depend on its inputs
        return x.new_zeros(len(x))
    return velocity.flatten(1).norm(dim=1)


def length_distortion(
    fn: Curve, circle: Circle, reduction: Literal["sum", "mean", "length"] = "sum", *, chunk: int | None = None
) -> float:
    """Measure how much ``fn`` stretches a circle.

    Parameters
    ----------
    fn : callable
        (n, channels, height, width) → (n, features), each point by itself; a module or a function.
    circle : Circle
        Inputs, from :func:`great_circle`.
    reduction : {"sum", "mean", "length"}
        Sum of the speeds over the points (the authors'), their mean, or the length of the curve: 2π times the mean over equally
        spaced points, the repeated one left out.
    chunk : int, optional
        Points per pass, to save memory; all at once by default. Changes nothing else.

    Raises
    ------
    ValueError
        Fewer than 3 points, an unknown reduction, or ``fn`` has a BatchNorm in training mode.
    """
    require_callable("a module or function of images", fn=fn)
    require_kind(Circle, "a Circle, as great_circle makes it,", circle=circle)
    _check_points(len(circle.theta))
    if reduction not in ("sum", "mean", "length"):
        raise ValueError(f"reduction {reduction!r} is none of 'sum', 'mean', 'length'")
    owner = getattr(fn, "__self__", fn)
    if isinstance(owner, nn.Module):
        require_independent_points(owner)
    size = chunk or len(circle.theta)
    pieces = zip(circle.x.split(size), circle.dx.split(size), strict=True)
    by_point = torch.cat([speeds(fn, x, dx) for x, dx in pieces]).double()
    if reduction == "sum":
        return float(by_point.sum())
    if reduction == "mean":
        return float(by_point.mean())
    return FULL_TURN * float((by_point[:-1] if circle.closed else by_point).mean())


def extrinsic_curvature(fn: Curve, basis: Tensor, theta: Tensor) -> Tensor:
    """Measure how much ``fn`` bends a circle, point by point.

    Parameters
    ----------
    fn : callable
        (n, channels, height, width) → (n, features), each point by itself.
    basis : Tensor
        (2, …) vectors that span the plane (:attr:`Circle.basis`), or (…, 2) columns; ``fn`` takes points of their shape.
    theta : Tensor
        (n,) angles in radians, n ≥ 3.

    Returns
    -------
    Tensor
        (n,) curvatures, ≥ 0: 1/radius for a circle; rounding below zero under the root is cut off.
    """
    require_callable("a module or function of images", fn=fn)
    basis, theta = as_tensor(basis, "basis"), as_tensor(theta, "theta")
    require_tensors(basis=basis, theta=theta)
    _check_points(len(theta))
    if basis.ndim > 2 and len(basis) == 2 == basis.shape[-1]:
        raise ValueError(f"a basis of shape {tuple(basis.shape)} may hold rows or columns: flatten the vectors to (2, n)")
    plane = basis if len(basis) == 2 else basis.movedim(-1, 0)
    if len(plane) != 2:
        raise ValueError(f"a basis of shape {tuple(basis.shape)} does not hold two vectors")

    def along(angle: Tensor) -> Tensor:
        return fn(points_on(plane, angle)[0]).flatten(1)

    ones = torch.ones_like(theta)

    def velocity(angle: Tensor) -> Tensor:
        return jvp(along, (angle,), (ones,))[1]

    with torch.no_grad(), _differentiable_attention():
        both = jvp(velocity, (theta,), (ones,))
    v, a = both[0], both[1]
    vv, aa, va = (v * v).sum(1), (a * a).sum(1), (v * a).sum(1)
    return (vv * aa - va.square()).clamp_min(0).sqrt() / vv.pow(1.5)


class _ConstantWeights(TorchFunctionMode):
    """While the block runs, linear layers and convolutions of dual numbers take the tangent of their input alone.

    Forward mode as torch has it also multiplies the tangent of the weights, which is zero here.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in (functional.linear, functional.conv2d) or len(args) < 2:
            return function(*args, **(kwargs or {}))
        value, tangent = forward_ad.unpack_dual(args[0])
        if tangent is None or any(map(_moves, (*args[1:], *(kwargs or {}).values()))):
            return function(*args, **(kwargs or {}))
        options = {name: option for name, option in (kwargs or {}).items() if name != "bias"}
        moved = function(tangent, args[1], None, *args[3:], **options)
        return forward_ad.make_dual(function(value, *args[1:], **(kwargs or {})), moved)


def _moves(given: Any) -> bool:
    """Whether an argument is a dual number."""
    return isinstance(given, Tensor) and forward_ad.unpack_dual(given).tangent is not None


def _differentiable_attention() -> AbstractContextManager[Any]:
    """Attention as plain matrix products: the fused kernels have no forward-mode derivative."""
    return sdpa_kernel(SDPBackend.MATH)
