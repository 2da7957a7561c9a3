"""A fork of the worker is what a process of its own would be, and nothing of it outlives what it belongs to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atlas.warm import OWNER, worker_name

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")
STUDY = """
description: A study of seconds.
seeds: [0, 1]
batch_seeds: true
resources: {threads: 1, memory_mb: 500, minutes: 1, save_minutes: 0.02}
image-classification:
  datasets:
    stacks:
      data: null
      methods:
        plain: {method: random-stack, stack: attention, depth: 8, repeats: 1}
    digits:
      protocol: &small
        backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1}
        epochs: 1
        warmup_epochs: 0
        batch_size: 128
        mixup: 0.8
        cutmix: 0
      methods: {deit: {}, attnscale: {lr_multiplier: 1}}
    long:
      data: digits
      protocol: {<<: *small, epochs: 10000}
      methods: {deit: {}}
feature-acquisition:
  datasets:
    synth:
      data: null
      protocol: {stream: {kind: synthetic, steps: 10, test_sequences: 50}, hidden: 8, batch_size: 16, steps: 6}
      methods: {vanilla: {}}
"""
LONG = "image-classification/long/deit/seed0"
MEASURED = ("peak_memory_mebibytes", "train_seconds", "train_cpu_seconds", "evaluate_seconds", "evaluate_cpu_seconds")
THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR")


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that workers belong to; when it goes, so must everything else."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()
    until(lambda: not of(process.pid), 90)


@pytest.fixture
def folder(workspace: Path) -> Path:
    (workspace / "config").mkdir()
    (workspace / "config/demo.yaml").write_text(STUDY)
    return workspace


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)


def of(owner: int) -> dict[int, str]:
    """Living processes that say they belong to an owner: number and command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if f"atlas-{owner}-" in command:
                found[int(folder.name)] = command
        except OSError:
            continue
    return found


def forks(owner: int) -> list[int]:
    """Jobs: processes whose parent is a worker."""
    known = of(owner)
    parents = {process: int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]) for process in known}
    return [process for process, parent in parents.items() if parent in known]


def environment(owner: int | None, threads: int = 1) -> dict[str, str]:
    counts = {f"{name}_NUM_THREADS": str(threads) for name in THREADS}
    return {**os.environ, **counts, **({} if owner is None else {OWNER: str(owner)})}


