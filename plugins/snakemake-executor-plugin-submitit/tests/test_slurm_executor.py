"""What the executor does in one step after the other, on a made-up cluster and a made-up clock."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from made_up import Clock, Cluster, Following, Group, Job
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.real import RealExecutor

from snakemake_executor_plugin_submitit.executor import Executor, _scheduler, _space, _tail
from snakemake_executor_plugin_submitit.folder import write_json
from snakemake_executor_plugin_submitit.identity import key_of
from snakemake_executor_plugin_submitit.resources import request
from snakemake_executor_plugin_submitit.schedulers import BusyError, Debug, Local, Queued, RefusedError, Slurm
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.submission import tracked

LOGS = ".snakemake/submitit/logs"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def following(workdir: Path, clock: Clock, cluster: Cluster) -> Following:
    return Following(cluster)


def submitted(following: Following, *jobs: Job) -> None:
    """Jobs come in and leave."""
    following.run_jobs(list(jobs))  # type: ignore[arg-type]
    following.step()


def test_ready_jobs_of_a_rule_leave_as_one_array(following: Following, cluster: Cluster, workdir: Path) -> None:
    jobs = [Job(n=str(n)) for n in range(3)]
    following.run_jobs(jobs)  # type: ignore[arg-type]
    assert following.prepared == jobs
    assert following._wake
    assert len(following.step()) == 3
    assert not following._wake
    ((submission, runs),) = cluster.submitted
    token = submission.name.rpartition(".")[2]
    assert submission.name == f"study.train.{token}"
    assert submission.logs == workdir / LOGS / "train"
    assert submission.request == request(jobs[0].resources, 2, 10, "train")
    assert [run.ticket for run in runs] == [f"{token}.{n}" for n in range(3)]
    assert [run.command for run in runs] == [f"snakemake out/train{n}.txt" for n in range(3)]
    assert {(run.folder, run.workdir, run.requeues) for run in runs} == {(following.folder, str(workdir), 10)}
    assert [run.key for run in runs] == [key_of(job) for job in jobs]  # type: ignore[arg-type]
    assert [info.external_jobid for info in following.active] == ["1_0", "1_1", "1_2"]
    assert following.told() == [f"Submitted 3 jobs of train as 1 ({submission.name}), logs: {LOGS}/train/1_*_0_log.out"]
    pairs = [[tracked(info).key, tracked(info).fingerprint] for info in following.active]
    assert following.events() == [
        {"event": "submit", "token": token, "name": submission.name, "rule": "train", "jobs": pairs},
        {"event": "accept", "token": token, "ids": ["1_0", "1_1", "1_2"]},
    ]
    following.step()
    assert len(cluster.submitted) == 1


def test_a_job_alone_is_called_by_its_wildcards(following: Following, cluster: Cluster) -> None:
    submitted(following, Job(n="3"))
    name = cluster.submitted[0][0].name
    assert name.startswith("study.train.3.")
    assert following.told() == [f"Submitted train (n=3) as 1 ({name}), log: {LOGS}/train/1_0_log.out"]


def test_other_rules_other_requests_and_full_arrays_leave_by_themselves(following: Following, cluster: Cluster) -> None:
    cluster.array_size = 2
    submitted(following, *(Job(n=str(n)) for n in range(3)), Job("sum"), Job(n="9", resources={"mem_mb": 7}))
    assert [(one.name.split(".")[1], len(runs)) for one, runs in cluster.submitted] == [
        ("train", 2),
        ("train", 1),
        ("sum", 1),
        ("train", 1),
    ]


def test_jobs_that_are_coming_in_are_not_torn_into_two_arrays(following: Following, cluster: Cluster) -> None:
    first, second = Job(n="1"), Job(n="2")

    class Stepping(list[Any]):
        def __iter__(self) -> Any:
            yield first
            following.step()
            yield second

    following.run_jobs(Stepping())
    assert cluster.submitted == []
    following.step()
    assert [len(runs) for _, runs in cluster.submitted] == [2]


def test_nothing_happens_before_the_executor_is_ready(following: Following, cluster: Cluster) -> None:
    following.run_jobs([Job()])  # type: ignore[list-item]
    following._ready = False
    assert following.step() == []
    assert cluster.submitted == []


def test_a_job_that_ended_well_is_collected(following: Following, cluster: Cluster) -> None:
    job = Job()
    submitted(following, job)
    logs = following.folder.logs("train")
    logs.mkdir(parents=True)
    for name in ("1_submitted.pkl", "1_0_result.pkl", "1_0_log.out"):
        (logs / name).touch()
    following.ends("success")
    assert following.step() == []
    assert following.done == [job]
    assert following.failed == []
    assert [path.name for path in logs.iterdir()] == ["1_0_log.out"]
    assert list(following.folder.results.iterdir()) == []
    token = cluster.submitted[0][0].name.rpartition(".")[2]
    assert following.events()[-1] == {"event": "close", "tickets": [f"{token}.0"], "why": "collected"}
    assert following._followed == {}


def test_a_job_that_failed_is_told_with_its_log_and_what_to_do(following: Following, cluster: Cluster, workdir: Path) -> None:
    job = Job(n="1")
    submitted(following, job)
    name = cluster.submitted[0][0].name
    log = workdir / LOGS / "train" / "1_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {n}\n" for n in range(20)))
    following.ends("failed", "its command ended with exit status 3")
    assert following.step() == []
    tail = "\n".join(f"    line {n}" for n in range(5, 20))
    assert following.failed == [
        (
            job,
            f"train (n=1), 1 ({name}): its command ended with exit status 3.\n"
            f"Log of the job: {LOGS}/train/1_0_log.out\n{tail}\nWhat to do: read its log.",
        )
    ]
    token = name.rpartition(".")[2]
    why = "failed: its command ended with exit status 3"
    assert following.events()[-1] == {"event": "close", "tickets": [f"{token}.0"], "why": why}
    assert following._followed == {}


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch",
        "slurmstepd: error: Job 7 exceeded memory limit (300 > 200), being killed",
        "slurmstepd: error: Step hit by Out Of Memory",
    ],
    ids=["kill", "limit", "hit"],
)
def test_a_job_that_was_ended_for_its_memory_is_told_so(following: Following, line: str) -> None:
    submitted(following, Job())
    log = following.scheduler.log(following.folder.logs("train"), "1")
    log.parent.mkdir(parents=True)
    log.write_text(f"{line}\n")
    following.ends("failed", "its command ended with exit status 137")
    following.step()
    message = following.failed[0][1]
    assert "it ran out of memory." in message
    assert "What to do: raise its mem_mb." in message


def test_the_end_of_a_log_is_shown_or_why_there_is_none(tmp_path: Path) -> None:
    assert _tail(tmp_path / "none") == ["    (it cannot be read: the job did not come as far as opening it, or the disk is full)"]
    (tmp_path / "log").write_text("")
    assert _tail(tmp_path / "log") == ["    (empty)"]
    (tmp_path / "log").write_bytes(b"\xff\xfe of another alphabet\n")
    assert "of another alphabet" in _tail(tmp_path / "log")[0]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, full, away = (tmp_path / name for name in ("large", "full", "away"))
    blocks = {large: 4096, full: 300}

    def statvfs(path: Path) -> SimpleNamespace:
        if path not in blocks:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_bavail=blocks[path], f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert _space([away, large]) == ""
    assert _space([away, large, full]) == f"The disk of {full} is full: 1 MiB are left."
    blocks[large] = 1024  # four MiB are enough
    assert _space([large]) == ""
    blocks[large] = 1023
    assert _space([large]) == f"The disk of {large} is full: 3 MiB are left."


def test_a_failure_on_a_full_disk_says_so_at_its_end(following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(following, Job())
    following.ends("failed")
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_bavail=0 if Path(path).name == "out" else 9999, f_frsize=4096)
    )
    following.step()
    assert following.failed[0][1].endswith(f"The disk of {following.workdir / 'out'} is full: 0 MiB are left.")


def test_the_queue_is_asked_once_an_interval_for_all_jobs(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job(n="1"), Job(n="2"))
    clock.now += 19.9
    following.step()
    assert cluster.asked == []
    clock.now += 0.1
    following.step()
    assert cluster.asked == [["1_0", "1_1"]]
    following.step()
    clock.now += 19
    following.step()
    assert len(cluster.asked) == 1
    clock.now += 1
    following.step()
    assert len(cluster.asked) == 2


def test_nobody_asks_about_jobs_that_have_left_a_result(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    following.ends("interrupted")
    clock.now += 20
    following.step()
    assert cluster.asked == [["1"]], "an interrupted job may come back"
    following.ends("failed")
    clock.now += 20
    following.step()
    assert len(cluster.asked) == 1


def gone(following: Following, cluster: Cluster, clock: Clock, state: str | None = None) -> None:
    """The queue knows the jobs as alive no more, for longer than a result file needs to be seen."""
    cluster.become(state)
    clock.now += 20
    following.step()
    clock.now += 10
    following.step()


def test_a_job_is_given_time_for_its_result_after_it_left_the_queue(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    following.starts()
    cluster.become(None)
    clock.now += 20
    assert len(following.step()) == 1
    assert tracked(following.active[0]).gone_since == clock.now
    clock.now += 9.9
    assert len(following.step()) == 1
    following.ends("success")
    following.step()
    assert len(following.done) == 1


def test_the_time_for_a_result_is_five_seconds_at_least(workdir: Path, clock: Clock, cluster: Cluster) -> None:
    following = Following(cluster, poll_seconds=1.0)
    submitted(following, Job())
    following.starts()
    cluster.become("FAILED")
    clock.now += 1
    following.step()
    clock.now += 4.9
    following.step()
    assert following.failed == []
    clock.now += 0.1
    following.step()
    assert "it ended as FAILED and left no result" in following.failed[0][1]


def test_a_job_that_comes_back_to_the_queue_is_waited_for(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    cluster.become("FAILED")
    clock.now += 20
    following.step()
    cluster.become("REQUEUED")
    clock.now += 20
    assert len(following.step()) == 1
    assert tracked(following.active[0]).gone_since is None
    assert following.failed == []


def test_a_job_that_was_taken_away_is_submitted_again_after_a_pause(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job(n="1"))
    following.starts()
    gone(following, cluster, clock, "NODE_FAIL")
    token = cluster.submitted[0][0].name.rpartition(".")[2]
    reason = "the scheduler took it away (NODE_FAIL)"
    assert following.told()[-1] == f"train (n=1), 1: {reason}; submitting it again"
    assert following.events()[-1] == {"event": "close", "tickets": [f"{token}.0"], "why": f"again: {reason}"}
    own = tracked(following.active[0])
    assert (own.entry, own.gone_since, own.submissions, own.not_before) == (None, None, 1, clock.now + 2)
    clock.now += 1.9
    following.step()
    assert len(cluster.submitted) == 1
    clock.now += 0.1
    following.step()
    assert len(cluster.submitted) == 2
    assert following.active[0].external_jobid == "2"
    assert tracked(following.active[0]).submissions == 2


def test_pauses_between_submissions_grow_to_a_minute(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    tracked(following.active[0]).submissions = 100
    following.starts()
    gone(following, cluster, clock)
    assert tracked(following.active[0]).not_before == clock.now + 60


def test_a_job_whose_lease_beats_is_waited_for(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    following.starts()
    following.beats(tracked(following.active[0]).key)
    gone(following, cluster, clock)
    assert tracked(following.active[0]).entry is not None


def test_starts_requeues_and_causes_decide(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job(resources={"requeue": 2}))
    following.starts(3)
    following.ends("interrupted", "it came near its time limit")
    gone(following, cluster, clock)
    assert "it came near its time limit, and it has been started 3 times." in following.failed[0][1]


def test_a_job_that_never_began_fails_at_its_third_submission(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    for _ in range(3):
        assert following.failed == []
        gone(following, cluster, clock, "FAILED")
        clock.now += 10
        following.step()
    assert "it ended before it began, 3 times." in following.failed[0][1]
    assert len(cluster.submitted) == 3


def test_a_scheduler_that_does_not_answer_is_asked_with_growing_pauses(
    following: Following, cluster: Cluster, clock: Clock
) -> None:
    following.run_jobs([Job()])  # type: ignore[list-item]
    cluster.trouble = [BusyError("timed out")] * 8
    began = clock.now
    pauses = []
    while cluster.trouble:
        left = len(cluster.trouble)
        before = clock.now
        while len(cluster.trouble) == left:
            following.step()
            if len(cluster.trouble) == left:
                clock.now += 0.5
        pauses.append(clock.now - before)
    assert pauses == [0, 2, 4, 8, 16, 32, 60, 60]
    message = "The scheduler does not answer; waiting for it, for up to 60 minutes: timed out"
    assert following.told("warning") == [message]
    clock.now += 60
    following.step()
    assert len(cluster.submitted) == 1
    seconds = clock.now - began
    assert f"The scheduler answers again, after {seconds:.0f} seconds." in following.told()
    cluster.trouble = [BusyError("again")]
    clock.now += 20
    following.step()
    assert following._pause == 2, "the next trouble begins anew"
    assert len(following.told("warning")) == 2


def test_patience_ends(workdir: Path, clock: Clock, cluster: Cluster) -> None:
    following = Following(cluster, patience=0.5)
    following.run_jobs([Job()])  # type: ignore[list-item]
    cluster.trouble = [BusyError("down"), BusyError("down"), OSError("down still")]
    following.step()
    clock.now += 30
    following.step()
    clock.now += 4
    with pytest.raises(WorkflowError) as raised:
        following.step()
    assert str(raised.value) == (
        "the scheduler has not answered for 0.5 minutes: down still\n"
        "Jobs in its queue go on; start the workflow again to find them."
    )


def test_nothing_is_declared_lost_while_the_scheduler_does_not_answer(
    following: Following, cluster: Cluster, clock: Clock
) -> None:
    submitted(following, Job())
    following.starts()
    cluster.become("FAILED")
    clock.now += 20
    following.step()
    cluster.trouble = [BusyError("down")]
    clock.now += 20
    assert len(following.step()) == 1
    assert following.failed == []
    following.ends("success")
    following.step()
    assert len(following.done) == 1, "a result is believed without the scheduler"


def test_what_the_queue_said_before_a_silence_is_asked_anew(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job())
    cluster.trouble = [BusyError("down")]
    clock.now += 20
    following.step()
    clock.now += 2
    following.step()
    following.step()
    assert len(cluster.asked) == 2


def test_a_submission_whose_answer_got_lost_is_found_by_its_name(following: Following, cluster: Cluster, clock: Clock) -> None:
    following.run_jobs([Job(n="1"), Job(n="2")])  # type: ignore[list-item]
    cluster.loses_answer = BusyError("timed out")
    following.step()
    assert [info.external_jobid for info in following.active] == [None, None]
    clock.now += 2
    following.step()
    assert len(cluster.submitted) == 1
    assert [info.external_jobid for info in following.active] == ["1_0", "1_1"]
    token = cluster.submitted[0][0].name.rpartition(".")[2]
    assert following.events()[-1] == {"event": "accept", "token": token, "ids": ["1_0", "1_1"]}
    assert following.outbox.waiting == []


def test_a_submission_that_did_not_arrive_is_made_again_under_its_name(
    following: Following, cluster: Cluster, clock: Clock
) -> None:
    following.run_jobs([Job()])  # type: ignore[list-item]
    cluster.trouble = [BusyError("timed out")]
    following.step()
    clock.now += 2
    following.step()
    assert [event["event"] for event in following.events()] == ["submit", "accept"]
    assert cluster.asked == [[]], "before it was handed over a second time"
    assert following.active[0].external_jobid == "1"


def test_jobs_wait_where_there_is_no_room(following: Following, cluster: Cluster) -> None:
    cluster.full = True
    submitted(following, Job(n="1"))
    following.step()
    assert cluster.submitted == []
    cluster.full = False
    following.step()
    assert [len(runs) for _, runs in cluster.submitted] == [1]


def test_a_refused_job_says_what_it_asked_for(following: Following, cluster: Cluster) -> None:
    job = Job(n="1", resources={"slurm_extra": "--mail-type=END"})
    cluster.trouble = [RefusedError("invalid partition")]
    following.run_jobs([job, Job("sum")])  # type: ignore[list-item]
    following.step()
    assert following.failed == [
        (
            job,
            "train (n=1): the scheduler refuses it: invalid partition\n"
            "It asked for cpus_per_task=2, mem=100M, mail-type=END; change the rule's resources or the profile.",
        )
    ]
    assert [info.job.rule.name for info in following.active] == ["sum"]
    assert [event["event"] for event in following.events()] == ["submit", "submit", "refuse", "accept"]
    assert following.events()[2]["token"] == following.events()[0]["token"]
    assert len(following._followed) == 1


def test_a_job_that_waits_for_a_person_is_mentioned_once(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job(n="1"))
    for state, reason in [("PENDING", "Resources"), ("RUNNING", "JobHeldUser")] + [("PENDING", "JobHeldUser")] * 2:
        cluster.become(state, reason)
        clock.now += 20
        following.step()
    assert following.told("warning") == [
        "train (n=1), 1, waits for someone: JobHeldUser. Release it (scontrol release 1) or cancel it (scancel 1)."
    ]
    cluster.become("PENDING", "BadConstraints")
    clock.now += 20
    following.step()
    assert len(following.told("warning")) == 2


def again(cluster: Cluster, former: Following, needed: list[Job], **settings: Any) -> Following:
    """The session that comes after the former one was killed."""
    former.session.end()
    return Following(cluster, needed, **settings)


def test_jobs_of_an_earlier_session_are_followed_and_not_submitted(following: Following, cluster: Cluster) -> None:
    job = Job(n="1")
    submitted(following, job)
    following.starts(2)
    then = again(cluster, following, [job])
    submitted(then, job)
    assert then.told() == ["train (n=1): going on with 1 of an earlier run"]
    assert then.active[0].external_jobid == "1"
    assert cluster.asked == [["1"]], "at once"
    assert len(cluster.submitted) == 1
    assert then.folder.starts(tracked(then.active[0]).key) == 2
    then.ends("success")
    then.step()
    assert then.done == [job]


def test_starts_are_counted_anew_for_a_new_job(following: Following) -> None:
    job = Job()
    folder = following.folder.job(key_of(job))  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    (folder / "starts").write_text("start\n")
    submitted(following, job)
    assert following.folder.starts(folder.name) == 0


@pytest.mark.parametrize("name", ["", "its own", "another's"], ids=["local", "own", "another"])
def test_a_job_of_an_earlier_session_that_changed_is_cancelled(following: Following, cluster: Cluster, name: str) -> None:
    job = Job(n="1")
    submitted(following, job, Job("sum"))
    token = cluster.submitted[0][0].name
    following.ends("interrupted")
    changed = Job(n="1")
    changed.shellcmd = "make it otherwise"
    then = again(cluster, following, [changed])
    cluster.states["1"] = Queued("RUNNING", "", {"its own": token}.get(name, name))
    submitted(then, changed)
    assert cluster.cancelled == ([["1"]] if name != "another's" else [])
    assert f"{token}: the job is another one now; cancelling the former" in then.told()
    ticket = f"{token.rpartition('.')[2]}.0"
    assert {"event": "close", "tickets": [ticket], "why": "superseded"} in then.events()
    assert not then.folder.result(ticket).exists()
    assert len(cluster.submitted) == 3


def test_a_job_whose_input_was_made_in_this_session_is_not_taken_over(following: Following, cluster: Cluster) -> None:
    job, maker = Job(n="1"), Job("prepare")
    submitted(following, job)
    then = again(cluster, following, [job])
    then.dag_of.dependencies = {job: [maker]}
    then.dag_of.needrun = lambda it: it is maker
    submitted(then, job)
    assert len(cluster.submitted) == 2
    then.dag_of.needrun = lambda it: False
    assert not then._made_anew(job)  # type: ignore[arg-type]


def test_jobs_of_one_group_that_make_each_others_inputs_are_no_reason(following: Following) -> None:
    first, second, outside = Job("first"), Job("second"), Job("outside")
    group = Group("both", [first, second])
    following.dag_of.dependencies = {first: [], second: [first]}
    assert not following._made_anew(group)  # type: ignore[arg-type]
    following.dag_of.dependencies = {first: [outside], second: [first]}
    assert following._made_anew(group)  # type: ignore[arg-type]
    following.dag_of.dependencies = {}
    assert not following._made_anew(group)  # type: ignore[arg-type]


def lost(following: Following, cluster: Cluster, clock: Clock, *jobs: Job) -> str:
    """Jobs are handed over, the answer gets lost, and Snakemake is killed; return the submission's token."""
    following.run_jobs(list(jobs))  # type: ignore[arg-type]
    cluster.loses_answer = BusyError("timed out")
    following.step()
    return cluster.submitted[0][0].name.rpartition(".")[2]


