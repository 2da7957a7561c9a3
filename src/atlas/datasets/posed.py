"""A capture's pictures: which files are pictures, what their headers say, and what a camera with a pose is.

The readers of the layouts (:mod:`.transforms`, :mod:`.llff`) turn what stands beside the pictures into :class:`PosedPicture`.
They look at headers alone, so that a whole data set is checked when it is acquired.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas.datasets.base import DatasetLayoutError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Endings of files that are pictures, in lower case."""
RIGID = 1e-4
"""How far R·Rᵀ may be from the identity, and the determinant from 1: the renderer's own tolerance."""
ORIENTATION, UPRIGHT = 0x0112, 1
"""EXIF's tag that says how a picture is stored turned, and its value for one that is not."""


class Header(NamedTuple):
    """Rows and columns of a picture as stored, and how EXIF says that it is turned (1: not at all)."""

    height: int
    width: int
    orientation: int


@dataclass(frozen=True, eq=False)
class PosedPicture:
    """A picture, and the pinhole camera that took it.

    Attributes
    ----------
    number : int
        By which settings choose views.
    path : Path
        The picture, ``height`` × ``width`` pixels as stored.
    intrinsics : array
        (3, 3) float64 in these pixels, counted from the centre of the top left one.
    pose : array
        (4, 4) float64 camera to world, OpenGL.
    """

    number: int
    path: Path
    height: int
    width: int
    intrinsics: NDArray[Any]
    pose: NDArray[Any]

    def resized_intrinsics(self, height: int, width: int) -> NDArray[Any]:
        """(3, 3) intrinsics of the picture brought to another size, also of another shape: rows and columns scale apart."""
        x, y = width / self.width, height / self.height
        (fx, _, cx), (_, fy, cy) = self.intrinsics[:2].tolist()
        return pinhole((fx * x, fy * y), ((cx + 0.5) * x, (cy + 0.5) * y))


def pinhole(focal: tuple[float, float], center: tuple[float, float]) -> NDArray[Any]:
    """(3, 3) intrinsics, in pixels counted from the centre of the top left one.

    Parameters
    ----------
    focal : (float, float)
        Horizontal and vertical focal length in pixels.
    center : (float, float)
        Column and row of the principal point, counted from the top left *corner*, as COLMAP and what builds on it count.
    """
    import numpy as np

    return np.array([[focal[0], 0, center[0] - 0.5], [0, focal[1], center[1] - 0.5], [0, 0, 1]])


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever is wrong with the file is said in one line.

    Raises
    ------
    DatasetLayoutError
        There is no such file, or it is no picture, or it is damaged.
    """
    from PIL import Image

    if not path.is_file():
        raise DatasetLayoutError(f"{path} does not exist; is the copy complete?")
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetLayoutError(f"{path} cannot be read as a picture ({type(error).__name__}); is it damaged?") from None


def read_header(path: Path) -> Header:
    """Size and orientation of a picture, without decoding it; errors are those of :func:`opened`."""
    with opened(path) as image:
        exif = image.getexif() if "exif" in image.info else {}  # without this a PNG is decoded to look for it at its end
        return Header(image.height, image.width, int(exif.get(ORIENTATION, UPRIGHT)))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder by name; hidden files, and what has another suffix (:data:`SUFFIXES`), are none."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in entries if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file())


def same_shape(height: float, width: float, header: Header) -> bool:
    """Whether a picture is one of ``height`` × ``width`` pixels made larger or smaller, sides rounded to whole pixels."""
    x, y = header.width / width, header.height / height
    return abs(x - y) <= 2 * max(1.0, x, y) / min(height, width)


def rigid_pose(matrix: Any, where: str) -> NDArray[Any]:
    """A camera-to-world pose (4, 4) float64 from a matrix of 4 × 4 or 3 × 4 numbers.

    Parameters
    ----------
    matrix : array-like
        Rotation and position by columns.
    where : str
        Begins the error's line.

    Raises
    ------
    DatasetLayoutError
        The matrix has another shape or holds something else than numbers; or it is no rigid motion: it scales, mirrors, shears,
        or its rows are what its columns should be.
    """
    import numpy as np

    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        raise DatasetLayoutError(f"{where} is not a matrix of numbers") from None
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DatasetLayoutError(f"{where} must be 4 × 4 or 3 × 4 finite numbers, not {pose.shape} {_brief(pose)}")
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > RIGID:
        raise DatasetLayoutError(f"{where} has {_brief(pose[3])} for a last row, not 0 0 0 1; is it transposed?")
    rotation = pose[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        lengths, volume = np.linalg.norm(rotation, axis=0), np.linalg.det(rotation)
        drift = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if not (drift <= RIGID and abs(volume - 1) <= RIGID):
        how = "mirrors" if volume < 0 else "scales or shears"
        raise DatasetLayoutError(
            f"{where} is no rigid motion: it {how} (its axes have lengths {_brief(lengths)}, its determinant is {volume:.4g})"
        )
    return pose


def _brief(values: NDArray[Any]) -> str:
    return " ".join(f"{value:.4g}" for value in values.ravel()[:4])
