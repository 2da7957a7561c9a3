"""AttnScale by weights, on the narrow layers of SAM 2's Hiera, whose tokens come on a grid: the formula, bits at 0, cost."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from timm.models.hieradet_sam2 import MultiScaleAttention
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atlas.methods.anti_oversmoothing import apply_attnscale, remove_scales, rewriting, scale_parameters
from atlas.methods.anti_oversmoothing.scaling import ScaledQKV
from atlas.methods.anti_oversmoothing.textbook import textbook_attnscale
from atlas.nn.anatomy import attention_sites
from atlas.nn.families import Look, small_model

PATCHES = {"HieraDet": 4, "Hiera": 4, "Twins": 16, "VisionTransformer": 16}


def small(kind: str = "HieraDet", name: str = "sam2_hiera_tiny", dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """A small model, by default with windows, pooled queries and one attention over the whole map; and images."""
    return small_model(name, Look(kind, "", PATCHES[kind], 0), dtype)


def drawn(treated: nn.Module) -> dict[str, Tensor]:
    """Give every scale of a model random values, and return copies by the path of the attention, which ask for gradients."""
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for scale in scale_parameters(treated).values():
            scale.copy_(1.2 * torch.rand(scale.shape, generator=random) - 0.4)
    scales = scale_parameters(treated).items()
    return {name.removesuffix(".qkv.omega"): scale.detach().double().requires_grad_() for name, scale in scales}


def narrow(model: Any) -> list[bool]:
    return [site.values.narrow for site in attention_sites(apply_attnscale(model))]


def test_layers_are_narrow_by_their_inputs_and_only_on_a_grid_that_comes_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [site.values.in_features for site in attention_sites(small()[0])]
    assert narrow(small()[0]) == [True] * len(inputs)
    monkeypatch.setattr(rewriting, "NARROW", 32)
    assert narrow(small()[0]) == [count <= 32 for count in inputs]
    assert max(inputs) > 32
    for kind, name in (
        ("Twins", "twins_svt_small"),
        ("Hiera", "hiera_tiny_224"),
        ("VisionTransformer", "deit_tiny_patch16_224"),
    ):
        assert not any(narrow(small(kind, name)[0]))


@pytest.mark.parametrize("limit", [0, 32, rewriting.NARROW])
def test_outputs_and_all_gradients_are_those_of_explicit_maps(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "NARROW", limit)
    plain, images = small()
    treated = apply_attnscale(copy.deepcopy(plain))
    omegas = drawn(treated)
    with textbook_attnscale(plain, omegas):
        expected = plain(images)
        expected.square().sum().backward()
    found = treated(images)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert float((found - plain(images)).detach().abs().max()) > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(treated(images), expected, rtol=1e-9, atol=1e-9)
    gradients = {name: parameter.grad for name, parameter in treated.named_parameters()}
    for path, omega in omegas.items():
        assert bool((omega.grad != 0).all())
        torch.testing.assert_close(gradients[f"{path}.qkv.omega"], omega.grad, rtol=1e-8, atol=1e-9)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-9)


def test_a_mean_is_over_a_window_and_its_padding() -> None:
    """Windows at the edge of a map are filled with zeros, which attention sees as tokens: so the mean counts them."""
    torch.manual_seed(0)
    attention = MultiScaleAttention(8, 16, 2).double()
    tokens = torch.randn(3, 4, 4, 8, dtype=torch.float64)
    tokens[2, :, 2:] = 0
    values = attention.qkv(tokens)[..., 32:]
    layer = ScaledQKV.of(attention.qkv, {"omega": (2, 0.7)}, value_dim=8, axes=(-3, -2), narrow=True)
    expected = values + 0.7 * (values - values.mean((1, 2), keepdim=True))
    torch.testing.assert_close(layer(tokens)[..., 32:], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_at_zero_no_bit_changes(dtype: torch.dtype, mixed: bool, gradients: bool) -> None:
    plain, images = small(dtype=dtype)
    treated = apply_attnscale(copy.deepcopy(plain))
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
        assert torch.equal(treated(images), plain(images))


@pytest.mark.parametrize("mixed", [True, False])
def test_half_precision_is_close_to_the_formula_and_trains_the_scales(mixed: bool) -> None:
    plain, images = small()
    treated = apply_attnscale(copy.deepcopy(plain).to(torch.float32 if mixed else torch.bfloat16))
    omegas = drawn(treated)
    with textbook_attnscale(plain, omegas):
        expected = plain(images)
        expected.square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
        found = treated(images.to(torch.float32 if mixed else torch.bfloat16))
    found.double().square().sum().backward()
    assert float((found - expected).detach().abs().max()) <= 0.05 * (1 + float(expected.detach().abs().max()))
    scales = list(scale_parameters(treated).values())
    assert [scale.grad.dtype for scale in scales] == [scale.dtype for scale in scales]
    wanted = torch.cat([omega.grad for omega in omegas.values()])
    assert float((torch.cat([scale.grad for scale in scales]) - wanted).norm() / wanted.norm()) < 0.1


def test_the_way_back_restores_the_layers() -> None:
    plain, images = small()
    treated = remove_scales(apply_attnscale(copy.deepcopy(plain)))
    assert [type(module) for module in treated.modules()] == [type(module) for module in plain.modules()]
    assert not any(hasattr(module, "narrow") for module in treated.modules())
    assert list(treated.state_dict()) == list(plain.state_dict())
    assert torch.equal(treated(images), plain(images))


class Written(TorchDispatchMode):
    """Counts the numbers that operations write, but for matrix products."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and not function.is_view and function not in PRODUCTS:
            self.numbers += output.numel()
        return output


PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def test_a_narrow_layer_writes_less_than_half_of_what_its_values_would_take() -> None:
    """Beside the plain layer, forward and backward, for each of the n·C numbers that come in."""
    tokens = torch.randn(64, 8, 8, 96, requires_grad=True)

    def written(layer: nn.Module) -> float:
        with Written() as count:
            layer(tokens).sum().backward()
        return count.numbers / tokens.numel()

    plain = nn.Linear(96, 288)
    options: dict[str, Any] = {"value_dim": 96, "axes": (-3, -2)}
    by_values = ScaledQKV.of(copy.deepcopy(plain), {"omega": (1, 0.3)}, **options)
    by_weights = ScaledQKV.of(copy.deepcopy(plain), {"omega": (1, 0.3)}, narrow=True, **options)
    base = written(plain)
    assert written(by_weights) - base < 7 < 14 < written(by_values) - base
