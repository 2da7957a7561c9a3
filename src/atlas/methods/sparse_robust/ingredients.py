"""The paper's methods and its static baselines as topologies of adversarial robustness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.harness.files import read_tensors
from atlas.harness.seeds import generator
from atlas.methods.sparse_robust.early_bird import EarlyBird
from atlas.methods.sparse_robust.entry import EARLY_BIRD
from atlas.methods.sparse_robust.flying_bird import FlyingBird, FlyingBirdPlus, two_stage_interval
from atlas.methods.sparse_robust.masks import Masks, random_masks
from atlas.methods.sparse_robust.regularisers import WeightAverage
from atlas.methods.sparse_robust.scores import magnitude_ticket, score_masks
from atlas.methods.sparse_robust.static import SparseTraining
from atlas.nn.attacks import PGD
from atlas.tasks.adversarial_robustness.networks import build_network
from atlas.tasks.adversarial_robustness.protocol import learning_rate_at
from atlas.tasks.adversarial_robustness.topology import Stepper, Topology

if TYPE_CHECKING:
    from atlas.methods.sparse_robust.entry import (
        DynamicSettings,
        PlusSettings,
        RobustBirdSettings,
        ScoreSettings,
        SparseSettings,
    )
    from atlas.tasks.adversarial_robustness.training import Progress, Training

FAST_STEP = 1.25
"""Step of the one-step attack of fast adversarial training, relative to the radius (E. Wong et al., ICLR 2020)."""
FAST_PEAK = 0.2
"""Highest learning rate of its cycle, reached after two fifths of the epochs."""


class RandomTopology(Topology):
    """Fixed masks, drawn at the quotas of a scheme, or by one global draw."""

    def __init__(self, settings: SparseSettings) -> None:
        self.settings = settings

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Draw the masks by the run's seed."""
        random = generator(training.run.seed, "masks")
        masks = random_masks(training.model, self.settings.density, self.settings.scheme, random)
        return SparseTraining(training.model, optimizer, masks)


class ScoredTopology(Topology):
    """Fixed masks by a score of the initial weights, on clean training batches."""

    def __init__(self, criterion: Any, settings: ScoreSettings) -> None:
        self.criterion, self.settings = criterion, settings

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Score the weights and keep the highest."""
        batches = None if self.criterion == "magnitude" else list(self._batches(training))
        masks = score_masks(
            training.model, self.settings.density, self.criterion, batches, self.settings.scope, self.settings.rounds
        )
        return SparseTraining(training.model, optimizer, masks)

    def _batches(self, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
        for count, batch in enumerate(training.data.train_batches(0, purpose="scores"), 1):
            yield batch
            if count == self.settings.batches:
                return


class TrainedMagnitudeTopology(Topology):
    """One-shot magnitude pruning: the mask of a trained dense network, the weights of the initialisation."""

    def __init__(self, settings: SparseSettings) -> None:
        self.settings = settings

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Read the mask off the dense run's final weights."""
        dense = build_network(training.protocol.network, training.data.classes, training.data.shape, training.run.seed)
        dense.load_state_dict(read_tensors(training.run.needed("dense").weights))
        masks: Masks = score_masks(dense, self.settings.density, "magnitude")
        return SparseTraining(training.model, optimizer, masks)


