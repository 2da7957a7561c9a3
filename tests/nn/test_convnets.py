"""Networks for small images: published sizes, shapes, and clear refusals; and costs under masks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from atlas.methods.split_mix.networks import PreActivationBlock
from atlas.methods.split_mix.norms import NormSpec
from atlas.nn.convnets import MLP, VGG, Normalise, PreActBlock, PreActResNet, SmallConvNet, WideResNet
from atlas.nn.counts import parameter_count
from atlas.nn.sparse_costs import EpochCost, flops, training_flops


def on_meta(build):  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        return build()


def test_published_sizes() -> None:
    resnet, vgg = on_meta(lambda: PreActResNet(10)), on_meta(lambda: VGG(10))
    assert parameter_count(resnet) == 11_172_170
    assert sum(p.numel() for p in resnet.parameters() if p.ndim in (2, 4)) == 11_164_352
    assert flops(resnet, (3, 32, 32)).dense_macs == 555_422_720
    assert flops(vgg, (3, 32, 32)).dense_macs == 313_201_664
    assert parameter_count(on_meta(lambda: WideResNet(10))) == 46_160_474


@pytest.mark.parametrize(("scale", "share"), [(0.223, 0.05), (0.316, 0.1), (0.448, 0.2), (0.775, 0.6), (0.895, 0.8)])
def test_scales_of_small_dense_networks(scale: float, share: float) -> None:
    small = parameter_count(on_meta(lambda: PreActResNet(10, scale=scale)))
    assert small / 11_172_170 == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (PreActResNet(7, 3, scale=0.05), (3, 16, 16)),
        (PreActResNet(7, 3, scale=0.05), (3, 64, 64)),
        (VGG(7, scale=0.05), (3, 32, 32)),
        (WideResNet(7, depth=10, widening=1), (3, 32, 32)),
        (MLP(7, 64, (12, 12)), (1, 8, 8)),
        (SmallConvNet(7, 1, (4, 6)), (1, 8, 8)),
    ],
)
def test_shapes(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("model", [VGG(3, scale=0.02), WideResNet(3, depth=10, widening=1)])
def test_networks_for_one_size_say_so(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="takes 32 × 32 pixels, not 64 × 64"):
        model(torch.rand(1, 3, 64, 64))


def test_a_block_by_hand() -> None:
    """The shortcut of a block that changes shape acts on the activated input; one that does not is the input itself."""
    block = PreActResNet(2, blocks=(1, 1, 1, 1), scale=0.125).eval().blocks
    x = torch.randn(1, 8, 8, 8)
    same = block[0]
    active = same.bn1(x).relu()
    torch.testing.assert_close(same(x), x + same.conv2(same.bn2(same.conv1(active)).relu()))
    changing = block[1]
    active = changing.bn1(x).relu()
    torch.testing.assert_close(
        changing(x), changing.shortcut(active) + changing.conv2(changing.bn2(changing.conv1(active)).relu())
    )


def test_normalise() -> None:
    x = torch.rand(2, 3, 4, 4)
    found = Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(x)
    torch.testing.assert_close(found[:, 2], (x[:, 2] - 0.3) / 4)
    assert not Normalise((0.5,), (0.5,)).state_dict()
    with pytest.raises(ValueError, match="mean and std"):
        Normalise((0.5,), (0.0,))


def test_wide_resnet_refuses_other_depths() -> None:
    with pytest.raises(ValueError, match="6n \\+ 4"):
        WideResNet(10, depth=33)


def test_costs_under_masks() -> None:
    model = SmallConvNet(5, 1, (4, 6))
    dense = flops(model, (1, 8, 8))
    assert dense.dense_per_layer == {"0.weight": 4 * 9 * 64, "3.weight": 6 * 4 * 9 * 64, "9.weight": 30}
    assert dense.ratio == 1
    assert dense.dense == 2 * dense.dense_macs
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim in (2, 4)}
    half = {name: (torch.arange(weight.numel()) % 2 == 0).view(weight.shape) for name, weight in weights.items()}
    assert flops(model, (1, 8, 8), half).ratio == 0.5
    last = {"9.weight": torch.arange(30).view(5, 6) < 10}
    found = flops(model, (1, 8, 8), last)
    assert found.per_layer == {**dense.dense_per_layer, "9.weight": 10}
    assert found.macs == dense.macs - 20
    with pytest.raises(KeyError, match="nothing.weight"):
        flops(model, (1, 8, 8), {"nothing.weight": torch.ones(1)})
    assert model.training


def test_training_costs_by_hand() -> None:
    epochs = [EpochCost(100, 10.0, 50.0), EpochCost(100, 8.0, 50.0, grown_examples=4)]
    assert training_flops(epochs, 10) == 23 * 100 * (10 + 8) + (50 - 8) * 4
    assert training_flops(epochs, 10, convention="paper") == 33 * 100 * 8 * 2  # the whole run at its final density
    first = EpochCost(100, 50.0, 50.0, attack_steps=0)
    assert training_flops([first, *epochs], 10) == 3 * 100 * 50 + training_flops(epochs, 10)
    assert training_flops([first, *epochs], 10, "paper") == 3 * 100 * 50 + training_flops(epochs, 10, "paper")
    assert training_flops([{"examples": 100, "flops": 10.0}], 10) == 23_000
    # the paper's table: 33 · 260.07e9 · 45,000 · 200 = 772.41e17
    paper = training_flops([EpochCost(45_000, 260_072_013_824)] * 200, 10, "paper")
    assert paper == pytest.approx(772.41e17, rel=1e-4)
    with pytest.raises(ValueError, match="convention"):
        training_flops(epochs, 10, convention="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attack_steps"):
        training_flops(epochs, -1)


TRAINS_NARROW = """
from atlas.harness.kernels import hold_kernels

hold_kernels()
import torch
from torch import nn
from atlas.methods.split_mix.networks import PreResNet18
from atlas.nn.convnets import PreActResNet, WideResNet

torch.manual_seed(0)
for network in (PreActResNet(10, 3, scale=0.0625), PreResNet18(0.0625), WideResNet(10, 3, depth=10, widening=0.25)):
    network.to(memory_format=torch.channels_last)
    for _ in range(8):
        images = torch.rand(64, 3, 32, 32).to(memory_format=torch.channels_last)
        nn.functional.cross_entropy(network(images), torch.arange(64) % 10).backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
"""


def test_narrow_networks_train_with_the_kernels_of_a_study() -> None:
    """Projections of fewer than eight channels crashed the process: in one of its own, a crash is a failure like others."""
    done = subprocess.run([sys.executable, "-c", TRAINS_NARROW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("inputs", [3, 7, 8])
def test_a_narrow_projection_is_the_same_convolution(inputs: int) -> None:
    for block in (PreActBlock(inputs, 16, 2), PreActivationBlock(inputs, 16, 2, NormSpec())):
        block.double()
        images = torch.randn(2, inputs, 9, 10, dtype=torch.float64)
        active = functional.relu((block.bn1 if isinstance(block, PreActBlock) else block.norm1)(images))
        seen = []
        block.shortcut.register_forward_hook(lambda *call: seen.append(call[2]))  # noqa: B023
        block(images)
        torch.testing.assert_close(seen[0], functional.conv2d(active, block.shortcut.weight, stride=2))
