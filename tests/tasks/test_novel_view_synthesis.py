"""Scenes, captures and metrics of novel view synthesis; the rows of every tier."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.datasets import acquire, get_dataset, stand_in
from atlas.datasets.views import MOTORCYCLE, STEREO
from atlas.errors import AtlasError, UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.plots import FigureData
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.sinnerf import Camera, depth_from_disparity, forward_warp
from atlas.methods.sinnerf.plugin import FieldReconstruction, camera_of, stage_weights, view_of
from atlas.methods.sinnerf.settings import SinNeRFSettings
from atlas.settings import merge, validate_settings
from atlas.tasks.novel_view_synthesis import captures, metrics
from atlas.tasks.novel_view_synthesis.analytic import analytic_scene, make_solids, render_views
from atlas.tasks.novel_view_synthesis.figures import flight
from atlas.tasks.novel_view_synthesis.protocol import Protocol, SamplerSettings, SceneSettings
from atlas.tasks.novel_view_synthesis.reconstruction import FLIGHT
from atlas.tasks.novel_view_synthesis.scene import Scene, load_scene, save_scene
from atlas.tasks.novel_view_synthesis.training import filmed, save_film
from atlas.tasks.novel_view_synthesis.training import save_picture as save_picture_of

ROOT = Path(__file__).resolve().parents[2]
TASK = "novel-view-synthesis"
MIRROR = os.environ.get("ATLAS_DATA_MIRROR", "")


@pytest.fixture(scope="module")
def analytic() -> Scene:
    return analytic_scene(0)


@pytest.fixture(scope="module")
def stereo(data_folder: Path) -> Scene:
    settings = SceneSettings(kind="stereo", depth="given", near=1.9, far=5.6)
    return captures.stereo_scene(data_folder / "motorcycle-stereo", MOTORCYCLE, settings)


def field_of(run: Run, scene: Scene) -> FieldReconstruction:
    """An untrained field under the shortest protocol."""
    short = replace(run, protocol=merge(run.protocol, run.task_entry.smallest))
    row = FieldReconstruction(short, SinNeRFSettings(depth=0, side=0))
    row.start(scene, torch.device("cpu"))
    return row


def test_a_film_is_small_and_the_same_for_the_same_pictures(analytic: Scene, tmp_path: Path) -> None:
    run = replace(Study.read("demo", ROOT).find(f"{TASK}/analytic/dsnerf/seed10"), root=tmp_path)
    assert filmed(run)
    assert not filmed(replace(run, limit=1))
    assert not filmed(Study.read("demo", ROOT).find(f"{TASK}/analytic/dsnerf/seed11"))
    images = field_of(run, analytic).flight(6)
    assert [image.shape for image in images] == [(48, 48, 3)] * 6
    np.testing.assert_array_equal(images[0], images[3])  # the path is closed, and crosses the reference's pose half-way
    assert not np.array_equal(images[1], images[2])
    files = []
    for _ in range(2):
        save_film(run, images)
        files.append((run.results / FLIGHT).read_bytes())
    assert files[0] == files[1]
    assert len(files[0]) < 20_000
    save_film(run, ())  # a row without a flight leaves what is there
    assert (run.results / FLIGHT).read_bytes() == files[0]


def test_the_figure_of_flights_shows_the_first_seeds_films_beside_the_reference(analytic: Scene, tmp_path: Path) -> None:
    study = replace(Study.read("demo", ROOT), root=tmp_path)
    runs = [replace(run, root=tmp_path) for run in study.matching(TASK, "analytic")]
    study = replace(study, runs=tuple(runs))
    data = FigureData(study, TASK, "analytic")
    assert flight(data) is None
    by_name = {(run.method, run.seed): run for run in runs}
    save_picture_of(by_name["scene", 10], "reference.png", analytic.reference.rgb[0])
    still = [np.full((48, 48, 3), 0.25)] * 16
    moving = [np.full((48, 48, 3), frame / 16) for frame in range(16)]
    for cell, images in ((("dsnerf", 10), still), (("sinnerf-geom", 10), moving), (("nerf1", 11), moving)):
        save_film(by_name[cell], images)
    film = flight(data)
    assert film is not None
    assert list(film.columns) == ["reference", "DS-NeRF, one view", "SinNeRF, geometry only"]
    assert [pictures.shape for pictures in film.columns.values()] == [(48, 48, 3), (16, 48, 48, 3), (16, 48, 48, 3)]


def test_warped_depth_is_the_traced_depth(analytic: Scene) -> None:
    """At interior pixels of the target's surfaces, the splat's depth is the ray tracer's to 1 %."""
    view = view_of(analytic.reference, 0)
    assert view.depth is not None
    assert analytic.test.depth is not None
    right = total = 0
    for index in range(len(analytic.test)):
        warped = forward_warp(view.rgb, view.depth, view.camera, camera_of(analytic.test, index), crack_filter=True)
        truth = analytic.test.depth[index]
        near = np.stack([np.roll(truth, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)])
        interior = warped.valid & (near.min(0) > 0.95 * near.max(0))
        interior[[0, -1]] = interior[:, [0, -1]] = False
        right += (np.abs(warped.depth - truth) <= 0.01 * truth)[interior].sum()
        total += interior.sum()
    assert total > 1000
    assert right >= 0.99 * total


