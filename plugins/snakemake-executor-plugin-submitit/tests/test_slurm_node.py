"""What runs on the node, part by part, in this process; ``test_slurm_job.py`` starts it as the scheduler would."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from real_slurm import wait_until

from snakemake_executor_plugin_submitit import job as module
from snakemake_executor_plugin_submitit.folder import Folder, read_json, write_json
from snakemake_executor_plugin_submitit.job import (
    STOP_SIGNALS,
    JobRun,
    StopRequest,
    _catches_stop,
    _cause,
    _descendants,
    _ended,
    _handlers,
    _has_handler,
    _kill,
    _rule_programs,
    _wait_for_the_scheduler,
)
from snakemake_executor_plugin_submitit.lease import Lease
from snakemake_executor_plugin_submitit.ledger import Ledger

IDS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is in no SLURM job, and does not become the parent of other people's orphans."""
    for name in IDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_adopt_orphans", lambda: None)


def made(folder: Path, command: str = "true", requeues: int = 10) -> JobRun:
    return JobRun(Folder(folder / "own"), str(folder), "key", "t.0", command, requeues)


def result(run: JobRun) -> dict[str, Any]:
    return read_json(run.folder.result("t.0")) or {}


def stopped(number: signal.Signals | None) -> StopRequest:
    stop = StopRequest()
    if number is not None:
        stop(number, None)
    return stop


def test_a_job_that_ends_well_leaves_word_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "slurm")
    monkeypatch.setenv("KEPT", "this")
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    run = made(tmp_path, 'echo "$SNAKEMAKE_PROFILE,$KEPT" > where')
    before = time.time()
    returned = run()
    assert returned == result(run)
    assert before <= returned.pop("time") <= time.time()
    host = socket.gethostname()
    who = {"ticket": "t.0", "scheduler_id": str(os.getpid()), "host": host}
    assert returned == {**who, "status": "success", "cause": ""}
    assert (tmp_path / "where").read_text() == ",this\n", "in its folder, and without the profile of the Snakemake that submits"
    assert (run.folder.job("key") / "starts").read_text() == f"t.0 {os.getpid()} {host}\n"
    assert not (run.folder.job("key") / "lease").exists()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


def test_a_job_that_fails_says_how(tmp_path: Path) -> None:
    run = made(tmp_path, "exit 3")
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1
    assert (result(run)["status"], result(run)["cause"]) == ("failed", "its command ended with exit status 3")


def test_a_job_can_run_beside_the_main_thread(tmp_path: Path) -> None:
    run = made(tmp_path)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert result(run)["status"] == "success"


def test_a_job_is_started_as_often_as_it_may_be_and_once_more(tmp_path: Path) -> None:
    run = made(tmp_path, "touch ran", requeues=2)
    starts = run.folder.job("key") / "starts"
    starts.parent.mkdir(parents=True)
    starts.write_text("start\n" * 2)
    run()
    assert (tmp_path / "ran").exists()
    run.folder.result("t.0").unlink()
    (tmp_path / "ran").unlink()
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1
    assert result(run)["cause"] == "it was started 3 times and never came to its end; see requeue"
    assert not (tmp_path / "ran").exists()


def test_a_copy_that_comes_late_repeats_the_result(tmp_path: Path) -> None:
    run = made(tmp_path, "touch ran")
    write_json(run.folder.result("t.0"), {"status": "success", "from": "the first"})
    assert run() == {"status": "success", "from": "the first"}
    assert not (tmp_path / "ran").exists()


def test_a_result_of_an_earlier_start_does_not_stand_while_the_job_runs(tmp_path: Path) -> None:
    run = made(tmp_path, "test ! -e own/results/t.0.json")
    write_json(run.folder.result("t.0"), {"status": "interrupted"})
    assert run()["status"] == "success"


def test_a_job_that_nobody_waits_for_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, "touch ran")
    ledger = Ledger(run.folder.ledger)
    ledger.submit("t", "name", "train", [("key", "print")])
    assert run()["status"] == "success"
    (tmp_path / "ran").unlink()
    run.folder.result("t.0").unlink()
    ledger.close(["t.0"], "cancelled")
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 75
    assert capsys.readouterr().out == "t.0 is closed in the ledger; leaving it alone\n"
    assert not (tmp_path / "ran").exists()
    assert not (run.folder.job("key") / "lease").exists()


