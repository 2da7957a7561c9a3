"""The real DVC: reproduce, push, clone, pull, change one setting; DVC and Snakemake agree on every file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_helpers import SMALL, copy_checkout, environment, snakemake

from atlas.cli.plan import plan_text
from atlas.study import Study

pytest.importorskip("dvc", reason="DVC is not installed")
BIN = Path(sys.executable).parent
STUDY = (
    SMALL
    + """\
    digits:
      protocol:
        backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 8, depth: 1, num_heads: 2, drop_path_rate: 0}
        epochs: 1
        warmup_epochs: 0
        batch_size: 128
        mixup: 0
        cutmix: 0
      methods: {deit: {}}
"""
)


def run(folder: Path, *command: str, check: bool = True) -> str:
    program = str(BIN / command[0]) if command[0] in ("dvc", "atlas") else command[0]
    done = subprocess.run([program, *command[1:]], cwd=folder, env=environment(), capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A repository in which ``dvc repro`` has run and pushed to a local remote."""
    folder = copy_checkout(checkout, tmp_path_factory.mktemp("dvc") / "origin")
    (folder / "config" / "demo.yaml").write_text(STUDY)
    shutil.copy(checkout / ".gitignore", folder / ".gitignore")
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    run(folder, "dvc", "init", "--quiet")
    shutil.copy(checkout / ".dvcignore", folder / ".dvcignore")
    run(folder, "dvc", "remote", "add", "--default", "storage", str(folder.parent / "storage"))
    run(folder, "atlas", "plan")
    commit(folder, "study")
    run(folder, "dvc", "repro")
    commit(folder, "results")
    run(folder, "dvc", "push")
    return folder


@pytest.mark.slow
def test_repro_push_clone_pull_change(origin: Path, tmp_path: Path) -> None:
    tables = origin / "results" / "demo" / "tables"
    assert "up to date" in run(origin, "dvc", "status")
    assert "Nothing to be done" in snakemake(origin, "-n")
    assert "didn't change, skipping" in run(origin, "dvc", "repro")

    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(clone))
    run(clone, "dvc", "pull")
    assert (clone / "checkpoints/demo/image-classification/digits/deit/seed0/model.safetensors").is_file()
    assert "Nothing to be done" in snakemake(clone, "-n")
    assert "up to date" in run(clone, "dvc", "status")
    for path in tables.rglob("*.*"):
        assert (clone / path.relative_to(origin)).read_bytes() == path.read_bytes()

    config = clone / "config" / "demo.yaml"
    config.write_text(
        config.read_text().replace("residual: {method: random-stack, depth: 8", "residual: {method: random-stack, depth: 9")
    )
    output = run(clone, "dvc", "repro")
    worked = set(re.findall(r"Running stage '([^']+)'", output))
    assert worked == {"plan", "generated@image-classification--stacks--residual", "tables", "report"}
    difference = run(clone, "dvc", "metrics", "diff")
    assert "residual.hf_gain_w1" in difference
    assert "plain" not in difference
    assert "deit" not in difference
    assert "hf_gain_w1" in run(clone, "dvc", "metrics", "show")
    run(clone, "dvc", "plots", "show")


@pytest.mark.slow
def test_experiments_set_one_setting(origin: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(origin, tmp_path / "origin", symlinks=True))
    key = "image-classification.datasets.stacks.methods.plain.depth"
    output = run(folder, "dvc", "exp", "run", "--set-param", f"config/demo.yaml:{key}=10")
    worked = set(re.findall(r"Running stage '([^']+)'", output))
    assert "generated@image-classification--stacks--plain" in worked
    assert "generated@image-classification--stacks--residual" not in worked
    assert "runs@image-classification--digits--deit" not in worked
    assert "depth: 10" in (folder / "config/demo.yaml").read_text()


@pytest.mark.slow
def test_bad_days(origin: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(clone))
    storage = Path(shutil.copytree(origin.parent / "storage", tmp_path / "storage"))
    run(clone, "dvc", "remote", "modify", "--local", "storage", "url", str(storage))
    run(clone, "dvc", "remote", "modify", "--local", "storage", "verify", "true")
    damaged = max((path for path in storage.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    output = run(clone, "dvc", "pull", check=False)
    assert "corrupted" in output or "failed" in output.lower()

    # data that changed upstream shows as changed, and the tables as stale
    folder = Path(shutil.copytree(origin, tmp_path / "origin", symlinks=True))
    manifest = folder / "data" / "digits" / "manifest.json"
    content = manifest.read_text()
    manifest.unlink()  # a link into the cache, perhaps
    manifest.write_text(content.replace('"sha256": "', '"sha256": "0', 1).replace('\n  "sha256": "', '\n  "sha256": "f'))
    assert "data/digits" in run(folder, "dvc", "status")
    planned = snakemake(folder, "-n")
    assert "rule train" in planned
    assert "rule tabulate" in planned


def test_shipped_plan_is_that_of_the_study(checkout: Path) -> None:
    text = (checkout / "workflow" / "plan.yaml").read_text()
    tier = re.search(r"^tier: (\w+)$", text, flags=re.MULTILINE)
    assert tier is not None
    assert text == plan_text(Study.read(tier.group(1), checkout)), "run: atlas plan"
