"""A folder of class folders, or the same in one tar file, read by position: cluster file systems are slow with a million files.

``tar cf train.tar -C train .`` makes such a file. It must not be compressed, since images are read wherever they lie. Where they
do is written beside it once, in a hidden file, after one pass over the headers; an image is then one read at a known place.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol

from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.looks import is_stray

if TYPE_CHECKING:
    import numpy as np

ENDINGS = (".jpeg", ".jpg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image, in capitals as well."""


class Images(Protocol):
    """Images of classes, in the order of the classes' names and inside a class of the images'.

    Attributes
    ----------
    classes : list of str
        Names of the classes, sorted.
    labels : ndarray
        (images,) int64 index of each image's class.
    names : list of str
        ``<class>/<file>`` of each image.
    """

    classes: list[str]
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        """Return the number of images, over all classes."""
        ...

    def open(self, index: int) -> IO[bytes]:
        """Open the encoded file (such as JPEG) of the image at an index, for reading."""
        ...


class ImageTree:
    """Encoded images in a folder that holds a folder for each class; see :class:`Images`."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.folder = folder
        self.classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_stray(entry.name))
        self.names, labels = [], []
        for label, name in enumerate(self.classes):
            images = sorted(entry.name for entry in os.scandir(folder / name) if _is_image(entry.name))
            self.names += [f"{name}/{image}" for image in images]
            labels += [label] * len(images)
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of images, over all classes."""
        return len(self.names)

    def open(self, index: int) -> IO[bytes]:
        """Open the encoded file (such as JPEG) of the image at an index, for reading."""
        return (self.folder / self.names[index]).open("rb")


class ImageTar:
    """Class folders in a tar file.

    Parameters
    ----------
    path : Path
        The file; folders above the classes' do not matter.

    Raises
    ------
    DatasetLayoutError
        It is no tar, is compressed or cut off, or holds no image in a folder.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        names, self._places = _index(path)
        parts = [PurePosixPath(name).parts[-2:] for name in names]
        self.classes = sorted({each[0] for each in parts})
        if not self.classes:
            raise DatasetLayoutError(f"{path} holds no <class>/<image>; make it by: tar cf {path.name} -C {path.stem} .")
        order = sorted(range(len(parts)), key=lambda index: parts[index])
        self._places = self._places[order]
        self.names = ["/".join(parts[index]) for index in order]
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.asarray([number[parts[index][0]] for index in order], dtype=np.int64)
        self._opened: tuple[int, IO[bytes]] | None = None

    def __len__(self) -> int:
        """Return the number of images, over all classes."""
        return len(self.names)

    def open(self, index: int) -> IO[bytes]:
        """Read one image's file.

        Raises
        ------
        DatasetLayoutError
            The tar file ends before the image does.
        """
        offset, size = (int(value) for value in self._places[index])
        content = os.pread(self._descriptor(), size, offset)
        while len(content) < size:
            more = os.pread(self._descriptor(), size - len(content), offset + len(content))
            if not more:
                raise DatasetLayoutError(f"{self.path} ends inside {self.names[index]}: is the copy complete?")
            content += more
        return io.BytesIO(content)

    def _descriptor(self) -> int:
        """The open file; one for each process, which a fork would share."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self.path.open("rb")
        return self._opened[1].fileno()

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, for processes that load images."""
        return {**self.__dict__, "_opened": None}


def image_files(folder: Path, split: str) -> Images:
    """The images of a split: of ``<folder>/<split>/``, or where that is not there of ``<folder>/<split>.tar``."""
    if not (folder / split).is_dir() and (folder / f"{split}.tar").is_file():
        return ImageTar(folder / f"{split}.tar")
    return ImageTree(folder / split)


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not is_stray(name)


def _index(path: Path) -> tuple[list[str], np.ndarray]:
    """Names (images) and places (images, 2: offset, bytes) of a tar's images, from the index beside it if that fits."""
    import numpy as np

    state = path.stat()
    key = np.asarray([state.st_size, state.st_mtime_ns], dtype=np.int64)
    kept = path.with_name(f".{path.name}.index.npz")
    with suppress(OSError, ValueError, KeyError), np.load(kept, allow_pickle=False) as index:
        if np.array_equal(index["key"], key):
            return str(index["names"]).split("\n") if len(index["places"]) else [], index["places"]
    names, places = _headers(path)
    with suppress(OSError):  # where nothing may be written, the next process reads the headers again
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".npz")
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, key=key, names=np.asarray("\n".join(names)), places=places)
        Path(temporary).replace(kept)
    return names, places


def _headers(path: Path) -> tuple[list[str], np.ndarray]:
    """Read every header of a tar, and no content."""
    import numpy as np

    names: list[str] = []
    places: list[tuple[int, int]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                inside = PurePosixPath(member.name)
                if member.isfile() and _is_image(inside.name) and len(inside.parts) > 1 and not is_stray(inside.parts[-2]):
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
    except tarfile.TarError as error:
        raise DatasetLayoutError(f"{path} cannot be read as an uncompressed tar ({error}): is the copy complete?") from None
    end = path.stat().st_size
    if places and max(offset + size for offset, size in places) > end:
        raise DatasetLayoutError(f"{path} ends inside its last image: is the copy complete?")
    return names, np.asarray(places, dtype=np.int64).reshape(-1, 2)
