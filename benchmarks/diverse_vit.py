"""Cost of Diverse-ViT: each term beside a straightforward form, and each term's share of a training step, in the same run.

Theory, at batch 8, 197 tokens, width 384, 6 heads, 1,000 classes. The embedding terms cost O(P·D) per image, not O(P²·D); the
weight term three matrix-vector products per matrix instead of three products of D × D matrices; mixing applies the head to every
token (75 M multiply-adds beside 4.6 G) and never forms the (batch, patches, classes) target. The attention map of one block costs
2·h·n²·d multiply-adds and h·n² memory; the other blocks keep fused attention.

    python benchmarks/diverse_vit.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
from timing import interleaved, show
from torch import Tensor
from torch.nn import functional

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

BATCH, TOKENS, WIDTH, HEADS, CLASSES, MATRICES = 8, 197, 384, 6, 1000, 36


def backward(term: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of one term."""

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        term(*inputs).backward()

    return run


def gram_cosine(last: Tensor) -> Tensor:
    """The embedding cosine by its Gram matrix."""
    unit = functional.normalize(last[:, 1:], dim=-1)
    return (unit @ unit.transpose(1, 2)).mean()


def gram_contrast(first: Tensor, last: Tensor) -> Tensor:
    """The contrastive term by its Gram matrix."""
    gram = functional.normalize(first[:, 1:], dim=-1) @ functional.normalize(last[:, 1:], dim=-1).transpose(1, 2)
    positive = gram.diagonal(dim1=1, dim2=2)
    negative = (gram.sum(-1) - positive) / (gram.shape[1] - 1)
    return -(positive.exp() / (positive.exp() + negative.exp())).log().mean()


def gram_heads(maps: Tensor) -> Tensor:
    """The attention term by its Gram matrix over heads."""
    unit = functional.normalize(maps.flatten(2), dim=-1)
    return (unit @ unit.transpose(1, 2)).mean()


def looped_weights(weights: Tensor) -> Tensor:
    """The weight term matrix by matrix, with the Gram matrices formed."""
    total = weights.new_zeros(())
    for weight in weights:
        gram = weight @ weight.T
        probe = gram @ torch.rand(len(weight), device=weight.device)
        largest = probe @ gram @ probe / (probe @ probe)
        shifted = gram - largest * torch.eye(len(weight), device=weight.device)
        other = shifted @ torch.rand(len(weight), device=weight.device)
        total = total + (other @ shifted @ other / (other @ other)) ** 2
    return total


def terms(rounds: int) -> None:
    """Each term alone, beside its straightforward form."""
    torch.manual_seed(0)
    first, last = (torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True) for _ in range(2))
    maps = torch.randn(BATCH, HEADS, TOKENS, TOKENS).softmax(-1).requires_grad_()
    weights = (0.02 * torch.randn(MATRICES, WIDTH, WIDTH)).requires_grad_()
    logits = torch.randn(BATCH, TOKENS - 1, CLASSES, requires_grad=True)
    _, target = PatchMixup(CLASSES, 16, switch_prob=1.0)(torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH))

    def dense_mixing(z: Tensor) -> Tensor:
        wanted = target.dense()[1]
        return sum((functional.cross_entropy(z[:, p], wanted[:, p]) for p in range(TOKENS - 1)), start=z.new_zeros(()))

    pairs: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "embedding cosine": (backward(emb_cosine, last), backward(gram_cosine, last)),
        "embedding contrast": (backward(emb_contrast, first, last), backward(gram_contrast, first, last)),
        "attention": (backward(attn_cosine, maps), backward(gram_heads, maps)),
        "weights": (backward(lambda w: cond_orth(w).sum(), weights), backward(looped_weights, weights)),
        "mixing": (backward(target.patch_loss, logits), backward(dense_mixing, logits)),
    }
    for name, (ours, plain) in pairs.items():
        show(f"{name}, forward and backward", interleaved({"here": ours, "straightforward": plain}, rounds), "here")


def saved_mebibytes(run: Callable[[], None]) -> float:
    """What autograd keeps of a step between forward and backward, storages counted once, weights included."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(saved.values()) / 2**20


def steps(rounds: int) -> None:
    """A training step of DeiT-S with each term alone and all together, beside the plain step."""
    images, labels = torch.randn(4, 3, 224, 224), torch.arange(4)
    released = DiversityConfig()
    variants = {"plain step": DiversityConfig.preset("none")}
    for name in COEFFICIENTS:
        variants[f"+ {name}"] = DiversityConfig.preset("none", **{name: getattr(released, name)})
    variants["all five"] = released
    runs: dict[str, Callable[[], None]] = {}
    for name, config in variants.items():
        torch.manual_seed(0)
        trainer = DiversityTrainer(timm.create_model("deit_small_patch16_224"), config)
        mix = PatchMixup(CLASSES, 16, generator=torch.Generator().manual_seed(0))

        def step(trainer: Any = trainer, mix: PatchMixup = mix) -> None:
            mixed, target = mix(images, labels)
            trainer.model.zero_grad()
            trainer.loss(trainer(mixed), target)[0].backward()

        runs[name] = step
    show("training step of DeiT-S, batch 4", interleaved(runs, rounds, warmup=1), "plain step")
    memory = {name: saved_mebibytes(run) for name, run in runs.items()}
    print(f"\nmemory kept for the backward pass\n  {'':<34}{'MiB':>10}{'ratio':>8}")
    for name, value in memory.items():
        print(f"  {name:<34}{value:>10.0f}{value / memory['plain step']:>8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    terms(5 if quick else 15)
    steps(3 if quick else 9)


if __name__ == "__main__":
    main()
