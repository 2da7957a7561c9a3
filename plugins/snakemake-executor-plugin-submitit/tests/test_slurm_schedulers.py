"""What is asked of SLURM, and what its answers mean: the commands are small scripts that note how they were called."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from real_slurm import wait_until
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit import job, schedulers
from snakemake_executor_plugin_submitit.folder import Folder, read_json
from snakemake_executor_plugin_submitit.job import JobRun
from snakemake_executor_plugin_submitit.resources import Request, request
from snakemake_executor_plugin_submitit.schedulers import (
    BusyError,
    Debug,
    Local,
    Queued,
    RefusedError,
    Slurm,
    Submission,
    _call_scheduler,
)

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make a command of SLURM: a shell script, which also notes its arguments, a line a call, in ``NAME.calls``."""
    place = tmp_path / "bin"
    place.mkdir()
    for tool in ("cp", "env", "ps", "sleep"):  # and no SLURM that may be on this machine
        (place / tool).symlink_to(shutil.which(tool) or tool)
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.chdir(tmp_path)

    def make(name: str, script: str = "") -> None:
        path = place / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\n{script}\n')
        path.chmod(0o755)

    return make


@pytest.fixture
def slurm(install: Install) -> Slurm:
    for name in ("sbatch", "srun", "squeue", "scancel"):
        install(name)
    return Slurm(array_size=9, array_parallel=3, stop_seconds=120)


def calls(name: str) -> list[str]:
    path = Path(f"{name}.calls")
    return path.read_text().splitlines() if path.exists() else []


def run_of(folder: Path, command: str = "true", ticket: str = "t.0") -> JobRun:
    return JobRun(Folder(folder), str(folder), "key", ticket, command, 0)


def submission(folder: Path, resources: dict[str, Any], requeues: int = 10) -> Submission:
    return Submission("study.train.ab", request(resources, 2, requeues, "train"), folder / "logs")


def directives(path: Path) -> set[str]:
    """Options in a batch script, without the paths of logs."""
    lines = re.findall(r"^#SBATCH --(.*)$", path.read_text(), re.MULTILINE)
    return {line for line in lines if not line.startswith(("output", "error", "open-mode"))}


def test_a_machine_without_slurm_is_told(install: Install) -> None:
    message = "no sbatch on this machine; type this on a login node, or use --submitit-cluster local"
    for name in ("srun", "sbatch"):
        with pytest.raises(WorkflowError) as raised:
            Slurm(1, 1, 1)
        assert str(raised.value) == message
        (Path("bin") / "srun").unlink(missing_ok=True)
        install(name)
    install("srun")
    Slurm(1, 1, 1)


def test_one_job_is_a_batch_script_that_says_what_it_needs(slurm: Slurm, install: Install, tmp_path: Path) -> None:
    install("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 17')
    asked = submission(
        tmp_path, {"mem_mb": 300, "runtime": 30, "slurm_partition": "gpu", "slurm_extra": "--exclusive --comment=x"}
    )
    assert slurm.submit(asked, [run_of(tmp_path)]) == ["17"]
    assert directives(tmp_path / "script") == {
        *("job-name=study.train.ab", "time=30", "signal=B:USR2@120", "requeue", "mem=300M", "cpus-per-task=2", "nodes=1"),
        *("partition=gpu", "exclusive", "comment=x"),
    }
    text = (tmp_path / "script").read_text()
    assert f"\nexec {sys.executable} -u -m submitit.core._submit {tmp_path / 'logs'}" in text
    assert "srun" not in text.splitlines()[-1]
    assert "--error" not in text, "what is printed goes into one file"
    assert (tmp_path / "logs" / "17_submitted.pkl").exists()


def test_several_jobs_are_an_array(slurm: Slurm, install: Install, tmp_path: Path) -> None:
    install("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 17')
    runs = [run_of(tmp_path, ticket=f"t.{n}") for n in range(4)]
    assert slurm.submit(submission(tmp_path, {}, requeues=0), runs) == ["17_0", "17_1", "17_2", "17_3"]
    assert len(calls("sbatch")) == 1
    found = directives(tmp_path / "script")
    assert {"array=0-3%3", "no-requeue", "signal=B:USR2@120"} <= found
    assert not any(line.startswith(("requeue", "time", "wckey")) for line in found)


@pytest.mark.parametrize(("minutes", "seconds"), [(None, 120), (600, 120), (6, 120), (5, 100), (1, 20)])
def test_a_short_job_is_told_at_two_thirds_of_its_time_at_the_latest(slurm: Slurm, minutes: int | None, seconds: int) -> None:
    asked = slurm._parameters(Submission("a", Request((), (), minutes, 1, 1), Path("logs")))
    assert asked["additional_parameters"] == {"signal": f"B:USR2@{seconds}", "requeue": True}
    assert asked["time"] == minutes


def test_the_users_own_options_win(slurm: Slurm) -> None:
    asked = slurm._parameters(Submission("a", Request((("mem", "1M"),), (("signal", "B:USR1@9"),), 9, 1, 0), Path("logs")))
    assert asked["additional_parameters"] == {"signal": "B:USR1@9", "no-requeue": True}
    assert asked["mem"] == "1M"
    assert (asked["use_srun"], asked["stderr_to_stdout"], asked["wckey"]) == (False, True, None)


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1", RefusedError, "invalid partition specified"),
        (
            "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1",
            BusyError,
            "Unable",
        ),
        ("echo 'Socket timed out on send/recv operation' >&2; exit 1", BusyError, "Socket timed out"),
        ("echo 'what is this'", BusyError, "Could not make sense of sbatch output"),
    ],
    ids=["refused", "no controller", "timed out", "nonsense"],
)
def test_a_refusal_is_told_from_a_scheduler_that_is_not_there(
    slurm: Slurm, install: Install, tmp_path: Path, script: str, kind: type[Exception], message: str
) -> None:
    install("sbatch", script)
    with pytest.raises(kind, match=message):
        slurm.submit(submission(tmp_path, {}), [run_of(tmp_path)])