def test_a_copy_that_is_told_to_stop_waiting_says_nothing(tmp_path: Path) -> None:
    run = made(tmp_path, "touch ran")
    other = {"holder": "another", "host": "elsewhere", "pid": 1}
    write_json(run.folder.job("key") / "lease", other)
    assert run._run_with_lease(stopped(signal.SIGTERM)) == {"status": "interrupted"}
    assert read_json(run.folder.job("key") / "lease") == other
    assert result(run) == {}
    assert not (tmp_path / "ran").exists()


def test_a_job_that_lost_its_lease_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snakemake_executor_plugin_submitit.lease.BEAT_SECONDS", 0.0)
    run = made(tmp_path, "echo $$ > pid; exec sleep 60")

    def take_over() -> None:
        wait_until((tmp_path / "pid").exists, 20, "program")
        write_json(run.folder.job("key") / "lease", {"holder": "another", "host": "elsewhere"})

    thief = threading.Thread(target=take_over)
    thief.start()
    assert run._run_with_lease(stopped(None)) == {"status": "interrupted"}
    thief.join()
    assert capsys.readouterr().out == "stopping: another on elsewhere has taken this job over\n"
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10, "end")
    assert result(run) == {}
    assert (read_json(run.folder.job("key") / "lease") or {})["holder"] == "another"


def test_a_lease_names_the_start_and_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holders: list[str] = []
    taking = Lease.take

    def take(lease: Lease, stop: Callable[[], bool], stale: float = 45.0) -> bool:
        holders.append(lease.holder)
        return taking(lease, stop, stale)

    monkeypatch.setattr(Lease, "take", take)
    run = made(tmp_path)
    run()
    run()
    host, pid = socket.gethostname(), os.getpid()
    assert holders == [f"t.0/1/{host}/{pid}", f"t.0/2/{host}/{pid}"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, str(os.getpid())),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}, "7_0"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7"}, "9"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "7"}, "9"),
    ],
    ids=["outside", "single", "array", "no task", "no array"],
)
def test_a_job_knows_its_number(monkeypatch: pytest.MonkeyPatch, ids: dict[str, str], expected: str) -> None:
    for name, value in ids.items():
        monkeypatch.setenv(name, value)
    assert JobRun._scheduler_id() == expected


def test_the_first_stop_signal_is_remembered() -> None:
    stop = StopRequest()
    assert not stop
    stop(signal.SIGUSR2, None)
    stop(signal.SIGTERM, None)
    assert stop
    assert stop.signal == signal.SIGUSR2
    assert _cause(stop) == "it came near its time limit"
    assert _cause(stopped(signal.SIGTERM)) == "the scheduler stopped it"


def test_stop_signals_are_heard_inside_and_as_before_outside() -> None:
    heard: list[int] = []
    former = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in STOP_SIGNALS}
    try:
        for number in STOP_SIGNALS:
            with _handlers(stop := StopRequest()):
                os.kill(os.getpid(), number)
            assert stop.signal == number
            os.kill(os.getpid(), number)
        assert heard == list(STOP_SIGNALS)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start a shell's command in an empty folder and wait until it has made the file ``up``; ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, shell=True, cwd=tmp_path))
        wait_until((tmp_path / "up").exists, 20, "program")
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
        process.kill()
        process.wait()


IGNORES = f"{sys.executable} -c \"open('up', 'w').close(); import time; time.sleep(30)\""
CATCHES = (
    f"{sys.executable} -c \"import signal, sys, time; signal.signal(15, lambda *_: (open('saved', 'w').close(), sys.exit(75))); "
    "open('up', 'w').close(); time.sleep(30)\""
)


