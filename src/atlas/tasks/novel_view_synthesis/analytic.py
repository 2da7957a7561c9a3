"""A scene with known answers: a ring of textured spheres and boxes on a platform, ray-traced exactly.

Colours are a solid texture under Lambert light, so they do not depend on the viewer; depth is exact; what is empty is white.
Every seed is another scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.tasks.novel_view_synthesis.scene import Array, Scene, Views

SIZE, FOCAL = 48, 1.5 * 48
RADIUS, ELEVATION, TARGET = 4.0, 32.0, (0.0, 0.0, -0.2)
OFFSETS = ((-30, 0), (-20, 6), (-10, -4), (10, 4), (20, -6), (30, 0))
"""Azimuth and elevation of the test cameras from the reference, in degrees."""
LIGHT = np.array([0.4, 0.3, 0.866])
NEAR, FAR = 2.0, 6.0
FRESH = 100
"""Added to a run's seed, so that these scenes are none of those on which settings were chosen."""


@dataclass
class Solids:
    """Spheres (center, radius) and axis-aligned boxes (low, high), with a base colour and a frequency each."""

    spheres: list[tuple[Array, float]]
    boxes: list[tuple[Array, Array]]
    colours: Array
    frequencies: Array


def make_solids(seed: int) -> Solids:
    """A platform, three spheres and two boxes in a ring."""
    random = np.random.default_rng(FRESH + seed)
    spheres, boxes = [], [(np.array([-1.3, -1.3, -0.75]), np.array([1.3, 1.3, -0.6]))]
    kinds = random.permutation(["sphere"] * 3 + ["box"] * 2)
    start = random.uniform(0, 2 * np.pi)
    for index, kind in enumerate(kinds):
        angle = start + 2 * np.pi * index / len(kinds) + random.uniform(-0.2, 0.2)
        ring, size = random.uniform(0.35, 0.95), random.uniform(0.2, 0.4)
        center = np.array([ring * np.cos(angle), ring * np.sin(angle), -0.6 + size])
        if kind == "sphere":
            spheres.append((center, float(size)))
        else:
            half = size * random.uniform(0.7, 1.0, 3)
            half[2] = size
            boxes.append((center - half, center + half))
    count = len(spheres) + len(boxes)
    return Solids(spheres, boxes, random.uniform(0.2, 0.9, (count, 3)), random.uniform(4, 9, count))


def look_at(azimuth: float, elevation: float) -> Array:
    """OpenGL pose of a camera on the sphere around the target, in degrees; z is up."""
    a, e = np.radians(azimuth), np.radians(elevation)
    back = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, np.asarray(TARGET) + RADIUS * back], axis=1)
    return pose


def intrinsics(size: int = SIZE) -> Array:
    """(3, 3) of a square image; the focal length is one and a half times its size."""
    focal = FOCAL * size / SIZE
    return np.array([[focal, 0, (size - 1) / 2], [0, focal, (size - 1) / 2], [0, 0, 1]])


def trace(solids: Solids, origin: Array, directions: Array) -> tuple[Array, Array]:
    """Colours (n, 3) and ray parameters (n) of the first hit; white and 0 where there is none."""
    best = np.full(len(directions), np.inf)
    normal, which = np.zeros_like(directions), np.zeros(len(directions), dtype=np.int64)
    hits = [_sphere(origin, directions, *sphere) for sphere in solids.spheres]
    hits += [_box(origin, directions, *box) for box in solids.boxes]
    for index, (t, facing) in enumerate(hits):
        nearer = t < best
        best[nearer], normal[nearer], which[nearer] = t[nearer], facing[nearer], index
    hit = np.isfinite(best)
    depth = np.where(hit, best, 0.0)
    points = origin + depth[:, None] * directions
    checker = np.sign(np.prod(np.sin(solids.frequencies[which, None] * points + 0.5), axis=-1))
    wave = np.sin(points @ np.array([7.0, 5.0, 3.0]))
    shade = 0.45 + 0.55 * np.clip(normal @ (LIGHT / np.linalg.norm(LIGHT)), 0, None)
    colour = solids.colours[which] * (0.78 + 0.14 * checker + 0.08 * wave)[:, None] * shade[:, None]
    return np.where(hit[:, None], np.clip(colour, 0, 1), 1.0), depth


def _sphere(origin: Array, directions: Array, center: Array, radius: float) -> tuple[Array, Array]:
    a, b = (directions**2).sum(-1), directions @ (origin - center)
    c = ((origin - center) ** 2).sum() - radius**2
    inside = b**2 - a * c
    t = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    t = np.where(t > 0, t, np.inf)
    finite = np.where(np.isfinite(t), t, 0)
    return t, (origin + finite[:, None] * directions - center) / radius


def _box(origin: Array, directions: Array, low: Array, high: Array) -> tuple[Array, Array]:
    safe = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    first, second = (low - origin) / safe, (high - origin) / safe
    entry, leave = np.minimum(first, second), np.maximum(first, second).min(-1)
    near, axis = entry.max(-1), entry.argmax(-1)
    t = np.where((near < leave) & (near > 0), near, np.inf)
    return t, -np.sign(directions) * np.eye(3)[axis]


def render_views(solids: Solids, poses: Array, size: int = SIZE, supersample: int = 2) -> Views:
    """Ray-trace views: colours averaged over supersamples, depth of the pixel's centre."""
    matrix = intrinsics(size)
    steps = (np.arange(supersample) + 0.5) / supersample - 0.5
    images, depths = [], []
    for pose in poses:
        rays = [_directions(matrix, pose, size, dy, dx) for dy in steps for dx in steps]
        images.append(np.mean([trace(solids, pose[:3, 3], directions)[0] for directions in rays], axis=0))
        depths.append(trace(solids, pose[:3, 3], _directions(matrix, pose, size, 0.0, 0.0))[1])
    shape = (len(poses), size, size)
    rgb = np.asarray(images, dtype=np.float32).reshape(*shape, 3)
    return Views(rgb, np.tile(matrix, (len(poses), 1, 1)), np.asarray(poses), np.asarray(depths).reshape(shape))


def _directions(matrix: Array, pose: Array, size: int, down: float, right: float) -> Array:
    rows, cols = np.mgrid[:size, :size].reshape(2, -1).astype(np.float64)
    x, y = (cols + right - matrix[0, 2]) / matrix[0, 0], (rows + down - matrix[1, 2]) / matrix[1, 1]
    return np.stack([x, -y, -np.ones_like(x)], axis=-1) @ pose[:3, :3].T


def analytic_scene(seed: int, size: int = SIZE) -> Scene:
    """The scene of a seed: the reference at azimuth 0, six test views up to 30° from it."""
    solids = make_solids(seed)
    tests = np.stack([look_at(azimuth, ELEVATION + elevation) for azimuth, elevation in OFFSETS])
    return Scene(
        reference=render_views(solids, look_at(0, ELEVATION)[None], size),
        test=render_views(solids, tests, size),
        train=render_views(solids, np.zeros((0, 4, 4)), size),
        near=NEAR,
        far=FAR,
        white_background=True,
        depth_source="exact",
    )
