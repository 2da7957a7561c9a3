"""The training as a whole: determinism, reductions to the baselines, errors, checkpoints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from atlas.methods.sinnerf import (
    Box,
    Budget,
    Camera,
    CoarseFine,
    Descriptor,
    Frustum,
    LossWeights,
    MissingWeightsError,
    NeRFNetwork,
    Options,
    OrbitGaussian,
    RGBDView,
    Sampler,
    Shape,
    SinNeRF,
    Stage,
    TimmDino,
    TranslationGaussian,
    make_field,
    orbit_cameras,
    save_animation,
    sway_cameras,
)
from atlas.methods.sinnerf.trainer import Fitting

NONE = LossWeights(rgb=1, depth=0, side=0)
BALL = 0.8


def scene(size: int = 24) -> RGBDView:
    """A coloured ball on white, seen from 4 units away, with its exact depth."""
    pose = np.eye(4)
    pose[2, 3] = 4
    camera = Camera(np.array([[25.0, 0, (size - 1) / 2], [0, 25, (size - 1) / 2], [0, 0, 1]]), pose, size, size)
    d = camera.directions(*np.mgrid[:size, :size])
    a, b, c = (d**2).sum(-1), 2 * d @ camera.origin, 16 - BALL**2
    inside = b**2 - 4 * a * c
    depth = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a), 0)
    rgb = np.where(depth[..., None] > 0, 0.5 + 0.4 * np.sin(3 * d * depth[..., None]), 1.0)
    return RGBDView(rgb, depth, camera)


def model(
    weights: LossWeights, *, steps: int = 4, field: str = "vm", seed: int = 3, budget: Budget | None = None, **options: Any
) -> SinNeRF:
    torch.manual_seed(seed)
    return SinNeRF(
        make_field(field, resolution=12),
        bounds=[[-1, -1, -1], [1, 1, 1]],
        near=2,
        far=6,
        pose_prior=OrbitGaussian(8.0),
        stages=[Stage(steps, 1, 0.02, weights)],
        encoder=Descriptor(),
        white_background=True,
        seed=seed,
        sampler=Sampler(coarse=12, fine=0),
        options=Options(
            budget=budget or Budget(reference_rays=32, warped_rays=16, patch=16, pool=3), shape=Shape(beta=0.1), **options
        ),
    )


def trained(one: SinNeRF) -> dict[str, torch.Tensor]:
    one.fit(scene())
    return {name: value.clone() for name, value in one.field.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


EVERYTHING = LossWeights(**dict.fromkeys(LossWeights.model_fields, 0.1) | {"rgb": 1, "depth": 1, "side": 1})


def test_same_seed_same_result_and_every_term_is_there() -> None:
    one, other = model(EVERYTHING), model(EVERYTHING)
    result = one.fit(scene())
    assert equal(one.field.state_dict(), trained(other))
    assert not equal(one.field.state_dict(), trained(model(EVERYTHING, seed=4)))
    assert result.steps == 4
    assert result.cpu_s > 0
    assert set(result.losses) == {"loss", "discriminator", *LossWeights.model_fields}
    assert all(len(values) == 4 for values in result.losses.values())
    assert math.isfinite(result.losses["consistency"][0])  # every tenth step
    assert math.isnan(result.losses["consistency"][1])


def test_without_pseudo_views_it_is_dsnerf_and_without_depth_nerf() -> None:
    plain = Budget(reference_rays=32, warped_rays=0, patch=16, pool=3)
    off = LossWeights(rgb=1, depth=1, side=0, smooth=0, vit=0, adv=0)
    dsnerf = trained(model(off, budget=Budget.chosen(plain, pool=0)))
    assert equal(trained(model(off, budget=plain)), dsnerf)
    nerf = trained(model(NONE, budget=plain))
    assert not equal(nerf, dsnerf)
    # with a weight of 0 the pool is not even drawn
    assert equal(trained(model(NONE)), nerf)
    blind = scene()
    without = RGBDView(blind.rgb, None, blind.camera)
    one = model(NONE)
    one.fit(without)
    assert equal(one.field.state_dict(), nerf)


def test_it_learns_the_ball() -> None:
    one = model(LossWeights(depth=1, side=1), steps=60, budget=Budget(reference_rays=200, warped_rays=100, patch=6, pool=6))
    result = one.fit(scene())
    assert np.mean(result.losses["loss"][-5:]) < 0.3 * np.mean(result.losses["loss"][:5])
    seen = one.render(scene().camera)
    view = scene()
    assert seen.rgb.shape == (24, 24, 3)
    assert np.mean((seen.rgb - view.rgb) ** 2) < 0.02
    assert view.depth is not None
    assert np.abs(seen.surface_depth - view.depth)[view.valid].mean() < 0.25


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened() -> None:
    stages = [Stage(3, 1, 0.02, LossWeights.chosen(EVERYTHING, adv=0)), Stage(3, 1, 0.01, EVERYTHING)]
    for restart in (True, False):
        whole = model(EVERYTHING, restart=restart)
        whole.stages = tuple(stages)
        whole.fit(scene())
        part = model(EVERYTHING, restart=restart)
        part.stages = tuple(stages)
        fitting = part.start(scene())
        for index in range(5):
            fitting.step(index)
        state = fitting.state_dict()
        again = model(EVERYTHING, restart=restart, seed=3)
        again.stages = tuple(stages)
        resumed = again.start(scene())
        resumed.load_state_dict(state)
        resumed.step(5)
        assert equal(again.field.state_dict(), whole.field.state_dict())


def test_a_saved_training_stays_where_it_was_saved() -> None:
    def steps(fitting: Fitting, indices: range) -> list[float]:
        return [float(fitting.step(index)["loss"]) for index in indices]

    fitting = model(EVERYTHING).start(scene())
    steps(fitting, range(2))
    state = fitting.state_dict()
    expected = steps(fitting, range(2, 4))
    for _ in range(2):  # nor does what was loaded move with the training that goes on from it
        again = model(EVERYTHING, seed=3).start(scene())
        again.load_state_dict(state)
        assert steps(again, range(2, 4)) == expected


def test_learning_rates() -> None:
    one = model(NONE, steps=8)
    fitting = one.start(scene())
    fitting.enter(0)
    assert [fitting.learning_rate(step) / 0.02 for step in range(8)] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    falling = model(NONE, steps=8, decay="exponential").start(scene())
    falling.enter(0)
    assert falling.learning_rate(4) == pytest.approx(0.02 * 0.1**0.5)


def test_a_checkpoint_renders_identically(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file, save_file

    one, other = model(NONE), model(NONE, seed=9)
    one.fit(scene())
    save_file(one.field.state_dict(), tmp_path / "field.safetensors")
    other.field.load_state_dict(load_file(tmp_path / "field.safetensors"))
    first, second = one.render(scene().camera), other.render(scene().camera, chunk=7)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_array_equal(other.render(scene().camera).rgb, first.rgb)


def test_a_patch_without_valid_depth_has_no_side_term() -> None:
    view = scene()
    assert view.depth is not None
    depth = np.where(np.arange(576).reshape(24, 24) == 300, view.depth, 0)  # one pixel is known
    result = model(LossWeights(depth=1, side=1), budget=Budget(reference_rays=16, warped_rays=0, patch=2, pool=0)).fit(
        RGBDView(view.rgb, depth, view.camera)
    )
    assert 0.0 in result.losses["side"]
    assert all(map(math.isfinite, result.losses["loss"]))


def test_the_papers_pair_of_networks_trains_both_levels() -> None:
    torch.manual_seed(0)
    small = {"depth": 5, "width": 16, "frequencies": 2, "view_frequencies": 1}
    pair = CoarseFine(NeRFNetwork(**small), NeRFNetwork(**small))  # type: ignore[arg-type]
    one = SinNeRF(
        pair,
        bounds=None,
        near=2,
        far=6,
        pose_prior=OrbitGaussian(5.0),
        stages=[Stage(2, 1, 1e-3, LossWeights()), Stage(2, 1, 1e-3, LossWeights(adv=0.1))],
        sampler=Sampler(coarse=6, fine=6, noise_std=1.0),
        options=Options(
            budget=Budget(reference_rays=8, warped_rays=8, patch=16, pool=2, unseen="pool", foreground=0.9),
            shape=Shape(empty_by="depth", empty=2.0),
        ),
        white_background=True,
    )
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    result = one.fit(scene(), time_limit_s=1e9)
    assert result.steps == 4
    changed = {name.split(".")[0] for name, value in pair.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"coarse", "fine"}
    assert one.fit(scene(), time_limit_s=0).steps == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"near": 6, "far": 2}, "near < far"),
        ({"near": 0, "far": 2}, "near < far"),
        ({"stages": []}, "needs a stage"),
        ({"stages": [Stage(0, 1, 0.1, NONE)]}, "must be positive"),
        ({"stages": [Stage(1, 1, 0.1, LossWeights(vit=1.0))]}, "need an encoder"),
        ({"bounds": [1, 2, 3]}, r"\(2, 3\)"),
        ({"bounds": [[1, 1, 1], [0, 0, 0]]}, "lower"),
    ],
)
def test_impossible_models(change: dict[str, Any], message: str) -> None:
    good = {"bounds": None, "near": 2, "far": 6, "pose_prior": OrbitGaussian(), "stages": [Stage(1, 1, 0.1, NONE)]}
    with pytest.raises(ValueError, match=message):
        SinNeRF(make_field("mlp3x64"), **{**good, **change})


def test_impossible_fits() -> None:
    view = scene()
    with pytest.raises(ValueError, match="no valid depth"):
        model(LossWeights()).fit(RGBDView(view.rgb, None, view.camera))
    with pytest.raises(ValueError, match="no valid depth"):
        model(LossWeights()).fit(RGBDView(view.rgb, np.zeros((24, 24)), view.camera))
    assert view.depth is not None
    for unit in (1000, 0.001):  # millimetres, kilometres
        with pytest.raises(
            ValueError, match=r"no depth of the view lies between near 2 and far 6: it is from .* (in one unit|divide it by 1000)"
        ):
            model(LossWeights()).fit(RGBDView(view.rgb, unit * view.depth, view.camera))
    model(NONE).fit(RGBDView(view.rgb, 1000 * view.depth, view.camera))  # no term looks at it
    for budget in (
        Budget(reference_rays=8, warped_rays=8, patch=25, pool=1),
        Budget(reference_rays=8, warped_rays=8, patch=(4, 30), pool=1),
    ):
        with pytest.raises(ValueError, match="larger than the image"):
            model(LossWeights(), budget=budget).fit(view)
    one = model(LossWeights())
    one.stages = (Stage(1, 100, 0.1, LossWeights()),)
    one.options = Options()
    with pytest.raises(ValueError, match="larger than the image"):
        one.fit(view)
    with pytest.raises(ValueError, match="16 × 16 pixels, not 8 × 8"):
        model(LossWeights.chosen(NONE, adv=0.1), budget=Budget(reference_rays=8, warped_rays=8, patch=8, pool=1)).fit(view)
    patchless = Budget(reference_rays=8, warped_rays=8, patch=8, reference_patch=False, pool=1)
    bare = model(LossWeights(), budget=patchless)
    bare.options = Options.chosen(bare.options, shape=Shape(empty=2, empty_by="depth"))
    with pytest.raises(ValueError, match="emptiness by depth is a term of the reference patch"):
        bare.fit(view)
    broken = model(NONE)
    with torch.no_grad():
        broken.field.planes.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="rgb"):
        broken.fit(view)
    with pytest.raises(ValueError, match="chunk"):
        one.render(view.camera, chunk=0)


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import timm

    def offline(name: str, pretrained: bool, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"vit_small_patch16_224.dino.*MiB.*" + str(tmp_path)):
        TimmDino()


def test_a_frustum_holds_what_the_camera_sees() -> None:
    camera = scene().camera
    frustum = Frustum(camera, 2, 6, (3, 3, 2, 2))
    depths, pixels = np.array([[2.0], [3.0], [6.0]]), [0, 11.5, 23]
    points = torch.from_numpy(camera.origin + depths * camera.directions(pixels, pixels)).float()
    local = frustum.normalise(points)
    expected = torch.tensor([[-11.5 / 14.5, -11.5 / 13.5, 1.0], [0, 0, 0], [11.5 / 14.5, 11.5 / 13.5, -1.0]])
    torch.testing.assert_close(local, expected, atol=1e-5, rtol=1e-5)
    one = SinNeRF(
        make_field("vm", resolution=8),
        bounds=frustum,
        near=2,
        far=6,
        pose_prior=TranslationGaussian((0.1, 0.1, 0.1)),
        stages=[Stage(2, 1, 0.01, LossWeights(depth=1, side=0))],
        sampler=Sampler(coarse=8, fine=0, spacing="disparity", last="opaque"),
        options=Options(budget=Budget(reference_rays=16, warped_rays=16, reference_patch=False, pool=2)),
    )
    assert one.fit(scene()).steps == 2
    assert Box((0, 0, 0), (1, 1, 1)).high == (1, 1, 1)


def test_an_orbit_becomes_an_animation(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    one = model(NONE)
    cameras = orbit_cameras(scene().camera, frames=3)
    np.testing.assert_allclose(cameras[0].c2w, scene().camera.c2w, atol=1e-12)
    assert all(abs(np.linalg.norm(camera.origin) - 4) < 1e-9 for camera in cameras)
    assert len(sway_cameras(scene().camera, frames=4)) == 4
    for ending in ("gif", "webp"):
        path = tmp_path / f"orbit.{ending}"
        save_animation(path, [one.render(camera).rgb for camera in cameras])
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == 3
    with pytest.raises(ValueError, match="needs an image"):
        save_animation(tmp_path / "none.gif", [])


def test_a_field_in_double_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights are torch.float64, and rays are float32: give field.float\(\)"):
        SinNeRF(
            make_field("vm").double(), bounds=None, near=2, far=6, pose_prior=OrbitGaussian(8.0), stages=[Stage(1, 1, 0.02, NONE)]
        )


def test_fit_trains_whether_or_not_its_caller_takes_gradients() -> None:
    plain = model(NONE).fit(scene(), progress=False).losses
    for around in (torch.no_grad(), torch.inference_mode()):
        fresh = model(NONE)
        with around:
            assert fresh.fit(scene(), progress=False).losses == plain


def test_a_training_goes_on_in_a_stage_that_no_longer_uses_its_discriminator() -> None:
    view = scene()

    def begun() -> Fitting:
        torch.manual_seed(1)
        adversarial, plain = LossWeights(depth=0, side=0, adv=0.01), LossWeights(depth=0, side=0)
        budget = Budget(reference_rays=8, warped_rays=0, patch=16, pool=2)
        return SinNeRF(
            make_field("vm", resolution=8),
            bounds=[[-2, -2, -2], [2, 2, 2]],
            near=2,
            far=6,
            pose_prior=OrbitGaussian(5),
            stages=[Stage(2, 1, 0.01, adversarial), Stage(2, 1, 0.01, plain), Stage(2, 1, 0.01, adversarial)],
            options=Options(budget=budget, discriminator="narrow", restart=False),
        ).start(view)

    whole = begun()
    for index in range(6):
        whole.step(index)
    for stop in (1, 3, 5):
        first, later = begun(), begun()
        for index in range(stop):
            first.step(index)
        later.load_state_dict(first.state_dict())
        for index in range(stop, 6):
            later.step(index)
        found, told = later.state_dict(), whole.state_dict()
        for part in ("field", "discriminator"):
            assert all(torch.equal(found[part][name], value) for name, value in told[part].items()), stop


def test_fine_samples_need_coarse_ones_to_lie_between() -> None:
    for coarse in (1, 2):
        with pytest.raises(ValueError, match="at least 3 coarse"):
            Sampler(coarse=coarse, fine=4)
        Sampler(coarse=coarse, fine=0)


def test_a_white_background_contradicts_another_one() -> None:
    with pytest.raises(ValueError, match="contradicts"):
        SinNeRF(
            make_field("vm", resolution=8),
            bounds=None,
            near=2,
            far=6,
            pose_prior=OrbitGaussian(5),
            stages=[Stage(1, 1, 0.01, NONE)],
            white_background=True,
            sampler=Sampler(background=0.5),
        )


def test_intrinsics_end_with_one() -> None:
    good = np.array([[25.0, 0, 11.5], [0, 25, 11.5], [0, 0, 1]])
    skewed, projective = good.copy(), good.copy()
    skewed[1, 0] = projective[2, 0] = 0.1
    for wrong in (2 * good, skewed, projective):
        with pytest.raises(ValueError, match="last row 0, 0, 1"):
            Camera(wrong, np.eye(4), 24, 24)
