"""Diverse-ViT as an ingredient of a recipe: it mixes the batch, replaces the base loss, and adds its terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas.harness.seeds import generator
from atlas.methods.diverse_vit.entry import DiverseSettings, MixSettings
from atlas.methods.diverse_vit.mixing import MixTarget, PatchMixup
from atlas.methods.diverse_vit.trainer import DiversityConfig, DiversityOutputs, DiversityTrainer
from atlas.tasks.image_classification.ingredients import Batch, Ingredient

if TYPE_CHECKING:
    from atlas.tasks.image_classification.training import Training


class DiverseIngredient(Ingredient):
    """The five terms; probes and mixing of a step follow from the run's seed and the step."""

    def __init__(self, settings: DiverseSettings, seed: int) -> None:
        values = settings.model_dump()
        self.mixing = {name: values.pop(name) for name in MixSettings.model_fields}
        self.mixes = bool(values.pop("mix"))
        self.config = DiversityConfig(**values)
        self.seed = seed
        self.outputs: DiversityOutputs | None = None

    def start(self, training: Training) -> None:
        """Place the hooks."""
        self.trainer = DiversityTrainer(training.model, self.config)

    def mix(self, batch: Batch, training: Training) -> Batch | None:
        """Mix the batch with its mirror, with labels patch by patch."""
        if not self.mixes:
            return None
        draw = generator(self.seed, "diverse-mix", training.step)
        mixer = PatchMixup(training.data.classes, training.protocol.backbone.patch_size, **self.mixing, generator=draw)
        images, target = mixer(batch.images, batch.labels)
        return Batch(images, batch.labels, target)

    def base_loss(self, logits: Tensor, batch: Batch, training: Training) -> Tensor | None:
        """The class token's loss, and the patch tokens' where the mixing term is on."""
        self.trainer.generator = generator(self.seed, "diverse-probes", training.step)
        self.outputs = self.trainer.outputs(logits)
        if isinstance(batch.target, MixTarget):
            return self.trainer.base_loss(self.outputs, batch.target)
        return None

    def loss_terms(self, batch: Batch, logits: Tensor, training: Training) -> Mapping[str, Tensor]:
        """The weighted regularisers."""
        assert self.outputs is not None
        terms = self.trainer.terms(self.outputs)
        self.outputs = None
        return {name: getattr(self.config, name) * term for name, term in terms.items()}

    def after(self, training: Training) -> torch.nn.Module:
        """Remove the hooks; the model is an ordinary one again."""
        if hasattr(self, "trainer"):
            self.trainer.close()
        return training.model
