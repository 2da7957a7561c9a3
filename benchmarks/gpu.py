"""Everything that Atlas does on a GPU, beside its plain form or peer, in under seven minutes on one card.

Needs Python ≥ 3.11 with torch, torchvision, timm, numpy, sympy, safetensors, PyYAML, lazy_loader and pydantic
(pydantic_core, annotated_types, typing_inspection); torch.compile needs triton and a C compiler as ever. Nothing is
downloaded. A table in Markdown and the same as JSON are written after every section, so that a run that is cut off loses
nothing; a section that raises is one line in the table, the others go on, and the exit status is 1, as it is where a check
flags a row.

    PYTHONPATH=src python benchmarks/gpu.py [--quick] [--only deit,vfds] [--limit 400] [--output FILE.md]
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --quick    # a trial at tiny sizes
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products; must be set before the first of them

import as_vit
import diverse_vit
import gpu_checks
import optimizer_amalgamation
import sinnerf
import sparse_robust
import split_mix
import symbolic_l2o
import timm
import torch
import uvc
import vfds
from gpu_bench import Bench, Registry, Row, Run, in_precision, matmul_precision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale
from atlas.methods.as_vit import (
    MeasureSpec,
    Topology,
    build,
    condition_number,
    great_circle,
    length_distortion,
    measure,
    ntk_gram,
)
from atlas.methods.as_vit.geometry import Circle
from atlas.methods.diverse_vit import (
    DiversityConfig,
    DiversityTrainer,
    PatchMixup,
    attn_cosine,
    cond_orth,
    emb_contrast,
    emb_cosine,
)
from atlas.methods.diverse_vit.settings import COEFFICIENTS
from atlas.methods.sinnerf import Camera, CoarseFine, NeRFNetwork, Sampler, VectorMatrixField, all_rays, render_levels
from atlas.methods.sinnerf.bounds import Bounded
from atlas.methods.split_mix import Client, DigitCNN, FedTrainer, budgets
from atlas.methods.symbolic_l2o import SymbolicOptimizer
from atlas.methods.uvc import UVCController
from atlas.methods.vfds import SelectiveGRU, Sweep, selection_loss
from atlas.nn.convnets import PreActResNet
from atlas.nn.counts import forward_flops
from atlas.tasks.novel_view_synthesis.analytic import intrinsics, look_at

section = Registry()
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@section("peak", 15)
def peak(bench: Bench) -> None:
    """What the card does at best: matrix products, copies, launches."""
    side = bench.pick(8192, 256)
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float16", torch.float16, "highest"),
        ("TF32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        left, right = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        run = in_precision(precision, lambda left=left, right=right: [left @ right for _ in range(5)])
        bench.warm(run)
        seconds = min(bench.seconds_of(run) for _ in range(bench.pick(8, 2))) / 5
        bench.peak[name] = 2 * side**3 / seconds
        bench.fact(f"matrix product, {side}³, {name}", f"{bench.peak[name] / 1e12:.3g} TFLOP/s", 1e3 * seconds)
    data = torch.empty(bench.pick(2**28, 2**18), device=bench.device)
    target = torch.empty_like(data)
    bench.warm(lambda: target.copy_(data))
    seconds = min(bench.seconds_of(lambda: target.copy_(data)) for _ in range(bench.pick(10, 2)))
    bench.peak["bytes"] = 2 * data.nbytes / seconds
    bench.fact(f"copy of {data.nbytes / 2**20:.0f} MiB", f"{bench.peak['bytes'] / 1e12:.3g} TB/s read and written", 1e3 * seconds)
    small = torch.zeros(1, device=bench.device)
    launches = 1000

    def launch() -> None:
        for _ in range(launches):
            small.add_(1)

    bench.warm(launch)
    bench.fact("launch of one small kernel", "in a row, from Python", 1e3 * bench.seconds_of(launch) / launches)


section("correctness", 75)(gpu_checks.correctness)
section("mixed-precision", 20)(gpu_checks.mixed_precision)
section("placement", 20)(gpu_checks.placement)


# Vision transformers.


def deit(bench: Bench, size: str = "small") -> Any:
    """A DeiT on the device; two blocks of the smallest where it is only tried."""
    torch.manual_seed(0)
    if bench.quick:
        return timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48).to(bench.device)
    return timm.create_model(f"deit_{size}_patch16_224").to(bench.device)


def pictures(bench: Bench, batch: int) -> tuple[Tensor, Tensor]:
    """Images and labels on the device."""
    torch.manual_seed(0)
    side = bench.pick(224, 32)
    return torch.randn(batch, 3, side, side, device=bench.device), torch.arange(batch, device=bench.device) % 1000


def training_step(
    model: nn.Module, images: Tensor, objective: Callable[[], Tensor], precision: str = "bfloat16", foreach: bool = False
) -> Run:
    """Forward and backward pass under autocast, and AdamW, fused unless ``foreach``."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=not foreach, foreach=foreach)
    scaler = torch.amp.GradScaler(images.device.type, enabled=precision == "float16")
    kind, half = images.device.type, HALVES.get(precision)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, half or torch.bfloat16, enabled=half is not None):
            loss = objective()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    if precision in ("float32", "TF32"):
        return in_precision("highest" if precision == "float32" else "high", run)
    return run


