"""A person's own data in a study: ``data: {folder: …}`` for images, ``data: {csv: …}`` for streams of measurements.

What is named is looked at when the study is read, so that a mistake costs seconds; ``atlas acquire`` then copies it into
``data/<benchmark>/`` as the loaders read it, and what runs depend on is that copy. The copy's manifest says what it was made of:
it is made again where the study declares the data otherwise, or where they have other contents.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.datasets.activity import write_recordings
from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, all_datasets
from atlas.datasets.images import write_images
from atlas.datasets.looks import is_stray, look_at_origin
from atlas.errors import UserError, did_you_mean
from atlas.settings import Natural, Settings, validate_settings

if TYPE_CHECKING:
    import numpy as np

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
TESTS = ("test", "val")
LARGEST = 4 * 2**30
"""Bytes of all images of a folder in memory."""
LICENCE, CITATION = "your own", "your own data"
SPLITS = (0.6, 0.8)
"""Shares of the recordings after which training, and validation, end."""


class FolderData(Settings):
    """Images: ``folder/<class>/*``, or ``folder/train/<class>/*`` beside ``folder/test/<class>/*`` (or ``val``).

    ``size`` makes them square: the shorter side is scaled to it, and the middle is cut out; without it all must have one size.
    """

    folder: str
    size: Natural | None = None


class CsvData(Settings):
    """Measurements over time, a row per step: every column but two is a feature.

    ``label`` names the column of classes (empty where a step has none), ``recording`` the one that tells recordings apart; whole
    recordings go to training, validation and testing, in the order in which they stand, 60, 20 and 20 per cent of them.
    """

    csv: str
    label: str = "label"
    recording: str = "recording"


KINDS: dict[str, type[Settings]] = {"folder": FolderData, "csv": CsvData}


def declare(name: str, asked: Mapping[str, Any], root: Path, where: str) -> Dataset:
    """Look at a person's own data and make it a data set of a benchmark's name.

    Parameters
    ----------
    asked : mapping
        What the study says: the fields of :class:`FolderData` or :class:`CsvData`.
    root : Path
        Folder that relative paths start from: the checkout.
    where : str
        Place in the study, which messages begin with.

    Raises
    ------
    UserError
        The data are not there or not as expected, or the name is that of another data set.
    """
    kind = next((candidate for candidate in KINDS if candidate in asked), None)
    if kind is None:
        hint = did_you_mean(str(next(iter(asked), "")), KINDS)
        raise UserError(f"{where}: name a data set, or own data as {{folder: …}} or {{csv: …}}; {hint}")
    known = all_datasets().get(name)
    if known is not None and known.licence != LICENCE:
        raise UserError(f"{where}: {name} is a data set of Atlas: give the benchmark on your own data another name")
    settings: Any = KINDS[kind](**validate_settings(KINDS[kind], asked, where, "own data"))
    path = root / Path(getattr(settings, kind)).expanduser()
    look = _look_at_folder if kind == "folder" else _look_at_csv
    dataset = look(name, settings, path, where)
    all_datasets()[name] = dataset
    return dataset


def _made_of(
    root: Path, *, name: str, declared: Mapping[str, Any], source: str, folder: Path, files: Callable[[Path], list[Path]]
) -> list[dict[str, Any]]:
    """The one source of a copy: what the study says, and one hash over names and contents of the files that are copied."""
    try:
        paths = [path.relative_to(folder).as_posix() for path in files(folder)]
    except OSError as error:
        raise DatasetLayoutError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    look = look_at_origin(root, name, folder, paths)
    contents = json.dumps([(path, digest) for path, (_, digest) in look.files.items()])
    digest = hashlib.sha256(contents.encode()).hexdigest()
    return [{"file": source, "size": sum(look.sizes.values()), "sha256": digest, "declared": dict(declared)}]


# --- images -------------------------------------------------------------------------------------------------------------


def _look_at_folder(name: str, settings: FolderData, root: Path, where: str) -> Dataset:
    def fail(message: str) -> UserError:
        return UserError(f"{where}.folder: {message}")

    if not root.is_dir():
        raise fail(f"{root} is not a folder")
    parts = _parts(root)
    counts = {part: {kind.name: len(_images(kind)) for kind in _folders(folder)} for part, folder in parts.items()}
    classes = counts["train"]
    if len(classes) < 2:
        raise fail(f"{parts['train']} has {len(classes)} folders: images go into one folder per class, {root}/<class>/*.png")
    empty = next((f"{parts[part] / kind}" for part, own in counts.items() for kind, count in own.items() if not count), None)
    if empty is not None:
        raise fail(f"{empty} holds no images ({', '.join(ENDINGS)})")
    if "test" in counts and counts["test"].keys() != classes.keys():
        odd = min(counts["test"].keys() ^ classes.keys())
        raise fail(f"the class {odd} is in only one of {parts['train'].name}/ and {parts['test'].name}/")
    first = _images(_folders(parts["train"])[0])[0]
    width, height, channels = _shape(first, fail)
    if settings.size is None and width != height:
        asked = f"size: {min(width, height)}"
        raise fail(f"{first} has {width} × {height} pixels: say which square to bring images to, for example {asked}")
    side = settings.size or width
    total = sum(sum(own.values()) for own in counts.values())
    if total * channels * side * side > LARGEST:
        raise fail(f"{total:,} images of {side} × {side} pixels are too many to keep in memory: say a smaller size")
    shape = (channels, side, side)
    facts: dict[str, object] = {"classes": len(classes), "shape": shape, "top": 255, "train": sum(classes.values())}
    if "test" in counts:
        facts["test"] = sum(counts["test"].values())
    prepare = partial(_prepare_folder, parts=parts, side=side, grey=channels == 1)
    title = f"own images of {root}: {total:,} in {len(classes)} classes"
    made_of = partial(_made_of, name=name, declared=settings.model_dump(), source=settings.folder, folder=root, files=_all_images)
    return Dataset(name, title, "embedded", LICENCE, CITATION, prepare, facts=facts, made_of=made_of)


def _parts(root: Path) -> dict[str, Path]:
    """Where training and test images are."""
    if not (root / "train").is_dir():
        return {"train": root}
    test = next((root / test_name for test_name in TESTS if (root / test_name).is_dir()), None)
    return {"train": root / "train"} | ({"test": test} if test is not None else {})


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_stray(path.name))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not is_stray(path.name))


def _all_images(root: Path) -> list[Path]:
    return [path for part in _parts(root).values() for kind in _folders(part) for path in _images(kind)]


def _shape(path: Path, fail: Callable[[str], UserError]) -> tuple[int, int, int]:
    """Width, height, and one channel for grey pictures, else three."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return *image.size, 1 if image.mode in ("1", "L", "I", "I;16", "F") else 3
    except OSError as error:
        raise fail(f"{path} cannot be read as an image: {error}") from None


def _prepare_folder(downloads: Sequence[Path], folder: Path, *, parts: Mapping[str, Path], side: int, grey: bool) -> None:
    import numpy as np

    arrays: dict[str, np.ndarray] = {}
    for part, root in parts.items():
        files = [(path, label) for label, class_folder in enumerate(_folders(root)) for path in _images(class_folder)]
        arrays[f"{part}_images"] = np.stack([_pixels(path, side, grey) for path, _ in files])
        arrays[f"{part}_labels"] = np.asarray([label for _, label in files], dtype=np.int64)
    write_images(folder, **arrays)


def _pixels(path: Path, side: int, grey: bool) -> np.ndarray:
    """One image as (channels, side, side) bytes: scaled by its shorter side, and cut in the middle."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            if upright.size != (side, side):
                upright = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
            pixels = np.asarray(upright)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}") from None
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


# --- streams ------------------------------------------------------------------------------------------------------------


def _look_at_csv(name: str, settings: CsvData, path: Path, where: str) -> Dataset:
    if not path.is_file():
        raise UserError(f"{where}.csv: there is no file {path}")
    with path.open(newline="") as stream:
        header = next(csv.reader(stream), [])
    for field in ("label", "recording"):
        wanted = getattr(settings, field)
        if wanted not in header:
            raise UserError(f"{where}.{field}: {path} has no column {wanted}; {did_you_mean(wanted, header)}")
    features = [column for column in header if column not in (settings.label, settings.recording)]
    if not features:
        raise UserError(f"{where}.csv: {path} has no column beside {settings.label} and {settings.recording}")
    classes, recordings, steps = _scan(path, settings, header, features, where)
    if len(classes) < 2 or len(recordings) < 3:
        raise UserError(
            f"{where}.csv: {path} has {len(classes)} classes in {len(recordings)} recordings; at least 2 and 3 are needed, "
            "so that training, validation and testing have recordings of their own"
        )
    facts: dict[str, object] = {"classes": len(classes), "features": len(features)}
    prepare = partial(_prepare_csv, path=path, settings=settings, features=features, classes=classes, recordings=recordings)
    title = f"own measurements of {path}: {steps:,} steps of {len(features)} features, {len(classes)} classes"
    declared = settings.model_dump()
    made_of = partial(_made_of, name=name, declared=declared, source=settings.csv, folder=path.parent, files=lambda _: [path])
    return Dataset(name, title, "embedded", LICENCE, CITATION, prepare, facts=facts, made_of=made_of)


def _scan(path: Path, settings: CsvData, header: list[str], features: list[str], where: str) -> tuple[list[str], list[str], int]:
    """Classes and recordings of a file; every value that is no number is refused with its line."""
    classes: set[str] = set()
    recordings: dict[str, None] = {}
    line = 1
    with path.open(newline="") as stream:
        for line, row in enumerate(csv.DictReader(stream), start=2):
            for feature in features:
                if not _is_number(row[feature]):
                    wrong = f"{feature} = {row[feature]!r}"
                    raise UserError(f"{where}.csv: {path}, line {line}: {wrong} is not a number (leave it empty if missing)")
            if row[settings.label]:
                classes.add(row[settings.label])
            recordings[str(row[settings.recording])] = None
    return sorted(classes), list(recordings), line - 1


def _is_number(text: str | None) -> bool:
    if text is None:
        return False
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _prepare_csv(
    downloads: Sequence[Path],
    folder: Path,
    *,
    path: Path,
    settings: CsvData,
    features: list[str],
    classes: list[str],
    recordings: list[str],
) -> None:
    import numpy as np

    values: dict[str, list[list[float]]] = {recording: [] for recording in recordings}
    labels: dict[str, list[int]] = {recording: [] for recording in recordings}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            own = row[settings.recording]
            values[own].append([float(row[feature] or "nan") for feature in features])
            labels[own].append(classes.index(row[settings.label]) if row[settings.label] else -1)
    made = [
        (recording, np.asarray(values[recording], dtype=np.float32), np.asarray(labels[recording], dtype=np.int64))
        for recording in recordings
    ]
    train = max(1, round(SPLITS[0] * len(made)))
    validation = min(max(train + 1, round(SPLITS[1] * len(made))), len(made) - 1)
    splits = {
        "train": list(range(train)),
        "validation": list(range(train, validation)),
        "test": list(range(validation, len(made))),
    }
    write_recordings(folder, made, splits, features=features, classes=classes)
