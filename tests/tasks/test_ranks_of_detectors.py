"""Detectors on two ranks take the steps that one process takes, in float64, find the same, and go on from each other's states."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from atlas.datasets import acquire
from atlas.errors import Interrupted, UserError
from atlas.harness.files import read_tensors, write_tensors
from atlas.harness.launch import function_of, shares_work
from atlas.harness.run import Run
from atlas.harness.seeds import seed_everything
from atlas.harness.study import Study
from atlas.nn.ranks import here, joined
from atlas.settings import merge, validate_settings
from atlas.tasks.object_detection import evaluate
from atlas.tasks.object_detection.data import Scenes, batches, load_pictures
from atlas.tasks.object_detection.training import Training, units_of
from ranks import Among, on_ranks, steady_steps

TOLERANCE = 1e-10
"""Of losses, relatively, and of weights, which are of the order of 1."""
STATISTICS = 1e-8
"""Of running statistics and detections, relatively. A ResNet at its initialisation magnifies what weights differ by: those of one
process and of two ranks differ by 3e-12 after six steps, and one pass with either leaves variances that differ by 3e-9."""
PLAIN, WINDOWS, CONVOLUTIONS = "plain-transformer", "as-vit-detector", "resnet50"
BARE = (0, 3, 4, 5, 6)  # scenes that training sees without objects: whole units of two are, too
STOPPED = 2
FOUND = "found.safetensors"
STUDY = """
description: Detectors of seconds.
seeds: [0]
resources: {threads: 1, memory_mb: 4000, minutes: 5, save_minutes: 60}
object-detection:
  datasets:
    digit-scenes:
      protocol: {image_size: 64, mean: [0.25], std: [0.25], anchors: [12, 16, 20, 24, 32]}
      methods:
        plain-transformer: {}
        as-vit-detector: {}
        resnet50: {}
"""
# three units of two pictures: two ranks pass one and two of them; stochastic depth as the defaults have it
SHARED = {
    "masks": False,
    "precision": "float64",
    "batch_size": 6,
    "micro_batch": 2,
    "epochs": 3,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "data": {"train_limit": 12, "test_limit": 3, "flip": True, "jitter": [0.5, 1.5]},
}
OWN: dict[str, dict[str, object]] = {
    WINDOWS: {"masks": True, "epochs": 1},
    CONVOLUTIONS: {"score_threshold": 0},  # so soon it is sure of nothing
}


def short(root: Path, row: str, **protocol: object) -> Run:
    """A run of six steps in a folder of its own."""
    run = Study.read("demo", root).find(f"object-detection/digit-scenes/{row}/seed0")
    task = run.task_entry
    changed = merge(merge(merge(run.protocol, task.smallest), SHARED | OWN.get(row, {})), protocol)
    settings = {
        entry.name: validate_settings(entry.settings, merge(run.settings[entry.name], entry.smallest), "smallest", entry.name)
        for entry in run.method_entries
    }
    return replace(run, protocol=validate_settings(task.protocol, changed, "smallest", task.name), settings=settings)


def carried_out(jobs: Sequence[tuple[str, str, bool]]) -> None:
    """Train and evaluate rows in this process, which may be one of several ranks.

    A job is a folder, a row, and whether its training is stopped in the midst. The first rank keeps what it found.
    """
    for root, row, stop in jobs:
        run = short(Path(root), row)
        seed_everything(run.seed)
        with steady_steps(), patch.object(Scenes, "picture", bare), patch.object(Training, "take_step", stopping(stop)):
            if stop:
                with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step [34] of 6"):
                    function_of(run, "train")(run)
                continue
            function_of(run, "train")(run)
            here().barrier()  # the first rank has written the weights
            with patch.object(evaluate, "average_precision", wraps=evaluate.average_precision) as judged:
                metrics = function_of(run, "evaluate")(run) or {}
        assert bool(metrics) == bool(judged.call_count) == here().first
        if here().first:
            found = [
                [one["image_id"], one["category_id"], one["score"], *one["bbox"]] for one in judged.call_args_list[0].args[1]
            ]
            assert {number for number, *_ in found} == {0, 1, 2}
            values = [value for one in found for value in one] + list(metrics.values())
            write_tensors(run.results / FOUND, {"found": torch.tensor(values, dtype=torch.float64)})


def bare(self: Scenes, place: int, picture: Any = Scenes.picture) -> tuple[Tensor, dict[str, Tensor]]:
    """A scene, some without their objects."""
    image, target = picture(self, place)
    return image, {name: value[:0] for name, value in target.items()} if place in BARE else target


def stopping(stop: bool, take_step: Callable[..., Any] = Training.take_step) -> Callable[..., Any]:
    """The step of training, in the third of which the last rank is told to stop."""

    def step(self: Training, number: int, *batch: Any) -> dict[str, Tensor]:
        ranks = here()
        if stop and number == STOPPED and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, number, *batch)  # type: ignore[no-any-return]

    return step


@pytest.fixture
def roots(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Checkouts with the study and the embedded scenes, for one process and for others."""
    pytest.importorskip("pycocotools")
    acquire("digit-scenes", root=tmp_path / "data")
    places = [tmp_path / name for name in ("one", "two", "three", "four")]
    for place in places:
        (place / "config").mkdir(parents=True)
        (place / "config" / "demo.yaml").write_text(STUDY)
        (place / "data").symlink_to(tmp_path / "data")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    return places


