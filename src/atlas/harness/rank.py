"""One rank of a run: joins the others, does its share of the work, and leaves word of how it ended.

Started by :mod:`atlas.harness.launch`, which reads what is left here. A thread watches the other ranks of the node and the
launcher, so that a rank that waits for one that is dead, deep inside a library, leaves within seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atlas.errors import AtlasError, Interrupted, UserError
from atlas.harness.files import write_json, write_text
from atlas.harness.launch import RESULT, SPEC, function_of, node_name, ranks_of, restored

LOST = re.compile(r"gloo|nccl|connection|timed? ?out|timeout|socket|tcpstore|peer|broken pipe", re.IGNORECASE)
"""What torch says when the others are not there any more."""
GRACE_SECONDS = 3.0
"""How long a rank that lost the others waits for word of them, and how long it may go on beside a dead one."""
WATCH_SECONDS = 0.5


class Word:
    """What this rank tells the launcher and the other ranks of itself."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._lock = threading.Lock()
        self.state: dict[str, Any] = {
            "status": "running",
            "pid": os.getpid(),
            "launcher": os.getppid(),
            "node": node_name(),
        }
        self.leave()

    def leave(self, **more: Any) -> None:
        """Write what this rank knows of itself, with ``more``, to its file, where the launcher and the other ranks read it."""
        with self._lock:
            self.state |= more
            path = self.folder / f"rank{self.rank}.json"
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(self.state))
            temporary.replace(path)


def main(folder: Path) -> None:
    """Do what ``spec.json`` of a folder says, as the rank that the environment names."""
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if rank:
        _redirect(folder / f"rank{rank}.log")
    word = Word(folder, rank)
    spec = json.loads((folder / SPEC).read_text())
    run = restored(spec["run"])
    try:
        with _watched(word):
            _work(spec, run, word, local)
    except Interrupted as stopped:
        if not rank:
            write_json(folder / RESULT, {"status": "interrupted", "message": str(stopped)})
        word.leave(status="done")
    except Exception as error:
        if _report(error, word) and not rank:  # the launcher says who was lost, in one error beside which this would stand
            sys.exit(1)
        if not isinstance(error, AtlasError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _work(spec: dict[str, Any], run: Any, word: Word, local: int) -> None:
    import torch

    from atlas.harness.seeds import seed_everything
    from atlas.harness.startup import defer_compiler
    from atlas.nn.rank_group import group

    defer_compiler()
    device = torch.device("cuda", local) if spec["device"] == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with group(local, device, 60 * run.resources.hang_minutes) as ranks:
        seed_everything(run.seed, spec["threads"])
        values = dict(function_of(run, spec["verb"])(run) or {})
        if ranks.first:
            # numbers that are not finite pass, as they do not in files that others read
            write_text(word.folder / RESULT, json.dumps({"status": "done", "values": values}, default=float))
    word.leave(status="done")


def _report(error: Exception, word: Word) -> bool:
    """Say why this rank fails: of its own, or because it lost others, and then which of them; return whether it lost others."""
    message = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or not LOST.search(f"{type(error).__name__} {message}"):
        text = message if isinstance(error, AtlasError) else f"{type(error).__name__}: {message}"
        word.leave(status="failed", users=isinstance(error, UserError), message=text, time=time.time())
        return False
    word.leave(status="waiting")
    time.sleep(GRACE_SECONDS)
    size = int(os.environ["WORLD_SIZE"])
    states = ranks_of(word.folder)
    running = [rank for rank in range(size) if states.get(rank, {}).get("status", "running") == "running"]
    silent = [rank for rank in running if rank not in states or not _is_dead(states[rank], word)]
    # it may be stopped, and would stay for ever; that it then dies of SIGKILL is our doing
    ended = [rank for rank in silent if states.get(rank, {}).get("node") == node_name()]
    word.leave(status="lost", silent=silent, ended=ended, message=message)
    for rank in ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(states[rank]["pid"], signal.SIGKILL)
    return True


@contextmanager
def _watched(word: Word) -> Iterator[None]:
    """While the block runs, look after the others of this node: ask to stop if the launcher is gone, leave beside a dead rank."""
    done = threading.Event()

    def watch() -> None:
        stopping = False
        while not done.wait(WATCH_SECONDS):
            if os.getppid() != word.state["launcher"] and not stopping:
                stopping = True
                os.kill(os.getpid(), signal.SIGTERM)
            dead = [rank for rank, state in ranks_of(word.folder).items() if _is_dead(state, word)]
            if dead and not done.wait(2 * GRACE_SECONDS):
                word.leave(status="lost", silent=[], message=f"rank {dead[0]} is dead")
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _is_dead(state: dict[str, Any], word: Word) -> bool:
    if state["node"] != word.state["node"] or state["launcher"] != word.state["launcher"] or state["status"] == "done":
        return False
    try:
        return Path(f"/proc/{state['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return not _exists(state["pid"])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _redirect(log: Path) -> None:
    """Let everything that this process prints go to its log."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
