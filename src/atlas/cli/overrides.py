"""``--set key=value``: a run with a few settings changed, validated as the study's file is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from atlas.errors import UserError
from atlas.harness.run import Resources, Run
from atlas.harness.yaml_file import parse_yaml
from atlas.settings import merge, validate_settings


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """Turn ``["protocol.epochs=2", "budget=0.4"]`` into nested values; values are read as YAML scalars."""
    values: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"--set {text}: write key=value, for example protocol.epochs=2")
        nested: Any = parse_yaml(value, f"--set {key}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = merge(values, nested)
    return values


def apply_overrides(run: Run, texts: list[str]) -> Run:
    """Return a trial of a run with overrides applied: ``protocol.`` and ``resources.`` reach those, the rest reaches the method.

    The settings of one method of a recipe are reached by its name: ``uvc.budget=0.4``. The runs that this one needs
    keep their settings. A trial has checkpoints and results of its own (:attr:`Run.trial`); without overrides the run
    is returned as it is.
    """
    if not texts:
        return run
    values = parse_overrides(texts)
    protocol = merge(run.protocol, values.pop("protocol", None))
    resources = merge(run.resources.model_dump(), values.pop("resources", None))
    entries = {entry.name: entry for entry in run.method_entries}
    if len(entries) == 1:
        values = {run.recipe[0]: values}
    elif unknown := set(values) - set(entries):
        raise UserError(f"--set {unknown.pop()}: name the method first, for example {run.recipe[-1]}.setting=value")
    settings = {
        name: validate_settings(entry.settings, merge(run.settings[name], values.get(name)), "--set", name)
        for name, entry in entries.items()
    }
    owner = f"the protocol of {run.task}"
    return replace(
        run,
        protocol=validate_settings(run.task_entry.protocol, protocol, "--set protocol", owner),
        resources=Resources(**validate_settings(Resources, resources, "--set resources", "resources")),
        settings=settings,
        trial=True,
    )