def plain_step(model: Any, images: Tensor, labels: Tensor, **options: Any) -> Run:
    """A training step with cross-entropy."""
    return training_step(model, images, lambda: functional.cross_entropy(model(images), labels), **options)


def compiled_blocks(model: Any) -> Any:
    """Compile block by block: one compilation serves all blocks."""
    for block in model.blocks:
        block.compile()
    return model


def compiled(model: Any) -> Any:
    """Compile as a whole."""
    model.compile()
    return model


@section("deit", 90)
def deit_small(bench: Bench) -> None:
    """Training step of DeiT-S, timm alone: precision, compilation, memory format, optimiser."""
    batch = bench.pick(256, 2)
    images, labels = pictures(bench, batch)
    flops = 3 * batch * forward_flops(copy.deepcopy(deit(bench)), images[:1])
    last = images.to(memory_format=torch.channels_last)
    runs = {
        "bfloat16, eager, AdamW fused": plain_step(deit(bench), images, labels),
        "AdamW foreach": plain_step(deit(bench), images, labels, foreach=True),
        "channels-last": plain_step(deit(bench).to(memory_format=torch.channels_last), last, labels),
        "float16 with scaler": plain_step(deit(bench), images, labels, precision="float16"),
        "TF32": plain_step(deit(bench), images, labels, precision="TF32"),
        "float32": plain_step(deit(bench), images, labels, precision="float32"),
        "blocks compiled": plain_step(compiled_blocks(deit(bench)), images, labels),
        "compiled": plain_step(compiled(deit(bench)), images, labels),
    }

    def note(name: str, seconds: float) -> str:
        share = flops / seconds / bench.peak[name if name in ("TF32", "float32") else "bfloat16"] if bench.peak else float("nan")
        return f"{batch / seconds:.0f} images/s, {share:.0%} of the card's peak"

    bench.compare(f"training step of DeiT-S, batch {batch}", runs, seconds=25, notes=note)


def overhead(goal: float | None = None) -> Callable[[dict[str, float]], dict[str, str]]:
    """Notes that give a step's time relative to the plain one, which is the first."""
    aim = "" if goal is None else f", goal ≤ {goal}"

    def notes(medians: dict[str, float]) -> dict[str, str]:
        plain = next(iter(medians.values()))
        return {name: f"overhead {seconds / plain:.3f}{aim}" for name, seconds in medians.items()}

    return notes


def with_overhead(bench: Bench, unit: str, runs: dict[str, Run], seconds: float, goal: float | None = None) -> None:
    """Compare, and note each one's overhead over the first."""
    already = len(bench.rows)
    notes = overhead(goal)(bench.compare(unit, runs, seconds=seconds))
    for row in bench.rows[already:]:
        name = row.unit.removeprefix(f"{unit}: ")
        if row.ratio is not None and name in notes:
            row.note = notes[name]


@section("anti-oversmoothing", 50)
def anti_oversmoothing(bench: Bench) -> None:
    """AttnScale and FeatScale beside the plain step, in the same mode."""
    batch = bench.pick(256, 2)
    images, labels = pictures(bench, batch)
    changes: dict[str, Callable[[Any], Any]] = {
        "plain": lambda model: model,
        "AttnScale": apply_attnscale,
        "FeatScale": apply_featscale,
        "both": lambda model: apply_featscale(apply_attnscale(model)),
    }
    for mode, finish in (("eager", lambda model: model), ("blocks compiled", compiled_blocks)):
        for precision in ("bfloat16", "TF32") if mode == "eager" else ("bfloat16",):
            runs = {
                name: plain_step(finish(change(deit(bench))), images, labels, precision=precision)
                for name, change in changes.items()
            }
            with_overhead(bench, f"DeiT-S step, batch {batch}, {precision}, {mode}", runs, 10, goal=1.06)


