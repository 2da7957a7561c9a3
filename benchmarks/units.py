"""The units of work that ``python -m benchmarks`` times, each beside its plain form or a peer, both on the same numbers.

A unit is built anew in every process that times it, from a fixed seed. Its ``ours`` is the code of Atlas that the process
imports; its ``plain`` is what one would write first from the paper's formulas, or the library that others use for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Run = Callable[[], object]


@dataclass(frozen=True)
class Unit:
    """One row of the table.

    Attributes
    ----------
    name : str
        What the command line filters by.
    title, plain : str
        What is timed, and what it stands beside.
    build : callable
        Returns ``{"ours": run, "plain": run}``.
    goal : float
        The ratio plain ÷ ours that is wanted.
    rounds : int
        Interleaved rounds.
    repeats : int
        Calls per round, for units of a few milliseconds.
    """

    name: str
    title: str
    plain: str
    build: Callable[[], dict[str, Run]]
    goal: float
    rounds: int = 15
    repeats: int = 1


# Feature acquisition over time.


class CellLoop(nn.Module):
    """A gated recurrence over ``nn.GRUCell``, step by step, as the paper's formulas have it."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(features, hidden), nn.Linear(hidden, classes)
        self.policy = nn.Linear(hidden, features)

    def forward(self, x: Tensor, noise: Tensor, hard: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, T, D) and noise in logit space (T, B, D) to outputs (B, T, C), gates and logits (B, T, D)."""
        state = x.new_zeros(len(x), self.cell.hidden_size)
        outputs, gates, logits = [], [], []
        for step in range(x.shape[1]):
            alpha = self.policy(state)
            levels = alpha + noise[step]
            opened = torch.ones_like(alpha) if step == 0 else (levels > 0).to(x) if hard else torch.sigmoid(levels)
            state = self.cell(opened * x[:, step], state)
            outputs.append(self.head(state))
            gates.append(opened)
            logits.append(alpha)
        return torch.stack(outputs, 1), torch.stack(gates, 1), torch.stack(logits, 1)


def acquisition(relaxation: str) -> dict[str, Run]:
    """A training step at batch 10, 20 steps, 561 features, 256 hidden units, 6 classes."""
    import vfds

    size = vfds.SIZES[1]
    batch, length, features, hidden, classes = size
    x, y = vfds.example(batch, length, features, classes)
    model = CellLoop(features, hidden, classes)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def value() -> Tensor:
        drawn = torch.rand(length, batch, features)
        noise = torch.logit(drawn)
        if relaxation == "concrete":
            outputs, gates, _ = model(x, noise, hard=False)
            return functional.cross_entropy(outputs.flatten(0, 1), y.flatten()) + gates[:, 1:].mean()
        outputs, gates, logits = model(x, noise, hard=True)
        with torch.no_grad():
            other, swapped, _ = model(x, -noise, hard=True)
            costs = [
                functional.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="none").view(batch, length) + g.mean(-1)
                for o, g in ((outputs, gates), (other, swapped))
            ]
            weight = (costs[0] - costs[1])[:, 1:, None] * (0.5 - drawn.transpose(0, 1)[:, 1:])
        policy = (logits[:, 1:] * weight).mean(0).sum()
        return functional.cross_entropy(outputs.flatten(0, 1), y.flatten()) + policy

    return {"ours": vfds.competitor(size, relaxation, True), "plain": lambda: vfds.training_step(optimizer, value)}


# Sparse adversarial training.


def textbook_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """PGD as public libraries of attacks have it: the gradient is asked for the image, the parameters go on asking too."""
    adversarial = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1).detach()
    for _ in range(steps):
        adversarial.requires_grad_()
        gradient = torch.autograd.grad(functional.cross_entropy(model(adversarial), y), adversarial)[0]
        adversarial = adversarial.detach() + step * gradient.sign()
        adversarial = (x + (adversarial - x).clamp(-eps, eps)).clamp(0, 1).detach()
    return adversarial


def robust(kind: str, what: str) -> dict[str, Run]:
    """A step of masked adversarial training, or its attack alone: an MLP with 5 steps, PreAct-ResNet-18 with 10."""
    import sparse_robust as bench

    from atlas.methods.sparse_robust import PGD, random_masks
    from atlas.nn.convnets import MLP, PreActResNet

    if kind == "mlp":
        model, x, steps = MLP(10, 64, (256, 256)), torch.rand(64, 1, 8, 8), 5
    else:
        model, x, steps = PreActResNet(10), torch.rand(4, 3, 32, 32), 10
    y = torch.arange(len(x)) % 10
    mine, other = model, copy.deepcopy(model)
    if what == "step":
        masks = random_masks(model, 0.2)
        return {"ours": bench.bird_step(mine, masks, x, y, steps), "plain": bench.plain_step(other, masks, x, y, steps)}
    attack = PGD(bench.EPS, bench.STEP, steps)
    return {
        "ours": lambda: attack(mine, x, y),
        "plain": lambda: textbook_attack(other, x, y, bench.EPS, bench.STEP, steps),
    }


def topology() -> dict[str, Run]:
    """One update of every layer's topology."""
    import sparse_robust as bench

    plain, ours = bench.topology_updates().values()
    return {"ours": ours, "plain": plain}


