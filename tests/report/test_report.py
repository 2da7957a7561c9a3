"""Tables, verdicts and the page on made-up results: right numbers, right gaps, nothing executable."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_report import EVIL, write_metrics

from atlas.errors import UserError
from atlas.harness import claims as claims_module
from atlas.harness.claims import Claim, check_claims
from atlas.harness.study import Study
from atlas.report import write_claims, write_figures, write_report, write_table
from atlas.report.verdicts import COLUMNS

TABLE = ("image-classification", "digits")


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as stream:
        return {next(iter(row.values())): row for row in csv.DictReader(stream)}


def test_tables_hold_means_deviations_and_marks(study: Study) -> None:
    write_table(study, *TABLE)
    folder = study.results / "tables" / TABLE[0]
    table = rows(folder / "digits.csv")
    assert float(table["deit"]["top1"]) == pytest.approx(0.82)
    assert float(table["deit"]["top1_sd"]) == pytest.approx(0.02)
    assert table["deit"]["n_seeds"] == "3"
    markdown = (folder / "digits.md").read_text()
    assert "**84.1 ± 2.1 %**†" in markdown  # best, and its paired difference excludes 0
    assert "72.0 ± 2.0 %†" in markdown
    latex = (folder / "digits.tex").read_text()
    assert r"\toprule" in latex
    assert r"\textbf{84.1 $\pm$ 2.1 \%$^\dagger$}" in latex
    assert latex.count("&") == latex.count(r" \\") * (latex.splitlines()[3].count("&"))


def test_claims_have_the_columns_and_the_verdicts(study: Study) -> None:
    write_claims(study)
    table = rows(study.results / "claims.csv")
    assert tuple(next(iter(table.values()))) == COLUMNS
    # AttnScale gains 0.02, but FeatScale loses 0.10 where 0.03 are allowed: the conjunction fails
    assert table["aos.acc-d12"]["verdict"] == "contradicted"
    assert table["aos.acc-d12"]["method"] == "featscale"
    assert float(table["aos.acc-d12"]["effect"]) == pytest.approx(-0.10)
    assert table["aos.params"]["verdict"] == "contradicted"
    assert table["aos.acc-d24"]["verdict"] == "not run"
    assert table["aos.lowpass-collapse"]["verdict"] == "not run"


def test_missing_failed_and_infinite_runs_are_said_in_their_cells(study: Study) -> None:
    runs = {(run.method, run.seed): run for run in study.runs}
    runs["deit", 0].metrics.unlink()
    failed = runs["attnscale", 1]
    failed.metrics.unlink()
    failure = {"stage": "train", "error": "the loss is not finite at step 7", "log": "logs/x", "tail": ["line one", "boom"]}
    failed.failure.write_text(json.dumps(failure))
    write_metrics(runs["featscale", 2], top1=None)
    runs["featscale", 1].metrics.write_text("{ damaged")
    write_table(study, *TABLE)
    table = rows(study.results / "tables" / TABLE[0] / "digits.csv")
    assert table["deit"]["n_seeds"] == "2"
    assert table["deit"]["missing"] == "seed 0: not run"
    assert table["attnscale"]["missing"] == "seed 1: failed to train: the loss is not finite at step 7"
    assert "seed 2: not finite: top1" in table["featscale"]["missing"]
    assert "seed 1: not run" in table["featscale"]["missing"]
    page = write_report(study).read_text()
    assert "failed to train: the loss is not finite at step 7" in page
    assert "boom" in page
    assert "8 of 12 evaluated, 1 failed" in page
    assert "2 of 3" in page


def test_results_of_other_settings_are_called_out_of_date(study: Study) -> None:
    path = study.runs[0].metrics
    content = json.loads(path.read_text())
    content["run"]["fingerprint"] = "other"
    path.write_text(json.dumps(content))
    assert "out of date: its settings changed" in write_report(study).read_text()


def test_page_is_self_contained_and_escapes_what_it_shows(study: Study) -> None:
    write_table(study, *TABLE)
    write_figures(study, *TABLE)
    write_claims(study)
    page = write_report(study).read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;-script&gt;" in page
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    for link in links:
        assert link.startswith(("data:", "#", "https://arxiv.org/", "https://proceedings.", "https://openreview.net/")), link
    assert '<link rel="stylesheet"' not in page
    assert page.count("<img") == page.count('alt="')


def test_page_shows_what_the_csv_holds(study: Study) -> None:
    write_table(study, *TABLE)
    page = write_report(study).read_text()
    body = page[page.index('data-table="image-classification/digits"') :]
    shown = [
        float(value)
        for value in re.findall(r'<td class="number[^"]*" data-value="([^"]*)"', body[: body.index("</table>")])
        if value
    ]
    table = rows(study.results / "tables" / TABLE[0] / "digits.csv")
    from atlas.report.collect import collect_table
    from atlas.report.tables import shown_metrics

    names = [metric.name for metric in shown_metrics(collect_table(study, *TABLE))]
    assert shown == [float(row[name]) for row in table.values() for name in names]


def test_everything_is_written_again_byte_for_byte(study: Study) -> None:
    def write() -> dict[str, bytes]:
        write_table(study, *TABLE)
        write_figures(study, *TABLE)
        write_claims(study)
        write_report(study)
        written = (path for path in study.results.rglob("*") if path.is_file())
        return {str(path.relative_to(study.results)): path.read_bytes() for path in written}

    first = write()
    assert "figures/image-classification/digits/headline.svg" in first
    assert write() == first


def test_series_for_dvc(study: Study) -> None:
    write_report(study)
    summary = json.loads((study.results / "metrics.json").read_text())
    assert summary["image-classification"]["digits"]["deit"]["top1"] == pytest.approx(0.82)
    curves = (study.results / "plots" / "curves" / "image-classification--digits.csv").read_text().splitlines()
    assert curves[:2] == ["step,method,value", "1,deit,2.5"]


def test_claims_about_things_that_do_not_exist_are_errors_at_plan_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_with(**changes: object) -> None:
        fields = {"id": "x.y", "statement": "s", "task": TABLE[0], "paper": "p", "metric": "top1", "method": "deit"}
        claim = Claim(**{**fields, "tiers": {"demo": {"dataset": "digits"}}, **changes})  # type: ignore[arg-type]
        monkeypatch.setattr(claims_module, "load_claims", lambda: [claim])
        check_claims(study)

    plan_with()
    with pytest.raises(UserError, match=r"claim x.y names the metric top2 of deit; did you mean top1"):
        plan_with(metric="top2")
    with pytest.raises(UserError, match=r"claim x.y names the row dait of image-classification/digits; did you mean deit"):
        plan_with(method="dait")
    with pytest.raises(UserError, match="there is no task image-clasification"):
        plan_with(task="image-clasification")


def test_building_the_report_needs_no_torch(study: Study) -> None:
    code = (
        "import sys; from atlas.study import Study; import atlas.report as r; s = Study.read('demo', sys.argv[1]);"
        "r.write_table(s, 'image-classification', 'digits'); r.write_figures(s, 'image-classification', 'digits');"
        "r.write_claims(s); r.write_report(s); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study.root)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_a_thousand_runs_in_twenty_seconds(make_study: Callable[..., Study]) -> None:
    import time

    study = make_study(seeds=250)
    assert len(study.runs) == 1000
    for run in study.runs:
        write_metrics(run, top1=0.8 + 0.0001 * run.seed)
    began = time.perf_counter()
    write_table(study, *TABLE)
    write_figures(study, *TABLE)
    write_claims(study)
    write_report(study)
    assert time.perf_counter() - began < 20
