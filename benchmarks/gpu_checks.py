"""Whether methods compute on the device what they compute on the CPU, wherever buffers, generators and labels lie.

``correctness`` compares float32 on the device (no TF32) with float64 on the CPU on the same input, beside float32 on the CPU,
whose difference is what the format itself costs. ``mixed_precision`` does so under autocast. ``placement`` tries what users do:
generators of the CPU, modules moved late, labels left behind.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import timm
import torch
from gpu_bench import Bench, matmul_precision, one_line
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale
from atlas.methods.as_vit import Circle, Topology, build, great_circle, length_distortion, ntk_gram, without_norm
from atlas.methods.diverse_vit import DiversityConfig, DiversityTrainer, PatchMixup, cond_orth
from atlas.methods.sinnerf import CoarseFine, NeRFNetwork, Sampler, VectorMatrixField, render_levels
from atlas.methods.sparse_robust import PGD, FlyingBird, random_masks
from atlas.methods.split_mix import MLP as FederatedMLP
from atlas.methods.split_mix import ClientBatches, SplitMix, local_train
from atlas.methods.symbolic_l2o import SymbolicOptimizer, TanhTemplate
from atlas.methods.uvc import UVCController
from atlas.methods.vfds import FixedMask, SelectiveGRU, arm_loss, selection_loss

Results = dict[str, Tensor]
Compute = Callable[[torch.device, torch.dtype], Results]
CPU = torch.device("cpu")
LIMIT = 1e-4
"""A larger relative difference is flagged, unless float32 on the CPU is nearly as far from float64."""
CLOSE = 4.0
FEW_TERMS = "-0.7 * tanh(2.1 * m_0 + 0.6 * m_7) - 0.05 * g_0"
RULES = {
    "-m": "-m_0",
    "three terms": FEW_TERMS,
    "20 tanh": TanhTemplate(weights=torch.linspace(0.05, 1, 20).reshape(2, 10)).expression,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_vit(depth: int = 3) -> Any:
    """A narrow ViT of 197 tokens with weights that do not depend on the device."""
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224", depth=depth, num_classes=10)


def gradients(model: nn.Module) -> Results:
    """Gradients of a module's parameters by name."""
    return {f"∂ {name}": value.grad for name, value in model.named_parameters() if value.grad is not None}


def classifier(change: Callable[[Any], Any]) -> Compute:
    """Logits and gradients of a changed ViT."""

    def compute(device: torch.device, dtype: torch.dtype) -> Results:
        model = change(small_vit()).to(device, dtype)
        images, labels = random(4, 3, 224, 224).to(device, dtype), torch.arange(4, device=device)
        logits = model(images)
        functional.cross_entropy(logits, labels).backward()
        return {"logits": logits, **gradients(model)}

    return compute


def diversity(device: torch.device, dtype: torch.dtype) -> Results:
    """Diverse-ViT's terms, each with its gradient at the images, and the whole loss."""
    model = small_vit().to(device, dtype)
    config = DiversityConfig(weight_orth=0.0, attn_block=1)
    images, labels = random(4, 3, 224, 224).to(device, dtype), torch.arange(4, device=device)
    with DiversityTrainer(model, config) as trainer:
        mixed, target = PatchMixup(10, 16, generator=torch.Generator().manual_seed(0))(images, labels)
        mixed.requires_grad_()
        out = trainer(mixed)
        found = {}
        for name, term in trainer.terms(out).items():
            (slope,) = torch.autograd.grad(term, mixed, retain_graph=True)
            found |= {name: term, f"∂ {name}": slope}
        total = trainer.loss(out, target)[0]
        total.backward()
        weights = torch.stack(trainer.weights).detach().requires_grad_()
        probes = torch.rand(2, *weights.shape[:2], generator=torch.Generator().manual_seed(0)).to(device, dtype)
        condition = cond_orth(weights, probes=probes)
        condition.sum().backward()
    return {**found, "total": total, "weight_orth": condition, "∂ weight_orth": weights.grad, **gradients(model)}


