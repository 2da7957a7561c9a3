"""Results that one may not write: every verb says in one line where, and exits with 1."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from atlas.cli import main
from atlas.errors import refusal
from atlas.harness.files import write_json

RUN = "image-classification/random-stacks/residual/seed10"
SMALL = ("--set", "depth=8", "--set", "repeats=1")
REFUSED = Path("/sys/kernel")  # where not even root can make a file


@pytest.fixture
def folder(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config").symlink_to(checkout / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def atlas(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["atlas", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.skipif(not REFUSED.is_dir(), reason="no folder is known that nobody can write to")
@pytest.mark.parametrize(
    ("arguments", "closed", "named"),
    [
        (("report",), "results", "results/demo/"),
        (("table", "image-classification/digits"), "results", "results/demo/tables/image-classification/digits.csv"),
        (("claims",), "results", "results/demo/claims.csv"),
        (("plan",), "workflow", "workflow/plan.yaml"),
        (("train", RUN, *SMALL), "checkpoints", f"checkpoints/demo-trial/{RUN}"),
        (("acquire", "digits"), "data", "data"),
    ],
)
def test_verbs_that_cannot_write(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    closed: str,
    named: str,
) -> None:
    (folder / closed).symlink_to(REFUSED)
    assert atlas(monkeypatch, *arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "cannot write" in lines[0]
    assert named in lines[0]


@pytest.mark.skipif(not REFUSED.is_dir(), reason="no folder is known that nobody can write to")
def test_an_evaluation_that_cannot_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atlas(monkeypatch, "train", RUN, *SMALL) == 0
    capsys.readouterr()
    if Path("results").exists():
        Path("results").rename("elsewhere")
    Path("results").symlink_to(REFUSED)
    assert atlas(monkeypatch, "evaluate", RUN, *SMALL) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: cannot write results/demo-trial/runs/{RUN}/")


def test_a_file_where_a_folder_should_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "results").write_text("a file")
    assert atlas(monkeypatch, "claims") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Not a directory" in line
    assert "results/demo" in line


def test_what_a_refusal_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert refusal(full) == "cannot write: No space left on device"
    assert refusal(OSError(errno.EROFS, "Read-only file system", "a")) == "cannot write a: Read-only file system"
    assert refusal(OSError(errno.EACCES, "Permission denied", ".b.x", None, "b")) == "cannot write b: Permission denied"
    assert refusal(OSError(errno.ENOENT, "No such file or directory", "a")) is None
    assert refusal(OSError("no number")) is None
    (tmp_path / "closed").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    closed = OSError(errno.EACCES, "Permission denied", str(tmp_path / "closed"))
    assert refusal(closed) == f"cannot read {tmp_path}/closed: Permission denied"


def test_a_full_disk_is_told_with_the_files_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*/metrics.json'") as caught:
        write_json(tmp_path / "metrics.json", {})
    assert refusal(caught.value) == f"cannot write {tmp_path}/metrics.json: No space left on device"
    assert list(tmp_path.iterdir()) == []
