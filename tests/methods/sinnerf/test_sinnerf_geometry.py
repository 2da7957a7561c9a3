"""Cameras and warps of SinNeRF against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from atlas.methods.sinnerf import (
    Camera,
    RGBDView,
    all_rays,
    depth_along_axis,
    depth_from_disparity,
    dibr,
    disparity_from_depth,
    fill_cracks,
    fill_nearest,
    forward_warp,
    pixel_rays,
)
from atlas.methods.sinnerf.cameras import FLIP
from atlas.methods.sinnerf.poses import rotation
from atlas.methods.sinnerf.warping import _landing

RANDOM = np.random.default_rng(0)


def intrinsics(focal: float = 40.0, height: int = 24, width: int = 32) -> np.ndarray:
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def camera(
    shift=(0.0, 0.0, 0.0), turn: np.ndarray | None = None, height: int = 24, width: int = 32, focal: float = 40.0
) -> Camera:
    pose = np.eye(4)
    pose[:3, :3] = np.eye(3) if turn is None else turn
    pose[:3, 3] = shift
    return Camera(intrinsics(focal, height, width), pose, height, width)


def somewhere() -> Camera:
    return camera((0.3, -0.2, 1.5), rotation((1, 2, -1), 0.7) @ rotation((0, 1, 0), -0.4))


def test_identity_warp_is_exact_bit_for_bit() -> None:
    view = somewhere()
    rgb, depth = RANDOM.random((24, 32, 3)), 1 + RANDOM.random((24, 32))
    depth[3, 4], depth[5, 6], depth[7, 8] = 0, np.nan, np.inf
    warped = forward_warp(rgb, depth, view, view)
    known = np.isfinite(depth) & (depth > 0)
    np.testing.assert_array_equal(warped.valid, known)
    np.testing.assert_array_equal(warped.rgb[known], rgb[known])
    np.testing.assert_array_equal(warped.depth[known], depth[known])
    assert not warped.rgb[~known].any()


@pytest.mark.parametrize("shift", [1, 5, -3])
def test_plane_moves_by_focal_times_shift_over_depth(shift: int) -> None:
    distance, rgb = 4.0, RANDOM.random((24, 32, 3))
    other = camera((-shift * distance / 40.0, 0, 0))  # a camera that moves left sees things move right
    warped = forward_warp(rgb, np.full((24, 32), distance), camera(), other)
    inside = np.zeros(32, dtype=bool)
    inside[max(shift, 0) : 32 + min(shift, 0)] = True
    np.testing.assert_array_equal(warped.valid, np.tile(inside, (24, 1)))
    np.testing.assert_array_equal(warped.rgb[:, inside], np.roll(rgb, shift, axis=1)[:, inside])


@pytest.mark.parametrize("nearest_first", [True, False])
def test_the_nearer_surface_wins_in_any_order(nearest_first: bool) -> None:
    # two pixels of one row land on the same pixel of a camera that has moved by f·t/Z = 4 and 2 pixels
    depth = np.zeros((24, 32))
    near, far = (10, 12) if nearest_first else (12, 10)
    sign = -1 if nearest_first else 1
    depth[5, near], depth[5, far] = 2.0, 4.0
    rgb = np.zeros((24, 32, 3))
    rgb[5, near], rgb[5, far] = (1, 0, 0), (0, 1, 0)
    warped = forward_warp(rgb, depth, camera(), camera((sign * 0.2, 0, 0)))
    assert warped.valid.sum() == 1
    np.testing.assert_array_equal(warped.rgb[warped.valid], [[1, 0, 0]])
    np.testing.assert_allclose(warped.depth[warped.valid], 2.0)


def test_of_equally_near_pixels_the_last_one_wins() -> None:
    whole = np.round(np.random.default_rng(1).random((24, 32)) * 3) + 2.0  # many at the same depth
    rgb = np.arange(24 * 32, dtype=np.float64).reshape(24, 32, 1)
    closer = camera((0.1, 0, 0), focal=9.0)
    warped = forward_warp(rgb, whole, camera(), closer)
    target, distance, flat = _landing(whole, camera(), closer)
    wanted = np.zeros(24 * 32)
    order = np.argsort(-distance, kind="stable")  # written last, the nearest stays
    wanted[target[order]] = flat[order]
    assert len(np.unique(target)) < len(target)
    np.testing.assert_array_equal(warped.rgb.ravel(), wanted)


def test_what_is_behind_or_out_of_frame_never_appears() -> None:
    rgb, depth = np.ones((24, 32, 3)), np.full((24, 32), 2.0)
    assert not forward_warp(rgb, depth, camera(), camera((0, 0, -3.0))).valid.any()  # past the plane
    assert not forward_warp(rgb, depth, camera(), camera(turn=rotation((0, 1, 0), math.pi))).valid.any()
    assert not forward_warp(rgb, depth, camera(), camera((50.0, 0, 0))).valid.any()


def test_there_and_back_keeps_the_depth() -> None:
    depth = np.where(RANDOM.random((24, 32)) < 0.5, 2.0, 4.0)
    there, back = camera((0.2, 0, 0)), camera()  # integer shifts: 4 and 2 pixels
    first = forward_warp(depth[..., None], depth, back, there)
    second = forward_warp(first.rgb, first.depth, there, back)
    assert second.valid.sum() > 300
    np.testing.assert_allclose(second.depth[second.valid], depth[second.valid], atol=1e-9)


def test_crack_filter_drops_what_shines_through() -> None:
    depth, rgb = np.full((24, 32), 4.0), np.zeros((24, 32, 3))
    depth[4:20, 4:28] = 2.0
    closer = camera((0, 0, -0.2))  # magnification opens cracks in the foreground
    plain = forward_warp(rgb, depth, camera(), closer)
    kept = forward_warp(rgb, depth, camera(), closer, crack_filter=True)
    assert (kept.valid <= plain.valid).all()
    assert (kept.depth[8:16, 8:24][kept.valid[8:16, 8:24]] < 2).all()
    np.testing.assert_array_equal(kept.depth[kept.valid], plain.depth[kept.valid])


def test_fills() -> None:
    valid = np.ones((5, 5), dtype=bool)
    valid[2, 2] = valid[0, 0] = False
    from atlas.methods.sinnerf import WarpResult

    rgb = np.full((5, 5, 3), 0.25) * valid[..., None]
    warped = WarpResult(rgb, valid * 2.0, valid)
    filled = fill_cracks(warped)
    np.testing.assert_allclose(filled[2, 2], 0.25)
    np.testing.assert_array_equal(filled[0, 0], 1.0)  # a corner is no crack
    colours, depth = fill_nearest(warped)
    np.testing.assert_allclose(colours, 0.25)
    np.testing.assert_allclose(depth, 2.0)
    with pytest.raises(ValueError, match="nothing"):
        fill_nearest(WarpResult(rgb, valid * 0.0, valid & False))
    view = RGBDView(np.full((24, 32, 3), 0.5), np.full((24, 32), 2.0), camera())
    np.testing.assert_allclose(dibr(view, camera((0.3, 0, 0))).rgb, 0.5)  # holes take the nearest colour
    with pytest.raises(ValueError, match="depth map"):
        dibr(RGBDView(view.rgb, None, camera()), camera())


def test_the_background_of_a_white_scene_is_warped_too() -> None:
    rgb, depth = np.ones((24, 32, 3)), np.zeros((24, 32))
    rgb[8:16, 10:20], depth[8:16, 10:20] = 0.2, 2.0
    moved = camera((-0.2, 0, 0))  # the block moves 4 pixels to the right, the background 2
    seen = dibr(RGBDView(rgb, depth, camera()), moved, background_depth=4.0)
    np.testing.assert_allclose(seen.rgb[8:16, 14:24], 0.2, atol=1e-6)
    np.testing.assert_array_equal(seen.rgb[:8], 1)
    np.testing.assert_array_equal(seen.depth > 0, np.isclose(seen.rgb[..., 0], 0.2))


def test_disparity_and_depth_are_inverse() -> None:
    disparity = np.array([[10.0, 35.5], [np.inf, 61.0]])
    options = {"focal_px": 994.978, "baseline": 0.193001, "doffs": 31.086}
    depth = depth_from_disparity(disparity, **options)
    assert depth[1, 0] == 0
    np.testing.assert_allclose(depth[0, 0], 994.978 * 0.193001 / 41.086)
    np.testing.assert_allclose(disparity_from_depth(depth, **options), disparity)
    np.testing.assert_array_equal(depth_from_disparity([-40.0, np.nan, -31.086], **options), 0)
    with pytest.raises(ValueError, match="positive"):
        depth_from_disparity(disparity, focal_px=0, baseline=1)


def test_rays_hit_their_pixels_and_their_parameter_is_the_depth() -> None:
    view = somewhere()
    rows, cols = RANDOM.integers(0, 24, 50), RANDOM.integers(0, 32, 50)
    t = 1 + 3 * RANDOM.random(50)
    points = view.origin + t[:, None] * view.directions(rows, cols)
    u, v, depth = view.project(points)
    np.testing.assert_allclose(u, cols, atol=1e-9)
    np.testing.assert_allclose(v, rows, atol=1e-9)
    np.testing.assert_allclose(depth, t, atol=1e-9)
    rays = pixel_rays(view, rows, cols, 0.5, 6)
    np.testing.assert_allclose(rays[:, 3:6], view.directions(rows, cols), atol=1e-6)
    assert tuple(rays[0, 6:]) == (0.5, 6)
    np.testing.assert_array_equal(all_rays(view, 0.5, 6)[rows * 32 + cols], rays)


def test_world_to_camera_is_an_involution_pair() -> None:
    view = somewhere()
    np.testing.assert_allclose(np.linalg.inv(view.w2c) @ FLIP, view.c2w, atol=1e-12)
    np.testing.assert_allclose(FLIP @ view.w2c @ view.c2w, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(FLIP @ FLIP, np.eye(4))


def test_resizing_keeps_the_frame_and_ray_lengths_become_depths() -> None:
    view = somewhere()
    half = view.resized(12, 16)
    np.testing.assert_allclose(half.directions(0, 0), view.directions(0.5, 0.5))
    lengths = np.linalg.norm(view.directions(*np.mgrid[:24, :32]), axis=-1) * 3.0
    np.testing.assert_allclose(depth_along_axis(lengths, view), 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"K": np.diag([-1.0, 1, 1])}, "focal"),
        ({"K": np.eye(2)}, r"\(3, 3\)"),
        ({"c2w": np.diag([1.0, 1, -1, 1])}, "rotation"),
        ({"c2w": 2 * np.eye(4)}, "rotation"),
        ({"c2w": np.full((4, 4), np.nan)}, "rotation"),
        ({"height": 0}, "pixels"),
    ],
)
def test_impossible_cameras(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Camera(**{"K": intrinsics(), "c2w": np.eye(4), "height": 24, "width": 32, **change})  # type: ignore[arg-type]


def test_a_rotation_within_the_tolerance_is_one() -> None:
    pose = np.eye(4)
    pose[0, 0] += 2e-5
    Camera(intrinsics(), pose[:3], 24, 32)


def test_impossible_views() -> None:
    rgb = np.zeros((24, 32, 3))
    with pytest.raises(ValueError, match="depth"):
        RGBDView(rgb, np.ones((24, 31)), camera())
    with pytest.raises(ValueError, match="rgb must be"):
        RGBDView(rgb[:, :-1], None, camera())
    rgb[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        RGBDView(rgb, None, camera())
    with pytest.raises(ValueError, match="do not fit"):
        forward_warp(rgb, np.ones((3, 3)), camera(), camera())


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        (np.full((24, 32, 3), 200, np.uint8), "uint8; divide bytes by 255"),
        (np.ones((24, 32, 3), np.int64), "int64"),
        (np.full((24, 32, 3), 200.0), r"not in \[200, 200\]"),
        (np.full((24, 32, 3), -0.01), r"not in \[-0.01, -0.01\]"),
        (np.full((24, 32, 3), 1.01, np.float32), "must lie in"),
        (np.full((24, 32, 3), np.inf), "not finite"),
        (np.zeros((32, 24, 3)), "as the camera's height and width say"),
        (np.zeros((24, 32, 4)), "rgb must be"),
    ],
)
def test_colours_of_another_unit(rgb: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RGBDView(rgb, None, camera())


def test_colours_may_round_over_their_range() -> None:
    rgb = np.ones((24, 32, 3), np.float32) * np.float32(1 + 1e-6)
    assert RGBDView(rgb, None, camera()).rgb.dtype == np.float32


def test_depth_of_the_other_sign() -> None:
    depth = np.full((24, 32), -4.0)
    depth[0, 0], depth[0, 1] = np.nan, -2
    with pytest.raises(ValueError, match="nowhere positive, but from -4 to -2"):
        RGBDView(np.zeros((24, 32, 3)), depth, camera())
    for unknown in (0.0, np.nan, np.inf):
        assert not RGBDView(np.zeros((24, 32, 3)), np.full((24, 32), unknown), camera()).valid.any()


def test_unknown_depth_becomes_zero() -> None:
    depth = np.ones((24, 32))
    depth[0, :3] = (np.nan, np.inf, -1)
    view = RGBDView(np.zeros((24, 32, 3)), depth, camera())
    assert view.depth is not None
    np.testing.assert_array_equal(view.depth[0, :4], [0, 0, 0, 1])
    assert view.valid.sum() == 24 * 32 - 3


def test_masked_depths_are_unknown_and_masked_colours_refused() -> None:
    """What a mask hides is no measurement, whatever number lies below it."""
    rgb, depth = np.full((24, 32, 3), 0.5), np.ma.masked_array(np.full((24, 32), 2), mask=False)
    depth[3, 4] = np.ma.masked
    view = RGBDView(rgb, depth, camera())
    assert not view.valid[3, 4]
    assert np.asarray(view.depth)[3, 4] == 0
    assert view.valid.sum() == 24 * 32 - 1
    with pytest.raises(ValueError, match="masked"):
        RGBDView(np.ma.masked_array(rgb, mask=rgb > 0.4), None, camera())
    view = RGBDView(torch.full((24, 32, 3), 0.5), torch.full((24, 32), 2.0), camera())
    assert view.valid.all()