def selection(relaxation: str, fused: bool, policy: Any = "dynamic") -> Compute:
    """A loss of VFDS with its gradients."""

    def compute(device: torch.device, dtype: torch.dtype) -> Results:
        torch.manual_seed(0)
        how: Any = relaxation
        model = SelectiveGRU(30, 24, 5, policy=policy, relaxation=how, fused=fused).to(device, dtype)
        x = random(8, 10, 30).to(device, dtype)
        y = (torch.arange(80).reshape(8, 10) % 5).to(device)
        noise = torch.rand(10, 8, 30, generator=torch.Generator().manual_seed(1)).clamp(0.01, 0.99).to(device, dtype)
        cost = torch.linspace(0.5, 2, 30).to(device, dtype)
        if model.arm:
            loss = arm_loss(model, x, y, lam=1.0, cost=cost, noise=noise)
        else:
            loss = selection_loss(model(x, noise=noise), y, cost=cost, lam=1.0)
        loss.total.backward()
        return {"total": loss.total, "task": loss.task, **gradients(model)}

    return compute


def controller(device: torch.device, dtype: torch.dtype) -> Results:
    """UVC's variables and the shrunk weights after some steps."""
    model = small_vit(4).to(device, dtype)
    made = UVCController(model, 0.5, generator=torch.Generator().manual_seed(0), anneal_steps=8)
    for step in range(12):
        made.g.grad = (0.01 * random(4, 2, seed=step)).to(made.g)
        made.step(1e-2)
    found = {name: getattr(made, name) for name in "srgypz"}
    return found | {name: weight for name, weight in model.named_parameters() if "proj.weight" in name or "fc2" in name}


def symbolic(rule: Any, **options: Any) -> Compute:
    """Parameters after some steps of an equation."""

    def compute(device: torch.device, dtype: torch.dtype) -> Results:
        shapes = ((5,), (40, 30), (70_000,))
        parameters = [nn.Parameter(random(*shape).to(device, dtype)) for shape in shapes]
        own = options if device.type == "cuda" else {}
        optimizer = SymbolicOptimizer(parameters, rule, 0.01, **own)
        for step in range(12):
            for parameter in parameters:
                parameter.grad = random(*parameter.shape, seed=step).to(device, dtype)
            optimizer.step()
        return {str(tuple(parameter.shape)): parameter for parameter in parameters}

    return compute


def rays(device: torch.device, dtype: torch.dtype, count: int = 256) -> Tensor:
    """Rays from around (0, 0, 4) to the middle."""
    origins = torch.tensor([0.0, 0.0, 4.0]) + 0.1 * random(count, 3)
    directions = 0.3 * random(count, 3, seed=1) - origins
    return torch.cat([origins, directions / 4, torch.full((count, 1), 2.5), torch.full((count, 1), 5.5)], 1).to(device, dtype)


def dense_network() -> NeRFNetwork:
    """A small network that sees something everywhere: a fresh one's densities may all be cut off at zero."""
    made = NeRFNetwork(4, 64, frequencies=4)
    nn.init.normal_(made.sigma.weight)
    nn.init.constant_(made.sigma.bias, 0.5)
    return made


def rendering(make: Callable[[], nn.Module], fine: int) -> Compute:
    """Colours, depths and a field's gradients, without jitter."""

    def compute(device: torch.device, dtype: torch.dtype) -> Results:
        torch.manual_seed(0)
        field = make().to(device, dtype)
        levels = render_levels(field, rays(device, dtype), Sampler(coarse=32, fine=fine, background=1.0))
        sum(level.seen.rgb.square().mean() + 0.1 * level.seen.depth.mean() for level in levels).backward()  # type: ignore[union-attr]
        return {"rgb": levels[-1].seen.rgb, "depth": levels[-1].seen.depth, **gradients(field)}

    return compute


