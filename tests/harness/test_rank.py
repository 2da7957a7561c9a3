"""One rank, and the launcher of several nodes, each by itself: what they leave for the others, and whom they hold for dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas.errors import AtlasError, Interrupted, UserError
from atlas.harness import launch, rank
from atlas.harness.launch import RESULT, SPEC, _passing_on, _shown, _start_nodes, node_name, ranks_of
from atlas.harness.rank import Word, _is_dead, _report, main
from atlas.harness.resume import StopRequest


@pytest.fixture
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Word:
    """What rank 0 of three says of itself."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank, "GRACE_SECONDS", 0.0)
    return Word(tmp_path, 0)


def leave(folder: Path, number: int, **state: Any) -> None:
    """Another rank of this launcher leaves word."""
    own = {"status": "running", "pid": 2**30, "launcher": os.getppid(), "node": node_name()}
    (folder / f"rank{number}.json").write_text(json.dumps(own | state))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_rank_leaves_word_of_itself(word: Word, tmp_path: Path) -> None:
    own = {"status": "running", "pid": os.getpid(), "launcher": os.getppid(), "node": node_name()}
    assert ranks_of(tmp_path) == {0: own}
    word.leave(status="waiting", message="hm")
    assert ranks_of(tmp_path) == {0: own | {"status": "waiting", "message": "hm"}}
    (tmp_path / "rank1.json").write_text("{")
    leave(tmp_path, 12)
    assert ranks_of(tmp_path).keys() == {0, 12}, "one is being replaced"


def test_who_is_dead(word: Word, child: subprocess.Popen[bytes]) -> None:
    state = word.state | {"pid": child.pid}
    assert not _is_dead(state, word)
    child.kill()
    end = time.monotonic() + 10
    while not _is_dead(state, word):  # nobody has asked how it ended: a zombie
        assert time.monotonic() < end
    assert not _is_dead(state | {"status": "done"}, word)
    assert not _is_dead(state | {"node": "another"}, word)
    assert not _is_dead(state | {"launcher": 1}, word)
    child.wait()
    assert _is_dead(state, word)


def test_a_rank_that_fails_of_itself_says_why(word: Word, tmp_path: Path) -> None:
    before = time.time()
    for error, users, text in [
        (UserError("set gpus: 1"), True, "set gpus: 1"),
        (AtlasError("not\n finite"), False, "not finite"),
        (ValueError("connection"), False, "ValueError: connection"),
        (RuntimeError("out of memory"), False, "RuntimeError: out of memory"),
    ]:
        assert not _report(error, word)
        told = ranks_of(tmp_path)[0]
        assert (told["status"], told["users"], told["message"]) == ("failed", users, text)
        assert before <= told["time"] <= time.time()


