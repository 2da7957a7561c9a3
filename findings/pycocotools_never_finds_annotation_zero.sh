#!/usr/bin/env bash
# pycocotools 2.0.11 (from PyPI): the object whose annotation has the id 0 counts as never found.
#
# Expected: ids are names. A detector that returns exactly the boxes of the annotations has an average precision of 1, whether these are
#   numbered from 0 or from 1, as images and categories may be.
# Seen: matches are kept as the id of the matched annotation, with 0 for "none" (COCOeval.evaluateImg, dtMatches). So a detection of
#   annotation 0 is a false positive and the object a miss: of two objects that are both found, average precision is 0.25 and recall
#   0.5. Nothing is said, and among many objects one is too few to be noticed, while a class of few loses much. Images and categories
#   numbered 0 do no harm. Number annotations from 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python pycocotools==2.0.11 numpy==2.3.5
cat > seen.py << 'PYTHON'
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOXES = [[10, 10, 20, 20], [50, 50, 30, 30]]


def perfect(annotation=1, image=1, category=1):
    """Average precision and recall of a detector that returns the boxes of the annotations, whose ids begin where told."""
    truth = COCO()
    shared = {"image_id": image, "category_id": category}
    truth.dataset = {
        "info": {},
        "images": [{"id": image, "height": 100, "width": 100}],
        "categories": [{"id": category, "name": "thing"}],
        "annotations": [
            {"id": annotation + k, **shared, "bbox": box, "area": box[2] * box[3], "iscrowd": 0} for k, box in enumerate(BOXES)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([{**shared, "bbox": box, "score": 0.9 - 0.1 * k} for k, box in enumerate(BOXES)])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 3), round(float(evaluation.stats[8]), 3)


seen = {
    "all numbered from 1": perfect(),
    "images and categories from 0": perfect(image=0, category=0),
    "annotations from 0": perfect(annotation=0),
}
for name, (precision, recall) in seen.items():
    print(f"{name}: average precision {precision}, recall {recall}")
assert seen["all numbered from 1"] == seen["images and categories from 0"] == (1.0, 1.0)
assert seen["annotations from 0"][0] < 0.3
assert seen["annotations from 0"][1] == 0.5
PYTHON
env/bin/python seen.py
