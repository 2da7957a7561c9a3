"""The command line: listings, one-line errors and their exit codes, and runs by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import typer

from atlas.cli import doctor
from atlas.cli.main import app, main
from atlas.cli.overrides import apply_overrides
from atlas.harness.selection import select
from atlas.harness.study import Study

RUN = "image-classification/random-stacks/residual/seed10"


@dataclass(frozen=True)
class Done:
    """What a command leaves: its exit code and what it said."""

    returncode: int
    stdout: str
    stderr: str


def process(folder: Path, *arguments: str) -> Done:
    """A command in a process of its own, as people run it."""
    done = subprocess.run([sys.executable, "-m", "atlas", *arguments], cwd=folder, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


class Atlas(Protocol):
    """The command line in some folder."""

    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def folder(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(checkout / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def atlas(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Atlas:
    """The command line in this process, which has loaded PyTorch already: seconds less for each command."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["atlas", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        monkeypatch.chdir(folder)
        said = capsys.readouterr()
        return Done(int(caught.value.code or 0), said.out, said.err)

    return call


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("papers", "anti-oversmoothing"),
        ("tasks", "image-classification"),
        ("methods", "attnscale"),
        ("datasets", "imagenet"),
        ("claims", "aos.acc-d12"),
        ("runs", RUN),
    ],
)
def test_listings(atlas: Atlas, what: str, expected: str) -> None:
    done = atlas("list", what)
    assert done.returncode == 0
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "paper"], "did you mean papers?"),
        (["train", "image-classification/digits/atnscale/seed10"], "did you mean image-classification/digits/attnscale/seed10?"),
        (["train", "image-classification/digits/deit/seed10"], "the dataset digits is not there; run: atlas acquire digits"),
        (["evaluate", RUN], f"{RUN} must be trained first (not trained): atlas train --tier demo {RUN}"),
        (["train", RUN, "--set", "depht=9"], "--set depht is not a setting of random-stack; did you mean depth?"),
        (["train", RUN, "--set", "depth"], "write key=value"),
        (["train", RUN, "--set", "depth=["], "--set depth is not YAML: "),
        (
            ["train", RUN, "--set", "protocol={epochs: 1, epochs: 2}"],
            "--set protocol: epochs stands twice, in line 1",
        ),
        (
            ["train", RUN, "--set", "protocol=3"],
            "--set protocol=3: protocol is a group of settings; write protocol.setting=value",
        ),
        (["train", RUN, "--set", "resources=null"], "--set resources=null: resources is a group of settings"),
        (
            ["train", "image-classification/digits/deit/seed10", "--set", "seed=3"],
            "--set seed is not a setting of deit; choose from protocol.setting, resources.setting",
        ),
        (["list", "runs", "--tier", "../demo"], "--tier '../demo' cannot name a folder: it holds '/'"),
        (["table", "image-classification/digit"], "did you mean image-classification/digits?"),
        (["acquire", "digit"], "did you mean digits?"),
        (["list", "runs", "--tier", "dem"], "did you mean demo?"),
        (["-C", "nowhere", "list", "runs"], "--directory nowhere is not a folder"),
        (
            ["train", "image-classification/digits/deit/seed10", "--set", "protocol.warmup_epochs=99"],
            "error: --set protocol: warmup_epochs 99.0 leaves nothing of epochs",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(atlas: Atlas, arguments: list[str], message: str) -> None:
    done = atlas(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_a_process_says_and_returns_the_same(folder: Path, atlas: Atlas) -> None:
    for arguments in (["list", "runs"], ["train", RUN, "--set", "depht=9"]):
        assert process(folder, *arguments) == atlas(*arguments)


def test_below_a_checkout_the_way_to_it_is_said(folder: Path) -> None:
    (folder / "Snakefile").touch()
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    for arguments in (["list", "runs"], ["acquire", "digits"]):
        done = process(below, *arguments)
        assert done.returncode == 2
        assert f"the checkout is {folder}: go there, or say atlas -C ../.. …" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(below.iterdir()) == []
    assert RUN in process(below, "-C", "../..", "list", "runs").stdout
    (folder / "Snakefile").unlink()
    assert "this is not a checkout of Atlas" in process(below, "list", "runs").stderr


def told(command: Any) -> Iterator[str]:
    """Every text that ``--help`` prints of a command and of those below it."""
    yield command.help or ""
    for parameter in command.params:
        yield getattr(parameter, "help", None) or ""
    for below in getattr(command, "commands", {}).values():
        yield from told(below)


def test_help_names_runs_rows_settings_and_verbs_that_exist(checkout: Path) -> None:
    command = typer.main.get_command(app)
    text = "\n".join(told(command))
    study = Study.read("demo", checkout)
    runs = re.findall(r"\b(?:[a-z-]+/){3}seed\d+", text)
    patterns = re.findall(r"'([a-z-]+/[a-z*-]+)'", text)
    settings = re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+=[^\s;,]+", text)
    verbs = re.findall(r"'atlas ([a-z]+)", text)
    assert runs
    assert patterns
    assert settings
    assert verbs
    for run in runs:
        assert apply_overrides(study.find(run), settings).trial
    for pattern in patterns:
        assert select(study, [pattern])
    assert set(verbs) <= set(command.commands)  # type: ignore[attr-defined]


def test_failures_exit_with_1_and_are_recorded(folder: Path, atlas: Atlas) -> None:
    done = atlas("train", RUN, "--set", "tokens=1000000000000")
    assert done.returncode == 1
    assert "allocate" in done.stderr
    failure = json.loads((folder / "results/demo-trial/runs" / RUN / "failure.json").read_text())
    assert failure["stage"] == "train"
    assert "allocate" in failure["error"]


def test_settings_that_do_not_go_together_are_the_user_s_mistake(atlas: Atlas) -> None:
    done = atlas("train", RUN, "--set", "heads=3")
    assert done.returncode == 2
    assert "width 64 is not a multiple of heads 3" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_trial_by_hand(folder: Path, atlas: Atlas) -> None:
    settings = ["--set", "repeats=1", "--set", "depth=8"]
    assert f"trained (a trial: checkpoints/demo-trial/{RUN})" in process(folder, "train", RUN, *settings).stderr
    assert "already trained" in atlas("train", RUN, *settings).stderr
    done = atlas("evaluate", RUN, *settings)
    assert done.returncode == 0
    content = json.loads((folder / "results/demo-trial/runs" / RUN / "metrics.json").read_text())
    assert content["settings"]["settings"]["random-stack"]["depth"] == 8
    assert not (folder / "checkpoints/demo-trial" / RUN / "state").exists()
    assert not (folder / "checkpoints/demo").exists()
    assert not (folder / "results/demo").exists()
    other = atlas("evaluate", RUN, "--set", "repeats=1")
    assert other.returncode == 2
    said = f"must be trained first (its settings changed): atlas train --tier demo {RUN} --set repeats=1"
    assert said in other.stderr.splitlines()[-1]


def test_training_evaluates_on_request_what_has_no_metrics(folder: Path, atlas: Atlas) -> None:
    short = ["--set", "depth=8", "--set", "repeats=1"]
    metrics = folder / "results/demo-trial/runs" / RUN / "metrics.json"
    assert atlas("train", RUN, *short).returncode == 0
    assert not metrics.exists()
    assert atlas("train", RUN, "--evaluate", *short).returncode == 0
    first = metrics.read_bytes()
    assert atlas("train", RUN, "--evaluate", *short).returncode == 0
    assert metrics.read_bytes() == first  # neither trained nor evaluated again
    assert atlas("train", RUN, "--evaluate", "--force", *short).returncode == 0
    assert json.loads(metrics.read_text())["metrics"] == json.loads(first)["metrics"]


def test_doctor_examines_and_fixes(folder: Path, atlas: Atlas) -> None:
    (folder / ".dvc").mkdir()
    done = atlas("doctor")
    assert done.returncode == 0
    assert "digits missing" in done.stdout
    assert "run: atlas acquire digits" in done.stdout
    assert "no remote is configured" in done.stdout
    assert atlas("doctor", "--fix").returncode == 0
    assert "atlas-dvc-storage" in (folder / ".dvc" / "config.local").read_text()
    assert "has a remote" in atlas("doctor").stdout


def test_doctor_tells_whether_every_start_compiles_the_packages_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "heavy" / "__init__.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = doctor.modules("heavy")
    assert not found.good
    assert found.state == "every start compiles heavy again: PYTHONDONTWRITEBYTECODE is set"
    assert found.advice == f"run once: python -m compileall -q -j 0 {tmp_path}"
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert doctor.modules("heavy").state == "heavy is compiled at its next start"
    subprocess.run([sys.executable, *found.advice.split()[3:]], check=True)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert doctor.modules("heavy") == doctor.Finding("modules", True, "heavy is compiled")
    assert doctor.modules("heavier").state == "heavier is not installed"
