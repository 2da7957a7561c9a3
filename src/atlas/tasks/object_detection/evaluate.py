"""What a trained detector finds on the test pictures, measured by pycocotools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.harness.files import read_tensors
from atlas.harness.seeds import pick_device
from atlas.nn.counts import forward_flops, parameter_count
from atlas.nn.precision import weight_type
from atlas.nn.ranks import here
from atlas.tasks.object_detection.coco import AP, AP50, AP75, average_precision, encode
from atlas.tasks.object_detection.data import Pictures, load_pictures
from atlas.tasks.object_detection.training import build_detector

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.object_detection.protocol import Protocol

MASK_THRESHOLD = 0.5


def evaluate(run: Run) -> dict[str, float]:
    """Average precision of boxes and, where there is a branch for them, of masks; and what the network costs.

    Several ranks share the pictures out, and the first one measures what all have found; the others return nothing.
    """
    protocol: Protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    model = build_detector(run)
    model.load_state_dict(read_tensors(run.weights))
    pictures = load_pictures(run, "test")
    found = detect(model.to(device).eval(), pictures, device)
    if not here().first:
        return {}
    boxes = average_precision(pictures.truth, found, "bbox", pictures.numbers)
    masks = average_precision(pictures.truth, found, "segm", pictures.numbers) if protocol.masks else {}
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    dtype = weight_type(protocol.precision)
    square = torch.zeros(1, protocol.in_chans, protocol.image_size, protocol.image_size, device=device, dtype=dtype)
    return {
        "box_ap": boxes[AP],
        "box_ap50": boxes[AP50],
        "box_ap75": boxes[AP75],
        "mask_ap": masks.get(AP, float("nan")),
        "mask_ap50": masks.get(AP50, float("nan")),
        "parameters": float(parameter_count(model)),
        "pyramid_parameters": float(parameter_count(backbone)),
        "pyramid_flops": forward_flops(backbone, square),
    }


@torch.inference_mode()
def detect(model: nn.Module, pictures: Pictures, device: torch.device) -> list[dict[str, Any]]:
    """Detections of a detector in evaluation mode, in pycocotools' form: boxes, and masks where there are.

    Several ranks each look at their part of the pictures; the first one gets what all have found, in the order of one process.
    """
    dtype = next(model.parameters()).dtype
    found: list[dict[str, Any]] = []
    for place in range(len(pictures))[here().slice(len(pictures))]:
        image, _ = pictures[place]
        found += _told(pictures.numbers[place], model([image.to(device, dtype)])[0])
    return here().gathered(found)


def _told(number: int, made: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The detections of one picture."""
    made = {name: value.cpu() for name, value in made.items()}
    boxes = made["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    told: list[dict[str, Any]] = [
        {"image_id": number, "category_id": label, "score": score, "bbox": box}
        for box, label, score in zip(boxes.tolist(), made["labels"].tolist(), made["scores"].tolist(), strict=True)
    ]
    for one, mask in zip(told, made.get("masks", []), strict=False):
        one["segmentation"] = encode((mask[0] > MASK_THRESHOLD).numpy())
    return told
