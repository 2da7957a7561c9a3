"""How many small faults the tests notice: mutation testing by mutmut, on a sample drawn anew from every group of modules.

Mutmut changes one thing at a time (a comparison, a number, an argument, a text) and runs the tests that pass through the changed
function. A fault that no test notices *survives*. All faults of the modules that ``[tool.mutmut]`` of pyproject.toml names would
take days, so a sample of every group is drawn, the same for the same seed, and the share of faults that were noticed is an
estimate of the whole's: with 60 of a group, its standard error is about 5 points. A fault that lets the tests run for ever
counts as noticed.

Mutmut finds a fault's tests by watching which functions a test calls in its own process. Code that runs in processes that a test
starts (jobs on a node, ranks, a rehearsal's measurements) is not seen so. A fault of such a module that mutmut's tests did not
notice, or for which it found none, is therefore tried with the tests of :data:`IN_PROCESSES`, whose processes inherit it.

    python -m tests.mutants                         60 of every group
    python -m tests.mutants --sample 0 uvc          every fault of one group, hours
    python -m tests.mutants --again harness         those that survived once more, after tests were written
    python -m mutmut show NAME                      the fault itself

Nothing is lost when it is stopped: the folders called mutants keep what was tried, and the next start tries the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

KILLED = {1, 3, 24, 36, 152, 255, -24}
"""Exit codes that mutmut keeps for a fault that a test failed on, or that made the tests run out of time."""
ROOTS = (Path(), Path("plugins/snakemake-executor-plugin-submitit"))
"""Folders whose pyproject.toml says what mutmut changes there."""
RUN = "tests/test_slurm_runs.py::test_local_cluster_outlives_a_killed_snakemake"
RANKS = "tests/harness/test_launch.py::test_a_rank_that_is_told_to_stop_stops_all"
IN_PROCESSES = {
    "snakemake_executor_plugin_submitit": (RUN,),
    "snakemake_executor_plugin_submitit.job": ("tests/test_slurm_job.py", RUN),
    "snakemake_executor_plugin_submitit.lease": ("tests/test_slurm_job.py", RUN),
    "atlas.harness.rank": (RANKS,),
    "atlas.harness.launch": (RANKS,),
    "atlas.harness.rehearsal": ("tests/harness/test_rehearsal.py",),
    "atlas.harness.startup": ("tests/harness/test_startup.py",),
    "atlas.harness.registry": ("tests/harness/test_registry.py::test_the_command_line_says_it",),
    "atlas.harness.lockstep": ("tests/tasks/test_stacking.py",),
}
"""The fewest tests that mutmut does not pair with a module and that try it, most of them in processes of its own."""
PROCESSES_FILE = Path("mutants", "processes.json")
"""Where the outcomes of these tests are kept in a root: the exit code by fault."""


def group_of(name: str) -> str:
    """What a fault is counted under: ``executor``, a package of Atlas, or the method whose mathematics it changes."""
    parts = name.split(".")
    if parts[0] != "atlas":
        return "executor"
    return parts[2] if parts[1] == "methods" else parts[1]


def outcomes(roots: Iterable[Path] = ROOTS) -> dict[str, int | None]:
    """Every fault's name and the exit code of the tests under it; None where they have not run."""
    codes: dict[str, int | None] = {}
    for root in roots:
        for path in sorted((root / "mutants").rglob("*.meta")):
            codes |= json.loads(path.read_text())["exit_code_by_key"]
        codes |= {name: code for name, code in in_processes(root).items() if codes.get(name) is not None}
    return codes


def in_processes(root: Path) -> dict[str, int]:
    """Exit codes by fault of the tests that start processes, as far as they have run."""
    path = root / PROCESSES_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def keep(root: Path, codes: dict[str, int]) -> None:
    """Write down the exit codes of the tests that start processes, all of them."""
    path = root / PROCESSES_FILE
    path.with_suffix(".new").write_text(json.dumps(codes, indent=1))
    path.with_suffix(".new").replace(path)


def draw(names: list[str], groups: list[str], sample: int, seed: int) -> dict[str, list[str]]:
    """Group to the faults to try: ``sample`` of each, all where ``sample`` is 0."""
    by_group: dict[str, list[str]] = {}
    for name in names:
        by_group.setdefault(group_of(name), []).append(name)
    unknown = sorted(set(groups) - set(by_group))
    if unknown:
        sys.exit(f"no group {', '.join(unknown)}; there are {', '.join(sorted(by_group))}")
    chosen = {group: by_group[group] for group in sorted(groups or by_group)}
    if not sample:
        return chosen
    return {g: sorted(random.Random(f"{seed} {g}").sample(of, min(sample, len(of)))) for g, of in chosen.items()}


