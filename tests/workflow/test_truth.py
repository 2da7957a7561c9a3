""" "Nothing to be done" is true: what is missing, failed or made of other things is planned, and told alike by every command."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from workflow_helpers import DIGITS, NOTHING, SMALL, atlas, break_code, called, clone, copy_checkout, planned, rows, snakemake

STACKS = "image-classification/stacks"
pytestmark = pytest.mark.slow


def states(folder: Path) -> dict[str, str]:
    """Run to state, as ``atlas list runs`` tells it."""
    lines = (line.split("\t") for line in atlas(folder, "list", "runs").splitlines())
    return {line[0]: line[1] for line in lines}


def test_a_failure_is_not_final(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    output = snakemake(folder, check=False, extra=break_code(folder, f"{STACKS}/plain/seed1"))
    assert "the method has a bug" in output
    assert (folder / "results/demo/report.html").is_file()  # what is there can be read
    told = states(folder)
    assert told[f"{STACKS}/plain/seed1"] == "failed"
    assert told[f"{STACKS}/plain/seed0"] == "evaluated"  # a failure leaves the other seeds of its row alone
    assert rows(snakemake(folder, "-n"), "train") == {"plain"}
    (folder / "broken").unlink()
    first = folder / "results/demo/runs" / STACKS / "plain/seed0/metrics.json"
    before = first.read_bytes(), first.stat().st_mtime_ns
    snakemake(folder)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before  # repaired is what had failed
    assert set(states(folder).values()) == {"evaluated"}
    assert NOTHING in snakemake(folder, "-n")


def test_a_page_of_nothing_finishes_no_study(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    atlas(folder, "report")
    assert planned(snakemake(folder, "-n"))["train"] == 2


def test_an_added_benchmark_is_planned(small: Path, tmp_path: Path) -> None:
    folder = clone(small, tmp_path / "clone")
    config = folder / "config/demo.yaml"
    config.write_text(
        SMALL + "    more:\n      data: null\n      methods: {third: {method: random-stack, depth: 8, repeats: 1}}\n"
    )
    for place in (small, folder):
        (place / "config/demo.yaml").write_text(config.read_text())
        jobs = planned(snakemake(place, "-n"))
        assert jobs == {"train": 1, "tabulate": 1, "judge": 1, "report": 1}
        assert states(place)["image-classification/more/third/seed0"] == "missing"


def test_a_trial_leaves_the_study_alone(small: Path) -> None:
    run = f"{STACKS}/plain/seed0"
    kept = {path: path.read_bytes() for folder in ("checkpoints", "results") for path in (small / folder).rglob("*.json")}
    for verb in ("train", "evaluate"):
        assert "demo-trial" in atlas(small, verb, run, "--set", "depth=9") or verb == "evaluate"
    trial = json.loads((small / "results/demo-trial/runs" / run / "metrics.json").read_text())
    assert trial["settings"]["settings"]["random-stack"]["depth"] == 9
    assert {path: path.read_bytes() for path in kept} == kept
    assert NOTHING in snakemake(small, "-n")
    atlas(small, "report")
    atlas(small, "table", STACKS)
    assert "demo-trial" not in (small / "results/demo/report.html").read_text()
    assert NOTHING in snakemake(small, "-n")
    refused = atlas(small, "list", "runs", "--tier", "demo-trial", check=False)
    assert "demo-trial is where trials of the study demo lie" in refused


def test_files_made_with_other_settings_are_made_again_every_time(small: Path) -> None:
    """The second time as the first: what decides is the content, not what Snakemake remembers of its inputs."""
    config = small / "config/demo.yaml"
    original = config.read_text()
    for _ in range(2):
        config.write_text(original.replace("stack: attention, depth: 8", "stack: attention, depth: 9"))
        atlas(small, "train", f"{STACKS}/plain/seed0", "--evaluate")
        config.write_text(original)
        assert states(small)[f"{STACKS}/plain/seed0"] == "out of date"
        assert rows(snakemake(small, "-n"), "train") == {"plain"}
        snakemake(small)
        assert NOTHING in snakemake(small, "-n")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A checkout whose study reads a dataset and has run."""
    folder = copy_checkout(checkout, tmp_path_factory.mktemp("digits") / "atlas")
    (folder / "config/demo.yaml").write_text(SMALL + DIGITS)
    snakemake(folder)
    return folder


def test_in_a_clone_a_changed_setting_trains_what_it_touches(digits: Path, tmp_path: Path) -> None:
    folder = clone(digits, tmp_path / "clone")
    assert NOTHING in snakemake(folder, "-n")
    config = folder / "config/demo.yaml"
    config.write_text(config.read_text().replace("lr_multiplier: 1", "lr_multiplier: 2"))
    output = snakemake(folder, "-n")
    assert rows(output, "train") == {"attnscale"}
    assert planned(output) == {"acquire": 1, "train": 1, "tabulate": 1, "judge": 1, "report": 1}
    config.write_text(config.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    kept = folder / "results/demo/runs/image-classification/digits/deit/seed0/metrics.json"
    before = kept.read_bytes()
    snakemake(folder)
    assert kept.read_bytes() == before  # a new seed leaves those that are there
    assert not (folder / "checkpoints/demo/image-classification/digits/deit/seed0").exists()
    assert NOTHING in snakemake(folder, "-n")


def test_other_data_is_other_runs(digits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits, tmp_path / "atlas", symlinks=True))
    manifest = folder / "data/digits/manifest.json"
    manifest.write_text(manifest.read_text().replace('\n  "sha256": "', '\n  "sha256": "f'))
    told = states(folder)
    assert told["image-classification/digits/deit/seed0"] == "out of date"
    assert told[f"{STACKS}/plain/seed0"] == "evaluated"
    assert rows(snakemake(folder, "-n"), "train") == {"attnscale", "deit"}


