"""Trials of networks side by side, and merged: whether they give the numbers of the same networks one by one.

Layers with weights have a form for that; what has no weights runs as it is, and an operation across channels (a softmax, a
normalisation of vectors, a gated unit) then mixes networks, which only a pass tells. Weights and inputs of a trial are drawn by
themselves, it computes in evaluation mode and in double precision, and nothing of what is tried is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from atlas.methods.split_mix.export import MergedForm, merge_bases
from atlas.methods.split_mix.norms import norm_mode
from atlas.methods.split_mix.settings import Execution
from atlas.methods.split_mix.stacks import ParamStack, Runner, TensorDict
from atlas.methods.split_mix.widths import Role

IMAGES = 3
SIZES = (8, 16, 28, 32, 64, 224, 256)
"""Heights of the square images on which networks of an unknown input are tried."""
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest difference of logits, as a share of the largest logit, by the precision that the network can compute in."""


@dataclass(frozen=True)
class Trial:
    """Networks of one shape with weights of their own, and what they say one by one.

    Attributes
    ----------
    stack : ParamStack
        G networks with drawn weights.
    x : Tensor
        Drawn inputs (inputs, images, …).
    logits : Tensor
        (G, images, classes).
    """

    stack: ParamStack
    x: Tensor
    logits: Tensor

    @classmethod
    def of(cls, stack: ParamStack, example: Tensor, groups: int, inputs: int) -> Trial | None:
        """Draw a trial on inputs like ``example`` (n, …); None where a network cannot read them."""
        for dtype in TOLERANCES:
            random = torch.Generator().manual_seed(0)
            drawn = ParamStack(stack.module(0).to(dtype), _drawn(stack, groups, dtype, random), stack.roles)
            low, high = (float(end) for end in example.aminmax())
            images = torch.rand(inputs, IMAGES, *example.shape[1:], generator=random, dtype=dtype)
            x = (low + (high - low or 1.0) * images).to(example.device)
            logits = _passed(partial(_run, Runner(drawn, groups, inputs, "sequential"), drawn, x))
            if logits is not None:
                return cls(drawn, x, logits)
        return None

    def agrees(self, call: Callable[[], Tensor], expected: Tensor) -> bool:
        """Whether a call gives the expected logits, of any shape (…), up to rounding."""
        found = _passed(call)
        if found is None or found.shape != expected.shape:
            return False
        largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
        return torch.allclose(found, expected, rtol=0, atol=TOLERANCES[expected.dtype] * largest, equal_nan=True)


def settled_execution(stack: ParamStack, example: Tensor, execution: Execution, shared: bool) -> Execution:
    """Return how networks can run that are to run by ``execution``: ``vmap`` for ``auto`` where side by side they would mix.

    Parameters
    ----------
    stack : ParamStack
        The networks, one or more; only their shape matters.
    example : Tensor
        Inputs (n, …) as they take them; shape and range matter.
    shared : bool
        Whether networks of one client may read one input, which they do if roles are known and nothing is attacked.

    Raises
    ------
    TypeError
        ``grouped`` is asked for, and an operation of the network works across channels.
    """
    if execution not in ("auto", "grouped") or not _mix(stack, example, shared and bool(stack.roles)):
        return execution
    if execution == "grouped":
        raise TypeError(
            "side by side these networks give other numbers than one by one, for an operation without weights works across "
            "channels (a softmax, a normalisation, a gate): use the execution auto, vmap or sequential"
        )
    return "vmap"


def _mix(stack: ParamStack, example: Tensor, shared: bool) -> bool:
    """Whether grouped networks differ from each alone; tried with two networks per input where they share it."""
    for groups, inputs in ((4, 2), (2, 2)) if shared else ((2, 2),):
        trial = Trial.of(stack, example, groups, inputs)
        if trial is None:
            return False  # training says better what is wrong
        try:
            runner = Runner(trial.stack, groups, inputs, "grouped")
        except TypeError:
            continue
        return not trial.agrees(partial(_run, runner, trial.stack, trial.x), trial.logits)
    return False


def check_merged(base: nn.Module, roles: Mapping[str, Role], form: MergedForm, example: Tensor | None) -> None:
    """Refuse a merged form that does not give the mean logits of networks like ``base``, which is left as it is.

    Raises
    ------
    TypeError
        A layer has no such form, an operation works across channels, or no input is known and none of the usual sizes fits.
    """
    stack = ParamStack.of([base], roles)
    tried = (Trial.of(stack, each, 2, 1) for each in ([example] if example is not None else _likely_examples(base, roles)))
    trial = next((each for each in tried if each is not None), None)
    if trial is None:
        raise TypeError(
            "a merged network is tried before it is used: say what images are, SplitMix(…, example=images), or use ensemble"
        )
    merged = merge_bases([trial.stack.module(0), trial.stack.module(1)], roles, form)

    def run() -> Tensor:
        with norm_mode(merged, "clean", False):
            return merged(trial.x[0])

    if not trial.agrees(run, trial.logits.mean(0)):
        raise TypeError(
            "a merged network gives other logits than the mean of these networks, for an operation without weights works across "
            "channels or follows the classifier: use ensemble"
        )


def _likely_examples(base: nn.Module, roles: Mapping[str, Role]) -> Iterator[Tensor]:
    """Inputs (2, …) in [0, 1] of the usual shapes for the layer that reads the image."""
    first = next((base.get_submodule(name) for name, role in roles.items() if role.reads_image), None)
    if isinstance(first, nn.Linear):
        shapes: list[tuple[int, ...]] = [(first.in_features,)]
    else:
        shapes = [(first.in_channels, size, size) for size in SIZES] if isinstance(first, nn.Conv2d) else []
    device = next(base.parameters()).device
    for shape in shapes:
        yield torch.stack((torch.zeros(shape, device=device), torch.ones(shape, device=device)))


def _drawn(stack: ParamStack, groups: int, dtype: torch.dtype, random: torch.Generator) -> TensorDict:
    """Tensors (groups, …) about those of the first network: no two networks, and no entries of one tensor, are alike."""
    parameters = set(stack.trainable)
    drawn = {}
    for name, tensor in stack.tensors.items():
        own = tensor[0].expand(groups, *tensor.shape[1:]).clone()
        if name in parameters:
            bound = 1 / math.sqrt(own[0, 0].numel() if own.dim() > 2 else 1)
            noise = torch.rand(own.shape, generator=random, dtype=dtype).to(own.device)
            own = own.to(dtype) + bound * (2 * noise - 1)
        drawn[name] = own.to(dtype) if own.is_floating_point() else own
    return drawn


def _run(runner: Runner, stack: ParamStack, x: Tensor) -> Tensor:
    with norm_mode(runner.module, "clean", False):
        return runner(stack.tensors, x)


def _passed(call: Callable[[], Tensor]) -> Tensor | None:
    """What a pass returns, or None where it fails: any error of a network means that it does not run so."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return call()
    except Exception:
        return None
