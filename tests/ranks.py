"""Several ranks on the CPU for tests: processes that join a gloo group, and train runs one after the other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

from atlas.nn.ranks import Ranks

TIMEOUT = 60.0
STEADY = 1e-5
"""For Adam's ε, which is 1e-8 otherwise. Adam divides a gradient by its own size, once there is one: a gradient that is rounding
and nothing else (of biases of keys, which softmax does not see; of the classifier's bias where a batch has as many images of
every class and all answers are still alike) becomes a step of 1e-11 that another order of sums does not take, and in the next
step, the first one for what lies before the classifier, a gradient of 1e-8 with such an error becomes a difference of 1e-10.
With this ε the same rows agree to 1e-12 in all of their weights, so that nothing but this division tells ranks apart."""


class Among(Ranks):
    """A place among several ranks, for what is done before anybody talks to the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def slice(self, total: int) -> slice:
        """As in a group."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)


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


def steady_steps() -> AbstractContextManager[Any]:
    """Let AdamW divide by no rounding while the block runs."""
    import torch

    return patch.object(torch.optim.AdamW, "__init__", partialmethod(torch.optim.AdamW.__init__, eps=STEADY))


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
