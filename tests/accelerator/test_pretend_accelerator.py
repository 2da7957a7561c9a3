"""The pretended GPU refuses what CUDA refuses, allows what it allows, and computes what the CPU computes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.pretend_accelerator import OnDevice, Pretence, pretending
from torch import Tensor, nn
from torch.nn import functional

DEVICE = "cuda"


@pytest.fixture
def device() -> Iterator[Pretence]:
    """A pretended GPU, with a stream of random numbers of its own."""
    with pretending(own_stream=True, watched="/tests/accelerator/") as found:
        yield found


def there(*shape: int, **options: Any) -> Tensor:
    return torch.ones(shape, device=DEVICE, **options)


MIXED: dict[str, Callable[[], object]] = {
    "a sum": lambda: there(3) + torch.ones(3),
    "a mask": lambda: there(3).masked_fill(torch.ones(3, dtype=torch.bool), 0.0),
    "a condition": lambda: torch.where(torch.ones(3, dtype=torch.bool), there(3), there(3)),
    "a product with a scalar on the CPU that is no number": lambda: there(1, 1) @ torch.ones(1, 1),
    "joined": lambda: torch.cat([there(3), torch.ones(3)]),
    "stacked, without dimensions": lambda: torch.stack([there(), torch.ones(())]),
    "labels": lambda: functional.cross_entropy(there(3, 3), torch.zeros(3, dtype=torch.long)),
    "an embedding": lambda: functional.embedding(torch.zeros(3, dtype=torch.long), there(3, 3)),
    "gathered": lambda: there(3).gather(0, torch.zeros(1, dtype=torch.long)),
    "indices on the device, a tensor on the CPU": lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device=DEVICE)],
    "a mask on the device, a tensor on the CPU": lambda: torch.ones(3)[there(3, dtype=torch.bool)],
    "values on the CPU, put by indices": lambda: there(3).index_put((torch.tensor([0, 1]),), torch.ones(2)),
    "written to the CPU": lambda: torch.ones(3).add_(there()),
    "written to the CPU, without dimensions": lambda: torch.ones(()).add_(there()),
    "a layer that stayed behind": lambda: nn.Linear(3, 3)(there(1, 3)),
    "a buffer that is none": lambda: _Forgetful().to(DEVICE)(there(3)),
    "moments that stayed behind": lambda: _step_with_moments_on_the_cpu(),
    "products of integers": lambda: there(2, 2, dtype=torch.long) @ there(2, 2, dtype=torch.long),
    "a generator of the CPU": lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    "a generator of the device": lambda: torch.rand(3, generator=torch.Generator(DEVICE)),
    "a permutation": lambda: torch.randperm(3, device=DEVICE, generator=torch.Generator()),
    "draws into a tensor": lambda: there(3).normal_(generator=torch.Generator()),
}


class _Forgetful(nn.Module):
    """Has a tensor that is not registered, so that it does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def _step_with_moments_on_the_cpu() -> None:
    weight = nn.Parameter(there(3))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.grad = there(3)
    optimizer.state[weight]["momentum_buffer"] = torch.ones(3)
    optimizer.step()


@pytest.mark.parametrize("name", MIXED)
def test_refuses_what_cuda_refuses(name: str, device: Pretence) -> None:
    with pytest.raises(RuntimeError, match=r"same device|indices should be|device type for generator|not implemented for"):
        MIXED[name]()


def test_the_cpu_forgives_all_of_it() -> None:
    assert torch.equal(torch.ones(3) + torch.ones(3), torch.full((3,), 2.0))
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(3, device=DEVICE)  # outside of the block there is no GPU, and nothing pretends


def test_allows_what_cuda_allows(device: Pretence) -> None:
    x = there(3)
    for made in (
        x + torch.tensor(1.0),
        x * torch.tensor(2.0, dtype=torch.float64),
        torch.where(x > 0, torch.tensor(0.0), x),
        x.masked_fill(x > 0, torch.tensor(2.0)),
        x[torch.tensor([0, 1])],
        x[torch.tensor([True, False, True])],
        x[[0, 2]],
        x.index_put((torch.tensor([0]),), torch.tensor(5.0)),
        x.copy_(torch.zeros(3)),
        torch.empty(3, device=DEVICE).copy_(torch.ones(3)),
        sum((x, x), start=torch.zeros(())),
        torch.rand(3, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0)),
        torch.as_tensor([1, 2], device=DEVICE),
        torch.tensor(x),
        x.new_tensor([1.0]),
    ):
        assert isinstance(made, OnDevice)
        assert made.device == torch.device("cuda:0")
        assert made.is_cuda
    assert torch.zeros(3).copy_(x).device.type == "cpu"
    assert torch.ones(3)[torch.tensor(1, device=DEVICE)] == 1
    assert x.to(DEVICE) is x
    assert torch.as_tensor(x, device=DEVICE) is x


def test_numbers_leave_it_only_when_asked(device: Pretence) -> None:
    x = there(2)
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="can't convert"):
        __import__("numpy").asarray(x)
    assert x.cpu().numpy().tolist() == x.tolist() == [1.0, 1.0]
    assert float(x.sum()) == 2.0
    assert f"{x.sum():.1f}" == "2.0"


def test_says_what_made_the_cpu_wait(device: Pretence) -> None:
    x = there(3)
    assert not device.waits
    float(x.sum())
    x[x > 0]
    x.cpu()
    assert [place.split()[1] for place in device.waits] == ["_local_scalar_dense", "index", "_to_copy"]
    assert all(place.startswith("test_pretend_accelerator.py:") for place in device.waits)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LayerNorm(128), nn.Linear(128, 4))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