@pytest.mark.parametrize("shells", ["{}; exit $?", "bash -c '{}; exit $?'; exit $?"], ids=["one", "two"])
def test_programs_are_found_below_shells(child: Callable[[str], Any], shells: str) -> None:
    process = child(shells.format(CATCHES if "bash" not in shells else CATCHES.replace("'", "'\\''")))
    (program,) = _rule_programs()
    assert program.cmdline()[:2] == [sys.executable, "-c"]
    assert _catches_stop(program)
    assert _catches_stop(psutil.Process(process.pid)), "or one below it does"
    assert {process.pid, program.pid} <= {each.pid for each in _descendants()}
    _kill(_descendants())
    assert process.wait(10) != 0
    assert _descendants() == []


def test_several_programs_of_a_job_are_found_and_snakemake_is_none(child: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "snakemake").write_text("#!/bin/bash\nsleep 30 & touch up\nsleep 31 & wait\n")
    child("bash ./snakemake & sleep 32 & wait")
    wait_until(lambda: len(_descendants()) == 5, 10, "three programs")
    assert sorted(program.cmdline()[-1] for program in _rule_programs()) == ["30", "31", "32"]


def test_a_program_that_ends_while_it_is_looked_at_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    there, gone, parent = Mock(), Mock(), Mock()
    there.cmdline.return_value, there.children.return_value = ["python"], []
    gone.cmdline.side_effect = psutil.NoSuchProcess(1)
    parent.children.return_value = [there, gone, there]
    monkeypatch.setattr(module.psutil, "Process", lambda: parent)
    assert _rule_programs() == [there, there]


def test_a_shell_that_runs_nothing_else_is_the_program(child: Callable[[str], Any]) -> None:
    child("touch up; read line < /dev/null; while :; do :; done")
    assert [Path(program.cmdline()[0]).name for program in _rule_programs()] == ["sh"]


def test_a_handler_is_known_by_the_system() -> None:
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert not _has_handler(os.getpid())
        signal.signal(signal.SIGTERM, lambda *_: None)
        assert _has_handler(os.getpid())
        assert _has_handler(2**30), "where it cannot be known"
    finally:
        signal.signal(signal.SIGTERM, former)


def test_a_time_limit_is_passed_on_to_programs_that_save(child: Callable[[str], Any], tmp_path: Path) -> None:
    process = child(f"{CATCHES}; exit $?")
    run = made(tmp_path)
    assert run._forward_stop(stopped(signal.SIGUSR2))
    assert (result(run)["status"], result(run)["cause"]) == ("interrupted", "it came near its time limit")
    assert process.wait(10) == 75
    assert (tmp_path / "saved").exists()


def test_a_time_limit_is_not_told_to_programs_that_do_not_save(child: Callable[[str], Any], tmp_path: Path) -> None:
    process = child(f"{IGNORES}; exit $?")
    run = made(tmp_path)
    assert not run._forward_stop(stopped(signal.SIGUSR2))
    assert result(run) == {}
    time.sleep(0.2)
    assert process.poll() is None
    assert run._forward_stop(stopped(signal.SIGTERM)), "the scheduler's stop is another matter"
    assert result(run)["cause"] == "the scheduler stopped it"
    assert process.wait(10) == 128 + 15