class RobustBird(Topology):
    """Train cheaply until the magnitude mask settles, prune, and train adversarially from there under the mask."""

    def __init__(self, settings: RobustBirdSettings) -> None:
        self.settings = settings
        self.milestones = settings.milestones

    def before(self, training: Training) -> None:
        """Stage 1, in a phase of its own; ends when the masks have settled, or at ``max_epochs``."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        bird = EarlyBird(1 - settings.density, settings.threshold, settings.queue)
        optimizer = training.optimizer()
        progress = _progress(training)
        parts = {"model": training.model, "optimizer": optimizer, "bird": bird, "ledger": training.ledger, "progress": progress}
        loop = training.phase(EARLY_BIRD, settings.max_epochs * per_epoch, parts)
        cost = training.forward_flops({})
        for step in loop:
            epoch, index = divmod(step, per_epoch)
            if step == loop.start or not index:
                batches = training.data.train_batches(epoch, first=index, purpose="early-bird")
            images, labels = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = self._rate(training, step)
            training.ledger.seen(len(images), cost)
            progress.seen(*self._step(training, optimizer, images, labels, step))
            if index < per_epoch - 1:
                continue
            training.ledger.close_epoch(cost, self._attack_steps(training))
            settled = bird.update(training.model)
            accuracy, loss = progress.close_epoch()
            farthest = max(bird.distances, default=math.nan)
            values = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy}
            loop.log(**values, **({} if math.isnan(farthest) else {"mask_distance": farthest}))
            if settled:
                loop.save(loop.total)
                break

    def _attack_steps(self, training: Training) -> int:
        return {"standard": 0, "fast": 1, "pgd": training.protocol.attack.train_steps}[self.settings.stage]

    def _rate(self, training: Training, step: int) -> float:
        """Learning rate of stage 1: the protocol's schedule at this stage's milestones, or fast training's cycle."""
        protocol, settings = training.protocol, self.settings
        if settings.stage == "fast":
            position = step / (settings.max_epochs * training.data.steps_per_epoch)
            return FAST_PEAK * (position / 0.4 if position < 0.4 else (1 - position) / 0.6)
        milestones = protocol.milestones if settings.stage_milestones is None else settings.stage_milestones
        return learning_rate_at(step // training.data.steps_per_epoch, protocol.learning_rate, milestones, protocol.decay)

    def _step(
        self, training: Training, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Train on a batch, attacked as the stage says; return logits, labels and loss."""
        model, eps = training.model.train(), training.attack.eps
        with training.autocast():
            if self.settings.stage == "pgd":
                images = training.attack(model, images, labels, generator=training.random("early-bird", step))
            elif self.settings.stage == "fast":
                attack = PGD(eps, FAST_STEP * eps, 1, bn_mode="eval")
                images = attack(model, images, labels, generator=training.random("early-bird", step))
            logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return logits, labels, loss

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Prune the present weights by global magnitude."""
        return SparseTraining(training.model, optimizer, magnitude_ticket(training.model, self.settings.density))


class Flying(Topology):
    """Flying Bird, and with ``plus`` Flying Bird+; optionally ends at an average of its weights."""

    def __init__(self, settings: DynamicSettings, plus: PlusSettings | None = None) -> None:
        self.settings, self.plus = settings, plus
        self.dense_gradients = settings.growth == "gradient"
        self.watches_validation = plus is not None
        self.average = WeightAverage("current")

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Wrap the optimiser."""
        settings, plus, per_epoch, epochs = self.settings, self.plus, training.data.steps_per_epoch, training.protocol.epochs
        adaptive = None
        if plus is not None:
            adaptive = FlyingBirdPlus(plus.start_epoch, plus.window, plus.threshold, plus.prune_extra, plus.grow_extra)
        return FlyingBird(
            training.model,
            optimizer,
            density=settings.density,
            init=random_masks(training.model, settings.density, settings.scheme, generator(training.run.seed, "masks")),
            total_steps=epochs * per_epoch,
            interval=two_stage_interval(per_epoch, epochs, settings.interval, settings.late_interval),
            rate=settings.rate,
            rate_end=settings.rate_end,
            growth=settings.growth,
            adaptive=adaptive,
            generator=generator(training.run.seed, "growth"),
            steps_per_epoch=per_epoch,
        )

    def parts(self) -> Mapping[str, Any]:
        """The running average."""
        return {} if self.settings.average_from is None else {"average": self.average}

    def end_epoch(self, training: Training, epoch: int) -> None:
        """Add the epoch's weights to the average."""
        first = self.settings.average_from
        if first is not None and epoch >= first:
            self.average.update(training.model, training.stepper.masks)

    def finish(self, training: Training) -> None:
        """End at the average, restricted to the masks of the last epoch."""
        if self.average.count:
            batches = training.data.train_batches(0, purpose="average")
            self.average.apply_to(training.model, (images for images, _ in batches))


def _progress(training: Training) -> Progress:
    from atlas.tasks.adversarial_robustness.training import Progress

    return Progress(training.device)


def table_network(classes: int) -> nn.Module:
    """PreAct-ResNet-18 without values: for arithmetic on its shapes."""
    from atlas.nn.convnets import PreActResNet

    with torch.device("meta"):
        return PreActResNet(classes)