def test_ids_that_an_earlier_session_did_not_learn_are_found(following: Following, cluster: Cluster, clock: Clock) -> None:
    jobs = [Job(n="1"), Job(n="2")]
    token = lost(following, cluster, clock, *jobs)
    then = again(cluster, following, jobs)
    submitted(then, *jobs)
    assert [info.external_jobid for info in then.active] == ["1_0", "1_1"]
    assert [tracked(info).entry.job_id for info in then.active] == ["1_0", "1_1"]  # type: ignore[union-attr]
    assert {"event": "accept", "token": token, "ids": ["1_0", "1_1"]} in then.events()
    assert len(cluster.submitted) == 1


def test_what_an_earlier_session_did_not_submit_is_submitted(following: Following, cluster: Cluster, clock: Clock) -> None:
    job = Job()
    token = lost(following, cluster, clock, job)
    cluster.become(None)
    then = again(cluster, following, [job])
    submitted(then, job)
    assert {"event": "close", "tickets": [f"{token}.0"], "why": "never submitted"} in then.events()
    assert len(cluster.submitted) == 2
    assert then.active[0].external_jobid == "2"


def test_a_job_without_an_id_whose_lease_beats_is_waited_for(following: Following, cluster: Cluster, clock: Clock) -> None:
    job = Job()
    lost(following, cluster, clock, job)
    cluster.become(None)
    then = again(cluster, following, [job])
    then.run_jobs([job])  # type: ignore[list-item]
    then.beats(key_of(job))  # type: ignore[arg-type]
    then.step()
    assert len(cluster.submitted) == 1
    assert tracked(then.active[0]).entry is not None


