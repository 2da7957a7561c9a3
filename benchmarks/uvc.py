"""Cost of UVC: one controller step beside loops and beside a training step; exported models beside the dense one.

Theory. A step reads the output projections and fc2 once (L·D·(A + M) numbers) and sorts L·M scores; the loops rebuild every list
of scores layer by layer, head by head, with a top-k for each. What an exported model saves in time is at most what it saves in
multiply-accumulates; narrow values are padded with zeros on the CPU, where the fused kernel wants values as wide as queries.

    python benchmarks/uvc.py [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from timing import interleaved, show
from torch import Tensor

from atlas.methods.uvc import (
    CompressionPlan,
    UVCController,
    ViTShape,
    export,
    fit_to_budget,
    resource,
    resource_grad,
    unit_scores,
)
from atlas.methods.uvc.criteria import evenly_spaced_plan, one_shot_plan


class Looped:
    """The same step as loops over blocks and heads, as one would write it first: scores anew for every use, a top-k per group."""

    def __init__(self, model: Any, made: UVCController) -> None:
        self.blocks, self.shape, self.budget, self.cost = list(model.blocks), made.shape, made.budget, made.preset.cost
        self.s, self.r, self.y, self.p = (getattr(made, name).clone() for name in "sryp")
        self.z, self.top = 1e-3, made.top_s
        self.heads, self.dims, self.neurons = made.shape.widest

    def dim_scores(self, layer: int, head: int) -> Tensor:
        weight = self.blocks[layer].attn.proj.weight
        return torch.stack([weight[:, head * self.dims + j].square().sum() for j in range(self.dims)])

    def head_scores(self, layer: int) -> Tensor:
        return torch.stack([self.dim_scores(layer, head).sum() for head in range(self.heads)])

    def neuron_scores(self, layer: int) -> Tensor:
        return self.blocks[layer].mlp.fc2.weight.square().sum(0)

    def groups(self) -> list[tuple[Tensor, Tensor, Tensor, tuple[int, ...]]]:
        """(scores, count, dual) of every group of units, measured anew."""
        found = []
        for layer in range(self.shape.depth):
            found.append((self.head_scores(layer), self.s[layer, 0], self.y[layer, 0], (layer, 0)))
            found.append((self.neuron_scores(layer), self.s[layer, 1], self.y[layer, 1], (layer, 1)))
            for head in range(self.heads):
                found.append((self.dim_scores(layer, head), self.r[layer, head], self.p[layer, head], (layer, head, 0)))
        return found

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.shrink(rate)
        keep = torch.ones_like(self.s[:, 0])
        totals = torch.stack([self.head_scores(layer) for layer in range(self.shape.depth)])
        ds, dr, _ = resource_grad(self.shape, self.s, self.r, keep, totals, self.cost)
        gs, gr = torch.zeros_like(self.s), torch.zeros_like(self.r)
        for scores, count, dual, place in self.groups():
            lowest = scores.topk(min(math.ceil(count.item()) + 1, len(scores)), largest=False).values
            if len(place) == 2:
                gs[place] = dual * lowest[-1] + self.z * ds[place]
            else:
                gr[place[:2]] = dual * lowest[-1] + self.z * dr[place[:2]]
        for value, gradient in ((self.s, gs), (self.r, gr)):
            gradient = gradient / (gradient.abs().max() + 1e-6) if gradient.abs().max() > 1 else gradient
            value.sub_(0.02 * gradient).clamp_(min=0)
        for scores, count, _, place in self.groups():
            removed = scores.topk(math.ceil(count.item()), largest=False).values.sum()
            (self.y if len(place) == 2 else self.p)[place[:2]] += 1e-4 * removed
        totals = torch.stack([self.head_scores(layer) for layer in range(self.shape.depth)])
        self.z = max(0.0, self.z + float(resource(self.shape, self.s, self.r, keep, totals, self.cost)) - self.budget)

    def shrink(self, rate: float) -> None:
        for scores, count, dual, place in self.groups():
            block = self.blocks[place[0]]
            factor = 1 / (1 + 2 * rate * dual)
            for unit in scores.topk(math.ceil(count.item()), largest=False).indices.tolist():
                if len(place) == 3:
                    block.attn.proj.weight[:, place[1] * self.dims + unit] *= factor
                elif place[1] == 0:
                    block.attn.proj.weight[:, unit * self.dims : (unit + 1) * self.dims] *= factor
                else:
                    block.mlp.fc2.weight[:, unit] *= factor


def controller(name: str, rounds: int) -> None:
    """One step, in its own process time, beside loops and beside forward and backward of a batch of 8."""
    model = timm.create_model(name)
    made = UVCController(model, 0.5)
    loops = Looped(model, UVCController(model, 0.5, "reference", skip=False))
    images = torch.randn(8, 3, 224, 224)

    def train() -> None:
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)

    runs: dict[str, Callable[[], object]] = {"here": lambda: made.step(1e-4), "loops": lambda: loops.step(1e-4)}
    show(f"controller step, {name}", interleaved(runs, rounds), "here")
    few = max(2, rounds // 5)
    show(
        f"beside training on 8 images, {name}", interleaved({"here": runs["here"], "forward and backward": train}, few, 1), "here"
    )


def exported(rounds: int) -> None:
    """Forward passes of exported DeiT-Tiny models, batch 4."""
    torch.manual_seed(0)
    dense = timm.create_model("deit_tiny_patch16_224").eval()
    shape, scores = ViTShape.from_timm(dense), unit_scores(dense)
    mixed = evenly_spaced_plan(shape, 0.78)
    mixed.dims[::2, 0] = False
    plans = {
        "everything": CompressionPlan.identity(shape),
        "6 of 12 blocks": evenly_spaced_plan(shape, 0.52),
        "blocks, heads, neurons": fit_to_budget(mixed, shape, scores, 0.5),
        "dims and neurons": one_shot_plan(shape, scores, 0.5),
    }
    images = torch.randn(4, 3, 224, 224)
    runs: dict[str, Callable[[], object]] = {"dense": lambda: dense(images)}
    for name, plan in plans.items():
        small = export(dense, plan, check=False).eval()
        runs[f"{name}, R {plan.r_phys(shape):.3f}"] = lambda small=small: small(images)
    with torch.inference_mode():
        show("forward pass of exported DeiT-Tiny, batch 4", interleaved(runs, rounds, 3), "dense")


def repair(rounds: int) -> None:
    """Fitting a plan of DeiT-Base to a budget."""
    shape = ViTShape(12, 12, 64, 768, 3072, 197, 196, 16, 3)
    scores = (torch.rand(12, 12, 64), torch.rand(12, 3072))
    identity, low = CompressionPlan.identity(shape), fit_to_budget(CompressionPlan.identity(shape), shape, scores, 0.3)
    runs: dict[str, Callable[[], object]] = {
        "remove to 0.5": lambda: fit_to_budget(identity, shape, scores, 0.5),
        "add back from 0.3": lambda: fit_to_budget(low, shape, scores, 0.5),
    }
    show("fitting a plan of DeiT-Base", interleaved(runs, rounds), "remove to 0.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, DeiT-Tiny alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    controller("deit_tiny_patch16_224", 5 if quick else 15)
    if not quick:
        controller("deit_base_patch16_224", 5)
    exported(7 if quick else 20)
    repair(3 if quick else 9)


if __name__ == "__main__":
    main()
