"""What a recipe is made of: override what you need of :class:`Ingredient`, and leave the rest.

The training loop calls, in this order: ``backbone`` and ``rewrite`` once; ``optimizer`` and ``start`` once; then for each step
``on_epoch`` (first step of an epoch), ``mix``, the forward pass, ``base_loss`` and ``loss_terms``, the optimiser's
step, ``after_step``; ``after`` once at the end. Evaluation calls ``backbone``, ``rewrite``, ``restore``, then ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from atlas.harness.plugin import Plugin

if TYPE_CHECKING:
    import torch

    from atlas.harness.run import Run
    from atlas.tasks.image_classification.evaluate import Evaluation
    from atlas.tasks.image_classification.training import Training


@dataclass
class Batch:
    """One training batch.

    Attributes
    ----------
    images : Tensor
        (batch, channels, height, width), normalised.
    labels : Tensor
        (batch,) class indices of the images as loaded.
    target : Any
        What the loss compares the logits with: ``labels``, or (batch, classes) probabilities after mixing, or an
        ingredient's own object that its ``base_loss`` understands.
    """

    images: Tensor
    labels: Tensor
    target: Any


class Ingredient(Plugin):
    """Base of the plug-ins of image classification; every hook does nothing by default.

    Attributes
    ----------
    dense_role : str or None
        Name of the need whose trained weights the recipe starts from instead of training: set by ingredients that act
        after training.
    """

    dense_role: str | None = None

    def backbone(self, run: Run, classes: int) -> nn.Module | None:
        """Return another backbone than the protocol's, at an initialisation that follows from the run's seed, or ``None``.

        The evaluation of the task diagnoses timm's VisionTransformer; a method with another backbone brings its own, from
        the parts in :mod:`atlas.tasks.image_classification.evaluate`.
        """
        return None

    def rewrite(self, model: nn.Module, run: Run) -> nn.Module:
        """Return the model to train: the given one, changed in place, or another. New parameters start deterministic."""
        return model

    def lr_multiplier(self, parameter: str) -> float:
        """Factor on the learning rate of a parameter, by its name."""
        return 1.0

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
        """Return another optimiser for the parameter groups than AdamW, or ``None``."""
        return None

    def start(self, training: Training) -> None:
        """Prepare for training, for example place hooks on ``training.model``."""

    def parts(self) -> Mapping[str, Any]:
        """State of its own that changes from step to step, for the resume state; see :func:`atlas.harness.resume.training`."""
        return {}

    def on_epoch(self, training: Training, epoch: int) -> None:
        """Act at the first step of an epoch; also called when training goes on inside one."""

    def mix(self, batch: Batch, training: Training) -> Batch | None:
        """Mix the batch instead of the protocol's mixup and cutmix, or return ``None``."""
        return None

    def base_loss(self, logits: Tensor, batch: Batch, training: Training) -> Tensor | None:
        """Scalar loss to use instead of cross-entropy of logits (batch, classes), or ``None``."""
        return None

    def loss_terms(self, batch: Batch, logits: Tensor, training: Training) -> Mapping[str, Tensor]:
        """Terms to add to the loss, scalars with their weights in them, by the name under which the curves show them."""
        return {}

    def after_step(self, training: Training, step: int) -> None:
        """Act after the optimiser's step; by default there is nothing to do."""

    def watched(self, training: Training) -> Mapping[str, float]:
        """Return further values for the curves, by name."""
        return {}

    def after(self, training: Training) -> nn.Module:
        """Act after training and return the model to keep. Loops of its own use ``training.phase``."""
        return training.model

    def restore(self, model: nn.Module, run: Run) -> nn.Module:
        """Give a rewritten model the shape of the weights that ``after`` left in ``run.checkpoint``."""
        return model

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return the values of the method's extra metrics, by name."""
        return {}


class Ingredients:
    """A recipe's ingredients, asked together; the first answer wins where only one can."""

    def __init__(self, items: list[Ingredient]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Ingredient]:
        return iter(self.items)

    def backbone(self, run: Run, classes: int) -> nn.Module | None:
        """The first backbone that an ingredient brings, or ``None``."""
        return next((own for item in self.items if (own := item.backbone(run, classes)) is not None), None)

    def rewrite(self, model: nn.Module, run: Run) -> nn.Module:
        """Rewrite a model by every ingredient in turn, and return what came of it."""
        for item in self.items:
            model = item.rewrite(model, run)
        return model

    def restore(self, model: nn.Module, run: Run) -> nn.Module:
        """Apply every restoration in turn."""
        for item in self.items:
            model = item.restore(model, run)
        return model

    def lr_multiplier(self, parameter: str) -> float:
        """Product of the factors on a parameter's learning rate."""
        factor = 1.0
        for item in self.items:
            factor *= item.lr_multiplier(parameter)
        return factor

    def dense_role(self) -> str | None:
        """Role whose weights the recipe starts from, or ``None`` if it trains."""
        return next((item.dense_role for item in self.items if item.dense_role), None)