def test_a_rank_that_lost_others_says_whom_and_ends_those_that_hang(
    word: Word, tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    leave(tmp_path, 1, pid=child.pid)
    assert _report(RuntimeError("Connection closed\nby peer"), word)
    told = ranks_of(tmp_path)[0]
    assert told["message"] == "Connection closed by peer"
    assert (told["status"], told["silent"], told["ended"]) == ("lost", [1, 2], [1])
    assert child.wait(10) == -signal.SIGKILL
    leave(tmp_path, 1, status="failed")
    leave(tmp_path, 2, pid=2**30)
    _report(RuntimeError("timed out"), word)
    told = ranks_of(tmp_path)[0]
    assert (told["silent"], told["ended"]) == ([], []), "one has said why, the other is dead"
    leave(tmp_path, 2, node="another")
    _report(RuntimeError("timed out"), word)
    told = ranks_of(tmp_path)[0]
    assert (told["silent"], told["ended"]) == ([2], []), "it is another node's to end"


def work(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def fails(*_: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(rank, "_work", fails)
    monkeypatch.setattr(rank, "restored", lambda run: run)


def test_the_first_rank_says_that_the_run_was_interrupted(word: Word, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / SPEC).write_text('{"run": {}}')
    work(monkeypatch, Interrupted("stopped after step 3"))
    main(tmp_path)
    assert json.loads((tmp_path / RESULT).read_text()) == {"status": "interrupted", "message": "stopped after step 3"}
    assert ranks_of(tmp_path)[0]["status"] == "done"
    (tmp_path / RESULT).unlink()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(rank, "_redirect", lambda log: None)
    main(tmp_path)
    assert not (tmp_path / RESULT).exists()
    assert ranks_of(tmp_path)[1]["status"] == "done"


def test_errors_of_a_rank_are_told_once(
    word: Word, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / SPEC).write_text('{"run": {}}')
    for error, code, said in [(AtlasError("no"), 1, "error: no\n"), (RuntimeError("peer is gone"), 1, "")]:
        work(monkeypatch, error)
        with pytest.raises(SystemExit) as ended:
            main(tmp_path)
        assert (ended.value.code, capsys.readouterr().err) == (code, said)
    work(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main(tmp_path)


def test_what_a_rank_prints_goes_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "rank1.log"
    program = "import sys; from pathlib import Path; from atlas.harness.rank import _redirect; print('before'); "
    program += f"_redirect(Path({str(log)!r})); print('told'); print('error', file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("before\n", "")
    assert sorted(log.read_text().splitlines()) == ["error", "told"]


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where ``srun`` writes its arguments and variables, and what two nodes leave; it ends at SIGUSR1 or at once."""
    (tmp_path / "srun").write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments; env > {tmp_path}/variables\n'
        f'echo \'{{"host": "a", "deaths": {{"1": -9}}}}\' > {tmp_path}/node0.json\n'
        f'echo \'{{"host": "b", "deaths": {{"5": 1}}}}\' > {tmp_path}/node1.json\n'
        f"trap 'touch {tmp_path}/stopped; exit 0' USR1\n"
        'while [ -n "$WAIT" ]; do sleep 0.1; done\n'
    )
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    return tmp_path


def test_a_launcher_is_started_on_every_node(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "kept")
    assert _start_nodes(srun, 2, StopRequest()) == {1: -9, 5: 1}
    assert (srun / "arguments").read_text() == (
        "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --overlap "
        f"{sys.executable} -m atlas.harness.launch {srun}\n"
    )
    variables = (srun / "variables").read_text().splitlines()
    assert [line for line in variables if line.endswith("=kept")] == ["SLURM_JOB_ID=kept"]
    assert not (srun / "stopped").exists()


def test_launchers_of_other_nodes_hear_that_the_run_is_to_stop(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAIT", "yes")

    class Later:
        """Asked to stop once ``srun`` is up."""

        @property
        def signal(self) -> signal.Signals | None:
            return signal.SIGTERM if (srun / "node1.json").exists() and (srun / "node1.json").read_text() else None

    assert _start_nodes(srun, 2, Later()) == {1: -9, 5: 1}  # type: ignore[arg-type]
    assert (srun / "stopped").exists()


def test_a_request_to_stop_is_passed_on_to_this_launchers_ranks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        told.append((pid, number))
        if pid == 3:
            raise ProcessLookupError

    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launch.os, "kill", kill)
    leave(tmp_path, 0, pid=3, launcher=os.getpid())
    leave(tmp_path, 1, pid=4, launcher=os.getpid())
    leave(tmp_path, 2, pid=5)
    leave(tmp_path, 3, pid=6, launcher=os.getpid(), node="another")
    stop = SimpleNamespace(signal=None)
    with _passing_on(tmp_path, stop):  # type: ignore[arg-type]
        time.sleep(0.1)
        assert told == []
        stop.signal = signal.SIGTERM
        time.sleep(0.3)
        assert sorted(told) == [(3, signal.SIGTERM), (4, signal.SIGTERM)]
        leave(tmp_path, 4, pid=7, launcher=os.getpid())
        time.sleep(0.3)
    assert sorted(told)[2:] == [(7, signal.SIGTERM)]


def test_a_launcher_of_one_of_several_nodes_leaves_who_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "node-b")
    asked: list[tuple[Path, int]] = []
    for deaths, code in [({5: -9}, 1), ({}, 0)]:
        monkeypatch.setattr(launch, "start_node", lambda *where, deaths=deaths: asked.append(where[:2]) or deaths)
        with pytest.raises(SystemExit) as ended:
            launch.main(tmp_path)
        assert ended.value.code == code
        left = json.loads((tmp_path / "node1.json").read_text())
        assert left == {"host": "node-b", "deaths": {str(number): how for number, how in deaths.items()}}
    assert asked == [(tmp_path, 1)] * 2


def test_logs_are_named_from_the_studys_folder(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(root=tmp_path)
    assert _shown(tmp_path / "logs" / "rank1.log", run) == "logs/rank1.log"
    assert _shown(Path("/elsewhere/rank1.log"), run) == "/elsewhere/rank1.log"
