"""Ranks that are started, told to stop, killed, and stuck; and what is refused before any is started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from atlas.errors import AtlasError, Interrupted, UserError
from atlas.harness import launch
from atlas.harness.execute import train_run
from atlas.harness.files import read_tensors
from atlas.harness.launch import _outcome, plain, restored
from atlas.harness.resume import stop_requests
from atlas.harness.run import Resources, Run
from atlas.harness.study import Study
from atlas.nn.ranks import Ranks, joined
from atlas.settings import merge
from atlas.tasks.adversarial_robustness.training import Training as RobustTraining
from atlas.tasks.image_classification.training import Training

ROOT = Path(__file__).resolve().parents[2]
CELL = "image-classification/digits/deit/seed0"
STUDY = """
description: A study for ranks.
seeds: [0]
resources: {threads: 1, memory_mb: 1000, minutes: 10, save_minutes: 0.02, hang_minutes: 0.3}
image-classification:
  datasets:
    digits:
      protocol:
        backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.2}
        precision: float64
        epochs: EPOCHS
        warmup_epochs: 1
        batch_size: 64
        learning_rate: 1.0e-3
        log_every: 50
      methods: {deit: {}}
"""


def demo(cell: str, **resources: object) -> Run:
    run = Study.read("demo", ROOT).find(cell)
    return replace(run, resources=run.resources.model_copy(update=resources))


def test_a_run_is_made_again_from_plain_values() -> None:
    run = demo("image-classification/digits-mixed/attnscale+diverse-vit+uvc/seed11", gpus=4)
    again = restored(json.loads(json.dumps(plain(run))))
    assert again.fingerprint == run.fingerprint
    assert again.resources == run.resources
    assert again.method_entries == run.method_entries
    assert again.needs["dense"].cell == run.needs["dense"].cell
    assert again.weights.is_absolute()


def test_resources_say_how_many_ranks_there_are() -> None:
    assert Resources(gpus=8, nodes=2).all_ranks == 16
    assert Resources(gpus=1).all_ranks == Resources().all_ranks == 1
    assert Resources(gpus=1, ranks=4).all_ranks == 4


def test_what_cannot_be_started_is_refused_before_training(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    run = replace(demo("image-classification/digits/deit/seed10", gpus=8), root=workspace)
    with pytest.raises(
        UserError, match="asks for 8 GPUs on a node, and this machine has none: --gpus 1 trains with what is here"
    ):
        train_run(run)
    nodes = replace(run, resources=run.resources.model_copy(update={"gpus": 0, "nodes": 2}))
    with pytest.raises(UserError, match="asks for 2 nodes, which SLURM gives to a job"):
        train_run(nodes)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(UserError, match="asks for 2 nodes, and this job has 1"):
        train_run(nodes)
    search = replace(demo("image-classification/digits-as-vit/as-vit-search/seed10", ranks=2), root=workspace)
    with pytest.raises(UserError, match="trains in one process, and its resources ask for 2"):
        train_run(search)


def test_a_rank_that_died_is_named_though_the_others_were_told_to_stop_because_of_it(workspace: Path) -> None:
    run = replace(demo("image-classification/digits/deit/seed10", ranks=3), root=workspace)
    folder = workspace / "ranks"
    folder.mkdir()
    for rank in range(3):
        (folder / f"rank{rank}.json").write_text(json.dumps({"status": "running", "node": f"node{rank}"}))
    with stop_requests() as stop:
        with pytest.raises(AtlasError, match=r"a rank died of SIGKILL: rank 1 on node node1, log: ranks/rank1\.log"):
            launch._outcome(run, folder, {0: -signal.SIGTERM, 1: -signal.SIGKILL, 2: -signal.SIGTERM}, stop)
        with pytest.raises(Interrupted, match="its ranks were stopped between two loops"):
            launch._outcome(run, folder, {0: -signal.SIGTERM, 1: -signal.SIGTERM}, stop)


def test_what_a_node_is_told_and_what_is_made_of_its_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(demo("image-classification/digits/deit/seed10", ranks=2, threads=4, device="cpu"), root=workspace)
    folder = workspace / "logs/demo/image-classification/digits/deit/ranks/seed10-train"
    folder.mkdir(parents=True)
    (folder / launch.RESULT).write_text('{"status": "done", "values": {"of": "an earlier start"}}')

    def node(left: dict[str, Any], deaths: dict[int, int]) -> None:
        """The next start of a node leaves some files and says who died."""

        def start(told: Path, number: int, stop: Any) -> dict[int, int]:
            assert (told, number, stop.signal) == (folder, 0, None)
            assert [path.name for path in folder.iterdir()] == [launch.SPEC], "nothing is left of an earlier start"
            for name, content in left.items():
                (folder / name).write_text(json.dumps(content))
            return deaths

        monkeypatch.setattr(launch, "start_node", start)

    node({launch.RESULT: {"status": "done", "values": {"top1": 0.5}}}, {})
    assert launch._launch(run, "train") == {"top1": 0.5}
    spec = json.loads((folder / launch.SPEC).read_text())
    assert restored(spec.pop("run")).fingerprint == run.fingerprint
    assert 1024 <= spec.pop("port") < 65536
    assert spec == {"verb": "train", "device": "cpu", "nodes": 1, "ranks_per_node": 2, "threads": 2, "host": "127.0.0.1"}

    running = {"status": "running", "node": "a"}
    cases: tuple[tuple[dict[str, Any], dict[int, int], type[AtlasError], str], ...] = (
        ({"rank1.json": running}, {1: -signal.SIGKILL}, AtlasError, "a rank died of SIGKILL: rank 1 on node a, log: "),
        ({"rank1.json": running}, {1: 3}, AtlasError, "a rank ended with exit status 3: rank 1 on node a, log: "),
        ({launch.RESULT: {"status": "interrupted", "message": "stopped"}}, {}, Interrupted, "^stopped$"),
        (
            {
                "rank0.json": {**running, "status": "failed", "message": "late", "time": 2, "users": False},
                "rank1.json": {**running, "status": "failed", "message": "no memory", "time": 1, "users": False},
            },
            {0: 1, 1: 1},
            AtlasError,
            r"^no memory \(rank 1 on node a, log: logs/demo/.*/rank1\.log\)$",
        ),
        (
            {"rank1.json": {**running, "status": "failed", "message": "epochs is 0", "time": 1, "users": True}},
            {0: 1, 1: 1},
            UserError,
            "^epochs is 0$",
        ),
    )
    for left, deaths, kind, message in cases:
        node(left, deaths)
        with pytest.raises(kind, match=message):
            launch._launch(run, "train")


class Many(Ranks):
    """A place among many, for what is refused before anybody talks to the others."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("size", "protocol", "message"),
    [
        (80, {}, "batch_size 64 leaves some of 80 ranks without an image; take 64 ranks at most"),
        (6, {}, "batch_size 64 cannot be shared out over 6 ranks in pairs, which are mixed with each other: a multiple of 12"),
        (3, {"batch_size": 65}, "batch_size 65 cannot be shared out over 3 ranks: a multiple of 3 can"),
        (8, {"micro_batch": 24}, "micro_batch 24 cannot be shared out over 8 ranks"),
    ],
)
def test_batches_that_cannot_be_shared_out(workspace: Path, size: int, protocol: dict[str, int], message: str) -> None:
    run = demo("image-classification/digits/deit/seed10")
    with joined(Many(size)), pytest.raises(UserError, match=message):
        Training(replace(run, root=workspace, protocol=merge(run.protocol, protocol)))
    robust = replace(demo("adversarial-robustness/digits/dense/seed10"), root=workspace)
    with joined(Many(5)), pytest.raises(UserError, match="batch_size 64 does not divide by 5 ranks"):
        RobustTraining(robust)


