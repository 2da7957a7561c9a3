"""Local training, aggregation and rounds: what must be equal is equal, and interrupted is uninterrupted."""

from __future__ import annotations

import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
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
    Slicer,
    SplitMix,
    average_bases,
    budgets,
    local_train,
    masked_cross_entropy,
    prefix_average,
)
from atlas.methods.split_mix.local import batch_sizes, client_seed
from atlas.nn.meter import LiveMemory

SMALL = partial(MLP, inputs=6, hidden=(16, 8), classes=4)
TINY_RESNET = partial(PreResNet18, stages=(8, 16), depth=1, classes=4)
DUAL = NormSpec("dual_bn", "tracked")


def clients(
    count: int = 5, n: int = 14, spec: str = "8-4-2-1", shape: tuple[int, ...] = (6,), dtype=torch.double
) -> list[Client]:
    generator = torch.Generator().manual_seed(1)
    widths = budgets(spec, count)
    return [
        Client(
            torch.rand(n + 4 * (index % 2), *shape, generator=generator, dtype=dtype),
            torch.randint(0, 4, (n + 4 * (index % 2),), generator=generator),
            float(widths[index]),
        )
        for index in range(count)
    ]


def doubled(factory):  # type: ignore[no-untyped-def]
    return lambda width, *, norm, generator=None: factory(width, norm=norm, generator=generator).double()


def trainer(method: str, **options) -> FedTrainer:  # type: ignore[no-untyped-def]
    settings = {"rounds": 3, "epochs": 2, "batch_size": 4, "lr": 0.1, "factory": doubled(SMALL), **options}
    return FedTrainer(method, **settings)  # type: ignore[arg-type]


def trained(method: str, people: list[Client], **options) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    one = trainer(method, **options)
    one.fit(people)
    return one.server.tensors()


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 1e-11) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=0, atol=tolerance), name


def test_one_base_of_full_width_is_fedavg() -> None:
    people = clients(spec="1")
    split = trained("split-mix", people, atom=1.0)
    plain = trained("fedavg", people)
    close({name: tensor[0] for name, tensor in split.items()}, plain)


def test_clients_that_train_all_bases_are_fedavg_of_every_base() -> None:
    people = clients(spec="1")
    one = trainer("split-mix", atom=0.25)
    one.start(people)
    initial = one.server.stack
    one.round()
    for base in range(4):
        single = trainer("fedavg", width=0.25)
        single.start(people)
        single.server.load_tensors({name: tensor[base] for name, tensor in initial.tensors.items()})
        single.round()
        close({name: tensor[base] for name, tensor in one.server.tensors().items()}, single.server.tensors())


def test_prefixes_of_full_width_are_fedavg() -> None:
    people = clients(spec="1")
    plain = trained("fedavg", people)
    close(trained("heterofl", people), plain)
    close(trained("sheterofl", people, widths=(1.0,)), plain)


def test_widths_named_twice_count_once() -> None:
    people = clients()
    close(trained("sheterofl", people, widths=(0.125, 1.0, 1.0, 1.0)), trained("sheterofl", people, widths=(0.125, 1.0)))


@pytest.mark.parametrize("method", ["fedavg", "heterofl", "sheterofl"])
def test_memory_of_a_round_does_not_grow_with_the_clients(method: str) -> None:
    def bytes_of_a_round(count: int) -> int:
        one = trainer(method, stack_limit=1, epochs=1, factory=doubled(partial(MLP, inputs=6, hidden=(256, 256), classes=4)))
        one.start(clients(count, spec="1"))
        with LiveMemory() as memory:
            one.round()
        return memory.weight_bytes + memory.activation_bytes

    assert bytes_of_a_round(6) < 1.1 * bytes_of_a_round(2)


EXECUTIONS = ["vmap", "sequential"]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("method", ["split-mix", "fedavg", "heterofl", "sheterofl"])
def test_batched_rounds_are_sequential_rounds(method: str, execution: str) -> None:
    options = {"rounds": 2, "epochs": 1, "batch_size": 8, "loss": "masked_ce" if method == "split-mix" else "ce"}
    close(trained(method, clients(), execution="grouped", **options), trained(method, clients(), execution=execution, **options))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_batched_is_sequential_for_convolutions_in_single_precision(execution: str) -> None:
    people = clients(4, 8, shape=(3, 8, 8), dtype=torch.float32)
    options = {"factory": TINY_RESNET, "rounds": 1, "epochs": 1}
    first, second = (trained("split-mix", people, execution=kind, **options) for kind in ("grouped", execution))
    close(first, second, 1e-5)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("stats", ["tracked", "local"])
