"""Gated recurrent units on sensors, with and without a choice of features."""

from __future__ import annotations

from benchmarks.formulas import OPERATIONS, TRAINING

from atlas.study import Run

SENSORS = {"uci-har": (561, 6), "opportunity": (242, 18), "extrasensory": (225, 51)}
"""Features, and outputs."""


def recurrent(run: Run) -> float:
    """Products of a gated recurrence at every step of every sequence; gates on the inputs ask for gradients there too."""
    protocol, method = run.protocol_model(), run.recipe[0]
    settings = run.settings_model(method)
    features, outputs = SENSORS[run.data]
    hidden, upper = protocol.hidden, protocol.layers - 1
    inputs = 3 * hidden * features
    state = 3 * hidden**2 * (1 + 2 * upper) + hidden * outputs
    selector = hidden * features
    plain, gated = 2 * inputs + TRAINING * state, TRAINING * (inputs + state)
    chosen = gated + TRAINING * selector
    pair = 2 * chosen
    each = {
        "vfds": chosen,
        "vfds-st": chosen,
        "vfds-arm": pair,
        "vfds-arm-unbiased": pair,
        # the policy's logits of the states after the step, and with the policy frozen those that pay the cost
        "vfds-arm-published": pair + 2 * selector + (2 * selector if getattr(settings, "cost_path", False) else 0),
        "static": gated,
        "attention": chosen,
    }.get(method, plain)
    models = len(getattr(settings, "lams", ())) or 1
    if method == "group-lasso":
        models = 1 + len(settings.penalties)
    return OPERATIONS * protocol.steps * protocol.batch_size * protocol.stream.steps * models * each
