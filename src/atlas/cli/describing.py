"""``atlas describe``: what a method is, what can be chosen in it, and a row to paste into a study."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from atlas.errors import UserError, did_you_mean
from atlas.harness.registry import RECIPE_BEFORE, Method, Paper, Task, load
from atlas.settings import merge

WIDTH = 110
BOUNDS = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "nothing (null)"}


def describe(name: str) -> str:
    """Describe a method in every task that has it, the protocol of a task, or the methods of a paper.

    Raises
    ------
    UserError
        Nothing has this name; suggests the nearest.
    """
    registry = load()
    methods = [entry for entry in registry.all_methods() if entry.name == name]
    if methods:
        return "\n\n".join(map(describe_method, methods))
    if name in registry.tasks:
        return describe_task(registry.tasks[name])
    if name in registry.papers:
        return describe_paper(registry.papers[name])
    known = {entry.name for entry in registry.all_methods()} | set(registry.tasks) | set(registry.papers)
    raise UserError(f"{name} is not a method, a task or a paper; {did_you_mean(name, known)}")


def describe_method(entry: Method) -> str:
    """A method as text: what it does, its source, its settings, and a row of a study."""
    lines = [f"{entry.name}: {entry.title}, {_article(entry.role)} of {entry.task}", *_wrapped(entry.summary), ""]
    if entry.paper:
        paper = load().papers[entry.paper]
        lines += [f"paper     {paper.citation}", f"          {paper.title}", f"          {paper.url}"]
    lines.append(f"code      {entry.package}" + (f", {entry.plugin or entry.train}" if entry.plugin or entry.train else ""))
    if entry.needs:
        lines.append("needs     " + ", ".join(f"{_needed(row)} (as its {role})" for role, row in entry.needs.items()))
    if entry.conflicts:
        lines.append(f"never in a recipe with {', '.join(entry.conflicts)}")
    if entry.stacks:
        lines.append("seeds     can be trained at once (stack_seeds of a study)")
    lines += ["", *_settings(entry.settings, entry.preset, f"settings  {entry.settings.__module__}:{entry.settings.__name__}")]
    lines += ["", f"A row to paste below {entry.task}.methods, or below methods of one of its datasets:", "", row(entry)]
    return "\n".join(lines)


def row(entry: Method) -> str:
    """A row of a study, as YAML, with every setting at its value."""
    return "\n".join(_block({entry.name: chosen(entry.settings, entry.preset, entry.smallest)}))


def _block(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Lines of YAML: mappings one below the other, everything else on a line."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_plain(value)}"


def chosen(settings: type[BaseModel], preset: Mapping[str, Any], smallest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings at their defaults; those that have none as the shortest run has them."""
    for values in (preset, merge(preset, smallest)):
        try:
            return settings.model_validate(dict(values)).model_dump(mode="json")
        except ValidationError:
            continue
    return {**preset}


def describe_task(task: Task) -> str:
    """A task as text: its question, its metrics, its protocol and its rows."""
    lines = [f"{task.name}: {task.title}", *_wrapped(task.question), ""]
    lines += _wrapped("metrics   " + ", ".join(metric.name for metric in task.metrics), "          ")
    names = load().methods.get(task.name, {})
    lines += _wrapped("rows      " + ", ".join(names), "          ")
    lines += ["", *_settings(task.protocol, {}, f"protocol  {task.protocol.__module__}:{task.protocol.__name__}")]
    return "\n".join(lines)


def describe_paper(paper: Paper) -> str:
    """A paper as text: its citation and its methods, each of which can be described."""
    lines = [f"{paper.slug}: {paper.title}", f"{paper.citation}, {paper.url}", ""]
    own = [entry for entry in load().all_methods() if entry.paper == paper.slug]
    for entry in own:
        lines += _wrapped(f"{entry.name:<24} {entry.summary}", " " * 25)
    return "\n".join([*lines, "", f"atlas describe {own[0].name} says more of one."] if own else lines)


def _settings(model: type[BaseModel], preset: Mapping[str, Any], heading: str) -> list[str]:
    table = list(rows(model, preset))
    description = inspect.cleandoc(model.__doc__ or "")
    lines = [heading, *(line for part in description.split("\n\n") for line in _wrapped(" ".join(part.split()), "  ", "  "))]
    if not table:
        return [heading, "  none"]
    widths = [max(len(cell[column]) for cell in table) for column in (0, 1)]
    lines.append("")
    lines += [f"  {name:<{widths[0]}}  {default:<{min(widths[1], 24)}}  {allowed}".rstrip() for name, default, allowed in table]
    return lines


def rows(model: type[BaseModel], preset: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, default and allowed values of every setting; those of nested models have dots in their names."""
    schema = model.model_json_schema()
    yield from _rows(schema, schema.get("$defs", {}), preset, "")


def _rows(
    schema: Mapping[str, Any], known: Mapping[str, Any], preset: Mapping[str, Any], before: str
) -> Iterator[tuple[str, str, str]]:
    for name, field in schema.get("properties", {}).items():
        target = _resolved(field, known)
        value = preset.get(name, field.get("default"))
        if target.get("properties"):
            yield from _rows(target, known, value if isinstance(value, Mapping) else {}, f"{before}{name}.")
            continue
        missing = name not in preset and "default" not in field
        given = "" if missing and name not in schema.get("required", ()) else "required" if missing else _plain(value)
        yield f"{before}{name}", given, allowed(field, known)


def allowed(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """What a setting may be, in words: ``whole number ≥ 1``, ``residual | attention``, ``list of …``."""
    field = _resolved(field, known)
    if "const" in field:
        return _plain(field["const"])
    if "enum" in field:
        return " | ".join(map(_plain, field["enum"]))
    for word in ("anyOf", "oneOf"):
        if word in field:
            return " or ".join(dict.fromkeys(allowed(option, known) for option in field[word]))
    if field.get("type") == "array":
        return _array(field, known)
    if field.get("type") == "object":
        return "mapping"
    limits = " and ".join(f"{sign} {field[word]:g}" for word, sign in BOUNDS if word in field)
    return f"{KINDS.get(field.get('type', ''), 'any value')} {limits}".strip()


def _array(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "prefixItems" in field:
        return f"[{', '.join(allowed(item, known) for item in field['prefixItems'])}]"
    items = field.get("items")
    return f"list of {allowed(items, known)}" if isinstance(items, Mapping) and items else "list"


def _resolved(field: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in field:
        field = known[field["$ref"].rpartition("/")[2]]
    return field


def _plain(value: Any) -> str:
    """A value as YAML writes it on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def _needed(row: str) -> str:
    return "the same recipe without it" if row == RECIPE_BEFORE else row


def _article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"


def _wrapped(text: str, later: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later)
