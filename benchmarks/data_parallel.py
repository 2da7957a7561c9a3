"""Steps per second of two ranks of one thread beside one process of one thread, for one global batch; and what talking costs.

Theory: two ranks have twice the arithmetic a second, and give up what they spend on exchanging gradients. A step of a vision
transformer of P parameters on a batch of B images of N tokens has about 6 P N B operations and exchanges 4 P bytes, so the share
of communication falls with N B: large batches hide it, and DistributedDataParallel sends the gradients of late layers while those
of early ones are still computed.

Three kinds of step take turns in the same two processes: one process with the whole batch, while the other waits; both with half
of it; both without exchanging gradients. The ratios are those of turns that follow each other; what is printed is their median,
and the share of communication is what the step gains without it. Where other work has the cores, ranks wait for each other in
turn, and seconds on the clock say little: by CPU time of the first rank, the ratio is what two free cores could give, had the
ranks never to wait.

    python -m benchmarks.data_parallel
    python -m benchmarks.data_parallel --turns 20 --steps 3 --batch 64
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from atlas.datasets.images import write_images
from atlas.harness.seeds import seed_everything
from atlas.harness.study import Study
from atlas.nn.rank_group import group
from atlas.nn.ranks import ALONE, joined
from atlas.settings import merge
from atlas.tasks.image_classification.ingredients import Batch
from atlas.tasks.image_classification.training import Training

ROOT = Path(__file__).resolve().parent.parent
CELL = "image-classification/cifar10/deit/seed0"


def write_random_images(folder: Path, count: int) -> None:
    """Random images of CIFAR-10's shape, at least a batch of them in either split."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % 10
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    write_images(folder, train_images=images, train_labels=labels, test_images=images, test_labels=labels)


class Bench:
    """The lab study's DeiT on CIFAR-10's shape, ready to take steps on its share of a batch."""

    def __init__(self, root: Path, batch: int) -> None:
        run = Study.read("lab", ROOT).find(CELL)
        changes = {"batch_size": batch, "micro_batch": None, "precision": "float32"}
        self.training = Training(replace(run, root=root, protocol=merge(run.protocol, changes)))
        self.optimizer = torch.optim.AdamW(self.training.groups, foreach=True)
        self.scaler: Any = torch.amp.GradScaler("cpu", enabled=False)
        images, labels = next(iter(self.training.data.train_batches(0)))
        self.batch = Batch(images, labels, labels)

    def step(self) -> None:
        """One step of the optimiser."""
        self.training.take_step(self.optimizer, self.scaler, self.batch)

    def silent_step(self) -> None:
        """The same without exchanging gradients."""
        with self.training.passing().call.no_sync():
            self.step()


def rank(root: Path, batch: int, turns: int, steps: int) -> None:
    """Take turns; the first rank prints seconds per step of each kind."""
    with group(int(os.environ["LOCAL_RANK"]), torch.device("cpu"), 600) as ranks:
        seed_everything(0)
        shared = Bench(root, batch)
        with joined(ALONE):
            whole = Bench(root, batch)
        for turn in range(turns + 1):
            seconds, busy = [], []
            for act in (whole.step, shared.step, shared.silent_step):
                ranks.barrier()
                began, worked = time.perf_counter(), time.process_time()
                if act != whole.step or ranks.first:
                    for _ in range(steps):
                        if act == whole.step:
                            with joined(ALONE):
                                act()
                        else:
                            act()
                busy.append((time.process_time() - worked) / steps)
                ranks.barrier()
                seconds.append((time.perf_counter() - began) / steps)
            if turn and ranks.first:  # the first turn warms up
                print(*seconds, *busy, flush=True)


def main() -> None:
    """Start two ranks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank(Path(os.environ["BENCH_ROOT"]), options.batch, options.turns, options.steps)
        return
    with tempfile.TemporaryDirectory() as place, socket.socket() as probe:
        write_random_images(Path(place) / "data" / "cifar10", max(100, options.batch))
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.data_parallel", *sys.argv[1:]],
                env={**os.environ, **names, "RANK": str(index), "LOCAL_RANK": str(index), "BENCH_ROOT": place},
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
        lines = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit("a rank failed")
        first, _ = lines
    seconds = [tuple(map(float, line.split())) for line in first.splitlines()]
    print("| batch | one process, s / step | two ranks, s / step | steps / s, ratio | by CPU time | communication | load |")
    print("|---|---|---|---|---|---|---|")
    one, two = (median(each[kind] for each in seconds) for kind in (0, 1))
    ratio = median(each[0] / each[1] for each in seconds)
    free = median(each[3] / each[4] for each in seconds)
    talk = median(1 - each[2] / each[1] for each in seconds)
    load = os.getloadavg()[0]
    print(f"| {options.batch} | {one:.3f} | {two:.3f} | {ratio:.2f} | {free:.2f} | {talk:.1%} | {load:.1f} |")


if __name__ == "__main__":
    main()
