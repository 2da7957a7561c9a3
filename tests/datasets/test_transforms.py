"""Captures in Blender's layout: every key is used, refused by name, or has no effect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.transforms import read_transforms
from atlas.datasets.views import check_synthetic

Change = Callable[[dict[str, Any]], object]


def pose(k: int) -> list[list[float]]:
    """A turned camera somewhere, OpenGL."""
    c, s = math.cos(0.3 * k), math.sin(0.3 * k)
    return [[c, -s, 0, 0.1 * k], [s, c, 0, -0.2], [0, 0, 1, 4], [0, 0, 0, 1]]


def capture(
    folder: Path,
    change: Change = lambda content: None,
    *,
    names: tuple[str, ...] = ("r_0", "r_1", "r_10"),
    size: tuple[int, int] = (80, 60),
    suffix: str = ".png",
) -> Path:
    """``transforms_train.json`` over pictures of (width, height), whose names in the file lack the suffix."""
    frames = []
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (20 * k, 0, 0)).save(folder / f"{name}{suffix}")
        frames.append({"file_path": f"./{name}", "transform_matrix": pose(k)})
    content: dict[str, Any] = {"camera_angle_x": 0.7, "frames": frames}
    change(content)
    path = folder / "transforms_train.json"
    path.write_text(json.dumps(content))
    return path


def setting(**entries: Any) -> Change:
    """Entries of the file; ``None`` takes one away."""

    def change(content: dict[str, Any]) -> None:
        content.update(entries)
        for key in [key for key, value in entries.items() if value is None]:
            del content[key]

    return change


def framed(place: int = 0, **entries: Any) -> Change:
    """Entries of one frame; ``None`` takes one away."""
    return lambda content: setting(**entries)(content["frames"][place])


def both(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


FOCAL = 40 / math.tan(0.35)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (setting(), (FOCAL, FOCAL, 39.5, 29.5)),
        (setting(camera_angle_y=0.5), (FOCAL, 30 / math.tan(0.25), 39.5, 29.5)),
        (setting(camera_angle_x=None, fl_x=100), (100, 100, 39.5, 29.5)),
        (setting(camera_angle_x=None, fl_x=100, fl_y=120, cx=20, cy=35.5), (100, 120, 19.5, 35)),
        (setting(fl_x=FOCAL * 1.001), (FOCAL * 1.001, FOCAL * 1.001, 39.5, 29.5)),  # both, and they agree
        # of pictures twice as large; a principal point counts from the corner: 10 becomes 5, which is 4.5 from the first centre
        (setting(camera_angle_x=None, fl_x=200, cx=10, cy=60, w=160, h=120), (100, 100, 4.5, 29.5)),
        (framed(fl_x=90, cx=30), (90, 90, 29.5, 29.5)),  # a frame's own entry goes before the file's
        (both(setting(fl_x=FOCAL, fl_y=70), framed(fl_y=60)), (FOCAL, 60, 39.5, 29.5)),
    ],
)
def test_intrinsics_are_those_of_the_file(tmp_path: Path, change: Change, expected: tuple[float, ...]) -> None:
    matrix = read_transforms(capture(tmp_path, change))[0].intrinsics
    np.testing.assert_allclose(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], expected, rtol=1e-12)
    np.testing.assert_array_equal(matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], [0, 0, 0, 0, 1])


def test_intrinsics_follow_a_picture_that_is_squashed(tmp_path: Path) -> None:
    """160 × 90 pixels at 40 × 40: the centre stays the centre, and the focal lengths part by 16 : 9."""
    picture = read_transforms(capture(tmp_path, size=(160, 90)))[0]
    matrix = picture.resized_intrinsics(40, 40)
    across = 20 / math.tan(0.35)
    np.testing.assert_allclose(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], [across, across * 16 / 9, 19.5, 19.5])
    same = picture.resized_intrinsics(90, 160)
    np.testing.assert_allclose(same, picture.intrinsics)


@pytest.mark.parametrize(
    "change",
    [
        setting(k1=0, k2=0.0, p1=1e-9),
        setting(distortion_params=[0, 0, 0, 0]),
        setting(camera_model="PINHOLE"),
        setting(camera_model="OPENCV", k1=0, is_fisheye=False, rolling_shutter=[0, 0, 0, 0]),
        setting(aabb_scale=16, scale=0.5, offset=[0.1, 0.2, 0.3], n_frames=3, up=[0, 0, 1]),
        setting(applied_transform=[[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]], applied_scale=0.3, ply_file_path="sparse.ply"),
        setting(w=80, h=60),
        framed(rotation=0.01, sharpness=31.2, depth_path="depth/0.png", time=0.0),
    ],
)
def test_what_changes_nothing_is_accepted(tmp_path: Path, change: Change) -> None:
    plain = read_transforms(capture(tmp_path / "plain"))
    found = read_transforms(capture(tmp_path / "other", change))
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_allclose(other.intrinsics, one.intrinsics)
        np.testing.assert_array_equal(other.pose, one.pose)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(k1=0.05), "k1 is 0.05.*undistort"),
        (setting(p2=-1e-3), "p2"),
        (framed(k2=0.1), "k2"),
        (setting(distortion_params=[0, 0.1, 0, 0]), "distortion_params"),
        (setting(k1="x"), "k1 must be a finite number"),
        (setting(camera_model="OPENCV_FISHEYE"), "camera_model OPENCV_FISHEYE"),
        (setting(is_fisheye=True), "is_fisheye"),
        (setting(rolling_shutter=[0, 0, 0.1, 0]), "rolling_shutter"),
        (setting(from_mitsuba=True), "from_mitsuba"),
        (framed(mask_path="masks/0.png"), "mask_path"),
        (both(framed(0, time=0.0), framed(1, time=0.5)), "time"),
        (setting(camera_angle_x=None), "neither camera_angle_x nor fl_x"),
        (setting(camera_angle_x=40), "camera_angle_x must lie between 0 and π radians, not 40"),
        (setting(camera_angle_x=math.nan), "camera_angle_x must be a finite number"),
        (setting(camera_angle_x=True), "camera_angle_x must be a finite number"),
        (setting(camera_angle_x=10**400), "camera_angle_x must be a finite number"),
        (setting(fl_x=-3), "fl_x must be positive"),
        (setting(fl_x=200), "fl_x 200 and camera_angle_x 0.7 contradict"),
        (setting(w=60, h=80), "w 60 and h 80 do not fit the picture, which has 80 × 60"),
        (setting(w=160, h=80), "w 160 and h 80"),
        (setting(w=0), "w 0"),
        (setting(cx=math.inf), "cx"),
        (setting(frames=[]), "frames"),
        (setting(frames=None), "frames"),
        (setting(frames={"r_0": {}}), "frames"),
        (setting(frames=["r_0"]), r"frames\[0\]"),
        (framed(1, transform_matrix=None), r"frames\[1\] has no transform_matrix"),
        (framed(file_path=None), r"frames\[0\] has no file_path"),
        (framed(file_path="./r_7"), r"r_7.png does not exist, which transforms_train.json names in file_path"),
        (framed(file_path="./r_7.png"), r"/r_7.png does not exist"),
        (framed(file_path="/data/r_0.png"), "absolute"),
        (framed(file_path="C:\\data\\r_0.png"), "absolute"),
        (framed(file_path="./r_1"), "r_1.png and r_1.png are one picture"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, change: Change, message: str) -> None:
    path = capture(tmp_path, change)
    with pytest.raises(DatasetLayoutError, match=message) as error:
        read_transforms(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert ".png.png" not in str(error.value)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([2.0, 2, 2, 1]), "scales"),
        (np.diag([1.0, 1, -1, 1]), "mirrors"),
        (np.diag([1e300, 1e300, 1, 1]), "scales"),
        (np.array(pose(2)).T, "transposed"),
        (np.array(pose(2)) + 0.1 * np.eye(4, k=1), "scales or shears"),
        (np.eye(3), "4 × 4 or 3 × 4"),
        (np.full((4, 4), math.nan), "finite"),
    ],
)
def test_poses_are_rigid_motions(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetLayoutError, match=rf"transform_matrix of \./r_1.*{message}"):
        read_transforms(capture(tmp_path, framed(1, transform_matrix=matrix.tolist())))


def test_a_pose_may_lack_its_last_row(tmp_path: Path) -> None:
    found = read_transforms(capture(tmp_path, framed(1, transform_matrix=pose(1)[:3])))
    np.testing.assert_array_equal(found[1].pose, pose(1))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"frames": 3}', "\x00\xff"])
def test_files_of_another_kind(tmp_path: Path, content: str) -> None:
    path = capture(tmp_path)
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DatasetLayoutError, match="transforms_train.json"):
        read_transforms(path)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("r_0", "r_10", "r_9"), (0, 10, 9)),
        (("0012", "0003", "0007"), (12, 3, 7)),
        (("shot7", "shot-12", "img.0004"), (7, 12, 4)),
        (("shot_0007_left", "shot_0003_left", "shot_0001_left"), (0, 1, 2)),  # no number at the end: the place in the file
        (("front", "left", "back"), (0, 1, 2)),
    ],
)
def test_numbers_of_views(tmp_path: Path, names: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    found = read_transforms(capture(tmp_path, names=names))
    assert [picture.number for picture in found] == sorted(numbers)
    assert {picture.number: picture.path.stem for picture in found} == dict(zip(numbers, names, strict=True))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/1", "b/1", "a/2"), "a/1.png and b/1.png both end in 1"),
        (("r_0", "r_1", "last"), "last.png ends in no number"),
    ],
)
def test_numbers_that_are_not_clear(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DatasetLayoutError, match=message):
        read_transforms(capture(tmp_path, names=names))


@pytest.mark.parametrize("written", ["./r_{}.png", "r_{}", ".\\r_{}.png", "../here/r_{}"])
def test_names_with_and_without_suffix_and_with_backslashes(tmp_path: Path, written: str) -> None:
    def rename(content: dict[str, Any]) -> None:
        for k, frame in zip((0, 1, 10), content["frames"], strict=True):
            frame["file_path"] = written.format(k)

    found = read_transforms(capture(tmp_path / "here", rename))
    assert [picture.path.resolve().name for picture in found] == ["r_0.png", "r_1.png", "r_10.png"]


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPG", ".jpeg"])
def test_suffixes_of_pictures(tmp_path: Path, suffix: str) -> None:
    assert read_transforms(capture(tmp_path, suffix=suffix))[2].path.name == f"r_10{suffix}"


def test_pictures_that_share_intrinsics_have_one_size(tmp_path: Path) -> None:
    path = capture(tmp_path)
    Image.new("RGB", (60, 80)).save(tmp_path / "r_1.png")
    with pytest.raises(DatasetLayoutError, match="r_0.png has 80 × 60 pixels and r_1.png 60 × 80"):
        read_transforms(path)
    content = json.loads(path.read_text())
    framed(1, fl_x=50, w=60, h=80)(content)
    path.write_text(json.dumps(content))
    np.testing.assert_allclose(read_transforms(path)[1].intrinsics[:2, 2], [29.5, 39.5])


def test_pictures_that_cannot_be_opened_or_are_stored_turned(tmp_path: Path) -> None:
    path = capture(tmp_path, suffix=".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(tmp_path / "r_1.jpg", exif=exif)
    with pytest.raises(DatasetLayoutError, match=r"r_1.jpg is stored turned \(EXIF orientation 6\)"):
        read_transforms(path)
    (tmp_path / "r_1.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetLayoutError, match="r_1.jpg cannot be read as a picture"):
        read_transforms(path)


def test_a_single_file_is_to_be_divided(tmp_path: Path) -> None:
    path = capture(tmp_path / "fox")
    path.rename(path.with_name("transforms.json"))
    with pytest.raises(DatasetLayoutError, match=r"fox/transforms.json does not say which views are held out; divide"):
        check_synthetic(tmp_path)


def test_acquiring_checks_every_scene(tmp_path: Path) -> None:
    capture(tmp_path / "lego")
    with pytest.raises(DatasetLayoutError, match="transforms_test.json does not exist"):
        check_synthetic(tmp_path)
    (tmp_path / "lego/transforms_test.json").write_text((tmp_path / "lego/transforms_train.json").read_text())
    check_synthetic(tmp_path)
    (tmp_path / "lego/r_0.png").unlink()
    with pytest.raises(DatasetLayoutError, match="r_0.png does not exist"):
        check_synthetic(tmp_path)


def test_a_picture_of_another_kind_is_named_as_it_is(tmp_path: Path) -> None:
    """It is there, so that neither is the copy incomplete nor a second suffix missing."""
    path = capture(
        tmp_path, suffix=".bmp", change=lambda content: [f.update(file_path=f["file_path"] + ".bmp") for f in content["frames"]]
    )
    with pytest.raises(
        DatasetLayoutError, match=r"r_0\.bmp, which transforms_train\.json names in file_path, is not read: store it as \.png"
    ):
        read_transforms(path)
