"""Compression as one call: search under a budget, export, fine-tune (Algorithm 1 and Sec. 3 of Yu et al., ICLR 2022)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.uvc.architecture import ViTShape, require_supported
from atlas.methods.uvc.controller import UVCController
from atlas.methods.uvc.distillation import kd_loss
from atlas.methods.uvc.exporting import export
from atlas.methods.uvc.gates import apply_gates, remove_gates
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.repair import fill_blocks, fit_blocks, uniform_widths
from atlas.methods.uvc.settings import ControllerPreset, Norm, UVCSettings, ValueLayout
from atlas.methods.uvc.updates import StepLog
from atlas.nn.bars import Bar
from atlas.nn.examples import as_loader, in_type_of, require_labels, require_numbers
from atlas.nn.kinds import require_sequence, require_whole
from atlas.nn.modes import mode_of
from atlas.nn.precision import forget_casts

DEFAULTS = UVCSettings()
RATES = ("learning_rate", "finetune_learning_rate", "weight_decay")
ANNEALED = 0.6
"""Share of the search over which the normalised preset lowers the budget."""


@dataclass
class CompressionResult:
    """What :func:`compress` returns.

    Attributes
    ----------
    model : nn.Module
        The smaller model, fine-tuned, in evaluation mode. In training mode it returns what the given model returns: of one with
        a distillation token, two heads' logits only if distilled training was on there.
    plan : CompressionPlan
        What it keeps.
    log : list of dict
        One row per step of both stages: ``stage``, ``step``, ``loss``, and in the search the controller's values.
    r_phys : float
        Multiply-accumulates left.
    acc_pre_ft, acc : float or None
        Accuracy in [0, 1] on ``val_loader`` right after the export, and at the end; ``None`` without one.
    """

    model: nn.Module
    plan: CompressionPlan
    log: list[dict[str, Any]] = field(repr=False)
    r_phys: float
    acc_pre_ft: float | None
    acc: float | None


def cosine_rate(step: int, total: int, base: float, warmup: int = 0, floor: float = 0.0) -> float:
    """Learning rate of a step, counted from 0: 1/warmup, 2/warmup … 1 of ``base``, then half a cosine down to ``floor``."""
    if step < warmup:
        return base * (step + 1) / warmup
    return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def weight_step(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    rate: float,
    clipped: Iterable[Tensor],
    clip_norm: float | None = 1.0,
) -> Tensor:
    """Backward, clip the gradients of ``clipped`` together, and one optimiser step at a learning rate; return the loss, a scalar.

    The loss is the sum of ``losses``, one for each piece of the batch: each is back-propagated, and its activations released,
    before the next one is computed. In the search, ``clipped`` holds the gates beside the weights.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for loss in losses:
        loss.backward()
        total = total + loss.detach()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(list(clipped), clip_norm)
    optimizer.step()
    forget_casts()
    return total


def settle(controller: UVCController, budget: float) -> CompressionPlan:
    """Return the controller's plan, repaired to the budget: by units where it prunes, else by whole blocks."""
    if controller.prune:
        return fill_blocks(controller.plan(), controller.shape, controller.scores(), budget)
    return fit_blocks(controller.plan(), controller.shape, controller.preferences(), budget)


def smallest_cut(shape: ViTShape) -> CompressionPlan:
    """Return the plan without a dim of every head and a neuron of every block: to try whether a model can be cut."""
    plan = CompressionPlan.identity(shape)
    plan.dims[..., 0] &= ~plan.dims[..., 1:].any(-1)
    plan.neurons[..., 0] &= ~plan.neurons[..., 1:].any(-1)
    return plan


