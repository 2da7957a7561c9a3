"""Diverse-ViT as an ingredient of a recipe: it mixes the batch, replaces the base loss, and adds its terms.

It acts while the recipe trains. In what comes after training (compression) the batches and the loss are the protocol's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas.errors import AtlasError, UserError
from atlas.harness.seeds import generator
from atlas.methods.diverse_vit.mixing import MixTarget, PatchMixup
from atlas.methods.diverse_vit.settings import DiverseSettings, MixSettings
from atlas.methods.diverse_vit.trainer import DiversityOutputs, DiversityTrainer
from atlas.nn.ranks import mean_of
from atlas.tasks.image_classification.ingredients import Batch, Ingredient

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.training import Training


class DiverseTraining(Ingredient):
    """Some or all of the five terms; probes and mixing of a step follow from the run's seed and the step."""

    settings: DiverseSettings

    def __init__(self, run: Run, settings: DiverseSettings) -> None:
        super().__init__(run, settings)
        self.trainer: DiversityTrainer | None = None
        self.outputs: DiversityOutputs | None = None
        self.latest: dict[str, Tensor] = {}

    def start(self, training: Training) -> None:
        """Place the hooks.

        Raises
        ------
        UserError
            A batch is of an odd size, so that it cannot be mixed with its mirror.
        """
        for name in ("batch_size", "micro_batch"):
            size = getattr(training.protocol, name)
            if self.settings.mix and size is not None and size % 2:
                raise UserError(f"{training.run.cell}: batches are mixed with their mirror: {name} must be even, not {size}")
        self.trainer = DiversityTrainer(training.model, self.settings)

    def mix(self, batch: Batch, training: Training) -> Batch | None:
        """Mix the batch with its mirror, with labels patch by patch."""
        if not self.settings.mix or self.trainer is None:
            return None
        protocol = training.protocol
        mixer = PatchMixup(
            training.data.classes,
            protocol.backbone.patch_size,
            **self.settings.model_dump(include=set(MixSettings.model_fields)),
            smoothing=protocol.label_smoothing,
            generator=generator(self.run.seed, "diverse-mix", training.step),
        )
        images, target = mixer(batch.images, batch.labels)
        return Batch(images, batch.labels, target)

    def base_loss(self, logits: Tensor, batch: Batch, training: Training) -> Tensor | None:
        """The class token's loss, and the patch tokens' where the mixing term is on: a scalar for logits (batch, classes)."""
        if self.trainer is None:
            return None
        with training.autocast():
            self.outputs = self.trainer.outputs(logits)
        if not isinstance(batch.target, MixTarget):
            return None
        try:
            return self.trainer.base_loss(self.outputs, batch.target)
        except ValueError as error:
            raise self._failure(error, training) from None

    def loss_terms(self, batch: Batch, logits: Tensor, training: Training) -> Mapping[str, Tensor]:
        """The regularisers, scalars, each times its coefficient, by the coefficient's name."""
        if self.trainer is None or self.outputs is None:
            return {}
        self.trainer.generator = generator(self.run.seed, "diverse-probes", training.step)
        try:
            terms = self.trainer.terms(self.outputs)
        except ValueError as error:
            raise self._failure(error, training) from None
        self.outputs = None
        self.latest = {f"unweighted_{name}": term.detach() for name, term in terms.items()}
        return {name: getattr(self.settings, name) * term for name, term in terms.items()}

    def watched(self, training: Training) -> Mapping[str, float]:
        """The terms without their coefficients; the weight term as a mean over matrices, comparable between depths."""
        values = {name: float(value) for name, value in mean_of(self.latest, training.ranks).items()}
        if self.trainer is not None and "unweighted_weight_orth" in values:
            values["unweighted_weight_orth"] /= len(self.trainer.weights)
        return values

    def after(self, training: Training) -> torch.nn.Module:
        """Remove the hooks; the model is an ordinary one again."""
        if self.trainer is not None:
            self.trainer.close()
            self.trainer = None
        return training.model

    @staticmethod
    def _failure(error: ValueError, training: Training) -> AtlasError:
        """What a loss that cannot be computed tells the user: the run, the step and the reason."""
        return AtlasError(f"{training.run.cell}: step {training.step + 1}: {error}")
