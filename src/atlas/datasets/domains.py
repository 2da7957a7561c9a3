"""Several domains with the same classes, for federations whose clients see different ones: Digits-5 and DomainNet.

:func:`read_domains` gives both the same form: per domain, images (n, 3, height, width) uint8 and labels (n,) int64 of a training
and a test split.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from atlas.datasets.acquisition import opened_zip
from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, Source
from atlas.datasets.damage import told_as

if TYPE_CHECKING:
    import numpy as np

DOMAINS = "domains.safetensors"
DIGIT_DOMAINS = {"mnist": "MNIST", "svhn": "SVHN", "usps": "USPS", "synthdigits": "SynthDigits", "mnist-m": "MNIST_M"}
DIGIT_PARTS = 10
DIGIT_SIZE = 28
DOMAINNET_DOMAINS = ("real", "clipart", "infograph", "painting", "quickdraw", "sketch")
DOMAINNET_CLASSES = (
    "bird",
    "feather",
    "headphones",
    "ice_cream",
    "teapot",
    "tiger",
    "whale",
    "windmill",
    "wine_glass",
    "zebra",
)
DOMAINNET_SIZE = 256
SPLITS = ("train", "test")


def read_domains(name: str, folder: Path, parts: int = DIGIT_PARTS) -> dict[str, dict[str, np.ndarray]]:
    """Read every domain of a dataset of this module.

    Parameters
    ----------
    name : str
        ``digits5`` or ``domainnet``.
    folder : Path
        Where it was acquired.
    parts : int
        How many of the ten parts of each training split of Digits-5 are used.

    Returns
    -------
    dict
        Domain to ``train_images``, ``train_labels``, ``test_images``, ``test_labels``, in the dataset's order of domains.
    """
    if name == "digits5":
        return {domain: _read_digit_domain(folder / inner, parts) for domain, inner in DIGIT_DOMAINS.items()}
    if name != "domainnet":
        raise DatasetError(f"{name} is not a dataset of several domains; there are digits5 and domainnet")
    from safetensors.numpy import load_file

    tensors = load_file(folder / DOMAINS)
    keys = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    return {domain: {key: tensors[f"{domain}.{key}"] for key in keys} for domain in DOMAINNET_DOMAINS}


def _read_digit_domain(folder: Path, parts: int) -> dict[str, np.ndarray]:
    import numpy as np

    read = [_read_digit_file(folder / "partitions" / f"train_part{part}.pkl") for part in range(parts)]
    test = _read_digit_file(folder / "test.pkl")
    return {
        "train_images": np.concatenate([images for images, _ in read]),
        "train_labels": np.concatenate([labels for _, labels in read]),
        "test_images": test[0],
        "test_labels": test[1],
    }


def _read_digit_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One pickle of (images, labels), read without running code; images become (n, 3, 28, 28) uint8."""
    import numpy as np

    images, labels = _arrays(path)
    with told_as(f"digits5: {path} holds other things than images and labels", DatasetLayoutError):
        images, labels = np.asarray(images, dtype=np.uint8), np.asarray(labels, dtype=np.int64).ravel()
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) != len(labels):
        raise DatasetLayoutError(f"digits5: {path} holds images of the shape {images.shape} and {len(labels)} labels")
    return np.stack([resized(image, DIGIT_SIZE) for image in images]), labels


def _arrays(path: Path) -> tuple[Any, Any]:
    from atlas.datasets.images import _ArraysOnly

    with told_as(f"digits5: {path} is not a pickle of (images, labels)", DatasetLayoutError):
        images, labels = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    return images, labels


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """(height, width, 1 or 3) uint8 to (3, size, size), bilinear; grey becomes three equal channels."""
    import numpy as np
    from PIL import Image

    shown = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    if shown.size != (size, size):
        shown = shown.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(shown).transpose(2, 0, 1)


def check_digits5(folder: Path) -> None:
    """Digits-5 as FedBN's authors share it: ``<DOMAIN>/partitions/train_part0.pkl`` … ``9`` and ``<DOMAIN>/test.pkl``."""
    where = f"unpack the digits archive of FedBN (github.com/med-air/FedBN) as {folder}/{{{','.join(DIGIT_DOMAINS.values())}}}"
    if not folder.is_dir():
        raise DatasetLayoutError(f"digits5: {folder} does not exist; {where}")
    for inner in DIGIT_DOMAINS.values():
        wanted = [folder / inner / "partitions" / f"train_part{part}.pkl" for part in range(DIGIT_PARTS)]
        for path in (*wanted, folder / inner / "test.pkl"):
            if not path.is_file():
                raise DatasetLayoutError(f"digits5: {path} does not exist; {where}")
            if path.stat().st_size == 0:
                raise DatasetLayoutError(f"digits5: {path} is empty; is the copy complete?")