def test_colours_do_not_depend_on_the_viewer(analytic: Scene) -> None:
    view = view_of(analytic.reference, 0)
    assert view.depth is not None
    warped = forward_warp(view.rgb, view.depth, view.camera, camera_of(analytic.test, 2), crack_filter=True)
    assert metrics.psnr(warped.rgb, analytic.test.rgb[2], warped.valid) > 18  # aliasing of the texture and nearest splats remain
    shifted = np.roll(analytic.test.rgb[2], 3, axis=1)
    assert metrics.psnr(warped.rgb, shifted, warped.valid) < metrics.psnr(warped.rgb, analytic.test.rgb[2], warped.valid) - 3


def test_analytic_scenes_are_seeded(analytic: Scene) -> None:
    again, other = analytic_scene(0), analytic_scene(1)
    np.testing.assert_array_equal(again.reference.rgb, analytic.reference.rgb)
    assert not np.array_equal(other.reference.rgb, analytic.reference.rgb)
    solids = make_solids(0)
    assert (len(solids.spheres), len(solids.boxes)) == (3, 3)
    np.testing.assert_allclose(analytic.distance()[[0, 5]], [25.4, 25.4], atol=0.5)  # 30° of azimuth at an elevation of 32°
    small = render_views(solids, analytic.reference.poses, size=24)
    assert small.rgb.shape == (1, 24, 24, 3)


@pytest.mark.parametrize("turned", [False, True])
def test_the_stereo_geometry_is_proven_by_warping(stereo: Scene, turned: bool) -> None:
    """The warp of the left image predicts the right one; without the principal points' offset, or mirrored, it does not."""
    view, target = view_of(stereo.reference, 0), camera_of(stereo.test, 0)
    assert view.depth is not None
    warped = forward_warp(view.rgb, view.depth, view.camera, target)
    good = metrics.psnr(warped.rgb, stereo.test.rgb[0], warped.valid)
    assert good == pytest.approx(26.09, abs=0.05)
    assert metrics.psnr(view.rgb, stereo.test.rgb[0]) < good - 10
    pose = np.array(target.c2w)
    pose[0, 3] = -pose[0, 3] if turned else pose[0, 3]
    intrinsics = target.K if turned else view.camera.K
    wrong = forward_warp(view.rgb, view.depth, view.camera, Camera(intrinsics, pose, target.height, target.width))
    assert metrics.psnr(wrong.rgb, stereo.test.rgb[0], wrong.valid) < good - 10


def test_the_stereo_pair_at_full_size(data_folder: Path) -> None:
    from safetensors.numpy import load_file

    arrays = load_file(data_folder / "motorcycle-stereo" / STEREO)
    left, right, disparity = (arrays[name] for name in ("left", "right", "disparity"))
    assert left.shape == right.shape == (500, 741, 3)
    assert np.isposinf(disparity[~np.isfinite(disparity)]).all()
    assert (~np.isfinite(disparity)).sum() == 27_226
    calibration = MOTORCYCLE
    depth = depth_from_disparity(
        disparity, focal_px=calibration["focal"], baseline=calibration["baseline"], doffs=calibration["doffs"]
    )
    assert depth[depth > 0].min() == pytest.approx(2.110, abs=1e-3)
    assert depth.max() == pytest.approx(5.017, abs=1e-3)
    matrix = np.array([[calibration["focal"], 0, calibration["cx"]], [0, calibration["focal"], calibration["cy"]], [0, 0, 1]])
    other, pose = matrix.copy(), np.eye(4)
    other[0, 2] += calibration["doffs"]
    pose[0, 3] = calibration["baseline"]
    source, target = Camera(matrix, np.eye(4), 500, 741), Camera(other, pose, 500, 741)
    rows, cols = np.nonzero(depth)
    u, v, _ = target.project(source.origin + depth[rows, cols, None] * source.directions(rows, cols))
    np.testing.assert_allclose(u, cols - disparity[rows, cols], atol=1e-4)
    np.testing.assert_allclose(v, rows, atol=1e-9)
    warped = forward_warp(left / 255.0, depth, source, target)
    assert warped.valid.mean() == pytest.approx(0.830, abs=0.002)
    assert metrics.psnr(warped.rgb, right / 255.0, warped.valid) == pytest.approx(26.94, abs=0.05)