def diverse_step(bench: Bench, config: DiversityConfig, images: Tensor, labels: Tensor, *, mixing: bool = True) -> Run:
    """A step of DeiT-S with some of Diverse-ViT's terms."""
    model = deit(bench)
    trainer = DiversityTrainer(model, config)
    mix = PatchMixup(1000, 16, generator=torch.Generator().manual_seed(0))

    def objective() -> Tensor:
        mixed, target = mix(images, labels) if mixing else (images, labels)
        return trainer.loss(trainer(mixed), target)[0]

    return training_step(model, images, objective)


@section("diverse-vit", 45)
def diverse(bench: Bench) -> None:
    """Diverse-ViT's terms on the step of DeiT-S, and alone beside straightforward forms."""
    batch = bench.pick(256, 2)
    images, labels = pictures(bench, batch)
    released = DiversityConfig()
    none = DiversityConfig.preset("none")
    runs = {
        "plain timm": plain_step(deit(bench), images, labels),
        "no term, no mixing": diverse_step(bench, none, images, labels, mixing=False),
        "mixed images, no term": diverse_step(bench, none, images, labels),
    }
    for name in COEFFICIENTS:
        runs[f"+ {name}"] = diverse_step(bench, DiversityConfig.preset("none", **{name: getattr(released, name)}), images, labels)
    runs["all five"] = diverse_step(bench, released, images, labels)
    with_overhead(bench, f"DeiT-S step, batch {batch}, bfloat16", runs, 14)
    diverse_terms(bench)


def diverse_terms(bench: Bench) -> None:
    """Each term alone, forward and backward."""
    batch, tokens, width, heads = bench.pick(64, 2), 197, bench.pick(384, 32), bench.pick(6, 2)
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": bench.device, "requires_grad": True}
    first, last = (torch.randn(batch, tokens, width, **options) for _ in range(2))
    maps = torch.randn(batch, heads, tokens, tokens, device=bench.device).softmax(-1).requires_grad_()
    weights = (0.02 * torch.randn(bench.pick(36, 4), width, width, device=bench.device)).requires_grad_()
    pairs: dict[str, tuple[Any, Any, tuple[Tensor, ...]]] = {
        "embedding cosine": (diverse_vit.gram_cosine, emb_cosine, (last,)),
        "embedding contrast": (diverse_vit.gram_contrast, emb_contrast, (first, last)),
        "attention": (diverse_vit.gram_heads, attn_cosine, (maps,)),
        "weights": (diverse_vit.looped_weights, lambda w: cond_orth(w).sum(), (weights,)),
    }
    for name, (plain, own, inputs) in pairs.items():
        runs = {"straightforward": diverse_vit.backward(plain, *inputs), "Atlas": diverse_vit.backward(own, *inputs)}
        bench.compare(f"{name}, ({batch}, {tokens}, {width})", runs, seconds=2)


# Recurrent selection, federations, radiance fields.


@section("vfds", 30)
def selection(bench: Bench) -> None:
    """VFDS's training step, fused beside the plain rollout."""
    for size in bench.pick(((64, 20, 561, 256, 6), (10, 20, 561, 256, 6)), ((4, 5, 12, 8, 3),)):
        for relaxation in ("concrete", "arm"):
            runs = {
                "plain rollout": vfds.competitor(size, relaxation, False, bench.device.type),
                "fused": vfds.competitor(size, relaxation, True, bench.device.type),
            }
            bench.compare(f"VFDS {relaxation}, (B, T, D, H, C) = {size}", runs, seconds=5)