def test_batched_is_sequential_with_attacks_and_statistics(stats: str, execution: str) -> None:
    options = {"norm": NormSpec("dual_bn", stats), "adversary": PGD(0.1, 2), "rounds": 2, "epochs": 1}  # type: ignore[arg-type]
    first, second = (trained("split-mix", clients(), execution=kind, **options) for kind in ("grouped", execution))
    close(first, second, 1e-9)


def test_stack_limits_change_nothing() -> None:
    for method in ("split-mix", "sheterofl"):
        close(trained(method, clients(7)), trained(method, clients(7), stack_limit=9))


def test_joint_step_is_separate_steps() -> None:
    model = SplitMix(SMALL, atom=0.25).double()
    person = clients(1, 12)[0]
    data = ClientBatches([person.inputs], [person.labels], 4, [5], owners=[0] * 4)
    joint = local_train(model.stack(), data, lr=0.1, epochs=2)
    for base in range(4):
        alone = ClientBatches([person.inputs], [person.labels], 4, [5])
        single = local_train(model.stack().gather([base]), alone, lr=0.1, epochs=2)
        close({name: tensor[base : base + 1] for name, tensor in joint.tensors.items()}, single.tensors)


def test_local_training_is_plain_sgd() -> None:
    model = SplitMix(SMALL, atom=1.0, seed=2).double()
    person = clients(1, 9)[0]
    found = local_train(model.stack(), ClientBatches([person.inputs], [person.labels], 4, [5]), lr=0.1, epochs=2)
    net, generator = model.bases[0].train(), torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        order = torch.randperm(9, generator=generator)
        for batch in (order[:4], order[4:8]):  # the remainder of one sample has no batch statistics
            optimizer.zero_grad()
            functional.cross_entropy(net(person.inputs[batch]), person.labels[batch]).backward()
            optimizer.step()
    close({name: tensor[0] for name, tensor in found.tensors.items()}, net.state_dict())


def test_dual_training_step_by_hand() -> None:
    model = SplitMix(SMALL, atom=1.0, norm=DUAL).double()
    person = clients(1, 4)[0]
    data = ClientBatches([person.inputs], [person.labels], 4, [5])
    attack, lam = PGD(0.1, 2), 0.3
    found = local_train(model.stack(), data, lr=0.1, epochs=1, adversary=attack, lam=lam)
    from atlas.methods.split_mix.norms import norm_mode

    net = model.bases[0]
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(5))
    x, y = person.inputs[order], person.labels[order]
    with norm_mode(net, "clean", True):
        clean = functional.cross_entropy(net(x), y)
    start = 2 * torch.rand(4, 6, generator=torch.Generator().manual_seed(5 ^ 0x5EED)).double() - 1
    with norm_mode(net, "noise", False):
        attacked = attack(net, x, y, delta0=start * 0.1)
    with norm_mode(net, "noise", True):
        noise = functional.cross_entropy(net(attacked), y)
    ((1 - lam) * clean + lam * noise).backward()
    optimizer.step()
    close({name: tensor[0] for name, tensor in found.tensors.items()}, net.state_dict())


def test_both_norms_are_exercised_at_the_ends_of_lam() -> None:
    person = clients(1, 8)[0]
    data = ClientBatches([person.inputs], [person.labels], 4, [5])
    for lam in (0.0, 1.0):
        found = local_train(
            SplitMix(SMALL, atom=1.0, norm=DUAL).double().stack(), data, lr=0.1, epochs=1, adversary=PGD(0.1, 1), lam=lam
        )
        for kind in ("clean", "noise"):
            assert found.tensors[f"norms.0.{kind}.running_mean"].abs().max() > 0


def test_attacks_need_running_statistics() -> None:
    person = clients(1, 8)[0]
    data = ClientBatches([person.inputs], [person.labels], 4, [5])
    with pytest.raises(ValueError, match="needs tracked or local statistics"):
        local_train(SplitMix(SMALL, atom=1.0).stack(), data, lr=0.1, epochs=1, adversary=PGD())


def test_masked_cross_entropy() -> None:
    logits = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    everyone = torch.tensor([0, 1, 2, 3, 0, 1])
    plain = functional.cross_entropy(logits, everyone)
    assert torch.allclose(masked_cross_entropy(logits, everyone), plain)
    alone = torch.full((6,), 2)
    loss = masked_cross_entropy(logits, alone)
    by_hand = (torch.log(logits[:, 2].exp() + 3) - logits[:, 2]).mean()
    assert torch.allclose(loss, by_hand)
    loss.backward()
    assert float(logits.grad[:, [0, 1, 3]].abs().max()) == 0
    stacked = torch.stack([logits, logits])
    both = masked_cross_entropy(stacked, torch.stack([everyone, alone]))
    assert torch.allclose(both, plain + by_hand)


