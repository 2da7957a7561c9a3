"""One cell of a study, as data: what to compute, with which settings, from what, and where its files lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas.harness.registry import Method, Metric, Task, resolve
from atlas.settings import Natural, Positive, Settings

TRIAL = "-trial"


class Resources(Settings):
    """What one run asks of the machine; the workflow passes it to the scheduler.

    ``gpus`` are those of each of its ``nodes``; with more than one in all, as many processes (ranks) train together, and the
    numbers stay the same. ``threads`` and ``memory_mb`` are those of a node. ``ranks`` says how many processes a node has, where
    it is not one for each GPU: on CPUs. A rank that does not answer for ``hang_minutes`` ends the run.

    Training saves its full state every ``save_minutes``, and when it is told to stop. ``device`` is ``auto`` (CUDA, else
    Apple's MPS, else the CPU), or names one as torch does.
    """

    threads: int = 1
    memory_mb: int = 4096
    minutes: int = 60
    gpus: int = 0
    nodes: Natural = 1
    ranks: Natural | None = None
    hang_minutes: Positive = 10.0
    save_minutes: float = 5.0
    device: str = "auto"

    @property
    def ranks_per_node(self) -> int:
        """Processes of each node that train together."""
        return self.ranks or max(1, self.gpus)

    @property
    def all_gpus(self) -> int:
        """Number of GPUs on all nodes together."""
        return self.nodes * self.gpus

    @property
    def all_ranks(self) -> int:
        """Number of training processes on all nodes together."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Run:
    """One cell of a study: tier / task / dataset / method / seed, with everything needed to compute it.

    Attributes
    ----------
    dataset : str
        The benchmark's name in paths; a study may define several on one ``data`` set.
    data : str
        The acquired dataset that the run reads; empty where its data is generated on the fly.
    stands_for : str
        The dataset that the study names, where another one is read in its place (``substitutes``); else empty.
    method : str
        The row's name; ``recipe`` holds the registered methods that it combines.
    protocol : dict
        Validated protocol of the task, as plain values.
    settings : dict
        Registered method's name to its validated settings, as plain values.
    needs : dict
        Role to the run whose artefacts this one reads.
    batched : bool
        Whether one job computes all seeds of the row.
    first : bool
        Whether its seed is the first of the study's: what is dear and only for looking at is made of that one alone.
    stack_seeds : bool
        Whether the study asks for the seeds of a row to be trained at once, where that can be: see :attr:`stacked`.
    trial : bool
        Whether settings were changed for once (``--set``): its files lie beside the study's, in ``<tier>-trial``, and no table,
        claim or page reads them.
    overrides : tuple of str
        What ``--set`` said of a trial, as a person wrote it.
    limit : int, optional
        Steps of every training loop that are carried out; a rehearsal does one. ``None`` does all.
    task_entry : Task
        The registered task.
    method_entries : tuple of Method
        The registered methods of the recipe, in the order in which they act.
    """

    tier: str
    task: str
    dataset: str
    data: str
    method: str
    recipe: tuple[str, ...]
    seed: int
    protocol: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    resources: Resources
    needs: Mapping[str, Run] = field(default_factory=dict)
    batched: bool = False
    first: bool = True
    stack_seeds: bool = False
    root: Path = Path()
    trial: bool = False
    overrides: tuple[str, ...] = ()
    stands_for: str = ""
    limit: int | None = None
    task_entry: Task = field(kw_only=True, repr=False, compare=False)
    method_entries: tuple[Method, ...] = field(kw_only=True, repr=False, compare=False)

    @property
    def place(self) -> str:
        """Name of the folders of the run's study, or of its trials."""
        return f"{self.tier}{TRIAL}" if self.trial else self.tier

    @property
    def cell(self) -> str:
        """``task/dataset/method/seed<k>``, the run's name on the command line and in paths."""
        return f"{self.task}/{self.dataset}/{self.method}/seed{self.seed}"

    @property
    def row(self) -> str:
        """``task/dataset/method``: the cell without its seed."""
        return f"{self.task}/{self.dataset}/{self.method}"

    @property
    def checkpoint(self) -> Path:
        """Folder of everything that training leaves: weights, settings, artefacts, resume state."""
        return self.root / "checkpoints" / self.place / self.cell

    @property
    def weights(self) -> Path:
        """File of the final weights, in the safetensors format."""
        return self.checkpoint / "model.safetensors"

    @property
    def record(self) -> Path:
        """What was trained, with which settings: written last, so its presence means that training is complete."""
        return self.checkpoint / "settings.json"

    @property
    def results(self) -> Path:
        """Folder of the small result files that a reader sees."""
        return self.root / "results" / self.place / "runs" / self.cell

    @property
    def metrics(self) -> Path:
        """File of the metrics that evaluation found, ``metrics.json``."""
        return self.results / "metrics.json"

    @property
    def history(self) -> Path:
        """File of the training curves, ``history.csv``."""
        return self.results / "history.csv"

    @property
    def failure(self) -> Path:
        """Why the run is missing from a table, when it failed."""
        return self.results / "failure.json"

    @property
    def logs(self) -> Path:
        """Folder of the logs of the run's jobs; a job of several seeds has one."""
        row = self.root / "logs" / self.place / self.task / self.dataset / self.method
        return row if self.batched else row / f"seed{self.seed}"

    @property
    def data_folder(self) -> Path:
        """Where the acquired dataset lies."""
        return self.root / "data" / self.data

    @property
    def substitution(self) -> str:
        """That other data than the study names were read, in a sentence's words; empty where they were not."""
        return f"{self.data} in place of {self.stands_for}" if self.stands_for else ""

    def needed(self, role: str) -> Run:
        """Return the run that fills a role of ``needs``; its ``weights`` and artefacts exist when this run starts."""
        return self.needs[role]

    @property
    def role(self) -> str:
        """Role of the row: a recipe of several methods counts as a method."""
        entries = self.method_entries
        return entries[0].role if len(entries) == 1 else "method"

    @property
    def title(self) -> str:
        """What tables and legends print for the row."""
        if self.method == "+".join(self.recipe):
            return " + ".join(entry.title for entry in self.method_entries)
        return self.method

    @property
    def declared_metrics(self) -> tuple[Metric, ...]:
        """Exactly what this run's evaluation returns."""
        own = [entry.metrics for entry in self.method_entries if entry.metrics is not None]
        extra = [metric for entry in self.method_entries for metric in entry.extra_metrics]
        return tuple(dict.fromkeys([*(own[0] if own else self.task_entry.metrics), *extra]))

    def protocol_model(self) -> Any:
        """Return the protocol as the task's settings model."""
        return self.task_entry.protocol.model_validate(dict(self.protocol))

    def settings_model(self, name: str) -> Any:
        """Return the settings of one method of the recipe as its settings model."""
        (entry,) = (entry for entry in self.method_entries if entry.name == name)
        return entry.settings.model_validate(dict(self.settings[name]))

    def build(self) -> list[Any]:
        """Build the recipe's plug-ins, in the order in which they act."""
        return [entry.build(self, self.settings_model(entry.name)) for entry in self.method_entries]

    @cached_property
    def stacked(self) -> bool:
        """Whether the seeds of the row are trained at once, as one stack of models: the study asks for it, and all of it can.

        It is part of the fingerprint, since the numbers are those of single runs to rounding only.
        """
        if not self.stack_seeds or not self.task_entry.stackable or self.resources.all_ranks > 1:
            return False
        if not all(entry.stacks for entry in self.method_entries):
            return False
        return bool(resolve(self.task_entry.stackable, self.task_entry.package)(self))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that determines the run's numbers, its needs included (resources are not part)."""
        content = {
            "task": self.task,
            "data": self.data,
            "recipe": self.recipe,
            "seed": self.seed,
            "protocol": self.protocol,
            "settings": self.settings,
            "needs": {role: run.fingerprint for role, run in sorted(self.needs.items())},
            **({"stacked": True} if self.stacked else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return the run as plain values, for ``metrics.json`` and ``settings.json``."""
        return {
            "tier": self.tier,
            "task": self.task,
            "dataset": self.dataset,
            "data": self.data,
            **({"stands_for": self.stands_for} if self.stands_for else {}),
            "method": self.method,
            "recipe": list(self.recipe),
            "seed": self.seed,
            "cell": self.cell,
            "role": self.role,
            **({"stacked": True} if self.stacked else {}),
            "fingerprint": self.fingerprint,
        }
