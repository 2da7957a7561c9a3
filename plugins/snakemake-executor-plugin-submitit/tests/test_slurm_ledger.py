"""The ledger and the lease: what is on disk after a crash."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_submitit.folder import Folder, append_line, read_json, write_json
from snakemake_executor_plugin_submitit.lease import Lease, LostLeaseError, beating
from snakemake_executor_plugin_submitit.ledger import Ledger
from snakemake_executor_plugin_submitit.schedulers import Queued
from snakemake_executor_plugin_submitit.session import Session, forget_dead_locks
from snakemake_executor_plugin_submitit.submission import adopt, ids_by_name


def filled(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.submit("aa", "work.train.aa", "train", [("k0", "f0"), ("k1", "f1")])
    ledger.accept("aa", ["7_0", "7_1"])
    ledger.submit("bb", "work.sum.bb", "sum", [("k2", "f2")])
    ledger.close(["aa.0"], "collected")
    return ledger


def job_ids(path: Path) -> dict[str, str | None]:
    """Ticket of every open entry, with the scheduler's id."""
    return {ticket: entry.job_id for ticket, entry in Ledger(path).open_entries().items()}


def test_open_entries_are_those_not_closed_and_know_their_ids(tmp_path: Path) -> None:
    entries = filled(tmp_path / "ledger").open_entries()
    assert job_ids(tmp_path / "ledger") == {"aa.1": "7_1", "bb.0": None}
    assert (entries["aa.1"].key, entries["aa.1"].fingerprint, entries["aa.1"].index) == ("k1", "f1", 1)


def test_a_refused_submission_does_not_exist(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger")
    ledger.refuse("bb")
    assert set(ledger.open_entries()) == {"aa.1"}


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(min_value=0, max_value=500))
def test_a_ledger_cut_anywhere_loses_no_job_that_was_accepted(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    filled(path)
    lines = path.read_text().splitlines()
    path.write_bytes(path.read_bytes()[:cut])
    whole = max(count for count in range(len(lines) + 1) if len("\n".join(lines[:count])) <= cut)
    # by hand, after each line: two jobs are submitted, get their ids, a third is submitted, the first of the three is closed
    expected: dict[str, str | None] = [
        {},
        {"aa.0": None, "aa.1": None},
        {"aa.0": "7_0", "aa.1": "7_1"},
        {"aa.0": "7_0", "aa.1": "7_1", "bb.0": None},
        {"aa.1": "7_1", "bb.0": None},
    ][whole]
    assert job_ids(path) == expected
    Ledger(path).submit("cc", "work.sum.cc", "sum", [("k3", "f3")])
    assert job_ids(path) == {**expected, "cc.0": None}


def test_ids_are_found_by_the_name_of_the_submission(tmp_path: Path) -> None:
    queue = {
        "9_1": Queued("RUNNING", "", "work.train.aa"),
        "8": Queued("PENDING", "", "work.sum.bb"),
        "5": Queued("RUNNING", "", "x"),
    }
    assert ids_by_name(queue, "work.train.aa", 3) == ["9_0", "9_1", "9_2"]
    assert ids_by_name(queue, "work.sum.bb", 1) == ["8"]
    assert ids_by_name(queue, "work.sum.zz", 1) == []
    assert adopt(list(filled(tmp_path / "ledger").open_entries().values()), queue) == {"bb": ["8"]}


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b").write_text("torn")
    append_line(tmp_path / "b", "next")
    assert (tmp_path / "b").read_text() == "torn\nnext\n"


def test_a_lease_is_held_by_one_and_lost_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "job" / "lease"
    first, second = Lease(path, "first"), Lease(path, "second")
    assert first.take(lambda: False)
    assert beating(path)
    assert not second.take(lambda: True)
    write_json(path, {"holder": "first", "host": "elsewhere", "pid": 1})
    old = time.time() - 60
    os.utime(path, (old, old))
    assert not beating(path)
    assert second.take(lambda: False)
    with pytest.raises(LostLeaseError, match="second"):
        first.beat(force=True)
    first.release()
    assert path.exists()
    second.release()
    assert not path.exists()


@pytest.fixture
def dead_pid() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_lease_of_a_process_that_died_here_is_free_at_once(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "lease"
    write_json(path, {"holder": "dead", "host": socket.gethostname(), "pid": dead_pid})
    assert Lease(path, "next").take(lambda: True), "at once: whoever waits gives up"


def test_a_lease_of_another_host_is_not_taken_because_its_process_is_unknown_here(tmp_path: Path, dead_pid: int) -> None:
    """Process numbers mean something on their own host only; elsewhere, what counts is that the holder goes on beating."""
    path = tmp_path / "lease"
    held = {"holder": "first", "host": f"not-{socket.gethostname()}", "pid": dead_pid}
    write_json(path, held)
    assert not Lease(path, "second").take(lambda: True)
    assert read_json(path) == held


def test_locks_of_a_dead_session_are_forgotten_and_no_others(tmp_path: Path) -> None:
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("a")
    session = Session(Folder.of(tmp_path), tmp_path)
    forget_dead_locks(tmp_path)
    assert (locks / "0.input.lock").exists(), "the session lives"
    session.end()
    (locks / "1.input.lock").write_text("of another Snakemake")
    forget_dead_locks(tmp_path)
    assert [path.name for path in locks.iterdir()] == ["1.input.lock"]
