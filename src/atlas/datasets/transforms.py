"""Blender's layout of a capture, ``transforms_<split>.json``, as NeRF's authors write it and as other tools do.

What stands in such a file is used, or refused by name where the pictures would mean something else without it, or has no effect:

- used: ``frames`` with ``file_path`` (with or without suffix) and ``transform_matrix``; ``camera_angle_x``, ``camera_angle_y``
  (radians), ``fl_x``, ``fl_y``, ``cx``, ``cy`` (pixels of pictures of ``w`` × ``h``, or else of the picture itself), of the frame
  or else of the file. Without a vertical focal length pixels are square; without ``cx`` and ``cy`` the middle is the centre;
- refused: lens distortion, other lenses than a pinhole, scenes that move, and the keys of :data:`REFUSED`;
- without effect: poses are taken in the file's own units, so neither ``aabb_scale``, ``scale`` and ``offset``, which place the
  scene in one tool's cube, nor ``applied_transform`` and ``applied_scale``, which tell what the poses have been through, matter;
  nor do depth maps, point clouds, ``rotation`` and ``sharpness``.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.posed import SUFFIXES, UPRIGHT, Header, PosedPicture, pinhole, read_header, rigid_pose, same_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

Entries = Mapping[str, Any]

DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "distortion_params")
NEGLIGIBLE = 1e-6
"""A coefficient of distortion up to this moves no pixel by a hundredth, even in large pictures."""
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
"""Values of ``camera_model`` that are a pinhole when their coefficients are zero."""
REFUSED = {
    "is_fisheye": "only pinhole cameras are read; undistort the pictures",
    "rolling_shutter": "a picture is taken as of one moment; remove the motion",
    "from_mitsuba": "poses are read as OpenGL's; convert them",
    "from_na": "poses are read as OpenGL's; convert them",
    "x_fov": "give camera_angle_x, in radians, instead",
    "y_fov": "give camera_angle_y, in radians, instead",
    "mask_path": "masks are not applied; make what is masked transparent in the picture",
    "black_transparent": "make what is black transparent in the picture",
    "fix_premult": "store colours that are not premultiplied",
}
"""Keys whose meaning cannot be left out, and what to do about them; harmless where they are absent, false, zero or null."""
CHOSEN = "chosen by the number at the end of their names"
AGREEMENT = 0.01
"""By how much, relatively, two statements of one focal length may differ."""


def read_transforms(path: Path) -> list[PosedPicture]:
    """The views of a split, ordered by number.

    A view's number is the one at the end of its file's name (``r_20``, ``0020.png``); where no name of the file ends in a number,
    it is the place in the file, from 0.

    Parameters
    ----------
    path : Path
        ``transforms_<split>.json``; pictures are sought beside it.

    Raises
    ------
    DatasetLayoutError
        The file is no JSON of this kind, names pictures that are not there or cannot be read, holds poses that are no rigid
        motion, contradicts itself or the pictures, or needs something that is not read; the line names the key.
    """
    content = _content(path)
    frames = _frames(path, content)
    for entries in (content, *frames):
        _refuse(path, entries)
    _at_rest(path, frames)
    files = [_picture_file(path, frame) for frame in frames]
    headers = [_upright(path) for path in files]
    _one_size(path, content, frames, files, headers)
    numbers = _numbers(path, files)
    pictures = [
        PosedPicture(
            number,
            file,
            header.height,
            header.width,
            _intrinsics(f"{path}: {file.name}", content, frame, header),
            rigid_pose(frame.get("transform_matrix"), f"{path}: transform_matrix of {frame['file_path']}"),
        )
        for number, file, header, frame in zip(numbers, files, headers, frames, strict=True)
    ]
    return sorted(pictures, key=lambda picture: picture.number)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetLayoutError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise DatasetLayoutError(f"{path} must hold an object with frames, not a {type(content).__name__}")
    return content


def _frames(path: Path, content: Entries) -> list[dict[str, Any]]:
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DatasetLayoutError(f"{path}: frames must be a list of views, and there is none in it")
    for index, frame in enumerate(frames):
        for key, kind in (("file_path", str), ("transform_matrix", list)):
            if not isinstance(frame, dict) or not isinstance(frame.get(key), kind) or not frame[key]:
                raise DatasetLayoutError(f"{path}: frames[{index}] has no {key}")
    return frames


def _refuse(path: Path, entries: Entries) -> None:
    """Keys of the file or of a frame that mean something which is not read."""
    for key, why in REFUSED.items():
        value = entries.get(key)
        if any(value) if isinstance(value, list) else value:
            raise DatasetLayoutError(f"{path}: {key} is not read: {why}")
    for key in DISTORTION:
        value = entries.get(key)
        values = value if isinstance(value, list) else [0 if value is None else value]
        if any(abs(_number(f"{path}: {key}", number)) > NEGLIGIBLE for number in values):
            raise DatasetLayoutError(f"{path}: {key} is {value}, and lens distortion is not read; undistort the pictures")
    model = entries.get("camera_model")
    if model is not None and str(model).upper() not in PINHOLES:
        raise DatasetLayoutError(f"{path}: camera_model {model} is not read, only a pinhole is; undistort the pictures")


def _at_rest(path: Path, frames: Sequence[Entries]) -> None:
    if len({_number(f"{path}: time", frame.get("time", 0)) for frame in frames}) > 1:
        raise DatasetLayoutError(
            f"{path}: the frames differ in time, and a scene that moves is not read; keep the frames of one time"
        )


def _number(where: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise DatasetLayoutError(f"{where} must be a finite number, not {value!r}")


def _picture_file(path: Path, frame: Entries) -> Path:
    """The picture of a frame: as named, else with a picture's suffix."""
    name = frame["file_path"].replace("\\", "/")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise DatasetLayoutError(f"{path}: file_path {frame['file_path']} is absolute; write it relative to {path.parent}")
    file = path.parent / name
    if file.suffix.lower() in SUFFIXES:
        candidates = [file]
    else:
        endings = [ending for suffix in SUFFIXES for ending in (suffix, suffix.upper())]
        candidates = [file.with_name(file.name + ending) for ending in endings]
    present = [candidate for candidate in candidates if candidate.is_file()]
    if not present and file.is_file():
        raise DatasetLayoutError(f"{file}, which {path.name} names in file_path, is not read: store it as {', '.join(SUFFIXES)}")
    if not present:
        raise DatasetLayoutError(f"{candidates[0]} does not exist, which {path.name} names in file_path; is the copy complete?")
    return present[0]