def require_the_same(one: Run, other: Run) -> None:
    """Curves, weights and running statistics, detections and their precision: to rounding."""
    expected, found = (list(csv.DictReader(run.history.open())) for run in (one, other))
    assert len(expected) == len(found) == 2 * one.protocol["epochs"]
    for row, twin in zip(expected, found, strict=True):
        assert {name: float(value) for name, value in twin.items()} == pytest.approx(
            {name: float(value) for name, value in row.items()}, rel=TOLERANCE, abs=TOLERANCE
        )
    twins = read_tensors(other.weights)
    for name, value in read_tensors(one.weights).items():
        bound = STATISTICS if "running" in name else TOLERANCE
        assert torch.allclose(twins[name], value, rtol=bound, atol=bound), (one.cell, name)
    there, seen = (read_tensors(run.results / FOUND)["found"] for run in (one, other))
    assert torch.allclose(seen, there, rtol=STATISTICS, atol=STATISTICS, equal_nan=True)  # without masks their precision is NaN


def on_two_ranks(*jobs: tuple[Path, str, bool]) -> None:
    """Act on two ranks, one job after the other."""
    on_ranks(2, "test_ranks_of_detectors:carried_out", list(jobs))


def test_two_ranks_train_find_and_go_on_as_one_process_does(roots: list[Path]) -> None:
    one, two, began_alone, began_shared = roots
    carried_out([(str(one), PLAIN, False), (str(began_alone), PLAIN, True)])
    on_two_ranks((two, PLAIN, False), (began_alone, PLAIN, False), (began_shared, PLAIN, True))
    carried_out([(str(began_shared), PLAIN, False)])
    for other in (two, began_alone, began_shared):
        require_the_same(short(one, PLAIN), short(other, PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("row", [WINDOWS, CONVOLUTIONS])
def test_masks_and_batch_normalisation_on_two_ranks(roots: list[Path], row: str) -> None:
    carried_out([(str(roots[0]), row, False)])
    on_two_ranks((roots[1], row, False))
    require_the_same(short(roots[0], row), short(roots[1], row))


def test_some_units_have_no_object(roots: list[Path]) -> None:
    """So that the test before has passed them, on two ranks also as the last one, with which gradients are sent."""
    run = short(roots[0], PLAIN)
    with patch.object(Scenes, "picture", bare):
        seen = [targets for _, targets in batches(run, load_pictures(run, "train"), 0)]
    objects = [[sum(len(target["labels"]) for target in targets[first : first + 2]) for first in (0, 2, 4)] for targets in seen]
    assert any(0 in (units[0], units[-1]) for units in objects), objects


def test_a_rank_reads_its_pictures_alone(roots: list[Path]) -> None:
    run = short(roots[0], PLAIN)
    pictures = load_pictures(run, "train")
    images, targets = next(batches(run, pictures, 2))
    for rank, places in enumerate((range(2), range(2, 6))):
        with joined(Among(rank, 2)), patch.object(pictures, "picture", wraps=pictures.picture) as read:
            own, truth = next(batches(run, pictures, 2, units_of(run, len(pictures)).places))
        assert read.call_count == len(own) == len(places)
        for place, image, target in zip(places, own, truth, strict=True):
            assert torch.equal(image, images[place])
            assert torch.equal(target["boxes"], targets[place]["boxes"])


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "message"),
    [
        (
            4,
            2,
            r"a batch of 6 pictures in units of 2 \(micro_batch\) leaves some of 4 ranks without one; set micro_batch to 1",
        ),
        (2, None, r"6 pictures in units of 6 \(micro_batch\) leaves some of 2 ranks without one; set micro_batch to 3 at most$"),
        (7, 1, r"6 pictures in units of 1 \(micro_batch\) leaves some of 7 ranks without one; take 6 ranks at most$"),
    ],
)
def test_batches_with_fewer_units_than_ranks_are_refused(
    roots: list[Path], ranks: int, micro_batch: int | None, message: str
) -> None:
    run = short(roots[0], PLAIN, micro_batch=micro_batch)
    assert shares_work(run)
    with joined(Among(0, ranks)), pytest.raises(UserError, match=message):
        Training(run)
