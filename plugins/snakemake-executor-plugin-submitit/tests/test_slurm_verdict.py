"""What result file and scheduler together say about a job."""

from __future__ import annotations

import pytest

from snakemake_executor_plugin_submitit.verdict import ALIVE, Act, Facts, judge


def test_a_result_is_believed_whatever_the_scheduler_says() -> None:
    for state in (None, "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"):
        assert judge(Facts("success", state=state)).act is Act.COLLECT
        assert judge(Facts("failed", "it broke", state=state)).act is Act.FAIL


@pytest.mark.parametrize("state", sorted(ALIVE))
@pytest.mark.parametrize("status", [None, "interrupted"])
def test_a_job_in_the_queue_is_waited_for(state: str, status: str | None) -> None:
    assert judge(Facts(status, state=state)).act is Act.WAIT


def test_an_interrupted_job_that_left_the_queue_is_submitted_again_within_its_bound() -> None:
    assert judge(Facts("interrupted", state="FAILED", starts=10, requeues=10)).act is Act.AGAIN
    assert judge(Facts("interrupted", state="FAILED", starts=11, requeues=10)).act is Act.FAIL


def test_requeue_false_is_honoured() -> None:
    for facts in (Facts("interrupted", state="PREEMPTED", requeues=0), Facts(None, state="NODE_FAIL", requeues=0)):
        verdict = judge(facts)
        assert verdict.act is Act.FAIL
        assert "requeue is false" in verdict.reason


def test_a_job_cancelled_by_hand_is_not_submitted_again() -> None:
    for status in (None, "interrupted"):
        verdict = judge(Facts(status, state="CANCELLED"))
        assert verdict.act is Act.FAIL
        assert "cancelled" in verdict.reason


@pytest.mark.parametrize(
    ("state", "advice"), [("OUT_OF_MEMORY", "mem_mb"), ("TIMEOUT", "runtime"), ("FAILED", "disk"), ("COMPLETED", "log")]
)
def test_an_end_without_a_result_says_what_to_do(state: str, advice: str) -> None:
    verdict = judge(Facts(None, state=state))
    assert verdict.act is Act.FAIL
    assert advice in verdict.advice


def test_a_job_that_the_scheduler_forgot_is_waited_for_while_its_lease_beats() -> None:
    assert judge(Facts(None, state=None, beating=True)).act is Act.WAIT
    assert judge(Facts(None, state=None, beating=False)).act is Act.AGAIN
    assert judge(Facts(None, state=None, settled=False)).act is Act.WAIT


def test_a_job_that_never_began_is_tried_again_but_not_for_ever() -> None:
    assert judge(Facts(None, state="FAILED", starts=0, submissions=1)).act is Act.AGAIN
    assert judge(Facts(None, state="FAILED", starts=0, submissions=3)).act is Act.FAIL
