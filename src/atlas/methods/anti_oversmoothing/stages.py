"""The theory stage as a run: nothing is trained; the curves over the depth are its history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from atlas.harness.history import History
from atlas.harness.seeds import generator
from atlas.methods.anti_oversmoothing.settings import OMEGAS
from atlas.methods.anti_oversmoothing.theory import random_stack_ratios

if TYPE_CHECKING:
    from atlas.harness.run import Run

EARLY = 8


def follow_random_stacks(run: Run) -> dict[str, float]:
    """Follow random stacks through their depth for every ω; leaves the mean ratio per layer in the run's history."""
    settings = run.settings_model(run.recipe[0])
    curves = {
        omega: torch.stack(
            [
                random_stack_ratios(settings, omega=omega, generator=generator(run.seed, "random-stack", repeat))
                for repeat in range(settings.repeats)
            ]
        ).mean(0)
        for omega in OMEGAS
    }
    history = History(run.history)
    for layer in range(len(curves[0.0])):
        history.add(layer, {f"omega {omega:g}": float(curve[layer]) for omega, curve in curves.items()})
    history.write()
    plain, scaled = curves[0.0], curves[1.0]
    return {
        "hf_dc_ratio_input": float(plain[0]),
        **{f"hf_dc_ratio_w{omega:g}": float(curve[-1]) for omega, curve in curves.items()},
        "hf_kept_8": float(plain[EARLY] / plain[0]),
        "hf_gain_w1": float(scaled[-1] / plain[-1]),
    }