def random_stack(count: int, seed: int) -> ParamStack:
    return ParamStack.of([SMALL(0.25, generator=torch.Generator().manual_seed(seed + one)).double() for one in range(count)])


def test_averages_of_bases() -> None:
    server = random_stack(3, 0)
    same = {name: tensor[1] for name, tensor in random_stack(3, 9).tensors.items()}
    averaged = average_bases(server, [(2, 0.3, same), (2, 0.1, same), (0, 0.2, same)])
    for name, tensor in averaged.tensors.items():
        assert torch.equal(tensor[1], server.tensors[name][1])  # nobody trained it: unchanged bit for bit
        assert torch.allclose(tensor[2], same[name], atol=1e-15)
    uploads = [(index % 2, 0.1 + index, {n: t[index] for n, t in random_stack(6, 20).tensors.items()}) for index in range(6)]
    found = average_bases(server, uploads).tensors
    close(found, average_bases(server, uploads[::-1]).tensors)
    close(found, average_bases(server, [(base, 7 * weight, tensors) for base, weight, tensors in uploads]).tensors)
    for name, tensor in found.items():
        for base in range(2):
            sent = torch.stack([tensors[name] for which, _, tensors in uploads if which == base])
            assert (tensor[base] >= sent.amin(0) - 1e-12).all()
            assert (tensor[base] <= sent.amax(0) + 1e-12).all()
    assert average_bases(server, []) is server
    with pytest.raises(ValueError, match="the server has 3 base networks"):
        average_bases(server, [(3, 1.0, same)])
    with pytest.raises(ValueError, match="weights must not be negative"):
        average_bases(server, [(0, -1.0, same)])


def test_prefix_average_by_hand() -> None:
    # a convolution 1 → 4: half the channels weigh 0.25 with value a, all of them 0.75 with value b
    slicer = Slicer({"weight": (4, 1, 3, 3)}, {"weight": (True, False, False, False)})
    server = {"weight": torch.full((4, 1, 3, 3), 9.0)}
    half, full = torch.full((2, 1, 3, 3), 1.0), torch.full((4, 1, 3, 3), 3.0)
    found = prefix_average(server, [(0.5, 0.25, {"weight": half}), (1.0, 0.75, {"weight": full})], slicer)["weight"]
    assert torch.allclose(found[:2], torch.tensor(0.25 * 1 + 0.75 * 3))
    assert torch.allclose(found[2:], torch.tensor(3.0))
    uncovered = prefix_average(server, [(0.5, 0.25, {"weight": half})], slicer)["weight"]
    assert torch.equal(uncovered[2:], server["weight"][2:])
    with pytest.raises(ValueError, match="weights must not be negative"):
        prefix_average(server, [(0.5, -0.25, {"weight": half})], slicer)


def test_prefixes_keep_image_channels_and_classes() -> None:
    slicer = Slicer.from_factory(TINY_RESNET)
    full, half = TINY_RESNET(1.0).state_dict(), TINY_RESNET(0.5).state_dict()
    prefix = slicer.prefix(full, 0.5)
    assert {name: tensor.shape for name, tensor in prefix.items()} == {name: tensor.shape for name, tensor in half.items()}
    assert torch.equal(prefix["classifier.weight"], full["classifier.weight"][:, :8])


def test_slimmable_step_sums_losses_over_shared_prefixes() -> None:
    people = [Client(*[getattr(clients(1, 4)[0], name) for name in ("inputs", "labels")], 1.0)]
    one = trainer("sheterofl", widths=(0.5, 1.0), rounds=1, epochs=1, weight_decay=0.0, momentum=0.0)
    one.start(people)
    start = {name: tensor.clone() for name, tensor in one.server.tensors().items()}
    one.round()
    person, order = people[0], torch.randperm(4, generator=torch.Generator().manual_seed(client_seed(0, 0, 0)))
    expected = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for width in (0.5, 1.0):
        net = SMALL(width).double()
        slicer = one.server.slicer
        net.load_state_dict(slicer.prefix(start, width))
        functional.cross_entropy(net(person.inputs[order]), person.labels[order]).backward()
        for name, parameter in net.named_parameters():
            expected[name][slicer.slices(name, width)] += parameter.grad
    close(one.server.tensors(), {name: start[name] - 0.1 * expected[name] for name in start})