def test_a_new_session_sweeps_what_nobody_asks_about(following: Following, cluster: Cluster) -> None:
    ended, needed, running = Job(n="ended"), Job(n="needed"), Job(n="running")
    submitted(following, ended, needed, running)
    tickets = [tracked(info).entry.ticket for info in following.active]  # type: ignore[union-attr]
    following.starts()
    following.ends("success")
    following.folder.result(tickets[2]).unlink()
    write_json(following.folder.result("former.0"), {"status": "success"})
    (following.folder.job("nobody's")).mkdir()
    following.beats("another's")
    then = again(cluster, following, [needed])
    assert then.events()[-1] == {"event": "close", "tickets": [tickets[0]], "why": "its outputs are there"}
    assert [path.name for path in then.folder.results.iterdir()] == [f"{tickets[1]}.json"]
    keys = {key_of(needed), key_of(running), "another's"}  # type: ignore[arg-type]
    assert {path.name for path in (then.folder.root / "jobs").iterdir()} == keys
    assert set(then._unfinished) == {key_of(needed), key_of(running)}  # type: ignore[arg-type]


def test_a_job_that_nothing_needs_is_left_alone_while_it_runs(following: Following, cluster: Cluster) -> None:
    submitted(following, Job())
    following.ends("interrupted")
    following.beats(tracked(following.active[0]).key)
    then = again(cluster, following, [])
    assert len(then._unfinished) == 1


