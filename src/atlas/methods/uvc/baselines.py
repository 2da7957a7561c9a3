"""The baselines as plug-ins: the same teacher, loss and path to a smaller model, another decision on what to keep."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.harness.resume import Values
from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.criteria import (
    batch_gradients,
    cubic_sparsity,
    evenly_spaced_plan,
    gradual_plan,
    one_shot_plan,
    prunable_weights,
    saliency_plan,
    taylor_scores,
    uniform_plan,
    weight_masks,
)
from atlas.methods.uvc.exporting import zero_removed
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.plugin import SEARCH_PHASE, Distilled, Trainer, scores_of
from atlas.methods.uvc.settings import BlindSettings, StructuredSettings, UnstructuredSettings
from atlas.nn.work import TRAIN
from atlas.tasks.image_classification.ingredients import Ingredients
from atlas.tasks.image_classification.models import build_model

if TYPE_CHECKING:
    from atlas.tasks.image_classification.evaluate import Evaluation
    from atlas.tasks.image_classification.training import Training


class Dense(Distilled):
    """Keeps everything: the dense model trained on, with itself as the teacher."""

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Return the plan that keeps everything."""
        return CompressionPlan.identity(ViTShape.from_timm(training.model))


class Uniform(Distilled):
    """Removes the same share of dims and neurons from every layer, the smallest first."""

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Rank units by the squared norms of what they feed forward."""
        shape, scores = scores_of(training)
        return uniform_plan(shape, scores, self.budget)


class Blind(Distilled):
    """Keeps blocks by their place alone."""

    settings: BlindSettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Keep the spaced or the first blocks, from scratch those of the model at its initialisation."""
        if self.settings.from_scratch:
            fresh = build_model(training.run, Ingredients(training.run.build()), training.data.classes)
            training.model.load_state_dict(fresh.state_dict())
        shape = ViTShape.from_timm(training.model)
        return evenly_spaced_plan(shape, self.budget, self.settings.order)


def _some_batches(training: Training, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the first (images, labels) of an epoch that no training has; every rank looks at the whole of them."""
    return list(islice(training.data.train_batches(10**6, whole=True), count))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), labels)


class Structured(Distilled):
    """Criteria on heads, dims and neurons; gradual pruning trains while it prunes, the others decide at once."""

    settings: StructuredSettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Rank units by magnitude, at once or gradually, by first-order change of the loss, or by saliency."""
        if self.settings.criterion == "gradual":
            return self._gradually(training, trainer)
        shape, scores = scores_of(training)
        model = training.model.eval()
        if self.settings.criterion == "magnitude":
            return one_shot_plan(shape, scores, self.budget)
        batches, size = _some_batches(training, self.settings.batches), training.protocol.micro_batch
        if self.settings.criterion == "taylor":
            found = taylor_scores(model, batches, _cross_entropy, shape, micro_batch=size)
            return one_shot_plan(shape, found, self.budget)
        return saliency_plan(model, *batches[0], _cross_entropy, self.budget, micro_batch=size)

    def _gradually(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Prune by magnitude in jumps, while the resumable loop ``search`` trains with what is removed held at 0."""
        shape = ViTShape.from_timm(training.model)
        epochs = self.settings.stages[0]
        total = epochs * training.data.steps_per_epoch
        interval = max(1, total // (self.settings.jumps + 1))
        held = _Held(CompressionPlan.identity(shape))

        def after(step: int, rate: float) -> Mapping[str, float]:
            if step % interval == 0:
                _, scores = scores_of(training)
                times = {"start": 0, "interval": interval, "times": self.settings.jumps}
                held.plan = gradual_plan(shape, scores, self.budget, step, **times)
            zero_removed(training.model, held.plan)
            return {"resource": held.plan.r_phys(shape)} if trainer.logs(step, total) else {}

        parts = {"plan": held}
        trainer.fit(SEARCH_PHASE, training.model, epochs, 0, self.rate(training), parts=parts, after=after)
        return one_shot_plan(shape, scores_of(training)[1], self.budget)

    def finetune(self, training: Training, trainer: Trainer, small: nn.Module) -> None:
        """Train for the rest of the epochs, further down the same schedule of the learning rate."""
        before, after = self.settings.stages
        done = before * training.data.steps_per_epoch
        rate = self.rate(training)
        trainer.fit(TRAIN, small, after, before, lambda step: rate(done + step))


class _Held:
    """A plan that changes from step to step, as a part of the resume state."""

    def __init__(self, plan: CompressionPlan) -> None:
        self.plan = plan

    def state_dict(self) -> dict[str, str]:
        return {"plan": self.plan.to_json()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        self.plan = CompressionPlan.from_json(state["plan"])


class Unstructured(Distilled):
    """Masks on single weights; nothing becomes smaller."""

    settings: UnstructuredSettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Keep the whole architecture; criteria other than gradual pruning mask its weights at once."""
        if self.settings.criterion != "gradual":
            _apply(training.model, self.masks(training, self.settings.sparsity))
        return CompressionPlan.identity(ViTShape.from_timm(training.model))

    def masks(self, training: Training, sparsity: float) -> dict[str, Tensor]:
        """Return which weights stay, as bool masks like the weights, by name."""
        weights = prunable_weights(training.model)
        if self.settings.criterion != "taylor":
            return weight_masks({name: weight.detach().abs() for name, weight in weights.items()}, sparsity)
        model = training.model.eval()
        batches = _some_batches(training, self.settings.batches)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for images, labels in batches:
            size = training.protocol.micro_batch
            found = batch_gradients(model, images, labels, _cross_entropy, list(weights.values()), size)
            for name, gradient in zip(weights, found, strict=True):
                total[name] += gradient
        return weight_masks({name: (total[name] * weight.detach()).abs() for name, weight in weights.items()}, sparsity)

    def finetune(self, training: Training, trainer: Trainer, small: nn.Module) -> None:
        """Train with masked weights held at 0; gradual pruning renews the masks at every jump."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        total = settings.epochs * per_epoch
        interval = max(1, int(settings.ramp * total) // (settings.jumps + 1))
        held = Values(masks={name: weight != 0 for name, weight in prunable_weights(small).items()})

        def after(step: int, rate: float) -> Mapping[str, float]:
            if settings.criterion == "gradual" and step % interval == 0:
                sparsity = cubic_sparsity(step, 0, interval, settings.jumps, settings.sparsity)
                magnitudes = {name: weight.detach().abs() for name, weight in prunable_weights(small).items()}
                held.masks = weight_masks(magnitudes, sparsity)
            _apply(small, held.masks)
            return {}

        trainer.fit(TRAIN, small, settings.epochs, 0, self.rate(training), parts={"masks": held}, after=after)

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return the metrics of every row, and the share of weights that are not 0."""
        weights = prunable_weights(evaluation.model).values()
        kept = sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
        return {**super().evaluate(evaluation), "weights_kept": kept}


@torch.no_grad()
def _apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set masked weights to 0, in place."""
    for name, weight in prunable_weights(model).items():
        weight.mul_(masks[name].to(weight))
