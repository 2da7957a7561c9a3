"""A scene of one's own: units that are wrong, boxes in another place, previews, files and films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas.methods.sinnerf import (
    Camera,
    LossWeights,
    OrbitGaussian,
    RGBDView,
    SinNeRF,
    Stage,
    make_field,
    orbit_cameras,
    save_animation,
)
from atlas.methods.sinnerf.orbit import evened

CAMERA = Camera(np.array([[12, 0, 5.5], [0, 12, 5.5], [0, 0, 1]]), np.eye(4), 12, 12)
GREY = np.full((12, 12, 3), 0.5)
DEPTH = np.full((12, 12), 2.0)
BOX = [[-1.5, -1.5, -3.0], [1.5, 1.5, -1.0]]


def scene(bounds: object = BOX, near: float = 1, resolution: int = 8) -> SinNeRF:
    stages = [Stage(6, 1, 0.03, LossWeights(depth=1, side=0))]
    prior = OrbitGaussian(5, (0, 0, -2))
    return SinNeRF(make_field("vm", resolution=resolution), bounds=bounds, near=near, far=3, pose_prior=prior, stages=stages)


@pytest.mark.parametrize(
    ("depth", "bounds", "said"),
    [
        (DEPTH * 1000, BOX, r"it is from 2000 to 2000; it looks like millimetres: divide it by 1000"),
        (DEPTH * 100, BOX, r"it looks like centimetres: divide it by 100"),
        (DEPTH * 20, BOX, r"are they in one unit\?"),
        (
            DEPTH,
            [[-1, -1, 0], [1, 1, 3]],
            r"holds 0% of the points that the depth shows; 98 % of them lie in \[\[-0\.92, ",
        ),
    ],
)
def test_what_a_scene_cannot_be_is_refused_with_the_remedy(depth: np.ndarray, bounds: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scene(bounds).fit(RGBDView(GREY, depth, CAMERA))


def test_bytes_and_a_sensors_millimetres_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="divide bytes by 255"):
        RGBDView((GREY * 255).astype(np.uint8), DEPTH, CAMERA)
    with pytest.raises(ValueError, match="depth is uint16, as sensors write millimetres: divide it by 1000 for metres"):
        RGBDView(GREY, (DEPTH * 1000).astype(np.uint16), CAMERA)


def test_a_preview_is_written_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    path, seen = tmp_path / "now.png", []
    model = scene()
    model.fit(RGBDView(GREY, DEPTH, CAMERA), preview=path, preview_every=4, callback=lambda done, _: seen.append(path.exists()))
    assert seen == [False] * 4 + [True] * 2
    pixels = np.asarray(Image.open(path))
    assert np.array_equal(pixels, (np.clip(model.render(CAMERA).rgb, 0, 1) * 255 + 0.5).astype(np.uint8))
    assert [one.name for one in tmp_path.iterdir()] == ["now.png"]


def test_a_scene_comes_back_from_its_file_and_others_do_not(tmp_path: Path) -> None:
    path, model, again = tmp_path / "scene.safetensors", scene(), scene()
    model.save(path)
    assert not np.array_equal(again.render(CAMERA).rgb, model.render(CAMERA).rgb)
    again.load(path)
    assert np.array_equal(again.render(CAMERA).rgb, model.render(CAMERA).rgb)
    with pytest.raises(ValueError, match=r"holds a scene with near 1\.0; this one has near 0\.5"):
        scene(near=0.5).load(path)
    with pytest.raises(ValueError, match="holds a scene with bounds"):
        scene(bounds=None).load(path)
    with pytest.raises(ValueError, match="holds another field"):
        scene(resolution=12).load(path)
    (tmp_path / "broken").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        model.load(tmp_path / "broken")


def test_a_flight_around_a_scene(tmp_path: Path) -> None:
    scene().film(tmp_path / "flight.gif", orbit_cameras(CAMERA, frames=5, degrees=10, center=(0, 0, -2)))
    with Image.open(tmp_path / "flight.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]
        assert film.size == (12, 12)
    for name in ("flight.jpg", "flight.avi", "flight"):  # of which the first could hold one frame only
        with pytest.raises(ValueError, match=rf"{name}: the ending of an animation is one of \.gif, \.webp, \.png, \.mp4"):
            scene().film(tmp_path / name, [CAMERA])
        assert not (tmp_path / name).exists()
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install imageio\[ffmpeg\], or write \.gif"):
            save_animation(tmp_path / "flight.mp4", [GREY])
    else:
        import imageio.v2 as imageio

        save_animation(tmp_path / "flight.mp4", [GREY[:, 1:]] * 5)
        assert [frame.shape for frame in imageio.get_reader(tmp_path / "flight.mp4")] == [(12, 12, 3)] * 5


def test_films_have_an_even_number_of_rows_and_columns() -> None:
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    even = evened(image)
    assert even.shape == (4, 6, 3)
    assert np.array_equal(even[:3, :5], image)
    assert np.array_equal(even[3, :5], image[2])
    assert evened(image[1:, 1:]).shape == (2, 4, 3)
