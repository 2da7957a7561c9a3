"""Loss terms, discriminator, augmentation, encoders, patches and pose priors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from atlas.methods.sinnerf import (
    Camera,
    Composite,
    Descriptor,
    Distillation,
    LossWeights,
    OrbitGaussian,
    PatchDiscriminator,
    PoseList,
    RGBDView,
    SelfDistiller,
    Shape,
    TimmDino,
    TinyDino,
    TranslationGaussian,
    diff_augment,
    hinge_discriminator,
    hinge_generator,
    smoothness,
    strided_patch,
)
from atlas.methods.sinnerf.discriminator import brightness, contrast, cutout, saturation
from atlas.methods.sinnerf.losses import cosine_distance, masked_mean, masked_smooth_l1, ray_termination
from atlas.methods.sinnerf.objective import RayGroup, Terms, in_front_of_reference, reference_depth, unseen_geometry
from atlas.methods.sinnerf.rendering import RenderedLevel
from atlas.methods.sinnerf.supervision import Reference
from atlas.methods.sinnerf.tiny_dino import nearest_neighbour_accuracy

DOUBLE = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_smoothness_by_hand() -> None:
    image = torch.zeros(1, 3, 8, 10)
    assert smoothness(torch.full((1, 8, 10), 3.0), torch.rand(1, 3, 8, 10)) == 0
    ramp = (-0.25 * torch.arange(10.0)).expand(1, 8, 10)
    torch.testing.assert_close(smoothness(ramp, image), torch.tensor(0.25))
    torch.testing.assert_close(smoothness(4 * ramp, image), torch.tensor(1.0))
    torch.testing.assert_close(smoothness(ramp.transpose(1, 2), image.transpose(2, 3)), torch.tensor(0.25))
    assert smoothness(ramp, image, order=2) < 1e-6
    flat, steep = (scale * torch.arange(10.0).expand(1, 3, 8, 10) for scale in (0.1, 1.0))
    torch.testing.assert_close(smoothness(ramp, steep), torch.tensor(0.25 * math.exp(-1)))
    assert smoothness(ramp, steep) < smoothness(ramp, flat) < smoothness(ramp, image)
    with pytest.raises(ValueError, match="order 3"):
        smoothness(ramp, image, order=3)


@pytest.mark.parametrize(
    ("depth", "image"),
    [
        ((2, 1, 8, 10), (2, 3, 8, 10)),  # would be broadcast to 2 × 2 pairs
        ((1, 8, 10), (2, 3, 8, 10)),
        ((8, 10), (1, 3, 8, 10)),
        ((8, 10), (8, 10)),
        ((1, 8, 1), (1, 3, 8, 10)),
        ((2, 8, 10), (2, 3, 8, 9)),
    ],
)
def test_smoothness_broadcasts_nothing(depth: tuple[int, ...], image: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not agree: \("):
        smoothness(torch.rand(depth), torch.rand(image))
    assert smoothness(torch.rand(8, 10), torch.rand(3, 8, 10)).shape == ()


def test_smoothness_of_a_batch_is_the_mean_of_its_images() -> None:
    depth, image = torch.rand(4, 8, 10, generator=seeded()), torch.rand(4, 3, 8, 10, generator=seeded(1))
    alone = torch.stack([smoothness(one, guide) for one, guide in zip(depth, image, strict=True)])
    torch.testing.assert_close(smoothness(depth, image), alone.mean())


def test_gradients_of_the_terms() -> None:
    depth = torch.rand(1, 5, 6, dtype=DOUBLE, generator=seeded()).requires_grad_()
    image = torch.rand(1, 3, 5, 6, dtype=DOUBLE, generator=seeded(1)).requires_grad_()
    for order in (1, 2):
        assert torch.autograd.gradcheck(lambda d, i, order=order: smoothness(d, i, order), (depth, image))
    mask = torch.tensor([True, False, True, True])
    predicted, target = torch.rand(2, 4, dtype=DOUBLE, generator=seeded(2)).unbind()
    predicted = predicted.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: masked_smooth_l1(p, target, mask, 0.1), (predicted,))
    weights = torch.rand(4, 6, dtype=DOUBLE, generator=seeded(3)).requires_grad_()
    t = torch.linspace(0, 1, 6, dtype=DOUBLE).expand(4, 6)
    assert torch.autograd.gradcheck(lambda w: ray_termination(w, t, target, mask, 0.1, torch.full_like(t, 0.2)), (weights,))
    features = torch.rand(2, 3, 7, dtype=DOUBLE, generator=seeded(4))
    first = features[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: cosine_distance(f, features[1]), (first,))


@pytest.mark.parametrize(
    ("shape", "white", "patch", "expected"),
    [
        # Blender: mean of (1, 0.5, 1, 0.25)² = 0.578125; where there is no depth, twice the mean of 0.5 and 0.5·0.25², 0.53125
        (Shape(patch_depth="whole", empty=2, empty_by="depth"), True, True, 0.578125 + 0.53125),
        # LLFF: the whole patch, and no emptiness, since what is empty is black
        (Shape(patch_depth="whole", empty=2, empty_by="depth"), False, True, 0.578125),
        # DTU: mean of 1 − 0.5 and 0.5·0.5² where there is depth, 0.3125, and nothing where there is none
        (Shape(empty=0), True, True, 0.3125),
        # random rays are compared one by one where there is depth, on every data set
        (Shape(patch_depth="whole", empty=2, empty_by="depth"), True, False, 0.3125),
        # ours: a tenth of the mean opacity of 0.4 and 0.8 of all rays without depth, 0.06
        (Shape(), True, True, 0.3125 + 0.06),
        (Shape(), True, False, 0.3125 + 0.06),
        (Shape(), False, True, 0.3125),
    ],
)
@pytest.mark.parametrize("levels", [1, 2])
def test_depth_of_the_reference_by_hand(shape: Shape, white: bool, patch: bool, expected: float, levels: int) -> None:
    """Four rays with depths 2, 4 and twice none, seen at 3, 4.5, 1 and 0.25; levels are summed."""
    seen = Composite(
        rgb=torch.zeros(4, 3),
        depth=torch.tensor([3.0, 4.5, 1.0, 0.25]),
        weights=torch.zeros(4, 2),
        opacity=torch.tensor([1.0, 1.0, 0.4, 0.8]),
    )
    depth = torch.tensor([2.0, 4.0, 0.0, 0.0])
    group = RayGroup(torch.zeros(4, 8), torch.zeros(4, 3), depth, depth > 0, (2, 2) if patch else None)
    group.levels = [RenderedLevel(seen, torch.zeros(4, 2))] * levels
    terms = Terms(LossWeights(depth=1))
    reference_depth(terms, group, shape, white)
    torch.testing.assert_close(terms.values["depth"], torch.tensor(levels * expected))


def test_depth_is_compared_ray_by_ray_and_an_empty_mask_is_zero() -> None:
    predicted, target = torch.tensor([1.0, 5.0, 3.0], requires_grad=True), torch.tensor([1.5, 2.0, torch.nan])
    mask = torch.tensor([True, True, False])
    loss = masked_smooth_l1(predicted, target, mask)
    torch.testing.assert_close(loss, torch.tensor((0.5 * 0.25 + 2.5) / 2))
    loss.backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    assert predicted.grad[2] == 0
    assert masked_smooth_l1(predicted, target, mask & False) == 0
    assert masked_mean(target, mask & False) == 0
    with pytest.raises(ValueError, match="one shape"):
        masked_smooth_l1(predicted, target[:, None])


def test_ray_termination_prefers_weight_at_the_depth() -> None:
    t = torch.linspace(1, 3, 21)[None]
    at, off = torch.zeros(1, 21), torch.zeros(1, 21)
    at[0, 10], off[0, 15] = 1, 1
    args = (t, torch.tensor([2.0]), torch.tensor([True]), 0.1, torch.full_like(t, 0.1))
    assert ray_termination(at, *args) < ray_termination(off, *args)


def test_hinge() -> None:
    real, fake = torch.tensor([[1.0, 2.5]]), torch.tensor([[-1.0, -3.0]])
    assert hinge_discriminator(real, fake) == 0
    assert hinge_discriminator(torch.zeros(4), torch.zeros(4)) == 1
    logits = torch.randn(1, 1, 3, 5, requires_grad=True)
    hinge_generator(logits).backward()
    torch.testing.assert_close(logits.grad, torch.full((1, 1, 3, 5), -1 / 15))


@pytest.mark.parametrize(
    ("made", "size", "logits", "weights"),
    [
        (PatchDiscriminator, (63, 84), (12, 18), 2_117_632),
        (PatchDiscriminator, (56, 70), (11, 14), 2_117_632),
        (PatchDiscriminator.whole_patch, (64, 64), (1, 1), 2_763_776),
    ],
)
def test_discriminators_have_the_official_shapes(made, size, logits, weights) -> None:  # type: ignore[no-untyped-def]
    discriminator = made()
    assert sum(p.numel() for p in discriminator.parameters()) == weights
    with torch.no_grad():
        assert discriminator(torch.rand(1, 3, *size)).shape == (1, 1, *logits)


def test_the_receptive_field_is_22_pixels() -> None:
    discriminator = PatchDiscriminator((8, 8), norm_first=False)
    for layer in discriminator.layers:
        if isinstance(layer, torch.nn.InstanceNorm2d):
            layer.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.rand(1, 3, 63, 84, requires_grad=True)
    discriminator(image)[0, 0, 5, 8].backward()
    assert image.grad is not None
    rows, cols = image.grad.abs().sum((0, 1)).nonzero().T
    assert (rows.max() - rows.min() + 1, cols.max() - cols.min() + 1) == (22, 22)


def test_augmentation_at_its_middle_is_the_identity() -> None:
    images, half = torch.rand(3, 3, 8, 9), torch.full((3, 1, 1, 1), 0.5)
    for change in (brightness, saturation, contrast):
        torch.testing.assert_close(change(images, half), images)
    torch.testing.assert_close(saturation(images, 0 * half), images.mean(1, keepdim=True).expand_as(images))


def test_cutout_blanks_at_most_a_half_and_gradients_pass() -> None:
    for size in ((8, 9), (7, 7)):
        shares = torch.rand(300, 2, generator=seeded())
        kept = cutout(torch.ones(300, 1, *size), shares)
        blank = 1 - kept
        assert (blank.amax((1, 3)).sum(-1) <= (size[0] + 1) // 2).all()
        assert (blank.amax((1, 2)).sum(-1) <= (size[1] + 1) // 2).all()
        assert blank.sum((1, 2, 3)).max() == ((size[0] + 1) // 2) * ((size[1] + 1) // 2)
    images = torch.rand(2, 3, 8, 9, requires_grad=True)
    diff_augment(images, seeded()).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    torch.testing.assert_close(diff_augment(images, seeded(3)), diff_augment(images, seeded(3)))
    torch.testing.assert_close(diff_augment(images, seeded(3), policy=""), images)
    with pytest.raises(ValueError, match="no augmentation"):
        diff_augment(images, policy="blur")


def test_patches() -> None:
    rows, cols = strided_patch(24, 32, (24, 32), 1, seeded())
    assert rows.dtype == cols.dtype == torch.int64
    assert rows.tolist() == list(range(24))
    assert cols.tolist() == list(range(32))
    generator = seeded()
    drawn = [strided_patch(24, 32, 4, 5, generator) for _ in range(4000)]
    first = torch.stack([rows[0] for rows, _ in drawn])
    assert all(rows.diff().unique().tolist() == [5] and rows[-1] < 24 and cols[-1] < 32 for rows, cols in drawn)
    counts = torch.bincount(first, minlength=9)  # 24 − 15 places, the last included
    assert len(counts) == 9
    assert ((counts - 4000 / 9) ** 2 / (4000 / 9)).sum() < 26.1  # χ² with 8 degrees of freedom, 0.1 %
    for bad in ((24, 32, 5, 6), (24, 32, (4, 12), 3)):
        with pytest.raises(ValueError, match="larger than the image"):
            strided_patch(*bad, seeded())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        strided_patch(24, 32, 4, 0, seeded())


def reference() -> Camera:
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # on the x axis, looking at the origin, z up
    pose[:3, 3] = (4, 0, 0)
    return Camera(np.diag([30.0, 30, 1]), pose, 8, 8)


@pytest.mark.parametrize("rng", [np.random.default_rng(0), torch.Generator().manual_seed(0)], ids=["numpy", "torch"])
def test_pose_priors(rng) -> None:  # type: ignore[no-untyped-def]
    ref = reference()
    orbit = OrbitGaussian(10.0)
    late = [orbit.sample(ref, 1.0, rng) for _ in range(300)]
    assert all(abs(np.linalg.norm(camera.origin) - 4) < 1e-9 for camera in late)
    # looking at the origin stays looking at the origin
    assert all(np.allclose(camera.project(np.zeros(3))[:2], ref.project(np.zeros(3))[:2]) for camera in late)
    early = [orbit.sample(ref, 0.0, rng) for _ in range(300)]
    spread = [np.std([np.arctan2(c.origin[1], c.origin[0]) for c in cameras]) for cameras in (early, late)]
    assert spread[1] == pytest.approx(np.radians(10), rel=0.15)
    assert spread[0] == pytest.approx(0.3 * spread[1], rel=0.2)
    table = OrbitGaussian((15.0, 6.0), axes="turntable")
    up = table.at(ref, (0.0, 0.2))
    assert up.origin[2] == pytest.approx(4 * math.sin(0.2))  # a positive elevation rises
    assert table.at(ref, (0.1, 0.0)).origin[1] == pytest.approx(4 * math.sin(0.1))
    shifts = np.array([TranslationGaussian((0.5, 0.0, 0.1)).sample(ref, 1.0, rng).origin - ref.origin for _ in range(300)])
    assert shifts[:, 1].std() == pytest.approx(0.5, rel=0.15)  # the camera's right is the world's y
    assert not shifts[:, 2].any()
    assert PoseList([up.c2w, up]).sample(ref, 0.5, rng).origin[2] == up.origin[2]
    with pytest.raises(ValueError, match="needs a pose"):
        PoseList([])
    with pytest.raises(ValueError, match="do not fit"):
        OrbitGaussian((1.0, 2.0))


MIRROR = np.diag([1.0, 1.0, -1.0, 1.0])
NOWHERE = np.full((4, 4), math.nan)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: OrbitGaussian(math.nan), "degrees must be finite and not negative, not nan"),
        (lambda: OrbitGaussian((1.0, math.inf, 1.0)), r"degrees must be finite and not negative, not \(1.0, inf, 1.0\)"),
        (lambda: OrbitGaussian(-1.0), "degrees must be finite and not negative, not -1.0"),
        (lambda: OrbitGaussian((1.0, 2.0)), r"degrees \(1.0, 2.0\) do not fit the axes world: one number, or 3, are needed"),
        (lambda: OrbitGaussian(1.0, axes="x"), "there are no axes 'x'; choose from world, turntable"),  # type: ignore[arg-type]
        (lambda: OrbitGaussian(1.0, (0.0, math.nan, 0.0)), r"center must be 3 finite numbers, not \(0.0, nan, 0.0\)"),
        (lambda: OrbitGaussian(1.0, (0.0, 0.0)), r"center must be 3 finite numbers, not \(0.0, 0.0\)"),  # type: ignore[arg-type]
        (lambda: TranslationGaussian((-1, 0, 0)), r"sigma must be finite and not negative, not \(-1, 0, 0\)"),
        (lambda: TranslationGaussian((math.nan, 0, 0)), r"sigma must be finite and not negative, not \(nan, 0, 0\)"),
        (lambda: TranslationGaussian((1.0, 0.0)), r"sigma must be 3 finite numbers, not \(1.0, 0.0\)"),  # type: ignore[arg-type]
        (lambda: TranslationGaussian(0.1), "sigma must be 3 finite numbers, not 0.1"),  # type: ignore[arg-type]
        (lambda: PoseList([np.eye(3)]), r"poses\[0\] must be \(4, 4\), not \(3, 3\)"),
        (
            lambda: PoseList([np.eye(4), 2 * np.eye(4)]),
            r"poses\[1\] holds no rotation: R·Rᵀ is off the identity by 3",
        ),
        (lambda: PoseList([reference(), MIRROR]), r"poses\[1\] holds no rotation"),
        (lambda: PoseList([NOWHERE]), r"poses\[0\] holds no rotation"),
    ],
)
def test_pose_priors_refuse_what_no_camera_can_follow(make, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"^{line}"):
        make()


def test_pose_priors_take_what_is_alike() -> None:
    assert OrbitGaussian([1, 0, 2], np.zeros(3)).spreads == (1, 0, 2)  # type: ignore[arg-type]
    assert TranslationGaussian([0, 0, 0]).sample(reference(), 1.0, np.random.default_rng(0)).origin[0] == 4  # type: ignore[arg-type]
    completed = PoseList(torch.eye(4)[None, :3]).sample(reference(), 0.0, np.random.default_rng(0))  # type: ignore[arg-type]
    assert completed.c2w.tolist() == np.eye(4).tolist()


def test_weights_must_not_be_negative() -> None:
    assert LossWeights() == LossWeights(rgb=1, depth=8, side=8, smooth=0, vit=0, adv=0, rgb_warp=0, cycle=0)
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^adv = \S+: input should be [^\n]+$"):
            LossWeights(adv=bad)
        with pytest.raises(ValueError, match=r"^adv = \S+: input should be [^\n]+$"):
            dataclasses.replace(LossWeights(), adv=bad)


def test_weights_are_a_frozen_dataclass() -> None:
    weights = LossWeights(1, 2, 3)
    assert weights == LossWeights(rgb=1, depth=2, side=3) == dataclasses.replace(LossWeights(), depth=2, side=3)
    assert len({weights, LossWeights(1, 2, 3), LossWeights()}) == 2
    names = [field.name for field in dataclasses.fields(weights)]
    assert names == list(dataclasses.asdict(weights)) == list(LossWeights.model_fields)
    assert dataclasses.astuple(LossWeights()) == (1, 8, 8, 0, 0, 0, 0, 0, 0, 0)
    assert weights.need_depth
    assert not dataclasses.replace(weights, depth=0, side=0).need_depth
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot set depth of LossWeights"):
        weights.depth = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="dept is not a setting of LossWeights; did you mean depth"):
        LossWeights(dept=1)  # type: ignore[call-arg]


def frozen(encoder: torch.nn.Module, size: int) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.train()
    assert not encoder.training
    image = torch.rand(2, 3, size, size, requires_grad=True)
    features = encoder(image)
    assert features.shape == (2, encoder.dim)
    (features**2).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_tiny_dino_learns_and_is_frozen() -> None:
    images = [torch.rand(3, 1, 1, generator=seeded(place)).expand(3, 96, 96).contiguous() for place in range(3)]
    torch.manual_seed(0)
    distiller = SelfDistiller(images, Distillation(batch=4))
    start = distiller.encoder()
    losses = [distiller.step(seeded(step)) for step in range(3)]
    assert all(map(math.isfinite, losses))
    encoder = distiller.encoder()
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), encoder.parameters(), strict=True))
    assert 0 <= nearest_neighbour_accuracy(encoder, distiller, 9, seeded()) <= 1
    frozen(encoder, 40)
    assert TinyDino().dim == 64


def test_descriptor_is_differentiable_and_sees_texture() -> None:
    encoder = Descriptor()
    image = torch.rand(2, 3, 12, 16, requires_grad=True)
    features = encoder(image)
    assert features.shape == (2, encoder.dim)
    features.sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert not torch.allclose(features[0], features[1])


@pytest.mark.slow
def test_dino_is_read_before_the_last_normalisation() -> None:
    encoder = TimmDino(pretrained=False)
    assert encoder.dim == 384
    frozen(encoder, 48)
    image = torch.rand(1, 3, 224, 224)
    plain = (image - encoder.mean) / encoder.std
    model = encoder.model
    with torch.no_grad():
        torch.testing.assert_close(model.norm(encoder(image)), model.forward_features(plain)[:, 0])  # type: ignore[operator]


def test_colours_of_a_warped_view_are_compared_where_they_are_known() -> None:
    seen = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.9, 0.9]])
    warped = torch.tensor([[0.3, 0.4, 0.4], [0.1, 0.1, 0.1]])
    depth = torch.tensor([1.0, 2.0])
    group = RayGroup(torch.zeros(2, 8), rgb=warped, depth=depth, valid=torch.tensor([True, False]))
    weights = torch.ones(2, 1)
    group.levels = [RenderedLevel(Composite(seen, depth, weights, torch.ones(2)), depth[:, None])]
    terms = Terms(LossWeights(rgb_warp=1.0))
    unseen_geometry(terms, group, None, Shape())  # type: ignore[arg-type]
    torch.testing.assert_close(terms.values["rgb_warp"], torch.tensor((0.01 + 0.0 + 0.04) / 3))


def test_points_are_compared_with_the_surface_of_their_own_pixel() -> None:
    # A camera at the origin that looks along −z, with another depth in each of its 2 × 3 pixels.
    camera = Camera(np.diag([2.0, 2.0, 1.0]) + np.array([[0, 0, 1.0], [0, 0, 0.5], [0, 0, 0]]), np.eye(4), 2, 3)
    depth = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    view = RGBDView(np.zeros((2, 3, 3), np.float32), depth, camera)
    reference = Reference(view, 0.1, 10.0, torch.device("cpu"))
    for index in range(6):
        rays = reference.rays[index : index + 1]
        in_front = in_front_of_reference(reference.depth[index : index + 1] - 0.25, rays, reference)
        torch.testing.assert_close(in_front, torch.tensor(0.25))
        behind = in_front_of_reference(reference.depth[index : index + 1] + 0.25, rays, reference)
        torch.testing.assert_close(behind, torch.tensor(0.0))