def test_cancelling_takes_every_job_out_of_the_queue(following: Following, cluster: Cluster, clock: Clock) -> None:
    submitted(following, Job(n="1"), Job(n="2"))
    following.run_jobs([Job("sum")])  # type: ignore[list-item]
    cluster.trouble = [BusyError("down")] * 3
    following.cancel()
    assert clock.slept == [1, 4, 10]
    assert cluster.cancelled == [["1_0", "1_1"]]
    assert following.told()[-1] == "Cancelled 2 jobs; the next run begins where they have saved their state."
    token = cluster.submitted[0][0].name.rpartition(".")[2]
    assert following.events()[-1] == {"event": "close", "tickets": [f"{token}.0", f"{token}.1"], "why": "cancelled"}
    assert not following.wait
    Following(cluster)  # the directory is free


def test_a_scheduler_that_cannot_be_told_to_cancel_is_told_by_the_user(
    following: Following, cluster: Cluster, clock: Clock
) -> None:
    submitted(following, Job(n="1"), Job(n="2"))
    cluster.trouble = [BusyError("down")] * 4
    following.cancel_jobs(following.active)
    assert following.told("error") == ["down\n2 jobs could not be cancelled; later: scancel 1_0 1_1"]
    assert [event["event"] for event in following.events()] == ["submit", "accept"]


