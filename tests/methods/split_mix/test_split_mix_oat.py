"""Once-for-all adversarial training in a federation: a network that is told λ, sample by sample."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from atlas.methods.split_mix.adversary import PGD
from atlas.methods.split_mix.clients import Client
from atlas.methods.split_mix.federation import FedTrainer
from atlas.methods.split_mix.local import ClientBatches, LocalOptions, local_train
from atlas.methods.split_mix.networks import network
from atlas.methods.split_mix.norms import (
    CODE,
    BatchNorm,
    ConditionalNorm,
    NormSpec,
    codes,
    conditioned,
    set_robustness,
    zero_samples,
)
from atlas.methods.split_mix.stacks import ParamStack, Runner

LAMS = (0.0, 0.2, 0.5, 1.0)
SPEC = NormSpec("film_bn", "tracked", lams=LAMS)


def net(seed: int = 0) -> nn.Module:
    factory = network("mlp", inputs=6, hidden=(8, 6), classes=3)
    return factory(1.0, norm=SPEC, generator=torch.Generator().manual_seed(seed))


def norm() -> ConditionalNorm:
    torch.manual_seed(0)
    made = ConditionalNorm(4, SPEC)
    for part in (made.clean, made.noise):
        part.running_mean.normal_()  # type: ignore[union-attr]
        part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return made


def test_codes_are_orthonormal_and_the_same_in_every_process() -> None:
    rows = codes(5)
    assert torch.allclose(rows @ rows.T, torch.eye(5), atol=1e-6)
    assert rows.shape == (5, CODE)
    with pytest.raises(ValueError, match="129 trade-offs"):
        codes(129)


@pytest.mark.parametrize("lams", [(), (0.0,), (0.1, 1.0), (0.0, 0.5, 0.2), (0.0, 1.5)])
def test_trade_offs_ascend_from_zero(lams: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend from 0"):
        NormSpec("film_bn", "tracked", lams=lams)


def test_a_norm_is_film_of_the_batch_norm_of_lambda() -> None:
    layer, x = norm().eval(), torch.randn(5, 4, 3, 3)
    for index, lam in enumerate(LAMS):
        layer.mode, layer.lam = "mix", lam
        code = codes(len(LAMS))[index]
        hidden = functional.leaky_relu(layer.embed(code))
        scale = functional.leaky_relu(1 + layer.scale(hidden))[:, None, None]
        shift = functional.leaky_relu(layer.shift(hidden))[:, None, None]
        normal = (layer.clean if lam == 0 else layer.noise)(x)
        assert torch.allclose(layer(x), normal * scale + shift, atol=1e-5)
    layer.mode = "clean"
    clean = layer(x)
    layer.mode, layer.lam = "mix", 0.0
    assert torch.equal(layer(x), clean)
    layer.lam = 0.3
    with pytest.raises(ValueError, match="lam 0.3 was not trained: choose from 0, 0.2, 0.5, 1"):
        layer(x)


def test_every_sample_has_a_trade_off_of_its_own() -> None:
    layer, x = norm(), torch.randn(6, 4)
    choices = torch.tensor([0, 0, 3, 1, 2, 1])
    with conditioned(layer, choices, 2, False):
        mixed = layer(x)
    layer.eval()
    layer.mode = "mix"
    for row, index in enumerate(choices.tolist()):
        layer.lam = LAMS[index]
        assert torch.allclose(layer(x[row : row + 1]), mixed[row : row + 1], atol=1e-6)
    assert layer.choices is None


def test_clean_samples_move_clean_statistics_alone() -> None:
    layer, x = norm(), torch.randn(6, 4)
    before = [copy.deepcopy(part) for part in (layer.clean, layer.noise)]
    with conditioned(layer, torch.tensor([0, 0, 0, 1, 2, 3]), 3, True):
        layer(x)
    for part, old, rows in ((layer.clean, before[0], x[:3]), (layer.noise, before[1], x[3:])):
        old.train()
        old(rows)
        assert torch.allclose(part.running_mean, old.running_mean)  # type: ignore[arg-type]


def test_every_trade_off_has_its_share_of_a_batch() -> None:
    assert [zero_samples(batch, 5) for batch in (128, 16, 5, 4, 3, 2)] == [26, 4, 2, 2, 0, 0]


def batches(clients: int = 2) -> ClientBatches:
    random = torch.Generator().manual_seed(3)
    inputs = [torch.rand(16, 6, generator=random) for _ in range(clients)]
    labels = [torch.randint(0, 3, (16,), generator=random) for _ in range(clients)]
    return ClientBatches(inputs, labels, 8, list(range(clients)))


@pytest.mark.parametrize("loss", ["ce", "masked_ce"])
def test_networks_side_by_side_train_as_each_alone(loss: Any) -> None:
    stack = ParamStack.of([net(0), net(1)])
    options = {"lr": 0.1, "epochs": 2, "loss": loss, "adversary": PGD(0.1, 2)}
    grouped, alone = (local_train(stack, batches(), execution=how, **options) for how in ("grouped", "sequential"))  # type: ignore[arg-type]
    for name, tensor in grouped.tensors.items():
        assert torch.allclose(tensor, alone.tensors[name], atol=1e-5), name
    assert not torch.allclose(grouped.tensors["norms.0.embed.weight"], stack.tensors["norms.0.embed.weight"])
    assert not torch.equal(grouped.tensors["hidden.0.weight"][0], grouped.tensors["hidden.0.weight"][1])


def test_the_loss_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 − λ) · clean + λ · attacked, each sample with its λ; an attack that does nothing leaves the cross-entropy."""
    from atlas.methods.split_mix import local

    data = batches(1)
    stack = ParamStack.of([net()])
    runner = Runner(stack, 1, 1, "grouped")
    x, y = next(data.steps(1))
    choices = torch.tensor([[1, 2, 3, 1, 2, 3]])
    monkeypatch.setattr(local._Noise, "choices", lambda self, *arguments: choices)
    options = LocalOptions(lr=0.1, adversary=PGD(0.0, 1))
    found = local._loss(local.Pass(runner), stack.tensors, x, y, torch.tensor([0]), options, local._Noise(data))
    model = net().train()
    weight = torch.tensor(LAMS)[torch.cat((torch.zeros(1, 2, dtype=torch.long), choices), 1)[0]]
    with conditioned(model, torch.cat((torch.zeros(2, dtype=torch.long), choices[0])), 2, True):
        clean = functional.cross_entropy(model(x[0]), y[0], reduction="none")
    with conditioned(model, choices[0], 0, True):
        robust = functional.cross_entropy(model(x[0, 2:]), y[0, 2:], reduction="none")
    expected = (((1 - weight) * clean).sum() + (weight[2:] * robust).sum()) / 8
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_federation_learns_one_network_for_all_trade_offs() -> None:
    random = torch.Generator().manual_seed(5)
    centres = torch.rand(3, 6, generator=random)
    clients = []
    for _ in range(3):
        labels = torch.randint(0, 3, (48,), generator=random)
        inputs = (centres[labels] + 0.1 * torch.randn(48, 6, generator=random)).clamp(0, 1)
        clients.append(Client(inputs, labels, 1.0))
    trainer = FedTrainer(
        "fedavg",
        network("mlp", inputs=6, hidden=(16, 8), classes=3),
        rounds=25,
        epochs=2,
        batch_size=16,
        lr=0.1,
        norm=SPEC,
        adversary=PGD(0.05, 2),
        rescale_init=False,
        seed=0,
    )
    result = trainer.fit(clients)
    inputs, labels = torch.cat([one.inputs for one in clients]), torch.cat([one.labels for one in clients])
    model = result.model.customize(1.0, lam=0.0)
    outputs = []
    for lam in LAMS:
        set_robustness(model, lam)
        outputs.append(model(inputs))
        assert (outputs[-1].argmax(1) == labels).float().mean() > 0.9
    assert not torch.allclose(outputs[0], outputs[-1])
    assert sum(isinstance(module, BatchNorm) for module in model.modules()) == 4


def test_without_choices_a_mode_asks_for_its_own_trade_off() -> None:
    made, x = norm().eval(), torch.randn(3, 4)
    answers = {}
    for index, mode in ((0, "clean"), (len(LAMS) - 1, "noise")):
        made.mode = mode
        answers[mode] = made(x)
        made.choices, made.zeros = torch.full((3,), index), 3 if index == 0 else 0
        torch.testing.assert_close(answers[mode], made(x), rtol=0, atol=0)
        made.choices, made.zeros = None, 0
    assert not torch.equal(answers["clean"], answers["noise"])


def test_a_new_norm_holds_no_sample_for_clean_until_it_is_told() -> None:
    made = norm().eval()
    assert made.choices is None
    assert made.zeros == 0