# Learned optimisers.


def equation(kind: str, compiled: bool = False) -> dict[str, Run]:
    """A step of an equation on ResNet-18's parameters, as after a thousand steps, beside Adam (foreach)."""
    import symbolic_l2o as bench

    from atlas.methods.symbolic_l2o import SymbolicOptimizer, TanhTemplate

    options: dict[str, Any] = {"lr": 1e-3, "compiled": compiled}
    if kind == "m":
        mine: Any = SymbolicOptimizer(bench.parameters(), bench.ADAM_LIKE, betas=(0.9, 0.999), clamp=None, **options)
    elif kind == "three":
        mine = SymbolicOptimizer(bench.parameters(), bench.FEW, **options)
    else:
        template = TanhTemplate(weights=torch.linspace(0.05, 1, 20).reshape(2, 10)).expression
        mine = SymbolicOptimizer(bench.parameters(), template, **options)
    adam = torch.optim.Adam(bench.parameters(), foreach=True)
    for optimizer in (mine, adam):
        optimizer.step()
        for state in optimizer.state.values():
            state["step"] = state["step"] + 1000
    return {"ours": mine.step, "plain": adam.step}


def meta_window() -> dict[str, Run]:
    """A window of meta-training: eight replicates at once, beside one after the other."""
    import optimizer_amalgamation as bench

    task = bench.problem(64, 10, "relu", 64)
    one, many = bench.window(task, (8, 8)), bench.window(task, (8, 8), replicates=8)
    return {"ours": many, "plain": bench.times(one, 8)}


# Vision transformers.


def diversity() -> dict[str, Run]:
    """Forward and backward of Diverse-ViT's five terms at batch 8, 197 tokens, width 384."""
    import diverse_vit as bench

    from atlas.methods.diverse_vit import PatchMixup, attn_cosine, cond_orth, emb_contrast, emb_cosine

    batch, tokens, width, classes = bench.BATCH, bench.TOKENS, bench.WIDTH, bench.CLASSES
    first, last = (torch.randn(batch, tokens, width, requires_grad=True) for _ in range(2))
    maps = torch.randn(batch, bench.HEADS, tokens, tokens).softmax(-1).requires_grad_()
    weights = (0.02 * torch.randn(bench.MATRICES, width, width)).requires_grad_()
    logits = torch.randn(batch, tokens - 1, classes, requires_grad=True)
    _, target = PatchMixup(classes, 16, switch_prob=1.0)(torch.randn(batch, 3, 224, 224), torch.arange(batch))
    wanted = target.dense()[1]

    def dense_mixing(z: Tensor) -> Tensor:
        return sum((functional.cross_entropy(z[:, p], wanted[:, p]) for p in range(tokens - 1)), start=z.new_zeros(()))

    ours: list[Run] = [
        bench.backward(emb_cosine, last),
        bench.backward(emb_contrast, first, last),
        bench.backward(attn_cosine, maps),
        bench.backward(lambda w: cond_orth(w).sum(), weights),
        bench.backward(target.patch_loss, logits),
    ]
    plain: list[Run] = [
        bench.backward(bench.gram_cosine, last),
        bench.backward(bench.gram_contrast, first, last),
        bench.backward(bench.gram_heads, maps),
        bench.backward(bench.looped_weights, weights),
        bench.backward(dense_mixing, logits),
    ]
    return {"ours": lambda: [run() for run in ours], "plain": lambda: [run() for run in plain]}


def scaled(name: str) -> dict[str, Run]:
    """A training step of a block of DeiT-S with AttnScale or FeatScale, beside the plain block."""
    import anti_oversmoothing as bench

    made, inputs = bench.blocks(384, 6), torch.randn(4, 197, 384)
    return {"ours": bench.step(made[f"{name}, fused"], inputs), "plain": bench.step(made["plain, fused"], inputs)}


def controller(name: str) -> dict[str, Run]:
    """A step of UVC's controller, beside loops over blocks and heads."""
    import timm
    import uvc as bench

    from atlas.methods.uvc import UVCController

    model = timm.create_model(name)
    made = UVCController(model, 0.5)
    loops = bench.Looped(copy.deepcopy(model), UVCController(model, 0.5, "reference", skip=False))
    return {"ours": lambda: made.step(1e-4), "plain": lambda: loops.step(1e-4)}


