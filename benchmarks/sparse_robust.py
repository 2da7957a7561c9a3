"""Cost of sparse adversarial training: attack, training step and topology update beside straightforward forms, in the same run.

Theory: with F operations of a forward pass, an attack step needs 2F (forward, and backward to the input) and the update 3F, so
that a step with K attack steps costs (2K + 3)F; a straightforward attack also takes the gradients of the weights and pays 3F
per step, (3K + 3)F in all, a ratio of 23/33 = 0.70 at K = 10. What is left is the network's own convolutions: masks are
multiplied into weights once per step, and unstructured sparsity makes no dense kernel faster. An update of the topology selects
by partial sorts, O(n), instead of sorting each layer twice.

    python benchmarks/sparse_robust.py [--quick]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from timing import interleaved, show
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.sparse_robust import PGD, FlyingBird, random_masks
from atlas.nn.convnets import MLP, PreActResNet

EPS, STEP = 8 / 255, 2 / 255


def plain_attack(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD as one would write it first: a leaf for the change, backward through everything."""
    delta = torch.empty_like(x).uniform_(-EPS, EPS)
    delta = torch.clamp(x + delta, 0, 1) - x
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        functional.cross_entropy(model(x + delta), y).backward()
        assert delta.grad is not None
        delta = torch.clamp(delta + STEP * delta.grad.sign(), -EPS, EPS)
        delta = torch.clamp(x + delta, 0, 1) - x
    return torch.clamp(x + delta, 0, 1).detach()


def plain_step(model: nn.Module, masks: dict[str, Tensor], x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    """One step of masked adversarial training as one would write it first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, foreach=False)

    def run() -> None:
        attacked = plain_attack(model, x, y, steps)
        optimizer.zero_grad()
        functional.cross_entropy(model(attacked), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in masks:
                    weight.copy_(weight * masks[name])
                    momentum = optimizer.state[weight]["momentum_buffer"]
                    momentum.copy_(momentum * masks[name])

    return run


def bird_step(model: nn.Module, masks: dict[str, Tensor], x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    """The same with this library; no update of the topology is due."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    bird = FlyingBird(model, optimizer, init=masks, total_steps=10**6, interval=10**6)
    attack = PGD(EPS, STEP, steps)

    def run() -> None:
        attacked = attack(model, x, y)
        optimizer.zero_grad()
        functional.cross_entropy(model(attacked), y).backward()
        bird.step()

    return run


def sorting_update(weights: dict[str, Tensor], gradients: dict[str, Tensor], masks: dict[str, Tensor], rate: float) -> None:
    """Prune and grow by sorting every layer twice."""
    for name, weight in weights.items():
        existing = int(masks[name].sum())
        if existing == weight.numel():
            continue
        order = torch.sort(weight.abs().flatten()).values
        survivors = weight.abs().flatten() > order[weight.numel() - existing + int(rate * existing)].item()
        growing = existing - int(survivors.sum())
        slopes = gradients[name].abs().flatten() * ~survivors
        chosen = torch.sort(slopes, descending=True).indices[:growing]
        survivors[chosen] = True
        masks[name] = survivors.view_as(weight)
        weight.mul_(masks[name])


def topology_updates(device: str = "cpu") -> dict[str, Callable[[], object]]:
    """One update of every layer of PreAct-ResNet-18."""
    model = PreActResNet(10).to(device)
    masks = random_masks(model, 0.2)
    bird = FlyingBird(
        model, torch.optim.SGD(model.parameters(), lr=0.0), init=masks, total_steps=1, interval=1, rate=0.3, rate_end=0.3
    )
    for weight in bird.weights.values():
        weight.grad = torch.randn_like(weight)
    plain = {name: weight.detach().clone() for name, weight in bird.weights.items()}
    gradients = {name: weight.grad.clone() for name, weight in bird.weights.items() if weight.grad is not None}
    own = {name: mask.clone() for name, mask in masks.items()}
    return {"sorting every layer twice": lambda: sorting_update(plain, gradients, own, 0.3), "this library": bird._update}


def steps_of(model: nn.Module, x: Tensor, classes: int, steps: int) -> dict[str, Callable[[], object]]:
    """Attack alone, and whole steps, dense and sparse."""
    y = torch.arange(len(x)) % classes
    masks = random_masks(model, 0.2)
    full = {name: torch.ones_like(mask) for name, mask in masks.items()}
    models = [copy.deepcopy(model) for _ in range(5)]
    attack = PGD(EPS, STEP, steps)
    return {
        "step, straightforward": plain_step(models[0], masks, x, y, steps),
        "step, this library": bird_step(models[1], masks, x, y, steps),
        "step, this library, dense": bird_step(models[2], full, x, y, steps),
        "attack, straightforward": lambda: plain_attack(models[3], x, y, steps),
        "attack, this library": lambda: attack(models[4], x, y),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and a tenth of the widths")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rounds, scale = (4, 0.1) if options.quick else (6, 1.0)
    small = steps_of(MLP(10, 64, (256, 256)), torch.rand(64, 1, 8, 8), 10, 5)
    show("MLP 64-256-256-10, batch 64, 5 attack steps", interleaved(small, 10 * rounds), "step, straightforward")
    large = steps_of(PreActResNet(10, scale=scale), torch.rand(4, 3, 32, 32), 10, 10)
    title = f"PreAct-ResNet-18 (widths × {scale:g}), batch 4, 10 attack steps"
    show(title, interleaved(large, rounds, warmup=1), "step, straightforward")
    show("topology update, PreAct-ResNet-18", interleaved(topology_updates(), 2 * rounds, warmup=1), "sorting every layer twice")


if __name__ == "__main__":
    main()
