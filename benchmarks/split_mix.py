"""A federated round and a mixed model, batched beside sequential, in the same run.

Theory. A round of the demo has 75 pairs of a client and a base network, each with 6 minibatches of a small MLP: some 25
operations forward and backward, an optimiser step, and copies in and out. One after the other these are 75 × 6 steps whose
arithmetic (about 0.3 MFLOP) hides behind the cost of calling operations; side by side they are 6 steps of batched products. A
mixed model of n base networks is n forward passes, or one with groups.

    python benchmarks/split_mix.py [--quick]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from timing import interleaved, show
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.split_mix import MLP, Client, ClientBatches, DigitCNN, FedTrainer, SplitMix, budgets, local_train
from atlas.methods.split_mix.settings import Execution


def federation(method: str, execution: Execution, device: str = "cpu") -> Callable[[], object]:
    """A round of the demo's size: 20 clients of 50 images, 2 epochs of 3 minibatches of 16."""
    random = torch.Generator().manual_seed(0)
    people = [
        Client(torch.rand(50, 1, 8, 8, generator=random), torch.randint(0, 10, (50,), generator=random), float(budget))
        for budget in budgets("8-4-2-1", 20)
    ]
    trainer = FedTrainer(
        method,
        MLP,
        rounds=10**6,
        epochs=2,
        batch_size=16,
        drop_last=True,
        execution=execution,
        device=device,  # type: ignore[arg-type]
    )
    trainer.start(people)
    return trainer.round


def textbook_round(device: str = "cpu") -> Callable[[], object]:
    """The same round as it is written down: for every client, every minibatch, every base: a forward and a backward pass."""
    random = torch.Generator().manual_seed(0)
    model = SplitMix(MLP).to(device)
    counts = [round(8 * budget) for budget in budgets("8-4-2-1", 20)]
    images = torch.rand(20, 50, 1, 8, 8, generator=random).to(device)
    labels = torch.randint(0, 10, (20, 50), generator=random).to(device)

    def run() -> None:
        sums = [{name: torch.zeros_like(tensor) for name, tensor in base.state_dict().items()} for base in model.bases]
        visits = [0] * 8
        for client, count in enumerate(counts):
            chosen = torch.randperm(8)[:count].tolist()
            bases = [copy.deepcopy(model.bases[index]).train() for index in chosen]
            optimizer = torch.optim.SGD([p for base in bases for p in base.parameters()], 0.1, momentum=0.9, weight_decay=5e-4)
            for _ in range(2):
                for batch in torch.randperm(50)[:48].split(16):
                    optimizer.zero_grad()
                    for base in bases:
                        functional.cross_entropy(base(images[client, batch]), labels[client, batch]).backward()
                    optimizer.step()
            for index, base in zip(chosen, bases, strict=True):
                visits[index] += 1
                for name, tensor in base.state_dict().items():
                    sums[index][name] += tensor
        for base, total, count in zip(model.bases, sums, visits, strict=True):
            if count:
                base.load_state_dict({name: tensor / count for name, tensor in total.items()})

    return run


def convolutional_step(execution: Execution, device: str = "cpu") -> Callable[[], object]:
    """One step of the eight base networks of a full-budget client: DigitCNN, batch 32."""
    model = SplitMix(DigitCNN).to(device)
    stack = model.stack()
    data = ClientBatches(
        [torch.rand(32, 3, 28, 28, device=device)], [torch.randint(0, 10, (32,), device=device)], 32, [0], owners=[0] * 8
    )
    return lambda: local_train(stack, data, lr=0.1, epochs=1, execution=execution)


def inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A forward pass without gradients."""

    @torch.no_grad()
    def run() -> Tensor:
        return model(images)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 3 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    torch.manual_seed(0)
    demo = {
        "written down (client, batch, base)": textbook_round(),
        "sequential path": federation("split-mix", "sequential"),
        "vmap": federation("split-mix", "vmap"),
        "grouped": federation("split-mix", "grouped"),
    }
    show("Split-Mix, a round of the demo: 75 pairs, 6 steps", interleaved(demo, rounds), "written down (client, batch, base)")
    slim = {kind: federation("sheterofl", kind) for kind in ("sequential", "grouped")}
    show("Slimmable HeteroFL, a round of the demo", interleaved(slim, rounds), "sequential")  # type: ignore[arg-type]
    steps = {kind: convolutional_step(kind) for kind in ("sequential", "vmap", "grouped")}
    show("8 base networks of DigitCNN, one step, batch 32", interleaved(steps, rounds), "sequential")  # type: ignore[arg-type]
    model, images = SplitMix(DigitCNN).eval(), torch.rand(32, 3, 28, 28)
    forms = {form: inference(model.customize(1.0, form=form), images) for form in ("ensemble", "grouped", "dense")}  # type: ignore[arg-type]
    forms["the ordinary wide network"] = inference(DigitCNN().eval(), images)
    show("DigitCNN of width 1 deployed, batch 32", interleaved(forms, rounds), "ensemble")


if __name__ == "__main__":
    main()
