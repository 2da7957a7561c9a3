"""Which job is which, and what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import Group, Job

from snakemake_executor_plugin_submitit.identity import fingerprint_of, key_of, members, queue_name, rule_name, title


def changed(**attributes: Any) -> Any:
    job = Job(n="1", name="a")
    for name, value in attributes.items():
        setattr(job, name, value)
    return job


SAME = changed()


def test_what_a_job_makes_is_its_key_and_how_is_its_fingerprint() -> None:
    made = [
        Job("sum", n="1", name="a"),
        changed(output=["out/other.txt"]),
        changed(output=["out/train1a.txt", "out/more.txt"]),
        changed(wildcards_dict={"n": "1", "name": "b"}),
        changed(wildcards_dict={"n": "1"}),
    ]
    how = [changed(shellcmd="make it well"), changed(input=["other.txt"]), changed(non_derived_params=["slow"])]
    assert len({key_of(job) for job in [SAME, *made]}) == 1 + len(made)  # type: ignore[arg-type]
    assert {key_of(job) for job in how} == {key_of(SAME)}
    assert len({fingerprint_of(job) for job in [SAME, made[0], *how]}) == 2 + len(how)  # type: ignore[arg-type]
    assert {fingerprint_of(job) for job in made[1:]} == {fingerprint_of(SAME)}  # type: ignore[arg-type]
    assert len(key_of(SAME)) == len(fingerprint_of(SAME)) == 20


def test_the_order_of_files_and_wildcards_does_not_matter() -> None:
    both = ["a.txt", "b.txt"]
    assert key_of(changed(output=both)) == key_of(changed(output=both[::-1]))
    assert fingerprint_of(changed(input=both)) == fingerprint_of(changed(input=both[::-1]))
    assert key_of(changed(wildcards_dict={"name": "a", "n": "1"})) == key_of(SAME)


def test_where_something_lies_in_memory_does_not_matter() -> None:
    class At:
        def __init__(self, place: str) -> None:
            self.place = place

        def __repr__(self) -> str:
            return f"<function f at 0x{self.place}>"

    assert fingerprint_of(changed(non_derived_params=[At("7fa0")])) == fingerprint_of(changed(non_derived_params=[At("19c")]))
    other = changed(non_derived_params=["<function g at 0x19c>"])
    assert fingerprint_of(changed(non_derived_params=[At("19c")])) != fingerprint_of(other)


def test_jobs_without_a_command_or_with_plain_parameters_have_a_fingerprint() -> None:
    job = changed(params=["slow"])
    del job.non_derived_params
    assert fingerprint_of(job) == fingerprint_of(changed(non_derived_params=["slow"]))
    del job.shellcmd
    assert fingerprint_of(job) == fingerprint_of(changed(non_derived_params=["slow"], shellcmd=None))


def test_a_group_is_the_jobs_in_it_in_any_order() -> None:
    first, second = Job("first"), Job("second")
    group: Any = Group("both", [first, second])
    assert members(group) == [first, second]
    assert members(SAME) == [SAME]
    for digest in (key_of, fingerprint_of):
        assert digest(group) == digest(Group("other", [second, first]))  # type: ignore[arg-type]
        assert len({digest(job) for job in (group, first, second)}) == 3  # type: ignore[arg-type]


def test_names_are_what_a_person_recognises() -> None:
    group: Any = Group("both", [Job("first")])
    assert (rule_name(SAME), rule_name(group)) == ("train", "both")
    assert (title(SAME), title(group), title(Job("sum"))) == ("train (n=1, name=a)", "group both", "sum")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("job", "alone", "name"),
    [
        (SAME, True, "my-study.train.1.a.ab12"),
        (SAME, False, "my-study.train.ab12"),
        (Group("both", [Job("first", n="1")]), True, "my-study.both.ab12"),
        (Job("train", n="a/b c.d+e-f_g"), True, "my-study.train.a-b-c-d+e-f_g.ab12"),
        (Job("train", n="x" * 50), True, f"my-study.train.{'x' * 40}.ab12"),
    ],
    ids=["alone", "array", "group", "characters", "long"],
)
def test_names_in_the_queue_hold_what_slurm_takes(job: Any, alone: bool, name: str) -> None:
    assert queue_name(Path("/home/me/my study"), job, "ab12", alone) == name


def test_wildcards_that_are_no_text_are_written_as_text() -> None:
    number = changed(wildcards_dict={"n": 1, "name": "a"})
    assert title(number) == "train (n=1, name=a)"
    assert queue_name(Path("s"), number, "t", True) == "s.train.1.a.t"
