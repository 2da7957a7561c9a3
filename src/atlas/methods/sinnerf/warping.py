"""Geometry pseudo-labels: a depth image splatted into another camera (spec of the paper: Sec. 3, geometry pseudo labels).

The nearest surface wins, points behind the camera or out of frame never appear, and holes stay holes. Filling them makes the
trivial competitor of every learned view: depth-image-based rendering.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from atlas.methods.sinnerf.cameras import Array, Camera, RGBDView

CRACK = 1.05
"""A splat farther than this times the nearest of its 3 × 3 neighbourhood is seen through a crack of the foreground."""


class WarpResult(NamedTuple):
    """What a forward warp sees: ``rgb`` (height, width, 3), ``depth`` (height, width), ``valid`` (height, width) bool.

    Where nothing lands, colour and depth are 0 and ``valid`` is false.
    """

    rgb: Array
    depth: Array
    valid: Array


def forward_warp(rgb: ArrayLike, depth: ArrayLike, src: Camera, dst: Camera, *, crack_filter: bool = False) -> WarpResult:
    """Splat every pixel of known depth to the nearest pixel of another camera, nearest surface first.

    Parameters
    ----------
    rgb, depth : array
        (height, width, 3) and z-depth (height, width) in ``src``; depth that is not positive or not finite is unknown.
    src, dst : Camera
        From where, to where.
    crack_filter : bool
        Drop a splat that is seen through a one-pixel crack of a nearer surface.

    Raises
    ------
    ValueError
        ``depth`` or ``rgb`` has another size than ``src``.
    """
    rgb, depth = np.asarray(rgb), np.asarray(depth, dtype=np.float64)
    if depth.shape != (src.height, src.width) or rgb.shape[:2] != depth.shape:
        raise ValueError(f"rgb {rgb.shape} and depth {depth.shape} do not fit a camera of {src.height} × {src.width}")
    target, distance, flat = _landing(depth, src, dst)
    nearest = np.full(dst.height * dst.width, np.inf)
    np.minimum.at(nearest, target, distance)
    wins = distance == nearest[target]  # of equally near ones the last, whose write wins
    source = np.zeros(len(nearest), dtype=np.int64)
    source[target[wins]] = flat[wins]
    valid = nearest < np.inf
    empty = np.flatnonzero(~valid)
    out_rgb = rgb.reshape(-1, *rgb.shape[2:]).take(source, axis=0)
    out_rgb[empty], nearest[empty] = 0, 0
    size = (dst.height, dst.width)
    result = WarpResult(out_rgb.reshape(*size, *rgb.shape[2:]), nearest.reshape(size), valid.reshape(size))
    return without_cracks(result) if crack_filter else result


def _landing(depth: Array, src: Camera, dst: Camera) -> tuple[Array, Array, Array]:
    """Target pixel and z-depth in ``dst`` of source pixels that land in frame and in front, and which of them those are.

    With intrinsics K and the relative pose (R, t), pixel (c, r) of depth z lands at z·P·(c, r, 1) + K′t with P = K′ R K⁻¹, in
    homogeneous coordinates: an affine function of column and row, times the depth.
    """
    known = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)  # what is not a number lands nowhere
    inverse = np.linalg.inv(src.K)
    inverse[2] = 0, 0, 1
    shift = np.zeros(3)
    if not np.array_equal(src.c2w, dst.c2w):  # the same pose moves nothing, exactly
        relative = dst.w2c @ np.linalg.inv(src.w2c)
        inverse, shift = relative[:3, :3] @ inverse, relative[:3, 3]
    cols, rows = np.arange(src.width), np.arange(src.height)[:, None]
    x, y, distance = (
        known * ((across * cols + constant) + down * rows) + moved
        for (across, down, constant), moved in zip(dst.K @ inverse, dst.K @ shift, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = np.rint(x / distance), np.rint(y / distance)
    inside = (distance > 0) & (u >= 0) & (u < dst.width) & (v >= 0) & (v < dst.height)
    flat = np.flatnonzero(inside)
    target = (v * dst.width + u).take(flat).astype(np.int64)
    return target, distance.take(flat), flat


def without_cracks(warped: WarpResult) -> WarpResult:
    """Drop splats that are more than 5 % farther than the nearest one of their 3 × 3 neighbourhood."""
    from scipy.ndimage import minimum_filter

    depth = np.where(warped.valid, warped.depth, np.inf)
    kept = warped.valid & (depth <= CRACK * minimum_filter(depth, size=3, mode="nearest"))
    return WarpResult(warped.rgb * kept[..., None], warped.depth * kept, kept)


def fill_cracks(warped: WarpResult, background: float = 1.0) -> Array:
    """Colours with one-pixel cracks filled by their valid neighbours' mean, and ``background`` where nothing is near."""
    from scipy.ndimage import uniform_filter

    weight = uniform_filter(warped.valid.astype(np.float64), size=3, mode="constant")
    mean = np.stack(
        [uniform_filter(warped.rgb[..., k] * warped.valid, size=3, mode="constant", output=np.float64) for k in range(3)], axis=-1
    )
    padded = np.pad(warped.valid, 1)
    between = (padded[1:-1, :-2] & padded[1:-1, 2:]) | (padded[:-2, 1:-1] & padded[2:, 1:-1])
    filled = np.where(warped.valid[..., None], warped.rgb, background).astype(np.float64)
    cracks = ~warped.valid & between
    filled[cracks] = mean[cracks] / weight[cracks, None]
    return filled


def fill_nearest(warped: WarpResult) -> tuple[Array, Array]:
    """Colours and depths with every hole filled by the nearest valid pixel.

    Raises
    ------
    ValueError
        No pixel is valid.
    """
    from scipy.ndimage import distance_transform_edt

    if not warped.valid.any():
        raise ValueError("nothing of the source is seen in the other camera")
    rows, cols = distance_transform_edt(~warped.valid, return_distances=False, return_indices=True)
    return warped.rgb[rows, cols], warped.depth[rows, cols]


def dibr(view: RGBDView, camera: Camera, *, background_depth: float | None = None) -> WarpResult:
    """Render another camera without learning: warp the view, then fill every hole with the nearest pixel.

    Parameters
    ----------
    background_depth : float, optional
        For scenes on white: where pixels without depth are put, beyond every surface. So the background moves, too, and holes are
        filled with what is next to them. (Filling cracks alone, :func:`fill_cracks`, leaves holes white and is 2 to 3 dB worse.)

    Returns
    -------
    WarpResult
        ``valid`` is what the warp itself reached; the depth of the background is 0.

    Raises
    ------
    ValueError
        The view has no depth.
    """
    if view.depth is None:
        raise ValueError("depth-image-based rendering needs a depth map")
    depth = view.depth if background_depth is None else np.where(view.valid, view.depth, background_depth)
    pixels = np.concatenate([view.rgb, view.valid[..., None]], axis=-1)  # whether a pixel is of a surface travels with its colour
    warped = forward_warp(pixels, depth, view.camera, camera)
    filled, depth = fill_nearest(warped)
    return WarpResult(filled[..., :3], depth * (filled[..., 3] > 0), warped.valid)
