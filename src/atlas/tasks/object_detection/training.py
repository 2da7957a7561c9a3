"""The detector and its training: torchvision's Faster or Mask R-CNN on a row's pyramid."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import AtlasError, UserError
from atlas.harness.files import write_tensors
from atlas.harness.resume import TrainingLoop, training
from atlas.harness.seeds import drawing, pick_device
from atlas.nn.precision import mixed_precision, weight_type
from atlas.nn.rank_units import Units
from atlas.nn.ranks import here, mean_of
from atlas.tasks.object_detection.data import Target, batches, classes_of, load_pictures, steps_per_epoch
from atlas.tasks.object_detection.protocol import Protocol

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.object_detection.backbones import Backbone

LEVELS = ("0", "1", "2", "3")
ASPECT_RATIOS = (0.5, 1.0, 2.0)
POOLED, POOLED_MASK, MASK_CHANNELS = 7, 14, 256


def build_detector(run: Run) -> nn.Module:
    """The detector of a run at its initialisation, which follows from the run's seed."""
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    protocol: Protocol = run.protocol_model()
    row: Backbone = run.build()[0]
    with drawing(run.seed, "init"):
        pyramid = row.pyramid(run)
        channels = int(pyramid.out_channels)  # type: ignore[arg-type]
        options = {
            "min_size": protocol.image_size,
            "max_size": protocol.image_size,
            "size_divisible": protocol.image_size,  # every picture is padded to the square
            "image_mean": list(protocol.mean),
            "image_std": list(protocol.std),
            "rpn_anchor_generator": AnchorGenerator(tuple((side,) for side in protocol.anchors), (ASPECT_RATIOS,) * 5),
            "rpn_post_nms_top_n_train": 2 * protocol.proposals,
            "rpn_post_nms_top_n_test": protocol.proposals,
            "box_roi_pool": MultiScaleRoIAlign(LEVELS, POOLED, 2),
            "box_score_thresh": protocol.score_threshold,
        }
        options |= {
            "box_head": TwoMLPHead(channels * POOLED**2, protocol.representation),
            "box_predictor": FastRCNNPredictor(protocol.representation, classes_of(run) + 1),
        }
        if not protocol.masks:
            return FasterRCNN(pyramid, **options).to(weight_type(protocol.precision))
        masks = MaskRCNNPredictor(MASK_CHANNELS, MASK_CHANNELS, classes_of(run) + 1)
        pool = MultiScaleRoIAlign(LEVELS, POOLED_MASK, 2)
        return MaskRCNN(pyramid, mask_roi_pool=pool, mask_predictor=masks, **options).to(weight_type(protocol.precision))


