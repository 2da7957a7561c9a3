"""Recovery as a run: synthetic gradients go to an optimizer that is known, and its equation is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas.errors import AtlasError
from atlas.harness.files import write_json
from atlas.harness.seeds import derive_seed
from atlas.l2o import ANALYTIC
from atlas.methods.symbolic_l2o.plugin import RULE, scores_of, search_equation
from atlas.methods.symbolic_l2o.recording import join_windows, windows

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.methods.symbolic_l2o.settings import RecoverySettings

LR = 0.01


def recover(run: Run) -> Mapping[str, Any]:
    """Search the equation of a known optimizer in what it makes of synthetic gradients; leaves ``rule.json``."""
    settings: RecoverySettings = run.settings_model(run.recipe[0])
    random = np.random.default_rng(derive_seed(run.seed, "gradients"))
    parts = [(*windows(synthetic_trace(settings, random), settings.lags, random), index) for index in range(settings.runs)]
    records = join_windows(parts, ("grad",), settings.lags)
    if not len(records.y):
        raise AtlasError(f"{run.cell}: no window of {settings.lags} steps fits runs of {settings.steps}")
    distillation = search_equation(run, settings.search, records, ("grad",))
    write_json(run.checkpoint / RULE, distillation.as_json())
    return scores_of(distillation)


def synthetic_trace(settings: RecoverySettings, random: np.random.Generator) -> dict[str, np.ndarray]:
    """What the known optimizer makes of standard normal gradients, in the form of :func:`.recording.trace`.

    Returns
    -------
    dict
        ``z`` (steps, coordinates, 1), ``update`` and ``gradient`` (steps, coordinates).
    """
    options = {"beta": settings.beta} if settings.target == "momentum" else {}
    policy = ANALYTIC[settings.target](LR, **options)
    gradients = torch.from_numpy(random.normal(size=(settings.steps, settings.coordinates)))
    state = policy.init_state(gradients[:1])
    updates = []
    for gradient in gradients:
        update, state = policy.step(gradient.unsqueeze(0), state)
        updates.append(update[0])
    return {"z": gradients.unsqueeze(-1).numpy(), "update": torch.stack(updates).numpy(), "gradient": gradients.numpy()}
