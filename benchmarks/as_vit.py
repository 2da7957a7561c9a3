"""The measure of one architecture beside a straightforward implementation, and what coarse tokens save, each in one run.

Theory. The length needs the speed |J x′(θ)| at n points. One backward pass per output channel gives J row by row: D₄ = 8d
passes, here 128; one product with the tangent x′(θ), in forward mode, gives all speeds for about two forward passes. The
curvature needs a second derivative, so D₄ backward passes through D₄ graphs, against six forward passes. The kernel of n
images needs the gradient of each by itself: n backward passes, against one of the whole batch and small products per layer.

Coarse tokens. A stem of stride 16 has 1/16 of the tokens of stride 4; but for the fixed head and rounding in the windows,
cost falls alike. With the published schedule a training costs 0.61 of a full one for the published Large model.

    python benchmarks/as_vit.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timing import interleaved, show
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.as_vit import (
    Circle,
    ProgressiveTokenizer,
    Topology,
    build,
    condition_number,
    extrinsic_curvature,
    great_circle,
    length_distortion,
    ntk_gram,
    without_norm,
)

SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"
SMALL = "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88"


def rows_of_jacobian(outputs: Tensor, inputs: Tensor, *, again: bool = False) -> Tensor:
    """∂ outputs / ∂ inputs for independent samples, one backward pass per output: (n, outputs, …)."""
    rows = [torch.autograd.grad(column.sum(), inputs, retain_graph=True, create_graph=again)[0] for column in outputs.unbind(1)]
    return torch.stack(rows, 1)


def plain_length(model: nn.Module, circle: Circle) -> float:
    """Speeds from the full Jacobian."""
    points = circle.x.clone().requires_grad_()
    jacobian = rows_of_jacobian(model.features(points), points)
    return float((jacobian * circle.dx[:, None]).flatten(2).sum(2).norm(dim=1).sum())


def plain_curvature(model: nn.Module, circle: Circle) -> float:
    """Velocity and acceleration, both one output at a time."""
    theta = circle.theta.clone().requires_grad_()
    first, second = circle.basis
    waves = theta.cos()[:, None, None, None], theta.sin()[:, None, None, None]
    velocity = rows_of_jacobian(model.features(first * waves[0] + second * waves[1]), theta, again=True)
    acceleration = rows_of_jacobian(velocity, theta)
    v, a = velocity.detach(), acceleration
    vv, aa, va = (v * v).sum(1), (a * a).sum(1), (v * a).sum(1)
    return float(((vv * aa - va.square()).clamp_min(0).sqrt() / vv.pow(1.5)).sum())


def plain_kernel(model: nn.Module, images: Tensor) -> float:
    """One forward and backward pass per image; all gradients are kept."""
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    rows = []
    for image in images:
        gradients = torch.autograd.grad(model.features(image[None]).sum(), weights, allow_unused=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).double())
    stacked = torch.stack(rows)
    values = torch.linalg.eigvalsh(stacked @ stacked.T)
    return float(values[-1] / values[0])


def without(model: nn.Module, measure: Callable[[], object]) -> Callable[[], object]:
    """The measure with LayerNorms off."""

    def run() -> object:
        with without_norm(model):
            return measure()

    return run


def measures(rounds: int) -> None:
    """Every measure, ours and the straightforward one; they agree before they are timed."""
    random = torch.Generator().manual_seed(0)
    model = build(Topology.parse(SEED)[0], width=16, img_size=32, num_classes=10, generator=random).eval()
    images = torch.randn(16, 3, 32, 32, generator=random)
    circle = great_circle((3, 32, 32), 10, generator=random)
    pairs = {
        "length": (
            without(model, lambda: plain_length(model, circle)),
            without(model, lambda: length_distortion(model.features, circle)),
        ),
        "kernel": (
            lambda: plain_kernel(model, images),
            lambda: condition_number(ntk_gram(model, images), computed_in=images.dtype),
        ),
    }
    for name, (plain, ours) in pairs.items():
        expected, found = float(plain()), float(ours())  # type: ignore[arg-type]
        assert abs(expected - found) < 1e-3 * abs(expected), (name, expected, found)
        show(
            f"{name}: one architecture, d = 16", interleaved({"straightforward": plain, "ours": ours}, rounds), "straightforward"
        )
    both = {
        "straightforward": lambda: (pairs["length"][0](), pairs["kernel"][0]()),
        "ours": lambda: (pairs["length"][1](), pairs["kernel"][1]()),
    }
    show("the measure of a search: length and kernel", interleaved(both, rounds), "straightforward")


def curvature(rounds: int) -> None:
    """The curvature at a quarter of the width: the straightforward form needs minutes at d = 16."""
    random = torch.Generator().manual_seed(0)
    model = build(Topology.parse(SEED)[0], width=4, img_size=32, num_classes=10, generator=random).eval()
    circle = great_circle((3, 32, 32), 10, generator=random)
    pair = {
        "straightforward": without(model, lambda: plain_curvature(model, circle)),
        "ours": without(model, lambda: extrinsic_curvature(model.features, circle.basis, circle.theta).sum()),
    }
    show("curvature: one architecture, d = 4", interleaved(pair, rounds, warmup=1), "straightforward")


def retokenisation(text: str, side: int, batch: int, rounds: int) -> None:
    """Training steps at every stride of the published schedule, and the whole training relative to full tokens."""
    topology, depths, width = Topology.parse(text)
    options = {"width": width or 32, "depths": depths or (1, 1, 1, 1)}
    model = build(topology, img_size=side, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
    tokenizer = ProgressiveTokenizer(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(1000, (batch,))

    def step(progress: float) -> Callable[[], None]:
        def run() -> None:
            tokenizer.step(progress)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return run

    begins = [begin for begin, _ in tokenizer.phases]
    steps = {f"stride {stride}": step(begin) for begin, stride in tokenizer.phases}
    seconds = interleaved(steps, rounds, warmup=1)
    finest = f"stride {tokenizer.phases[-1][1]}"
    show(f"training step, {text}, {side} pixels, batch {batch}", seconds, finest)
    shares = [end - begin for begin, end in zip(begins, [*begins[1:], 1.0], strict=True)]
    medians = [
        statistics.median(mine / base for mine, base in zip(values, seconds[finest], strict=True)) for values in seconds.values()
    ]
    cost = tokenizer.average_macs() / tokenizer.macs(1.0)
    spent = sum(share * ratio for share, ratio in zip(shares, medians, strict=True))
    print(f"  whole training at equal epochs: {cost:.3f} of the multiply-accumulates, {spent:.3f} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, and no network of full size")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    began = time.process_time()
    measures(5 if quick else 15)
    curvature(2 if quick else 5)
    retokenisation(f"{SEED},16", 64, 16, 5 if quick else 15)
    if not quick:
        retokenisation(SMALL, 224, 2, 3)
    print(f"\n{time.process_time() - began:.0f} CPU seconds")


if __name__ == "__main__":
    main()
