"""Cost of meta-training and of trained students, side by side in the same run.

The unit of work is one meta-training window: a student of LSTM(20, 20), teachers Adam and RMSprop, min-max, a perceptron
784-20-10 with sigmoid (P = 15,910), batch 128, U = 20, one CPU thread. The first-order engine keeps a graph of the student alone;
its cost is linear in U. Second order keeps the optimizee's graph too. Replicates share every kernel launch.

A student's ``step()`` costs about 4·H·(I + H) multiply-adds per parameter and cell, and 2 + 2·ΣH floats of state.

    python benchmarks/optimizer_amalgamation.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import interleaved, show
from torch import nn

from atlas.l2o import Examples, LearnedOptimizer, Optimizee, mlp
from atlas.methods.optimizer_amalgamation import Curriculum, Student, Trainer, TrainerConfig, make_pool

STEPS = 20


def problem(inputs: int, hidden: int, act: str, batch: int, device: str = "cpu") -> Optimizee:
    """A perceptron on random examples."""
    gen = torch.Generator().manual_seed(0)
    count = 10 * batch
    data = {"train": (torch.randn(count, inputs, generator=gen), torch.randint(10, (count,), generator=gen))}
    return mlp((inputs, hidden, 10), act, data=Examples(data, batch).to(device))  # type: ignore[arg-type]


def window(
    task: Optimizee,
    hidden: tuple[int, ...],
    *,
    unroll: int = STEPS,
    replicates: int = 1,
    instances: int = 1,
    second_order: bool = False,
    device: str = "cpu",
) -> Callable[[], object]:
    """One meta-training window of min-max with the small pool."""
    stage = {"depth": (10**9,), "validation_depth": (1,), "imitation": (0.1,), "resets": (1,)}
    curriculum = Curriculum(**stage, unroll=unroll, fixed=True, validation_resets=0, warmup=0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    cfg = TrainerConfig(instances=instances, spread=0.0, second_order=second_order)
    starts = [Student(hidden).to(device) for _ in range(replicates)]
    return Trainer(task, starts, make_pool("small"), curriculum, cfg, list(range(replicates)), "minmax").step


def times(run: Callable[[], object], count: int) -> Callable[[], None]:
    """The same, several times in sequence."""

    def repeated() -> None:
        for _ in range(count):
            run()

    return repeated


def windows(rounds: int) -> None:
    """The unit of work, its dependence on U, and what second order costs."""
    task = problem(784, 20, "sigmoid", 128)
    runs = {
        "U = 20": window(task, (20, 20)),
        "U = 10": window(task, (20, 20), unroll=10),
        "U = 40": window(task, (20, 20), unroll=40),
        "U = 20, second order": window(task, (20, 20), second_order=True),
    }
    show("one meta-training window, 784-20-10, LSTM(20, 20)", interleaved(runs, rounds, warmup=1), "U = 20")


def batched(rounds: int) -> None:
    """Replicates and instances side by side, beside the same number one after the other."""
    task = problem(64, 10, "relu", 64)
    for count in (2, 4, 8):
        runs = {
            f"{count} replicates in sequence": times(window(task, (8, 8)), count),
            f"{count} replicates batched": window(task, (8, 8), replicates=count),
            f"{count} instances in sequence": times(window(task, (8, 8)), count),
            f"{count} instances batched": window(task, (8, 8), instances=count),
        }
        show("one meta-training window, 64-10-10, LSTM(8, 8)", interleaved(runs, rounds), f"{count} replicates in sequence")


def steps(rounds: int) -> None:
    """A student's step beside Adam's, on a model of 100,000 parameters."""
    torch.manual_seed(0)
    models = {name: nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 33)) for name in ("adam", "small", "full")}
    for model in models.values():
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
    small = LearnedOptimizer(models["small"].parameters(), Student((8, 8)))
    full = LearnedOptimizer(models["full"].parameters(), Student((20, 20)))
    runs: dict[str, Callable[[], object]] = {
        "torch.optim.Adam": torch.optim.Adam(models["adam"].parameters()).step,
        "student, LSTM(8, 8)": small.step,
        "student, LSTM(20, 20)": full.step,
    }
    show("one step, 100,233 parameters", interleaved(runs, rounds), "torch.optim.Adam")
    print(f"\nstate, bytes per parameter\n  {'torch.optim.Adam':<34}{8:>10.0f}")
    for name, optimizer in (("student, LSTM(8, 8)", small), ("student, LSTM(20, 20)", full)):
        print(f"  {name:<34}{optimizer.state_bytes_per_parameter():>10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    windows(3 if quick else 9)
    batched(5 if quick else 15)
    steps(5 if quick else 15)


if __name__ == "__main__":
    main()
