"""How many small faults the tests notice: mutation testing by mutmut, on a sample drawn anew from every group of modules.

Mutmut changes one thing at a time (a comparison, a number, an argument, a text) and runs the tests that pass through the changed
function. A fault that no test notices *survives*. All faults of the modules that ``[tool.mutmut]`` of pyproject.toml names would
take days, so a sample of every group is drawn, the same for the same seed, and the share of faults that were noticed is an
estimate of the whole's: with 60 of a group, its standard error is about 5 points. A fault that lets the tests run for ever
counts as noticed, one in a function that no test enters as not.

    python -m tests.mutants                         60 of every group
    python -m tests.mutants --sample 0 uvc          every fault of one group, hours
    python -m mutmut show NAME                      the fault itself

Nothing is lost when it is stopped: the folders called mutants keep what was tried, and the next start tries the rest.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

KILLED = {1, 3, 24, 36, 152, 255, -24}
"""Exit codes that mutmut keeps for a fault that a test failed on, or that made the tests run out of time."""
ROOTS = (Path(), Path("plugins/snakemake-executor-plugin-submitit"))
"""Folders whose pyproject.toml says what mutmut changes there."""


def group_of(name: str) -> str:
    """What a fault is counted under: ``executor``, a package of Atlas, or the method whose mathematics it changes."""
    parts = name.split(".")
    if parts[0] != "atlas":
        return "executor"
    return parts[2] if parts[1] == "methods" else parts[1]


def outcomes(roots: Iterable[Path] = ROOTS) -> dict[str, int | None]:
    """Every fault's name and the exit code of the tests under it; None where they have not run."""
    metas = [path for root in roots for path in sorted((root / "mutants").rglob("*.meta"))]
    kept = (json.loads(path.read_text())["exit_code_by_key"] for path in metas)
    return {name: code for codes in kept for name, code in codes.items()}


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


def mutmut(root: Path, processes: int, names: list[str]) -> None:
    """Have mutmut try faults of a folder, and end with its status where it fails; it makes them first where there are none."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes), *names]
    ended = subprocess.run(command, cwd=root, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def table(chosen: dict[str, list[str]], codes: dict[str, int | None], of: dict[str, int]) -> str:
    """The score of every group, as Markdown."""
    lines = ["| group | faults | tried | noticed | score |", "|---|---|---|---|---|"]
    tried = noticed = 0
    for group, names in chosen.items():
        known = [codes[name] for name in names if codes.get(name) is not None]
        killed = sum(code in KILLED for code in known)
        tried, noticed = tried + len(known), noticed + killed
        lines.append(f"| {group} | {of[group]} | {len(known)} | {killed} | {killed / max(len(known), 1):.0%} |")
    return "\n".join([*lines, f"| all | {sum(of.values())} | {tried} | {noticed} | {noticed / max(tried, 1):.0%} |"])


def main() -> None:
    """Draw the faults, have mutmut try them, and print the table and the names of those that survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help="report, harness, executor, or a method's package; all where none is named")
    parser.add_argument("--sample", type=int, default=60, help="faults tried in each group; 0 tries all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--processes", type=int, default=2, help="faults tried at a time")
    options = parser.parse_args()
    atlas, executor = ROOTS
    asked = set(options.groups)
    roots = [*([atlas] if asked != {"executor"} else []), *([executor] if not asked or "executor" in asked else [])]
    for root in roots:
        if not outcomes([root]):
            mutmut(root, options.processes, ["*.x_key_of__mutmut_1", "*.x_mean_and_sd__mutmut_1"])
    codes = outcomes(roots)
    chosen = draw(list(codes), options.groups, options.sample, options.seed)
    drawn = {name for names in chosen.values() for name in names}
    for root in roots:
        untried = [name for name, code in outcomes([root]).items() if code is None and name in drawn]
        if untried:
            mutmut(root, options.processes, untried)
    codes = outcomes(roots)
    counts = {group: sum(group_of(name) == group for name in codes) for group in chosen}
    print(table(chosen, codes, counts))
    survivors = [name for names in chosen.values() for name in names if codes[name] not in {*KILLED, None}]
    print(f"\n{len(survivors)} survived:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
