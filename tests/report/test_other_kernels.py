"""Verdicts under other kernels, kept beside a study's own."""

import json
import shutil
from pathlib import Path

import pytest
from conftest_report import PROVENANCE, write_metrics

from atlas.errors import UserError
from atlas.harness.stale import summary_digest
from atlas.report.kernels import note_kernels
from atlas.report.page import write_report
from atlas.report.verdicts import other_kernels
from atlas.study import Study

NATIVE = "a processor, 2 cores, native (AVX512) kernels"


@pytest.fixture
def other(study: Study, tmp_path: Path) -> Path:
    """The same study's results as other kernels made them."""
    folder = tmp_path / "other"
    shutil.copytree(study.results, folder)
    for path in folder.rglob("metrics.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "provenance": {**PROVENANCE, "kernels": "native (AVX512)"}}))
    (folder / "claims.csv").write_text("id,verdict,fragile\nx.y,supported,not without seed 0\nx.z,inconclusive,\nx.n,not run,\n")
    return folder


def test_verdicts_are_kept_under_the_name_of_the_kernels(study: Study, other: Path) -> None:
    (study.results / "kernels.csv").write_text(f'id,kernel,verdict\nx.y,old,contradicted\nx.n,"{NATIVE}",supported\n')
    before = summary_digest(study)
    note_kernels(study, str(other))
    assert summary_digest(study) != before  # so that verdicts and page are written again
    assert other_kernels(study) == {"x.y": {"old": "contradicted", NATIVE: "supported"}, "x.z": {NATIVE: "inconclusive"}}


def test_what_says_nothing_about_other_kernels_is_refused(study: Study, other: Path) -> None:
    with pytest.raises(UserError, match="no claims.csv"):
        note_kernels(study, str(study.results))
    (study.results / "claims.csv").write_text("id,verdict,fragile\nx.y,supported,\n")
    with pytest.raises(UserError, match="tells nothing about others"):
        note_kernels(study, str(study.results))
    run = study.runs[0]
    shutil.copy(study.results / f"runs/{run.cell}/metrics.json", other / f"runs/{run.cell}/metrics.json")
    with pytest.raises(UserError, match="computed by 2 machines"):
        note_kernels(study, str(other))
    assert not (study.results / "kernels.csv").exists()


def test_metrics_without_kernels_are_those_of_the_processor(study: Study, other: Path) -> None:
    write_metrics(study.runs[0], top1=0.5)
    assert note_kernels(study, str(other)).read_text().startswith(f'id,kernel,verdict\nx.y,"{NATIVE}",supported\n')


def test_the_page_counts_rows_with_seeds_of_several_kernels(study: Study) -> None:
    def computed_with(kernels: dict[str, str]) -> str:
        for run in study.runs:
            content = json.loads(run.metrics.read_text())
            content["provenance"] = {**PROVENANCE, "kernels": kernels.get(run.method, "portable")}
            if run.seed == 0 and "mixed" in kernels:
                content["provenance"]["kernels"] = kernels["mixed"]
            run.metrics.write_text(json.dumps(content))
        write_report(study)
        lines = (study.results / "report.md").read_text().splitlines()
        return next(line for line in lines if line.startswith("- kernels: "))

    assert computed_with({}) == "- kernels: portable"
    assert computed_with({"attnscale": "avx2 (AMD)"}) == "- kernels: portable, avx2 (AMD)"
    assert computed_with({"mixed": "avx2 (AMD)"}) == "- kernels: portable, avx2 (AMD); seeds of several in 4 rows"