@pytest.mark.parametrize(
    ("method", "options", "width"),
    [
        ("fedavg", {"width": 0.5}, 0.5),
        ("heterofl", {"widths": (0.5,)}, 0.5),
        ("sheterofl", {"widths": (0.5,)}, 0.5),
        ("heterofl", {"widths": (0.25, 0.5, 1.0)}, 0.25),  # several widths, of which all clients train the same
        ("split-mix", {"atom": 0.5, "rescale_init": False}, 0.5),
    ],
)
@pytest.mark.parametrize("execution", ["grouped", "sequential"])
def test_rescaled_layers_are_the_hidden_ones(method: str, options: dict[str, object], width: float, execution: str) -> None:
    """A step of one network by hand: hidden layers are divided by the width before their norm, the classifier is not."""
    person = clients(1, 4)[0]
    person = Client(person.inputs, person.labels, width)
    plain = {"rounds": 1, "epochs": 1, "weight_decay": 0.0, "momentum": 0.0, "rescale_layer": True, "execution": execution}
    one = trainer(method, norm=NormSpec(eps=0.1), **plain, **options)
    one.start([person])
    stacked = method == "split-mix"
    start = {name: tensor[0].clone() if stacked else tensor.clone() for name, tensor in one.server.tensors().items()}
    one.round()
    found = {name: tensor[0] if stacked else tensor for name, tensor in one.server.tensors().items()}

    net = SMALL(width, norm=NormSpec(eps=0.1)).double()
    net.load_state_dict(start)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(client_seed(0, 0, 0)))
    x = person.inputs[order]
    for layer, norm in zip(net.hidden, net.norms, strict=True):
        x = functional.relu(norm(layer(x) / width))
    functional.cross_entropy(net.classifier(x), person.labels[order]).backward()
    close(found, {name: start[name] - 0.1 * parameter.grad for name, parameter in net.named_parameters()})


@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_rescaled_layers_need_batch_statistics(method: str) -> None:
    with pytest.raises(
        ValueError, match="rescale_layer needs batch statistics: with tracked ones training and testing would differ"
    ):
        trainer(method, norm=NormSpec(stats="tracked"), rescale_layer=True).start(clients())


def test_weights_by_widths_are_the_official_quirk() -> None:
    people = clients(4)
    usual, quirky = trained("sheterofl", people), trained("sheterofl", people, weigh_by_widths=True)
    assert any(not torch.allclose(usual[name], quirky[name]) for name in usual)
    lonely = clients(1, spec="1")
    close(trained("sheterofl", lonely), trained("sheterofl", lonely, weigh_by_widths=True))


def test_local_norms_stay_with_their_clients() -> None:
    one = trainer("split-mix", norm=NormSpec(stats="local"), rounds=2)
    one.start(clients(4))
    initial = {name: tensor.clone() for name, tensor in one.server.tensors().items()}
    one.round()
    after = one.server.tensors()
    for name in one.server.stack.norm_names:
        assert torch.equal(after[name], initial[name])  # the server's own are those of the start
        changed = (after[f"local.{name}"] != initial[f"local.{name}"]).flatten(2).any(-1)
        assert changed.sum(1).tolist() == [1, 2, 4, 8]  # as many bases as each client trained
    assert not torch.equal(after["classifier.weight"], initial["classifier.weight"])
    x = torch.rand(3, 6, dtype=torch.double)
    first, second = (one.model(client).customize(1.0)(x) for client in (2, 3))
    assert not torch.allclose(first, second)


def test_schedules() -> None:
    cosine = trainer("fedavg", schedule="cosine", rounds=100, lr=0.2)
    assert cosine.learning_rate(0) == 0.2
    assert cosine.learning_rate(50) == pytest.approx(0.1)
    assert cosine.learning_rate(99) < 1e-3
    steps = trainer("fedavg", schedule=(2, 4), rounds=6, lr=1.0)
    assert [steps.learning_rate(t) for t in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert trainer("fedavg").learning_rate(2) == 0.1


@pytest.mark.parametrize("method", ["split-mix", "sheterofl"])
def test_interrupted_is_uninterrupted(method: str, tmp_path: Path) -> None:
    options = {"rounds": 5, "schedule": "cosine", "clients_per_round": 3}
    whole = trainer(method, **options)
    whole.fit(clients())
    first = trainer(method, **options)
    first.start(clients())
    first.round()
    first.round()
    first.save(tmp_path / "state.pt")
    second = trainer(method, **options).resume(tmp_path / "state.pt")
    assert second.learning_rate(2) == whole.learning_rate(2)
    result = second.fit(clients())
    assert all(torch.equal(tensor, second.server.tensors()[name]) for name, tensor in whole.server.tensors().items())
    assert result.history == whole.history
    assert [row["round"] for row in result.history] == [1, 2, 3, 4, 5]


def test_training_learns_and_seeds_reproduce() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(4, 6, generator=generator)
    people = []
    for width in (0.125, 0.25, 0.5, 1.0):
        labels = torch.randint(0, 4, (40,), generator=generator)
        people.append(Client((centres[labels] + 0.1 * torch.randn(40, 6, generator=generator)).clamp(0, 1), labels, width))
    wider = partial(MLP, inputs=6, hidden=(64, 32), classes=4)
    options = {"factory": wider, "rounds": 15, "batch_size": 10, "schedule": "cosine"}
    results = [trainer("split-mix", **options).fit(people) for _ in range(2)]
    assert results[0].history == results[1].history
    x, y = torch.cat([one.inputs for one in people]), torch.cat([one.labels for one in people])
    narrow, wide = ((results[0].model.customize(width)(x).argmax(1) == y).float().mean() for width in (0.125, 1.0))
    assert wide > 0.9
    assert narrow > 0.7


def test_participants_are_sampled_without_replacement() -> None:
    one = trainer("split-mix", clients_per_round=3)
    one.start(clients())
    seen = [one.participants(t) for t in range(40)]
    assert all(len(set(chosen)) == 3 and chosen == sorted(chosen) for chosen in seen)
    assert {client for chosen in seen for client in chosen} == set(range(5))


class Plain(nn.Module):
    """A user's network that has no grouped form."""

    def __init__(self, width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        size = round(16 * width)
        self.body, self.norm, self.head = nn.Linear(6, size), nn.LayerNorm(size), nn.Linear(size, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)).relu())


