"""The real Snakemake: what runs, what reruns, and what does not."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from workflow_helpers import NOTHING, SMALL, break_code, copy_checkout, planned, rows, snakemake

DID = "of config/demo.yaml; did you mean"


def test_study_runs_to_its_report_and_then_there_is_nothing_to_do(finished: Path) -> None:
    results = finished / "results" / "demo"
    assert (results / "report.html").is_file()
    assert (results / "report.md").is_file()
    assert (results / "claims.csv").is_file()
    for ending in ("csv", "md", "tex"):
        assert (results / "tables" / "image-classification" / f"stacks.{ending}").is_file()
    assert (results / "figures" / "image-classification" / "stacks" / "random-stacks.svg").is_file()
    metrics = json.loads((results / "runs/image-classification/stacks/residual/seed1/metrics.json").read_text())
    assert metrics["metrics"]["hf_gain_w1"] > 1
    assert NOTHING in snakemake(finished, "-n")


def test_snakemakes_own_report_has_captions_and_categories(small: Path) -> None:
    snakemake(small, "--report", "snakemake.html")
    page = (small / "snakemake.html").read_text()
    assert "Every metric of every method of image-classification on stacks" in page
    assert "Claims of the papers, judged on the demo study" in page
    for name in ("claims.csv", "stacks.csv", "headline.svg"):
        assert name in page
    assert '"image-classification": {"stacks": [' in page


def test_a_changed_setting_reruns_what_it_touches_and_nothing_else(small: Path) -> None:
    """With Snakemake's record and without it, as after a clone: the content says so."""
    config = small / "config" / "demo.yaml"
    config.write_text(
        config.read_text().replace("residual: {method: random-stack, depth: 8", "residual: {method: random-stack, depth: 9")
    )
    output = snakemake(small, "-n")
    assert planned(output) == {"train": 1, "tabulate": 1, "judge": 1, "report": 1}
    assert rows(output, "train") == {"residual"}
    shutil.rmtree(small / ".snakemake")
    output = snakemake(small, "-n")
    assert planned(output) == {"train": 1, "tabulate": 1, "judge": 1, "report": 1}
    assert rows(output, "train") == {"residual"}
    untouched = small / "results/demo/runs/image-classification/stacks/plain/seed0/metrics.json"
    before = untouched.stat().st_mtime_ns
    snakemake(small)
    assert untouched.stat().st_mtime_ns == before
    assert NOTHING in snakemake(small, "-n")


def test_moved_timestamps_and_a_lost_record_change_nothing(small: Path) -> None:
    """As after a clone: no .snakemake, and every file with a new time in another order."""
    shutil.rmtree(small / ".snakemake")
    for path in sorted(small.rglob("*"), reverse=True):
        if path.is_file():
            path.touch()
            time.sleep(0.001)
    assert NOTHING in snakemake(small, "-n")


def test_a_new_seed_adds_its_runs(small: Path) -> None:
    config = small / "config" / "demo.yaml"
    config.write_text(config.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    assert planned(snakemake(small, "-n"))["tabulate"] == 1


def test_metrics_that_changed_make_the_tables_again(small: Path) -> None:
    path = small / "results/demo/runs/image-classification/stacks/plain/seed0/metrics.json"
    content = json.loads(path.read_text())
    content["metrics"]["hf_gain_w1"] = 5.0
    path.write_text(json.dumps(content))
    jobs = planned(snakemake(small, "-n"))
    assert jobs["tabulate"] == 1
    assert "train" not in jobs


def test_a_row_that_cannot_be_built_is_refused_before_anything_runs(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    config = folder / "config" / "demo.yaml"
    config.write_text(SMALL.replace("stack: attention,", "stack: attention, heads: 3,"))  # 64 is no multiple of 3
    output = snakemake(folder, check=False)
    assert "methods.plain" in output
    assert "width 64 is not a multiple of heads 3" in output
    assert "Traceback" not in output
    assert not (folder / "results/demo").exists()


def test_a_wrong_study_is_one_line(small: Path) -> None:
    config = small / "config" / "demo.yaml"
    config.write_text(config.read_text().replace("repeats: 1}", "repeat: 1}", 1))
    output = snakemake(small, "-n", check=False)
    assert "plain.repeat is not a setting of random-stack; did you mean repeats?" in output


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("teir=mine", "--config teir is not a setting of the workflow; did you mean tier?"),
        ("code=NEW", "--config code = 'NEW': input should be 'new'"),
        ("tier=2024", "there is no study 2024"),
        ("only=10", "10 is not a run of config/demo.yaml"),
    ],
)
def test_a_wrong_option_is_one_line(said: str, answer: str, small: Path) -> None:
    output = snakemake(small, "-n", "--config", said, check=False)
    assert answer in output
    assert "Job stats" not in output
    assert "TypeError" not in output


