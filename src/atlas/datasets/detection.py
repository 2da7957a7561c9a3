"""Object detection: scenes made of scikit-learn's digits, and COCO.

Scenes become one ``scenes.safetensors``. For each of ``train`` and ``test``: ``_images`` (n, 1, 64, 64) uint8; ``_instances``
(n, 64, 64) uint8, 0 for the background and k for the k-th object; ``_boxes`` (n, 4, 4) float32, left, top, right and bottom in
pixels; ``_labels`` (n, 4) int64, −1 where there is no such object. Test scenes show handwriting that no training scene shows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.datasets.base import Dataset, DatasetLayoutError

if TYPE_CHECKING:
    import numpy as np

SCENES = "scenes.safetensors"
SIDE, MOST = 64, 4
TRAIN, TEST = 1500, 300
HELD_DIGITS = 540  # of scikit-learn's 1,797, seen in test scenes alone
SMALLEST, LARGEST = 14, 30
INK = 0.25  # of its darkest pixel, from which a pixel belongs to a digit
TRIES = 20
COCO_IMAGES = {"train": "train2017", "test": "val2017"}
COCO_ANNOTATIONS = {"train": "annotations/instances_train2017.json", "test": "annotations/instances_val2017.json"}
COCO_CATEGORIES = 90
COCO_STAND_IN = (480, 640)


def prepare_scenes(downloads: Sequence[Path], folder: Path) -> None:
    """Put digits at random sizes and positions into dim, noisy scenes; the same scenes on every machine."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    parts = {"train": order[HELD_DIGITS:], "test": order[:HELD_DIGITS]}
    arrays: dict[str, np.ndarray] = {}
    for seed, (split, count) in enumerate((("train", TRAIN), ("test", TEST)), start=1):
        chosen = parts[split]
        arrays |= _scenes(split, digits.images[chosen] / 16, digits.target[chosen], count, np.random.default_rng(seed))
    _write(folder, arrays)


def _write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / SCENES)


def _scenes(split: str, digits: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """``count`` scenes of digits (m, 8, 8) in [0, 1] with their classes (m,)."""
    import numpy as np

    images = np.zeros((count, 1, SIDE, SIDE), np.uint8)
    instances = np.zeros((count, SIDE, SIDE), np.uint8)
    boxes = np.zeros((count, MOST, 4), np.float32)
    classes = np.full((count, MOST), -1, np.int64)
    for scene in range(count):
        canvas = random.uniform(0, 0.2) + random.normal(0, 0.05, (SIDE, SIDE))
        placed = 0
        for _ in range(random.integers(1, MOST + 1)):
            which = random.integers(len(digits))
            box = _place(canvas, instances[scene], digits[which], placed + 1, random)
            if box is not None:
                boxes[scene, placed], classes[scene, placed] = box, labels[which]
                placed += 1
        images[scene, 0] = (canvas.clip(0, 1) * 255).round()
    made: dict[str, np.ndarray] = {"images": images, "instances": instances, "boxes": boxes, "labels": classes}
    return {f"{split}_{name}": array for name, array in made.items()}


def _place(
    canvas: np.ndarray, instances: np.ndarray, digit: np.ndarray, number: int, random: np.random.Generator
) -> tuple[float, float, float, float] | None:
    """Draw a digit where nothing stands yet and return the box of its ink; ``None`` where no place was found."""
    import numpy as np
    from scipy.ndimage import zoom

    side = int(random.integers(SMALLEST, LARGEST + 1))
    drawn = zoom(digit, side / digit.shape[0], order=1, grid_mode=True, mode="nearest")
    ink = drawn >= INK * drawn.max()
    for _ in range(TRIES):
        top, left = random.integers(0, SIDE - drawn.shape[0] + 1), random.integers(0, SIDE - drawn.shape[1] + 1)
        window = (slice(top, top + drawn.shape[0]), slice(left, left + drawn.shape[1]))
        if not instances[window][ink].any():
            canvas[window] = np.maximum(canvas[window], drawn * random.uniform(0.6, 1.0))
            instances[window][ink] = number
            rows, columns = np.nonzero(ink)
            return left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1
    return None


def stand_in_scenes(folder: Path) -> None:
    """Two scenes of each split, random pixels with one object."""
    import numpy as np

    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        instances = np.zeros((2, SIDE, SIDE), np.uint8)
        instances[:, 8:28, 8:24] = 1
        boxes, labels = np.zeros((2, MOST, 4), np.float32), np.full((2, MOST), -1, np.int64)
        boxes[:, 0], labels[:, 0] = (8, 8, 24, 28), 3
        pixels = random.integers(0, 256, (2, 1, SIDE, SIDE), np.uint8)
        arrays |= {f"{split}_images": pixels, f"{split}_instances": instances, f"{split}_boxes": boxes, f"{split}_labels": labels}
    _write(folder, arrays)


def check_coco(folder: Path) -> None:
    """Raise where a folder does not hold COCO 2017 as its archives unpack."""
    for split, name in COCO_ANNOTATIONS.items():
        if not (folder / name).is_file():
            raise DatasetLayoutError(f"{folder} has no file {name}; unpack annotations_trainval2017.zip there")
        if not any((folder / COCO_IMAGES[split]).glob("*.jpg")):
            raise DatasetLayoutError(f"{folder} has no images under {COCO_IMAGES[split]}; unpack {COCO_IMAGES[split]}.zip there")


def stand_in_coco(folder: Path) -> None:
    """Two random pictures of each split with one object, annotated as COCO's are."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    height, width = COCO_STAND_IN
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, COCO_CATEGORIES + 1)]
    for split, images in COCO_IMAGES.items():
        (folder / images).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        content: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": categories}
        for number in (1, 2):
            name = f"{number:012d}.jpg"
            Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / images / name)
            content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
            box = [100, 80, 200, 160]
            corners = [[100, 80, 300, 80, 300, 240, 100, 240]]
            object_ = {"id": number, "image_id": number, "category_id": number, "bbox": box, "area": 32000, "iscrowd": 0}
            content["annotations"].append({**object_, "segmentation": corners})
        (folder / COCO_ANNOTATIONS[split]).write_text(json.dumps(content))


DATASETS = [
    Dataset(
        name="digit-scenes",
        title="Scenes of scikit-learn's digits: 1,800 pictures of 64 × 64 pixels with one to four digits each",
        kind="embedded",
        licence="BSD-3-Clause (scikit-learn); digits: CC BY 4.0",
        citation="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
        prepare=prepare_scenes,
        stand_in=stand_in_scenes,
        facts={"classes": 10, "shape": (1, SIDE, SIDE), "top": 255, "train": TRAIN, "test": TEST},
    ),
    Dataset(
        name="coco",
        title="COCO 2017: 118,287 training and 5,000 validation pictures with boxes and masks of 80 kinds of object",
        kind="user-supplied",
        licence="annotations: CC BY 4.0; pictures: terms of Flickr",
        citation="T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
        check=check_coco,
        stand_in=stand_in_coco,
        facts={"classes": COCO_CATEGORIES, "shape": (3, *COCO_STAND_IN), "top": 255, "train": 118_287, "test": 5_000},
    ),
]
