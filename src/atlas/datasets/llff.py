"""LLFF's layout of a capture: ``poses_bounds.npy`` beside a folder of pictures.

A row of 17 numbers is a 3 × 5 matrix and two depths: the camera's axes (down, right, back), its position, and the picture's
height, width and focal length in pixels; then the depths between which the view's points lie. Rows are in the order of the
pictures' names. Heights, widths and focal lengths are used view by view, and scaled where the pictures have been made smaller.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.posed import (
    SUFFIXES,
    UPRIGHT,
    PosedPicture,
    pictures_in,
    pinhole,
    read_header,
    rigid_pose,
    same_shape,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

POSES = "poses_bounds.npy"
COLUMNS = 17


def read_llff(folder: Path) -> tuple[list[PosedPicture], NDArray[Any]]:
    """The views of a scene, and their depth bounds.

    Pictures are taken as they are stored, whatever their EXIF orientation, since structure from motion saw them so; a size that
    is not that of the row is refused.

    Parameters
    ----------
    folder : Path
        Holds ``poses_bounds.npy`` and ``images/``, or else ``images_<factor>/``, of which the least reduced one is read.

    Returns
    -------
    pictures : list of PosedPicture
        One per row, numbered from 0; OpenGL poses in the file's own units.
    bounds : array
        (n, 2) nearest and farthest depth of every view, in the same units.

    Raises
    ------
    DatasetLayoutError
        The file is no such array; a depth bound is not positive, or near is not below far; poses are no rigid motions; or the
        pictures' number or sizes are not those of the rows.
    """
    import numpy as np

    rows = _rows(folder / POSES)
    files = _files(folder, len(rows))
    packed, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    _check_bounds(folder / POSES, bounds, files)
    axes = np.concatenate([packed[..., 1:2], -packed[..., :1], packed[..., 2:4]], axis=-1)  # (down, right, back) before
    return [_picture(folder / POSES, *view) for view in zip(range(len(rows)), files, axes, packed[..., 4], strict=True)], bounds


def _rows(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetLayoutError(f"{path} cannot be read as an array of numbers: {error}") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu" or rows.ndim != 2 or not len(rows):
        raise DatasetLayoutError(f"{path} must hold one row of {COLUMNS} numbers for every picture")
    if rows.shape[1] != COLUMNS:
        hint = "; the last two, the depth bounds, are missing" if rows.shape[1] == COLUMNS - 2 else ""
        raise DatasetLayoutError(f"{path} has rows of {rows.shape[1]} numbers, not {COLUMNS}{hint}")
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise DatasetLayoutError(f"{path}: row {broken[0]} holds numbers that are not finite")
    return rows.astype(np.float64)


def _files(folder: Path, count: int) -> list[Path]:
    """The pictures, by name, of the folder at full size, else of the least reduced one (``images_4`` before ``images_8``)."""
    candidates = {path: re.fullmatch(r"images(?:_([0-9]+))?", path.name) for path in folder.iterdir() if path.is_dir()}
    order = sorted((int(match[1] or 1), path) for path, match in candidates.items() if match is not None)
    pictures = next((files for _, path in order if (files := pictures_in(path))), None)
    kinds = ", ".join(SUFFIXES)
    if pictures is None:
        raise DatasetLayoutError(f"{folder} has no images/ or images_<factor>/ with pictures ({kinds})")
    if len(pictures) != count:
        raise DatasetLayoutError(
            f"{pictures[0].parent} holds {len(pictures)} pictures ({kinds}; {pictures[0].name} to {pictures[-1].name}), "
            f"and {POSES} {count} rows; each picture needs its row: remove those that have no pose"
        )
    return pictures


def _check_bounds(path: Path, bounds: NDArray[Any], files: list[Path]) -> None:
    for (near, far), file in zip(bounds.tolist(), files, strict=True):
        if near <= 0:
            raise DatasetLayoutError(
                f"{path}: the depth bounds of {file.name} are {near:.4g} and {far:.4g}, and must be positive; structure from "
                "motion left points at or behind the camera: remove them, or set the nearest depth"
            )
        if near >= far:
            raise DatasetLayoutError(
                f"{path}: the depth bounds of {file.name} are {near:.4g} and {far:.4g}; near must be below far"
            )


def _picture(path: Path, number: int, file: Path, axes: NDArray[Any], size: NDArray[Any]) -> PosedPicture:
    height, width, focal = size.tolist()
    if min(height, width, focal) <= 0:
        raise DatasetLayoutError(f"{path}: height, width and focal length of {file.name} must be positive, not {size.tolist()}")
    header = read_header(file)
    if not same_shape(height, width, header):
        turned = f" and is stored turned (EXIF orientation {header.orientation})" if header.orientation != UPRIGHT else ""
        swapped = "; are height and width swapped?" if not turned and same_shape(width, height, header) else ""
        raise DatasetLayoutError(
            f"{path} gives {file.name} a height of {height:g} and a width of {width:g}; the picture has {header.height} rows and "
            f"{header.width} columns{turned}{swapped}"
        )
    focals = (focal * header.width / width, focal * header.height / height)
    matrix = pinhole(focals, (header.width / 2, header.height / 2))
    pose = rigid_pose(axes, f"{path}: the pose of {file.name}")
    return PosedPicture(number, file, header.height, header.width, matrix, pose)