def test_what_cannot_be_written_is_tried_again(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(BusyError, match="cannot submit: "):
        slurm.submit(submission(tmp_path, {}), [run_of(tmp_path)])


def test_the_queue_is_one_question_about_all_jobs_of_this_user(slurm: Slurm, install: Install) -> None:
    install("squeue", "echo ' 7_0|RUNNING|None|study.train.ab'; echo '8|PENDING|Job|Held|odd|name'; echo 'no line'; echo")
    assert slurm.queue(["7_0", "9"]) == {
        "7_0": Queued("RUNNING", "None", "study.train.ab"),
        "8": Queued("PENDING", "Job", "Held|odd|name"),
    }
    assert calls("squeue") == [f"--noheader --array --states=all --user={os.geteuid()} --format=%i|%T|%r|%j"]


def test_accounting_knows_the_jobs_that_the_queue_has_forgotten(slurm: Slurm, install: Install) -> None:
    install("squeue", "echo '7_0|RUNNING|None|a'")
    install("sacct", "echo '7_1|CANCELLED by 0|b'; echo '7_2|FAILED|c'; echo '8||d'; echo '9|COMPLETED|e'")
    slurm = Slurm(9, 3, 120)
    assert slurm.queue(["7_0", "7_1", "8"]) == {"7_0": Queued("RUNNING", "None", "a"), "7_1": Queued("CANCELLED", "", "b")}
    assert calls("sacct") == ["--noheader --parsable2 --allocations --format=JobID,State,JobName --jobs 7,8"]
    slurm.queue(["7_0"])
    assert len(calls("sacct")) == 1, "nothing is forgotten"


def test_accounting_that_does_not_answer_is_not_asked_again(slurm: Slurm, install: Install) -> None:
    install("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    slurm = Slurm(9, 3, 120)
    for _ in range(2):
        assert slurm.queue(["7"]) == {}
    assert len(calls("sacct")) == 1


def test_many_jobs_are_cancelled_with_few_calls(slurm: Slurm, install: Install) -> None:
    install("scancel", "echo 'scancel: error: Invalid job id specified' >&2; exit 1")  # some had ended already
    slurm.cancel([str(number) for number in range(1001)])
    told = [line.split() for line in calls("scancel")]
    assert [(line[0], len(line) - 1) for line in told] == [("--quiet", 500), ("--quiet", 500), ("--quiet", 1)]
    assert [number for line in told for number in line[1:]] == [str(number) for number in range(1001)]
    install("scancel", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(BusyError, match="Unable to contact"):
        slurm.cancel(["1"])


def test_commands_print_what_their_options_say_whatever_the_user_has_set(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_FORMAT", "SACCT_FORMAT", "SCANCEL_VERBOSE", "SLURM_CONF"):
        monkeypatch.setenv(name, "mine")
    install("squeue", "env")
    lines = _call_scheduler(["squeue"]).splitlines()
    assert [line for line in lines if line.endswith("=mine")] == ["SLURM_CONF=mine"]
    assert f"PATH={os.environ['PATH']}" in lines


def test_commands_that_do_not_answer_are_busy(install: Install) -> None:
    install("squeue", "exec sleep 20")
    began = time.monotonic()
    with pytest.raises(BusyError) as raised:
        _call_scheduler(["squeue"], timeout=0.3)
    assert time.monotonic() - began < 10
    assert str(raised.value) == "squeue has not answered for 0 seconds"
    with pytest.raises(BusyError, match=r"^sinfo: .*No such file"):
        _call_scheduler(["sinfo"])
    install("squeue", "exit 3")
    with pytest.raises(BusyError, match=r"^squeue failed without a word$"):
        _call_scheduler(["squeue", "-h"])
    install("squeue", "echo '  slow down ' >&2; exit 3")
    with pytest.raises(BusyError, match=r"^slow down$"):
        _call_scheduler(["squeue"])


def test_commands_do_not_hear_ctrl_c_of_the_terminal(install: Install) -> None:
    install("squeue", "exec ps -o sid= -p $$")
    assert int(_call_scheduler(["squeue"])) != os.getsid(0)


def test_a_command_may_take_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        return SimpleNamespace(returncode=0, stdout=json.dumps([command, options["timeout"]]), stderr="")

    monkeypatch.setattr(schedulers.subprocess, "run", run)
    assert json.loads(_call_scheduler(["squeue"])) == [["squeue"], 120]


@pytest.fixture
def ended() -> Iterator[list[str]]:
    """Ids of processes of this machine that are ended after the test."""
    ids: list[str] = []
    yield ids
    for job_id in ids:
        with contextlib.suppress(psutil.Error):
            for process in [*psutil.Process(int(job_id)).children(recursive=True), psutil.Process(int(job_id))]:
                process.kill()


def test_processes_of_this_machine_run_until_they_end_or_are_cancelled(
    tmp_path: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Local(stop_seconds=120)
    local.cores = 3
    monkeypatch.chdir(tmp_path)
    asked = submission(tmp_path, {"runtime": 1})
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ended += local.submit(asked, [run_of(tmp_path, "echo told; touch up; sleep 60")])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == former
    (job_id,) = ended
    assert local.queue([job_id, "1", "no number"]) == {job_id: Queued("RUNNING", "", "")}
    assert Local(120).queue([job_id]) == {job_id: Queued("RUNNING", "", "")}, "as the next session sees it"
    assert not local.room(request({}, 2, 1, "train")), "two of three cores are taken"
    assert local.room(request({}, 1, 1, "train"))
    wait_until((tmp_path / "up").exists, 60, "the job")
    assert Local.log(local, asked.logs, job_id).read_text() != ""
    local.cancel([job_id, "no number"])
    wait_until(lambda: not local.queue([job_id]), 60, "end of the job")
    assert Local(120).queue([job_id]) == {}
    assert local.room(request({}, 99, 1, "train")), "a job that wants more than there is runs alone"
    assert (read_json(Folder(tmp_path).result("t.0")) or {})["status"] == "interrupted"


@pytest.mark.parametrize(("minutes", "limit", "signalled"), [(None, 60 * 24 * 365, 120), (600, 600, 120), (2, 2, 40)])
def test_processes_of_this_machine_have_time_limits_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int | None, limit: int, signalled: int
) -> None:
    told: dict[str, Any] = {}

    class Executor:
        def __init__(self, folder: Path) -> None:
            told["folder"] = folder

        def update_parameters(self, **options: Any) -> None:
            told.update(options)

        def submit(self, run: Any) -> Any:
            told["masked"] = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return SimpleNamespace(job_id="5")

    monkeypatch.setattr(schedulers.submitit, "LocalExecutor", Executor)
    assert Local(120).submit(Submission("a", Request((), (), minutes, 1, 0), tmp_path), [run_of(tmp_path)]) == ["5"]
    assert told.pop("masked"), "Ctrl-C does not reach what is being started"
    times = {"timeout_min": limit, "signal_delay_s": signalled}
    assert told == {"folder": tmp_path, "stderr_to_stdout": True, "tasks_per_node": 1, **times}


def test_debugged_jobs_share_no_id_and_so_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_adopt_orphans", lambda: None)
    monkeypatch.chdir(tmp_path)
    debug, ids = Debug(), []
    for n in range(8):
        ids += debug.submit(submission(tmp_path, {}), [run_of(tmp_path, "true", f"t.{n}")])
    assert len(set(ids)) == 8


def test_debugged_jobs_run_one_after_the_other_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_adopt_orphans", lambda: None)
    monkeypatch.chdir(tmp_path)
    commands = ["echo one >> told", "echo two >> told; exit 3", "echo three >> told"]
    runs = [run_of(tmp_path, command, f"t.{n}") for n, command in enumerate(commands)]
    debug = Debug()
    ids = debug.submit(submission(tmp_path, {}, requeues=9), [JobRun(**{**vars(run), "requeues": 9}) for run in runs])
    assert len(set(ids)) == 3
    assert (tmp_path / "told").read_text() == "one\ntwo\nthree\n"
    assert [(read_json(Folder(tmp_path).result(run.ticket)) or {})["status"] for run in runs] == ["success", "failed", "success"]
    assert debug.queue(ids) == {}
    debug.cancel(ids)
    assert debug.room(request({}, 99, 1, "train"))
    assert debug.array_size == 1