def test_any_network_trains_batched() -> None:
    options = {"factory": doubled(Plain), "atom": 0.25}
    people = clients(spec="4-2-1")
    close(trained("split-mix", people, **options), trained("split-mix", people, execution="sequential", **options))
    with pytest.raises(TypeError, match=r"norm \(LayerNorm\) holds weights and has no grouped form"):
        trained("split-mix", people, execution="grouped", **options)


def test_minibatch_sizes() -> None:
    assert batch_sizes(62, 20) == (20, 20, 20, 2)
    assert batch_sizes(61, 20) == (20, 20, 20)
    assert batch_sizes(62, 20, drop_last=True) == (20, 20, 20)


def test_bytes_are_images() -> None:
    people = clients(2, spec="1")
    bytes_ = [Client((255 * one.inputs).round().byte(), one.labels) for one in people]
    floats = [Client(one.inputs.float() / 255, one.labels) for one in bytes_]
    options = {"factory": SMALL, "atom": 1.0}
    close(trained("split-mix", bytes_, **options), trained("split-mix", floats, **options), 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fedprox"}, "method must be one of split-mix, fedavg, heterofl, sheterofl, not 'fedprox'"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"schedule": "step"}, "schedule must be constant, cosine or a list of rounds, not 'step'"),
        ({"atom": 0.25}, "client 0 cannot host one base: its budget is 0.125, a base has 0.25"),
        ({"loss": "mse"}, "loss = 'mse': input should be 'ce' or 'masked_ce'"),
        ({"method": "sheterofl", "norm": NormSpec(stats="tracked")}, "statistics must be batch, not tracked"),
        ({"method": "heterofl", "widths": (0.5, 1.0)}, "client 0 cannot host the width 0.5"),
        ({"batch_size": 99, "drop_last": True}, "make no minibatch of 99"),
    ],
)
def test_impossible_federations(change: dict[str, object], message: str) -> None:
    options = {"method": "split-mix", **change}
    with pytest.raises(ValueError, match=message):
        trainer(**options).fit(clients())  # type: ignore[arg-type]


def test_impossible_clients() -> None:
    good = clients(2, spec="1")
    with pytest.raises(ValueError, match="a federation needs clients"):
        trainer("fedavg").start([])
    with pytest.raises(ValueError, match="client 1 has 0 inputs and 0 labels"):
        trainer("fedavg").start([good[0], Client(good[0].inputs[:0], good[0].labels[:0])])
    labels = torch.arange(len(good[0].labels)) % 4 + 1
    with pytest.raises(ValueError, match=r"client 0 has labels 1 … 4; the network has the classes 0 … 3"):
        trainer("fedavg").start([Client(good[0].inputs, labels)])
    with pytest.raises(ValueError, match="outside \\(0, 1\\]"):
        trainer("fedavg").start([Client(good[0].inputs, good[0].labels, 0.0)])
    data = ClientBatches([good[0].inputs], [good[0].labels], 4, [0], owners=[0])
    with pytest.raises(ValueError, match="need 2 owners among 1 clients"):
        local_train(random_stack(2, 0), data, lr=0.1, epochs=1)
    assert math.isfinite(trainer("fedavg").fit(good).history[-1]["loss"])