def federated(execution: str) -> Compute:
    """Base networks after local training; the CPU trains them one after the other."""

    def compute(device: torch.device, dtype: torch.dtype) -> Results:
        torch.manual_seed(0)
        stack = SplitMix(FederatedMLP).to(device, dtype).stack()
        images = torch.rand(2, 48, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        labels = (torch.arange(48) % 10).to(device)
        data = ClientBatches(list(images), [labels, labels], 16, [0, 1], owners=[0] * 4 + [1] * 4)
        how: Any = execution if device.type == "cuda" else "sequential"
        trained = local_train(stack, data, lr=0.05, epochs=1, execution=how)
        return trained.tensors

    return compute


def measures(device: torch.device, dtype: torch.dtype) -> Results:
    """As-ViT's length, and its kernel matrix."""
    seed = torch.Generator().manual_seed(0)
    topology = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]
    model = build(topology, width=8, img_size=32, num_classes=10, generator=seed).to(device, dtype).eval()
    drawn = great_circle((3, 32, 32), 10, generator=seed)
    circle = Circle(*(part.to(device, dtype) for part in (drawn.theta, drawn.x, drawn.dx)))
    with without_norm(model):
        length = length_distortion(model.features, circle)
    return {"length": torch.tensor(length), "kernel": ntk_gram(model, random(8, 3, 32, 32).to(device, dtype))}


def topology_update(device: torch.device, dtype: torch.dtype) -> Results:
    """Masks of a Flying Bird after two updates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10)).to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    masks = random_masks(model, 0.2, generator=torch.Generator().manual_seed(0))
    bird = FlyingBird(model, optimizer, init=masks, total_steps=10, interval=1)
    for step in range(2):
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = random(*parameter.shape, seed=10 * step + index).to(device, dtype)
        bird.step()
    return {**{name: mask.double() for name, mask in bird.masks.items()}, **dict(model.named_parameters())}


def attack(device: torch.device, dtype: torch.dtype) -> Results:
    """One ℓ2 step of PGD from the input; an ℓ∞ step would only show signs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 10)).to(device, dtype)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    found = PGD(1.0, 0.5, 1, norm="l2", random_start=False)(model, images, torch.arange(8, device=device))
    return {"change": found - images}


CASES: dict[str, Compute] = {
    "AttnScale": classifier(lambda model: apply_attnscale(model, init=0.1)),
    "FeatScale": classifier(lambda model: apply_featscale(model, init_dc=0.1, init_hc=0.2)),
    "Diverse-ViT's terms": diversity,
    **{
        f"VFDS {relaxation}, {'fused' if fused else 'plain'}": selection(relaxation, fused)
        for relaxation in ("concrete", "arm")
        for fused in (True, False)
    },
    **{
        f"VFDS, policy {name}": selection("concrete", True, policy)
        for name, policy in {
            "static": "static",
            "attention": "attention",
            "none": "none",
            "fixed": FixedMask(torch.arange(30) % 2 == 0),
        }.items()
    },
    "UVC controller, 12 steps": controller,
    **{f"symbolic optimizer, {name}, block by block": symbolic(rule, compiled=False) for name, rule in RULES.items()},
    **{f"symbolic optimizer, {name}, foreach": symbolic(rule, foreach=True, compiled=False) for name, rule in RULES.items()},
    "SinNeRF rendering, planes and lines": rendering(lambda: VectorMatrixField(24), 0),
    "SinNeRF rendering, coarse and fine networks": rendering(lambda: CoarseFine(dense_network(), dense_network()), 32),
    **{f"Split-Mix, local training, {execution}": federated(execution) for execution in ("grouped", "vmap", "sequential")},
    "As-ViT's measures": measures,
    "Flying Bird, two updates": topology_update,
    "PGD, one ℓ2 step": attack,
    **{f"symbolic optimizer, {name}, compiled": symbolic(rule, compiled=True) for name, rule in RULES.items()},
}
HALF = (
    "AttnScale",
    "FeatScale",
    "Diverse-ViT's terms",
    "VFDS concrete, fused",
    "VFDS concrete, plain",
    "VFDS arm, fused",
    "VFDS, policy static",
    "SinNeRF rendering, planes and lines",
    "SinNeRF rendering, coarse and fine networks",
    "PGD, one ℓ2 step",
)
"""Cases that are also run under autocast."""


