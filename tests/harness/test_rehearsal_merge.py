"""Rows that were rehearsed by themselves go into the committed table, and the others stay as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from atlas.cli.rehearse import markdown, table
from atlas.harness.registry import Amount
from atlas.harness.rehearsal import GPUS, Count, Rehearsal, RehearsedCost
from atlas.harness.study import Study
from atlas.nn.work import Spent

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
seeds: [0, 1]
resources: {threads: 1}
image-classification:
  datasets:
    digits:
      protocol: {backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2}, epochs: 9}
      methods: {deit: {}, layerscale: {}, attnscale: {}, featscale: {}}
"""
CARD = GPUS["A100-80GB"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.rehearsal_merge as found

    yield found
    sys.modules.pop("benchmarks.rehearsal_merge", None)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "paper.yaml").write_text(STUDY)
    return Study.read("paper", tmp_path)


def rehearsal(study: Study, row: str, hours: float, seconds: float, *counts: str) -> Rehearsal:
    """A made-up rehearsal of a row that takes so many hours, with published counts by their metrics."""
    run = next(run for run in study.runs if run.cell.split("/")[-2] == row)
    cost = RehearsedCost({"train": Spent(flops=hours * 3600 * 0.3 * CARD.peak, launches=1)}, memory_bytes=2**30)
    once = {"train": Amount(1, 8, 8)}
    made = tuple(Count(metric, 100, 100.5, "Table 1", "") for metric in counts)
    return Rehearsal(run, 2, seconds, {"parameters": 7.0}, made, "", cost, once, once)


def test_a_new_row_comes_in_an_older_one_is_replaced_and_the_others_stay(program: ModuleType, study: Study) -> None:
    before = [
        rehearsal(study, "deit", 3, 11.25, "parameters"),
        rehearsal(study, "attnscale", 5, 12.5, "parameters", "forward_flops"),
        rehearsal(study, "featscale", 7, 13.75, "forward_flops"),
    ]
    now = [rehearsal(study, "layerscale", 10, 1.0, "parameters"), rehearsal(study, "attnscale", 20, 2.0, "forward_flops")]
    # what stays is marked by hand, so that it cannot have been made anew
    rows = table(before, CARD).replace(",11.2,", ",11.2 by hand,").replace(",13.8,", ",13.8 by hand,")
    page = markdown(study, before, CARD).replace("/deit | 2 |", "/deit |  2 |").replace("of 3 rows", "of 4 rows")
    text, told = program.merged(study, now, rows, page)
    assert program.merged(study, now, text, told) == (text, told), "merging again changes nothing"

    lines, older = text.splitlines(), rows.splitlines()
    assert [line.split(",")[0].rpartition("/")[2] for line in lines[1:]] == ["deit", "layerscale", "attnscale", "featscale"]
    assert (lines[0], lines[1], lines[4]) == (older[0], older[1], older[3])
    assert lines[2:4] == table(now, CARD).splitlines()[1:]

    assert "\n4 of 4 rows went through" in told
    assert "about 80 GPU hours." in told  # two runs of each: 3, 10, 20 and 7 hours
    parts = [part.partition(program.COUNTS) for part in (page, told, markdown(study, now, CARD))]
    (old_rows, _, old_counts), (new_rows, _, new_counts), (own_rows, _, own_counts) = parts
    old, new, own = (program.rows_of(part) for part in (old_rows, new_rows, own_rows))
    assert new == [old[0], *own, old[2]]
    old, new, own = (program.rows_of(part) for part in (old_counts, new_counts, own_counts))
    assert new == [old[0], *own, old[3]], "a count that the new rehearsal of a row does not have is no more"
    rest = [[line for line in each.splitlines() if not line.startswith("| image")] for each in (page, told)]
    assert [line for line in rest[0] if line not in rest[1]] == [line for line in rest[0] if "rows went through" in line]
    assert told.endswith("|\n")
    assert not told.endswith("\n\n")


def test_a_row_that_was_rehearsed_by_one_run_counts_for_all(program: ModuleType, study: Study) -> None:
    one = replace(rehearsal(study, "layerscale", 10, 1.0, "parameters"), seeds=1)
    older = [replace(rehearsal(study, "deit", 3, 11.25, "parameters"), seeds=1)]
    text, told = program.merged(study, [one], table(older, CARD), markdown(study, older, CARD))
    assert [line.split(",")[1] for line in text.splitlines()[1:]] == ["2", "2"]
    assert told.count("| 2 | stepped |") == 2
    assert "about 26 GPU hours." in told


def test_the_committed_files_are_rewritten(
    program: ModuleType, study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "ROOT", study.root)
    folder = study.root / "results" / "paper"
    folder.mkdir(parents=True)
    before = [rehearsal(study, "deit", 3, 11.25, "parameters")]
    (folder / "rehearsal.csv").write_text(table(before, CARD))
    (folder / "rehearsal.md").write_text(markdown(study, before, CARD))
    program.Notes(study.root / "logs" / "paper" / "rehearsal.jsonl").add(rehearsal(study, "featscale", 7, 1.5, "parameters"))
    program.main()
    assert capsys.readouterr().out == "1 rows merged: image-classification/digits/featscale\n"
    lines = (folder / "rehearsal.csv").read_text().splitlines()
    assert lines[1] == table(before, CARD).splitlines()[1]
    assert lines[2].startswith("image-classification/digits/featscale,2,stepped,1.5,")
    assert "\n2 of 4 rows went through" in (folder / "rehearsal.md").read_text()