def test_lost_results_are_made_from_what_is_trained(digits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits, tmp_path / "atlas", symlinks=True))
    lost = folder / "results/demo/runs/image-classification/digits/deit/seed1/metrics.json"
    before = json.loads(lost.read_text())["metrics"]
    lost.unlink()
    (folder / "results/demo/tables" / f"{STACKS}.tex").unlink()
    jobs = planned(snakemake(folder, "-n"))
    assert jobs == {"evaluate": 1, "tabulate": 2, "judge": 1, "report": 1}
    snakemake(folder, "--", str(lost.relative_to(folder)))  # one file as a target
    assert json.loads(lost.read_text())["metrics"] == before
    assert planned(snakemake(folder, "-n")) == {"tabulate": 2, "judge": 1, "report": 1}


def test_one_job_per_run_where_runs_are_long(tmp_path: Path, checkout: Path) -> None:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    (folder / "config/demo.yaml").write_text(SMALL.replace("batch_seeds: true", "batch_seeds: false"))
    target = f"results/demo/runs/{STACKS}/plain/seed1/metrics.json"
    assert planned(snakemake(folder, "-n", "--", target)) == {"train": 1, "metrics": 1}
    snakemake(folder, check=False, extra=break_code(folder, f"{STACKS}/plain/seed1"))
    assert planned(snakemake(folder, "-n")) == {"train": 1, "tabulate": 1, "judge": 1, "report": 1}
    (folder / "broken").unlink()
    snakemake(folder)
    assert NOTHING in snakemake(folder, "-n")


def test_what_another_machine_made_is_made_here_on_request(small: Path, tmp_path: Path, checkout: Path) -> None:
    """``make demo`` in a clone trains, whatever is committed; a second one has nothing to do."""
    folder = clone(small, tmp_path / "clone")
    assert NOTHING in snakemake(folder, "-n")
    for name in ("Makefile", "requirements.lock", "plugins/snakemake-executor-plugin-submitit/pyproject.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, folder / name)
        os.utime(folder / name, (0, 0))  # the environment is newer
    os.utime(folder / "pyproject.toml", (0, 0))
    (folder / "venv").mkdir()
    (folder / "venv" / ".ready").touch()
    (folder / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    first = called(["make", "VENV=venv", "demo"], folder)
    assert "4 to train (4 not made on this machine)" in first
    assert re.search(r"HEAD and results/demo: 28 of 28 numbers alike, (\d+) of \1 verdicts alike", first)
    assert "report: results/demo/report.html" in first
    second = called(["make", "VENV=venv", "demo"], folder)
    assert "to train" not in second


def test_changed_code_is_told_and_not_rerun(small: Path) -> None:
    record = small / "checkpoints/demo" / STACKS / "plain/seed0/settings.json"
    content = json.loads(record.read_text())
    code = content["provenance"]["code"]
    assert "atlas.tasks.image_classification" in code
    code["atlas.tasks.image_classification"] = "0" * 16
    record.write_text(json.dumps(content))
    output = snakemake(small, "-n")
    assert NOTHING in output
    assert "1 runs were trained with other code of atlas.tasks.image_classification" in output
    assert "snakemake --config code=new" in output
    assert "trained with other code" in atlas(small, "list", "runs")
    assert rows(snakemake(small, "-n", "--config", "code=new"), "train") == {"plain"}
    snakemake(small, "--config", "code=new")
    assert "other code" not in snakemake(small, "-n")


def test_everything_again_is_what_snakemake_users_know(small: Path) -> None:
    assert planned(snakemake(small, "-n", "-F"))["train"] == 2
    assert planned(snakemake(small, "-n", "-R", "train"))["train"] == 2


def test_a_wrong_dataset_is_refused_before_anything_is_planned(small: Path) -> None:
    config = small / "config/demo.yaml"
    config.write_text(SMALL.replace("data: null", "data: digitz"))
    for output in (snakemake(small, "-n", check=False), atlas(small, "train", f"{STACKS}/plain/seed0", check=False)):
        assert "digitz" in output
        assert "did you mean digits?" in output
        assert "Traceback" not in output
        assert "atlas acquire digitz" not in output


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="only root can mount a folder read-only")
@pytest.mark.parametrize("lost", ["", "report.md", "runs/image-classification/stacks/plain/seed0/metrics.json"])
def test_a_dry_run_needs_to_write_no_results(small: Path, lost: str) -> None:
    if lost:
        (small / "results/demo" / lost).unlink()
    program = Path(sys.executable).parent / "snakemake"
    closed = "mount --bind results results && mount -o remount,ro,bind results"
    if "denied" in called(["unshare", "--mount", "true"], small, check=False):
        pytest.skip("this machine lets nobody mount")
    output = called(["unshare", "--mount", "bash", "-c", f"{closed} && {program} -n"], small)
    assert ("This was a dry-run" in output) if lost else (NOTHING in output)
    if lost:
        refused = called(["unshare", "--mount", "bash", "-c", f"{closed} && {program}"], small, check=False)
        assert "results/demo cannot be written" in refused
