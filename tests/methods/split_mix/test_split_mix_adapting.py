"""Ordinary networks as networks of any width: sizes by the rule, roles by what depends on what, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from atlas.methods.split_mix import MLP, Client, FedTrainer, NormSpec, PrefixModel, SplitMix, by_width
from atlas.methods.split_mix.widths import layer_roles

IMAGES = torch.rand(6, 1, 8, 8)


def plain() -> nn.Module:
    """A CNN as anybody writes one."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """A residual block with a shortcut of its own, and depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(1, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - 0.5
        out = self.norm(self.depthwise(self.stem(centred))).relu() + self.shortcut(centred)
        return self.head(out.mean((2, 3)))


class Viewed(nn.Module):
    """A network whose forward writes a size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 512))


def test_hidden_channels_shrink_and_the_ends_stay() -> None:
    made = by_width(plain(), IMAGES)(0.25, norm=NormSpec())
    shapes = [tuple(layer.weight.shape) for layer in made if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert shapes == [(4, 1, 3, 3), (8, 4, 3, 3), (16, 32), (10, 16)]
    assert made(IMAGES).shape == (6, 10)


def test_roles_are_those_told_from_two_widths() -> None:
    factory = by_width(Residual, IMAGES)
    told = layer_roles(factory(0.25, norm=NormSpec()), factory(1.0, norm=NormSpec()))
    assert told == {name: role for name, role in factory.roles.items() if name != "norm"}
    narrow = factory(0.25, norm=NormSpec())
    assert narrow.depthwise.groups == narrow.stem.out_channels == 4
    assert narrow.shortcut.in_channels == 1
    assert narrow.head.out_features == 3


def test_draws_follow_from_the_generator() -> None:
    factory = by_width(plain, IMAGES)
    first, second = (factory(0.5, norm=NormSpec(), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["split-mix", "sheterofl", "fedavg"])
@pytest.mark.parametrize("network", [plain, plain(), Residual], ids=["function", "module", "class"])
def test_a_federation_trains_an_ordinary_network(method: str, network: Callable[[], nn.Module]) -> None:
    labels = torch.arange(6) % 3
    options = {"rounds": 2, "batch_size": 3, "lr": 0.05, "atom": 0.25, "widths": (0.25, 1.0)}
    clients = [Client(IMAGES, labels, 1.0), Client(IMAGES, labels, 0.25)]
    results = {}
    for execution in ("auto", "sequential"):
        trainer = FedTrainer(method, network, execution=execution, **options)  # type: ignore[arg-type]
        model = trainer.fit(clients).model
        results[execution] = model.customize(1.0)(IMAGES)
    assert torch.allclose(results["auto"], results["sequential"], atol=1e-4)
    if method != "fedavg":
        narrow = model.customize(0.25)
        assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in model.customize(1.0).parameters())


def test_merged_networks_compute_the_mean_of_the_bases() -> None:
    model = SplitMix(by_width(Residual, IMAGES), atom=0.25)
    grouped, ensemble = (model.customize(1.0, form=form)(IMAGES) for form in ("grouped", "ensemble"))  # type: ignore[arg-type]
    assert torch.allclose(grouped, ensemble, atol=1e-5)


def test_data_in_every_form() -> None:
    labels = torch.arange(6) % 3
    dataset = TensorDataset(IMAGES, labels)
    clients = [
        Client(IMAGES.numpy(), labels.numpy()),
        Client(dataset, budget=0.5),
        Client(DataLoader(dataset, batch_size=2), budget=0.25),
        Client([(np.asarray(image), int(label)) for image, label in dataset]),
    ]
    for client in clients:
        assert torch.equal(client.inputs, IMAGES)
        assert torch.equal(client.labels, labels)
    with pytest.raises(TypeError, match="a client's inputs is a str; a tensor or a NumPy array is needed"):
        Client("images", labels)


def test_what_cannot_be_made_for_a_width() -> None:
    with pytest.raises(TypeError, match=r"0 \(LayerNorm\) holds weights of its own.*norm=NormSpec\(\), generator=None"):
        by_width(nn.Sequential(nn.LayerNorm(8), nn.Flatten(), nn.Linear(64, 10)), IMAGES)
    with pytest.raises(TypeError, match=r"does its forward write sizes, as x\.view\(-1, 400\) does\? x\.flatten\(1\) fits"):
        by_width(Viewed, IMAGES)(0.5, norm=NormSpec())
    with pytest.raises(TypeError, match="calls what makes the network without arguments"):
        by_width(nn.Linear, IMAGES)
    with pytest.raises(TypeError, match="needs a network or what makes one, not a str"):
        by_width("resnet", IMAGES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the network cannot read an example of the shape \(2, 1, 8, 8\)"):
        by_width(nn.Sequential(nn.Linear(3, 4)), IMAGES)
    with pytest.raises(ValueError, match="0 has 16 channels, and 16 × 0.3"):
        by_width(plain, IMAGES)(0.3, norm=NormSpec())


@pytest.mark.parametrize("make", [lambda: SplitMix(plain), lambda: PrefixModel(plain)])  # type: ignore[arg-type]
def test_a_model_without_data_says_how_a_network_is_adapted(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"plain makes no networks of a width: .*by_width\(make, example\) adapts one"):
        make()


def test_what_takes_a_width_is_left_alone() -> None:
    trainer = FedTrainer("split-mix", MLP, rounds=1)
    trainer.start([Client(torch.rand(4, 64), torch.arange(4))])
    assert trainer.factory is MLP
    with pytest.raises(TypeError, match="the network is a str: a network is made by"):
        FedTrainer("split-mix", "mlp", rounds=1)