def difference(found: Results, expected: Results) -> tuple[float, str]:
    """The largest difference relative to its tensor's largest entry, and the tensor; what is all but zero is let off."""
    scale = max(float(value.detach().abs().max()) for value in expected.values())
    worst = (0.0, "")
    for name, value in expected.items():
        wanted, got = value.detach().double().cpu(), found[name].detach().double().cpu()
        gap = float((got - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-6 * scale)
        if not gap <= worst[0]:
            worst = (gap, name)
    return worst


def correctness(bench: Bench) -> None:
    """float32 on the device against float64 on the CPU, TF32 off."""
    for name, compute in CASES.items():
        if bench.over:
            bench.fact(name, "not run: the section's time was over")
            continue
        try:
            expected = compute(CPU, torch.float64)
            single, _ = difference(compute(CPU, torch.float32), expected)
            with matmul_precision("highest"):
                gap, where = difference(compute(bench.device, torch.float32), expected)
        except Exception as error:
            bench.fail(name, one_line(error))
            continue
        note = f"largest relative difference {gap:.1e} ({where}); float32 on the CPU {single:.1e}"
        if gap <= LIMIT or gap <= CLOSE * single:
            bench.fact(name, note)
        else:
            bench.fail(name, note)


def mixed_precision(bench: Bench) -> None:
    """The same under autocast: does it run, is it finite, how far is it from float64."""
    for name, dtype in itertools.product(HALF, (torch.bfloat16, torch.float16)):
        unit = f"{name}, autocast to {str(dtype).removeprefix('torch.')}"
        if bench.over:
            bench.fact(unit, "not run: the section's time was over")
            continue
        try:
            expected = CASES[name](CPU, torch.float64)
            with torch.autocast(bench.device.type, dtype):
                found = CASES[name](bench.device, torch.float32)
            gap, where = difference(found, expected)
        except Exception as error:
            bench.fail(unit, one_line(error))
            continue
        broken = [key for key, value in found.items() if not bool(value.isfinite().all())]
        note = f"largest relative difference {gap:.1e} ({where})"
        if broken:
            bench.fail(unit, f"not finite: {', '.join(broken[:3])}")
        else:
            bench.fact(unit, note)


# Placement: each function gets the device; what it raises is what a user would see.


def late(change: Callable[[Any], Any]) -> Callable[[torch.device], object]:
    """A model changed on the CPU, and moved then."""
    return lambda device: change(small_vit(1)).to(device)(random(2, 3, 224, 224).to(device))


def made_on(change: Callable[[Any], Any]) -> Callable[[torch.device], object]:
    """A model made and changed on the device, and copied."""

    def run(device: torch.device) -> object:
        with torch.device(device):
            model = change(timm.create_model("deit_tiny_patch16_224", depth=1))
        return copy.deepcopy(model)(random(2, 3, 224, 224).to(device))

    return run


def diverse(device: torch.device, *, trained: Any = None, mixed: Any = None, labels: Any = None) -> object:
    """A step of Diverse-ViT with generators and labels where the caller wants them."""
    model = small_vit(2)
    trainer = DiversityTrainer(model, DiversityConfig(attn_block=1), generator=trained)
    model.to(device)
    labels = torch.arange(4, device=device) if labels is None else labels
    images, target = PatchMixup(10, 16, generator=mixed)(random(4, 3, 224, 224).to(device), labels)
    return trainer.loss(trainer(images), target)[0].backward()


def streaming(device: torch.device, relaxation: str = "concrete", x_on: Any = None, **options: Any) -> object:
    """A step of VFDS; ``generator`` as the caller wants it, costs and lengths left on the CPU."""
    model = SelectiveGRU(30, 16, 5, relaxation=relaxation).to(device)  # type: ignore[arg-type]
    x, y = random(4, 6, 30).to(x_on or device), torch.zeros(4, 6, dtype=torch.long).to(x_on or device)
    cost, lam = torch.ones(30), torch.tensor(1.0)
    if model.arm:
        return arm_loss(model, x, y, lam=lam, cost=cost, **options).total.backward()
    return selection_loss(model(x, **options), y, cost=cost, lam=lam).total.backward()


def fixed_mask(device: torch.device) -> object:
    """A policy whose mask came from the CPU, thresholded and streamed."""
    model = SelectiveGRU(30, 16, 5, policy=FixedMask(torch.arange(30) % 2 == 0), first_step=torch.arange(30) < 3).to(device)
    policy = model.stream()
    policy.request()
    return policy.observe(random(1, 30).to(device))


def moved_controller(device: torch.device) -> object:
    """A controller made before its model is moved."""
    model = small_vit(2)
    made = UVCController(model, 0.5)
    model.to(device)
    return made.step(1e-3)


def moved_bird(device: torch.device) -> object:
    """A Flying Bird made before its model is moved."""
    model = nn.Linear(50, 20)
    bird = FlyingBird(model, torch.optim.SGD(model.parameters(), 0.1), total_steps=4, interval=1)
    model.to(device)
    model(random(8, 50).to(device)).square().mean().backward()
    return bird.step()


def resumed(device: torch.device) -> object:
    """State of a symbolic optimizer from the CPU, loaded on the device."""
    states = []
    for where in (CPU, device):
        parameter = nn.Parameter(random(100).to(where))
        parameter.grad = torch.ones_like(parameter)
        optimizer = SymbolicOptimizer([parameter], FEW_TERMS)
        if states:
            optimizer.load_state_dict(states[0])
        optimizer.step()
        states.append(optimizer.state_dict())
    return states


def attacked(device: torch.device, generator: torch.Generator | None, labels_on: torch.device) -> object:
    """PGD with a generator and labels of some device."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).to(device)
    images = torch.rand(4, 3, 8, 8).to(device)
    return PGD(8 / 255, 2 / 255, 2)(model, images, torch.arange(4, device=labels_on), generator=generator)


def jittered(device: torch.device, generator: torch.Generator) -> object:
    """Rendering with jitter and density noise from a generator."""
    sampler = Sampler(coarse=8, fine=8, noise_std=1.0)
    return render_levels(VectorMatrixField(8).to(device), rays(device, torch.float32, 16), sampler, generator)


def placement_cases(device: torch.device) -> dict[str, Callable[[], object]]:
    """What users do, by name."""
    own = {where.type: torch.Generator(device=where).manual_seed(0) for where in (CPU, device)}
    cases: dict[str, Callable[[], object]] = {}
    for name, change in (("AttnScale", apply_attnscale), ("FeatScale", apply_featscale)):
        cases[f"{name}: applied on the CPU, moved later"] = lambda change=change: late(change)(device)
        cases[f"{name}: made under torch.device, copied"] = lambda change=change: made_on(change)(device)
    for where, generator in own.items():
        cases |= {
            f"Diverse-ViT: generators on {where}": lambda g=generator: diverse(device, trained=g, mixed=g),
            f"VFDS: generator on {where}, cost and λ on the CPU": lambda g=generator: streaming(device, generator=g),
            f"VFDS ARM: generator on {where}, cost on the CPU": lambda g=generator: streaming(device, "arm", generator=g),
            f"PGD: generator on {where}": lambda g=generator: attacked(device, g, device),
            f"Flying Bird: generator on {where}": lambda g=generator: random_masks(
                nn.Linear(50, 20).to(device), 0.2, generator=g
            ),
            f"SinNeRF: jitter from {where}": lambda g=generator: jittered(device, g),
        }
    return cases | {
        "VFDS: lengths on the CPU": lambda: streaming(device, lengths=torch.tensor([6, 5, 2, 1])),
        "VFDS: mask of the CPU, streamed": lambda: fixed_mask(device),
        "VFDS: x left on the CPU": lambda: streaming(device, x_on=CPU),
        "Diverse-ViT: labels left on the CPU": lambda: diverse(device, labels=torch.arange(4)),
        "PGD: labels left on the CPU": lambda: attacked(device, None, CPU),
        "UVC: controller made before the model is moved": lambda: moved_controller(device),
        "Flying Bird: made before the model is moved": lambda: moved_bird(device),
        "symbolic optimizer: state of the CPU loaded": lambda: resumed(device),
    }


MISTAKES = {
    "VFDS: x left on the CPU",
    "Diverse-ViT: labels left on the CPU",
    "PGD: labels left on the CPU",
    "UVC: controller made before the model is moved",
    "Flying Bird: made before the model is moved",
}
"""Cases that may be refused; the message is what the row is for. All others must work."""


def placement(bench: Bench) -> None:
    """Generators, buffers, labels and states on the other device."""
    for name, run in placement_cases(bench.device).items():
        try:
            run()
            bench.synchronise()
        except Exception as error:
            (bench.fact if name in MISTAKES else bench.fail)(name, f"refused: {one_line(error)}")
            continue
        bench.fact(name, "works")
