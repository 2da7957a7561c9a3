"""Training that survives: signals, kills, truncated files.

:func:`training` is the loop of every method. It restores the last good state, yields the steps that are left, saves the
full state (weights, optimiser, schedule, random generators, curves) at intervals and when a signal asks the run to stop,
and ends with the same numbers as if nothing had happened.

A state is one file: the SHA-256 of the payload, then the payload. Two slots are written in turn, so that a kill during
a write, a full disk or a damaged file leaves the state before it.

Several ranks that train one run (:mod:`atlas.nn.ranks`) stop after the same step, whichever of them was told; the first one
writes the state, and any number of ranks goes on from it.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from atlas.errors import Interrupted
from atlas.harness.files import write_bytes, write_json
from atlas.harness.history import History
from atlas.harness.progress import LoopProgress
from atlas.harness.provenance import cpu_seconds
from atlas.nn.ranks import here
from atlas.nn.work import work

if TYPE_CHECKING:
    from atlas.harness.run import Run

Batch = TypeVar("Batch")
SECONDS = "seconds.json"
SLOTS = ("state-a.pt", "state-b.pt")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StateStore:
    """The two slots of one phase of one run.

    Parameters
    ----------
    folder : Path
        Where the slots lie.
    fingerprint : str
        What the state belongs to; states of other settings are ignored.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Write a state over the older slot, atomically."""
        import torch

        buffer = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, "step": step, "content": dict(content)}, buffer)
        payload = buffer.getvalue()
        write_bytes(self._older_slot(), hashlib.sha256(payload).hexdigest().encode() + payload)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Return (step, content) of the newest good state, warning about damaged ones; ``None`` if there is none."""
        states = [state for state in map(self._read, SLOTS) if state is not None]
        if not states:
            return None
        newest = max(states, key=lambda state: state["step"])
        return newest["step"], newest["content"]

    def clear(self) -> None:
        """Delete every saved state, once the work that they belong to is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _older_slot(self) -> Path:
        first, second = (self.folder / slot for slot in SLOTS)
        steps = [state["step"] if (state := self._read(slot, quiet=True)) else -1 for slot in SLOTS]
        return first if steps[0] <= steps[1] else second

    def _read(self, slot: str, quiet: bool = False) -> dict[str, Any] | None:
        import torch

        path = self.folder / slot
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, payload = content[:64], content[64:]
        if hashlib.sha256(payload).hexdigest().encode() != digest:
            if not quiet:
                print(f"warning: {path} is damaged; going on from the state before it", file=sys.stderr)
            return None
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state if state["fingerprint"] == self.fingerprint else None


class Values:
    """Plain values and tensors that change from step to step, as one part of a resume state: each an attribute.

    >>> spent = Values(flops=0.0)
    >>> spent.flops += 3.0
    >>> spent.state_dict()
    {'flops': 3.0}
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:  # attributes of any name

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the values by name, as a state to save."""
        return dict(self.__dict__)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take values up; tensors go to the devices of those that they replace."""
        for name, value in state.items():
            self.__dict__[name] = _on_the_device_of(self.__dict__.get(name), value)


def _on_the_device_of(old: Any, new: Any) -> Any:
    if isinstance(new, dict):
        return {key: _on_the_device_of(old.get(key) if isinstance(old, dict) else None, value) for key, value in new.items()}
    device = getattr(old, "device", None)
    return new if device is None or not hasattr(new, "to") else new.to(device)


