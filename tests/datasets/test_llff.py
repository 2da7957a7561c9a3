"""Captures in LLFF's layout: what stands beside the pictures fits them, or one line says what does not."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.llff import read_llff
from atlas.datasets.views import check_llff


def rows(count: int = 4, height: float = 60, width: float = 80, focal: float = 70) -> np.ndarray:
    """Upright cameras side by side, as (down, right, back | position | height, width, focal length), and depths 4 to 20."""
    found = []
    for k in range(count):
        turn = [[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]
        camera = np.concatenate([turn, [[0.1 * k], [0], [0]], [[height], [width], [focal]]], axis=1)
        found.append(np.r_[camera.ravel(), 4.0, 20.0])
    return np.asarray(found)


def capture(folder: Path, array: Any = None, size: tuple[int, int] = (80, 60), images: str = "images", count: int = 4) -> Path:
    """A scene of pictures of (width, height)."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", size, (25 * k, 90, 200)).save(folder / images / f"view{k:02d}.png")
    np.save(folder / "poses_bounds.npy", rows(count) if array is None else array)
    return folder


def changed(column: int, value: float, row: int = 2) -> np.ndarray:
    array = rows()
    array[row, column] = value
    return array


def test_poses_and_intrinsics_of_every_view(tmp_path: Path) -> None:
    array = rows()
    array[3, 14] = 77.0  # the last view has another focal length
    pictures, bounds = read_llff(capture(tmp_path, array))
    np.testing.assert_array_equal(bounds, [[4, 20]] * 4)
    np.testing.assert_allclose(pictures[0].intrinsics, [[70, 0, 39.5], [0, 70, 29.5], [0, 0, 1]])
    np.testing.assert_allclose(pictures[3].intrinsics[[0, 1], [0, 1]], 77)
    np.testing.assert_allclose(pictures[2].pose, [[1, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)
    assert [picture.number for picture in pictures] == [0, 1, 2, 3]


def test_reduced_pictures_have_reduced_focal_lengths(tmp_path: Path) -> None:
    """The rows tell of the full size; the focal length shrinks with the pictures, also where sides were rounded."""
    pictures, _ = read_llff(capture(tmp_path, rows(4, 3024, 4032, 3000), size=(504, 378), images="images_8"))
    np.testing.assert_allclose(pictures[0].intrinsics, [[375, 0, 251.5], [0, 375, 188.5], [0, 0, 1]])
    odd, _ = read_llff(capture(tmp_path / "odd", rows(4, 3023, 4031, 3000), size=(504, 378), images="images_8"))
    assert odd[0].intrinsics[0, 0] == pytest.approx(3000 * 504 / 4031)


def test_full_size_is_read_before_reduced_pictures(tmp_path: Path) -> None:
    capture(tmp_path, size=(20, 15), images="images_4")
    capture(tmp_path, size=(10, 8), images="images_8")
    assert read_llff(tmp_path)[0][0].path.parent.name == "images_4"
    capture(tmp_path)
    assert read_llff(tmp_path)[0][0].path.parent.name == "images"


@pytest.mark.parametrize("stray", ["._view00.png", ".DS_Store", "Thumbs.db", "desktop.ini", "view00.txt", "../images.bin"])
def test_what_other_programs_leave_is_no_picture(tmp_path: Path, stray: str) -> None:
    capture(tmp_path)
    (tmp_path / "images" / stray).write_bytes(b"\0\5\x16\7")
    (tmp_path / "images_note.txt").write_text("taken in May")
    (tmp_path / "images/old.png").mkdir()
    shutil.copytree(tmp_path / "images", tmp_path / "images_undistorted")
    assert len(read_llff(tmp_path)[0]) == 4


def test_upper_case_suffixes_are_pictures(tmp_path: Path) -> None:
    capture(tmp_path)
    for path in list((tmp_path / "images").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    assert len(read_llff(tmp_path)[0]) == 4


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (changed(15, -0.2), "depth bounds of view02.png are -0.2 and 20, and must be positive"),
        (changed(15, 0.0), "must be positive"),
        (changed(15, 20.0), "near must be below far"),
        (changed(16, 3.0), "4 and 3; near must be below far"),
        (changed(15, math.nan), "row 2 holds numbers that are not finite"),
        (changed(3, math.inf), "not finite"),
        (changed(4, 0.0), "must be positive"),
        (changed(14, -70.0), "focal length of view02.png must be positive"),
        (changed(0, 0.5), "pose of view02.png is no rigid motion"),
        (changed(10, 1.0), "no rigid motion"),
        (rows(4, 80, 60), "view00.png a height of 80 and a width of 60; the picture has 60 rows and 80 columns; are height and"),
        (rows(4, 60, 120), "a width of 120"),
        (rows()[:, :15], "rows of 15 numbers, not 17; the last two, the depth bounds, are missing"),
        (rows()[:, :12], "rows of 12 numbers"),
        (rows()[0], "one row of 17 numbers"),
        (rows(0), "one row of 17 numbers"),
        (rows().astype(str), "one row of 17 numbers"),
        (rows(5), r"holds 4 pictures \(.png, .jpg, .jpeg; view00.png to view03.png\), and poses_bounds.npy 5 rows"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path: Path, array: np.ndarray, message: str) -> None:
    capture(tmp_path, array)
    with pytest.raises(DatasetLayoutError, match=message) as error:
        read_llff(tmp_path)
    assert "\n" not in str(error.value)


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    capture(tmp_path)
    Image.new("RGB", (60, 80)).save(tmp_path / "images/view01.png")
    with pytest.raises(DatasetLayoutError, match="view01.png a height of 60 and a width of 80; the picture has 80 rows"):
        read_llff(tmp_path)


@pytest.mark.parametrize("fits", [True, False])
def test_pictures_are_taken_as_stored(tmp_path: Path, fits: bool) -> None:
    """Structure from motion looks at pixels as stored; where the row says another size, the tag is named."""
    capture(tmp_path, rows() if fits else rows(4, 80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in list((tmp_path / "images").iterdir()):
        path.unlink()
        Image.new("RGB", (80, 60)).save(path.with_suffix(".jpg"), exif=exif)
    if fits:
        assert (read_llff(tmp_path)[0][0].height, read_llff(tmp_path)[0][0].width) == (60, 80)
    else:
        with pytest.raises(DatasetLayoutError, match=r"stored turned \(EXIF orientation 6\)"):
            read_llff(tmp_path)


def test_acquiring_checks_every_scene(tmp_path: Path) -> None:
    with pytest.raises(DatasetLayoutError, match="holds no <scene>/poses_bounds.npy"):
        check_llff(tmp_path)
    capture(tmp_path / "room")
    check_llff(tmp_path)
    (tmp_path / "room/images/view01.png").write_bytes(b"")
    with pytest.raises(DatasetLayoutError, match="view01.png cannot be read as a picture"):
        check_llff(tmp_path)
    (tmp_path / "room/poses_bounds.npy").write_bytes(b"no array")
    with pytest.raises(DatasetLayoutError, match="poses_bounds.npy cannot be read"):
        check_llff(tmp_path)
    shutil.rmtree(tmp_path / "room/images")
    capture(tmp_path / "room", images="pictures")
    with pytest.raises(DatasetLayoutError, match="no images/ or images_<factor>/"):
        check_llff(tmp_path)