def test_nothing_is_said_where_there_is_nothing_to_cancel(following: Following) -> None:
    following.cancel_jobs([])
    assert following.told() == []
    assert not following.ledger.path.exists()


def test_shutting_down_leaves_the_jobs_to_the_next_session(following: Following, cluster: Cluster) -> None:
    submitted(following, Job())
    following.shutdown()
    following.wait_thread.join.assert_called_once_with()
    assert cluster.cancelled == []
    assert len(Following(cluster, [Job()])._unfinished) == 1


def test_the_jobs_own_snakemake_is_told_which_files_to_wait_for(
    following: Following, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def base(executor: Any, job: Any, **kwargs: Any) -> str:
        return f"--target {job.output[0]} {kwargs}"

    monkeypatch.setattr(RealExecutor, "get_job_args", base)
    job = Job()
    start = "--target out/train.txt {'cores': 1} "
    assert following.get_job_args(job, cores=1) == f"{start}--wait-for-files 'in.txt'"  # type: ignore[arg-type]
    job.input = [f"{n}.txt" for n in range(20)]
    named = " ".join(map(repr, job.input))
    assert following.get_job_args(job, cores=1) == f"{start}--wait-for-files {named}"  # type: ignore[arg-type]
    job.input = [f"{n}.txt" for n in range(21)]
    path = following.folder.job(key_of(job)) / "inputs"  # type: ignore[arg-type]
    for _ in range(2):
        assert following.get_job_args(job, cores=1) == f"{start}--wait-for-files-file '{path}'"  # type: ignore[arg-type]
        assert path.read_text() == "\n".join(job.input) + "\n"
    job.input = []
    assert following.get_job_args(job, cores=1) == start  # type: ignore[arg-type]
    assert following.additional_general_args() == "--executor local"


@pytest.mark.parametrize("wake", [True, False])
def test_a_pause_ends_when_jobs_come_in(following: Following, monkeypatch: pytest.MonkeyPatch, wake: bool) -> None:
    monkeypatch.undo()
    following._wake = wake
    began = time.monotonic()
    asyncio.run(asyncio.wait_for(following.sleep(), 5))
    assert (time.monotonic() - began < 0.5) is wake


def test_half_written_and_foreign_results_are_no_results(following: Following) -> None:
    submitted(following, Job())
    folder = following.folder.results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "torn.json").write_text('{"status": ')
    (folder / "foreign.json").write_text('{"state": 1}')
    (folder / "text.txt").write_text('{"status": "success"}')
    write_json(folder / "a.0.json", {"status": "success"})
    assert following._results() == {"a.0": {"status": "success"}}