def stand_in_digits5(folder: Path) -> None:
    """Random images in the layout of the real ones."""
    import pickle

    import numpy as np

    random = np.random.default_rng(0)
    for inner in DIGIT_DOMAINS.values():
        (folder / inner / "partitions").mkdir(parents=True)
        names = [f"partitions/train_part{part}.pkl" for part in range(DIGIT_PARTS)]
        for name, count in [*((name, 6) for name in names), ("test.pkl", 8)]:
            images = random.integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)
            labels = random.permutation(np.arange(count) % 10).astype(np.int64)
            (folder / inner / name).write_bytes(pickle.dumps((images, labels)))


def prepare_domainnet(downloads: Sequence[Path], folder: Path) -> None:
    """The ten classes of FedBN in all six domains, by DomainNet's own training and test lists, resized to 256 × 256 pixels."""
    import numpy as np
    from safetensors.numpy import save_file

    by_name = {path.name: path for path in downloads}
    tensors = {}
    for domain in DOMAINNET_DOMAINS:
        with opened_zip(by_name[f"{domain}.zip"]) as archive:
            for split in SPLITS:
                wanted = listed(by_name[f"{domain}_{split}.txt"])
                pixels = [_pixels(archive, path) for path, _ in wanted]
                tensors[f"{domain}.{split}_images"] = np.ascontiguousarray(np.stack(pixels))
                tensors[f"{domain}.{split}_labels"] = np.asarray([label for _, label in wanted], dtype=np.int64)
    save_file(tensors, folder / DOMAINS)


def listed(path: Path) -> list[tuple[str, int]]:
    """Images of the ten classes in one of DomainNet's lists: (path in the archive, index among the ten), in its order."""
    images = []
    with told_as(f"{path.name} is no list of images"):
        lines = path.read_text().splitlines()
    for line in lines:
        name = line.rpartition(" ")[0] or line
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-2] in DOMAINNET_CLASSES:
            images.append((name, DOMAINNET_CLASSES.index(parts[-2])))
    if not images:
        raise DatasetError(f"{path.name} lists no image of {', '.join(DOMAINNET_CLASSES)}")
    return images


def _pixels(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    import numpy as np
    from PIL import Image

    with told_as(f"{Path(archive.filename or '').name}: {name} cannot be read"), archive.open(name) as stream:
        return resized(np.asarray(Image.open(stream).convert("RGB")), DOMAINNET_SIZE)


def stand_in_domainnet(folder: Path) -> None:
    """Random images in the form of the prepared ones."""
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for domain in DOMAINNET_DOMAINS:
        for split, count in (("train", 8), ("test", 4)):
            shape = (count, 3, DOMAINNET_SIZE, DOMAINNET_SIZE)
            tensors[f"{domain}.{split}_images"] = random.integers(0, 256, shape, dtype=np.uint8)
            tensors[f"{domain}.{split}_labels"] = random.permutation(np.arange(count) % 10).astype(np.int64)
    save_file(tensors, folder / DOMAINS)


ORIGIN = "http://csr.bu.edu/ftp/visda/2019/multi-source"
ARCHIVES = {
    "real": (f"{ORIGIN}/real.zip", "md5:dcc47055e8935767784b7162e7c7cca6"),
    "clipart": (f"{ORIGIN}/groundtruth/clipart.zip", "md5:cd0d8f2d77a4e181449b78ed62bccf1e"),
    "infograph": (f"{ORIGIN}/infograph.zip", "md5:720380b86f9e6ab4805bb38b6bd135f8"),
    "painting": (f"{ORIGIN}/groundtruth/painting.zip", "md5:1ae32cdb4f98fe7ab5eb0a351768abfd"),
    "quickdraw": (f"{ORIGIN}/quickdraw.zip", "md5:bdc1b6f09f277da1a263389efe0c7a66"),
    "sketch": (f"{ORIGIN}/sketch.zip", "md5:658d8009644040ff7ce30bb2e820850f"),
}
LISTS = [f"{domain}_{split}.txt" for domain in DOMAINNET_DOMAINS for split in SPLITS]

DATASETS = [
    Dataset(
        name="digits5",
        title="Digits-5: MNIST, SVHN, USPS, SynthDigits and MNIST-M in FedBN's partitions, supplied by the user",
        kind="user-supplied",
        licence="that of each of the five",
        citation="X. Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021",
        check=check_digits5,
        stand_in=stand_in_digits5,
        facts={"classes": 10, "shape": (3, 28, 28), "top": 255, "train": 5 * 7438, "domains": tuple(DIGIT_DOMAINS)},
    ),
    Dataset(
        name="domainnet",
        title="DomainNet, ten classes in six domains, 256 × 256 pixels (17 GB to download)",
        kind="download",
        licence="fair use for research, by its authors' notice",
        citation="X. Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019",
        prepare=prepare_domainnet,
        stand_in=stand_in_domainnet,
        sources=(
            *(Source(url, f"{domain}.zip", checksum) for domain, (url, checksum) in ARCHIVES.items()),
            *(Source(f"{ORIGIN}/domainnet/txt/{name}", name) for name in LISTS),
        ),
        facts={"classes": 10, "shape": (3, 256, 256), "top": 255, "domains": DOMAINNET_DOMAINS},
    ),
]