def _upright(path: Path) -> Header:
    header = read_header(path)
    if header.orientation != UPRIGHT:
        raise DatasetLayoutError(
            f"{path} is stored turned (EXIF orientation {header.orientation}), and its pose does not say whether it means it so; "
            "store it upright, or remove the tag"
        )
    return header


def _numbers(path: Path, files: Sequence[Path]) -> list[int]:
    """The number of every view; see :func:`read_transforms`."""
    endings = [re.search(r"[0-9]+$", file.stem) for file in files]
    first: dict[object, Path] = {}
    for file, match in zip(files, endings, strict=True):
        name = file.relative_to(path.parent) if file.is_relative_to(path.parent) else file
        if match is None and any(endings):
            raise DatasetLayoutError(f"{path}: file_path {name} ends in no number, as others do; views are {CHOSEN}")
        other = first.setdefault(file if match is None else int(match[0]), name)
        if other is not name:
            end = "are one picture" if match is None or other == name else f"both end in {int(match[0])}; views are {CHOSEN}"
            raise DatasetLayoutError(f"{path}: file_path {other} and {name} {end}")
    return [int(match[0]) if match else index for index, match in enumerate(endings)]


def _focal(where: str, entries: Entries, axis: str, pixels: float) -> float | None:
    """The focal length of an axis in pixels, if these entries give it: as such, as the angle of all ``pixels``, or as both."""
    length, angle = f"fl_{axis}", f"camera_angle_{axis}"
    focal = {}
    if entries.get(length) is not None:
        focal[length] = _number(f"{where}: {length}", entries[length])
        if focal[length] <= 0:
            raise DatasetLayoutError(f"{where}: {length} must be positive, not {entries[length]}")
    if entries.get(angle) is not None:
        radians = _number(f"{where}: {angle}", entries[angle])
        if not 0 < radians < math.pi:
            raise DatasetLayoutError(f"{where}: {angle} must lie between 0 and π radians, not {entries[angle]}")
        focal[angle] = 0.5 * pixels / math.tan(0.5 * radians)
    if len(focal) == 2 and abs(focal[length] / focal[angle] - 1) > AGREEMENT:
        raise DatasetLayoutError(
            f"{where}: {length} {focal[length]:.6g} and {angle} {entries[angle]} contradict each other: that angle, over "
            f"{pixels:g} pixels, is a focal length of {focal[angle]:.6g}"
        )
    return next(iter(focal.values()), None)


def _intrinsics(where: str, content: Entries, frame: Entries, header: Header) -> NDArray[Any]:
    """(3, 3) intrinsics in the picture's own pixels; what the frame says goes before what the file says."""

    def entry(key: str, otherwise: float) -> float:
        value = frame.get(key) if frame.get(key) is not None else content.get(key)
        return otherwise if value is None else _number(f"{where}: {key}", value)

    width, height = entry("w", header.width), entry("h", header.height)
    if width <= 0 or height <= 0 or not same_shape(height, width, header):
        raise DatasetLayoutError(
            f"{where}: w {width:g} and h {height:g} do not fit the picture, which has {header.width} × {header.height} pixels"
        )
    across = _focal(where, frame, "x", width) or _focal(where, content, "x", width)
    if across is None:
        raise DatasetLayoutError(f"{where}: neither camera_angle_x nor fl_x is given, so there is no focal length")
    down = _focal(where, frame, "y", height) or _focal(where, content, "y", height) or across
    x, y = header.width / width, header.height / height
    return pinhole((across * x, down * y), (entry("cx", width / 2) * x, entry("cy", height / 2) * y))


def _one_size(path: Path, content: Entries, frames: Iterable[Entries], files: Sequence[Path], headers: Sequence[Header]) -> None:
    """Pictures that share intrinsics, without a size which these are of, must have one size."""
    if content.get("w") is not None and content.get("h") is not None:
        return
    own = ("fl_x", "camera_angle_x", "w", "h")
    shared = [
        (file, header) for file, header, frame in zip(files, headers, frames, strict=True) if not any(key in frame for key in own)
    ]
    for file, header in shared:
        first = shared[0][1]
        if header != first:
            raise DatasetLayoutError(
                f"{path}: {shared[0][0].name} has {first.width} × {first.height} pixels and {file.name} {header.width} × "
                f"{header.height}, under one focal length; give the frames fl_x, w and h of their own"
            )
