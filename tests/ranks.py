"""Several ranks on the CPU for tests: processes that join a gloo group, and train runs one after the other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

TIMEOUT = 60.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(size: int, function: str, *arguments: Any, timeout: float = 600) -> list[str]:
    """Call ``module:function(*arguments)`` on so many ranks, plain values for arguments; return what each printed.

    Raises
    ------
    AssertionError
        A rank failed; its output is the message.
    """
    port = free_port()
    processes = []
    for rank in range(size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, __file__, function, json.dumps(arguments, default=str)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def main(function: str, arguments: Sequence[Any]) -> None:
    """One of the processes."""
    import importlib

    import torch

    torch.set_num_threads(1)
    module, _, name = function.partition(":")
    act: Callable[..., None] = getattr(importlib.import_module(module), name)
    if int(os.environ["WORLD_SIZE"]) == 1:
        context: Any = nullcontext()
    else:
        from atlas.nn.rank_group import group

        context = group(int(os.environ["LOCAL_RANK"]), torch.device("cpu"), TIMEOUT)
    with context:
        act(*arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main(sys.argv[1], json.loads(sys.argv[2]))
