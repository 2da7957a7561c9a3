"""Length, curvature and kernel condition against identities, closed forms and brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.special import ellipe
from torch import Tensor, nn

from atlas.methods.as_vit import (
    Circle,
    MeasureSpec,
    Scorer,
    SearchSpace,
    Topology,
    build,
    condition_number,
    extrinsic_curvature,
    great_circle,
    length_distortion,
    length_law,
    measure,
    ntk_gram,
    without_norm,
)
from atlas.methods.as_vit.geometry import points_on, speeds
from atlas.methods.as_vit.measures import length_of

SHAPE = (3, 4, 5)
SIZE = math.prod(SHAPE)
SEED = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]
DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def circle(n: int = 10, **options: object) -> Circle:
    return great_circle(SHAPE, n, generator=generator(1), dtype=DOUBLE, **options)  # type: ignore[arg-type]


def linear(matrix: Tensor):  # type: ignore[no-untyped-def]
    return lambda x: x.flatten(1) @ matrix.T


def isometry(rows: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, SIZE, generator=generator(), dtype=DOUBLE))[0]


def tiny(dtype: torch.dtype = DOUBLE, side: int = 32, width: int = 8, chans: int = 1) -> nn.Module:
    model = build(SEED, width=width, img_size=side, in_chans=chans, num_classes=4, generator=generator())
    return model.to(dtype).eval()


# the circle


@pytest.mark.parametrize(("scale", "radius"), [("unit", 1.0), ("sqrt_dim", math.sqrt(SIZE))])
def test_circle_lies_in_an_orthonormal_plane(scale: str, radius: float) -> None:
    drawn = circle(7, scale=scale)
    assert drawn.x.shape == drawn.dx.shape == (7, *SHAPE)
    torch.testing.assert_close(drawn.x.flatten(1).norm(dim=1), torch.full((7,), radius, dtype=DOUBLE))
    torch.testing.assert_close((drawn.x * drawn.dx).flatten(1).sum(1), torch.zeros(7, dtype=DOUBLE))
    plane = drawn.basis.flatten(1) / radius
    torch.testing.assert_close(plane @ plane.T, torch.eye(2, dtype=DOUBLE))


def test_circle_with_end_point_repeats_the_first() -> None:
    closed, open_ = circle(), circle(endpoint=False)
    torch.testing.assert_close(closed.x[0], closed.x[-1])
    assert closed.closed
    assert not open_.closed
    assert float(closed.theta[-1]) == pytest.approx(2 * math.pi)
    assert float(open_.theta[-1]) == pytest.approx(1.8 * math.pi)
    found = speeds(linear(torch.randn(6, SIZE, dtype=DOUBLE)), closed.x, closed.dx)
    torch.testing.assert_close(found[0], found[-1])


def test_speeds_of_layers_are_those_of_forward_mode_in_torch() -> None:
    draw = generator()
    convolution, layer = nn.Conv2d(3, 4, 3, stride=2, padding=1).double(), nn.Linear(4 * 2 * 3, 6).double()
    drawn = great_circle(SHAPE, 5, generator=draw, dtype=DOUBLE)

    def network(x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(convolution(x)).flatten(1)
        return layer(hidden).tanh()

    def own_weights(x: Tensor) -> Tensor:  # layers whose weights, or bias, move with the point
        weight = x.flatten(1).mean(0).expand(2, SIZE)
        return torch.nn.functional.linear(x.flatten(1), weight, bias=weight[:, 0]) + x.flatten(1)[:, :2]

    for fn in (network, own_weights):
        wanted = torch.func.jvp(fn, (drawn.x,), (drawn.dx,))[1].norm(dim=1)
        torch.testing.assert_close(speeds(fn, drawn.x, drawn.dx), wanted.detach(), rtol=1e-12, atol=0)
    assert speeds(lambda x: torch.ones(len(x), 2, dtype=DOUBLE), drawn.x, drawn.dx).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [((3, 4, 4), {"n": 2}, "at least 3"), ((1, 1, 1), {}, "at least 2"), ((3, 4, 4), {"scale": "big"}, "scale 'big'")],
)
def test_circle_refuses_bad_arguments(shape: tuple[int, int, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        great_circle(shape, generator=generator(), **options)  # type: ignore[arg-type]


# length


def test_isometry_has_unit_speed_and_curvature() -> None:
    fn = linear(isometry(SIZE + 9))
    drawn = circle()
    assert length_distortion(fn, drawn) == pytest.approx(10, rel=1e-12)
    assert length_distortion(fn, drawn, "mean") == pytest.approx(1, rel=1e-12)
    assert length_distortion(fn, drawn, "length") == pytest.approx(2 * math.pi, rel=1e-12)
    torch.testing.assert_close(extrinsic_curvature(fn, drawn.basis, drawn.theta), torch.ones(10, dtype=DOUBLE))


def curved(x: Tensor) -> Tensor:
    weight = torch.randn(7, SIZE, generator=generator(5), dtype=DOUBLE)
    return torch.tanh(3 * x.flatten(1) @ weight.T)


def test_scaling_the_output_scales_length_and_divides_curvature() -> None:
    drawn = circle()
    plain, scaled = curved, lambda x: 5 * curved(x)
    assert length_distortion(scaled, drawn) == pytest.approx(5 * length_distortion(plain, drawn), rel=1e-12)
    before = extrinsic_curvature(plain, drawn.basis, drawn.theta)
    torch.testing.assert_close(extrinsic_curvature(scaled, drawn.basis, drawn.theta), before / 5)


def test_shifts_and_rotations_of_the_output_change_nothing() -> None:
    drawn = circle()
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator(2), dtype=DOUBLE))[0]
    for fn in (lambda x: curved(x) + 3, lambda x: curved(x) @ rotation):
        assert length_distortion(fn, drawn) == pytest.approx(length_distortion(curved, drawn), rel=1e-10)
        torch.testing.assert_close(
            extrinsic_curvature(fn, drawn.basis, drawn.theta), extrinsic_curvature(curved, drawn.basis, drawn.theta)
        )


def test_linear_map_makes_an_ellipse_of_known_length_and_curvature() -> None:
    drawn = circle(256, endpoint=False)
    for seed in range(20):
        matrix = torch.randn(6, SIZE, generator=generator(seed), dtype=DOUBLE)
        a, b = torch.linalg.svdvals(matrix @ drawn.basis.flatten(1).T).tolist()
        if b / a > 0.3:
            break
    assert b / a > 0.3
    expected = 4 * a * ellipe(1 - (b / a) ** 2)
    assert length_distortion(linear(matrix), drawn, "length") == pytest.approx(expected, rel=1e-10)
    g = speeds(linear(matrix), drawn.x, drawn.dx)
    torch.testing.assert_close(extrinsic_curvature(linear(matrix), drawn.basis, drawn.theta), a * b / g**3)


def test_speed_equals_central_differences_and_the_full_jacobian() -> None:
    model = tiny()
    drawn = great_circle((1, 32, 32), 5, generator=generator(1), dtype=DOUBLE)
    with without_norm(model):
        found = speeds(model.features, drawn.x, drawn.dx)
        step = 1e-4
        ahead, behind = (points_on(drawn.basis, drawn.theta + sign * step)[0] for sign in (1, -1))
        with torch.no_grad():
            differences = (model.features(ahead) - model.features(behind)).norm(dim=1) / (2 * step)
        torch.testing.assert_close(found, differences, rtol=1e-6, atol=0)
        for index in range(2):
            point = drawn.x[index : index + 1]
            jacobian = torch.autograd.functional.jacobian(model.features, point).reshape(model.num_features, -1)
            torch.testing.assert_close((jacobian @ drawn.dx[index].flatten()).norm(), found[index])


def test_curvature_equals_second_differences() -> None:
    drawn = circle(8, endpoint=False)
    step = 1e-3

    def at(shift: float) -> Tensor:
        return curved(points_on(drawn.basis, drawn.theta + shift)[0])

    v = (at(step) - at(-step)) / (2 * step)
    a = (at(step) - 2 * at(0) + at(-step)) / step**2
    gram = (v * v).sum(1) * (a * a).sum(1) - (v * a).sum(1) ** 2
    expected = gram.clamp_min(0).sqrt() / (v * v).sum(1) ** 1.5
    torch.testing.assert_close(extrinsic_curvature(curved, drawn.basis, drawn.theta), expected, rtol=1e-4, atol=1e-6)


def test_curvature_of_a_straight_image_is_zero_not_nan() -> None:
    line = torch.zeros(3, SIZE, dtype=DOUBLE)
    line[0] = circle().basis[0].flatten()
    theta = torch.linspace(0.3, 2.5, 5, dtype=DOUBLE)
    found = extrinsic_curvature(linear(line), circle().basis, theta)
    assert bool((found >= 0).all())
    assert bool((found < 1e-6).all())


def test_curvature_takes_columns_for_functions_of_vectors() -> None:
    drawn = circle(6)
    columns = drawn.basis.flatten(1).T
    torch.testing.assert_close(
        extrinsic_curvature(curved, columns, drawn.theta), extrinsic_curvature(curved, drawn.basis, drawn.theta)
    )


def test_curvature_takes_a_plane_of_images_as_rows_or_as_columns() -> None:
    drawn = circle(6)
    columns = drawn.basis.movedim(0, -1)
    assert torch.equal(extrinsic_curvature(curved, columns, drawn.theta), extrinsic_curvature(curved, drawn.basis, drawn.theta))


def test_radicand_of_the_curvature_obeys_cauchy_and_schwarz() -> None:
    drawn = circle(9)
    weight = torch.randn(7, SIZE, generator=generator(5), dtype=DOUBLE)
    for scale in (1e-3, 1.0, 3.0):

        def fn(x: Tensor, scale: float = scale) -> Tensor:
            return torch.tanh(scale * x.flatten(1) @ weight.T)

        def along(theta: Tensor, fn=fn) -> Tensor:  # type: ignore[no-untyped-def]
            return fn(points_on(drawn.basis, theta[None])[0])[0]

        velocity = torch.func.jacfwd(along)
        v = torch.stack([velocity(theta) for theta in drawn.theta])
        a = torch.stack([torch.func.jacfwd(velocity)(theta) for theta in drawn.theta])
        vv, aa, va = (v * v).sum(1), (a * a).sum(1), (v * a).sum(1)
        assert bool((vv * aa - va**2 >= -1e-12 * vv * aa).all())
        expected = (vv * aa - va**2).clamp_min(0).sqrt() / vv**1.5
        torch.testing.assert_close(extrinsic_curvature(fn, drawn.basis, drawn.theta), expected, rtol=1e-7, atol=0)


def test_splitting_the_batch_changes_nothing() -> None:
    model = tiny()
    drawn = great_circle((1, 32, 32), generator=generator(), dtype=DOUBLE)
    with without_norm(model):
        whole = length_distortion(model.features, drawn)
        assert length_distortion(model.features, drawn, chunk=3) == pytest.approx(whole, rel=1e-12)


def test_rotation_in_the_plane_leaves_the_length() -> None:
    drawn = circle(64, endpoint=False)
    turned = Circle(
        drawn.theta, *points_on(torch.stack(points_on(drawn.basis, torch.tensor([0.7], dtype=DOUBLE)))[:, 0], drawn.theta)
    )
    assert length_distortion(curved, turned, "length") == pytest.approx(length_distortion(curved, drawn, "length"), rel=1e-6)


def test_length_refuses_dependent_points_few_points_and_unknown_reductions() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(SIZE)).double()
    with pytest.raises(ValueError, match="BatchNorm in training mode"):
        length_distortion(model, circle())
    with pytest.raises(ValueError, match="BatchNorm in training mode"):
        length_distortion(model.forward, circle())
    length_distortion(model.eval(), circle())
    with pytest.raises(ValueError, match="reduction 'max'"):
        length_distortion(curved, circle(), "max")  # type: ignore[arg-type]
    two = Circle(*(part[:2] for part in (circle().theta, circle().x, circle().dx)))
    with pytest.raises(ValueError, match="at least 3"):
        length_distortion(curved, two)


# normalisation off


def test_without_norm_restores_the_same_objects_even_after_an_error() -> None:
    model = tiny()
    before = dict(model.named_modules())
    images = torch.randn(2, 1, 32, 32, dtype=DOUBLE)
    expected = model(images)

    def fail() -> None:
        with without_norm(model):
            assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    after = dict(model.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(model(images), expected)


# the closed form


def test_length_follows_the_closed_form_at_224_pixels() -> None:
    topology = SearchSpace.official().sample(generator(4))
    model = build(topology, generator=generator(0)).eval()
    drawn = great_circle((3, 224, 224), 3, generator=generator(0))
    with without_norm(model):
        ratio = length_distortion(model.features, drawn, "mean") / length_law(topology)
    assert 0.8 < ratio < 1.2


def test_closed_form_constant() -> None:
    assert length_law(SEED) == pytest.approx(1.393e-5 * 64, rel=1e-3)


def test_length_grows_with_the_square_of_the_width_and_ignores_the_rest() -> None:
    def length(text: str, width: int, depths: tuple[int, ...] = (1, 1, 1, 1)) -> float:
        topology = Topology.parse(text)[0]
        found = []
        for seed in range(6):
            model = build(topology, width=width, depths=depths, img_size=64, in_chans=1, generator=generator(seed)).eval()
            found.append(length_of(model, great_circle((1, 64, 64), generator=generator(seed))))
        return sum(found) / len(found)

    plain = "8,2,2|2,1,2|2,1,2|2,1,2|16"
    base = length(plain, 8)
    assert length(plain, 16) / base == pytest.approx(4, rel=0.25)
    assert length(plain, 8, (2, 1, 3, 1)) / base == pytest.approx(1, rel=0.2)
    assert length("5,8,6|2,4,5|2,2,3|2,1,6|64", 8) / base == pytest.approx(1, rel=0.2)
    assert length("8,2,2|4,1,2|2,1,2|2,1,2|16", 8) / base == pytest.approx(2, rel=0.25)


# the kernel


def brute_force_gram(model: nn.Module, feature, images: Tensor, params: str) -> Tensor:  # type: ignore[no-untyped-def]
    named = [(n, p) for n, p in model.named_parameters() if params == "all" or n.rpartition(".")[2] == "weight"]
    rows = []
    for image in images:
        gradients = torch.autograd.grad(feature(image[None]).sum(), [p for _, p in named], allow_unused=True)
        rows.append(
            torch.cat(
                [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, (_, p) in zip(gradients, named, strict=True)]
            )
        )
    stacked = torch.stack(rows).double()
    return stacked @ stacked.T


@pytest.mark.parametrize("params", ["weights", "all"])
def test_gram_equals_one_backward_pass_per_image(params: str) -> None:
    model = build(SEED, width=8, img_size=32, in_chans=1, depths=(1, 2, 1, 1), pos_embed="absolute", generator=generator())
    model = model.double().eval()
    images = torch.randn(4, 1, 32, 32, generator=generator(3), dtype=DOUBLE)
    expected = brute_force_gram(model, model.features, images, params)
    torch.testing.assert_close(ntk_gram(model, images, params=params), expected, rtol=1e-10, atol=0)  # type: ignore[arg-type]


def test_gram_of_other_modules_and_of_parameters_outside_layers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1, dilation=2, stride=2)
            self.grouped = nn.Conv2d(3, 3, 1, groups=3)
            self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0]))
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.grouped(self.conv(x))).flatten(2).mean(2) * self.scale

    torch.manual_seed(0)
    model = Odd().double()
    images = torch.randn(5, 2, 6, 6, dtype=DOUBLE)
    for params in ("weights", "all"):
        found = ntk_gram(model, images, params=params)  # type: ignore[arg-type]
        torch.testing.assert_close(found, brute_force_gram(model, model, images, params), rtol=1e-10, atol=1e-14)


def test_gram_of_layers_that_compute_something_else_than_their_base_class() -> None:
    """A projection that rewrites its values, and a norm over the channels of images."""
    from timm.layers import LayerNorm2d
    from timm.models.vision_transformer import VisionTransformer

    from atlas.methods.anti_oversmoothing import apply_attnscale

    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    scaled = apply_attnscale(VisionTransformer(**sizes, weight_init="jax"), init=0.7)  # type: ignore[arg-type]
    nn.init.normal_(scaled.head.weight)  # type: ignore[arg-type]
    normed = nn.Sequential(nn.Conv2d(1, 8, 1), LayerNorm2d(8), nn.Tanh(), nn.Flatten())
    images = torch.randn(3, 1, 8, 8, dtype=DOUBLE)
    for model in (scaled.double().eval(), normed.double()):
        for params in ("weights", "all"):
            found = ntk_gram(model, images, params=params)  # type: ignore[arg-type]
            torch.testing.assert_close(found, brute_force_gram(model, model, images, params), rtol=1e-9, atol=1e-12)


def test_gram_sums_the_calls_of_a_shared_layer() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4).double()
    model = nn.Sequential(nn.Flatten(), shared, nn.Tanh(), shared)
    images = torch.randn(3, 1, 2, 2, dtype=DOUBLE)
    torch.testing.assert_close(ntk_gram(model, images, params="all"), brute_force_gram(model, model, images, "all"))


def test_gram_is_symmetric_positive_and_follows_the_order_of_images() -> None:
    model = tiny(torch.float32)
    images = torch.randn(6, 1, 32, 32, generator=generator(3))
    gram = ntk_gram(model, images)
    assert gram.dtype == DOUBLE
    assert torch.equal(gram, gram.T)
    assert float(torch.linalg.eigvalsh(gram)[0]) > 0
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = ntk_gram(model, images[order])
    torch.testing.assert_close(shuffled, gram[order][:, order], rtol=1e-4, atol=0)
    assert condition_number(shuffled) == pytest.approx(condition_number(gram), rel=1e-3)
    assert condition_number(gram) >= 1


def test_gram_leaves_no_gradients_or_hooks() -> None:
    model = tiny()
    ntk_gram(model, torch.randn(2, 1, 32, 32, dtype=DOUBLE))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_condition_number_of_linear_models_with_known_answers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    orthonormal = torch.eye(4, dtype=DOUBLE)[:3].reshape(3, 1, 2, 2)
    torch.testing.assert_close(ntk_gram(model, orthonormal), 3 * torch.eye(3, dtype=DOUBLE))
    assert condition_number(ntk_gram(model, orthonormal)) == pytest.approx(1)
    stretched = torch.stack([orthonormal[0], 2 * orthonormal[1]])
    assert condition_number(ntk_gram(model, stretched)) == pytest.approx(4)


def test_scaling_the_features_leaves_the_condition_number() -> None:
    model = tiny()
    images = torch.randn(4, 1, 32, 32, generator=generator(3), dtype=DOUBLE)
    plain = condition_number(ntk_gram(model, images))
    assert condition_number(ntk_gram(model, images, feature=lambda x: 7 * model.features(x))) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_equal_images_give_infinity_and_a_warning(dtype: torch.dtype) -> None:
    images = torch.randn(5, 1, 32, 32, dtype=dtype, generator=generator())
    images[-1] = images[1]
    gram = ntk_gram(tiny(dtype), images)
    for computed_in in (None, dtype):
        with pytest.warns(UserWarning, match="two images"):
            assert condition_number(gram, computed_in=computed_in) == math.inf
    assert condition_number(torch.full((2, 2), math.nan)) == math.inf


def noisy_gram(vectors: torch.Tensor, relative: float, seed: int) -> torch.Tensor:
    """The Gram matrix of vectors (n, size) as a processor gives it that rounds every component a little differently."""
    noise = torch.randn(vectors.shape, generator=generator(seed), dtype=DOUBLE)
    rounded = vectors * (1 + relative * noise)
    return rounded @ rounded.T


@pytest.mark.parametrize(("dtype", "ulps"), [(DOUBLE, 0.0), (DOUBLE, 4.0), (torch.float32, 1.0), (torch.float32, 16.0)])
@pytest.mark.parametrize("size", [20, 3000])
def test_equal_images_are_found_whatever_the_rounding_of_the_processor(dtype: torch.dtype, ulps: float, size: int) -> None:
    """Equal images at different places of a batch are summed in other orders; their gradients then differ by rounding."""
    vectors = torch.randn(6, size, generator=generator(), dtype=DOUBLE)
    vectors[4] = vectors[2]
    for seed in range(20):
        gram = noisy_gram(vectors, ulps * torch.finfo(dtype).eps, seed)
        with pytest.warns(UserWarning, match="two images"):
            assert condition_number(gram) == math.inf


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_dependent_images_are_singular_to_the_rounding_of_the_network(dtype: torch.dtype) -> None:
    """One image's gradient is the sum of two others': no two are equal, and the smallest eigenvalue is noise."""
    vectors = torch.randn(6, 3000, generator=generator(), dtype=DOUBLE)
    vectors[4] = vectors[2] + vectors[3]
    eps = torch.finfo(dtype).eps
    for seed in range(20):
        noise = torch.randn(6, 6, generator=generator(seed), dtype=DOUBLE)
        gram = vectors @ vectors.T * (1 + eps * (noise + noise.T) / 2)
        assert condition_number(gram, computed_in=dtype) == math.inf


@pytest.mark.parametrize(("dtype", "largest"), [(DOUBLE, 1e12), (torch.float32, 1e5)])
def test_conditions_above_the_rounding_are_numbers(dtype: torch.dtype, largest: float) -> None:
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator(), dtype=DOUBLE)).Q
    for condition in (1.0, 150.0, largest):
        gram = basis @ torch.diag(torch.tensor([1.0, 0.5, 0.3, 1 / condition], dtype=DOUBLE).clamp_max(1.0)) @ basis.T
        expected = max(1 / 0.3, condition)
        assert condition_number(gram, computed_in=dtype) == pytest.approx(expected, rel=1e-3)
        assert condition_number(gram) == pytest.approx(expected, rel=1e-3)


def test_a_matrix_in_single_precision_is_judged_by_its_own_precision() -> None:
    gram = torch.diag(torch.tensor([1.0, 1.0, 1e-8], dtype=DOUBLE))
    assert condition_number(gram) == pytest.approx(1e8)
    assert condition_number(gram.float()) == condition_number(gram, computed_in=torch.float32) == math.inf


def test_measures_judge_the_kernel_by_the_precision_of_the_images() -> None:
    """A network whose features hardly depend on the third image: a number in double precision, noise in single precision."""

    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.out = nn.Flatten(), nn.Linear(4, 2, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.out(self.flat(images))

    images = torch.diag(torch.tensor([1.0, 1.0, 1e-4, 0.0], dtype=DOUBLE))[:3].reshape(3, 1, 2, 2)
    found = {
        dtype: measure(Faint, MeasureSpec(repeats=1, points=3, images=images.to(dtype)), generator()).ntk
        for dtype in (DOUBLE, torch.float32)
    }
    assert found == {DOUBLE: pytest.approx(1e8), torch.float32: math.inf}


def test_kernel_refuses_bad_arguments() -> None:
    model = tiny()
    images = torch.randn(2, 1, 32, 32, dtype=DOUBLE)
    with pytest.raises(ValueError, match="at least 2 images"):
        ntk_gram(model, images[:1])
    with pytest.raises(ValueError, match="params 'biases'"):
        ntk_gram(model, images, params="biases")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 is a BatchNorm in training mode"):
        ntk_gram(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024)).double(), images)
    with pytest.raises(ValueError, match="receives a gradient"):
        ntk_gram(nn.Sequential(nn.Flatten()), images)


# both measures


def spec(**options: object) -> MeasureSpec:
    return MeasureSpec(images=torch.randn(4, 1, 32, 32, generator=generator(9)), **{"repeats": 2, "points": 4, **options})  # type: ignore[arg-type]


def test_measures_average_their_repeats_and_are_reproducible() -> None:
    def make() -> nn.Module:
        return build(SEED, width=8, img_size=32, in_chans=1)

    state = torch.get_rng_state()
    first, second = (measure(make, spec(), generator(2)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second
    lengths, kernels = zip(*first.per_repeat, strict=True)
    assert first.length == pytest.approx(sum(lengths) / 2)
    assert first.ntk == pytest.approx(sum(kernels) / 2)
    assert lengths[0] != lengths[1]
    assert measure(make, spec(), generator(3)) != first


def test_linear_redraw_keeps_the_stem_of_the_first_repeat() -> None:
    stems = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = build(SEED, width=8, img_size=32, in_chans=1)

        def features(self, x: Tensor) -> Tensor:
            stems.append((self.network.stem.proj.weight.detach().clone(), self.network.head.hidden.weight.detach().clone()))
            return self.network.features(x)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[operator]

    Spy.forward = forward  # type: ignore[method-assign]
    measure(Spy, spec(redraw="linear"), generator())
    assert torch.equal(stems[0][0], stems[-1][0])
    assert not torch.equal(stems[0][1], stems[-1][1])


def test_scores_depend_on_the_candidate_alone_not_on_order_or_neighbours() -> None:
    topologies = [SearchSpace.official().sample(generator(seed)) for seed in range(3)]
    forwards, backwards = Scorer(spec(repeats=1), 0, width=8), Scorer(spec(repeats=1), 0, width=8)
    found = {t: forwards(t) for t in topologies}
    assert {t: backwards(t) for t in reversed(topologies)} == found
    assert Scorer(spec(repeats=1), 1, width=8)(topologies[0]) != found[topologies[0]]
    assert forwards(topologies[0]) is found[topologies[0]]


def test_a_scorer_with_one_thing_changed_measures_anew() -> None:
    topology = SearchSpace.official().sample(generator())
    first = Scorer(spec(repeats=1), 0, width=8)
    found = first(topology)
    changes: list[dict[str, Any]] = [{"seed": 1}, {"spec": spec(repeats=2)}, {"options": {"depths": (1, 2, 1, 1)}}]
    for change in changes:
        other = replace(first, **change)
        assert other(topology) == Scorer(**{"spec": first.spec, "seed": 0, "width": 8, **change})(topology) != found
    assert first(topology) is found


def test_measure_spec_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="repeats 0"):
        spec(repeats=0)
    with pytest.raises(ValueError, match="at least 2 images"):
        MeasureSpec(images=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="at least 2 images, not 0"):
        MeasureSpec()


def test_a_plane_needs_two_vectors() -> None:
    with pytest.raises(ValueError, match=r"a basis of shape \(3, 4\) does not hold two vectors"):
        extrinsic_curvature(lambda points: points.flatten(1), torch.ones(3, 4), torch.linspace(0, 6, 5))


def test_a_closed_circle_counts_its_first_point_once() -> None:
    fn, drawn = linear(torch.randn(7, SIZE, generator=generator(5), dtype=DOUBLE)), circle()
    assert drawn.closed
    every = speeds(fn, drawn.x, drawn.dx)
    assert length_distortion(fn, drawn, "length") == pytest.approx(2 * math.pi * float(every[:-1].mean()), rel=1e-12)
    assert float(every[:-1].mean()) != pytest.approx(float(every.mean()), rel=1e-6)


def test_a_plane_that_may_be_rows_or_columns_is_refused() -> None:
    theta = torch.linspace(0, 6, 5, dtype=DOUBLE)
    with pytest.raises(ValueError, match="rows or columns"):
        extrinsic_curvature(lambda x: x.flatten(1), torch.randn(2, 3, 3, 2, dtype=DOUBLE), theta)
    columns = torch.linalg.qr(torch.randn(6, 2, dtype=DOUBLE)).Q
    rows = extrinsic_curvature(lambda x: x, columns.T.contiguous(), theta)
    torch.testing.assert_close(extrinsic_curvature(lambda x: x, columns, theta), rows)