def environment(root: Path, **more: str) -> dict[str, str]:
    """Variables under which processes that a test starts load the changed code of a root, as the test itself does."""
    path = [str((root / "mutants" / "src").absolute()), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


def mutmut(root: Path, processes: int, names: list[str]) -> None:
    """Have mutmut try faults of a folder, and end with its status where it fails; it makes them first where there are none."""
    if older := in_processes(root):
        keep(root, {name: code for name, code in older.items() if name not in names})
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes), *names]
    ended = subprocess.run(command, cwd=root, env=environment(root), check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def own_tests(name: str) -> tuple[str, ...]:
    """Tests that start the code of a fault in processes of its own; those of the longest name that fits."""
    module = name.rpartition(".")[0]
    fitting = [place for place in IN_PROCESSES if f"{module}.".startswith(f"{place}.")]
    return IN_PROCESSES[max(fitting, key=len)] if fitting else ()


def tried(root: Path, tests: tuple[str, ...], name: str, limit: float | None = None) -> tuple[int, str]:
    """Run tests under a fault, none where its name is empty; return their exit code, 36 where they ran too long, and output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--rootdir=.", "-p", "no:cacheprovider", *tests]
    fault = {"MUTANT_UNDER_TEST": name}
    try:
        ended = subprocess.run(
            command, cwd=root / "mutants", env=environment(root, **fault), timeout=limit, capture_output=True, text=True
        )
        return ended.returncode, ended.stdout
    except subprocess.TimeoutExpired:
        return 36, ""
    finally:
        if name:
            end_processes(fault)


def end_processes(fault: dict[str, str]) -> None:
    """End what tests have started under a fault and left running, known by the variable that names the fault."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and fault.items() <= process.environ().items():
                process.kill()


def try_in_processes(root: Path, processes: int, names: list[str]) -> None:
    """Try faults with the tests that start processes, and write down how each ended."""
    for tests in sorted({own_tests(name) for name in names} - {()}):
        began = time.monotonic()
        code, output = tried(root, tests, "")
        if code:
            sys.exit(f"{' '.join(tests)} fails without a fault:\n{output}")
        limit = 20 + 3 * (time.monotonic() - began)
        of_these = [name for name in names if own_tests(name) == tests]
        with ThreadPoolExecutor(processes) as pool:
            outcome = pool.map(functools.partial(tried, root, tests, limit=limit), of_these)
            for name, (code, _) in zip(of_these, outcome, strict=True):
                print(f"{name}: {'noticed' if code else 'survived'} in processes", flush=True)
                keep(root, {**in_processes(root), name: 1 if code else 0})


def table(chosen: dict[str, list[str]], codes: dict[str, int | None], seen: set[str], of: dict[str, int]) -> str:
    """The score of every group, as Markdown; ``seen`` are the faults that only processes of their own made noticed."""
    lines = ["| group | faults | tried | noticed | only in processes | score |", "|---|---|---|---|---|---|"]
    sums = [0, 0, 0]
    for group, names in chosen.items():
        known = [name for name in names if codes.get(name) is not None]
        killed = [name for name in known if codes[name] in KILLED]
        row = [len(known), len(killed), len(seen & set(killed))]
        sums = [total + number for total, number in zip(sums, row, strict=True)]
        lines.append(_line(group, of[group], row))
    return "\n".join([*lines, _line("all", sum(of.values()), sums)])


def _line(group: str, faults: int, row: list[int]) -> str:
    tried, noticed, _ = row
    return f"| {group} | {faults} | {' | '.join(map(str, row))} | {noticed / max(tried, 1):.0%} |"


def main() -> None:
    """Draw the faults, have them tried, and print the table and the names of those that survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help="report, harness, executor, or a method's package; all where none is named")
    parser.add_argument("--sample", type=int, default=60, help="faults tried in each group; 0 tries all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--processes", type=int, default=2, help="faults tried at a time")
    parser.add_argument("--again", action="store_true", help="try those that survived once more")
    options = parser.parse_args()
    atlas, executor = ROOTS
    asked = set(options.groups)
    roots = [*([atlas] if asked != {"executor"} else []), *([executor] if not asked or "executor" in asked else [])]
    for root in roots:
        if not outcomes([root]):
            mutmut(root, options.processes, ["*.x_key_of__mutmut_1", "*.x_mean_and_sd__mutmut_1"])
    before = outcomes(roots)
    chosen = draw(list(before), options.groups, options.sample, options.seed)
    drawn = {name for names in chosen.values() for name in names}
    for root in roots:
        own = {name: code for name, code in outcomes([root]).items() if name in drawn}
        untried = [name for name, code in own.items() if code is None or (options.again and code not in KILLED)]
        if untried:
            mutmut(root, options.processes, untried)
        codes, done = outcomes([root]), in_processes(root)
        survivors = [name for name in own if codes[name] not in {*KILLED, None} and name not in done]
        try_in_processes(root, options.processes, survivors)
    codes = outcomes(roots)
    counts = {group: sum(group_of(name) == group for name in codes) for group in chosen}
    seen = {name for root in roots for name, code in in_processes(root).items() if code}
    print(table(chosen, codes, seen, counts))
    left = [name for names in chosen.values() for name in names if codes[name] not in {*KILLED, None}]
    print(f"\n{len(left)} survived:", *left, sep="\n")


if __name__ == "__main__":
    main()
