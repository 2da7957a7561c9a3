"""VFDS: what the fused pass, a sweep and the streaming policy cost, each beside its plain form in the same run.

``python benchmarks/vfds.py`` prints CPU milliseconds on one thread; ``--quick`` takes few rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import interleaved, show
from torch import Tensor

from atlas.methods.vfds import SelectiveGRU, Sweep, arm_loss, selection_loss

SIZES = ((32, 40, 48, 64, 6), (10, 20, 561, 256, 6))
"""Batch, steps, features, hidden units, classes: a small stream, and UCI HAR with a narrower layer."""


def example(batch: int, steps: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(batch, steps, features, generator=random), torch.randint(classes, (batch, steps), generator=random)


def training_step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """Forward, backward, optimiser."""
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()


def competitor(size: tuple[int, ...], relaxation: Any, fused: bool, device: str = "cpu") -> Callable[[], object]:
    """A training step of a new model."""
    batch, length, features, hidden, classes = size
    x, y = (part.to(device) for part in example(batch, length, features, classes))
    cost = torch.ones(features, device=device)
    torch.manual_seed(0)
    model = SelectiveGRU(features, hidden, classes, relaxation=relaxation, fused=fused).to(device)

    def loss() -> Tensor:
        if model.arm:
            return arm_loss(model, x, y, lam=1.0).total
        return selection_loss(model(x), y, cost=cost, lam=1.0).total

    return partial(training_step, torch.optim.Adam(model.parameters(), 1e-3), loss)


def steps(rounds: int) -> None:
    """One training step of the concrete relaxation, fused and plain, and of ARM's pair of trajectories."""
    for size in SIZES:
        runs = {
            "concrete, plain rollout": competitor(size, "concrete", False),
            "concrete, fused": competitor(size, "concrete", True),
            "ARM, plain rollout": competitor(size, "arm", False),
            "ARM, fused": competitor(size, "arm", True),
        }
        show(f"training step at (B, T, D, H, C) = {size}", interleaved(runs, rounds), "concrete, plain rollout")


def sweeps(rounds: int) -> None:
    """Five λ one after the other, and at once."""
    batch, length, features, hidden, classes = 32, 40, 20, 32, 8
    x, y = example(batch, length, features, classes)
    cost, lams = torch.ones(features), torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0])
    models = [SelectiveGRU(features, hidden, classes) for _ in lams]
    sweep = Sweep(models)

    def together() -> None:
        sweep.zero_grad()
        selection_loss(sweep(x), y, cost=cost, lam=lams).total.sum().backward()

    def one_by_one() -> None:
        for model, lam in zip(models, lams.tolist(), strict=True):
            model.zero_grad()
            selection_loss(model(x), y, cost=cost, lam=lam).total.backward()

    runs: dict[str, Callable[[], object]] = {"one after the other": one_by_one, "at once": together}
    show("forward and backward of five λ at (32, 40, 20, 32, 8)", interleaved(runs, rounds), "one after the other")


def streaming(rounds: int) -> None:
    """200 steps of one sequence as they come, asking first, beside the forward pass of the whole sequence."""
    length, features, hidden, classes = 200, 561, 256, 6
    torch.manual_seed(0)
    model = SelectiveGRU(features, hidden, classes)
    model.selector.weight.data.mul_(10)  # a sparse policy that follows the state
    model.selector.bias.data.fill_(-2.5)
    x = torch.randn(1, length, features)
    opened = float(model(x, gates="threshold").gates[:, 1:].detach().mean())

    def stream() -> None:
        policy = model.stream()
        for step in range(length):
            policy.request()
            policy.observe(x[:, step])

    @torch.inference_mode()
    def whole(gates: str) -> None:
        model(x, gates=gates)

    runs: dict[str, Callable[[], object]] = {
        "whole sequence, all columns": partial(whole, "threshold"),
        "request and observe, step by step": stream,
    }
    title = f"200 steps of one sequence, D = 561, H = 256, {opened:.1%} of the features acquired"
    show(title, interleaved(runs, rounds), "whole sequence, all columns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 5 if parser.parse_args().quick else 25
    torch.set_num_threads(1)
    steps(rounds)
    sweeps(rounds)
    streaming(rounds)


if __name__ == "__main__":
    main()