def test_slurm_tells_the_programs_itself_that_it_stops_them(
    child: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    process = child(f"{CATCHES}; exit $?")
    run = made(tmp_path)
    assert run._forward_stop(stopped(signal.SIGTERM))
    time.sleep(0.3)
    assert process.poll() is None
    assert run._forward_stop(stopped(signal.SIGUSR2))
    assert process.wait(10) == 75


def follow(run: JobRun, command: str, stop: StopRequest, folder: Path) -> dict[str, Any]:
    lease = Lease(folder / "lease", "me")
    assert lease.take(lambda: False)
    return run._follow(subprocess.Popen(command, shell=True, cwd=folder), stop, lease)


def test_a_job_that_saved_and_left_is_interrupted(tmp_path: Path) -> None:
    run = made(tmp_path)
    told = follow(run, "sleep 1.2; exit 75", stopped(signal.SIGTERM), tmp_path)
    assert (told["status"], told["cause"]) == ("interrupted", "the scheduler stopped it")
    run.folder.result("t.0").unlink()
    told = follow(run, "exit 75", stopped(signal.SIGTERM), tmp_path)
    assert told["status"] == "interrupted", "within a second"
    assert result(run) == told


def test_a_job_that_ran_into_its_time_limit_is_told_so(tmp_path: Path) -> None:
    told = follow(made(tmp_path), "exit 75", stopped(signal.SIGUSR2), tmp_path)
    advice = "it ran into its time limit; raise its runtime, or let it save its state on SIGTERM"
    assert (told["status"], told["cause"]) == ("failed", advice)
    assert follow(made(tmp_path), "true", stopped(signal.SIGUSR2), tmp_path)["status"] == "success"


def test_orphans_that_are_saving_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [["one"], ["one"], []]
    monkeypatch.setattr(module, "_descendants", lambda: others.pop(0))
    monkeypatch.setattr(module, "_reap", lambda: None)
    assert follow(made(tmp_path), "exit 75", stopped(signal.SIGTERM), tmp_path)["status"] == "interrupted"
    assert others == []


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of SLURM, number 7, whose ``scontrol`` writes down what it is told."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (place / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path / "told"


def test_after_a_time_limit_a_requeue_is_asked_for(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[StopRequest] = []
    monkeypatch.setattr(module, "_wait_for_the_scheduler", waited.append)
    run = made(tmp_path, requeues=2)
    stop = stopped(signal.SIGUSR2)
    told = run._ask_for_requeue(stop)
    assert (told["status"], told["cause"], told["scheduler_id"]) == ("interrupted", "it came near its time limit", "7")
    assert scontrol.read_text() == "requeue 7\n"
    assert capsys.readouterr().out == "state saved; asking for a requeue of 7\n"
    assert waited == [stop]
    starts = run.folder.job("key") / "starts"
    starts.parent.mkdir(parents=True, exist_ok=True)
    starts.write_text("start\n" * 2)
    assert run._ask_for_requeue(stop)["status"] == "interrupted"
    starts.write_text("start\n" * 3)
    told = run._ask_for_requeue(stop)
    assert (told["status"], told["cause"]) == ("failed", "it was started 3 times and met its time limit each time")
    assert result(run) == told
    assert scontrol.read_text() == "requeue 7\n" * 2


def test_nobody_waits_for_a_requeue_that_was_refused(tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_wait_for_the_scheduler", lambda stop: pytest.fail("waited"))
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert made(tmp_path)._ask_for_requeue(stopped(signal.SIGUSR2))["status"] == "interrupted"
    (tmp_path / "bin" / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert made(tmp_path)._ask_for_requeue(stopped(signal.SIGUSR2))["status"] == "interrupted"


def test_a_requeue_is_not_asked_for_where_slurm_makes_it_or_none_may_be(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_wait_for_the_scheduler", lambda stop: pytest.fail("waited"))
    assert made(tmp_path)._ask_for_requeue(stopped(signal.SIGTERM))["cause"] == "the scheduler stopped it"
    assert made(tmp_path, requeues=0)._ask_for_requeue(stopped(signal.SIGUSR2))["status"] == "interrupted"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert made(tmp_path)._ask_for_requeue(stopped(signal.SIGUSR2))["status"] == "interrupted"
    assert not scontrol.exists()


def test_after_a_requeue_the_scheduler_is_given_time_to_end_the_job() -> None:
    stop = stopped(signal.SIGUSR2)
    began = time.monotonic()
    _wait_for_the_scheduler(stop, seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 2
    timer = threading.Timer(0.1, stop, (signal.SIGTERM, None))
    timer.start()
    began = time.monotonic()
    _wait_for_the_scheduler(stop)
    assert time.monotonic() - began < 5
    assert stop.signal == signal.SIGTERM


def test_the_end_of_a_process_is_looked_for_once_a_second() -> None:
    process = subprocess.Popen(["sleep", "30"])
    try:
        began = time.monotonic()
        assert not _ended(process)
        assert 0.9 < time.monotonic() - began < 5
    finally:
        process.kill()
    assert _ended(process)