def test_options_reach_jobs_and_come_from_profiles(small: Path) -> None:
    """A job of a cluster is a Snakemake that is told the options once more; a profile lists them."""
    shutil.move(small / "config/demo.yaml", small / "config/2024.yaml")
    (small / "mine").mkdir()
    (small / "mine/config.yaml").write_text("config: [tier=2024, only=residual, here=no, warm=no]\n")
    snakemake(small, "--profile", "mine")
    assert (small / "results/2024/runs/image-classification/stacks/residual/seed1/metrics.json").is_file()
    assert not (small / "results/2024/runs/image-classification/stacks/plain").exists()


STACKS = "image-classification/stacks"


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("results/demo/tables/image-classification/stack.csv", f"image-classification/stack is not a table {DID} {STACKS}?"),
        ("results/demo/figures/nope/x", f"nope/x is not a table of config/demo.yaml; choose from {STACKS}"),
        (
            f"results/demo/runs/{STACKS}/plain/seed77/metrics.json",
            f"{STACKS}/plain/seed77 is not a run {DID} {STACKS}/plain/seed1?",
        ),
        (f"results/demo/runs/{STACKS}/plane/seed1/metrics.json", f"{STACKS}/plane is not a row {DID} {STACKS}/plain?"),
        (f".atlas/done/demo/{STACKS}/plane/evaluated", f"{STACKS}/plane is not a row {DID} {STACKS}/plain?"),
        ("data/digitz/manifest.json", "there is no dataset digitz; did you mean digits?"),
    ],
)
def test_a_target_that_does_not_exist_is_refused_while_planning(target: str, answer: str, finished: Path) -> None:
    output = snakemake(finished, "-n", "--", target, check=False)
    assert answer in output
    assert "Job stats" not in output


def test_a_stage_has_no_metrics_to_ask_for(small: Path, checkout: Path) -> None:
    shutil.copy(checkout / "config/demo.yaml", small / "config/whole.yaml")
    stage = "novel-view-synthesis/analytic/scene/seed10"
    output = snakemake(small, "-n", "--config", "tier=whole", "--", f"results/whole/runs/{stage}/metrics.json", check=False)
    assert f"{stage} is a stage: it has no metrics" in output


def test_a_metric_that_was_not_made_is_named_in_its_log(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    target = f"results/demo/runs/{STACKS}/plain/seed1/metrics.json"
    snakemake(folder, "--config", "only=residual", "--", target, check=False)
    assert (folder / f"logs/demo/{STACKS}/plain/seed1/metrics.log").read_text() == f"{target} was not made\n"


@pytest.mark.slow
def test_a_thousand_runs_are_planned(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    lines = "".join(f"        row{index}: {{method: random-stack, depth: {index + 8}}}\n" for index in range(500))
    config = SMALL.replace("batch_seeds: true", "batch_seeds: false").split("        plain:")[0] + lines
    (folder / "config" / "demo.yaml").write_text(config)
    output = snakemake(folder, "-n", "--quiet", "rules")
    assert planned(output)["train"] == 1000


def test_only_some_rows_are_run_with_their_tables(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    (folder / "config" / "demo.yaml").write_text(
        SMALL + "    other: {data: null, methods: {plain: {method: random-stack, depth: 8, repeats: 1}}}\n"
    )
    only = ("--config", "only=stacks/res*")
    assert planned(snakemake(folder, "-n", *only)) == {"train": 1, "tabulate": 1, "judge": 1, "report": 1}
    snakemake(folder, *only)
    results = folder / "results/demo"
    assert (results / "runs/image-classification/stacks/residual/seed1/metrics.json").is_file()
    assert not (results / "runs/image-classification/stacks/plain").exists()
    assert "residual" in (results / "tables/image-classification/stacks.md").read_text()
    assert not (results / "tables/image-classification/other.csv").exists()
    assert (results / "report.html").is_file()
    assert NOTHING in snakemake(folder, "-n", *only)
    assert planned(snakemake(folder, "-n"))["train"] == 2  # the others are still to be done
    said = snakemake(folder, "-n", "--config", "only=residul", check=False)
    assert "residul is not a run of config/demo.yaml, nor a part of one's name; did you mean residual?" in said


def test_a_failed_row_leaves_the_others_and_is_told_before_all_else(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    broken = break_code(folder, "plain/seed0")
    output = snakemake(folder, check=False, extra=broken)
    log = "logs/demo/image-classification/stacks/plain/train.log"
    assert f"training image-classification/stacks/plain (2 seeds), log {log}" in output
    assert "done image-classification/stacks/residual in " in output
    failed = f"failed image-classification/stacks/plain: seed0: RuntimeError: the method has a bug (log {log})"
    assert output.count(failed) == 1
    assert output.index(failed) < output.index("Error in rule train")
    assert output.index(failed) < output.index("CalledProcessError")
    assert "the method has a bug" in (folder / "results/demo/report.html").read_text()
    assert (folder / "results/demo/runs/image-classification/stacks/residual/seed0/metrics.json").is_file()
    assert "[1/" not in snakemake(folder, "--quiet", "all", check=False, extra=broken)
