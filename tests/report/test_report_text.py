"""What a small study says, word for word: a part that is lost, doubled or put elsewhere shows.

Where words were changed on purpose, ``ATLAS_WRITE_TEXTS=1 python -m pytest tests/report/test_report_text.py`` writes the texts
anew, to be read again before they are committed.
"""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest_report import TOY
from test_report import plain, write_all

from atlas.harness.registry import Paper, load
from atlas.harness.study import Study
from atlas.report.told import print_claims

CLAIMS = {
    "claims": [
        {
            "id": "toy.lower",
            "statement": "Fast reaches a lower loss.",
            "task": TOY,
            "metric": "loss",
            "method": "fast",
            "baseline": "plain",
            "direction": "lower",
            "tiers": {"demo": {"dataset": "curve"}},
            "reported": "half as much",
        },
        {
            "id": "toy.cheaper",
            "statement": "Fast needs more operations.",
            "task": TOY,
            "metric": "train_flops",
            "method": "fast",
            "baseline": "plain",
            "direction": "higher",
            "tiers": {"demo": {"dataset": "curve"}},
        },
        {
            "id": "toy.accurate",
            "statement": "AttnScale is more accurate.",
            "task": "image-classification",
            "metric": "top1",
            "method": "attnscale",
            "baseline": "deit",
            "also": [{"method": "attnscale", "baseline": "deit", "metric": "nll", "direction": "lower"}],
            "tiers": {"demo": {"dataset": "digits"}},
        },
    ]
}


@pytest.fixture
def told(two_tasks: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two tasks with claims that hold, do not, and cannot be judged, because a run of theirs failed."""
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(CLAIMS))
    paper = Paper("toy-paper", "Toys & more", "Me, 2026", "https://arxiv.org/abs/0", path)
    monkeypatch.setattr(load(), "papers", {"toy-paper": paper})
    failed = next(run for run in two_tasks.runs if run.method == "attnscale" and run.seed == 2)
    failed.metrics.unlink()
    failed.failure.parent.mkdir(parents=True, exist_ok=True)
    failed.failure.write_text(json.dumps({"error": "no memory", "run": failed.described()}))
    return two_tasks


class Visible(HTMLParser):
    """The page's text without drawings, styles and scripts: a line per block, parts of a line apart."""

    HIDDEN = ("svg", "style", "script", "head")
    BLOCKS = ("p", "li", "tr", "dt", "dd", "h1", "h2", "h3", "h4", "summary", "figcaption")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.depth, self.lines = 0, [""]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.lines[-1] += f" {' '.join(plain(data).split())}"


def compare(name: str, lines: list[str]) -> None:
    """Hold lines against those of a file beside this one."""
    path = Path(__file__).parent / name
    if os.environ.get("ATLAS_WRITE_TEXTS"):
        path.write_text("\n".join(lines) + "\n")
    assert lines == path.read_text().splitlines()


def test_the_report_in_markdown_is_this(told: Study) -> None:
    write_all(told)
    compare("small_report.md", plain((told.results / "report.md").read_text()).splitlines())
    curves = told.results / "figures" / "image-classification" / "digits" / "training.svg"
    assert all(title in curves.read_text() for title in (">DeiT<", ">AttnScale<"))


def test_the_claims_file_and_the_values_behind_it_are_these(told: Study) -> None:
    write_all(told)
    compare("small_claims.csv", plain((told.results / "claims.csv").read_text()).splitlines())
    compare("small_claims_values.csv", (told.results / "claims-values.csv").read_text().splitlines())


def test_the_tables_are_these(told: Study) -> None:
    write_all(told)
    tables = told.results / "tables"
    files = [tables / path for path in ("image-classification/digits.csv", "toy-task/curve.csv", "toy-task/curve.tex")]
    lines = [line for path in files for line in [f"% {path.relative_to(tables)}", *plain(path.read_text()).splitlines()]]
    compare("small_tables.txt", lines)


def test_the_page_is_this(told: Study) -> None:
    """But for the protocol of image classification and the hashes of settings, which change with any default."""
    lines = [" ".join(line.split()) for line in Visible(write_all(told)).lines]
    first, last = lines.index("Protocol, shared by all rows") + 1, lines.index("DeiT deit")
    compare("small_page.txt", [re.sub(r" [0-9a-f]{12}$", "", line) for line in lines[:first] + lines[last:] if line])


def test_verdicts_in_a_pipe_and_on_a_terminal(
    told: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_claims(told)
    assert plain(capsys.readouterr().out).splitlines() == [
        "toy.lower\tsupported, fragile, at 0.1 × the cost of training\t"
        "−5.5 × 10⁻⁵ [−6.74 × 10⁻⁵, −4.26 × 10⁻⁵]\tloss: Fast & <b>new</b> − Plain ≤ 0",
        "toy.cheaper\tcontradicted\t−900 G (exact)\ttraining FLOPs: Fast & <b>new</b> − Plain ≥ 0",
        "toy.accurate\tinconclusive\t0.0 points\ttop-1: AttnScale − DeiT ≥ 0 points",
    ]
    for run in told.runs:
        if run.method == "attnscale":
            run.metrics.unlink(missing_ok=True)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_claims(told)
    uncoloured = re.sub("\x1b\\[[0-9;]*m", "", plain(capsys.readouterr().out))
    shown = [re.split(r"  +", line.strip()) for line in uncoloured.splitlines()]
    assert shown == [
        ["claim", "statement", "effect [95 % interval]", "verdict"],
        [
            "toy.lower",
            "Fast reaches a lower loss.",
            "−5.5 × 10⁻⁵ [−6.74 × 10⁻⁵, −4.26 × 10⁻⁵]",
            "supported, fragile, at 0.1 × the cost of training",
        ],
        ["toy.cheaper", "Fast needs more operations.", "−900 G (exact)", "contradicted"],
        ["toy.accurate", "AttnScale is more accurate.", "AttnScale: failed to run: no memory", "not run"],
    ]