def federation(bench: Bench, execution: str) -> Run:
    """A round of 20 clients with DigitCNN: one epoch of minibatches of 32 colour images."""
    count, clients = bench.pick(128, 32), bench.pick(20, 2)
    random = torch.Generator().manual_seed(0)
    people = [
        Client(torch.rand(count, 3, 28, 28, generator=random), torch.randint(0, 10, (count,), generator=random), float(budget))
        for budget in budgets("8-4-2-1", 20)[:clients]
    ]
    how: Any = execution
    trainer = FedTrainer("split-mix", DigitCNN, rounds=10**6, batch_size=32, execution=how, device=bench.device)
    trainer.start(people)
    return trainer.round


@section("split-mix", 30)
def split_mix_round(bench: Bench) -> None:
    """A round of 20 clients, batched beside one network after another."""
    device = bench.device.type
    runs = {
        "written down": split_mix.textbook_round(device),
        "one after another": split_mix.federation("split-mix", "sequential", device),
        "grouped": split_mix.federation("split-mix", "grouped", device),
        "vmap": split_mix.federation("split-mix", "vmap", device),
        "auto": split_mix.federation("split-mix", "auto", device),
    }
    bench.compare("round of 20 clients, MLP, 75 pairs × 6 steps", runs, seconds=9, warmup=1)
    convolutional = {
        "one after another": federation(bench, "sequential"),
        "grouped": federation(bench, "grouped"),
        "vmap": federation(bench, "vmap"),
        "auto": federation(bench, "auto"),
    }
    bench.compare("round of 20 clients, DigitCNN, 75 pairs × 4 steps", convolutional, seconds=9, warmup=1)


def field_step(field: nn.Module, rays: Tensor, colours: Tensor, sampler: Sampler) -> Run:
    """A step of a field inside the demo's box."""
    optimizer, world = torch.optim.Adam(field.parameters(), lr=1e-4), Bounded(field, sinnerf.BOX)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        seen = render_levels(world, rays, sampler)[-1].seen
        ((seen.rgb - colours) ** 2).mean().backward()
        optimizer.step()

    return run


@section("sinnerf", 35)
def radiance(bench: Bench) -> None:
    """SinNeRF's training step and rendering beside straightforward forms."""
    torch.manual_seed(0)
    ours, plain = VectorMatrixField().to(bench.device), sinnerf.LoopedField().to(bench.device)
    plain.load_state_dict(ours.state_dict())
    sampler = Sampler(coarse=32, fine=0, background=1.0)
    for count in bench.pick((384, 4096), (16,)):
        rays, colours = (part.flatten(0, 1).to(bench.device, torch.float32) for part in sinnerf.rays_of_the_demo(count))
        runs = {
            "component by component": field_step(plain, rays, colours, sampler),
            "Atlas": field_step(ours, rays, colours, sampler),
        }
        bench.compare(f"step, planes and lines, {len(rays)} rays × 32", runs, seconds=3)
    side = bench.pick(400, 16)
    camera = Camera(intrinsics(side), look_at(0, 32), side, side)
    grid = sinnerf.BOX.clip(all_rays(camera, 2, 6).to(bench.device))
    render = {"component by component": rendering(plain, grid, sampler), "Atlas": rendering(ours, grid, sampler)}
    bench.compare(f"rendering, planes and lines, {side} × {side} × 32", render, seconds=3, warmup=1)
    paper_step(bench)


def rendering(field: nn.Module, rays: Tensor, sampler: Sampler) -> Run:
    """Render all rays, 32,768 at a time."""

    @torch.no_grad()
    def run() -> None:
        for part in rays.split(32768):
            render_levels(Bounded(field, sinnerf.BOX), part, sampler)

    return run