class StopRequest:
    """Remembers that a signal asked the process to stop, so that a step is never cut in half."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember it; a second Ctrl-C interrupts at once."""
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the stop signals while the block runs, and put the former handlers back."""
    import threading

    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class TrainingLoop:
    """Iterates over the steps that are left; see :func:`training`.

    Attributes
    ----------
    start : int
        First step of this process; above 0 after an interruption.
    total : int
        Number of steps; no more than ``run.limit``, where that is set.
    history : History
        The curves so far, restored with the state.
    seconds, cpu_seconds : float
        Time spent in the loop, and of processors, over all processes that worked on it.
    """

    def __init__(self, run: Run, total: int, parts: Mapping[str, Any], phase: str) -> None:
        self.run, self.parts, self.phase = run, dict(parts), phase
        self.total = total if run.limit is None else min(total, run.limit)
        self.history = History(run.history if phase == "train" else run.results / f"{phase}.csv")
        self.store = StateStore(run.checkpoint / "state" / phase, run.fingerprint)
        self.ranks = here()
        self.start = 0
        self.seconds = self.cpu_seconds = 0.0
        self._step = 0
        self._restore()
        self.ranks.same(self.start, f"{run.cell}: the step of the saved state")

    def log(self, **values: float) -> None:
        """Add a row to the phase's curves at the present step (the number of steps completed, this one included)."""
        self.history.add(self._step + 1, values)
        self._progress.describe(values)

    def at(self, step: int, progress: LoopProgress) -> None:
        """Be at a step of a loop that others take too, and show what is logged there."""
        self._step, self._progress = step, progress

    def __iter__(self) -> Iterator[int]:
        """Yield the steps that are left, saving the state at intervals and on a stop signal.

        What is done in a step is work of the kind that the phase is called after.
        """
        with stop_requests() as request, LoopProgress(self.run.cell, self.phase, self.total, self.start) as self._progress:
            began = saved = time.monotonic()
            before, cpu_before = self.seconds, self.cpu_seconds - cpu_seconds()
            for step in range(self.start, self.total):
                self._step = step
                with work(self.phase):
                    yield step
                self._progress.advance()
                now = time.monotonic()
                self.seconds = before + now - began
                self.cpu_seconds = cpu_before + cpu_seconds()
                done = step + 1
                due = now - saved >= 60 * self.run.resources.save_minutes
                agreed = self.ranks.agree(request.signal or 0, due)
                if agreed.stop and done < self.total:
                    self._leave(done, signal.Signals(agreed.stop))
                if agreed.save:
                    self.save(done)
                    saved = time.monotonic()
            self.ranks.settle()
            if self.start < self.total:
                self.save(self.total)
            self.history.write()

    def _leave(self, done: int, stopped_by: signal.Signals) -> None:
        """Save the state after a signal, and stop."""
        self.ranks.settle()
        self.save(done)
        self.ranks.barrier()  # nobody leaves before the state is written
        raise Interrupted(
            f"{self.run.cell}: stopped by {stopped_by.name} after step {done} of {self.total}; "
            "its state is saved, start it again to go on"
        )

    def over_epochs(
        self, steps: int, batches: Callable[[int, int], Iterator[Batch]], begin: Callable[[int], None] = lambda step: None
    ) -> Iterator[tuple[int, Batch]]:
        """Yield the steps that are left, each with its batch; an epoch that was interrupted goes on with the next batch.

        Parameters
        ----------
        steps : int
            Steps of an epoch.
        batches : callable
            ``batches(epoch, first)``: the batches of an epoch, from that index on.
        begin : callable
            ``begin(step)`` is called before the first step of an epoch, and where training goes on inside one.
        """
        stream: Iterator[Batch] = iter(())
        for step in self:
            epoch, first = divmod(step, steps)
            if step == self.start or not first:
                begin(step)
                stream = batches(epoch, first)
            yield step, next(stream)

    def save(self, step: int) -> None:
        """Save the full state as it is after ``step`` completed steps; of several ranks the first one does, for all."""
        if not self.ranks.first:
            return
        content = {
            "parts": {name: _own_storage(_state_of(part)) for name, part in self.parts.items()},
            "random": random_state(),
            "history": self.history.rows,
            **self._spent,
        }
        self.store.save(step, content)
        write_json(self.store.folder / SECONDS, self._spent)
        self.history.write()

    @property
    def _spent(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def _restore(self) -> None:
        saved = self.store.load()
        if saved is None:
            return
        self.start, content = saved
        for name, part in self.parts.items():
            _restore_part(part, content["parts"][name])
        set_random_state(content["random"])
        self.history.rows = content["history"]
        self.seconds, self.cpu_seconds = content["seconds"], content.get("cpu_seconds", 0.0)
        print(f"{self.run.cell}: going on with {self.phase} after step {self.start} of {self.total}", file=sys.stderr)


def training(run: Run, total: int, parts: Mapping[str, Any], phase: str = "train") -> TrainingLoop:
    """Make the resumable loop of a run, or of one phase of it.

    Parameters
    ----------
    run : Run
        The run; its ``save_minutes`` set how often the state is saved.
    total : int
        Number of steps.
    parts : mapping
        Everything that changes from step to step and is not derived from the step: objects with ``state_dict`` and
        ``load_state_dict`` (models, optimisers, schedulers) and ``torch.Generator``. The process's own generators
        (torch, CUDA, NumPy, random) are always included. States hold tensors and plain values only.
    phase : str
        Name of the phase, for runs with several loops; finished phases are restored complete, and yield no step.

    Examples
    --------
    >>> loop = training(run, total=1000, parts={"model": model, "optimizer": optimizer})     # doctest: +SKIP
    >>> for step in loop:                                                                     # doctest: +SKIP
    ...     loss = ...
    ...     loop.log(loss=float(loss))

    Raises
    ------
    Interrupted
        From the iteration, after a stop signal, once the state is saved.
    """
    return TrainingLoop(run, total, parts, phase)


def spent(run: Run) -> dict[str, float]:
    """Time that the phases of a run have taken, ``seconds`` and ``cpu_seconds``, over all processes that worked on it."""
    phases = [json.loads(path.read_text()) for path in (run.checkpoint / "state").glob(f"*/{SECONDS}")]
    return {name: float(sum(phase.get(name, 0.0) for phase in phases)) for name in ("seconds", "cpu_seconds")}


def clear_state(run: Run) -> None:
    """Forget the resume state of every phase of a run."""
    shutil.rmtree(run.checkpoint / "state", ignore_errors=True)


def _state_of(part: Any) -> Any:
    import torch

    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _own_storage(state: Any) -> Any:
    """The same state without what its tensors are views of, which would be saved along with them."""
    if isinstance(state, dict):
        own = copy.copy(state)
        for name, value in state.items():
            own[name] = _own_storage(value)
        return own
    if isinstance(state, list):
        return [_own_storage(value) for value in state]
    if hasattr(state, "untyped_storage") and state.untyped_storage().nbytes() > state.numel() * state.element_size():
        return state.clone()
    return state


def _restore_part(part: Any, state: Any) -> None:
    import torch

    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def random_state() -> dict[str, Any]:
    """States of the process's own generators: torch's, those of GPUs, NumPy's and Python's."""
    import numpy as np
    import torch

    state: Any = np.random.get_state()  # noqa: NPY002 - libraries below us still draw from it
    name, keys, *rest = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states(),
        "numpy": [name, torch.from_numpy(keys.astype("int64")), *rest],
        "python": random.getstate(),
    }


def _cuda_states() -> list[Any]:
    """States of the GPUs' generators: of all that a process by itself sees, of the one that a rank was given."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = here().device()
    if given is None or given.type != "cuda":
        return torch.cuda.get_rng_state_all()
    return [torch.cuda.get_rng_state(given)]


def _set_cuda_states(states: list[Any]) -> None:
    """Go on from generators' states; all ranks draw alike, so any number of them takes the first one's."""
    import torch

    if not states or not torch.cuda.is_available():
        return
    given = here().device()
    if given is not None and given.type == "cuda":
        torch.cuda.set_rng_state(states[0], given)
    elif len(states) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states)
    else:
        torch.cuda.set_rng_state(states[0])


def set_random_state(state: Mapping[str, Any]) -> None:
    """Let the process's own generators go on from what :func:`random_state` returned."""
    import numpy as np
    import torch

    torch.set_rng_state(state["torch"])
    _set_cuda_states(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