def test_stereo_blocks() -> None:
    values = np.array([[1.0, 2, np.inf, np.inf], [3, np.inf, np.inf, 8]])
    np.testing.assert_array_equal(captures.block_median(values, 2), [[2.0, np.inf]])
    np.testing.assert_array_equal(captures.block_mean(np.arange(8.0).reshape(2, 4), 2), [[2.5, 4.5]])


def test_metrics() -> None:
    random = np.random.default_rng(0)
    image = random.random((20, 24, 3))
    assert metrics.psnr(image, image) == metrics.CEILING
    assert metrics.ssim(image, image) == pytest.approx(1)
    assert metrics.psnr(image * 0 + 0.5, image * 0 + 0.6) == pytest.approx(20)
    assert metrics.psnr(image + 5, np.ones_like(image)) == metrics.CEILING  # clipped
    mask = np.zeros((20, 24), dtype=bool)
    assert math.isnan(metrics.psnr(image, image, mask))
    mask[3, 4] = True
    assert metrics.psnr(image, np.where(mask[..., None], image, 0), mask) == metrics.CEILING
    assert metrics.ssim(random.random((20, 24, 3)), image) < 0.3
    assert metrics.depth_error(np.array([[1.0, 9]]), np.array([[1.5, 0]])) == 0.5
    assert math.isnan(metrics.depth_error(image[..., 0], None))


def test_ssim_is_the_gaussian_window_by_hand() -> None:
    random = np.random.default_rng(1)
    a, b = random.random((2, 11, 11))
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * a**2).sum() - mean_a**2, (window * b**2).sum() - mean_b**2
    both = (window * a * b).sum() - mean_a * mean_b
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    found = metrics.ssim(np.repeat(a[..., None], 3, -1), np.repeat(b[..., None], 3, -1))
    assert found == pytest.approx(expected, rel=1e-6)


def test_lpips_is_absent_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert math.isnan(metrics.lpips(np.zeros((32, 32, 3)), np.ones((32, 32, 3))))


def test_a_scene_survives_its_file(analytic: Scene, tmp_path: Path) -> None:
    save_scene(replace(analytic, covisible=np.ones((6, 48, 48), bool)), tmp_path)
    again = load_scene(tmp_path)
    for name in ("rgb", "poses", "intrinsics", "depth"):
        np.testing.assert_array_equal(getattr(again.test, name), getattr(analytic.test, name))
    assert (again.near, again.far, again.depth_source, len(again.train)) == (2, 6, "exact", 0)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stand-ins")
    for name in ("lego-400", "llff", "dtu"):
        stand_in(name, root)
        check = get_dataset(name).check
        if check is not None:
            check(root / name)
    return root


def test_blender_captures(stand_ins: Path) -> None:
    settings = SceneSettings(height=40, width=40, test_split="train", test_views=(28, 63, 20))
    scene = captures.blender_scene(stand_ins / "lego-400/lego", settings)
    assert len(scene.test) == 2  # the reference is never a test view
    assert len(scene.train) == 98
    assert scene.reference.intrinsics[0, 0, 0] == pytest.approx(55.556, abs=1e-3)
    assert scene.reference.intrinsics[0, 0, 2] == 19.5
    near = captures.blender_scene(
        stand_ins / "lego-400/lego", settings.model_copy(update={"test_views": (), "test_degrees": 40.0})
    )
    assert (near.distance() <= 40).all()
    assert (near.distance() > 0).all()
    with pytest.raises(UserError, match="no training view 100"):
        captures.blender_scene(stand_ins / "lego-400/lego", settings.model_copy(update={"reference": 100}))
    with pytest.raises(UserError, match="does not exist"):
        captures.blender_scene(stand_ins / "lego-400/chair", settings)