def paper_step(bench: Bench) -> None:
    """The paper's step through two networks of 8 × 256: at once, and kind by kind, twice, as the official trainer does."""
    width, samples = bench.pick(256, 16), bench.pick(64, 4)
    torch.manual_seed(0)
    pair = CoarseFine(NeRFNetwork(width=width), NeRFNetwork(width=width)).to(bench.device)
    sampler = Sampler(coarse=samples, fine=samples, background=1.0)
    for count in bench.pick((128, 2048), (8,)):
        rays, colours = (part.flatten(0, 1).to(bench.device, torch.float32) for part in sinnerf.rays_of_the_demo(count))
        kinds = list(zip(rays.chunk(4), colours.chunk(4), strict=True))

        def loss(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
            errors = [
                ((one.seen.rgb - wanted) ** 2).mean() for part, wanted in parts for one in render_levels(pair, part, sampler)
            ]
            return torch.stack(errors).mean()

        def once(parts: list[tuple[Tensor, Tensor]], passes: int, loss: Any = loss) -> None:
            pair.zero_grad()
            loss(parts).backward()
            for _ in range(passes - 1):
                loss(parts)

        at_once = partial(once, [(rays, colours)], 1)
        runs: dict[str, Run] = {
            "kind by kind, twice": partial(once, kinds, 2),
            "Atlas, float32": in_precision("highest", at_once),
            "Atlas, TF32": at_once,
            "Atlas, bfloat16": under_autocast(bench, at_once),
        }
        bench.compare(f"paper's step, {len(rays)} rays × {3 * samples}, 8 × {width}", runs, seconds=4)


def under_autocast(bench: Bench, run: Run, dtype: torch.dtype = torch.bfloat16) -> Run:
    """The same under autocast."""

    def changed() -> None:
        with torch.autocast(bench.device.type, dtype):
            run()

    return changed


# Learned optimizers.


@section("l2o", 35)
def meta_training(bench: Bench) -> None:
    """Meta-training windows: replicates and instances at once beside one after another."""
    device, count = bench.device.type, bench.pick(8, 2)
    sizes = bench.pick(((784, 20, "sigmoid", 128, (20, 20)), (64, 10, "relu", 64, (8, 8))), ((16, 4, "relu", 8, (4,)),))
    for inputs, hidden, act, batch, cells in sizes:
        task = optimizer_amalgamation.problem(inputs, hidden, act, batch, device)
        window = partial(optimizer_amalgamation.window, task, cells, unroll=bench.pick(20, 3), device=device)
        runs = {
            f"{count} replicates in sequence": optimizer_amalgamation.times(window(), count),
            f"{count} replicates at once": window(replicates=count),
            f"{count} instances at once": window(instances=count),
            "one": window(),
        }
        bench.compare(f"window, {inputs}-{hidden}-10, LSTM{cells}", runs, seconds=8, warmup=1)


def weights_with_gradients(bench: Bench) -> list[Tensor]:
    """ResNet-18's parameters with a gradient each; two of them where it is only tried."""
    torch.manual_seed(0)
    found = [nn.Parameter(value.detach().to(bench.device)) for value in resnet18().parameters()][: bench.pick(None, 2)]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return list(found)


@section("symbolic-l2o", 50)
def symbolic(bench: Bench) -> None:
    """SymbolicOptimizer on ResNet-18's parameters beside Adam and AdamW."""
    make = partial(weights_with_gradients, bench)
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "Adam, foreach": lambda: torch.optim.Adam(make(), foreach=True),
        "AdamW, fused": lambda: torch.optim.AdamW(make(), fused=True),
    }
    rules = {"−m": symbolic_l2o.ADAM_LIKE, "three terms": symbolic_l2o.FEW, "20 tanh": gpu_checks.RULES["20 tanh"]}
    for name, rule in rules.items():
        own: dict[str, Any] = {"clamp": None} if name == "−m" else {}
        for mode, options in (("compiled", {"compiled": True}), ("foreach", {"compiled": False, "foreach": True})):
            optimizers[f"{name}, {mode}"] = partial(SymbolicOptimizer, make(), rule, 1e-3, **own, **options)  # type: ignore[arg-type]
    runs = {name: optimizer_step(optimizer()) for name, optimizer in optimizers.items()}
    if not bench.quick:
        runs["three terms, block by block"] = optimizer_step(
            SymbolicOptimizer(make(), rules["three terms"], 1e-3, compiled=False)
        )
    bench.compare("step, ResNet-18", runs, seconds=10)


def optimizer_step(optimizer: torch.optim.Optimizer) -> Run:
    """A step, as after some hundred ones, when bias corrections are 1."""
    optimizer.step()
    for state in optimizer.state.values():
        state["step"] = state["step"] + 1000
    return optimizer.step


# Compression, architectures, adversarial training.