def only_error(code: int, error: str) -> str:
    """The one line of what was printed that says what went wrong."""
    lines = [line for line in error.splitlines() if "rror" in line]
    assert (code, len(lines)) == (1, 1), error
    return lines[0]


class Started:
    """``atlas train`` in a process of its own."""

    def __init__(self, folder: Path, ranks: int, epochs: int) -> None:
        (folder / "config").mkdir(exist_ok=True)
        (folder / "config" / "demo.yaml").write_text(STUDY.replace("EPOCHS", str(epochs)))
        self.folder = folder / "logs/demo/image-classification/digits/deit/seed0/ranks/seed0-train"
        self.state = folder / "checkpoints/demo" / CELL / "state/train"
        environment = {**os.environ, "ATLAS_RANKS": str(ranks), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "atlas", "train", CELL]
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)

    def ranks(self) -> dict[int, int]:
        return {rank: state["pid"] for rank, state in launch.ranks_of(self.folder).items()}

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < end
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.1)

    def until_saved(self) -> None:
        """Wait for a state that this process has written."""
        before = {path.name: path.stat().st_mtime_ns for path in self.state.glob("*.pt")}
        self.until(lambda: {path.name: path.stat().st_mtime_ns for path in self.state.glob("*.pt")} != before)

    def ended(self, limit: float = 300) -> tuple[int, str]:
        try:
            error = self.process.communicate(timeout=limit)[1]
        finally:
            self.process.kill()
        return self.process.returncode, error