def test_every_seed_may_have_a_reference_of_its_own(stand_ins: Path) -> None:
    settings = SceneSettings(height=10, width=10, test_split="train", test_degrees=60, references=(20, 51, 2))
    assert [settings.of_seed(seed).reference for seed in (20, 21, 22, 23)] == [2, 20, 51, 2]
    one, other = (captures.blender_scene(stand_ins / "lego-400/lego", settings.of_seed(seed)) for seed in (21, 22))
    assert not np.allclose(one.reference.poses, other.reference.poses)
    for scene in (one, other):
        assert not any(np.allclose(pose, scene.reference.poses[0]) for pose in scene.test.poses)
    plain = SceneSettings()
    assert plain.of_seed(3) is plain
    assert "references" not in plain.model_dump()
    with pytest.raises(ValueError, match="leave references out"):
        SceneSettings(kind="stereo", depth="given", references=(1, 2))


def test_llff_captures(stand_ins: Path) -> None:
    settings = SceneSettings(kind="llff", name="room", height=38, width=50, reference=-1, test_every=4, depth="none")
    scene = captures.llff_scene(stand_ins / "llff/room", settings)
    assert scene.near == pytest.approx(1.2)
    assert scene.far == pytest.approx(20 / 3)
    assert not scene.white_background
    assert len(scene.test) + len(scene.train) == 10
    np.testing.assert_allclose(np.r_[scene.test.poses, scene.train.poses][:, :3, 3].mean(0), 0, atol=1e-9)  # recentred
    np.testing.assert_allclose(scene.reference.poses[0, :3, :3], np.eye(3), atol=1e-9)
    assert (scene.distance() > 0).all()


