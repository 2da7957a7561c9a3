"""Projected gradient ascent on the input: the inner maximisation of adversarial training, and a first measure of robustness.

A. Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018, Sec. 2. Attacks act on pixels:
a model that normalises its input does so inside, as a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.examples import as_tensor, require_numbers
from atlas.nn.modes import Mode, mode_of
from atlas.nn.ranks import Share

SMALLEST_NORM = 1e-6
"""Gradients shorter than this are not blown up to length 1 (ℓ2)."""

HALVES = (torch.float16, torch.bfloat16)

Loss = Callable[[Tensor, Tensor], Tensor]


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of the best wrong logit minus the right one; above 0 where the answer is wrong.

    N. Carlini, D. Wagner, *Towards Evaluating the Robustness of Neural Networks*, S&P 2017, f₆ without its hinge: with
    :class:`PGD` in ℓ∞, the attack that papers on adversarial training call C&W∞.

    Parameters
    ----------
    logits, y : Tensor
        (batch, classes), at least two, and (batch,) class indices.
    """
    right = functional.one_hot(y.long(), logits.shape[1]).bool()
    return (logits.masked_fill(right, -torch.inf).amax(1) - logits[right]).mean()


def summed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy added up over the batch: (batch, classes) and (batch,) class indices to a scalar."""
    return functional.cross_entropy(logits, y, reduction="sum")


MEANS: tuple[Loss, ...] = (functional.cross_entropy, margin_loss)
"""Losses that average over the batch."""
CLASS_LOSSES: tuple[Loss, ...] = (*MEANS, summed_cross_entropy)
"""Losses of logits (batch, classes, …) and classes, whose labels can be checked."""


class PGD:
    """Projected gradient ascent without restarts: the last iterate is the answer, whether or not an earlier one was worse.

    Works in evaluation loops under ``torch.no_grad`` and ``torch.inference_mode`` as well, and leaves all of it as found: the
    modes of the model and of autograd, parameters' gradients, and what of the model asks for gradients.

    Parameters
    ----------
    eps : float
        Radius of the ball around each input, in the input's units; 0 leaves inputs as they are.
    step : float
        Step size α, in the input's units.
    steps : int
        Number of gradient steps.
    norm : {"linf", "l2"}
        The ball: largest change of a pixel, or Euclidean length per sample.
    random_start : bool
        Start at a uniform draw: from the cube of half-width ``eps`` (ℓ∞), or from the box, projected to the ball (ℓ2). Otherwise
        start at the input.
    bounds : tuple of float
        The box that inputs live in.
    loss : callable
        ``loss(outputs, y)``, to be increased: a scalar, or one number per sample, which are added up.
    bn_mode : {"keep", "train", "eval"}
        Mode of the model during the attack, put back afterwards. In ``train``, batch normalisation uses the batch's statistics
        and every step updates the running ones; so it does with ``keep`` where the model is in training already. ``eval``
        changes nothing of the model, whatever mode it is in.

    Raises
    ------
    ValueError
        ``eps`` < 0, ``step`` ≤ 0, ``steps`` < 1 or not whole, empty bounds, or a norm or mode that does not exist.

    Examples
    --------
    >>> attack = PGD(8 / 255, 2 / 255, 10)
    >>> adversarial = attack(model, images, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        eps: float,
        step: float,
        steps: int,
        norm: Literal["linf", "l2"] = "linf",
        random_start: bool = True,
        bounds: tuple[float, float] = (0.0, 1.0),
        loss: Loss = functional.cross_entropy,
        bn_mode: Mode = "keep",
    ) -> None:
        require_numbers(eps=eps, step=step, steps=steps)
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, not {eps}")
        if not step > 0:
            raise ValueError(f"step must be above 0, not {step}")
        if steps < 1 or steps != int(steps):
            raise ValueError(f"steps must be a whole number of at least 1, not {steps}")
        if norm not in ("linf", "l2"):
            raise ValueError(f"norm must be linf or l2, not {norm!r}")
        if bn_mode not in ("keep", "train", "eval"):
            raise ValueError(f"bn_mode must be keep, train or eval, not {bn_mode!r}")
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, not {bounds}")
        self.eps, self.step, self.steps, self.norm = float(eps), float(step), int(steps), norm
        self.random_start, self.bounds, self.loss, self.bn_mode = random_start, bounds, loss, bn_mode

    def __call__(
        self,
        model: Callable[[Tensor], Any],
        x: Tensor,
        y: Tensor,
        delta0: Tensor | None = None,
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Tensor:
        """Return adversarial inputs of the shape of ``x``, detached.

        Gradients are taken with respect to the input only: parameters get none, and their ``requires_grad`` is put back. In half
        precision the ascent itself is in single precision, and what it finds is rounded towards ``x``, inside ball and box.

        Parameters
        ----------
        model : callable
            A module, or with ``bn_mode`` ``keep`` any function, from (batch, …) to whatever ``loss`` takes.
        x, y : Tensor
            Inputs (batch, …), floating-point numbers inside ``bounds``, and targets (batch,); whole numbers are taken as class
            indices. The cross-entropy takes probabilities (batch, classes) as well.
        delta0 : Tensor, optional
            Where to start instead, as a change of ``x``; projected to ball and box first.
        generator : torch.Generator, optional
            Source of the random start, on any device; the global one of the input's device if left out.
        share : Share, optional
            Which part of a batch the inputs are: starts are drawn for the whole of it, so that they do not depend on how many
            ranks share it.

        Raises
        ------
        TypeError
            ``x`` is no floating-point tensor or ``y`` no tensor, a mode is asked of a function, or the model returns something
            else than logits where the loss takes these.
        ValueError
            ``x`` is outside ``bounds`` or not finite, ``delta0`` has another shape, ``y`` does not fit the outputs, no gradient
            reaches the inputs, or the model was made under ``torch.inference_mode``.
        """
        x, y = as_tensor(x, "inputs"), as_tensor(y, "labels")
        self._check(x, y, delta0)
        with attacking(self._module(model), self.bn_mode) as module:
            y = y.detach().clone() if y.is_floating_point() else y.long().clone()  # inference tensors have no backward pass
            given, x = x.detach(), _single(x.detach())
            delta = self._start(x, delta0, generator, share)
            for step in range(self.steps):
                adversarial = (x + delta).to(given.dtype).requires_grad_()
                gradient = self._gradient(module, adversarial, y, first=step == 0)
                with torch.no_grad():
                    delta = self._advance(delta, gradient.to(delta.dtype), x)
            return _rounded((x + delta).clamp_(*self.bounds), given)

    def _check(self, x: Tensor, y: Tensor, delta0: Tensor | None) -> None:
        if not x.is_floating_point():
            raise TypeError(f"inputs are {x.dtype}; an attack moves floating-point numbers: divide bytes by 255 first")
        if x.numel():
            low, high = (float(value) for value in x.detach().aminmax())
            if not (low >= self.bounds[0] and high <= self.bounds[1]):
                raise ValueError(
                    f"inputs lie in [{low:g}, {high:g}], outside the bounds [{self.bounds[0]:g}, {self.bounds[1]:g}]"
                )
        if delta0 is not None and delta0.shape != x.shape:
            raise ValueError(f"delta0 has the shape {tuple(delta0.shape)}, the inputs have {tuple(x.shape)}")

    def _module(self, model: Callable[[Tensor], Any]) -> nn.Module:
        if isinstance(model, nn.Module):
            return model
        if self.bn_mode != "keep":
            raise TypeError(f"a function has no mode: bn_mode must be keep, not {self.bn_mode!r}")
        return _Function(model)

    def _gradient(self, model: nn.Module, adversarial: Tensor, y: Tensor, *, first: bool) -> Tensor:
        """Gradient of the loss at the inputs, up to a factor in half precision."""
        outputs = model(adversarial)
        if first and self.loss in CLASS_LOSSES:
            _check_labels(outputs, y, self.loss)
        loss = self.loss(_single(outputs), y)
        if loss.dim():
            loss = loss.sum()
        if adversarial.dtype in HALVES and self.loss in MEANS:
            loss = loss * len(adversarial)  # shares of a mean may be smaller than any number of half precision
        if loss.requires_grad:
            # backward, not autograd.grad: torch's counters of operations cannot follow the latter to an input of the model
            loss.backward(inputs=[adversarial])
        if adversarial.grad is None:
            raise ValueError("no gradient reaches the inputs: the model detaches them, or runs under no_grad or inference_mode")
        return adversarial.grad

    def _start(self, x: Tensor, delta0: Tensor | None, generator: torch.Generator | None, share: Share | None) -> Tensor:
        if delta0 is not None:
            delta = delta0.detach().to(x)
        elif self.random_start:
            device = x.device if generator is None else generator.device
            shape = x.shape if share is None else (share.total, *x.shape[1:])
            draw = torch.rand(shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
            if share is not None:
                draw = draw[share.places.to(x.device)]
            low, high = (-self.eps, self.eps) if self.norm == "linf" else self.bounds
            delta = draw.mul_(high - low).add_(low)
            if self.norm == "l2":
                delta = delta.sub_(x)
        else:
            return torch.zeros_like(x)
        return self._into_box(self._into_ball(delta), x)

    def _advance(self, delta: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """One step of ascent, and back into ball and box; in ℓ2 the ball comes last."""
        if self.norm == "linf":
            return self._into_box(delta.add_(gradient.sign_(), alpha=self.step).clamp_(-self.eps, self.eps), x)
        direction = gradient / _lengths(gradient).clamp_(min=SMALLEST_NORM)
        return self._into_ball(self._into_box(delta.add_(direction, alpha=self.step), x))

    def _into_ball(self, delta: Tensor) -> Tensor:
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        return delta * (self.eps / _lengths(delta)).clamp_(max=1.0).nan_to_num_(nan=1.0)

    def _into_box(self, delta: Tensor, x: Tensor) -> Tensor:
        return (x + delta).clamp_(*self.bounds).sub_(x)


@contextmanager
def attacking(model: nn.Module, mode: Mode = "keep") -> Iterator[nn.Module]:
    """While the block runs, gradients with respect to inputs can be taken, and nothing else of the model moves.

    Leaves ``torch.no_grad`` and ``torch.inference_mode``, keeps gradients away from parameters, and sets the model's mode; all of
    it is afterwards as it was. What is attacked must be made inside the block, or copied there.

    Raises
    ------
    ValueError
        A tensor of the model was made under ``torch.inference_mode``: no gradient can pass it.
    """
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
        tensors = chain(model.named_parameters(), model.named_buffers())
        name = next(name for name, tensor in tensors if tensor.is_inference())
        raise ValueError(f"{name} was made under inference_mode, and no gradient can pass it: build or load the model outside")
    with torch.inference_mode(False), torch.enable_grad(), input_gradients_only(model), mode_of(model, mode):
        yield model


@contextmanager
def input_gradients_only(model: nn.Module) -> Iterator[None]:
    """While the block runs, no parameter asks for a gradient: nothing is kept for it in the graph."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _lengths(x: Tensor) -> Tensor:
    """Euclidean length per sample, shaped to divide ``x``."""
    return x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.dim() - 1))


def _check_labels(outputs: Any, y: Tensor, loss: Loss) -> None:
    """Refuse labels that are no classes of the outputs (batch, classes, …), and outputs that are no tensor."""
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model returns a {type(outputs).__name__}, not logits: attack a function that picks them")
    if outputs.dim() < 2 or not outputs.numel():
        return
    shape, classes = outputs.shape[:1] + outputs.shape[2:], outputs.shape[1]
    if y.is_floating_point() and (loss is margin_loss or y.shape != outputs.shape):
        raise ValueError(f"labels are {y.dtype}: class indices are whole numbers of the shape {tuple(shape)}")
    if y.is_floating_point():
        return
    if y.shape != shape:
        raise ValueError(
            f"labels of the shape {tuple(y.shape)} do not fit outputs of the shape {tuple(outputs.shape)}: {tuple(shape)} would"
        )
    low, high = (int(value) for value in y.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"labels lie in [{low}, {high}], outside the {classes} classes 0 … {classes - 1}")


def _single(values: Any) -> Any:
    """Half precision to single; everything else as it is."""
    return values.float() if isinstance(values, Tensor) and values.dtype in HALVES else values


def _rounded(moved: Tensor, x: Tensor) -> Tensor:
    """``moved`` in the precision of ``x``; where the nearest number is further from ``x``, the next one towards it."""
    if moved.dtype == x.dtype:
        return moved
    near = moved.to(x.dtype)
    beyond = (near.to(moved.dtype) - x.to(moved.dtype)).abs() > (moved - x.to(moved.dtype)).abs()
    # bits of half precision count magnitudes up, whatever the sign
    step = torch.where((near < x) == (near > 0), 1, -1) * (beyond & (near != 0))
    return (near.view(torch.int16) + step.to(torch.int16)).view(x.dtype)


class _Function(nn.Module):
    """A function where a module is expected."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)
