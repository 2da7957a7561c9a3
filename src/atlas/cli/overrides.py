"""``--set key=value``: a run with a few settings changed, validated as the study's file is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from atlas.errors import UserError, did_you_mean
from atlas.harness.run import Resources, Run
from atlas.harness.yaml_file import parse_yaml
from atlas.settings import merge, validate_settings

GROUPS = ("protocol", "resources")


def parse_overrides(texts: list[str], groups: Collection[str] = GROUPS) -> dict[str, Any]:
    """Turn ``["protocol.epochs=2", "budget=0.4"]`` into nested values, each read as YAML; ``groups`` are mappings."""
    values: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"--set {text}: write key=value, for example protocol.epochs=2")
        nested: Any = parse_yaml(value, f"--set {key}")
        if not isinstance(nested, Mapping) and key in groups:
            raise UserError(f"--set {text}: {key} is a group of settings; write {key}.setting=value")
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
    entries = {entry.name: entry for entry in run.method_entries}
    values = parse_overrides(texts, (*GROUPS, *(entries if len(entries) > 1 else ())))
    protocol = merge(run.protocol, values.pop("protocol", None))
    resources = merge(run.resources.model_dump(), values.pop("resources", None))
    if len(entries) == 1:
        fields = next(iter(entries.values())).settings.model_fields
        if wrong := [key for key in values if key not in fields]:
            nearest = did_you_mean(wrong[0], [*fields, *(f"{group}.setting" for group in GROUPS)])
            raise UserError(f"--set {wrong[0]} is not a setting of {run.recipe[0]}; {nearest}")
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
        overrides=tuple(texts),
    )