def test_dtu_captures(stand_ins: Path) -> None:
    settings = SceneSettings(kind="dtu", name="scan4", height=128, width=160, reference=2, depth="given")
    scene = captures.dtu_scene(stand_ins / "dtu", settings)
    assert len(scene.test) == len(scene.train) == 5
    assert scene.reference.depth is not None
    np.testing.assert_allclose(scene.reference.depth, 3.0)
    assert scene.near == pytest.approx(2.125)
    assert scene.far == pytest.approx((425 + 192 * 2.5) / 200)
    camera = camera_of(scene.reference, 0)
    u, v, depth = camera.project(camera.origin + 3.0 * camera.directions(10, 20))
    np.testing.assert_allclose((u, v, depth), (20, 10, 3))
    assert scene.depth_source == "multiview"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Cameras/pair.txt", b"1\n2\n1 5 100.0\n", "no view 2 with two sources"),
        ("Cameras/pair.txt", b"1\ntwo\nthree\n", "does not alternate views"),
        ("Cameras/train/00000002_cam.txt", b"extrinsic\n1 0 0\n", "00000002_cam.txt is missing, or holds no extrinsic"),
        ("Cameras/train/00000005_cam.txt", None, "00000005_cam.txt is missing"),
        ("Rectified/scan4_train/rect_003_3_r5000.png", b"", "rect_003_3_r5000.png cannot be read as a picture"),
        ("Rectified/scan4_train/rect_003_3_r5000.png", None, "rect_003_3_r5000.png does not exist"),
        (
            "Depths/scan4_train/depth_map_0002.pfm",
            b"Pf\n160 128\n-1.0\n1234",
            "depth_map_0002.pfm is shorter than its header says",
        ),
        ("Depths/scan4_train/depth_map_0002.pfm", b"Pf\n2 2\n-1.0\n" + bytes(16), "depth_map_0002.pfm has 2 × 2 pixels"),
        ("Depths/scan4_train/depth_map_0002.pfm", b"PF\n1 1\n-1\n", "not a grey PFM"),
        ("Depths/scan4_train/depth_map_0002.pfm", None, "depth_map_0002.pfm does not exist"),
    ],
)
def test_damaged_dtu_captures(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    stand_in("dtu", tmp_path)
    settings = SceneSettings(kind="dtu", name="scan4", height=128, width=160, reference=2, depth="given")
    if content is None:
        (tmp_path / "dtu" / file).unlink()
    else:
        (tmp_path / "dtu" / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        captures.dtu_scene(tmp_path / "dtu", settings)
    assert "\n" not in str(error.value)


def test_dtu_captures_of_another_kind(stand_ins: Path, tmp_path: Path) -> None:
    settings = SceneSettings(kind="dtu", name="scan7", height=128, width=160, reference=2, depth="given")
    with pytest.raises(UserError, match="scan7_train does not exist; which scan"):
        captures.dtu_scene(stand_ins / "dtu", settings)
    stand_in("dtu", tmp_path)
    save_picture(tmp_path / "dtu/Rectified/scan4_train/rect_003_3_r5000.png", np.zeros((512, 512, 3), np.uint8))
    with pytest.raises(UserError, match=r"has 512 × 512 pixels, which is not the shape of \(128, 160\)"):
        captures.dtu_scene(tmp_path / "dtu", settings.model_copy(update={"name": "scan4"}))
    path = tmp_path / "dtu/Cameras/train/00000002_cam.txt"
    path.write_text(path.read_text().replace("1.0 0.0 0.0", "2.0 0.0 0.0"))
    with pytest.raises(UserError, match="extrinsic is no rigid motion"):
        captures.dtu_scene(tmp_path / "dtu", settings.model_copy(update={"name": "scan4"}))


def test_transparency_is_composed_after_resizing_with_premultiplied_colours(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (255, 0, 0, 255)  # red, beside transparent black
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(captures.read_image(tmp_path / "a.png", 4, 4)[0], [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2)
    half = captures.read_image(tmp_path / "a.png", 1, 1, "bilinear")
    np.testing.assert_allclose(half[0, 0], [1, 0.5, 0.5], atol=0.01)  # no dark fringe


def save_picture(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    from PIL import Image

    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize(("background", "expected"), [(1.0, [1, 0.5, 0.5]), (0.0, [0.5, 0, 0])])
def test_what_is_transparent_shows_the_background(tmp_path: Path, background: float, expected: list[float]) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 128  # red, half transparent
    path = save_picture(tmp_path / "a.png", pixels)
    for size in (4, 2):
        found = captures.read_image(path, size, size, background=background)
        np.testing.assert_allclose(found[0, 0], expected, atol=0.005)


@pytest.mark.parametrize("size", [(4, 4), (2, 2)])
def test_grey_of_16_bits_keeps_its_steps(tmp_path: Path, size: tuple[int, int]) -> None:
    """White is 65 535: neither are bright values clipped at 255, nor are steps below a 255th lost."""
    path = save_picture(tmp_path / "a.png", np.full((4, 4), 40000, np.uint16))
    found = captures.read_image(path, *size)
    assert found.shape == (*size, 3)
    np.testing.assert_allclose(found, 40000 / 65535, rtol=1e-6)
    white = save_picture(tmp_path / "b.png", np.full((4, 4), 65535, np.uint16))
    np.testing.assert_allclose(captures.read_image(white, *size), 1)


@pytest.mark.parametrize(("mode", "expected"), [("L", 0.2988), ("P", 1), ("1", None), ("LA", 0.2988), ("CMYK", 1), ("YCbCr", 1)])
def test_kinds_of_pictures(tmp_path: Path, mode: str, expected: float | None) -> None:
    """Red as grey is its luminance, 0.299; palettes and other colour spaces keep it; one bit is black or white."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0] = 255
    ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    found = captures.read_image(save_picture(tmp_path / f"a.{ending}", pixels, mode), 4, 4)
    assert found.shape == (4, 4, 3)
    assert found.min() >= 0
    assert found.max() <= 1
    if expected is not None:
        np.testing.assert_allclose(found[0, 0, 0], expected, atol=0.01)


def test_transparent_colours_of_palettes_and_of_plain_pictures(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (4, 4), (10, 20, 30))
    for name, one in (("plain", image), ("palette", image.convert("P", palette=Image.Palette.ADAPTIVE))):
        transparent = (10, 20, 30) if name == "plain" else 0
        one.save(tmp_path / f"{name}.png", transparency=transparent)
        np.testing.assert_array_equal(captures.read_image(tmp_path / f"{name}.png", 4, 4), 1)


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    from PIL import Image

    with pytest.raises(UserError, match=r"none.png does not exist"):
        captures.read_image(tmp_path / "none.png", 4, 4)
    (tmp_path / "text.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_picture(tmp_path / "whole.png", noise)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    for name in ("text", "cut"):
        with pytest.raises(UserError, match=f"{name}.png cannot be read as a picture"):
            captures.read_image(tmp_path / f"{name}.png", 4, 4)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="float.tif is a picture of the kind F"):
        captures.read_image(tmp_path / "float.tif", 4, 4)


def test_a_scene_of_other_pictures_has_their_intrinsics(tmp_path: Path) -> None:
    """160 × 90 pixels at 40 × 40, and a principal point off the middle: what the file says reaches the reference's camera."""
    from PIL import Image

    from atlas.datasets.views import stand_in_lego

    stand_in_lego(tmp_path)
    folder = tmp_path / "lego"
    content = json.loads((folder / "transforms_train.json").read_text())
    content["frames"] = content["frames"][:4]
    for frame in content["frames"]:
        Image.new("RGB", (160, 90)).save(folder / f"{frame['file_path']}.png")
    del content["camera_angle_x"]
    (folder / "transforms_train.json").write_text(json.dumps(content | {"fl_x": 200, "fl_y": 180, "cx": 40, "cy": 60}))
    settings = SceneSettings(height=40, width=40, reference=2, test_split="train", test_views=(1,))
    scene = captures.blender_scene(folder, settings)
    np.testing.assert_allclose(scene.reference.intrinsics[0], [[50, 0, 9.5], [0, 80, 60 * 40 / 90 - 0.5], [0, 0, 1]])
    with pytest.raises(UserError, match="no view 7 in its train split; it has 4 views, numbered from 0 to 3"):
        captures.blender_scene(folder, settings.model_copy(update={"test_views": (1, 7)}))
    with pytest.raises(UserError, match="no test view of test_views"):
        captures.blender_scene(folder, settings.model_copy(update={"test_views": (2,)}))
    with pytest.raises(UserError, match="no test view within test_degrees 1 of view 2"):
        captures.blender_scene(folder, settings.model_copy(update={"test_views": (), "test_degrees": 1.0}))


def test_views_that_a_forward_facing_capture_does_not_have(stand_ins: Path) -> None:
    settings = SceneSettings(kind="llff", name="room", height=38, width=50, reference=10, depth="none")
    with pytest.raises(UserError, match="no view 10; it has 10 views, numbered from 0 to 9"):
        captures.llff_scene(stand_ins / "llff/room", settings)
    with pytest.raises(UserError, match="test_every 10 holds out none"):
        captures.llff_scene(stand_ins / "llff/room", settings.model_copy(update={"reference": 0, "test_every": 10}))
    with pytest.raises(UserError, match=r"poses_bounds.npy does not exist; which scene"):
        captures.llff_scene(stand_ins / "llff/horns", settings)


@pytest.mark.data
@pytest.mark.skipif(not (Path(MIRROR) / "nerf-synthetic-lego-400.tar.gz").is_file(), reason="ATLAS_DATA_MIRROR has no lego")
def test_lego_of_the_archive(tmp_path: Path) -> None:
    acquire("lego-400", root=tmp_path, mirror=MIRROR)
    run = next(run for run in Study.read("lab", ROOT).runs if run.dataset.startswith("lego"))
    scene = captures.blender_scene(tmp_path / "lego-400/lego", run.protocol_model().scene)
    assert len(scene.test) == 14
    assert len(scene.train) == 86
    assert scene.distance().min() == pytest.approx(6.2, abs=0.1)
    assert scene.distance().max() == pytest.approx(28.6, abs=0.1)
    assert np.linalg.norm(scene.reference.poses[0, :3, 3]) == pytest.approx(4.0311, abs=1e-3)
    assert scene.reference.rgb[0, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_are_valid(tier: str) -> None:
    runs = Study.read(tier, ROOT).matching(TASK)
    rows = {run.recipe[0] for run in runs}
    assert {"scene", "nerf1", "dsnerf", "dibr", "sinnerf-geom", "sinnerf", "encoder", "dietnerf"} <= rows
    for run in runs:
        protocol = run.protocol_model()
        assert isinstance(protocol, Protocol)
        settings = run.settings_model(run.recipe[0])
        if hasattr(settings, "rgb"):
            assert len(stage_weights(settings, len(protocol.stages))) == len(protocol.stages)
        if tier != "demo":
            assert run.resources.gpus == 1
    if tier == "paper":
        assert {run.protocol_model().scene.kind for run in runs} == {"blender", "llff", "dtu"}


@pytest.mark.parametrize(
    ("dataset", "patch_depth", "weight"),
    [("lego", "whole", 2), ("hotdog", "whole", 2), ("llff-room", "whole", 0), ("dtu-scan4", "known", 0)],
)
def test_depth_terms_of_the_papers_data_sets(dataset: str, patch_depth: str, weight: float) -> None:
    """As released: the whole patch where depth is rendered, emptiness on Blender's patches alone, and smooth-L1 with β = 1."""
    run = Study.read("paper", ROOT).find(f"{TASK}/{dataset}/sinnerf-geom/seed0")
    protocol = run.protocol_model()
    reconstruction = FieldReconstruction(run, run.settings_model("sinnerf-geom"))
    shape = reconstruction._options().shape
    white = protocol.scene.kind != "llff"
    assert (shape.patch_depth, shape.empty if white else 0, shape.beta) == (patch_depth, weight, 1)
    assert shape.empty_by == "depth"
    assert protocol.rays.reference_patch


def small(cell: str, root: Path, **changes: Any) -> Run:
    """A run of the demo as short as it can be, with a changed protocol."""
    run = Study.read("demo", ROOT).find(f"{TASK}/{cell}/seed10")

    def cut(one: Run) -> Run:
        protocol = validate_settings(one.task_entry.protocol, merge(one.protocol, one.task_entry.smallest, changes), "test", TASK)
        return replace(one, root=root, protocol=protocol, needs={role: cut(needed) for role, needed in one.needs.items()})

    return cut(run)


def train_all(run: Run) -> None:
    for needed in run.needs.values():
        train_all(needed)
    train_run(run)


def test_a_teacher_renders_the_missing_depth(stand_ins: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(stand_ins)
    scene = {"kind": "blender", "height": 24, "width": 24, "test_split": "train", "test_views": [28, 63], "depth": "teacher"}
    run = small("analytic/nerf1", tmp_path, scene=scene)
    needed = replace(run.needs["scene"], data="lego-400")
    train_all(replace(run, data="lego-400", needs={"scene": needed}))
    made = load_scene(needed.checkpoint)
    assert made.depth_source == "multiview"
    assert made.reference.depth is not None
    assert made.covisible is not None
    assert (needed.checkpoint / "model.safetensors").is_file()


def test_the_real_pair_runs_through(workspace: Path) -> None:
    run = small("motorcycle/sinnerf-geom", workspace)
    train_all(run)
    content = evaluate_run(run)
    assert content["metrics"]["depth_mae"] is None  # the right image has no measured depth
    assert content["metrics"]["depth_source"] == 1
    assert {path.name for path in run.results.glob("*.png")} == {"view0.png", "depth0.png"}
    assert (run.results / "views.csv").read_text().startswith("view,degrees,psnr")


def test_a_loss_that_is_not_finite_stops_the_run(workspace: Path) -> None:
    run = small("analytic/nerf1", workspace, stages=[{"steps": 30, "stride": 1, "lr": 1e30}])
    with pytest.raises(AtlasError, match=r"nerf1/seed10: step \d+: the loss is not finite"):
        train_all(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene": {"near": 50, "far": 60}}, "no depth of the view lies between near 50 and far 60: it is from 2.1"),
        (
            {"rays": {"patch": [16, 800], "reference_patch": True}},
            "a patch of 16 × 800 pixels at stride 1 is larger than the image",
        ),
    ],
)
def test_a_scene_that_does_not_fit_its_protocol_stops_the_run(workspace: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"motorcycle/dsnerf/seed10: {message}"):
        train_all(small("motorcycle/dsnerf", workspace, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene": {"near": 7}}, "must be below far"),
        ({"scene": {"kind": "stereo", "depth": "teacher"}}, "bring their depth"),
        ({"scene": {"kind": "blender", "depth": "given"}}, "blender scenes bring no depth; set depth to teacher or none"),
        ({"scene": {"kind": "llff", "depth": "given"}}, "llff scenes bring no depth"),
        ({"stages": []}, "at least 1"),
    ],
)
def test_impossible_protocols(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(Protocol, change, "test", TASK)


@pytest.mark.parametrize("name", ["coarse", "test_coarse"])
def test_fine_samples_need_coarse_ones_in_training_and_in_tests(name: str) -> None:
    with pytest.raises(ValueError, match="at least 3 coarse"):
        SamplerSettings(**{name: 2})
    SamplerSettings(fine=0, **{name: 2})
