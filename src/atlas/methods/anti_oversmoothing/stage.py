"""The theory stage as a run: nothing is trained; the curve over depth is its history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.history import History
from atlas.harness.seeds import generator

if TYPE_CHECKING:
    from atlas.harness.study import Run

EARLY = 8


def run_stack(run: Run) -> dict[str, float]:
    """Follow a random stack through its depth; leaves the ratio per layer in the run's history."""
    from atlas.methods.anti_oversmoothing.theory import random_stack_ratios

    settings = run.settings_model(run.recipe[0])
    ratios = random_stack_ratios(**settings.model_dump(), generator=generator(run.seed, "random-stack"))
    history = History(run.history)
    for layer, ratio in enumerate(ratios.tolist()):
        history.add(layer, {"hf_dc_ratio": ratio})
    history.write()
    early = min(EARLY, settings.depth)
    return {"first": float(ratios[0]), "early": float(ratios[early]), "last": float(ratios[-1])}


def evaluate_stack(run: Run) -> dict[str, float]:
    """Return the ratios at the input, after eight layers and at the end."""
    from atlas.harness.execute import training_summary

    ratios = training_summary(run)
    return {
        "hf_dc_ratio_first": ratios["first"],
        "hf_dc_ratio_8": ratios["early"],
        "hf_dc_ratio_last": ratios["last"],
        "hf_kept_8": ratios["early"] / ratios["first"],
    }
