"""The command line: one command per verb, which the workflow's rules call as a person would."""

from atlas.cli.main import app, main

__all__ = ["app", "main"]