@section("uvc", 25)
def compression(bench: Bench) -> None:
    """UVC's controller step beside loops, and beside a training step."""
    model = deit(bench)
    made = UVCController(model, 0.5)
    loops = uvc.Looped(model, UVCController(model, 0.5, "reference", skip=False))
    images, labels = pictures(bench, bench.pick(256, 2))
    runs: dict[str, Run] = {"loops": lambda: loops.step(1e-4), "Atlas": lambda: made.step(1e-4)}
    bench.compare("controller step, DeiT-S", runs, seconds=5, warmup=1)
    step = plain_step(deit(bench), images, labels)
    watched = deit(bench)
    watcher, own = UVCController(watched, 0.5), plain_step(watched, images, labels)

    def both() -> None:
        own()
        watcher.step(1e-4)

    with_overhead(bench, f"training step of DeiT-S, batch {len(images)}", {"plain": step, "with the controller": both}, 5)


@section("as-vit", 25)
def measures(bench: Bench) -> None:
    """As-ViT's measures beside straightforward forms."""
    seed = torch.Generator().manual_seed(0)
    model = build(Topology.parse(as_vit.SEED)[0], width=bench.pick(16, 4), img_size=32, num_classes=10, generator=seed)
    model.to(bench.device).eval()
    images = torch.randn(bench.pick(16, 4), 3, 32, 32, generator=seed).to(bench.device)
    drawn = great_circle((3, 32, 32), 10, generator=seed)
    circle = Circle(*(part.to(bench.device) for part in (drawn.theta, drawn.x, drawn.dx)))
    pairs: dict[str, tuple[Run, Run]] = {
        "length": (lambda: as_vit.plain_length(model, circle), lambda: length_distortion(model.features, circle)),
        "kernel": (
            lambda: as_vit.plain_kernel(model, images),
            lambda: condition_number(ntk_gram(model, images), computed_in=images.dtype),
        ),
    }
    for name, (plain, own) in pairs.items():
        runs = {"straightforward": as_vit.without(model, plain), "Atlas": as_vit.without(model, own)}
        bench.compare(f"{name}, one architecture", runs, seconds=4, warmup=1)
    spec, options = MeasureSpec(images=images, repeats=1), {"width": bench.pick(16, 4), "img_size": 32, "num_classes": 10}
    fresh = partial(build, Topology.parse(as_vit.SEED)[0], **options)
    bench.compare("a search's step, model and both measures", {"Atlas": lambda: measure(fresh, spec, seed)}, seconds=2, warmup=1)


class UnderAutocast(nn.Module):
    """A model that computes in bfloat16, called by code that knows nothing of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.model(x).float()


@section("sparse-robust", 45)
def adversarial(bench: Bench) -> None:
    """Sparse adversarial training of PreAct-ResNet-18: precision and memory format, attack, topology update."""
    batch, steps = bench.pick(128, 2), bench.pick(10, 2)
    torch.manual_seed(0)
    x, y = torch.rand(batch, 3, 32, 32, device=bench.device), torch.arange(batch, device=bench.device) % 10
    last = x.contiguous(memory_format=torch.channels_last)

    def network(wrapped: bool = False, channels_last: bool = False) -> nn.Module:
        torch.manual_seed(0)
        made = PreActResNet(10, scale=bench.pick(1.0, 0.25)).to(bench.device)
        made = made.to(memory_format=torch.channels_last) if channels_last else made  # type: ignore[call-overload]
        return UnderAutocast(made) if wrapped else made

    def bird(inputs: Tensor, model: nn.Module) -> Run:
        return sparse_robust.bird_step(model, sparse_robust.random_masks(model, 0.2), inputs, y, steps)

    plain = network()
    runs = {
        "straightforward, TF32": sparse_robust.plain_step(plain, sparse_robust.random_masks(plain, 0.2), x, y, steps),
        "Atlas, TF32": bird(x, network()),
        "Atlas, TF32, channels-last": bird(last, network(channels_last=True)),
        "Atlas, float32": in_precision("highest", bird(x, network())),
        "Atlas, bfloat16": bird(x, network(wrapped=True)),
        "Atlas, bfloat16, channels-last": bird(last, network(wrapped=True, channels_last=True)),
    }
    bench.compare(f"step with PGD-{steps}, batch {batch}", runs, seconds=14)
    attacked = network().eval()
    attack = sparse_robust.PGD(sparse_robust.EPS, sparse_robust.STEP, steps)
    attacks: dict[str, Run] = {
        "straightforward": lambda: sparse_robust.plain_attack(attacked, x, y, steps),
        "Atlas": lambda: attack(attacked, x, y),
    }
    bench.compare(f"PGD-{steps}, batch {batch}", attacks, seconds=5)
    if not bench.quick:
        bench.compare("topology update, PreAct-ResNet-18", sparse_robust.topology_updates(bench.device.type), seconds=5)


# Seeds side by side, and the same bits twice.


@section("seeds", 40)
def seeds(bench: Bench) -> None:
    """Twenty seeds stacked beside one after another: a small ViT, and VFDS's sweep."""
    count, batch = bench.pick(20, 2), bench.pick(128, 4)
    images = torch.randn(batch, 3, 32, 32, device=bench.device)
    labels = torch.arange(batch, device=bench.device) % 10
    models = [small_vit(bench, seed) for seed in range(count)]
    steps = [plain_step(model, images, labels) for model in models]
    runs: dict[str, Run] = {
        "one after another": lambda: [step() for step in steps],
        "stacked": stacked_step([small_vit(bench, seed) for seed in range(count)], images, labels),
        "one": plain_step(small_vit(bench, 0), images, labels),
    }
    bench.compare(f"{count} ViTs (192, 9 blocks, 64 tokens), batch {batch}", runs, seconds=10)
    size = bench.pick((64, 20, 561, 256, 6), (4, 5, 12, 8, 3))
    bench.compare(f"VFDS, {count} seeds, (B, T, D, H, C) = {size}", sweeps(bench, size, count), seconds=8)