@torch.inference_mode(False)
@torch.enable_grad()
def compress(
    model: Any,
    budget: float,
    train_loader: Any,
    *,
    val_loader: Any = None,
    batch_size: int = 64,
    teacher: nn.Module | None = None,
    epochs: tuple[int, int] = DEFAULTS.stages,
    preset: ControllerPreset = DEFAULTS.preset,
    seed: int = 0,
    device: torch.device | str | None = None,
    warmup_epochs: int | None = None,
    learning_rate: float = DEFAULTS.search_learning_rate,
    finetune_learning_rate: float = DEFAULTS.learning_rate,
    weight_decay: float = DEFAULTS.weight_decay,
    alpha: float = DEFAULTS.alpha,
    temperature: float = DEFAULTS.temperature,
    kd_norm: Norm = DEFAULTS.kd_norm,
    v_layout: ValueLayout = DEFAULTS.v_layout,
    prune: bool = True,
    skip: bool = True,
    progress: bool | None = None,
) -> CompressionResult:
    """Compress a trained timm VisionTransformer, Eva or T2T-ViT to a budget; defaults as in :class:`.settings.UVCSettings`.

    Parameters
    ----------
    model : nn.Module
        The dense model; not changed. One with a distillation token learns by both of its heads here.
    budget : float
        Multiply-accumulates left, in (0, 1].
    train_loader, val_loader : iterable of (images, targets), Dataset, or pair of arrays
        Passed over once per epoch; targets are classes or probabilities, for ``val_loader`` classes. A dataset, or all images and
        targets as tensors or NumPy arrays, is loaded in batches of ``batch_size``, shuffled for training.
    teacher : nn.Module, optional
        Anything that gives logits; by default the dense model itself.
    epochs : (int, int)
        Of the search and of fine-tuning; 0 leaves a stage out.
    preset : {"normalised", "reference"}
        See :class:`.controller.UVCController`.
    seed : int
        Of all that is drawn: the gates, the network's drop-path and dropout, and the order and augmentation of loaders that have
        no generator of their own. The caller's random numbers go on as if nothing had been drawn.
    device : optional
        By default where the model is.
    warmup_epochs : int, optional
        Epochs of the search in which gates pass one half and only weights learn; by default a sixth of it, at least one if
        there are two.
    learning_rate, finetune_learning_rate, weight_decay
        Of AdamW in the two stages; cosine to 0.
    alpha, temperature, kd_norm
        Of distillation; see :func:`.distillation.kd_loss`.
    v_layout : {"padded", "uniform"}
        See :func:`.exporting.export`.
    progress : bool, optional
        Whether to draw a bar; by default on a terminal.

    Raises
    ------
    TypeError
        A loader is none of the above, or gives inputs of another type than the weights, or labels that are no classes.
    ValueError
        The budget is not in (0, 1], epochs, rates or weight decay are negative, a loader is empty, the model cannot take a
        loader's first batch or its labels are out of range, or the teacher has other classes: found before anything is trained.
        Labels of a later batch are out of range: found when it comes.
    UnsupportedArchitectureError
        The model cannot be pruned exactly: found before anything is computed.
    InfeasibleBudgetError
        The budget is below what every search can reach, see :func:`.repair.reachable_macs`; found before anything is trained.
    FloatingPointError
        See :class:`.controller.UVCController`.
    ExportError
        The model cannot be made smaller exactly; tried before the search.
    """
    require_supported(model)
    _require_stages(epochs, warmup_epochs)
    for name, value in zip(RATES, (learning_rate, finetune_learning_rate, weight_decay), strict=True):
        require_numbers(**{name: value})
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0, not {value}")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    train_loader = as_loader(train_loader, batch_size, seed=seed, name="train_loader")
    if val_loader is not None:
        val_loader = as_loader(val_loader, batch_size, shuffle=False, name="val_loader")
    if isinstance(train_loader, Sized) and not len(train_loader):
        raise ValueError("train_loader is empty")
    student = copy.deepcopy(model).to(device)
    guide = copy.deepcopy(model if teacher is None else teacher).to(device).eval().requires_grad_(False)
    distills = getattr(student, "distilled_training", None)
    if distills is not None:
        student.set_distilled_training(True)
    stages = _Stages(student, guide, train_loader, device, alpha, temperature, kd_norm)
    with _own_random_numbers(device, seed):
        batches = stages.count_batches()
        if val_loader is not None:
            stages.check_validation(val_loader)
    warmup = max(1, epochs[0] // 6) if warmup_epochs is None else warmup_epochs
    warmup = min(warmup, max(0, epochs[0] - 1))
    controller = UVCController(
        student,
        budget,
        preset,
        prune=prune,
        skip=skip,
        generator=torch.Generator().manual_seed(seed),
        anneal_steps=int(ANNEALED * (epochs[0] - warmup) * batches),
    )
    export(student, smallest_cut(controller.shape), v_layout)
    with Bar("compress", sum(epochs) * batches, progress) as stages.bar, _own_random_numbers(device, seed):
        stages.search(controller, epochs[0], warmup, batches, learning_rate, weight_decay)
        plan = settle(controller, budget)
        if v_layout == "uniform":
            plan = uniform_widths(plan, controller.shape, controller.scores())
        small: Any = export(student, plan, v_layout)
        before = None if val_loader is None else accuracy(small, val_loader, device)
        stages.finetune(small, epochs[1], batches, finetune_learning_rate, weight_decay)
        after = None if val_loader is None else accuracy(small, val_loader, device)
    small.eval()
    if distills is not None:
        small.set_distilled_training(distills)
    return CompressionResult(small, plan, stages.log, plan.r_phys(controller.shape), before, after)


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from a seed on the CPU and on one GPU, and leave the caller's generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _require_stages(epochs: tuple[int, int], warmup_epochs: int | None) -> None:
    """Refuse what are no numbers of epochs from 0 up: two, and those of the warm-up if they are given."""
    require_sequence("a pair (search, fine-tuning)", epochs=epochs)
    if len(epochs) != 2:
        raise ValueError(f"epochs must be a pair (search, fine-tuning), not {epochs}")
    for count in epochs:
        require_whole(epochs=count)
    if min(epochs) < 0:
        raise ValueError(f"epochs must be (search, fine-tuning) of at least 0 each, not {tuple(epochs)}")
    if warmup_epochs is not None:
        require_whole(warmup_epochs=warmup_epochs)
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be at least 0, not {warmup_epochs}")


def _require_targets(targets: Any, count: int, classes: int, loader: str, shares: bool) -> None:
    """Refuse what are no classes of ``count`` images or, where a loss takes them, shares of classes."""
    require_labels(targets, count, classes, f"{loader}'s labels")
    if not shares and targets.ndim != 1:
        raise TypeError(f"{loader}'s labels are shares of shape {tuple(targets.shape)}: class numbers ({count},) are needed")


def _trainable(values: Tensor) -> Tensor:
    """The same values, copied if they were made in inference mode: no gradient passes by such tensors."""
    return values.clone() if values.is_inference() else values


class _Stages:
    """The two loops of :func:`compress`, with what they share."""

    def __init__(
        self, student: Any, teacher: Any, loader: Any, device: torch.device, alpha: float, temperature: float, norm: Norm
    ) -> None:
        self.student, self.teacher, self.loader, self.device = student, teacher, loader, device
        self.alpha, self.temperature, self.norm = alpha, temperature, norm
        self.log: list[dict[str, Any]] = []
        self.bar = Bar("compress", 0)

    def count_batches(self) -> int:
        """Return the number of batches of an epoch; check that there are any, and that the teacher has the student's classes."""
        count = len(self.loader) if isinstance(self.loader, Sized) else sum(1 for _ in self.loader)
        images = self._first(self.loader, "train_loader")
        if not count:
            raise ValueError("train_loader is empty")
        with torch.inference_mode():
            taught = self.teacher(images)
        if not isinstance(taught, Tensor):
            raise TypeError(f"the teacher returns a {type(taught).__name__}: one tensor of logits is needed")
        classes = self.student.num_classes
        if classes != taught.shape[-1]:
            raise ValueError(f"the teacher has {taught.shape[-1]} classes, the model {classes}")
        return count

    def check_validation(self, loader: Any) -> None:
        """Refuse, before anything is trained, images that the model cannot take and labels that are no classes."""
        self._first(loader, "val_loader", shares=False)

    def _first(self, loader: Any, name: str, shares: bool = True) -> Tensor:
        """The first image (1, channels, height, width) of a loader, whose first batch the model and its loss can take."""
        first = next(iter(loader), None)
        if first is None:
            raise ValueError(f"{name} is empty")
        inputs, targets = first
        in_type_of(self.student, inputs, f"{name}'s inputs")
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"{name}'s inputs must be (batch, channels, height, width), not {given}")
        _require_targets(targets, len(inputs), self.student.num_classes, name, shares)
        image = inputs[:1].to(self.device)
        with torch.inference_mode(), mode_of(self.student, "eval"):
            try:
                self.student(image)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(f"the model cannot take {name}'s inputs of the shape {tuple(inputs.shape)}: {reason}") from error
        return image

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """Return the distillation loss of (batch, channels, height, width) images, which must be finite."""
        images, targets = (_trainable(value.to(self.device)) for value in (images, targets))
        with torch.no_grad():
            taught = self.teacher(images)
        loss = kd_loss(model(images), taught, targets, self.alpha, self.temperature, self.norm)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"step {step}: the loss is {float(loss.detach())}")
        return loss

    def search(self, controller: UVCController, epochs: int, warmup: int, batches: int, rate: float, weight_decay: float) -> None:
        """Train weights, gates and counts together, with gates at one half for ``warmup`` epochs of ``batches`` steps."""
        model = apply_gates(self.student, controller)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
        step = 0
        for epoch in range(epochs):
            controller.warming_up = epoch < warmup
            controller.start_epoch()
            model.train()
            for images, targets in self.loader:
                step_rate = cosine_rate(step, epochs * batches, rate, warmup * batches)
                loss = self.loss(model, images, targets, step)
                weight_step(optimizer, [loss], step_rate, [*model.parameters(), *controller.parameters()])
                seen: StepLog = controller.step(step_rate)
                step += 1
                self.log.append({"stage": "search", "step": step, "loss": float(loss.detach()), **seen.values()})
                self.bar.advance({"loss": self.log[-1]["loss"]})
        remove_gates(model)

    def finetune(self, small: nn.Module, epochs: int, batches: int, rate: float, weight_decay: float) -> None:
        """Train the exported model, whose architecture is fixed, as any other."""
        optimizer = torch.optim.AdamW(small.parameters(), lr=rate, weight_decay=weight_decay)
        step = 0
        for _ in range(epochs):
            small.train()
            for images, targets in self.loader:
                loss = self.loss(small, images, targets, step)
                weight_step(optimizer, [loss], cosine_rate(step, epochs * batches, rate), small.parameters())
                step += 1
                self.log.append({"stage": "finetune", "step": step, "loss": float(loss.detach())})
                self.bar.advance({"loss": self.log[-1]["loss"]})


@torch.inference_mode()
def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Top-1 accuracy in [0, 1] over batches of images (batch, channels, height, width) and classes (batch,).

    The model is in evaluation mode meanwhile; its mode is restored.

    Raises
    ------
    TypeError, ValueError
        The loader is empty, or labels are no classes of the model.
    """
    right = []
    with mode_of(model, "eval"):
        for images, labels in loader:
            logits = model(images.to(device))
            _require_targets(labels, len(images), logits.shape[-1], "val_loader", shares=False)
            right.append((logits.argmax(-1) == labels.to(device)).float().cpu())
    if not right:
        raise ValueError("val_loader is empty")
    return float(torch.cat(right).mean())