@pytest.mark.parametrize("norm", [NormSpec(), DUAL], ids=["batch", "dual"])
@pytest.mark.parametrize("execution", ["grouped", "vmap", "sequential"])
@pytest.mark.parametrize(("wrong", "shown"), [(4, "0 … 4"), (-1, "-1 … 3"), (-100, "-100 … 3")])
def test_local_training_refuses_labels_without_a_class(norm: NormSpec, execution: Any, wrong: int, shown: str) -> None:
    people = [Client(person.inputs, torch.arange(len(person.labels)) % 4) for person in clients(3, 8)[::2]]
    people[1].labels[-1] = wrong
    stack = SplitMix(SMALL, atom=0.25, norm=norm).double().stack().gather([0, 1])
    before = {name: tensor.clone() for name, tensor in stack.tensors.items()}
    state = torch.get_rng_state()
    for loss in ("ce", "masked_ce"):
        data = ClientBatches([person.inputs for person in people], [person.labels for person in people], 4, [5, 6])
        with pytest.raises(ValueError, match=f"^client 1 has labels {shown}; the network has the classes 0 … 3$"):
            local_train(stack, data, lr=0.1, epochs=1, loss=loss, execution=execution)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.tensors.items())


EVERY_METHOD = ("split-mix", "fedavg", "heterofl", "sheterofl")


def odd(change, count: int = 6, at: int = 4) -> list[Client]:  # type: ignore[no-untyped-def]
    """Clients of whom one is changed."""
    people = clients(count, spec="1")
    people[at] = change(people[at])
    return people


def cut(n: int):  # type: ignore[no-untyped-def]
    return lambda one: Client(one.inputs[:n], one.labels[:n])


def with_labels(change):  # type: ignore[no-untyped-def]
    return lambda one: Client(one.inputs, change(one.labels))


def with_inputs(change):  # type: ignore[no-untyped-def]
    return lambda one: Client(change(one.inputs), one.labels)


def one_bad(value: float):  # type: ignore[no-untyped-def]
    def change(inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.clone()
        inputs[3, 2] = value
        return inputs

    return with_inputs(change)


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (cut(0), {}, "client 4 has 0 inputs and 0 labels"),
        (cut(1), {}, "client 4 has 1 sample, which makes no minibatch: batch statistics need at least 2"),
        (cut(3), {"drop_last": True}, "client 4 has 3 samples, which make no minibatch of 4 with drop_last"),
        (lambda one: Client(one.inputs[1:], one.labels), {}, "client 4 has 13 inputs and 14 labels"),
        (with_labels(lambda y: y * 0 - 1), {}, "client 4 has labels -1 … -1; the network has the classes 0 … 3"),
        (with_labels(lambda y: y * 0 + 4), {}, "client 4 has labels 4 … 4; the network has the classes 0 … 3"),
        (with_labels(lambda y: y.float()), {}, r"client 4 has labels of torch.float32 and the shape \(14,\); class indices"),
        (with_labels(lambda y: functional.one_hot(y, 4)), {}, r"client 4 has labels of torch.int64 and the shape \(14, 4\)"),
        (one_bad(math.nan), {}, "client 4 has inputs that are not finite"),
        (one_bad(-math.inf), {}, "client 4 has inputs that are not finite"),
        (with_inputs(lambda x: x[:, :5]), {}, r"client 4 has inputs of the shape \(5,\), client 0 of \(6,\)"),
        (with_inputs(lambda x: x[:, :0]), {}, r"client 4 has inputs without entries, of the shape \(0,\)"),
        (with_inputs(lambda x: x[0, 0]), {}, "client 4 has 0 inputs and 14 labels"),
        (with_inputs(lambda x: x.float()), {}, "client 4 has inputs of torch.float32, client 0 of torch.float64"),
        (with_inputs(lambda x: (9 * x).long()), {}, "client 4 has inputs of torch.int64; bytes or floating-point numbers"),
        (lambda one: Client(one.inputs, one.labels, math.nan), {}, "client 4 has the budget nan"),
    ],
)
def test_clients_that_cannot_take_part_are_named_at_the_start(method: str, change, options, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError), match=message):
        trainer(method, **options).start(odd(change))


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize(("n", "options"), [(2, {}), (2, {"clients_per_round": 1}), (5, {}), (4, {"drop_last": True})])
def test_small_clients_take_part(n: int, options: dict[str, object], method: str) -> None:
    """Fewer samples than a minibatch; a remainder of one sample, which is left out; just one minibatch."""
    one = trainer(method, rounds=2, epochs=1, **options)
    one.start(odd(cut(n), 3, 1))
    initial = {name: tensor.clone() for name, tensor in one.server.tensors().items()}
    if "clients_per_round" in options:
        one.participants = lambda index: [1]  # type: ignore[method-assign]
    assert all(math.isfinite(one.round()["loss"]) for _ in range(2))
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in one.server.tensors().items())


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_federations_that_cannot_run_are_refused_at_the_start(method: str) -> None:
    people = clients(4, spec="1")
    with pytest.raises(ValueError, match="clients_per_round is 5, and the federation has 4 clients"):
        trainer(method, clients_per_round=5).start(people)
    assert trainer(method, clients_per_round=4).start(people).participants(0) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"the network cannot train on minibatches of 1 input .*at least 2 images"):
        trainer(method, batch_size=1).start(people)
    with pytest.raises(ValueError, match=r"the network cannot train on minibatches of 2 inputs of the shape \(5,\)"):
        trainer(method).start([Client(one.inputs[:, :5], one.labels) for one in people])
    with pytest.raises(ValueError, match=r"the network cannot train on .*of the shape \(6,\) and torch.float32"):
        trainer(method).start([Client(one.inputs.float(), one.labels) for one in people])