def learning_rate_at(step: int, total: int, protocol: Protocol) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = min(protocol.warmup_steps, total // 2)
    if step < warm:
        return protocol.learning_rate * (step + 1) / warm
    return protocol.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weights that decay, and vectors (biases, norms) that do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def units_of(run: Run, pictures: int) -> Units:
    """How the batches of a run that trains on so many pictures are cut into units, and which of them are this rank's.

    Raises
    ------
    UserError
        There are more ranks than units.
    """
    protocol: Protocol = run.protocol_model()
    total = min(protocol.batch_size, pictures)
    units = Units(total, min(protocol.micro_batch or total, total), here())
    ranks = units.ranks.size
    if units.count < ranks:
        cure = f"set micro_batch to {total // ranks} at most" if total >= ranks else f"take {total} ranks at most"
        raise UserError(
            f"{run.cell}: a batch of {total} pictures in units of {units.size} (micro_batch) leaves some of {ranks} ranks "
            f"without one; {cure}"
        )
    return units


class Training:
    """A row while it trains.

    Attributes
    ----------
    model : nn.Module
        The detector, on ``device``.
    units : Units
        How a batch is passed, and which part of it this rank passes.
    total : int
        Number of steps of the whole training.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.protocol: Protocol = run.protocol_model()
        self.device = pick_device(run.resources.device)
        self.pictures = load_pictures(run, "train")
        self.units = units_of(run, len(self.pictures))
        self.total = self.protocol.epochs * steps_per_epoch(len(self.pictures), self.protocol)
        self.model = build_detector(run).to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, self.protocol.weight_decay), lr=self.protocol.learning_rate
        )
        # statistics of a unit are its own, as its losses are: no rank needs to know of another's before the gradients
        self._call: Any = self.units.ranks.parallel(self.model, whole_batch=False)

    def fit(self) -> None:
        """Run the loop to its end, from wherever an earlier process stopped."""
        loop = training(self.run, self.total, {"model": self.model, "optimizer": self.optimizer})
        stream = None
        for step in loop:
            stream = stream or batches(self.run, self.pictures, step, self.units.places)
            losses = self.take_step(step, *next(stream))
            if (step + 1) % self.protocol.log_every == 0 or step + 1 == self.total:
                self._log(loop, step, losses)

    def take_step(self, step: int, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Take the optimiser's step on this rank's pictures of a batch, (channels, height, width) each, unit by unit.

        Returns the mean of every loss, scalars by name. Of several ranks each returns that of its pictures, and their mean is
        that of all.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.total, self.protocol)
        self.optimizer.zero_grad(set_to_none=True)
        own, begin = self.units.own, self.units.places.start
        seen: dict[str, Tensor] = {}
        with self.units.statistics(self.model):
            for unit in own:
                held = slice(unit.start - begin, unit.stop - begin)
                with nullcontext() if unit == own[-1] else self._kept():
                    losses = self._pass(step, unit, images[held], targets[held])
                for name, value in losses.items():
                    seen[name] = seen.get(name, 0) + value
        nn.utils.clip_grad_norm_(self.model.parameters(), self.protocol.clip_norm)
        self.optimizer.step()
        return seen

    def _kept(self) -> AbstractContextManager[Any]:
        """Add gradients up on this rank; they are sent with those of its last unit."""
        return self._call.no_sync() if self.units.ranks.size > 1 else nullcontext()

    def _pass(self, step: int, unit: range, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Pass a unit forth and back; returns its losses, as it weighs in the batch.

        Regions to learn from, and whatever else the pass draws, follow from the unit's place in the training alone.
        """
        kind = weight_type(self.protocol.precision)
        images = [image.to(self.device, kind) for image in images]
        targets = [{name: self._moved(value) for name, value in target.items()} for target in targets]
        with drawing(self.run.seed, "unit", step, unit.start, device=self.device):
            with mixed_precision(self.device, self.protocol.precision, scaled=False):
                made: dict[str, Tensor] = self._call(images, targets)
            losses = {name: value.to(kind) for name, value in made.items()}  # in float64 that of objectness is float32
            factor = self.units.factor(unit)
            loss: Any = sum(losses.values())
            (factor * loss).backward()
        return {name: factor * value.detach() for name, value in losses.items()}

    def _moved(self, value: Tensor) -> Tensor:
        """A tensor of a target on the device; boxes in the numbers that the detector computes in."""
        if value.is_floating_point():
            return value.to(self.device, weight_type(self.protocol.precision))
        return value.to(self.device)

    def _log(self, loop: TrainingLoop, step: int, losses: dict[str, Tensor]) -> None:
        values = {name: float(value) for name, value in mean_of(losses, self.units.ranks).items()}
        loss = sum(values.values())
        if not math.isfinite(loss):
            raise AtlasError(f"{self.run.cell}: the loss is not finite at step {step + 1}: {values}")
        loop.log(loss=loss, **values)


def train(run: Run) -> None:
    """Train a run's detector and write its weights.

    Raises
    ------
    AtlasError
        The loss is not finite.
    UserError
        Its batches have not a unit for each rank.
    """
    bench = Training(run)
    bench.fit()
    write_tensors(run.weights, bench.model.state_dict())
