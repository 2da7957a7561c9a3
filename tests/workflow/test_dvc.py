"""The real DVC: a clone before and after a pull, one changed setting, an experiment; DVC and Snakemake agree on every file."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from workflow_helpers import DIGITS, NOTHING, SMALL, atlas, called, clone, copy_checkout, environment, git, snakemake

from atlas.cli.plan import plan_text
from atlas.harness.registry import load
from atlas.study import Study

pytest.importorskip("dvc", reason="DVC is not installed")
BENCHMARK, GENERATED = "benchmarks@image-classification/digits", "generated@image-classification/stacks"


def dvc(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run DVC on a terminal of 100 columns and return what it prints."""
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    return called(command, folder, check, {**environment(), "COLUMNS": "100"})


def worked(output: str) -> set[str]:
    """Stages that DVC ran."""
    return set(re.findall(r"Running stage '([^']+)'", output))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A repository in which ``dvc repro`` has run, and its results and lock are committed."""
    folder = copy_checkout(checkout, tmp_path_factory.mktemp("dvc") / "origin")
    (folder / "config" / "demo.yaml").write_text(SMALL + DIGITS)
    git(folder, "init", "--quiet", "--initial-branch=main")
    dvc(folder, "init", "--quiet")
    shutil.copy(checkout / ".dvcignore", folder / ".dvcignore")
    atlas(folder, "plan")
    dvc(folder, "repro")
    return folder


@pytest.fixture
def fresh(origin: Path, tmp_path: Path) -> Path:
    """A clone of it, with nothing pulled and no remote."""
    return clone(origin, tmp_path / "clone")


@pytest.mark.slow
def test_a_fresh_clone_acquires_data_and_trains_nothing(origin: Path, fresh: Path) -> None:
    assert "up to date" in dvc(origin, "status")
    assert NOTHING in snakemake(fresh, "-n")
    assert worked(dvc(fresh, "repro", "--dry")) == {"data@digits"}
    assert worked(dvc(fresh, "repro")) == {"data@digits"}
    assert git(fresh, "status", "--porcelain") == ""
    assert "up to date" in dvc(fresh, "status")
    assert not (fresh / "checkpoints").exists()

    shown = dvc(fresh, "metrics", "show")
    assert max(map(len, shown.splitlines())) <= 100
    assert "results/demo/metrics/image-classification/digits.json" in shown
    dvc(fresh, "plots", "show")


@pytest.mark.slow
def test_in_a_fresh_clone_one_setting_runs_what_it_touches(fresh: Path) -> None:
    key = "image-classification.datasets.digits.methods.attnscale.lr_multiplier"
    kept = fresh / "results/demo/runs/image-classification/digits/deit/seed0/metrics.json"
    before = kept.read_bytes()
    output = dvc(fresh, "exp", "run", "--set-param", f"config/demo.yaml:{key}=3")
    assert worked(output) == {"plan", "data@digits", BENCHMARK, "report"}
    assert "lr_multiplier: 3" in (fresh / "config/demo.yaml").read_text()
    trained = sorted(path.parent.parent.name for path in (fresh / "checkpoints").rglob("settings.json"))
    assert trained == ["attnscale", "attnscale"]
    assert kept.read_bytes() == before
    assert NOTHING in snakemake(fresh, "-n")
    assert "up to date" in dvc(fresh, "status")


@pytest.mark.slow
def test_an_edited_study_shows_in_the_metrics(fresh: Path) -> None:
    config = fresh / "config" / "demo.yaml"
    config.write_text(config.read_text().replace("epochs: 1\n", "epochs: 3\n        learning_rate: 1.0e-2\n"))
    assert worked(dvc(fresh, "repro")) == {"plan", "data@digits", BENCHMARK, "report"}
    difference = dvc(fresh, "metrics", "diff")
    assert "digits.json" in difference
    assert "stacks.json" not in difference


@pytest.mark.slow
def test_push_and_pull_carry_data_and_checkpoints(origin: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(origin, tmp_path / "origin", symlinks=True))
    storage = tmp_path / "storage"
    dvc(folder, "remote", "add", "--default", "storage", str(storage))
    dvc(folder, "add", "checkpoints/demo")
    dvc(folder, "push")
    pulled = clone(folder, tmp_path / "pulled")
    dvc(pulled, "pull")
    assert (pulled / "checkpoints/demo/image-classification/digits/deit/seed0/model.safetensors").is_file()
    assert NOTHING in snakemake(pulled, "-n")
    assert "up to date" in dvc(pulled, "status")
    assert git(pulled, "status", "--porcelain") == ""

    another = clone(pulled, tmp_path / "another")
    dvc(another, "remote", "modify", "--local", "storage", "url", str(storage))
    dvc(another, "remote", "modify", "--local", "storage", "verify", "true")
    damaged = max((path for path in storage.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    output = dvc(another, "pull", check=False)
    assert "corrupted" in output or "failed" in output.lower()


@pytest.mark.slow
def test_data_that_changed_shows_everywhere(origin: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(origin, tmp_path / "origin", symlinks=True))
    manifest = folder / "data" / "digits" / "manifest.json"
    content = manifest.read_text()
    manifest.unlink()  # a link into the cache, perhaps
    manifest.write_text(content.replace('\n  "sha256": "', '\n  "sha256": "f'))
    assert "data/digits" in dvc(folder, "status")
    planned = snakemake(folder, "-n")
    assert "rule train" in planned
    assert "rule tabulate" in planned


@pytest.mark.slow
def test_changed_claims_call_for_the_report_and_changed_code_does_not(fresh: Path) -> None:
    methods = fresh / "src/atlas/methods"
    (methods / "uvc/plugin.py").write_text("x = 1\n")
    (methods / "__init__.py").touch()
    (methods / "__pycache__").mkdir()
    (methods / "__pycache__/a.pyc").touch()
    assert dvc(fresh, "status", "report").strip() == "Data and pipelines are up to date."
    claims = methods / "uvc/claims.yaml"
    written = claims.read_text()
    claims.write_text(written + "# another margin\n")
    told = dvc(fresh, "status", "report")
    assert re.search(r"report:.*modified:\s+src/atlas/methods", told, flags=re.DOTALL)
    claims.write_text(written)
    (methods / "new").mkdir()
    (methods / "new/claims.yaml").write_text("claims: []\n")
    assert "src/atlas/methods" in dvc(fresh, "status", "report")


def test_all_claims_are_in_the_shipped_lock(checkout: Path) -> None:
    lock = yaml.safe_load((checkout / "dvc.lock").read_text())
    (claims,) = (one for one in lock["stages"]["report"]["deps"] if one["path"] == "src/atlas/methods")
    files = [paper.claims for paper in load().papers.values() if paper.claims.is_file()]
    assert claims["nfiles"] == len(files)
    assert claims["size"] == sum(file.stat().st_size for file in files)


def test_shipped_plan_is_that_of_the_study(checkout: Path) -> None:
    text = (checkout / "workflow" / "plan.yaml").read_text()
    tier = re.search(r"^tier: (\w+)$", text, flags=re.MULTILINE)
    assert tier is not None
    assert text == plan_text(Study.read(tier.group(1), checkout)), "run: atlas plan"


def test_shipped_lock_is_that_of_the_results(checkout: Path, tmp_path: Path) -> None:
    """What is committed fits together: in a clone of it DVC misses nothing but the data."""
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(checkout), str(folder))
    assert max(map(len, dvc(folder, "metrics", "show").splitlines())) <= 100
    told = dvc(folder, "status")
    assert set(re.findall(r"^(\S.*):$", told, flags=re.MULTILINE)) <= {
        "data@basic-motions",
        "data@digits",
        "data@motorcycle-stereo",
    }
