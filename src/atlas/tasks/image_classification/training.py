"""The training loop that serves every recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.errors import AtlasError
from atlas.harness.files import read_tensors, write_tensors
from atlas.harness.resume import TrainingLoop, Values, training
from atlas.harness.seeds import derive_seed, pick_device
from atlas.nn.counts import forward_flops
from atlas.nn.precision import mixed_precision
from atlas.nn.ranks import here, mean_of
from atlas.nn.vit import at_least_float32
from atlas.tasks.image_classification.data import ImageData, load_data
from atlas.tasks.image_classification.ingredients import Batch, Ingredients
from atlas.tasks.image_classification.models import build_model, parameter_groups
from atlas.tasks.image_classification.passing import Passing, require_shares
from atlas.tasks.image_classification.protocol import Protocol

if TYPE_CHECKING:
    from atlas.harness.run import Run

TRAINING_PASSES = 3
"""A training step costs about three forward passes: one forward, two for the gradients of inputs and weights."""


class Training:
    """A recipe while it trains: what ingredients see.

    Attributes
    ----------
    model : nn.Module
        The model, on ``device``.
    data : ImageData
        Batches of the splits.
    step, epoch : int
        Where training is.
    spent : Values
        ``train_flops``: floating-point operations spent so far, by the usual count of three forward passes a step.
    ranks : Ranks
        This process among those that train the run; each sees its share of every batch.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.protocol: Protocol = run.protocol_model()
        require_shares(run, self.protocol)
        self.ranks = here()
        self.ingredients = Ingredients(run.build())
        self.device = pick_device(run.resources.device)
        self.data: ImageData = load_data(run, self.protocol, self.device)
        self.model: nn.Module = build_model(run, self.ingredients, self.data.classes).to(self.device)
        self.step = 0
        self.epoch = 0
        self.spent = Values(train_flops=0.0)
        self._step_flops: float | None = None
        self._passing: Passing | None = None

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training."""
        return self.protocol.epochs * self.data.steps_per_epoch

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the model as it trains."""
        protocol = self.protocol
        return parameter_groups(self.model, protocol.learning_rate, protocol.weight_decay, self.ingredients.lr_multiplier)

    def phase(self, name: str, total: int, parts: Mapping[str, Any]) -> TrainingLoop:
        """Return the resumable loop of a further phase, for ingredients that act after training."""
        return training(self.run, total, parts, phase=name)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to ``min_learning_rate``; per step."""
        protocol = self.protocol
        warmup = protocol.warmup_epochs * self.data.steps_per_epoch
        if step < warmup:
            fraction = (step + 1) / (warmup + 1)
            return protocol.warmup_learning_rate + fraction * (protocol.learning_rate - protocol.warmup_learning_rate)
        fraction = (step - warmup) / max(1.0, self.total_steps - warmup)
        floor = protocol.min_learning_rate
        return floor + 0.5 * (protocol.learning_rate - floor) * (1 + math.cos(math.pi * fraction))

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where the protocol asks for it and the device has it."""
        return mixed_precision(self.device, self.protocol.precision)

    def mixed(self, batch: Batch) -> Batch:
        """Mix a batch as the first ingredient that wants to, else by the protocol's mixup and cutmix."""
        for ingredient in self.ingredients:
            changed = ingredient.mix(batch, self)
            if changed is not None:
                return changed
        if self._mixup is None or len(batch.images) % 2:
            return batch
        np.random.seed(derive_seed(self.run.seed, "mix", self.step) % 2**32)  # noqa: NPY002 - timm draws from it
        images, target = self._mixup(batch.images.clone(), batch.labels)
        return Batch(images, batch.labels, target)

    @cached_property
    def _mixup(self) -> Any:
        protocol = self.protocol
        if not (protocol.mixup or protocol.cutmix) or not protocol.mix_probability:
            return None
        from timm.data.mixup import Mixup

        return Mixup(
            mixup_alpha=protocol.mixup,
            cutmix_alpha=protocol.cutmix,
            prob=protocol.mix_probability,
            switch_prob=protocol.mix_switch_probability,
            label_smoothing=protocol.label_smoothing,
            num_classes=self.data.classes,
        )

    def loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss of logits (batch, classes), a scalar, and its parts by name."""
        base = self.base_loss(logits, batch)
        terms = {"loss": base}
        total = base
        for ingredient in self.ingredients:
            for name, term in ingredient.loss_terms(batch, logits, self).items():
                terms[name] = term
                total = total + term
        return total, terms

    def base_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of logits (batch, classes) with label smoothing, or what an ingredient puts in its place: a scalar."""
        for ingredient in self.ingredients:
            own = ingredient.base_loss(logits, batch, self)
            if own is not None:
                return own
        logits = at_least_float32(logits)
        if batch.target.ndim == 2:  # mixup has smoothed its probabilities already
            return functional.cross_entropy(logits, batch.target)
        return functional.cross_entropy(logits, batch.target, label_smoothing=self.protocol.label_smoothing)

    def step_flops(self) -> float:
        """FLOPs of one training image; counted anew after :meth:`shape_changed`."""
        if self._step_flops is None:
            self._step_flops = TRAINING_PASSES * forward_flops(self.model, self.data.example(1))
        return self._step_flops

    def shape_changed(self) -> None:
        """To be called by an ingredient that changed the cost of a step, for example the number of tokens."""
        self._step_flops = None

    def fit(self) -> None:
        """Run the loop to its end, from wherever an earlier process stopped."""
        optimizer, scaler, loop = self.prepare()
        for step, (images, labels) in loop.over_epochs(self.data.steps_per_epoch, self.data.train_batches, self.begin_epoch):
            self.begin_step(step, len(images))
            self.end_step(loop, self.take_step(optimizer, scaler, Batch(images, labels, labels)))

    def prepare(self) -> tuple[torch.optim.Optimizer, Any, TrainingLoop]:
        """Make the optimiser, the scaler of the loss and the loop, restored to wherever an earlier process stopped."""
        optimizer = self._optimizer()
        for ingredient in self.ingredients:
            ingredient.start(self)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self._scaled)
        return optimizer, scaler, training(self.run, self.total_steps, self._parts(optimizer, scaler))

    def begin_step(self, step: int, images: int) -> None:
        """Note which step it is, and what so many images of this process cost."""
        self.step = step
        self.spent.train_flops += self.step_flops() * images * self.ranks.size

    def end_step(self, loop: TrainingLoop, terms: Mapping[str, Tensor]) -> None:
        """Do what follows the optimiser's step; ``terms`` are the scalar parts of its loss, for the curves."""
        for ingredient in self.ingredients:
            ingredient.after_step(self, self.step)
        if (self.step + 1) % self.protocol.log_every == 0 or self.step + 1 == self.total_steps:
            self._log(loop, terms)

    def begin_epoch(self, step: int) -> None:
        """Do what comes before an epoch's first step, and where training goes on inside one."""
        self.step, self.epoch = step, step // self.data.steps_per_epoch
        for ingredient in self.ingredients:
            ingredient.on_epoch(self, self.epoch)

    def take_step(self, optimizer: torch.optim.Optimizer, scaler: Any, batch: Batch) -> dict[str, Tensor]:
        """Take the optimiser's step of ``self.step`` on a batch, as the protocol says; return the loss by its scalar parts.

        Of several ranks, each returns the loss of its share of the batch: their mean is that of all.
        """
        passing = self.passing()
        self.model.train()
        self.set_rate(optimizer)
        optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        for share, piece in passing.passes(batch):
            piece = self.mixed(piece)
            with self.autocast():
                logits = passing(piece.images)
            total, parts = self.loss(logits, piece)
            scaler.scale(share * total).backward()
            terms = {name: terms.get(name, 0) + share * term.detach() for name, term in parts.items()}
        if self.protocol.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.protocol.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        self.follow()
        return terms

    def set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimiser's groups the learning rates of this step."""
        rate = self.learning_rate(self.step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def follow(self) -> None:
        """Let the moving average of the weights, where there is one, follow the optimiser's step."""
        if self._ema is not None:
            self._ema.update(self.model)

    def passing(self, model: nn.Module | None = None) -> Passing:
        """Return how batches go through a model; by default the one of this training."""
        protocol = self.protocol
        if model is not None:
            return Passing(model, protocol.batch_size, protocol.micro_batch)
        if self._passing is None or self._passing.model is not self.model:
            self._passing = Passing(self.model, protocol.batch_size, protocol.micro_batch)
        return self._passing

    def _log(self, loop: TrainingLoop, terms: Mapping[str, Tensor]) -> None:
        values = {name: float(term.detach()) for name, term in mean_of(terms, self.ranks).items()}
        if not all(map(math.isfinite, values.values())):
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            raise AtlasError(f"{self.run.cell}: the loss is not finite at step {self.step + 1}: {shown}")
        for ingredient in self.ingredients:
            values.update(ingredient.watched(self))
        loop.log(**values, learning_rate=self.learning_rate(self.step))

    def _optimizer(self) -> torch.optim.Optimizer:
        for ingredient in self.ingredients:
            own = ingredient.optimizer(self.groups)
            if own is not None:
                return own
        return torch.optim.AdamW(self.groups, lr=self.protocol.learning_rate, foreach=True)

    @property
    def _scaled(self) -> bool:
        return self.device.type == "cuda" and self.protocol.precision == "float16"

    @cached_property
    def _ema(self) -> Any:
        if self.protocol.ema_decay is None:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.model, decay=self.protocol.ema_decay)

    def _parts(self, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "optimizer": optimizer, "scaler": scaler, "cost": self.spent}
        if self._ema is not None:
            parts["ema"] = self._ema
        for index, ingredient in enumerate(self.ingredients):
            for name, part in ingredient.parts().items():
                parts[f"ingredient{index}.{name}"] = part
        return parts

    def finish(self) -> dict[str, float]:
        """Do what follows the loop, write the weights that evaluation reads, and return what :func:`train` does."""
        from atlas.tasks.image_classification.evaluate import accuracy

        for ingredient in self.ingredients:
            self.model = ingredient.after(self)
        self.keep()
        summary = {"train_flops": self.spent.train_flops}
        if self.data.size("validation"):
            summary["validation_top1"] = accuracy(self.model, self.data.batches("validation"))
        return summary

    def keep(self) -> None:
        """Write the weights that evaluation reads."""
        model = self._ema.module if self.protocol.evaluate_ema and self._ema is not None else self.model
        write_tensors(self.run.weights, model.state_dict())


def train(run: Run) -> dict[str, float]:
    """Train a recipe, or compress what another run has trained, and write its weights and curves.

    Returns
    -------
    dict
        ``train_flops`` and, where a validation split is held out, ``validation_top1``.
    """
    bench = Training(run)
    role = bench.ingredients.dense_role()
    if role is None:
        bench.fit()
    else:
        bench.model.load_state_dict(read_tensors(run.needed(role).weights))
    return bench.finish()
