"""Networks, their costs, dual norms, and mixing base networks into a model to deploy."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from atlas.methods.split_mix import (
    MLP,
    PGD,
    AlexNet,
    BatchNorm,
    DigitCNN,
    DualNorm,
    NormSpec,
    PreResNet18,
    SplitMix,
    complexity,
    network,
    post_statistics,
    set_norm_mode,
    set_robustness,
)
from atlas.methods.split_mix.networks import SmallCNN
from atlas.methods.split_mix.norms import dual_norms, norm_mode
from atlas.methods.split_mix.widths import base_count

TINY_RESNET = partial(PreResNet18, stages=(16, 32), depth=1)
DUAL = NormSpec("dual_bn", "tracked")


def warmed(factory, norm: NormSpec, seed: int = 0, **options) -> SplitMix:  # type: ignore[no-untyped-def]
    """A model whose norms are not trivial, in double precision."""
    model = SplitMix(factory, norm=norm, seed=seed, **options).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                if tensor is not None:
                    tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                if tensor is not None:
                    tensor.uniform_(-0.5, 0.5, generator=generator)
    return model


@pytest.mark.parametrize(
    ("factory", "shape", "width", "macs", "parameters"),
    [
        (DigitCNN, (3, 28, 28), 1.0, 47_767_552, 14_219_210),
        (DigitCNN, (3, 28, 28), 0.125, 1_158_528, 224_194),
        (SmallCNN, (3, 32, 32), 1.0, 10_323_200, 94_986),
        (PreResNet18, (3, 32, 32), 1.0, 555_422_720, 11_172_170),
        (PreResNet18, (3, 32, 32), 0.125, 8_872_576, 176_178),
        (AlexNet, (3, 256, 256), 1.0, 923_069_120, 57_063_498),
    ],
)
def test_costs_of_the_papers_networks(factory, shape, width: float, macs: int, parameters: int) -> None:  # type: ignore[no-untyped-def]
    found = complexity(factory(width), shape)
    assert (found.macs, found.parameters) == (macs, parameters)
    assert found.train_macs == 3 * macs


def test_thop_counts_biases_norms_and_pools_by_hand() -> None:
    # convolution 1→2, 3×3 on 4×4: 2·16 outputs × 9, and one per output for its bias; norm: 2 per element; adaptive pool to 3×3:
    # windows of ⌊4/3⌋² = 1 entry and a division, so 2 per output; linear 18→3: products alone, whatever its bias
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), BatchNorm(2), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 3), nn.BatchNorm1d(3)
    )
    assert complexity(net, (1, 4, 4)).macs == 32 * 9 + 54
    assert complexity(net, (1, 4, 4), style="thop").macs == 32 * 9 + 32 + 64 + 18 * 2 + 54 + 6
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3, bias=False)
    )
    assert complexity(plain, (1, 4, 4), style="thop").macs == 32 * 9 + 8 * (4 + 1) + 24
    with pytest.raises(ValueError, match="style must be mac or thop, not 'flop'"):
        complexity(net, (1, 4, 4), style="flop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factory", "shape", "extra"),
    [
        # one per output of a convolution with a bias, two per element of a norm
        (DigitCNN, (3, 28, 28), 3 * (64 * 28**2 + 64 * 14**2 + 128 * 7**2) + 2 * (2048 + 512)),
        # no biases; its pool is a function and no layer, which thop does not see
        (
            PreResNet18,
            (3, 32, 32),
            2 * (4 * 64 * 32**2 + (64 * 32**2 + 3 * 128 * 16**2) + (128 * 16**2 + 3 * 256 * 8**2) + 256 * 8**2 + 4 * 512 * 4**2),
        ),
        # and two per output of the pool from 7×7 to 6×6
        (
            AlexNet,
            (3, 256, 256),
            3 * (64 * 63**2 + 192 * 31**2 + (384 + 256 + 256) * 15**2) + 2 * 2 * 4096 + 2 * 256 * 6**2,
        ),
    ],
)
def test_thop_counts_of_the_papers_networks_by_hand(factory, shape, extra: int) -> None:  # type: ignore[no-untyped-def]
    net = factory(1.0)
    assert complexity(net, shape, style="thop").macs - complexity(net, shape).macs == extra


@pytest.mark.parametrize(
    ("factory", "shape", "one"),
    [(TINY_RESNET, (3, 8, 8), None), (DigitCNN, (3, 28, 28), 1_158_528), (MLP, (64,), 2_720)],
)
@pytest.mark.parametrize("style", ["mac", "thop"])
def test_mixed_model_costs_what_its_bases_cost(factory, shape, one, style: str) -> None:  # type: ignore[no-untyped-def]
    model = SplitMix(factory)
    base = complexity(model.customize(0.125), shape, style=style)  # type: ignore[arg-type]
    assert style == "thop" or one is None or base.macs == one
    for form in ("ensemble", "grouped"):
        mixed = complexity(model.customize(1.0, form=form), shape, style=style)  # type: ignore[arg-type]
        assert mixed.macs == 8 * base.macs
        shared_bias = 0 if form == "ensemble" else 7 * 10  # the merged classifier has one bias
        assert mixed.parameters == 8 * base.parameters - shared_bias


def test_a_mixed_model_without_groups_pays_for_its_zeros() -> None:
    model = SplitMix(TINY_RESNET)
    grouped, dense = (complexity(model.customize(1.0, form=form), (3, 8, 8)) for form in ("grouped", "dense"))  # type: ignore[arg-type]
    assert dense.macs > 5 * grouped.macs


def test_counting_leaves_every_mode_and_takes_any_layer() -> None:
    net = nn.Sequential(nn.ConvTranspose1d(1, 2, 3), nn.Dropout(), nn.Flatten()).train()
    net[1].eval()
    assert complexity(net, (1, 5)).macs == 5 * 3 * 2
    assert [module.training for module in net] == [True, False, True]


@pytest.mark.parametrize("atom", [0.0, -1.0, 1.5])
def test_atoms_must_be_widths(atom: float) -> None:
    with pytest.raises(ValueError, match=r"atom must be in \(0, 1\]"):
        SplitMix(MLP, atom=atom)


def test_channels_must_divide_and_the_layer_is_named() -> None:
    with pytest.raises(ValueError, match="hidden.1 has 12 channels, and 12 × 0.125 = 1.5"):
        SplitMix(partial(MLP, hidden=(16, 12)))


def test_factories_must_return_one_shape() -> None:
    sizes = iter([16, 8])

    def moody(width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> nn.Module:
        return MLP(width, norm=norm, hidden=(next(sizes, 16), 16))

    with pytest.raises(TypeError, match="different shapes for one width: hidden.0.weight"):
        SplitMix(moody, atom=0.5)


def test_floors_are_safe_against_rounding() -> None:
    assert base_count(0.375, 0.125) == 3
    assert base_count(0.3, 0.1) == 3
    assert SplitMix(MLP, max_width=0.5).n_base == 4


def test_initialisation_has_the_scale_of_the_wide_network() -> None:
    model, plain = SplitMix(MLP, seed=3), SplitMix(MLP, seed=3, rescale_init=False)
    for index, (fan_in, full) in enumerate(((64, 64), (32, 256))):
        bound, wide = 1 / math.sqrt(fan_in), 1 / math.sqrt(full)
        largest = max(float(base.hidden[index].weight.detach().abs().max()) for base in model.bases)
        assert largest <= wide
        assert largest > 0.95 * wide
        assert max(float(base.hidden[index].bias.detach().abs().max()) for base in model.bases) <= wide
        assert max(float(base.hidden[index].weight.detach().abs().max()) for base in plain.bases) <= bound
    assert torch.equal(model.bases[0].hidden[0].weight, plain.bases[0].hidden[0].weight)
    assert not torch.equal(model.bases[0].classifier.weight, model.bases[1].classifier.weight)


def test_a_zero_bias_stays_zero() -> None:
    assert all(float(base.classifier.bias.detach().abs().max()) == 0 for base in SplitMix(TINY_RESNET).bases)


@pytest.mark.parametrize("legacy_global", [False, True])
def test_initialisation_follows_the_seed_and_leaves_the_global_generator(legacy_global: bool) -> None:
    def careless(width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> nn.Module:
        return MLP(width, norm=norm, generator=None if legacy_global else generator)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (SplitMix(careless, atom=1.0, seed=seed) for seed in (1, 1, 2))
    if not legacy_global:
        assert torch.equal(before, torch.get_rng_state())
    weights = [model.bases[0].classifier.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


CASES = [
    (MLP, (64,), NormSpec()),
    (MLP, (1, 8, 8), DUAL),
    (TINY_RESNET, (3, 8, 8), NormSpec()),
    (TINY_RESNET, (3, 8, 8), DUAL),
    (DigitCNN, (3, 28, 28), NormSpec(stats="tracked")),
]


@pytest.mark.parametrize(("factory", "shape", "norm"), CASES)
def test_grouped_dense_and_ensemble_agree(factory, shape, norm: NormSpec) -> None:  # type: ignore[no-untyped-def]
    model = warmed(factory, norm)
    x = torch.rand(3, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    lam = 0.3 if norm.kind == "dual_bn" else None
    with torch.no_grad():
        expected = model(x, width=0.5, lam=lam)
        for form in ("ensemble", "grouped", "dense"):
            deployed = model.customize(0.5, lam=lam, form=form)  # type: ignore[arg-type]
            assert torch.allclose(deployed(x), expected, rtol=0, atol=1e-12)
            assert not deployed.training
            assert not any(parameter.requires_grad for parameter in deployed.parameters())


def test_mixtures_of_bases() -> None:
    model = warmed(MLP, NormSpec(stats="tracked"))
    x = torch.rand(4, 64, dtype=torch.double)
    with torch.no_grad():
        single = model.base_logits(x)
        assert single.shape == (8, 4, 10)
        assert torch.equal(model(x, width=0.125), single[0])
        assert torch.equal(model.customize(0.125)(x), single[0])
        chosen = model.customize(0.375, order=[6, 1, 4])(x)
        assert torch.allclose(chosen, single[[6, 1, 4]].mean(0), atol=1e-12)
        assert torch.allclose(chosen, model.customize(0.375, order=[4, 6, 1])(x), atol=1e-12)
        assert torch.equal(model.base_logits(x, [2, 0]), single[[2, 0]])
        for width, logits in model.all_widths(x).items():
            assert torch.allclose(logits, model.customize(width)(x), atol=1e-12)
        for base in model.bases:
            base.load_state_dict(model.bases[3].state_dict())
        assert torch.allclose(model.customize(1.0)(x), single[3], atol=1e-12)


def test_logits_are_averaged_not_probabilities() -> None:
    model = warmed(MLP, NormSpec(stats="tracked"))
    x = torch.rand(4, 64, dtype=torch.double)
    probabilities = model.base_logits(x).softmax(-1).mean(0)
    assert not torch.allclose(model(x).softmax(-1), probabilities, atol=1e-4)


def test_impossible_customisations() -> None:
    model = SplitMix(MLP, max_width=0.5)
    with pytest.raises(ValueError, match=r"width 0.75 is above the widest, 0.5"):
        model.customize(0.75)
    with pytest.raises(ValueError, match=r"width 0.1 holds no base network of width 0.125"):
        model(torch.rand(2, 64), width=0.1)
    with pytest.warns(UserWarning, match=r"0.3 is not a multiple of 0.125; 0.25 is used"):
        assert model.customize(0.3).classifier.in_features == 32
    with pytest.raises(ValueError, match="order must name at least 2 different base networks of 4"):
        model.customize(0.25, order=[1, 1])
    with pytest.raises(ValueError, match="form must be"):
        model.customize(0.25, form="wide")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no dual norm"):
        model.customize(0.25, lam=0.5)


def test_networks_that_cannot_be_merged_still_make_an_ensemble() -> None:
    class Odd(nn.Module):
        def __init__(self, width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, round(16 * width)), nn.LayerNorm(round(16 * width)), nn.ReLU())
            self.head = nn.Linear(round(16 * width), 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    model = SplitMix(Odd, atom=0.25)
    with pytest.raises(TypeError, match=r"body.1 \(LayerNorm\) holds weights and cannot be merged: use ensemble"):
        model.customize(1.0, form="grouped")
    x = torch.rand(2, 6)
    assert torch.allclose(model.customize(1.0)(x), model(x))
    assert torch.allclose(model.customize(1.0, form="ensemble")(x), model(x))


def test_layer_mix_at_the_ends_and_between() -> None:
    model = warmed(TINY_RESNET, DUAL, atom=1.0)
    x = torch.rand(3, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        ends = []
        for mode in ("clean", "noise"):
            set_norm_mode(model, mode)  # type: ignore[arg-type]
            ends.append(model(x))
        assert torch.equal(model(x, lam=0.0), ends[0])
        assert torch.equal(model(x, lam=1.0), ends[1])
        logit_mix = 0.5 * ends[0] + 0.5 * ends[1]
        assert not torch.allclose(model(x, lam=0.5), logit_mix, atol=1e-6)  # mixing layers is not mixing logits
        for norm in dual_norms(model):
            norm.noise.load_state_dict(norm.clean.state_dict())
        assert torch.allclose(model(x, lam=0.7), ends[0], atol=1e-12)


def test_one_dual_norm_is_affine_in_lam() -> None:
    norm = DualNorm(4, DUAL).double().eval()
    norm.noise.running_mean.fill_(2.0)
    norm.noise.weight.data.fill_(3.0)
    x = torch.rand(5, 4, dtype=torch.double)
    values = []
    for lam in (0.0, 0.25, 1.0):
        assert set_robustness(norm, lam) == 1
        values.append(norm(x))
    assert torch.allclose(values[1], 0.75 * values[0] + 0.25 * values[2], atol=1e-12)


def test_passes_touch_one_norm_only() -> None:
    model = SplitMix(MLP, norm=DUAL, atom=1.0)
    x = torch.rand(8, 64)
    for mode, other in (("clean", "noise"), ("noise", "clean")):
        before = [getattr(norm, other).state_dict() for norm in dual_norms(model)]
        before = [{name: tensor.clone() for name, tensor in state.items()} for state in before]
        set_norm_mode(model, mode)  # type: ignore[arg-type]
        model.train()(x).sum().backward()
        for norm, old in zip(dual_norms(model), before, strict=True):
            assert all(torch.equal(tensor, old[name]) for name, tensor in getattr(norm, other).state_dict().items())
            assert not torch.equal(getattr(norm, mode).running_mean, torch.zeros(len(norm.clean.weight)))
            assert getattr(norm, mode).weight.grad is not None
    model.zero_grad(set_to_none=True)
    model.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    PGD(0.1, 2)(model, x, torch.zeros(8, dtype=torch.long))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_of_single_modules_come_back() -> None:
    model = SplitMix(MLP, norm=DUAL, atom=1.0).train()
    frozen = dual_norms(model)[0].eval()
    set_norm_mode(frozen, "noise")
    with norm_mode(model, "clean", True):
        assert frozen.training
        assert frozen.mode == "clean"
    assert (frozen.training, frozen.clean.training, frozen.mode) == (False, False, "noise")
    assert model.training


def test_robustness_is_refused_where_it_means_nothing() -> None:
    model = SplitMix(MLP, norm=DUAL)
    with pytest.raises(RuntimeError, match="call eval"):
        set_robustness(model, 0.5)
    model.eval()
    for lam in (-0.1, 1.1, True):
        with pytest.raises(ValueError, match=r"lam must be a number in \[0, 1\]"):
            set_robustness(model, lam)
    assert set_robustness(model, 1) == 2 * 8
    with pytest.raises(RuntimeError, match="mode mix is for evaluation"):
        model.train()(torch.rand(4, 64))
    norm = DualNorm(2, DUAL).eval()
    norm.mode = "mix"
    with pytest.raises(RuntimeError, match="needs a lam"):
        norm(torch.rand(2, 2))
    with pytest.raises(RuntimeError, match="no dual norm"):
        set_robustness(MLP().eval(), 0.5)


def test_single_images_have_no_batch_statistics() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        MLP().eval()(torch.rand(1, 64))
    assert MLP(norm=NormSpec(stats="tracked")).eval()(torch.rand(1, 64)).shape == (1, 10)


def test_rescaled_layers_differ_by_eps_alone() -> None:
    x = torch.rand(16, 64, dtype=torch.double)

    def gap(eps: float) -> float:
        norm = NormSpec(eps=eps)
        plain = SplitMix(MLP, norm=norm).double().stack()
        scaled = SplitMix(MLP, norm=norm, rescale_layer=True).double().stack()
        from atlas.methods.split_mix import Runner

        outputs = [Runner(stack, 8, 1)(stack.tensors, x[None]) for stack in (plain, scaled)]
        return float((outputs[0] - outputs[1]).abs().max())

    assert 0 < gap(1e-5) < 1e-2
    assert gap(1e-12) < 1e-6 * gap(1e-5) + 1e-9
    with pytest.raises(ValueError, match="rescale_layer needs batch statistics"):
        SplitMix(MLP, norm=NormSpec(stats="tracked"), rescale_layer=True)


def test_post_statistics_are_means_over_batches() -> None:
    model = nn.Sequential(BatchNorm(3))
    batches = [torch.rand(8, 3) for _ in range(4)]
    post_statistics(model, batches, passes=2)
    mean = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    var = torch.stack([batch.var(0) for batch in batches]).mean(0)
    assert torch.allclose(model[0].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[0].running_var, var, atol=1e-6)
    assert not model.training
    assert model[0].momentum == 0.1
    with pytest.raises(ValueError, match="need batches"):
        post_statistics(model, [])


def test_networks_by_name() -> None:
    assert network("mlp", classes=4)(0.125, norm=NormSpec()).classifier.out_features == 4
    with pytest.raises(ValueError, match="no network vgg; choose from mlp"):
        network("vgg")


def test_attack_stays_in_ball_and_box_and_has_its_limits() -> None:
    x, y = torch.rand(6, 1, 8, 8), torch.randint(0, 10, (6,))
    model = SplitMix(MLP, norm=NormSpec(stats="tracked"), atom=1.0).eval()
    adversarial = PGD(0.1, 3)(model, x, y)
    assert float((adversarial - x).abs().max()) <= 0.1 + 1e-6
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    assert torch.equal(PGD(0.0, 3)(model, x, y), x)
    generator = torch.Generator().manual_seed(0)
    start = PGD(0.1, 0)(model, x, y, generator=generator)
    draw = (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1) * 0.1
    assert torch.allclose(start, (x + draw).clamp(0, 1), atol=1e-6)
    assert torch.equal(PGD(0.1, 0)(model, x, y, delta0=torch.zeros_like(x)), x)
    with pytest.raises(ValueError, match="outside the bounds"):
        PGD()(model, x + 1, y)
    for options in ({"eps": -1.0}, {"steps": -1}, {"lo": 1.0, "hi": 1.0}, {"step_size": 0.0}):
        with pytest.raises(ValueError, match="must be|is empty"):
            PGD(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 2.5}, "steps must be a whole number of at least 0, not 2.5"),
        ({"steps": -1}, "steps must be a whole number of at least 0, not -1"),
        ({"steps": math.nan}, "steps must be a whole number of at least 0, not nan"),
        ({"steps": math.inf}, "steps must be a whole number of at least 0, not inf"),
        ({"eps": math.inf}, "eps must be finite and at least 0, not inf"),
        ({"eps": math.nan}, "eps must be finite and at least 0, not nan"),
        ({"step_size": math.inf}, "step_size must be finite and above 0, not inf"),
        ({"lo": math.nan}, r"the box \[nan, 1.0\] is empty"),
    ],
)
def test_an_attack_that_cannot_be_made_is_refused(options: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        PGD(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["eps", "steps", "step_size", "lo", "hi"])
def test_an_attack_is_made_of_numbers(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number, not '8'$"):
        PGD(**{name: "8"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "x"}, "kind must be one of bn, dual_bn, film_bn, not 'x'"),
        ({"stats": "trakced"}, "stats must be one of batch, tracked, local, not 'trakced'"),
        ({"stats": "post"}, "stats must be one of batch, tracked, local, not 'post'"),
        ({"eps": -1e-5}, "eps must be finite and at least 0, not -1e-05"),
        ({"eps": math.nan}, "eps must be finite and at least 0, not nan"),
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], not 1.5"),
        ({"momentum": math.nan}, r"momentum must lie in \[0, 1\], not nan"),
    ],
)
def test_a_norm_that_there_is_not_is_refused_when_it_is_specified(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        NormSpec(**options)


def test_default_step_size_and_the_linear_case() -> None:
    assert PGD().step == pytest.approx(10 / 255 / 7)
    assert PGD(2 / 255).step == pytest.approx(2.5 / 255 / 7)
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.2, 1.0, 3.0]])
    x = torch.full((4, 3), 0.5)
    y = torch.tensor([0, 1, 0, 1])
    adversarial = PGD(0.1, 1, step_size=0.2)(lambda inputs: inputs @ weight.T, x, y)
    expected = x + 0.1 * torch.sign(weight[1 - y] - weight[y])
    assert torch.allclose(adversarial, expected, atol=1e-7)
