"""Start the ranks of a run: one process for each GPU, on one machine or on the nodes of a SLURM job.

The process that was asked to train keeps the books (``settings.json``, failures, results), and starts ranks that do the work with
the launcher of PyTorch's elastic training. It passes a request to stop on to them, and says in one error which rank failed, on
which node, and where its log is. On several nodes ``srun`` starts a launcher on each.

What ranks and launchers tell each other lies in a folder beside the run's logs, in readable files: ``spec.json`` says what to do,
``rank<k>.json`` how a rank fares, ``rank<k>.log`` what it printed, ``result.json`` what came of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.errors import AtlasError, Interrupted, UserError
from atlas.harness.files import write_json
from atlas.harness.registry import load, resolve
from atlas.harness.resume import StopRequest, stop_requests
from atlas.harness.run import Resources, Run

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC, RESULT = "spec.json", "result.json"
MODULE = "atlas.harness.rank"
"""What a rank runs."""
POLL_SECONDS = 0.2
START_SECONDS = 1800
"""How long launchers of several nodes wait for each other."""


def function_of(run: Run, verb: str) -> Callable[[Run], Mapping[str, Any] | None]:
    """Return the method's own function for a verb where it has one, else the task's."""
    for entry in run.method_entries:
        if own := getattr(entry, verb):
            return resolve(own, entry.package)  # type: ignore[no-any-return]
    return resolve(getattr(run.task_entry, verb), run.task_entry.package)  # type: ignore[no-any-return]


def shares_work(run: Run, verb: str = "train") -> bool:
    """Whether several processes can share a run's work."""
    return next((entry.ranks for entry in run.method_entries if getattr(entry, verb)), run.task_entry.ranks)


def carry_out(run: Run, verb: str) -> dict[str, Any]:
    """Call a run's function for a verb (``train`` or ``evaluate``) in this process, or in as many as its resources say.

    Raises
    ------
    UserError
        Several processes are asked for, and the row trains in one, or the machine does not have what they need.
    Interrupted
        The ranks were told to stop, and have saved their state.
    AtlasError
        A rank failed; names the rank, its node and its log.
    """
    if run.resources.all_ranks == 1:
        return dict(function_of(run, verb)(run) or {})
    if not shares_work(run, verb):
        if verb == "train":
            raise UserError(
                f"{run.cell} trains in one process, and its resources ask for {run.resources.all_ranks}: "
                "set gpus: 1 and nodes: 1 for this row"
            )
        return dict(function_of(run, verb)(run) or {})
    require_machine(run)
    return _launch(run, verb)


def require_machine(run: Run) -> None:
    """Refuse to start ranks where there are not the GPUs or the nodes for them.

    Raises
    ------
    UserError
        Says what is missing.
    """
    import torch

    resources = run.resources
    present = torch.cuda.device_count()
    if resources.ranks is None and present < resources.gpus:
        raise UserError(
            f"{run.cell}: resources.gpus asks for {resources.gpus} GPUs on a node, and this machine has {present or 'none'}: "
            f"--gpus {max(1, present)} trains with what is here, ATLAS_RANKS={resources.gpus} with so many processes on CPUs"
        )
    if resources.nodes == 1:
        return
    allocated = int(os.environ.get("SLURM_JOB_NUM_NODES", 0))
    if not allocated:
        raise UserError(
            f"{run.cell}: resources.nodes asks for {resources.nodes} nodes, which SLURM gives to a job: "
            "snakemake --profile slurm submits it, nodes: 1 trains here"
        )
    if allocated < resources.nodes:
        raise UserError(f"{run.cell}: resources.nodes asks for {resources.nodes} nodes, and this job has {allocated}")


def plain(run: Run) -> dict[str, Any]:
    """Return a run as plain values, from which :func:`restored` makes it again in another process."""
    address = ("tier", "task", "dataset", "data", "method", "recipe", "seed")
    names = (*address, "protocol", "settings", "batched", "stack_seeds", "trial", "limit")
    return {
        **{name: getattr(run, name) for name in names},
        "root": str(run.root.absolute()),
        "resources": run.resources.model_dump(),
        "needs": {role: plain(needed) for role, needed in run.needs.items()},
    }