def small_vit(bench: Bench, seed: int) -> Any:
    """A ViT for images of 32 × 32."""
    torch.manual_seed(seed)
    options = {"img_size": 32, "patch_size": 4, "num_classes": 10}
    width, depth, heads = bench.pick((192, 9, 3), (16, 1, 2))
    return timm.models.VisionTransformer(**options, embed_dim=width, depth=depth, num_heads=heads).to(bench.device)


def stacked_step(models: list[Any], images: Tensor, labels: Tensor) -> Run:
    """One step of all models on the same batch, their parameters stacked."""
    parameters, buffers = torch.func.stack_module_state(models)
    template = copy.deepcopy(models[0]).to("meta")
    optimizer = torch.optim.AdamW(list(parameters.values()), 1e-4, fused=True)

    def loss(own: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(template, (own, buffers), (images,))
        return functional.cross_entropy(logits.float(), labels)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16):
            total = torch.func.vmap(loss, randomness="different")(parameters).sum()
        total.backward()
        optimizer.step()

    return run


def sweeps(bench: Bench, size: tuple[int, ...], count: int) -> dict[str, Run]:
    """Forward, backward and Adam of several VFDS models, one after another and as a sweep."""
    batch, length, features, hidden, classes = size
    x, y = (part.to(bench.device) for part in vfds.example(batch, length, features, classes))
    cost = torch.ones(features, device=bench.device)
    models = [SelectiveGRU(features, hidden, classes).to(bench.device) for _ in range(count)]
    sweep = Sweep(models).to(bench.device)
    own = [torch.optim.Adam(model.parameters(), 1e-3) for model in models]
    all_of_them = torch.optim.Adam(sweep.parameters(), 1e-3)

    def one_by_one() -> None:
        for model, optimizer in zip(models, own, strict=True):
            vfds.training_step(optimizer, lambda model=model: selection_loss(model(x), y, cost=cost, lam=1.0).total)

    def together() -> None:
        vfds.training_step(all_of_them, lambda: selection_loss(sweep(x), y, cost=cost, lam=1.0).total.sum())

    return {"one after another": one_by_one, "sweep": together}


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic kernels, as runs of studies ask for them: with a warning where there is none."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def trainings(bench: Bench) -> dict[str, Callable[[], tuple[Run, list[Tensor]]]]:
    """Trainings that start anew at each call: a step, and the numbers that it changes."""
    images, labels = pictures(bench, bench.pick(64, 2))
    x = torch.rand(bench.pick(64, 2), 3, 32, 32, device=bench.device)
    y = torch.arange(len(x), device=bench.device) % 10
    size = bench.pick((64, 20, 561, 256, 6), (4, 5, 12, 8, 3))
    sampler = Sampler(coarse=32, fine=0, background=1.0)

    def of_deit() -> tuple[Run, list[Tensor]]:
        model = deit(bench, "tiny")
        return plain_step(model, images, labels), list(model.parameters())

    def of_diverse() -> tuple[Run, list[Tensor]]:
        model = deit(bench, "tiny")
        trainer = DiversityTrainer(model, DiversityConfig(), generator=torch.Generator().manual_seed(0))
        mix = PatchMixup(1000, 16, generator=torch.Generator().manual_seed(0))

        def objective() -> Tensor:
            mixed, target = mix(images, labels)
            return trainer.loss(trainer(mixed), target)[0]

        return training_step(model, images, objective), list(model.parameters())

    def of_vfds(relaxation: str) -> tuple[Run, list[Tensor]]:
        run: Any = vfds.competitor(size, relaxation, True, bench.device.type)
        return run, [value for group in run.args[0].param_groups for value in group["params"]]

    def of_field(make: Callable[[], nn.Module]) -> tuple[Run, list[Tensor]]:
        torch.manual_seed(0)
        field = make().to(bench.device)
        rays, colours = (
            part.flatten(0, 1).to(bench.device, torch.float32) for part in sinnerf.rays_of_the_demo(bench.pick(384, 8))
        )
        return field_step(field, rays, colours, sampler), list(field.parameters())

    def of_bird() -> tuple[Run, list[Tensor]]:
        torch.manual_seed(0)
        model = PreActResNet(10, scale=bench.pick(1.0, 0.25)).to(bench.device)
        masks = sparse_robust.random_masks(model, 0.2)
        return sparse_robust.bird_step(model, masks, x, y, 2), list(model.parameters())

    return {
        "DeiT-Tiny": of_deit,
        "Diverse-ViT on DeiT-Tiny": of_diverse,
        "VFDS concrete": partial(of_vfds, "concrete"),
        "VFDS ARM": partial(of_vfds, "arm"),
        "SinNeRF, planes and lines": partial(of_field, VectorMatrixField),
        "SinNeRF, network": partial(of_field, lambda: NeRFNetwork(width=bench.pick(256, 16))),
        "sparse adversarial training": of_bird,
    }


