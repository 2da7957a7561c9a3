"""What SinNeRF's encoders know: classes of CIFAR-10 from their features, and photographs from crops of them.

Of every class 200 training and 100 test images are drawn. Classes are told by the five training images at the least angle between
features, and by logistic regression on standardised features; chance is a tenth. Crops of the nine photographs are those on which
the stage ``encoder`` judges.

    python -m benchmarks.encoders ARCHIVE [NAME…]
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atlas.harness.seeds import derive_seed, generator
from atlas.methods.sinnerf import Descriptor, EfficientNetLite0, SelfDistiller, SemanticEncoder, TinyDino
from atlas.methods.sinnerf.stages import CROPS, photographs
from atlas.methods.sinnerf.tiny_dino import nearest_neighbour_accuracy

DRAWN = {"train": 200, "test": 100}
SEED, STEPS, AT_ONCE = 20, 300, 20


def read(archive: str) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Images (n, 3, 32, 32) in [0, 1] and classes (n) of both splits."""
    draw = np.random.default_rng(0)
    with tarfile.open(archive) as stored:
        by_class: dict[tuple[str, str], list[tarfile.TarInfo]] = defaultdict(list)
        for member in stored.getmembers():
            path = PurePosixPath(member.name)
            if path.suffix == ".jpg":
                by_class[path.parts[-3], path.parts[-2]].append(member)
        drawn = [
            (member, split, label)
            for split, count in DRAWN.items()
            for label, key in enumerate(sorted(key for key in by_class if key[0] == split))
            for member in (by_class[key][place] for place in draw.choice(len(by_class[key]), count, replace=False))
        ]
        drawn.sort(key=lambda each: each[0].offset)  # an archive is read from its beginning to its end
        pixels = [np.array(Image.open(io.BytesIO(stored.extractfile(member).read())).convert("RGB")) for member, *_ in drawn]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    splits, labels = (np.array([each[place] for each in drawn]) for place in (1, 2))
    return {split: (images[splits == split], labels[splits == split]) for split in DRAWN}


def probe(encoder: SemanticEncoder, data: dict[str, tuple[Tensor, np.ndarray]]) -> tuple[float, float]:
    """Test accuracy of nearest neighbours, and of a linear classifier."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    features = {}
    with torch.no_grad():
        for split, (images, _) in data.items():
            features[split] = torch.cat([encoder(part) for part in images.split(AT_ONCE)]).numpy()
    models = (
        make_pipeline(Normalizer(), KNeighborsClassifier(5)),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)),
    )
    scores = [model.fit(features["train"], data["train"][1]).score(features["test"], data["test"][1]) for model in models]
    return scores[0], scores[1]


def main() -> None:
    """Print a line per encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="a tar of train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("encoders", nargs="*", metavar="NAME", help="encoders to ask, all by default")
    options = parser.parse_args()
    data = read(options.archive)
    torch.manual_seed(derive_seed(SEED, "tiny-dino"))
    distiller = SelfDistiller(photographs())
    untrained = TinyDino(distiller.student)
    for index in range(STEPS):
        distiller.step(generator(SEED, "distil", index))
    encoders: dict[str, Callable[[], SemanticEncoder]] = {
        "descriptor": Descriptor,
        "tiny_dino, untrained": lambda: untrained,
        "tiny_dino": distiller.encoder,
        "efficientnet_lite0": EfficientNetLite0,
    }
    for name in options.encoders or encoders:
        encoder = encoders[name]()
        nearest, linear = probe(encoder, data)
        crops = nearest_neighbour_accuracy(encoder, distiller, CROPS, generator(SEED, "crops"))  # type: ignore[arg-type]
        print(f"{name}: {encoder.dim} features, neighbours {nearest:.3f}, linear {linear:.3f}, crops {crops:.3f}", flush=True)


if __name__ == "__main__":
    main()
