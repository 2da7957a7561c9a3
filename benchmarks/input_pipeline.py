"""Images per second and core that ImageNet's pipeline loads: from folders and from a tar, with and without RandAugment.

Theory: of an image of 500 × 375 pixels, decoding takes about a fourth of the time, cropping and resizing by Pillow a fourth,
RandAugment (or colour jitter) another, tensors and erasing the rest. Saving and putting back the state of three generators for
each image, which a process that only loads images need not do, takes a tenth. Where a file system answers at once, a tar gains
nothing; it does where opening a file takes longer than reading it. What torch and OpenCV gain stands in docs/performance.md.

Variants take turns on the same images; what is printed is the median over turns of images per CPU second, and of its ratio to the
first variant, which keeps the generators' states and reads folders. The variant by OpenCV is left out where it is not installed.

    python -m benchmarks.input_pipeline
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from atlas.datasets.tars import Images, image_files
from atlas.tasks.image_classification import folders
from atlas.tasks.image_classification.protocol import Data, Protocol

RECIPES = {"RandAugment": Data(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, flip=True), "none": Data(flip=True)}


def make_images(folder: Path, count: int) -> None:
    """Pictures of 500 × 375 pixels that are as smooth, and as noisy, as photographs: about 80 kB of JPEG each."""
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = (np.asarray(coarse) + random.normal(0, 8, (375, 500, 3))).clip(0, 255).astype(np.uint8)
        path = folder / "train" / f"n{index % 4}" / f"{index}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=92)


def loader(images: Images, data: Data, *, keep_states: bool) -> Callable[[], float]:
    """Return what loads every image once and says how many it loaded in a CPU second."""
    transform = folders.train_transform(Protocol(data=data))
    decode = folders.require_opencv().decode if data.resampling == "opencv" else folders.picture_of
    dataset = folders._Transformed(images, np.arange(len(images)), transform, 0, decode)

    def load() -> float:
        folders.get_worker_info = lambda: None if keep_states else SimpleNamespace()  # type: ignore[attr-defined, assignment]
        began = time.process_time()
        for index in range(len(images)):
            dataset[0, index, index]
        return len(images) / (time.process_time() - began)

    return load


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        plain, packed = Path(place, "plain"), Path(place, "packed")
        make_images(plain, options.images)
        packed.mkdir()
        with tarfile.open(packed / "train.tar", "w") as tar:
            tar.add(plain / "train", arcname=".")
        tree, file = image_files(plain, "train"), image_files(packed, "train")
        print("| augmentation | variant | images / CPU s | ratio |\n|---|---|---|---|")
        for name, data in RECIPES.items():
            variants = {
                "folders, states kept": loader(tree, data, keep_states=True),
                "folders": loader(tree, data, keep_states=False),
                "tar": loader(file, data, keep_states=False),
                "folders, resampling: torch": loader(tree, data.model_copy(update={"resampling": "torch"}), keep_states=False),
            }
            if find_spec("cv2"):
                opencv = data.model_copy(update={"resampling": "opencv"})
                variants["folders, resampling: opencv"] = loader(tree, opencv, keep_states=False)
            turns = [[load() for load in variants.values()] for _ in range(options.turns + 1)][1:]
            for index, variant in enumerate(variants):
                speed = median(turn[index] for turn in turns)
                print(f"| {name} | {variant} | {speed:.0f} | {median(turn[index] / turn[0] for turn in turns):.2f} |", flush=True)


if __name__ == "__main__":
    main()
