"""Networks with masks that stay: drawn, scored at initialisation, or read off a trained dense network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atlas.harness.files import read_tensors
from atlas.harness.run import Run
from atlas.harness.seeds import generator
from atlas.methods.sparse_robust.masks import random_masks
from atlas.methods.sparse_robust.scores import score_masks
from atlas.methods.sparse_robust.settings import Criterion, ScoreSettings
from atlas.methods.sparse_robust.static import SparseTraining
from atlas.tasks.adversarial_robustness.networks import build_network
from atlas.tasks.adversarial_robustness.topology import Stepper, Topology
from atlas.tasks.adversarial_robustness.training import Training


class RandomMasks(Topology):
    """Fixed masks, drawn at the quotas of a scheme, or by one global draw."""

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Draw the masks by the run's seed, and keep the optimiser to them."""
        random = generator(training.run.seed, "masks")
        masks = random_masks(training.model, self.settings.density, self.settings.scheme, random)
        return SparseTraining(training.model, optimizer, masks)


class ScoredMasks(Topology):
    """Fixed masks by a score of the initial weights, on clean training batches."""

    def __init__(self, run: Run, settings: ScoreSettings, *, criterion: Criterion) -> None:
        super().__init__(run, settings)
        self.criterion = criterion

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Score the weights and keep the highest."""
        batches = None if self.criterion == "magnitude" else list(self._batches(training))
        masks = score_masks(
            training.model, self.settings.density, self.criterion, batches, self.settings.scope, self.settings.rounds
        )
        return SparseTraining(training.model, optimizer, masks)

    def _batches(self, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
        for count, batch in enumerate(training.data.train_batches(0, purpose="scores", whole=True), 1):
            yield batch
            if count == self.settings.batches:
                return


class TrainedMagnitude(Topology):
    """One-shot magnitude pruning: the mask of a trained dense network, the weights of the initialisation."""

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Read the mask off the dense run's final weights."""
        dense = build_network(training.protocol.network, training.data.classes, training.data.shape, training.run.seed)
        dense.load_state_dict(read_tensors(training.run.needed("dense").weights))
        masks = score_masks(dense, self.settings.density, "magnitude")
        return SparseTraining(training.model, optimizer, masks)
