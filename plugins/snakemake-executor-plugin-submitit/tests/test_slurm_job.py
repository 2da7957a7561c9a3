"""What runs on the node, without a scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_slurm import wait_until

from snakemake_executor_plugin_submitit.folder import Folder, read_json, write_json
from snakemake_executor_plugin_submitit.ledger import Ledger

CATCHES = (
    "import signal, sys, time; signal.signal(15, lambda *_: (open('saved', 'w').close(), sys.exit(75))); "
    "open('up', 'w').close(); time.sleep(30)"
)
CODE = """
import sys
from pathlib import Path
from snakemake_executor_plugin_submitit.folder import Folder
from snakemake_executor_plugin_submitit.job import JobRun
JobRun(Folder(Path(sys.argv[1])), sys.argv[1], "key", "t.0", sys.argv[2], int(sys.argv[3]))()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    Ledger(folder.ledger).submit("t", "name", "train", [("key", "print")])
    return folder


def start(folder: Folder, command: str, environment: dict[str, str], requeues: int = 10, **extra: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", CODE, str(folder.root), command, str(requeues)]
    plain = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
    return subprocess.Popen(arguments, env={**plain, **extra})


def status(folder: Folder) -> str:
    return str((read_json(folder.result("t.0")) or {}).get("status"))


def test_ends_are_told_by_result_file_and_exit_status(folder: Folder, plain_environment: dict[str, str]) -> None:
    assert start(folder, "true", plain_environment).wait() == 0
    assert status(folder) == "success"
    assert not (folder.job("key") / "lease").exists()
    folder.result("t.0").unlink()
    assert start(folder, "exit 3", plain_environment).wait() == 1
    assert status(folder) == "failed"
    assert "exit status 3" in (read_json(folder.result("t.0")) or {})["cause"]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_program_below_shells_is_told_to_save(folder: Folder, plain_environment: dict[str, str], number: int) -> None:
    process = start(folder, f'bash -c "{sys.executable} -c \\"{CATCHES}\\" ; exit \\$?"', plain_environment)
    wait_until((folder.root / "up").exists, 20, "program")
    process.send_signal(number)
    assert process.wait(20) == 75
    assert (folder.root / "saved").exists()
    assert status(folder) == "interrupted"


def test_a_program_that_cannot_save_is_left_alone_before_its_time_limit(
    folder: Folder, plain_environment: dict[str, str]
) -> None:
    process = start(folder, "touch up; sleep 4", plain_environment)
    wait_until((folder.root / "up").exists, 20, "program")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(20) == 0
    assert status(folder) == "success"


def test_a_job_is_not_started_more_often_than_allowed(folder: Folder, plain_environment: dict[str, str]) -> None:
    folder.job("key").mkdir(parents=True)
    (folder.job("key") / "starts").write_text("once\ntwice\n")
    assert start(folder, "touch ran", plain_environment, requeues=1).wait() == 1
    assert status(folder) == "failed"
    assert not (folder.root / "ran").exists()


def test_a_late_copy_does_nothing(folder: Folder, plain_environment: dict[str, str]) -> None:
    write_json(folder.result("t.0"), {"status": "success"})
    assert start(folder, "touch ran", plain_environment).wait() == 0
    folder.result("t.0").unlink()
    Ledger(folder.ledger).close(["t.0"], "collected")
    assert start(folder, "touch ran", plain_environment).wait() == 75
    assert not (folder.root / "ran").exists()


def test_a_copy_waits_for_the_one_that_runs(folder: Folder, plain_environment: dict[str, str]) -> None:
    first = start(folder, "sleep 2; test ! -e second; touch first", plain_environment)
    wait_until((folder.job("key") / "lease").exists, 20, "lease")
    second = start(folder, "touch second", plain_environment)
    time.sleep(1)
    assert not (folder.root / "second").exists()
    assert first.wait(20) == 0
    assert second.wait(20) == 0
    assert (folder.root / "first").exists()
    assert not (folder.root / "second").exists(), "the first has ended well, so there is nothing to do"


def test_a_lost_lease_stops_the_job(folder: Folder, plain_environment: dict[str, str]) -> None:
    process = start(folder, "sleep 60", plain_environment)
    wait_until((folder.job("key") / "lease").exists, 20, "lease")
    time.sleep(0.5)
    write_json(folder.job("key") / "lease", {"holder": "another", "host": os.uname().nodename, "pid": os.getpid()})
    assert process.wait(20) == 75
    assert status(folder) == "None"
