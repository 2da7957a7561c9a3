"""Curves of a run: rows of (step, values), written as one CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from atlas.harness.files import write_text


class History:
    """Rows of a training's curves; columns appear in the order in which they are first logged.

    Parameters
    ----------
    path : Path
        The CSV to write: ``step`` and one column per logged value; empty where a row has no value.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at a step; a second call for the same step completes its row."""
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(values)
        else:
            self.rows.append({"step": step, **{name: float(value) for name, value in values.items()}})

    def write(self) -> None:
        """Write the CSV, atomically; nothing is written while there is no row."""
        if not self.rows:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, buffer.getvalue())
