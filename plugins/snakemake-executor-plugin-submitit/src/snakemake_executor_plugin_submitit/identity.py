"""Who a job is: its key, the same whenever it is submitted, the fingerprint of its definition, and its name in the queue."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface


def members(job: JobExecutorInterface) -> list[Any]:
    """Return the jobs of a group, or a list with the job itself where it is none."""
    return list(job.jobs) if job.is_group() else [job]  # type: ignore[attr-defined]


def rule_name(job: JobExecutorInterface) -> str:
    """Return the name of the job's rule, or of the group where the job is a group."""
    return str(job.groupid) if job.is_group() else str(job.rule.name)  # type: ignore[attr-defined]


def key_of(job: JobExecutorInterface) -> str:
    """Digest of what the job makes: the same before and after a restart."""
    made = sorted(
        [member.rule.name, sorted(map(str, member.output)), sorted(map(str, member.wildcards_dict.items()))]
        for member in members(job)
    )
    return _digest(made)


def fingerprint_of(job: JobExecutorInterface) -> str:
    """Digest of how the job makes it: input, command and parameters."""
    return _digest(
        sorted(
            [
                member.rule.name,
                sorted(map(str, member.input)),
                str(getattr(member, "shellcmd", None)),
                [re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for value in getattr(member, "non_derived_params", member.params)],
            ]
            for member in members(job)
        )
    )


def queue_name(workdir: Path, job: JobExecutorInterface, token: str, alone: bool) -> str:
    """``<directory>.<rule>.<token>``, with the wildcards of a job that leaves alone."""
    parts = [workdir.name, rule_name(job)]
    if alone and not job.is_group():
        parts += [str(value) for value in job.wildcards_dict.values()]  # type: ignore[attr-defined]
    return ".".join([*_words(parts), token])


def title(job: JobExecutorInterface) -> str:
    """Return the job's name as a person would say it: its rule and wildcards."""
    if job.is_group():
        return f"group {rule_name(job)}"
    wildcards = ", ".join(f"{name}={value}" for name, value in job.wildcards_dict.items())  # type: ignore[attr-defined]
    return f"{rule_name(job)} ({wildcards})" if wildcards else rule_name(job)


def _words(parts: Iterable[str]) -> list[str]:
    return [re.sub(r"[^\w+-]+", "-", part)[:40] for part in parts]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:20]
