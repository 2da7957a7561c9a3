"""Compressed models as one file: safetensors, with the plan beside the weights. Nothing in it is code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from atlas.methods.uvc.exporting import export
from atlas.methods.uvc.plan import CompressionPlan
from atlas.nn.modes import mode_of

FORMAT = "atlas.uvc/1"


def save_compressed(
    path: Path | str, model: Any, plan: CompressionPlan, *, architecture: str | Literal[False] | None = None, **options: Any
) -> None:
    """Write a compressed model to one file, from which :func:`load_compressed` makes it again.

    Parameters
    ----------
    path : Path
        Usually ends in ``.safetensors``.
    model : nn.Module
        What :func:`.compression.compress` or :func:`.exporting.export` returned.
    plan : CompressionPlan
        What it keeps: ``result.plan``.
    architecture : str or False, optional
        Name of the dense model for ``timm.create_model``; by default what timm noted in the model. Without any, as for a model
        made by hand, and with ``False``, as for one that was changed since, :func:`load_compressed` must be told what makes the
        dense one.
    options
        What else ``timm.create_model`` needs; ``num_classes``, ``in_chans`` and ``img_size`` are read from the model.

    Raises
    ------
    TypeError
        The model is no module, or the plan no plan.
    ValueError
        The dense model that timm makes, cut as the plan says, has other weights than this one (names the first), or other
        outputs with these weights.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; what compress or export returned is needed")
    if not isinstance(plan, CompressionPlan):
        raise TypeError(f"plan is a {type(plan).__name__}; a CompressionPlan is needed, as in result.plan")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    network: Any = model
    noted = getattr(model, "pretrained_cfg", None) and network.pretrained_cfg.get("architecture")
    model_name = noted if architecture is None else architecture
    described: dict[str, str] = {"format": FORMAT, "plan": plan.to_json()}
    if model_name:
        height, width = network.patch_embed.img_size
        model_options = {
            "num_classes": network.num_classes,
            "in_chans": network.patch_embed.proj.weight.shape[1],
            "img_size": height if height == width else [height, width],
            **options,
        }
        what, cure = f"timm's {model_name} with {model_options}", "pass other options, or architecture=False"
        made = _cut(_timm(model_name, model_options), plan)
        _compare(made, tensors, what, cure)
        _fill(made, tensors)
        _compare_outputs(made, model, (1, model_options["in_chans"], height, width), what, cure)
        described |= {"architecture": model_name, "options": json.dumps(model_options)}
    save_file(tensors, path, described)


def load_compressed(path: Path | str, make: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Make a compressed model from its file, in evaluation mode.

    Parameters
    ----------
    path : Path
        What :func:`save_compressed` wrote.
    make : callable, optional
        Makes the dense model, of any weights; by default timm does, as the file says.

    Raises
    ------
    ValueError
        The file is none of these, or does not say what the dense model is; or the dense model, cut as the file says, has other
        weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    if described.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by save_compressed")
    if make is None and "architecture" not in described:
        raise ValueError(f"{path} does not name a model of timm: say what makes the dense one, load_compressed(path, make)")
    dense = make() if make is not None else _timm(described["architecture"], json.loads(described["options"]))
    small = _cut(dense, CompressionPlan.from_json(described["plan"]))
    _compare(small, tensors, "the dense model")
    _fill(small, tensors)
    return small.eval()


def _timm(architecture: str, options: dict[str, Any]) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(architecture, pretrained=False, **options)
    return made


def _cut(dense: Any, plan: CompressionPlan) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return export(dense, plan, check=False)


def _fill(small: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give a model copies of weights, in the type that they have; what is not saved, as tables of places, follows them."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        small.to(kinds.pop())
    small.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)  # a file is mapped: it may go


def _compare(small: nn.Module, tensors: dict[str, torch.Tensor], what: str, cure: str = "") -> None:
    """Refuse weights of other names or shapes than a model's."""
    own = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = next((name for name in {**own, **given} if own.get(name) != given.get(name)), None)
    if odd is not None:
        raise ValueError(
            f"{what}, cut by the plan, has {odd} {own.get(odd, 'not')}, and the compressed model {given.get(odd, 'not')}"
            + (f": {cure}" if cure else "")
        )


@torch.no_grad()
def _compare_outputs(made: nn.Module, model: nn.Module, shape: tuple[int, ...], what: str, cure: str) -> None:
    """Refuse a model that computes something else from the same weights: another activation, or another pooling."""
    weight = next(model.parameters())
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(weight)
    made = made.to(weight.device)
    with mode_of(made, "eval"), mode_of(model, "eval"):
        found, told = made(image).float(), model(image).float()
        rounding = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.05
        if not bool((found - told).abs().max() <= rounding * max(1.0, float(told.abs().max()))):
            raise ValueError(f"{what}, cut by the plan, computes something else with these weights: {cure}")
