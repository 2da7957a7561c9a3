"""Train a network with an update rule that can be read, kept in a file, beside Adam.

    python examples/train_with_a_rule.py

A rule is text over features of the gradients (`m`: Adam's direction, `g`: the gradient over its size, …) at some steps back:
`m_0` is now, `g_1` one step ago. `atlas train` leaves such files as `rule.json` where it distils a learned optimizer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from atlas.methods.symbolic_l2o import SymbolicOptimizer

RULE = {"expression": "-tanh(2 * m_0) - 0.1 * g_1", "lr": 0.01, "features": ["m", "g"], "lags": 2}
EPOCHS = 10
Maker = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def trained(make: Maker, images: Tensor, labels: Tensor) -> nn.Module:
    """A network from the same start, trained on the same batches, by one optimizer."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = make(network.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return network


def main() -> None:
    """Write a rule down, read it back by its file's name, and compare."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    known, new = slice(0, 1297), slice(1297, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rule.json"
        path.write_text(json.dumps(RULE))
        example = SymbolicOptimizer([nn.Parameter(torch.zeros(1))], str(path))
        print(f"the rule: {example.rule()}")
        adam: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.999), "clamp": None, "eps": 1e-8}
        makers: dict[str, Maker] = {
            "the rule": lambda parameters: SymbolicOptimizer(parameters, str(path)),
            "Adam as a rule": lambda parameters: SymbolicOptimizer(parameters, "-m_0", **adam),
            "torch's Adam": lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        }
        networks = {name: trained(make, images[known], labels[known]) for name, make in makers.items()}
    with torch.inference_mode():
        for name, network in networks.items():
            right = (network(images[new]).argmax(-1) == labels[new]).float().mean()
            print(f"{name}: accuracy {right:.2f}")
        ours, theirs = (networks[name](images[new]) for name in ("Adam as a rule", "torch's Adam"))
        print(f"the two Adams differ by {float((ours - theirs).abs().max()):.0e} in their logits")


if __name__ == "__main__":
    main()
