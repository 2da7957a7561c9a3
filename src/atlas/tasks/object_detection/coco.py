"""What pycocotools does for the task: it reads COCO's annotations, encodes masks, and measures average precision."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from atlas.errors import UserError

AP, AP50, AP75 = 0, 1, 2
"""Places in the summary of an evaluation: mean over IoU of 0.5 to 0.95, at 0.5, at 0.75; all sizes, at most 100 a picture."""


def pycocotools(module: str) -> ModuleType:
    """Import a module of pycocotools, or say how to get it."""
    import importlib

    try:
        return importlib.import_module(f"pycocotools.{module}")
    except ModuleNotFoundError as error:
        raise UserError("object detection needs pycocotools; install it with: pip install 'atlas[detection]'") from error


def index(content: dict[str, Any]) -> Any:
    """Return annotations in COCO's format as pycocotools keeps them.

    Where one has the id 0 all are numbered one higher: pycocotools 2.0.11 takes a match with annotation 0 for none, so that the
    object would count as never found.
    """
    annotations = content.get("annotations", [])
    if any(one["id"] == 0 for one in annotations):
        content = {**content, "annotations": [{**one, "id": one["id"] + 1} for one in annotations]}
    found = pycocotools("coco").COCO()
    found.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def read(path: str) -> Any:
    """Read a file of annotations in the format of COCO, silently."""
    return index(json.loads(Path(path).read_text()))


def encode(mask: Any) -> dict[str, Any]:
    """Return a mask, (height, width) of 0 and 1, as run lengths."""
    import numpy as np

    encoded: dict[str, Any] = pycocotools("mask").encode(np.asfortranarray(mask, dtype=np.uint8))
    return encoded


def average_precision(truth: Any, found: Sequence[dict[str, Any]], kind: str, images: Sequence[int]) -> dict[int, float]:
    """Average precision of detections, by pycocotools alone.

    Parameters
    ----------
    truth : pycocotools.coco.COCO
        Annotations of the pictures.
    found : sequence of dict
        Detections: ``image_id``, ``category_id``, ``score``, and ``bbox`` (left, top, width, height) or ``segmentation``.
    kind : {"bbox", "segm"}
        What is compared.
    images : sequence of int
        Pictures that were looked at.

    Returns
    -------
    dict
        Place in the summary (``AP``, ``AP50``, ``AP75``) to value in [0, 1]; 0 where nothing was found.
    """
    if not found:
        return {AP: 0.0, AP50: 0.0, AP75: 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = pycocotools("cocoeval").COCOeval(truth, truth.loadRes(list(found)), kind)
        evaluation.params.imgIds = list(images)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {place: max(0.0, float(evaluation.stats[place])) for place in (AP, AP50, AP75)}
