"""Which tests a fault is tried with, and what is kept of how it ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import mutants
from tests.mutants import IN_PROCESSES, RANKS, RUN, draw, in_processes, keep, outcomes, own_tests, table, try_in_processes

ROOT = Path(__file__).resolve().parents[2]
FAULTS = {
    "atlas.harness.rank.x_main__mutmut_1": 33,
    "atlas.harness.rank.x_main__mutmut_2": 1,
    "atlas.harness.wall.x_f__mutmut_1": None,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in which mutmut has tried two faults of three."""
    (tmp_path / "mutants" / "src").mkdir(parents=True)
    (tmp_path / "mutants" / "src" / "rank.py.meta").write_text(json.dumps({"exit_code_by_key": FAULTS}))
    return tmp_path


def test_a_fault_is_tried_with_the_tests_of_its_own_module_first() -> None:
    own = "snakemake_executor_plugin_submitit"
    assert own_tests(f"{own}.executor.xǁExecutorǁ_ask__mutmut_1") == (RUN,)
    assert own_tests(f"{own}.job.x__reap__mutmut_2") == ("tests/test_slurm_job.py", RUN)
    assert own_tests("atlas.harness.rank.x_main__mutmut_1") == (RANKS,)
    assert own_tests("atlas.harness.ranking.x_main__mutmut_1") == ()
    folder = {True: ROOT / mutants.ROOTS[1], False: ROOT}
    for place, tests in IN_PROCESSES.items():
        for test in tests:
            path, _, function = test.partition("::")
            assert f"def {function}" in (folder[place.startswith(own)] / path).read_text()


def test_what_processes_noticed_is_kept_until_a_fault_is_untried(root: Path) -> None:
    rank, _, other = FAULTS
    assert outcomes([root]) == FAULTS
    keep(root, {rank: 1, other: 1})
    assert outcomes([root]) == FAULTS | {rank: 1}, "the other's function has changed since"
    score = table({"harness": list(FAULTS)}, outcomes([root]), {rank}, {"harness": 9})
    assert score.splitlines()[-1] == "| all | 9 | 2 | 2 | 1 | 100% |"


def test_faults_are_tried_with_tests_that_pass_without_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"": 0, "atlas.harness.rank.x_a": 2, "atlas.harness.rank.x_b": 0, "atlas.harness.rank.x_c": 36}
    monkeypatch.setattr(mutants, "tried", lambda root, tests, name, limit=None: (ends[name], "output"))
    try_in_processes(root, 2, [*list(ends)[1:], "atlas.report.told.x_d"])
    assert in_processes(root) == {"atlas.harness.rank.x_a": 1, "atlas.harness.rank.x_b": 0, "atlas.harness.rank.x_c": 1}
    ends[""] = 1
    with pytest.raises(SystemExit, match="fails without a fault:\noutput"):
        try_in_processes(root, 2, ["atlas.harness.rank.x_a"])


def test_a_draw_is_the_same_for_the_same_seed() -> None:
    names = [f"atlas.harness.wall.x_f__mutmut_{number}" for number in range(50)]
    first = draw(names, ["harness"], 5, 0)
    assert first == draw(names, ["harness"], 5, 0) != draw(names, ["harness"], 5, 1)
    assert draw(names, [], 0, 0) == {"harness": names}
    with pytest.raises(SystemExit, match="no group report; there are harness"):
        draw(names, ["report"], 5, 0)