def architecture(measure: str) -> dict[str, Run]:
    """A measure of one architecture of As-ViT's search, beside the full Jacobian or image by image."""
    import as_vit as bench

    random = torch.Generator().manual_seed(0)
    model = bench.build(bench.Topology.parse(bench.SEED)[0], width=16, img_size=32, num_classes=10, generator=random).eval()
    images = torch.randn(16, 3, 32, 32, generator=random)
    circle = bench.great_circle((3, 32, 32), 10, generator=random)
    if measure == "length":
        return {
            "ours": bench.without(model, lambda: bench.length_distortion(model.features, circle)),
            "plain": bench.without(model, lambda: bench.plain_length(model, circle)),
        }
    return {
        "ours": lambda: bench.condition_number(bench.ntk_gram(model, images), computed_in=images.dtype),
        "plain": lambda: bench.plain_kernel(model, images),
    }


# View synthesis and federated learning.


def warp() -> dict[str, Run]:
    """A view of 378 × 504 pixels warped into another camera, beside a z-buffer pixel by pixel."""
    import sinnerf as bench

    random = np.random.default_rng(0)
    matrix = np.array([[400.0, 0, 251.5], [0, 400, 188.5], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, 3] = (0.1, 0.02, -0.05)
    source, target = bench.Camera(matrix, np.eye(4), 378, 504), bench.Camera(matrix, pose, 378, 504)
    rgb, depth = random.random((378, 504, 3)), 2 + random.random((378, 504))
    return {
        "ours": lambda: bench.forward_warp(rgb, depth, source, target),
        "plain": lambda: bench.looped_warp(rgb, depth, source, target),
    }


def federated_round() -> dict[str, Run]:
    """A round of Split-Mix of the demo's size."""
    import split_mix as bench

    return {"ours": bench.federation("split-mix", "auto"), "plain": bench.textbook_round()}


LOOP, WRITTEN, ADAM = "nn.GRUCell in a loop", "written down", "Adam (foreach)"
UNITS = (
    Unit("vfds-concrete", "VFDS step, concrete (10, 20, 561, 256, 6)", LOOP, lambda: acquisition("concrete"), 2),
    Unit("vfds-arm", "VFDS step, ARM, same", LOOP, lambda: acquisition("arm"), 2),
    Unit("robust-mlp", "sparse robust step, MLP, 5 attack steps", WRITTEN, lambda: robust("mlp", "step"), 1.3, 25, 4),
    Unit("robust-resnet", "the same, PreAct-ResNet-18, 10 steps", WRITTEN, lambda: robust("resnet", "step"), 1.3, 7),
    Unit("pgd-mlp", "PGD-5, MLP", "autograd.grad per step", lambda: robust("mlp", "attack"), 1.2, 25, 4),
    Unit("pgd-resnet", "PGD-10, PreAct-ResNet-18", "autograd.grad per step", lambda: robust("resnet", "attack"), 1.2, 7),
    Unit("topology", "topology update, PreAct-ResNet-18", "every layer sorted twice", topology, 15, 7),
    Unit("equation-m", "equation −m, ResNet-18's parameters", ADAM, lambda: equation("m"), 2),
    Unit("equation-m-compiled", "… compiled", ADAM, lambda: equation("m", True), 2),
    Unit("equation-three", "equation of three terms, 7 lags", ADAM, lambda: equation("three"), 1),
    Unit("equation-three-compiled", "… compiled", ADAM, lambda: equation("three", True), 1),
    Unit("equation-tanh", "template of 20 tanh", ADAM, lambda: equation("tanh"), 0.25, 9),
    Unit("equation-tanh-compiled", "… compiled", ADAM, lambda: equation("tanh", True), 0.25, 9),
    Unit("diversity", "Diverse-ViT's five terms (8, 197, 384)", "Gram matrices, loops", diversity, 5, 9),
    Unit("uvc-tiny", "UVC controller step, DeiT-T", "loops", lambda: controller("deit_tiny_patch16_224"), 40, 15),
    Unit("uvc-base", "… DeiT-B", "loops", lambda: controller("deit_base_patch16_224"), 40, 7),
    Unit("warp", "z-buffer warp, 378 × 504", "loop over pixels", warp, 100, 5),
    Unit("length", "As-ViT length", "full Jacobian", lambda: architecture("length"), 30, 5),
    Unit("kernel", "As-ViT kernel", "image by image", lambda: architecture("kernel"), 8, 7),
    Unit("attnscale", "AttnScale, a block's step", "plain block", lambda: scaled("AttnScale"), 0.95),
    Unit("featscale", "FeatScale, a block's step", "plain block", lambda: scaled("FeatScale"), 0.95),
    Unit("split-mix", "Split-Mix round, 20 clients", WRITTEN, federated_round, 15, 7),
    Unit("l2o-window", "L2O window, 8 replicates", "one after the other", meta_window, 7, 7),
)