def start(folder: Path, owner: int | None, *arguments: str, threads: int = 1) -> subprocess.Popen[str]:
    """Start a command as a job of the workflow does."""
    return subprocess.Popen(
        [sys.executable, "-m", "atlas", *arguments],
        cwd=folder,
        env=environment(owner, threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(folder: Path, owner: int | None, *arguments: str, threads: int = 1) -> tuple[int, str]:
    process = start(folder, owner, *arguments, threads=threads)
    output, _ = process.communicate(timeout=540)
    return process.returncode, output


def begun(folder: Path, owner: int) -> subprocess.Popen[str]:
    """A long training that has taken steps in a fork."""
    history = folder / "checkpoints/demo" / LONG / "state/train/seconds.json"
    history.unlink(missing_ok=True)
    process = start(folder, owner, "train", LONG)
    until(lambda: history.exists() or process.poll() is not None, 120)
    assert process.poll() is None, process.communicate()[0]
    return process


def numbers(folder: Path) -> dict[str, object]:
    """Everything that runs left, but for what tells time and place."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "metrics.json":
            content = json.loads(path.read_text())
            found[name] = (content["metrics"], content["run"], content["settings"])
            told = content["provenance"]
            assert min(told[name] for name in MEASURED) >= 0
            found[f"{name}: made of"] = told["kernels"], told["packages"], told["code"]
        elif path.suffix in (".safetensors", ".csv"):
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_computes_what_a_process_of_its_own_does(
    folder: Path, owner: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory, threads: int
) -> None:
    """With two threads libraries start theirs in the fork; a worker that had started any would make it wait for ever."""
    (folder / "config/demo.yaml").write_text(STUDY.replace("threads: 1", f"threads: {threads}"))
    alone = Path(shutil.copytree(folder, tmp_path_factory.mktemp("alone") / "atlas", symlinks=True))
    jobs = (
        [f"image-classification/stacks/plain/seed{seed}" for seed in (0, 1)],
        [f"image-classification/digits/attnscale/seed{seed}" for seed in (0, 1)],
        ["image-classification/digits/deit/seed0"],
        ["feature-acquisition/synth/vanilla/seed1"],
    )
    for cells in jobs:
        for place, belongs in ((folder, owner.pid), (alone, None)):
            status, output = outcome(place, belongs, "train", "--tier", "demo", "--evaluate", *cells, threads=threads)
            assert status == 0, output
    assert len(of(owner.pid)) == 1
    both = [numbers(place / "results") | numbers(place / "checkpoints") for place in (folder, alone)]
    assert both[0] == both[1]
    assert len([name for name in both[0] if name.endswith("metrics.json")]) == 6
    assert any(name.endswith("model.safetensors") for name in both[0])


@pytest.mark.slow
def test_what_one_job_loads_the_next_finds(folder: Path, owner: subprocess.Popen[bytes]) -> None:
    """Also where it is loaded in the middle of the work: pandas, for the diagnostics of a ViT."""
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "os.register_at_fork(after_in_child=lambda: print('pandas' in sys.modules, file=open('found', 'a')))\n"
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    try:
        for seed in (0, 1):
            status, output = outcome(folder, owner.pid, "train", "--evaluate", f"image-classification/digits/deit/seed{seed}")
            assert status == 0, output
    finally:
        os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    assert (folder / "found").read_text().split()[-1] == "True"
    assert (folder / "found").read_text().split()[0] == "False"


def test_a_fork_says_what_is_wrong_where_a_process_does(folder: Path, owner: subprocess.Popen[bytes]) -> None:
    for arguments in (["train", "image-classification/stacks/plane/seed0"], ["evaluate", LONG], ["train", "--tier"]):
        status, output = outcome(folder, owner.pid, *arguments)
        assert (status, output.replace("atlas.cli.worker", "atlas")) == outcome(folder, None, *arguments)
        assert status == 2
    assert of(owner.pid)


@pytest.mark.slow
def test_signals_reach_the_fork_which_saves_its_state(folder: Path, owner: subprocess.Popen[bytes]) -> None:
    process = begun(folder, owner.pid)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped by SIGTERM" in output
    process = start(folder, owner.pid, "train", LONG)
    assert process.stdout is not None
    assert "going on with train after step" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert not forks(owner.pid)


@pytest.mark.slow
def test_who_kills_the_job_kills_the_fork(folder: Path, owner: subprocess.Popen[bytes]) -> None:
    process = begun(folder, owner.pid)
    process.kill()
    until(lambda: not forks(owner.pid))
    process = begun(folder, owner.pid)
    (fork,) = forks(owner.pid)
    os.kill(fork, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert len(of(owner.pid)) == 1  # the worker is there for the next


@pytest.mark.slow
def test_without_its_worker_a_job_goes_on_by_itself(folder: Path, owner: subprocess.Popen[bytes]) -> None:
    process = begun(folder, owner.pid)
    (worker,) = set(of(owner.pid)) - set(forks(owner.pid))
    os.kill(worker, signal.SIGKILL)
    assert process.stdout is not None
    said = ""
    while "going on with train after step" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    assert "stopped by SIGTERM" in said
    assert "the worker that ran this is gone" in said
    assert not of(owner.pid)
    process.terminate()
    assert process.wait(60) == 75


@pytest.mark.slow
def test_nothing_outlives_the_owner(folder: Path, owner: subprocess.Popen[bytes]) -> None:
    process = begun(folder, owner.pid)
    owner.kill()
    owner.wait()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "its state is saved" in output
    until(lambda: not of(owner.pid))
    assert list((folder / "checkpoints/demo" / LONG / "state").rglob("state-*.pt"))


@pytest.mark.slow
def test_what_is_loaded_can_be_forked(checkout: Path) -> None:
    """After loading for every row of the demo there is one thread, no GPU was looked for, and what few rows need is not there."""
    program = """
import importlib, os, sys
import torch

def refuse(*arguments, **options):
    raise AssertionError("CUDA is looked for")

for name in ("is_available", "device_count", "_lazy_init", "init"):
    setattr(torch.cuda, name, refuse)
from atlas.cli.worker import load_pages, load_runs
from atlas.study import read_once
load_pages([])
for run in read_once("demo").runs:
    load_runs(["--tier", "demo", run.cell])
for name in ("sympy", "sklearn", "skimage", "torch._inductor"):
    assert name not in sys.modules, name
for name in ("sympy", "sklearn.ensemble", "skimage.metrics", "scipy.stats", "scipy.ndimage", "pandas", "pyoperon.sklearn",
             "torchmetrics.image", "pyautoattack", "matplotlib.pyplot"):
    importlib.import_module(name)  # what jobs load in the middle of their work
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, env=environment(None), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_process_inherits_names_its_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = worker_name(1, "runs")
    assert worker_name(1, "runs") == before
    assert worker_name(2, "runs") != before
    assert worker_name(1, "pages") != before
    monkeypatch.setenv("SHLVL", "7")
    assert worker_name(1, "runs") == before
    with monkeypatch.context() as changed:
        changed.setenv("OMP_NUM_THREADS", "3")
        assert worker_name(1, "runs") != before
    mask = os.umask(0o027)
    assert worker_name(1, "runs") != before
    os.umask(mask)
    assert worker_name(1, "runs") == before
    (folder / "config/demo.yaml").write_text(STUDY + "\n")
    assert worker_name(1, "runs") != before


def test_the_side_of_the_job_is_light() -> None:
    program = "import sys; before = set(sys.modules); import atlas.warm; print(sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for name in ("typing", "pathlib", "subprocess", "json", "typer", "pydantic", "numpy"):
        assert f"'{name}'" not in loaded
