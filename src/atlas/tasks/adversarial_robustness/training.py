"""Adversarial training, one loop for every row: attack the batch, then train on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.errors import AtlasError
from atlas.harness.files import write_tensors
from atlas.harness.history import History
from atlas.harness.resume import TrainingLoop, training
from atlas.harness.seeds import generator, pick_device
from atlas.nn.attacks import PGD, summed_cross_entropy
from atlas.nn.modes import mode_of
from atlas.nn.precision import mixed_precision, weight_type
from atlas.nn.ranks import Ranks, here
from atlas.nn.sparse_costs import EpochCost, flops, training_flops
from atlas.nn.vit import at_least_float32
from atlas.nn.work import VALIDATION, work
from atlas.tasks.adversarial_robustness.data import RobustData
from atlas.tasks.adversarial_robustness.networks import build_network
from atlas.tasks.adversarial_robustness.protocol import Protocol, learning_rate_at
from atlas.tasks.adversarial_robustness.topology import Stepper, Topology

if TYPE_CHECKING:
    from atlas.harness.run import Run

BEST, MASKS = "best.safetensors", "masks.safetensors"
TOPOLOGY, LAYERS = "topology.csv", "layers.csv"


class Ledger:
    """What training has cost and changed so far, as a part of the resume state.

    Attributes
    ----------
    epochs : list of EpochCost
        One per epoch, those of earlier phases included.
    updates : list of dict
        One per change of the topology.
    """

    def __init__(self) -> None:
        self.epochs: list[EpochCost] = []
        self.updates: list[dict[str, float]] = []
        self.examples = self.grown = 0
        self.flops = 0.0

    def seen(self, examples: int, cost: float) -> None:
        """Count a batch whose forward pass costs ``cost`` per example."""
        self.examples += examples
        self.flops += cost * examples

    def close_epoch(self, dense_flops: float, attack_steps: int | None = None) -> None:
        """Add what was counted since the last epoch's end to the list, as an epoch."""
        mean = self.flops / self.examples
        self.epochs.append(EpochCost(self.examples, mean, dense_flops, self.grown, attack_steps))
        self.examples = self.grown = 0
        self.flops = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the costs and updates of the epochs so far as plain values."""
        rows = [asdict(epoch) for epoch in self.epochs]
        return {"epochs": rows, "updates": self.updates, "now": [self.examples, self.grown, self.flops]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the costs and updates of the epochs so far from :meth:`state_dict`."""
        self.epochs = [EpochCost(**row) for row in state["epochs"]]
        self.updates = list(state["updates"])
        self.examples, self.grown, self.flops = state["now"]