def trained(place: str, make: Callable[[Any], torch.optim.Optimizer], steps: int = 3) -> dict[str, Tensor]:
    """Weights after some steps, the last of them after the optimiser's state was saved and loaded."""
    model = network()
    parameters = list(model.parameters())
    model.to(place)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    optimizer = make(model.parameters())
    for step in range(steps):
        x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(step)).to(place)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), torch.arange(4, device=place)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_as_the_cpu_does(name: str) -> None:
    expected = trained("cpu", OPTIMIZERS[name])
    with pretending():
        found = trained(DEVICE, OPTIMIZERS[name])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_views_and_writes_reach_what_they_are_of(device: Pretence) -> None:
    start = torch.zeros(4, device=DEVICE, requires_grad=True)
    x = start * 1
    x[1:3].add_(there(2, requires_grad=True))
    x.view(2, 2)[0].mul_(3)
    assert x.tolist() == [0.0, 3.0, 1.0, 0.0]
    x.sum().backward()
    assert start.grad is not None
    assert start.grad.tolist() == [3.0, 3.0, 1.0, 1.0]
    with torch.inference_mode():
        made = there(4).view(2, 2)[0] + 1
    assert made.tolist() == [2.0, 2.0]


def test_differentiates_twice_and_maps(device: Pretence) -> None:
    w = torch.tensor([1.0, 2.0], device=DEVICE, requires_grad=True)
    (slope,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), w)
    assert curvature.tolist() == [6.0, 12.0]
    rows = torch.func.vmap(torch.func.grad(lambda v: v.square().sum()))(there(2, 3))
    assert rows.tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_recurrent_cells_compute_what_the_cpus_do(kind: Any) -> None:
    def gradients(place: str) -> list[Tensor]:
        torch.manual_seed(0)
        model, x = kind(3, 4), torch.rand(5, 3)
        out = model.to(place)(x.to(place))
        while isinstance(out, tuple):
            out = out[0]
        out.square().sum().backward()
        return [out.detach().cpu(), *(parameter.grad.cpu() for parameter in model.parameters())]

    expected = gradients("cpu")
    with pretending():
        for value, wanted in zip(gradients(DEVICE), expected, strict=True):
            torch.testing.assert_close(value, wanted)


def test_autocast_casts_what_cudas_does(device: Pretence) -> None:
    layer = nn.Linear(3, 3).to(DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        made = layer(there(2, 3))
        assert made.dtype == (made @ made.T).dtype == torch.bfloat16
        assert {value.dtype for value in (made.softmax(-1), made.exp(), made.sum(), functional.mse_loss(made, made))} == {
            torch.float32
        }
        assert functional.relu(made).dtype == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert layer(there(2, 3)).dtype == torch.float32
    made.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cuda")


def test_a_scaler_leaves_out_a_step_that_is_not_finite(device: Pretence) -> None:
    weight = nn.Parameter(there(2))
    optimizer, scaler = torch.optim.SGD([weight], 0.5), torch.amp.GradScaler("cuda")
    assert scaler.is_enabled()
    for factor, expected in ((1.0, 0.5), (float("inf"), 0.5)):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert weight.tolist() == [expected] * 2
    assert scaler.get_scale() == 2.0**15


def test_saved_tensors_come_back_to_where_they_are_wanted(device: Pretence) -> None:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2).to(DEVICE).state_dict(), buffer)
    for place, expected in (("cpu", "cpu"), (None, "cuda"), ("cuda", "cuda")):
        buffer.seek(0)
        loaded = torch.load(buffer, map_location=place, weights_only=True)
        assert {value.device.type for value in loaded.values()} == {expected}


def test_copies_are_copies(device: Pretence) -> None:
    model = nn.Linear(2, 2).to(DEVICE)
    other = copy.deepcopy(model)
    other.weight.data.zero_()
    assert isinstance(other.weight, nn.Parameter)
    assert model.weight.abs().sum() > 0
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model.weight * 1)


def test_the_device_draws_from_a_stream_of_its_own(device: Pretence) -> None:
    torch.manual_seed(0)
    first, host = torch.rand(2, device=DEVICE), torch.rand(2)
    torch.manual_seed(0)
    torch.rand(7)  # draws on the CPU move nothing there
    assert torch.rand(2, device=DEVICE).tolist() == first.tolist()
    torch.manual_seed(0)
    torch.rand(7, device=DEVICE)
    assert torch.equal(torch.rand(2), host)
    state = torch.cuda.get_rng_state()
    drawn = functional.dropout(there(20)).tolist()
    torch.cuda.set_rng_state(state)
    with torch.random.fork_rng([0]):
        assert functional.dropout(there(20)).tolist() == drawn
    assert functional.dropout(there(20)).tolist() == drawn


def test_by_default_it_draws_what_the_cpu_would() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    with pretending():
        torch.manual_seed(0)
        assert torch.rand(3, device=DEVICE).tolist() == expected.tolist()
        own = torch.rand(3, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
        assert own.tolist() == expected.tolist()


def test_nothing_is_left_behind() -> None:
    before = torch.Tensor.to, torch.load, torch.Generator, torch.cuda.is_available()
    with pretending():
        assert torch.cuda.is_available()
    assert before == (torch.Tensor.to, torch.load, torch.Generator, torch.cuda.is_available())
    with torch.random.fork_rng():
        torch.rand(1)
    assert not torch.accelerator.is_available() or torch.accelerator.device_count() == 0
