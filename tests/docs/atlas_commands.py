"""Says what is wrong with commands that begin with ``atlas``, without doing what they say.

Run in a checkout, as a program: reads a list of commands (lists of words) as JSON, and writes for each what is wrong, or nothing.
The command line's own parser judges verbs and options; the study that a command names judges its runs, tables and settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from atlas.cli import app
from atlas.cli.describing import describe
from atlas.cli.listing import LISTINGS
from atlas.cli.overrides import apply_overrides
from atlas.datasets import get_dataset
from atlas.harness.rehearsal import GPUS
from atlas.report import compare
from atlas.study import Study, select

PLACEHOLDER = "attnscale"
"""What stands for the word METHOD, which a reader replaces."""


def problem(words: list[str]) -> str:
    """What is wrong with one command; empty if nothing is."""
    parser: Any = typer.main.get_command(app)
    if len(words) == 2 and not words[1].startswith("-"):  # a verb that a sentence speaks of
        return "" if words[1] in parser.commands else f"there is no verb {words[1]}"
    parsed: dict[str, Mapping[str, Any]] = {}
    parser.callback = lambda **options: None
    for verb, command in parser.commands.items():
        for inner in getattr(command, "commands", {}).values():  # of a verb with verbs of its own
            inner.callback = partial(_remember, parsed, verb)
        command.callback = partial(_remember, parsed, verb)
    try:
        parser.main(words[1:], prog_name="atlas", standalone_mode=False)
        for verb, options in parsed.items():
            _check_names(verb, options)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _remember(parsed: dict[str, Mapping[str, Any]], verb: str, **options: Any) -> None:
    parsed[verb] = options


def _check_names(verb: str, options: Mapping[str, Any]) -> None:
    """Raise where a name does not exist."""
    study = Study.read(options["tier"]) if options.get("tier") else None
    for name in options.get("runs") or ():
        assert study is not None
        for run in select(study, [name]):
            apply_overrides(run, options.get("overrides") or [])
    for name in (*(options.get("datasets") or ()), options.get("data")):
        if name is not None:
            get_dataset(name)
    if verb == "list" and options["what"] not in LISTINGS:
        raise ValueError(f"there is no listing {options['what']}")
    if verb == "table":
        assert study is not None
        unknown = {tuple(name.split("/")) for name in options["tables"]} - set(study.tables)
        if unknown:
            raise ValueError(f"{unknown.pop()} is not a table of {study.source}")
    for name in (options.get("names") or ()) if verb == "describe" else ():
        describe(PLACEHOLDER if name == "METHOD" else name)
    if verb == "compare":
        compare(options["first"], options["second"])
    if verb == "rehearse" and options["gpu"] not in GPUS:
        raise ValueError(f"there is no figure for the GPU {options['gpu']}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    json.dump([problem(words) for words in json.load(sys.stdin)], sys.stdout)
