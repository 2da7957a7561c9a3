"""The table of units of work: what its rows say, and that rows measured before stay."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURED = {"title": "a step", "beside": "a loop", "goal": 2, "rounds": 3, "plain_ms": 8.0, "ours_ms": 2.0}
MEASURED |= {"date": "2020-02-02", "load": 0.5}
ROW = MEASURED | {"plain_ratio": [3.5, 4.0, 4.5], "before_ms": 3.0, "before_ratio": [1.4, 1.5, 1.6]}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.__main__ as found

    monkeypatch.setattr(found, "heading", lambda threads: {"processor": "one"})
    yield found
    for name in ("benchmarks.__main__", "units"):
        sys.modules.pop(name, None)


def test_a_row_says_how_many_times_as_fast(program: ModuleType) -> None:
    lines = program.table({"step": ROW, "other": MEASURED | {"plain_ratio": [1, 1, 1]}}, {"processor": "one"}).splitlines()
    assert "- processor: one" in lines
    assert "| a step | a loop | 8 | 3 | 2 | 4.00 (3.50 to 4.50) | 2 | 1.50 | 2020-02-02, 0.5 |" in lines
    assert "| a step | a loop | 8 |  | 2 | 1.00 (1.00 to 1.00) | 2 |  | 2020-02-02, 0.5 |" in lines


def test_rows_come_one_by_one_and_those_not_named_stay(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def measured(unit: Any, sources: dict[str, Path], threads: int, quick: bool) -> dict[str, Any]:
        asked.append(unit.name)
        return ROW | {"title": f"{unit.name} again", "sources": sorted(sources)}

    monkeypatch.setattr(program, "measured", measured)
    out = tmp_path / "results" / "units.md"
    out.parent.mkdir()
    out.with_suffix(".json").write_text(json.dumps({"warp": ROW, "forgotten": ROW}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "uvc", "--output", str(out), "--before", "elsewhere"])
    program.main()
    rows = json.loads(out.with_suffix(".json").read_text())
    assert asked == ["uvc-tiny", "uvc-base"]
    assert [row["title"] for row in rows.values()] == ["uvc-tiny again", "uvc-base again", "a step"]
    assert rows["uvc-tiny"]["sources"] == ["before", "ours"]
    assert "| uvc-base again |" in out.read_text()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit):
        program.main()


def test_a_ratio_is_that_of_the_two_in_one_round(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        def __init__(self, name: str, source: Path, threads: int) -> None:
            self.slow, self.round = 1 if source.name == "new" else 3, 0

        def seconds(self, run: str) -> float:
            self.round += 1
            return self.slow * self.round * (10.0 if run == "plain" else 1.0)

        def close(self) -> None:
            pass

    monkeypatch.setattr(program, "Builder", Builder)
    unit = SimpleNamespace(name="step", title="a step", plain="a loop", goal=2, rounds=4)
    row = program.measured(unit, {"ours": Path("new"), "before": Path("old")}, 1, quick=False)
    # the new build is asked twice in a round (2n + 1, 2n + 2), the old one once
    assert row["before_ratio"][1] == pytest.approx(1.5)
    assert date.fromisoformat(row["date"]) <= datetime.now().date()
    assert row["load"] >= 0
    assert 7 < row["plain_ratio"][0] <= row["plain_ratio"][2] < 10