def restored(content: Mapping[str, Any]) -> Run:
    """Make a run from what :func:`plain` returned."""
    registry = load()
    values = dict(content)
    return Run(
        **{
            **values,
            "recipe": tuple(values["recipe"]),
            "root": Path(values["root"]),
            "resources": Resources(**values["resources"]),
            "needs": {role: restored(needed) for role, needed in values["needs"].items()},
        },
        task_entry=registry.task(values["task"]),
        method_entries=tuple(registry.method(values["task"], name) for name in values["recipe"]),
    )


def _launch(run: Run, verb: str) -> dict[str, Any]:
    """Start the ranks, wait for their end, and return what the first one returned."""
    import torch

    resources = run.resources
    folder = (run.logs / "ranks" / f"seed{run.seed}-{verb}").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    cuda = torch.cuda.device_count() >= resources.ranks_per_node and resources.device in ("auto", "cuda")
    spec = {
        "run": plain(run),
        "verb": verb,
        "device": "cuda" if cuda else "cpu",
        "nodes": resources.nodes,
        "ranks_per_node": resources.ranks_per_node,
        "threads": max(1, resources.threads // resources.ranks_per_node),
        "host": socket.gethostname() if resources.nodes > 1 else "127.0.0.1",
        "port": _free_port(),
    }
    write_json(folder / SPEC, spec)
    print(f"{run.cell}: {resources.all_ranks} ranks; logs of the others: {_shown(folder, run)}", file=sys.stderr, flush=True)
    with stop_requests() as stop:
        if resources.nodes == 1:
            deaths = start_node(folder, 0, stop)
        else:
            deaths = _start_nodes(folder, resources.nodes, stop)
    return _outcome(run, folder, deaths, stop)


def start_node(folder: Path, node: int, stop: StopRequest) -> dict[int, int]:
    """Start this node's ranks and wait for their end; return the exit codes of those that died, by rank."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    spec = json.loads((folder / SPEC).read_text())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say what happened ourselves
    os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
    ours = {"signals_to_handle": "SIGHUP"}  # signals are ours to pass on; older releases of torch take them
    known = {field.name for field in fields(LaunchConfig)}
    with tempfile.TemporaryDirectory(prefix="atlas-ranks-") as scratch, _passing_on(folder, stop):
        config = LaunchConfig(
            min_nodes=spec["nodes"],
            max_nodes=spec["nodes"],
            nproc_per_node=spec["ranks_per_node"],
            run_id=folder.name,
            rdzv_backend="static",
            rdzv_endpoint=f"{spec['host']}:{spec['port']}",
            rdzv_configs={"rank": node, "timeout": START_SECONDS},
            max_restarts=0,
            monitor_interval=POLL_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            **{name: value for name, value in ours.items() if name in known},  # type: ignore[arg-type]
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", MODULE, str(folder))
        except ChildFailedError as error:
            return {rank: failure.exitcode for rank, failure in error.failures.items()}
        except SignalException as error:
            stop.signal = error.sigval
    return {}


def _start_nodes(folder: Path, nodes: int, stop: StopRequest) -> dict[int, int]:
    """Start a launcher on every node of the SLURM job and wait for their end."""
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--overlap"]
    # the step takes all that the job has; what srun would read from the batch script's variables is about its one task
    environment = {name: value for name, value in os.environ.items() if name not in ("SLURM_CPU_BIND", "SLURM_MEM_BIND")}
    process = subprocess.Popen([*command, sys.executable, "-m", __name__, str(folder)], env=environment)
    passed_on = False
    while process.poll() is None:
        if stop.signal is not None and not passed_on:
            passed_on = True
            process.send_signal(signal.SIGUSR1)  # srun passes it on to the launchers, and lives
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    return {
        int(rank): code
        for path in sorted(folder.glob("node*.json"))
        for rank, code in json.loads(path.read_text())["deaths"].items()
    }


def main(folder: Path) -> None:
    """A launcher that ``srun`` started on one of several nodes."""
    node = int(os.environ["SLURM_NODEID"])
    with stop_requests() as stop:
        deaths = start_node(folder, node, stop)
    write_json(folder / f"node{node}.json", {"host": node_name(), "deaths": {str(rank): code for rank, code in deaths.items()}})
    sys.exit(1 if deaths else 0)


@contextmanager
def _passing_on(folder: Path, stop: StopRequest) -> Iterator[None]:
    """While the block runs, pass a request to stop on to this node's ranks; one that hears of it stops them all."""
    done = threading.Event()
    signalled: set[int] = set()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            if stop.signal is None:
                continue
            for state in ranks_of(folder).values():  # some may not have started yet
                if state["node"] == node_name() and state["launcher"] == os.getpid() and state["pid"] not in signalled:
                    signalled.add(state["pid"])
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(state["pid"], signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def ranks_of(folder: Path) -> dict[int, dict[str, Any]]:
    """How the ranks fare, by their numbers, as they have written it themselves."""
    ranks = {}
    for path in folder.glob("rank*.json"):
        with contextlib.suppress(OSError, ValueError):  # it is being replaced
            ranks[int(path.stem.removeprefix("rank"))] = json.loads(path.read_text())
    return ranks


def node_name() -> str:
    """Return this node's name, as SLURM calls it or as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _outcome(run: Run, folder: Path, deaths: Mapping[int, int], stop: StopRequest) -> dict[str, Any]:
    """Return what the first rank returned, or raise the one error that started all others."""
    states = ranks_of(folder)
    with contextlib.suppress(OSError):
        result = json.loads((folder / RESULT).read_text())
        if result["status"] == "interrupted":
            raise Interrupted(result["message"])
        if not deaths:
            return dict(result["values"])
    raised = {rank: state for rank, state in states.items() if state["status"] == "failed"}
    if raised:
        rank = min(raised, key=lambda each: raised[each]["time"])
        if raised[rank]["users"]:  # every rank says so
            raise UserError(raised[rank]["message"])
        raise AtlasError(f"{raised[rank]['message']} ({_who(run, folder, rank, states)})")
    signals = {rank: signal.Signals(-code).name for rank, code in deaths.items() if code < 0}
    asked = {rank for rank, name in signals.items() if name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")}
    # where one died of something else, the others may have been told to stop by the launcher, because of it
    if stop.signal is not None or (asked and asked == set(signals)):
        raise Interrupted(f"{run.cell}: its ranks were stopped between two loops; start it again to go on from its last state")
    ended = sorted({rank for state in states.values() for rank in state.get("ended", ())})
    silent = sorted({rank for state in states.values() for rank in state.get("silent", ())} - signals.keys())
    if ended or (silent and not signals):
        waited = run.resources.hang_minutes
        who = "; ".join(_who(run, folder, rank, states) for rank in ended or silent)
        raise AtlasError(f"{run.cell}: no answer for {waited:g} minutes (resources.hang_minutes) from {who}")
    died = min(signals.keys() - asked, default=min(signals, default=min(deaths, default=0)))
    how = f"died of {signals[died]}" if died in signals else f"ended with exit status {deaths.get(died, 'unknown')}"
    raise AtlasError(f"{run.cell}: a rank {how}: {_who(run, folder, died, states)}")


def _who(run: Run, folder: Path, rank: int, states: Mapping[int, Mapping[str, Any]]) -> str:
    node = states.get(rank, {}).get("node", "unknown")
    log = _shown(folder / f"rank{rank}.log", run) if rank else "this one"
    return f"rank {rank} on node {node}, log: {log}"


def _shown(path: Path, run: Run) -> str:
    root = run.root.absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
