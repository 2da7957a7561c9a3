"""The step of an equation by foreach operations: each operation once, over the parameters' tensors together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atlas.l2o.drop_in import as_real, wide
from atlas.l2o.features import POWER_EPS
from atlas.methods.symbolic_l2o.modules import torch_operators
from atlas.methods.symbolic_l2o.program import Program

Tensors = list[Tensor] | tuple[Tensor, ...]
NATIVE_UNARY = {
    "neg": torch._foreach_neg,
    "exp": torch._foreach_exp,
    "tanh": torch._foreach_tanh,
    "sinh": torch._foreach_sinh,
    "erfc": torch._foreach_erfc,
    "abs": torch._foreach_abs,
    "sign": torch._foreach_sign,
}
NATIVE_BINARY = {
    "add": torch._foreach_add,
    "sub": torch._foreach_sub,
    "mul": torch._foreach_mul,
    "div": torch._foreach_div,
}


def operators(count: int) -> dict[str, Callable[..., Any]]:
    """Operators on lists of ``count`` tensors; a constant is a tensor without axes."""
    plain = torch_operators()

    def lists(value: Any) -> Tensors:
        return value if isinstance(value, list | tuple) else [value] * count

    def one_by_one(name: str) -> Callable[..., Tensors]:
        return lambda *args: [plain[name](*values) for values in zip(*map(lists, args), strict=True)]

    def native(name: str) -> Callable[..., Tensors]:
        def apply(x: Any, y: Any) -> Tensors:
            if isinstance(x, Tensor):
                return one_by_one(name)(x, y)
            return NATIVE_BINARY[name](x, float(y) if isinstance(y, Tensor) else y)

        return apply

    table = {name: one_by_one(name) for name in plain}
    table |= {name: lambda x, name=name: NATIVE_UNARY[name](lists(x)) for name in NATIVE_UNARY}
    table |= {name: native(name) for name in NATIVE_BINARY}
    table["square"] = lambda x: torch._foreach_mul(lists(x), lists(x))
    return table


def advance_all(
    program: Program, tensors: list[tuple[Tensor, Tensor, dict[str, Any]]], lr: float, betas: tuple[float, float]
) -> None:
    """One step on parameters that have taken the same number of steps; others are grouped by that number.

    Parameters
    ----------
    tensors : list
        (parameter, gradient, state) of each.
    """
    groups: dict[tuple[int, torch.dtype, torch.device], list[tuple[Tensor, Tensor, dict[str, Any]]]] = {}
    for parameter, gradient, store in tensors:
        groups.setdefault((store["step"], wide(parameter), parameter.device), []).append((parameter, gradient, store))
    for (step, dtype, _), members in groups.items():
        _advance(program, members, program.scalars(step, lr, betas), dtype)


def _advance(
    program: Program, members: list[tuple[Tensor, Tensor, dict[str, Any]]], scalars: dict[str, Any], dtype: torch.dtype
) -> None:
    gradients = [as_real(gradient).reshape(-1).to(dtype) for _, gradient, _ in members]
    stores = [store for _, _, store in members]
    present = _features(program, gradients, stores, scalars)
    table = operators(len(members))
    for feature, made in program.made.items():
        present[feature] = made.evaluate(table, present, iter(program.constants(gradients[0], made)))
    env = {}
    for name, (feature, lag) in program.columns.items():
        if lag == 0:
            env[name] = present[feature]
        else:
            slot = (scalars["slots"][feature] - lag) % program.history[feature]
            env[name] = [store["history"][feature][slot] for store in stores]
    raw = program.expression.evaluate(table, env, iter(program.constants(gradients[0], program.expression)))
    raw = raw if isinstance(raw, list | tuple) else [raw.expand_as(gradient) for gradient in gradients]
    if program.clamp is not None:
        raw = [torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0) for value in raw]
        torch._foreach_clamp_min_(raw, -program.clamp)
        torch._foreach_clamp_max_(raw, program.clamp)
    parameters = [as_real(parameter) for parameter, _, _ in members]
    updates = [value.view_as(parameter).to(parameter.dtype) for value, parameter in zip(raw, parameters, strict=True)]
    torch._foreach_add_(parameters, updates, alpha=scalars["lr"])
    for feature in program.history:
        memories = [store["history"][feature][scalars["slots"][feature]] for store in stores]
        torch._foreach_copy_(memories, present[feature])


def _features(program: Program, g: Tensors, stores: list[dict[str, Any]], scalars: dict[str, Any]) -> dict[str, Tensors]:
    """Moments in place, and the features that are used; as :meth:`.program.Program.advance` has them."""
    beta1, beta2 = scalars["betas"]
    moments = {name: [store["moments"][name] for store in stores] for name in stores[0]["moments"]}
    if program.first:
        torch._foreach_mul_(moments["m"], beta1)
        torch._foreach_add_(moments["m"], g, alpha=1 - beta1)
    if program.second:
        torch._foreach_mul_(moments["v"], beta2)
        torch._foreach_addcmul_(moments["v"], g, g, value=1 - beta2)
    for name, beta in program.means.items():
        torch._foreach_mul_(moments[name], beta)
        torch._foreach_add_(moments[name], g, alpha=1 - beta)
    for power in set(program.powers.values()):
        torch._foreach_mul_(moments[f"v{power:g}"], beta2)
        torch._foreach_add_(moments[f"v{power:g}"], torch._foreach_pow(torch._foreach_abs(g), power), alpha=1 - beta2)
    features: dict[str, Tensors] = {"grad": g, "mom": moments.get("m", []), **{name: moments[name] for name in program.means}}
    if program.first:
        features["mhat"] = torch._foreach_div(moments["m"], scalars["first_bias"])
    if program.second:
        features["d"] = torch._foreach_sqrt(torch._foreach_div(moments["v"], scalars["second_bias"]))
        normaliser = torch._foreach_add(features["d"], program.eps)
        features["g"] = torch._foreach_div(g, normaliser)
        if "m" in program.used:
            features["m"] = torch._foreach_div(features["mhat"], normaliser)
    if "time" in program.used:
        features["time"] = [torch.full_like(gradient, scalars["time"]) for gradient in g]
    for name, power in program.powers.items():
        mean = torch._foreach_div(moments[f"v{power:g}"], scalars["second_bias"])
        width = torch._foreach_add(torch._foreach_pow(mean, 1 / power), POWER_EPS)
        features[name] = torch._foreach_div(features["mhat"] if name == "n" else moments["m"], width)
    return {name: features[name] for name in program.used}
