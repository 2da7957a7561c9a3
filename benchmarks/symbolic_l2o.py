"""What a step of an equation costs on ResNet-18's 11.7 million parameters, beside Adam and beside the recurrent network.

Adam reads four vectors and writes three, 28 bytes per coordinate; with few operations for each it is bound by memory. An
equation of the same moments moves as much, plus 8 bytes per feature whose past it uses, and pays for its operators: a tanh costs
twice what an addition does even in cache. A template of 20 terms has 20 of them, and reads 18 vectors of history. A recurrent
network of H hidden units pays some 8·H·(I + H) operations and 2·H floats of state per coordinate and layer.

    python benchmarks/symbolic_l2o.py [--quick] [--compiled] [--threads N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import torch
from timing import interleaved, show
from torch import Tensor, nn
from torchvision.models import resnet18

from atlas.l2o import LearnedOptimizer, rnnprop
from atlas.methods.symbolic_l2o import SymbolicOptimizer, TanhTemplate

ADAM_LIKE = "-m_0"
FEW = "-0.7 * tanh(2.1 * m_0 + 0.6 * m_7) - 0.05 * g_0"  # of the form and size that symbolic regression finds


def parameters() -> list[Tensor]:
    """ResNet-18's parameters with a gradient each."""
    torch.manual_seed(0)
    found = [nn.Parameter(parameter.detach()) for parameter in resnet18().parameters()]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return list(found)


def held(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state per parameter."""
    seen: dict[int, int] = {}

    def walk(item: object) -> None:
        if isinstance(item, Tensor):
            seen[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            for part in item.values():
                walk(part)
        elif isinstance(item, Iterable) and not isinstance(item, str):
            for part in item:
                walk(part)

    walk(dict(optimizer.state))
    return sum(seen.values()) / sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def main() -> None:
    """Time steps, then print the state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--compiled", action="store_true", help="also compiled steps; compiling takes a minute")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 5 if arguments.quick else 21
    template = TanhTemplate(weights=torch.linspace(0.05, 1, 20).reshape(2, 10)).expression
    optimizers: dict[str, torch.optim.Optimizer] = {
        "torch.optim.Adam, foreach": torch.optim.Adam(parameters(), foreach=True),
        "torch.optim.Adam, fused": torch.optim.Adam(parameters(), fused=True),
        "-m (Adam as an equation)": SymbolicOptimizer(parameters(), ADAM_LIKE, 1e-3, betas=(0.9, 0.999), clamp=None),
        "equation of three terms": SymbolicOptimizer(parameters(), FEW, 1e-3),
        "template of 20 tanh": SymbolicOptimizer(parameters(), template, 1e-3),
    }
    if arguments.compiled:
        optimizers |= {
            "-m, compiled": SymbolicOptimizer(parameters(), ADAM_LIKE, 1e-3, betas=(0.9, 0.999), clamp=None, compiled=True),
            "equation of three terms, compiled": SymbolicOptimizer(parameters(), FEW, 1e-3, compiled=True),
            "template of 20 tanh, compiled": SymbolicOptimizer(parameters(), template, 1e-3, compiled=True),
        }
    for optimizer in optimizers.values():  # as after some hundred steps, when bias corrections are 1
        optimizer.step()
        for state in optimizer.state.values():
            state["step"] = state["step"] + 1000
    runs: dict[str, Callable[[], object]] = {name: optimizer.step for name, optimizer in optimizers.items()}
    show("one step, ResNet-18, 11,689,512 parameters", interleaved(runs, rounds), "torch.optim.Adam, foreach")

    # one group per tensor: the network's activations need memory for one tensor at a time
    network = {"recurrent network, RP": LearnedOptimizer([{"params": [p]} for p in parameters()], rnnprop("rp"))}
    beside: dict[str, Callable[[], object]] = {
        "torch.optim.Adam, foreach": optimizers["torch.optim.Adam, foreach"].step,
        **{k: o.step for k, o in network.items()},
    }
    show("beside the recurrent network", interleaved(beside, 3, warmup=1), "torch.optim.Adam, foreach")

    print("\nstate, bytes per parameter")
    for name, optimizer in {**optimizers, **network}.items():
        print(f"  {name:<34}{held(optimizer):>10.0f}")


if __name__ == "__main__":
    main()
