"""From Snakemake's resources to the scheduler's parameters.

The names of resources are those that Snakemake's own SLURM plugin uses, so that profiles carry over.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

SAME_MEANING = {
    "slurm_partition": "partition",
    "slurm_account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "gres": "gres",
    "exclude": "exclude",
    "nodelist": "nodelist",
    "nodes": "nodes",
}


@dataclass(frozen=True)
class Request:
    """What one job asks for; jobs of one rule with equal requests may share an array.

    Attributes
    ----------
    parameters : tuple
        Parameters of submitit's SLURM executor, as sorted pairs.
    extra : tuple
        Further options of ``sbatch``, as sorted pairs.
    minutes : int or None
        Time limit.
    cores : int
        Cores, for running on this machine.
    requeues : int
        How often the job may be started again; 0 forbids it.
    """

    parameters: tuple[tuple[str, Any], ...]
    extra: tuple[tuple[str, Any], ...]
    minutes: int | None
    cores: int
    requeues: int


def request(resources: Mapping[str, Any], threads: int, requeues: int, rule: str) -> Request:
    """Translate a job's resources.

    Raises
    ------
    WorkflowError
        A resource cannot be understood.
    """
    parameters: dict[str, Any] = {ours: resources[theirs] for theirs, ours in SAME_MEANING.items() if resources.get(theirs)}
    cores = int(resources.get("cpus_per_task") or threads)
    parameters["cpus_per_task"] = cores
    if resources.get("mem_mb_per_cpu"):
        parameters["mem_per_cpu"] = f"{int(resources['mem_mb_per_cpu'])}M"
    elif resources.get("mem_mb"):
        parameters["mem"] = f"{int(resources['mem_mb'])}M"
    extra = _options(str(resources.get("slurm_extra") or ""), rule)
    gpus = int(resources.get("gpu") or 0)
    if gpus:
        model = resources.get("gpu_model")
        name, count = _gpus_of_nodes(gpus, int(resources.get("nodes") or 1), rule)
        extra[name] = f"{model}:{count}" if model else count
    if resources.get("tasks"):
        extra["ntasks"] = int(resources["tasks"])
    if resources.get("clusters"):
        extra["clusters"] = resources["clusters"]
    own = resources.get("requeue")
    return Request(
        parameters=tuple(sorted(parameters.items())),
        extra=tuple(sorted(extra.items())),
        minutes=_minutes(resources.get("runtime"), rule),
        cores=cores,
        requeues=requeues if own is None else requeue_count(own),
    )


def _gpus_of_nodes(gpus: int, nodes: int, rule: str) -> tuple[str, int]:
    """Name and value of the option: SLURM may deal a job's GPUs out unevenly, so of several nodes each is told its number."""
    if nodes == 1:
        return "gpus", gpus
    if gpus % nodes:
        raise WorkflowError(f"rule {rule}: gpu is {gpus}, which {nodes} nodes cannot share evenly; it is the number of all nodes")
    return "gpus-per-node", gpus // nodes


def requeue_count(value: Any) -> int:
    """Read how often a job may be requeued: a number, or ``true`` (10) or ``false`` (0)."""
    words = {"true": 10, "yes": 10, "false": 0, "no": 0}
    text = str(value).strip().lower()
    if text in words:
        return words[text]
    if text.isdecimal():
        return int(text)
    raise WorkflowError(f"requeue is {value!r}; it is a number of times, or true or false")


def _minutes(value: Any, rule: str) -> int | None:
    if not value:
        return None
    try:
        return max(1, math.ceil(float(value)))
    except (TypeError, ValueError):
        raise WorkflowError(f"rule {rule}: runtime is {value!r}; it is a number of minutes, or a time such as 2h") from None


def _options(text: str, rule: str) -> dict[str, Any]:
    """Read ``--key=value --flag`` as ``sbatch`` does."""
    options: dict[str, Any] = {}
    for word in shlex.split(text):
        if not word.startswith("--"):
            raise WorkflowError(f"rule {rule}: slurm_extra holds {word!r}; write its options as --name=value or --name")
        name, equals, value = word.removeprefix("--").partition("=")
        options[name] = value if equals else True
    return options
