"""ImageNet as Hugging Face shares it, in Parquet files, made into the tar files that training reads.

A Parquet file is read by groups of rows, a hundred images at a time, so that a shuffled epoch would read every image a hundred
times. So ``atlas acquire`` goes through the files once, in their order, and writes the images as they are into an uncompressed
tar (:mod:`.tars`), under the names that they have in ImageNet's own folders. Training needs no Parquet reader.

The files are those of the data set ``imagenet-1k``, ``train-00000-of-00294.parquet`` and so on, each row an ``image`` of
``bytes`` and a ``path``, and a ``label``.
"""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from atlas.datasets.base import DatasetError, DatasetLayoutError

NAMES = {"train": ("train",), "val": ("validation", "val")}
"""What the files of a split begin with."""
SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d+)-of-(?P<count>\d+)")
CLASS = re.compile(r"n\d{8}")
"""A class of ImageNet: the number of its noun in WordNet."""


class Picture(NamedTuple):
    """One image: the name of its class, the name of its file, its label, and the file's content."""

    kind: str
    name: str
    label: int
    content: bytes


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split (``train`` or ``val``), in their order: in the folder, or in ``data`` below it.

    Raises
    ------
    DatasetLayoutError
        One of several is missing; their names say how many there are.
    """
    shards = [
        path
        for candidate in (folder, folder / "data")
        for start in NAMES[split]
        for path in sorted(candidate.glob(f"{start}*.parquet"))
        if path.stem == start or path.stem.startswith(f"{start}-")
    ]
    numbers = [match for path in shards if (match := SHARD.fullmatch(path.stem))]
    if numbers:
        count = int(numbers[0]["count"])
        missing = sorted(set(range(count)) - {int(match["number"]) for match in numbers})
        if missing or len(shards) != count:
            lacking = f", {len(missing)} missing, the first of them {missing[0]:05d}" if missing else ""
            raise DatasetLayoutError(
                f"{shards[0].parent} holds {len(shards)} of {count} Parquet files of {split}{lacking}: is the copy complete?"
            )
    return shards


def pack(files: Sequence[Path], target: Path) -> None:
    """Write the images of Parquet files to a tar, ``<class>/<file>``; complete or not at all.

    Parameters
    ----------
    files : sequence of Path
        Those of one split.
    target : Path
        The tar file. It takes as much room as the images.

    Raises
    ------
    DatasetError
        No Parquet reader is installed, or the tar cannot be written.
    DatasetLayoutError
        A file is damaged or has other columns, two images have one name, or labels do not number the classes in the order of
        their names.
    """
    labels: dict[str, int] = {}
    names: set[str] = set()
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as stream:
            partial = Path(stream.name)
            try:
                with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
                    for picture in _pictures(files):
                        _require_place(picture, names, labels, target)
                        member = tarfile.TarInfo(f"{picture.kind}/{picture.name}")
                        member.size = len(picture.content)
                        tar.addfile(member, io.BytesIO(picture.content))
                _require_order(labels, target)
                partial.chmod(0o644)
                partial.replace(target)
            finally:
                with suppress(OSError):
                    partial.unlink()
    except OSError as error:
        raise DatasetError(f"{target} cannot be written from the Parquet files beside it: {error}") from None


def _require_place(picture: Picture, names: set[str], labels: dict[str, int], target: Path) -> None:
    """Refuse an image whose name another one has, or whose label is not that of its class."""
    name = f"{picture.kind}/{picture.name}"
    if name in names:
        raise DatasetLayoutError(f"the Parquet files for {target} hold {name} twice: are they of one copy?")
    names.add(name)
    label = labels.setdefault(picture.kind, picture.label)
    if label != picture.label:
        raise DatasetLayoutError(f"the Parquet files for {target} label {picture.kind} both {label} and {picture.label}")


def _require_order(labels: dict[str, int], target: Path) -> None:
    """Refuse labels that are not the numbers of the classes in the order of their names: they would name other classes."""
    ordered = [labels[name] for name in sorted(labels)]
    if any(label >= later for label, later in pairwise(ordered)):
        raise DatasetLayoutError(f"the Parquet files for {target} do not number the classes in the order of their names")


def _pictures(files: Sequence[Path]) -> Iterator[Picture]:
    """Images of Parquet files, one after the other; a group of rows is in memory at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DatasetError(
            f"{files[0]} needs a Parquet reader: pip install 'atlas[parquet]', or make class folders or a tar of it"
        ) from None
    position = 0
    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                _require_columns(path, file.schema_arrow)
                for group in range(file.num_row_groups):
                    for row in file.read_row_group(group, columns=["image", "label"]).to_pylist():
                        yield _picture(path, row, position)
                        position += 1
        except pyarrow.ArrowException as error:
            raise DatasetLayoutError(f"{path} is no readable Parquet file ({error}): is the copy complete?") from None


def _require_columns(path: Path, schema: Any) -> None:
    image = schema.field("image").type if "image" in schema.names else None
    parts = {image.field(index).name for index in range(image.num_fields)} if image is not None else set()
    if "label" not in schema.names or "bytes" not in parts:
        raise DatasetLayoutError(f"{path} has the columns {', '.join(schema.names)}; expected image (bytes, path) and label")


def _picture(path: Path, row: dict[str, Any], position: int) -> Picture:
    image, label = row["image"], row["label"]
    if not image or not image["bytes"] or label is None or label < 0:
        raise DatasetLayoutError(f"{path} has an image without content or label, the {position + 1:,}th of its split")
    kind, name = _place(image.get("path") or "", int(label), position)
    return Picture(kind, name, int(label), image["bytes"])


def _place(path: str, label: int, position: int) -> tuple[str, str]:
    """Class and file of an image in ImageNet's own folders.

    Hugging Face appends the class to the name: ``n01440764_10026_n01440764.JPEG`` is ``n01440764/n01440764_10026.JPEG``, and
    ``ILSVRC2012_val_00000293_n01440764.JPEG`` is ``n01440764/ILSVRC2012_val_00000293.JPEG``. An image without such a name has
    the number of its label for a class.
    """
    file = PurePosixPath(path)
    stem, _, last = file.stem.rpartition("_")
    if stem and CLASS.fullmatch(last):
        return last, f"{stem}{file.suffix}"
    first = file.stem.partition("_")[0]
    if CLASS.fullmatch(first):
        return first, file.name
    return f"{label:04d}", file.name or f"{position:08d}.JPEG"
