"""The page of headlines: complete for every paper, as written by the command, and true to verdicts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas.errors import UserError
from atlas.harness.claims import load_claims, load_headlines
from atlas.harness.registry import Paper, load
from atlas.report import coverage as page
from atlas.report import write_coverage

ROOT = Path(__file__).parents[2]
CLAIM = {
    "id": "x.y",
    "statement": "It is better",
    "task": "image-classification",
    "metric": "top1",
    "method": "attnscale",
    "baseline": "deit",
    "answers": ["better"],
    "tiers": {"demo": {"dataset": "digits"}, "lab": {"dataset": "cifar10"}},
}
HEADLINES = [{"id": "better", "statement": "All is better."}, {"id": "cheaper", "statement": "All is cheaper."}]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Make a file the only claims that there are."""

    def write(content: Any) -> None:
        path = tmp_path / f"paper{len(list(tmp_path.iterdir()))}" / "claims.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(content))
        monkeypatch.setattr(
            load(), "papers", {"my-paper": Paper("my-paper", "My paper", "Me, 2026", "https://arxiv.org/abs/0", path)}
        )

    return write


def test_every_paper_has_headlines_and_every_headline_a_claim() -> None:
    answered = {(claim.paper, name) for claim in load_claims() for name in claim.answers}
    assert {headline.paper for headline in load_headlines()} == set(load().papers)
    assert [(one.paper, one.id) for one in load_headlines() if (one.paper, one.id) not in answered] == []


def test_the_page_is_as_the_command_writes_it() -> None:
    """Of the verdicts in the checkout, or, where a study was just run there, of the committed ones."""
    committed = {}
    for tier in page.TIERS:
        command = ["git", "show", f"HEAD:results/{tier}/claims.csv"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if shown.returncode == 0:
            committed[tier] = page.parse_verdicts(shown.stdout)
    current = (ROOT / page.PAGE).read_text(encoding="utf-8")
    assert current in (page.coverage(page.read_verdicts(ROOT / "results")), page.coverage(committed)), (
        "stale; type: atlas coverage"
    )


def test_a_headline_is_shown_with_rows_claim_and_the_verdict_of_every_tier(written: Callable[[Any], None]) -> None:
    written({"headlines": HEADLINES, "claims": [CLAIM]})
    text = page.coverage({"demo": {"x.y": "supported"}})
    line = next(line for line in text.splitlines() if "All is better" in line)
    assert "`attnscale` against `deit` on image-classification/cifar10" in line
    assert "`x.y`: It is better" in line
    assert line.endswith("| demo: supported, lab: not run |")
    assert "| All is cheaper. | | no claim yet | |" in text


def test_what_a_claim_answers_must_be_a_headline(written: Callable[[Any], None]) -> None:
    written({"headlines": HEADLINES, "claims": [{**CLAIM, "answers": ["beter"]}]})
    with pytest.raises(UserError, match=r"claim x.y answers beter, which is no headline; did you mean better"):
        load_claims()
    written({"headlines": [HEADLINES[0], HEADLINES[0]], "claims": []})
    with pytest.raises(UserError, match="two headlines are called better"):
        load_headlines()


def test_the_verdicts_of_a_checkout_are_read_and_the_page_is_written(written: Callable[[Any], None], tmp_path: Path) -> None:
    written({"headlines": HEADLINES, "claims": [CLAIM]})
    with pytest.raises(UserError, match="there is no folder docs here"):
        write_coverage(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "results/lab").mkdir(parents=True)
    (tmp_path / "results/lab/claims.csv").write_text("id,paper,verdict\nx.y,my-paper,contradicted\n")
    assert write_coverage(tmp_path) == Path("docs/coverage.md")
    assert "demo: not run, lab: contradicted" in (tmp_path / "docs/coverage.md").read_text()