def outcome(start: Callable[[], tuple[Run, list[Tensor]]], steps: int) -> list[Tensor]:
    """Parameters after some steps from a fixed seed."""
    run, parameters = start()
    torch.manual_seed(1)
    for _ in range(steps):
        run()
    return [value.detach().clone() for value in parameters]


@section("determinism", 45)
def determinism(bench: Bench) -> None:
    """The same training twice: the same bits, with and without deterministic kernels, and what these cost."""
    steps = bench.pick(20, 2)
    for name, start in trainings(bench).items():
        for wanted in (False, True):
            mode = "deterministic kernels" if wanted else "ordinary kernels"
            with deterministic(wanted), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                first, second = outcome(start, steps), outcome(start, steps)
            same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            gap = max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
            without = sorted(
                {str(one.message).split(" does not")[0][:60] for one in caught if "deterministic" in str(one.message)}
            )
            note = f"{'the same bits' if same else f'differs by up to {gap:.1e}'} after {steps} steps"
            note += f"; no deterministic form of {', '.join(without)}" if without else ""
            bench.add(Row(bench.section, f"{name}, {mode}", note=note, flagged=wanted and not same))
        ordinary, asked = start()[0], start()[0]

        def strict(run: Run = asked) -> None:
            with deterministic(True):
                run()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with_overhead(bench, f"step of {name}", {"ordinary kernels": ordinary, "deterministic kernels": strict}, 1.5)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and three rounds: a trial, not a measurement")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"sections among {', '.join(section.sections)}")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out/gpu.md"), help="the table; JSON goes beside it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which no section starts (default 400)")
    found = parser.parse_args()
    found.only = [name for name in found.only.split(",") if name] or list(section.sections)
    unknown = [name for name in found.only if name not in section.sections]
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; choose from {', '.join(section.sections)}")
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick tries the script")
    return found


def main() -> int:
    """Run sections; 1 if one of them raised or a row is flagged."""
    options = arguments()
    torch.set_num_threads(1 if options.device == "cpu" else min(8, os.cpu_count() or 1))
    torch._dynamo.config.recompile_limit = 64
    bench = Bench(torch.device(options.device), options.quick, options.output, options.limit)
    for name, value in bench.head.items():
        bench.say(f"{name}: {value}")
    with matmul_precision("high"):
        for name in options.only:
            bench.run(name, section.sections[name])
    bench.say(f"written: {options.output}")
    return 0 if bench.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