@pytest.mark.parametrize(
    ("value", "message"), [(0, "at least 1, not 0"), (-1, "at least 1, not -1"), (2.5, "a whole number, not 2.5")]
)
@pytest.mark.parametrize("name", ["rounds", "epochs", "batch_size", "clients_per_round", "stack_limit"])
def test_counts_are_whole_and_positive(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {message}"):
        trainer("fedavg", **{name: value})


@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_inputs_that_cannot_be_attacked_are_named_at_the_start(method: str) -> None:
    options = {"norm": NormSpec(stats="tracked"), "adversary": PGD(0.1, 1)}
    with pytest.raises(ValueError, match=r"client 4 has inputs in \[.*, 1.5\], outside the box \[0, 1\] of the attack"):
        trainer(method, **options).start(odd(one_bad(1.5)))
    trainer(method, norm=NormSpec(stats="tracked")).start(odd(one_bad(1.5)))  # without attacks no box is needed
    wide = trainer(method, norm=NormSpec(stats="tracked"), adversary=PGD(0.1, 1, lo=-2.0, hi=2.0), rounds=1)
    assert math.isfinite(wide.fit(odd(one_bad(1.5))).history[0]["loss"])


def test_networks_without_batch_norm_train_on_single_samples() -> None:
    one = trainer("fedavg", factory=doubled(Plain), batch_size=1, rounds=1)
    assert math.isfinite(one.fit(odd(cut(1))).history[0]["loss"])


def test_the_network_must_return_logits() -> None:
    def broken(width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> nn.Module:
        return nn.Sequential(SMALL(width, norm=norm).double(), nn.Softmax(-1), nn.Flatten(0))

    with pytest.raises(ValueError, match=r"the network returns the shape \(8,\) for 2 inputs, and not logits"):
        trainer("fedavg", factory=broken).start(clients())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_labels_of_every_whole_type(dtype: torch.dtype) -> None:
    people = clients(3, spec="1")
    options = {"rounds": 1, "loss": "masked_ce"}
    other = [Client(one.inputs, one.labels.to(dtype)) for one in people]
    close(trained("fedavg", other, **options), trained("fedavg", people, **options))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_training_does_not_depend_on_the_mode_of_autograd(method: str, mode) -> None:  # type: ignore[no-untyped-def]
    people = clients(3)
    with mode():
        inside = [Client(one.inputs.clone(), one.labels.clone(), one.budget) for one in people]
        found = trained(method, inside, rounds=2)
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert (grad, inference) == (False, mode is torch.inference_mode)
    close(found, trained(method, people, rounds=2))
    close(trained(method, inside, rounds=2), found)


def test_meeting_clients_leaves_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer("fedavg").start(clients())
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_clients_that_do_not_go_together() -> None:
    first, second = clients(2, spec="1")
    good = ([first.inputs], [first.labels], 4, [0])
    for change, message in (
        ((good[0], good[1], 4, [0, 1]), "1 clients' inputs need as many labels and seeds, not 1 and 2"),
        ((good[0], [first.labels[1:]], 4, [0]), "client 0 has 14 inputs and 13 labels"),
        (([first.inputs[:1]], [first.labels[:1]], 4, [0]), "client 0 has 1 sample, which makes no minibatch"),
        (
            ([first.inputs, second.inputs[:14, :5]], [first.labels, second.labels[:14]], 4, [0, 1]),
            r"client 1 has inputs of the shape \(5,\), client 0 of \(6,\)",
        ),
        (([first.inputs, second.inputs], [first.labels, second.labels], 4, [0, 1]), "must have minibatches of the same sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            ClientBatches(*change)  # type: ignore[arg-type]


def test_clients_that_another_network_made_are_constants() -> None:
    """Features of an encoder carry its graph, which only one backward pass could use."""
    scale = torch.ones(64, requires_grad=True)

    def people(factor: torch.Tensor) -> list[Client]:
        return [
            Client(torch.rand(24, 64, generator=torch.Generator().manual_seed(k)) * factor, torch.arange(24) % 10, budget=0.5)
            for k in range(2)
        ]

    losses = [FedTrainer("split-mix", MLP, rounds=2, batch_size=8).fit(people(one)).history for one in (torch.ones(64), scale)]
    assert losses[0] == losses[1]
    assert scale.grad is None


def test_what_is_no_client_is_refused_by_its_number() -> None:
    pair = (torch.rand(24, 64), torch.arange(24) % 10)
    with pytest.raises(TypeError, match=r"client 1 is a tuple: Client\(inputs, labels, budget\) is needed"):
        FedTrainer("fedavg", MLP).start([Client(*pair), pair])  # type: ignore[list-item]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def alike(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_fit_goes_on_from_whatever_rounds_a_federation_has_made(method: str, tmp_path: Path) -> None:
    met = clients()
    whole = trainer(method).fit(met, progress=False).model
    begun = trainer(method).start(met)
    begun.round()
    begun.save(tmp_path / "state.pt")
    assert alike(begun.fit(met, progress=False).model, whole)
    assert alike(begun.fit(met, progress=False).model, whole), "nothing is left, and what was learned stays"
    assert len(begun.history) == begun.rounds
    assert alike(trainer(method).start(met).resume(tmp_path / "state.pt").fit(met, progress=False).model, whole)
    again = begun.start(met)
    assert (again.completed, again.history) == (0, [])
    assert alike(again.fit(met, progress=False).model, whole)


def test_fit_refuses_other_clients_than_it_was_started_with() -> None:
    met = clients()
    begun = trainer("split-mix").start(met)
    with pytest.raises(ValueError, match="started with 5 clients, not 4"):
        begun.fit(met[:4], progress=False)
    with pytest.raises(ValueError, match="client 0 is not the one"):
        begun.fit([met[1], *met[1:]], progress=False)


def test_a_state_of_another_federation_is_refused_by_name(tmp_path: Path) -> None:
    met, path = clients(spec="1"), tmp_path / "state.pt"
    begun = trainer("split-mix", atom=0.25).start(met)
    begun.save(path)
    with pytest.raises(ValueError, match="another method, norm or network"):
        trainer("split-mix", atom=0.25, norm=NormSpec(stats="local")).start(met).resume(path)
    with pytest.raises(ValueError, match=r"the state is of .* there, .* here"):
        trainer("split-mix", atom=0.5).start(met).resume(path)


@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_a_model_stays_what_it_was_when_another_is_asked_for(method: str) -> None:
    begun = trainer(method, norm=NormSpec(stats="local")).start(clients())
    begun.round()
    first = begun.model(0)
    kept = weights(first)
    second = begun.model(1)
    assert all(map(torch.equal, weights(first), kept))
    assert not alike(first, second), "each client has norms of its own"
    begun.round()
    assert all(map(torch.equal, weights(first), kept))


def test_local_training_attacks_from_where_it_is_told_to() -> None:
    x, y = torch.rand(8, 6), torch.randint(0, 4, (8,), generator=torch.Generator().manual_seed(0))
    model = SplitMix(SMALL, atom=0.25, norm=DUAL)

    def trained(random: bool) -> list[torch.Tensor]:
        batches = ClientBatches([x], [y], 4, [3], [0] * model.n_base)
        attack = PGD(0.1, 2, random_start=random)
        return list(local_train(model.stack(), batches, lr=0.1, epochs=1, adversary=attack).tensors.values())

    assert not all(map(torch.equal, trained(True), trained(False)))


@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_a_start_that_failed_has_not_started(method: str, tmp_path: Path) -> None:
    met = clients(spec="1")
    wrong = [Client(client.inputs, client.labels + 1, client.budget) for client in met]
    begun = trainer(method)
    for _ in range(2):
        with pytest.raises(ValueError, match="label"):
            begun.fit(wrong, progress=False)
    assert alike(begun.fit(met, progress=False).model, trainer(method).fit(met, progress=False).model)
    path = tmp_path / "state.pt"
    trainer(method, norm=NormSpec(stats="local")).start(met).save(path)
    waiting = trainer(method).resume(path)
    for _ in range(2):  # the state still waits, and is still refused
        with pytest.raises(ValueError, match="another method, norm or network"):
            waiting.fit(met, progress=False)


@pytest.mark.parametrize("method", ["split-mix", "fedavg"])
def test_a_model_can_be_trained_further_and_leaves_the_factory_alone(method: str) -> None:
    class Recipe:
        def __init__(self) -> None:
            self.lock = threading.Lock()  # nothing can copy it

        def __call__(self, width: float, *, norm: NormSpec, generator: Any = None) -> nn.Module:
            return doubled(SMALL)(width, norm=norm, generator=generator)

    with torch.inference_mode():
        made = trainer(method, factory=Recipe()).fit(clients(), progress=False).model
    made.train()(clients()[0].inputs).sum().backward()