def test_a_ledger_that_cannot_be_written_is_told_and_stops_nothing(following: Following) -> None:
    submitted(following, Job())
    following.ends("success")
    following.ledger.close = Mock(side_effect=OSError("disk full"))  # type: ignore[method-assign]
    following.step()
    assert len(following.done) == 1
    assert following.told("warning") == [f"cannot write to {following.ledger.path}: disk full"]


def test_a_group_is_told_of_without_a_reason(following: Following) -> None:
    info = SimpleNamespace(job=Job(), external_jobid=None)
    Executor.print_job_error(following, info, None, indent=True)  # type: ignore[arg-type]
    info.job.log_error.assert_called_once_with(None, external_jobid="none", indent=True)
    assert following.told("error") == []


def test_the_setting_says_where_jobs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    slurm = _scheduler(ExecutorSettings(array_size=7, array_parallel=5, stop_seconds=3))
    assert isinstance(slurm, Slurm)
    assert (slurm.array_size, slurm.array_parallel, slurm.stop_seconds) == (7, 5, 3)
    local = _scheduler(ExecutorSettings(cluster="local", stop_seconds=4))
    assert isinstance(local, Local)
    assert local.stop_seconds == 4
    assert isinstance(_scheduler(ExecutorSettings(cluster="debug")), Debug)