class Progress:
    """The running epoch and the best one so far, as a part of the resume state.

    Attributes
    ----------
    correct, loss : Tensor
        Sums over the epoch's batches, before their updates; on the device, so that no step waits for them.
    best : dict
        Weights and masks (under ``mask:``) after the epoch of the highest validation robust accuracy.
    """

    def __init__(self, device: torch.device) -> None:
        self.correct = torch.zeros((), dtype=torch.float64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.examples = 0
        self.best_ra, self.best_epoch = -math.inf, -1
        self.best: dict[str, Tensor] = {}

    @torch.no_grad()
    def seen(self, logits: Tensor, labels: Tensor, loss: Tensor, examples: int | None = None) -> None:
        """Count a batch by its logits (batch, classes), labels (batch,) and scalar loss.

        With several ranks, ``examples`` is the size of the whole batch, of which each has seen its share.
        """
        if examples is None or here().size == 1:
            self.correct += (logits.argmax(1) == labels).sum()
            self.loss += loss.detach() * len(labels)
            self.examples += len(labels)
            return
        right = (logits.argmax(1) == labels).sum().double() * here().size
        correct, mean = here().mean(torch.stack([right, loss.detach().double()])).unbind()
        self.correct += correct
        self.loss += mean * examples
        self.examples += examples

    def close_epoch(self) -> tuple[float, float]:
        """Return the epoch's accuracy in [0, 1] and mean loss, and start the next."""
        measures = float(self.correct) / self.examples, float(self.loss) / self.examples
        self.correct.zero_()
        self.loss.zero_()
        self.examples = 0
        return measures

    def offer(self, ra: float, epoch: int, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Keep the network, and its masks of the weights' shapes, if it is better than every one before."""
        if ra > self.best_ra:
            self.best_ra, self.best_epoch = ra, epoch
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.best |= {f"mask:{name}": mask.clone() for name, mask in masks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values."""
        names = ("correct", "loss", "examples", "best_ra", "best_epoch", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the epoch's counts and the best network from :meth:`state_dict`."""
        self.correct.copy_(state["correct"])
        self.loss.copy_(state["loss"])
        self.examples, self.best_ra, self.best_epoch = state["examples"], state["best_ra"], state["best_epoch"]
        self.best = {name: value.to(self.correct.device) for name, value in state["best"].items()}


class Training:
    """A row while it trains: what topologies see.

    Attributes
    ----------
    model : nn.Module
        The network, on ``device``.
    data : RobustData
        Batches of the splits.
    ledger : Ledger
        What training has cost so far.
    stepper : Stepper
        What takes the optimiser's steps; there from the start of adversarial training.
    ranks : Ranks
        This process among those that train the run; each sees its rows of every batch.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.protocol: Protocol = run.protocol_model()
        self.ranks: Ranks = here()
        self.topology: Topology = run.build()[0]
        self.device = pick_device(run.resources.device)
        self.data = RobustData(run, self.protocol, self.device)
        self.model: nn.Module = fresh_network(run, self.data).to(self.device)
        if self.protocol.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # before the first attack, which comes before the first pass: it too must see the statistics of the whole batch
        self._call: Any = self.ranks.parallel(self.model)
        self.dense_macs = flops(self.model, self.data.shape).dense_per_layer
        self.sizes = {name: weight.numel() for name, weight in self.model.named_parameters()}
        self.ledger = Ledger()
        self.stepper: Stepper
        attack = self.protocol.attack
        # ranks may hold different numbers of images, and a mean over each would weigh them differently
        loss = functional.cross_entropy if self.ranks.size == 1 else summed_cross_entropy
        self.attack = PGD(attack.eps, attack.step, attack.train_steps, loss=loss, bn_mode=attack.bn_mode)
        self.monitor = PGD(attack.eps, attack.step, attack.monitor_steps, bn_mode="eval")

    def phase(self, name: str, total: int, parts: Mapping[str, Any]) -> TrainingLoop:
        """Return the resumable loop of a phase ahead of adversarial training."""
        return training(self.run, total, parts, phase=name)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimiser of the protocol for all parameters; weight decay acts on each of them."""
        protocol = self.protocol
        return torch.optim.SGD(
            self.model.parameters(), lr=protocol.learning_rate, momentum=protocol.momentum, weight_decay=protocol.weight_decay
        )

    def call(self, images: Tensor) -> Tensor:
        """Run the network on this rank's images (batch, channels, height, width), and return logits (batch, classes).

        A backward pass then leaves the gradients of the whole batch.
        """
        return self._call(images)  # type: ignore[no-any-return]

    def loss(self, logits: Tensor, labels: Tensor, total: int) -> Tensor:
        """Mean cross-entropy, a scalar, of logits (batch, classes) and labels (batch,) over a batch of ``total`` images.

        Of several ranks each has a part, and their mean is the whole.
        """
        if self.ranks.size == 1:
            return functional.cross_entropy(at_least_float32(logits), labels)
        return summed_cross_entropy(at_least_float32(logits), labels) * (self.ranks.size / total)

    def random(self, *purpose: str | int) -> torch.Generator:
        """Return a generator on the device for one purpose."""
        return generator(self.run.seed, *purpose, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where the protocol asks for it and the device has it."""
        return mixed_precision(self.device, self.protocol.precision, scaled=False)

    def forward_flops(self, masks: Mapping[str, Tensor]) -> float:
        """Floating-point operations of a forward pass of one image, with the weights that exist by masks of their shapes."""
        total = 0.0
        for name, macs in self.dense_macs.items():
            share = float(masks[name].count_nonzero()) / self.sizes[name] if name in masks else 1.0
            total += 2 * macs * share
        return total

    def fit(self) -> Progress:
        """Run every phase to its end, from wherever an earlier process stopped."""
        self.topology.before(self)
        optimizer = self.optimizer()
        self.stepper = self.topology.stepper(self, optimizer)
        progress = Progress(self.device)
        parts = {"model": self.model, "stepper": self.stepper, "optimizer": optimizer, "ledger": self.ledger}
        own = {f"topology.{name}": part for name, part in self.topology.parts().items()}
        per_epoch = self.data.steps_per_epoch
        loop = training(self.run, self.protocol.epochs * per_epoch, {**parts, "progress": progress, **own})
        cost = self.forward_flops(self.stepper.masks)

        def begin(step: int) -> None:
            self._set_rate(optimizer, step // per_epoch)

        for step, (images, labels) in loop.over_epochs(per_epoch, self.data.train_batches, begin):
            total = self.data.batch_size(step)
            self.ledger.seen(total, cost)
            logits, loss = self._backward(optimizer, images, labels, step)
            progress.seen(logits, labels, loss, total)
            update = self.stepper.step()
            if update is not None:
                self._record(update, total)
                cost = self.forward_flops(self.stepper.masks)
            if (step + 1) % per_epoch == 0:
                self._end_epoch(loop, progress, step // per_epoch)
        self.topology.finish(self)
        return progress

    def _set_rate(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)

    def learning_rate(self, epoch: int) -> float:
        """Rate of an epoch of adversarial training."""
        own = self.topology.milestones
        milestones = self.protocol.milestones if own is None else own
        return learning_rate_at(epoch, self.protocol.learning_rate, milestones, self.protocol.decay)

    def _backward(self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Attack a batch and take the gradients of its loss."""
        total = self.data.batch_size(step)
        self.model.train()
        with self.autocast():
            share = self.ranks.rows(total)
            attacked = self.attack(self.model, images, labels, generator=self.random("attack", step), share=share)
            logits = self.call(attacked)
            loss = self.loss(logits, labels, total)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return logits, loss

    def _record(self, update: Any, examples: int) -> None:
        if self.topology.dense_gradients:
            self.ledger.grown += examples
        self.ledger.updates.append(
            {
                "step": update.step,
                "rate": update.rate,
                "density": update.density,
                "pruned": sum(update.pruned.values()),
                "grown": sum(update.grown.values()),
                "prune_more": float(update.prune_more),
                "grow_more": float(update.grow_more),
            }
        )

    def _end_epoch(self, loop: TrainingLoop, progress: Progress, epoch: int) -> None:
        train_ra, loss = progress.close_epoch()
        if not math.isfinite(loss):
            raise AtlasError(f"{self.run.cell}: the loss is not finite in epoch {epoch + 1}: {loss}")
        val = self.measure("validation", epoch, self.protocol.monitor_images)
        self.stepper.end_epoch(train_ra=100 * train_ra, val_ra=100 * val["ra"], val_loss=val["loss"])
        masks = self.stepper.masks
        self.ledger.close_epoch(self.forward_flops({}))
        progress.offer(val["ra"], epoch, self.model, masks)
        self.topology.end_epoch(self, epoch)
        values = {"epoch": epoch + 1, "loss": loss, "train_ra": train_ra, "val_ra": val["ra"], "val_sa": val["sa"]}
        values |= {"val_loss": val["loss"], "density": density(masks), "learning_rate": self.learning_rate(epoch)}
        if epoch in self.protocol.tested_epochs():
            test = self.measure("test", epoch, self.protocol.test_images)
            values |= {"test_ra": test["ra"], "test_sa": test["sa"]}
        loop.log(**values)

    def measure(self, split: str, epoch: int, limit: int | None = None) -> dict[str, float]:
        """Measure the network as it is now on a split; see :func:`measure`."""
        with work(VALIDATION), self.autocast():
            return measure(self.model, self.data.batches(split, limit), self.monitor, self.random("monitor", split, epoch))

    def keep(self, progress: Progress) -> None:
        """Write the networks and masks of the best and the last epoch, and what figures need."""
        best = {name: value for name, value in progress.best.items() if not name.startswith("mask:")}
        write_tensors(self.run.weights, self.model.state_dict())
        write_tensors(self.run.checkpoint / BEST, best)
        masks = {f"final:{name}": mask for name, mask in self.stepper.masks.items()}
        masks |= {name.replace("mask:", "best:", 1): mask for name, mask in progress.best.items() if name.startswith("mask:")}
        if masks:
            write_tensors(self.run.checkpoint / MASKS, masks)
        updates = History(self.run.results / TOPOLOGY)
        updates.rows = self.ledger.updates
        updates.write()


def fresh_network(run: Run, data: RobustData) -> nn.Module:
    """Return the row's network at its initialisation."""
    topology: Topology = run.build()[0]
    protocol = run.protocol_model()
    network = build_network(topology.network(protocol.network), data.classes, data.shape, run.seed)
    return network.to(weight_type(protocol.precision))


def density(masks: Mapping[str, Tensor]) -> float:
    """Share of the maskable weights that exist by masks of their shapes (…), in [0, 1]; 1 without masks."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.count_nonzero()) for mask in masks.values()) / total if total else 1.0


def measure(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], attack: PGD, random: torch.Generator) -> dict[str, float]:
    """Return clean (``sa``) and robust (``ra``) accuracy in [0, 1], and the mean cross-entropy under attack (``loss``).

    Batches are images (batch, channels, height, width) in [0, 1] and classes (batch,).

    The network is in evaluation mode meanwhile. Several ranks each measure their rows of every batch, and all get the whole.
    """
    clean = robust = loss = torch.zeros((), dtype=torch.float64)
    count = 0
    ranks = here()
    with mode_of(model, "eval"):
        for images, labels in batches:
            count += len(images)
            share = ranks.rows(len(images))
            if share is not None:
                own = share.places.to(images.device)
                images, labels = images[own], labels[own]
            attacked = attack(model, images, labels, generator=random, share=share)
            with torch.no_grad():
                logits = at_least_float32(model(attacked))
                clean = clean + (model(images).argmax(1) == labels).sum().cpu()
                robust = robust + (logits.argmax(1) == labels).sum().cpu()
                loss = loss + functional.cross_entropy(logits, labels, reduction="sum").double().cpu()
    clean, robust, loss = ranks.total(torch.stack([clean.double(), robust.double(), loss])).unbind()
    return {"sa": float(clean) / count, "ra": float(robust) / count, "loss": float(loss) / count}


def train(run: Run) -> dict[str, float]:
    """Train a row and write its networks and curves.

    Returns
    -------
    dict
        Costs in floating-point operations, the best epoch (from 1) and its validation accuracy, and the last.
    """
    bench = Training(run)
    progress = bench.fit()
    bench.keep(progress)
    attack = bench.protocol.attack
    monitored = min(bench.protocol.monitor_images or math.inf, bench.data.size("validation"))
    val_cost = attack.monitor_passes * monitored
    spent = sum(val_cost * epoch.flops for epoch in bench.ledger.epochs if epoch.attack_steps is None)
    return {
        "train_flops": training_flops(bench.ledger.epochs, attack.train_steps),
        "train_flops_paper": training_flops(bench.ledger.epochs, attack.train_steps, "paper"),
        "monitor_flops": spent if bench.topology.watches_validation else 0.0,
        "best_epoch": progress.best_epoch + 1,
        "validation_ra": progress.best_ra,
        "stage_epochs": sum(epoch.attack_steps is not None for epoch in bench.ledger.epochs),
    }
