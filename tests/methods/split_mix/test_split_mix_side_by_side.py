"""Networks that work across channels without weights: side by side they would mix, and must give each one's own numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.split_mix import (
    MLP,
    PGD,
    Client,
    ClientBatches,
    FedTrainer,
    NormSpec,
    ParamStack,
    PreResNet18,
    SplitMix,
    by_width,
    local_train,
)
from atlas.methods.split_mix.export import Ensemble
from atlas.methods.split_mix.networks import WidthFactory

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 10
TINY_RESNET = partial(PreResNet18, stages=(8, 16), depth=1, channels=1)
CLIENTS = [Client(IMAGES[:20], LABELS[:20], 1.0), Client(IMAGES[20:], LABELS[20:], 0.5)]


class Mixing(nn.Module):
    """Two linear layers with an operation between them, or at either end."""

    def __init__(self, between: Callable[[Tensor], Tensor], before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Linear(64, 64), nn.Linear(64, 10)
        self.before, self.between, self.after = before, between, after

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.before is None else self.before(x.flatten(1))
        x = self.classifier(self.between(torch.relu(self.hidden(x))))
        return x if self.after is None else self.after(x)


def convolutional(mixing: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), mixing, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "normalize": lambda: Mixing(lambda x: 5 * functional.normalize(x, dim=1)),
    "mean gate": lambda: Mixing(lambda x: x * x.mean(1, keepdim=True)),
    "softmax": lambda: Mixing(nn.Softmax(1)),
    "image": lambda: Mixing(nn.Identity(), before=lambda x: functional.normalize(x, dim=1)),
    "log_softmax": lambda: Mixing(nn.Identity(), after=nn.LogSoftmax(1)),
    "local response": lambda: convolutional(nn.LocalResponseNorm(5)),
    "softmax2d": lambda: convolutional(nn.Softmax2d()),
    "shuffle": lambda: convolutional(nn.ChannelShuffle(2)),
    "dropout and normalize": lambda: Mixing(lambda x: functional.normalize(x, dim=1), after=nn.Dropout(0.0)),
}


class Gated(nn.Module):
    """A gated linear unit, by the contract of factories."""

    def __init__(self, width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        size = round(32 * width)
        self.hidden, self.classifier = nn.Linear(64, 2 * size), nn.Linear(size, 10)
        self.gate = nn.GLU(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.gate(self.hidden(x.flatten(1))))


def fitted(method: str, network: Any, execution: str = "auto", **options: Any) -> Any:
    made = FedTrainer(
        method,  # type: ignore[arg-type]
        copy.deepcopy(network),
        rounds=2,
        lr=0.1,
        atom=0.25,
        widths=(0.5, 1.0),
        execution=execution,  # type: ignore[arg-type]
        **options,
    )
    return made.fit(CLIENTS, progress=False).model


def close(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("name", [*NETWORKS, "glu"])
def test_split_mix_trains_and_merges_them(name: str) -> None:
    network = Gated if name == "glu" else NETWORKS[name]()
    auto, alone = (fitted("split-mix", network, execution) for execution in ("auto", "sequential"))
    close(auto, alone)
    expected = auto(IMAGES, width=0.5)
    assert torch.allclose(auto.customize(0.5)(IMAGES), expected, atol=1e-5)
    if name != "image":  # one image goes to all of a merged network
        for form in ("grouped", "dense"):
            with pytest.raises(TypeError, match="across channels.*use ensemble"):
                auto.customize(0.5, form=form)
    with pytest.raises(TypeError, match="across channels.*execution"):
        fitted("split-mix", network, "grouped")


@pytest.mark.parametrize("method", ["fedavg", "heterofl", "sheterofl"])
@pytest.mark.parametrize("name", ["normalize", "mean gate"])
def test_prefixes_train_with_them(method: str, name: str) -> None:
    people = ("auto", "sequential")
    close(*(fitted(method, NETWORKS[name](), execution, batch_size=5) for execution in people))
    with pytest.raises(TypeError, match="across channels.*execution"):
        fitted(method, NETWORKS[name](), "grouped")


def test_local_training_with_them() -> None:
    stack = SplitMix(by_width(NETWORKS["mean gate"], IMAGES), atom=0.5).stack()
    data = ClientBatches([IMAGES], [LABELS], 8, [0], owners=[0, 0])

    def trained(execution: str) -> ParamStack:
        return local_train(stack, data, lr=0.1, epochs=1, execution=execution)  # type: ignore[arg-type]

    auto, alone = trained("auto"), trained("sequential")
    for name, tensor in auto.tensors.items():
        assert torch.allclose(tensor, alone.tensors[name], rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match="across channels"):
        trained("grouped")


def test_a_trial_changes_nothing() -> None:
    """Neither the network nor a generator: a network with dropout, statistics and a count of its passes."""

    class Counted(nn.Sequential):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            Counted.passes += 1
            return super().forward(x)

    network = Counted(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))
    model = SplitMix(by_width(network, IMAGES), atom=0.5, norm=NormSpec(stats="tracked"))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    assert not isinstance(model.customize(1.0), Ensemble)
    tried = Counted.passes
    assert not isinstance(model.customize(1.0), Ensemble)
    assert Counted.passes == tried  # once per model
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_without_an_example_a_network_of_images_is_tried_on_usual_sizes() -> None:
    class Sized(nn.Module):
        def __init__(self, width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> None:
            super().__init__()
            self.size = round(8 * width)
            self.convolution = nn.Conv2d(2, self.size, 3, padding=1)
            self.classifier = nn.Linear(self.size * side * side, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(torch.relu(self.convolution(x)).flatten(1))

    side = 28
    assert not isinstance(SplitMix(Sized, atom=0.5).customize(1.0), Ensemble)
    side = 13
    unknown, known = SplitMix(Sized, atom=0.5), SplitMix(Sized, atom=0.5, example=torch.rand(2, 2, 13, 13))
    assert isinstance(unknown.customize(1.0), Ensemble)
    with pytest.raises(TypeError, match="example"):
        unknown.customize(1.0, form="grouped")
    x = torch.rand(3, 2, 13, 13)
    merged = known.customize(1.0)
    assert not isinstance(merged, Ensemble)
    assert torch.allclose(merged(x), unknown(x), atol=1e-5)


@pytest.mark.parametrize("norm", [NormSpec(), NormSpec("dual_bn", "tracked"), NormSpec("film_bn", "tracked", lams=(0.0, 1.0))])
@pytest.mark.parametrize("network", [MLP, TINY_RESNET])
@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_networks_that_do_not_mix_stay_grouped(method: str, network: WidthFactory, norm: NormSpec) -> None:
    attack = PGD(0.1, 1) if norm.tracked else None
    trainer = FedTrainer(method, network, rounds=1, atom=0.25, norm=norm, adversary=attack)  # type: ignore[arg-type]
    assert trainer.start(CLIENTS).server.execution == "auto"
    replace(trainer, execution="grouped").start(CLIENTS)
    if method == "split-mix":
        assert not isinstance(trainer.model().customize(1.0), Ensemble)  # type: ignore[operator]
