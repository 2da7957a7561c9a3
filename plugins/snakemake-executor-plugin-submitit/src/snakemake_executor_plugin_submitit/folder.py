"""The executor's folder below ``.snakemake``, and writing into it so that no reader ever sees half a file.

::

    .snakemake/submitit/
        ledger.jsonl              what has been submitted
        session                   held by the Snakemake process that drives this directory
        results/<ticket>.json     how a job ended, written by the job itself
        jobs/<key>/               lease and starts of a job that is not collected yet
        logs/<rule>/              what jobs print, and submitit's files
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folder:
    """Paths below one working directory's ``.snakemake/submitit``."""

    root: Path

    @classmethod
    def of(cls, workdir: Path) -> Folder:
        """Return the executor's folder of a working directory."""
        return cls(workdir.absolute() / ".snakemake" / "submitit")

    @property
    def ledger(self) -> Path:
        """File that records what was handed to the scheduler (see :mod:`.ledger`)."""
        return self.root / "ledger.jsonl"

    @property
    def session(self) -> Path:
        """File that the Snakemake process which drives this directory holds locked (see :mod:`.session`)."""
        return self.root / "session"

    @property
    def results(self) -> Path:
        """Folder in which every job leaves a file that says how it ended."""
        return self.root / "results"

    def result(self, ticket: str) -> Path:
        """Return the path of the file in which a job says how it ended, by the ticket of its submission."""
        return self.results / f"{ticket}.json"

    def job(self, key: str) -> Path:
        """Return the folder in which a job keeps its lease and its number of starts, by its key."""
        return self.root / "jobs" / key

    def starts(self, key: str) -> int:
        """How often a job has been started since it was first submitted."""
        try:
            return (self.job(key) / "starts").read_text().count("\n")
        except OSError:
            return 0

    def logs(self, rule: str) -> Path:
        """Return the folder of the logs of a rule's jobs."""
        return self.root / "logs" / rule


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically: a crash leaves the old file or the new one, on disk and complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; ``None`` where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, and bring it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        content = f"{chr(10) if torn else ''}{line}\n".encode()
        if os.write(handle, content) != len(content):
            raise OSError(f"{path}: only a part of a line could be written; is the disk full?")
        os.fsync(handle)
    finally:
        os.close(handle)
