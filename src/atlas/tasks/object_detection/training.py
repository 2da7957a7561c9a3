"""The detector and its training: torchvision's Faster or Mask R-CNN on a row's pyramid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from atlas.errors import AtlasError
from atlas.harness.files import write_tensors
from atlas.harness.resume import training
from atlas.harness.seeds import derive_seed, pick_device
from atlas.nn.precision import mixed_precision
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(run.seed, "init"))
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
            return FasterRCNN(pyramid, **options)
        masks = MaskRCNNPredictor(MASK_CHANNELS, MASK_CHANNELS, classes_of(run) + 1)
        return MaskRCNN(pyramid, mask_roi_pool=MultiScaleRoIAlign(LEVELS, POOLED_MASK, 2), mask_predictor=masks, **options)


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


def train(run: Run) -> None:
    """Train a run's detector and write its weights.

    Raises
    ------
    AtlasError
        The loss is not finite.
    """
    protocol: Protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    pictures = load_pictures(run, "train")
    model = build_detector(run).to(device).train()
    total = protocol.epochs * steps_per_epoch(len(pictures), protocol)
    optimizer = torch.optim.AdamW(parameter_groups(model, protocol.weight_decay), lr=protocol.learning_rate)
    loop = training(run, total, {"model": model, "optimizer": optimizer})
    stream = None
    for step in loop:
        stream = stream or batches(run, pictures, step)
        images, targets = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total, protocol)
        losses = take_step(model, optimizer, images, targets, protocol, device)
        if (step + 1) % protocol.log_every == 0 or step + 1 == total:
            values = {name: float(value) for name, value in losses.items()}
            loss = sum(values.values())
            if not math.isfinite(loss):
                raise AtlasError(f"{run.cell}: the loss is not finite at step {step + 1}: {values}")
            loop.log(loss=loss, **values)
    write_tensors(run.weights, model.state_dict())


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[Target],
    protocol: Protocol,
    device: torch.device,
) -> dict[str, Tensor]:
    """One update on a batch, in parts of ``micro_batch`` pictures; returns the mean of every loss, scalars by name.

    Pictures are (channels, height, width) each.
    """
    optimizer.zero_grad(set_to_none=True)
    size, total = protocol.micro_batch or len(images), len(images)
    seen: dict[str, Tensor] = {}
    for first in range(0, total, size):
        part = images[first : first + size]
        own = [{name: value.to(device) for name, value in target.items()} for target in targets[first : first + size]]
        with mixed_precision(device, protocol.precision, scaled=False):
            losses = model([image.to(device) for image in part], own)
        share = len(part) / total
        (share * sum(losses.values())).backward()
        for name, value in losses.items():
            seen[name] = seen.get(name, torch.zeros((), device=device)) + share * value.detach()
    nn.utils.clip_grad_norm_(model.parameters(), protocol.clip_norm)
    optimizer.step()
    return seen
