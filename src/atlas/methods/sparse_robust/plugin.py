"""Robust Bird, Flying Bird and Flying Bird+ as topologies of adversarial robustness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atlas.harness.registry import Amounts
from atlas.harness.run import Run
from atlas.harness.seeds import generator
from atlas.methods.sparse_robust.early_bird import EarlyBird
from atlas.methods.sparse_robust.flying_bird import FlyingBird, FlyingBirdPlus, two_stage_interval
from atlas.methods.sparse_robust.masks import random_masks
from atlas.methods.sparse_robust.regularisers import WeightAverage
from atlas.methods.sparse_robust.scores import magnitude_ticket
from atlas.methods.sparse_robust.settings import AdaptiveSettings, DynamicSettings, RobustBirdSettings
from atlas.methods.sparse_robust.static import SparseTraining
from atlas.nn.attacks import PGD
from atlas.nn.work import TRAIN
from atlas.tasks.adversarial_robustness.entry import training_amounts
from atlas.tasks.adversarial_robustness.protocol import learning_rate_at
from atlas.tasks.adversarial_robustness.topology import Stepper, Topology
from atlas.tasks.adversarial_robustness.training import Progress, Training

FAST_STEP = 1.25
"""Step of the one-step attack of fast adversarial training, relative to the radius (E. Wong et al., ICLR 2020)."""
FAST_PEAK = 0.2
"""Highest learning rate of its cycle, reached after two fifths of the epochs."""
EARLY_BIRD = "early-bird"
"""Name of the loop in which Robust Bird looks for its mask."""


def bird_amounts(run: Run) -> Amounts:
    """The first stage counts at its longest, ``max_epochs``: nobody knows beforehand when its masks will have settled."""
    amounts = training_amounts(run)
    longest = run.settings_model("robust-bird").max_epochs / run.protocol_model().epochs
    return {**amounts, EARLY_BIRD: amounts[TRAIN]._replace(steps=longest * amounts[TRAIN].steps)}


class RobustBird(Topology):
    """Train cheaply until the magnitude mask settles, prune, and train adversarially from there under the mask."""

    def __init__(self, run: Run, settings: RobustBirdSettings) -> None:
        super().__init__(run, settings)
        self.milestones = settings.milestones

    def before(self, training: Training) -> None:
        """Stage 1, in a phase of its own; ends when the masks have settled, or at ``max_epochs``."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        bird = EarlyBird(1 - settings.density, settings.threshold, settings.queue)
        optimizer = training.optimizer()
        progress = Progress(training.device)
        parts = {"model": training.model, "optimizer": optimizer, "bird": bird, "ledger": training.ledger, "progress": progress}
        loop = training.phase(EARLY_BIRD, settings.max_epochs * per_epoch, parts)
        cost = training.forward_flops({})
        batches = partial(training.data.train_batches, purpose="early-bird")
        for step, (images, labels) in loop.over_epochs(per_epoch, batches):
            epoch, index = divmod(step, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = self._rate(training, step)
            total = training.data.batch_size(step)
            training.ledger.seen(total, cost)
            progress.seen(*self._step(training, optimizer, images, labels, step), total)
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
        """Steps of the attack on every batch of stage 1."""
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
        total = training.data.batch_size(step)
        random, share = training.random("early-bird", step), training.ranks.rows(total)
        with training.autocast():
            if self.settings.stage == "pgd":
                images = training.attack(model, images, labels, generator=random, share=share)
            elif self.settings.stage == "fast":
                attack = PGD(eps, FAST_STEP * eps, 1, bn_mode="eval")
                images = attack(model, images, labels, generator=random, share=share)
            logits = training.call(images)
            loss = training.loss(logits, labels, total)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return logits, labels, loss

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Prune the present weights by global magnitude."""
        return SparseTraining(training.model, optimizer, magnitude_ticket(training.model, self.settings.density))


class Flying(Topology):
    """Flying Bird, and with ``adaptive`` Flying Bird+; optionally ends at an average of its weights."""

    def __init__(self, run: Run, settings: DynamicSettings, *, adaptive: bool = False) -> None:
        super().__init__(run, settings)
        self.dense_gradients, self.watches_validation = settings.growth == "gradient", adaptive
        self.average = WeightAverage("current")

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Wrap the optimiser, starting from masks that are drawn by the run's seed."""
        settings, per_epoch, epochs = self.settings, training.data.steps_per_epoch, training.protocol.epochs
        adaptive = None
        if self.watches_validation:
            adaptive = FlyingBirdPlus(**{name: getattr(settings, name) for name in AdaptiveSettings.model_fields})
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
        """The running average of the weights, where there is one."""
        return {} if self.settings.average_from is None else {"average": self.average}

    def end_epoch(self, training: Training, epoch: int) -> None:
        """Add the epoch's weights to the average, from the epoch on that the settings say."""
        first = self.settings.average_from
        if first is not None and epoch >= first:
            self.average.update(training.model, training.stepper.masks)

    def finish(self, training: Training) -> None:
        """End at the average, restricted to the masks of the last epoch."""
        if self.average.count:
            batches = training.data.train_batches(0, purpose="average")
            self.average.apply_to(training.model, (images for images, _ in batches))
