"""How long a study takes on a number of GPUs."""

from __future__ import annotations

import pytest

from atlas.harness.wall import Job, wall_hours


def test_jobs_run_side_by_side_where_they_fit() -> None:
    jobs = [Job(str(index), 1, 3.0) for index in range(8)]
    assert wall_hours(jobs, 8) == 3.0
    assert wall_hours(jobs, 4) == 6.0
    assert wall_hours([Job("large", 8, 2.0), *jobs], 8) == 5.0
    assert wall_hours([], 8) == 0.0


def test_a_job_waits_for_what_it_needs_and_long_chains_begin_first() -> None:
    # the short job has the longest chain behind it: after the others, it would end at 2 + 1 + 4
    jobs = [Job("short", 1, 1.0), Job("long", 1, 4.0, ("short",)), Job("other", 1, 2.0), Job("another", 1, 2.0)]
    assert wall_hours(jobs, 1) == 9.0
    assert wall_hours(jobs, 2) == 5.0


def test_jobs_that_can_never_run_are_named() -> None:
    with pytest.raises(ValueError, match="large asks for 16 GPUs, and there are 8"):
        wall_hours([Job("large", 16, 1.0)], 8)
    with pytest.raises(ValueError, match="a needs b, which is not among the jobs"):
        wall_hours([Job("a", 1, 1.0, ("b",))], 8)