def test_a_rank_that_is_told_to_stop_stops_all(workspace: Path) -> None:
    """The tests below in short: one rank hears SIGTERM, and both leave after a saved step."""
    started = Started(workspace, 2, 4000)
    started.until_saved()
    os.kill(started.ranks()[1], signal.SIGTERM)
    code, error = started.ended()
    assert (code, "stopped by SIGTERM after step" in error) == (75, True), error


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_from_a_state(workspace: Path) -> None:
    epochs = 40
    four = Started(workspace, 4, epochs)
    four.until_saved()
    os.kill(four.ranks()[2], signal.SIGTERM)
    code, error = four.ended()
    assert (code, "stopped by SIGTERM after step" in error) == (75, True), error
    one = Started(workspace, 1, epochs)
    one.until_saved()
    one.process.send_signal(signal.SIGTERM)
    code, error = one.ended()
    assert (code, "going on with train after step" in error) == (75, True), error
    two = Started(workspace, 2, epochs)
    two.until_saved()
    two.process.send_signal(signal.SIGUSR1)
    for pid in two.ranks().values():
        os.kill(pid, signal.SIGTERM)
    code, error = two.ended()
    assert code == 75, error
    code, error = Started(workspace, 2, epochs).ended()
    assert code == 0, error
    run = Study.read("demo", workspace).find(CELL)
    found, curve = read_tensors(run.weights), run.history.read_text()
    # in a process of its own, as the others were: this one computes with the kernels of whatever processor it runs on
    (workspace / "alone").mkdir()
    (workspace / "alone" / "data").symlink_to(workspace / "data")
    code, error = Started(workspace / "alone", 1, epochs).ended()
    assert code == 0, error
    alone = Study.read("demo", workspace / "alone").find(CELL)
    assert len(curve.splitlines()) == len(alone.history.read_text().splitlines())
    for name, value in read_tensors(alone.weights).items():
        difference = (found[name] - value).abs()
        if name.endswith("qkv.bias"):  # no loss depends on the biases of keys: their gradient is rounding alone
            difference[16:32] = 0
        assert float(difference.max()) < 1e-10, name


@pytest.mark.slow
def test_a_dead_or_silent_rank_ends_the_others_with_one_error(workspace: Path) -> None:
    started = Started(workspace, 2, 4000)
    started.until_saved()
    ranks = started.ranks()
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    code, error = started.ended()
    assert time.monotonic() - began < 60  # on a machine that is very busy; some three seconds on another
    line = only_error(code, error)
    assert "a rank died of SIGKILL: rank 1 on node" in line
    assert "ranks/seed0-train/rank1.log" in line
    assert not psutil.pid_exists(ranks[0])

    started = Started(workspace, 2, 4000)
    started.until_saved()
    ranks = started.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    code, error = started.ended()
    line = only_error(code, error)
    assert "no answer for 0.3 minutes (resources.hang_minutes) from rank 1 on node" in line
    assert not any(psutil.pid_exists(pid) for pid in ranks.values())


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        ([1], "row: no answer for 0.3 minutes (resources.hang_minutes) from rank 1 on node a, log: rank1.log"),
        ([], "row: a rank died of SIGKILL: rank 1 on node a, log: rank1.log"),
    ],
)
def test_a_rank_that_was_ended_for_its_silence_did_not_die_of_itself(tmp_path: Path, ended: list[int], message: str) -> None:
    states: dict[int, dict[str, Any]] = {0: {"status": "lost", "silent": ended, "ended": ended}, 1: {"status": "running"}}
    for rank, state in states.items():
        (tmp_path / f"rank{rank}.json").write_text(json.dumps({**state, "node": "a"}))
    run: Any = SimpleNamespace(cell="row", root=tmp_path, resources=SimpleNamespace(hang_minutes=0.3))
    with pytest.raises(AtlasError) as raised:
        _outcome(run, tmp_path, {0: 1, 1: -signal.SIGKILL}, SimpleNamespace(signal=None))  # type: ignore[arg-type]
    assert str(raised.value) == message
